//! `candlewick data list|show|fetch|check`: data sets by name.

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use candlewick_data::{Parts, demo};
use candlewick_models::HubConfig;
use candlewick_sets::{Card, default_folder};

use crate::recipe::{DEMO, DataTable};
use crate::{print, table, watch};

/// The images of a recipe.
pub fn parts(data: &DataTable) -> Result<Parts> {
    let split = data.split.as_ref();
    let (parts, place) = match (&data.name, &data.path) {
        (Some(name), None) if name == DEMO => (demo()?, DEMO.to_owned()),
        (Some(name), path) => {
            let folder = path.clone().unwrap_or_else(|| default_folder(name));
            // Numbers that the recipe states take the place of the card's.
            let count = data.expected_images.is_none();
            let parts = candlewick_sets::open_card(card(name)?, &folder, split, count);
            (parts.map_err(below_data)?, folder.display().to_string())
        }
        (None, path) => {
            let path = path.clone().unwrap_or_default();
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
