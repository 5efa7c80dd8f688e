//! The recipe's `[data]`, and `candlewick data list|show|fetch|check`: data sets by name.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use candlewick_data::{OnCorrupt, Parts, Several, TestSplit, demo};
use candlewick_models::HubConfig;
use candlewick_sets::{Card, default_folder};
use serde::{Deserialize, Serialize};

use crate::recipe::{DEMO, Recipe};
use crate::{print, table, watch};

/// The recipe's `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataTable {
    /// A data set that has a card, or the one inside the program: `emoji-r-mini`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where it lies; or, without a name, a folder, archive or table.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What classes are called in words: a CSV file of class and words, for methods that read them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class_names: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<TestSplit>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_images: Option<[usize; 2]>,
    #[serde(default)]
    pub on_corrupt: OnCorrupt,
    /// Images per forward pass where nothing is trained.
    #[serde(default = "eval_batch")]
    pub eval_batch: usize,
    /// Or several data sets, each of which is a task.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub sets: Vec<SetTable>,
}

/// One of several data sets; the keys are those of `[data]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetTable {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// What reports call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected_images: Option<[usize; 2]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<TestSplit>,
}

impl SetTable {
    fn place(&self) -> Place<'_> {
        Place {
            name: self.name.as_deref(),
            path: self.path.as_ref(),
            split: self.split.as_ref(),
            expected_images: self.expected_images,
        }
    }

    /// Its label, else its name, else the last part of its path.
    pub fn called(&self) -> String {
        let last = || self.path.as_deref().and_then(Path::file_name);
        match self.label.as_ref().or(self.name.as_ref()) {
            Some(name) => name.clone(),
            None => last().unwrap_or_default().to_string_lossy().into_owned(),
        }
    }
}

impl DataTable {
    pub fn check(&self) -> Result<()> {
        if self.sets.is_empty() {
            Place::of(self).check("data")?;
        } else if self.name.is_some()
            || self.path.is_some()
            || self.split.is_some()
            || self.expected_images.is_some()
        {
            bail!(
                "[[data.sets]] lists several data sets; move name, path, split and expected_images of [data] into one of them"
            );
        }
        for set in &self.sets {
            set.place().check("data.sets")?;
        }
        match self.eval_batch {
            0 => bail!("data.eval_batch: must be greater than 0, found 0"),
            _ => Ok(()),
        }
    }

    /// What names it in messages: name or path, of several sets all labels.
    pub fn label(&self) -> String {
        match (&self.name, &self.path) {
            (Some(name), _) => name.clone(),
            (None, Some(path)) => path.display().to_string(),
            (None, None) => {
                let labels: Vec<String> = self.sets.iter().map(SetTable::called).collect();
                labels.join("+")
            }
        }
    }
}

fn eval_batch() -> usize {
    32
}

/// The images of a recipe.
#[derive(Clone)]
pub struct Images {
    /// All of them.
    pub parts: Parts,
    /// Which data sets they are of, where a recipe lists several.
    pub several: Option<Several>,
}

/// Finds the images of a recipe.
pub fn images(recipe: &Recipe) -> Result<Images> {
    let data = &recipe.data;
    if data.sets.is_empty() {
        let parts = parts(&Place::of(data))?;
        return Ok(Images {
            parts,
            several: None,
        });
    }
    let sets = data.sets.iter().map(|set| {
        let label = set.called();
        let parts = parts(&set.place()).with_context(|| format!("data.sets: `{label}`"))?;
        Ok((label, parts))
    });
    let sets = sets.collect::<Result<_>>()?;
    let several = Several::new(sets).map_err(|e| anyhow!(e.within("data")))?;
    Ok(Images {
        parts: several.parts().clone(),
        several: Some(several),
    })
}

/// The images of one data set.
pub fn one(data: &DataTable) -> Result<Parts> {
    parts(&Place::of(data))
}

/// Where a data set is, as a recipe says it.
struct Place<'a> {
    name: Option<&'a str>,
    path: Option<&'a PathBuf>,
    split: Option<&'a TestSplit>,
    expected_images: Option<[usize; 2]>,
}

impl<'a> Place<'a> {
    fn of(data: &'a DataTable) -> Self {
        Self {
            name: data.name.as_deref(),
            path: data.path.as_ref(),
            split: data.split.as_ref(),
            expected_images: data.expected_images,
        }
    }

    /// That one data set is named; `table` is where.
    fn check(&self, table: &str) -> Result<()> {
        match (self.name, self.path) {
            (Some(DEMO), Some(_)) | (None, None) => bail!(
                "[{table}] needs either `name` (\"{DEMO}\") or `path`; with the name of a card, `path` says where it lies"
            ),
            (Some(DEMO), None) if self.split.is_some() => {
                bail!("{table}.split: `{DEMO}` has its own training and test images; remove it")
            }
            (Some(name), _) if name != DEMO => {
                card(name).with_context(|| format!("{table}.name"))?;
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

fn parts(data: &Place<'_>) -> Result<Parts> {
    let split = data.split;
    let (parts, place) = match (data.name, data.path) {
        (Some(name), None) if name == DEMO => (demo()?, DEMO.to_owned()),
        (Some(name), path) => {
            let folder = path.cloned().unwrap_or_else(|| default_folder(name));
            // Numbers that the recipe states take the place of the card's.
            let count = data.expected_images.is_none();
            let parts = candlewick_sets::open_card(card(name)?, &folder, split, count);
            (parts.map_err(below_data)?, folder.display().to_string())
        }
        (None, path) => {
            let path = path.cloned().unwrap_or_default();
            let parts = candlewick_sets::open_path(&path, split);
            (
                parts.map_err(|e| anyhow!(e.within("data")))?,
                path.display().to_string(),
            )
        }
    };
    if let Some(expected) = data.expected_images {
        parts.expect_images(expected, &place)?;
    }
    Ok(parts)
}

fn below_data(error: candlewick_sets::Error) -> anyhow::Error {
    match error {
        candlewick_sets::Error::Data(error) => anyhow!(error.within("data")),
        other => anyhow!(other),
    }
}

/// The card of a name.
pub fn card(name: &str) -> Result<&'static Card> {
    candlewick_sets::find(name).ok_or_else(|| {
        anyhow!(candlewick_sets::Error::Unknown {
            name: name.to_owned(),
            nearest: candlewick_sets::nearest(name).map(str::to_owned),
        })
    })
}

pub fn list() -> Result<()> {
    let rows = candlewick_sets::list().iter().map(|card| {
        let number = |n: Option<usize>| n.map_or("?".into(), |n| n.to_string());
        let images = card.images.map_or("?".into(), |images| images.to_string());
        let by_program = card.sources.iter().any(|source| source.by_hand.is_none());
        vec![
            card.name.clone(),
            number(card.classes),
            images,
            if by_program { "yes" } else { "by hand" }.into(),
            card.about.clone(),
        ]
    });
    print(&table::list(
        &["data set", "classes", "images", "fetched", "what"],
        rows,
    ))
}

pub fn show(name: &str) -> Result<()> {
    print(&format!("{}\n", card(name)?))
}

pub fn fetch(name: &str, source: Option<&str>, to: Option<PathBuf>) -> Result<()> {
    let card = card(name)?;
    let folder = to.unwrap_or_else(|| default_folder(name));
    let bar = watch::Download::new();
    let hub = HubConfig::from_env()?;
    let fetched = candlewick_sets::fetch(card, source, &folder, &hub, Some(&bar))?;
    let files: String = fetched
        .files
        .iter()
        .map(|(file, sha256)| format!("{file}\n  sha256 {sha256}\n"))
        .collect();
    print(&format!(
        "{name} from `{}` is in {}\n{files}licence: {}\nTo count its images: candlewick data check {name}\n",
        fetched.source,
        folder.display(),
        card.licence
    ))
}

pub fn check(name: &str, at: Option<PathBuf>) -> Result<()> {
    let folder = at.unwrap_or_else(|| default_folder(name));
    let findings = candlewick_sets::check(card(name)?, &folder, None)?;
    let mut text = String::new();
    for line in &findings.fine {
        text += &format!("{line}\n");
    }
    for line in &findings.notes {
        text += &format!("note: {line}\n");
    }
    print(&text)?;
    match findings.problems.is_empty() {
        true => print(&format!("{name} is whole\n")),
        false => bail!(
            "{name} cannot be used as it is:\n{}",
            findings.problems.join("\n")
        ),
    }
}
