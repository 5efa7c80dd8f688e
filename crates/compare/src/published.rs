//! Results that others published, with what is known of how they came about.
//!
//! A file is TOML: `data`, the data set's name; `[protocol.NAME]` tables, each a way to run that several rows share; and `[[result]]`
//! rows, whose keys lie over those of the `protocol` they name. What a row leaves out is not known, and the table says so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use candlewick_core::AccuracyMatrix;
use candlewick_core::report::{hex, short};
use candlewick_data::{Preprocess, Preset};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use toml::{Table, Value};

use crate::entry::{Cell, Entry, Origin};
use crate::error::{Error, Result};
use crate::rule::{Aspect, Fact, images, switches, tasks};

/// The files inside the program: data set and text.
pub const BUILT_IN: &[(&str, &str)] = &[
    ("cifar-100", include_str!("../published/cifar-100.toml")),
    ("cub-200", include_str!("../published/cub-200.toml")),
    ("domains", include_str!("../published/domains.toml")),
    ("imagenet-a", include_str!("../published/imagenet-a.toml")),
    ("imagenet-r", include_str!("../published/imagenet-r.toml")),
    ("mtil", include_str!("../published/mtil.toml")),
    ("objectnet", include_str!("../published/objectnet.toml")),
    (
        "omnibenchmark",
        include_str!("../published/omnibenchmark.toml"),
    ),
    (
        "stanford-cars",
        include_str!("../published/stanford-cars.toml"),
    ),
    ("vtab", include_str!("../published/vtab.toml")),
];

/// How sure a number is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Sure {
    /// Read in the paper.
    Paper,
    /// In a table that the authors keep with their code.
    Table,
    /// In a log that the authors keep with their code, or reckoned from it.
    Log,
    /// In a README.
    Readme,
    /// Pasted into an issue by somebody who ran the code.
    Issue,
    /// Read off a figure by eye.
    Figure,
    /// From a table that quotes others.
    SecondHand,
    /// From memory, and still to be looked up.
    Recall,
}

impl Sure {
    fn words(self) -> &'static str {
        match self {
            Self::Paper => "the paper",
            Self::Table => "authors' table",
            Self::Log => "authors' log",
            Self::Readme => "README",
            Self::Issue => "a user's run",
            Self::Figure => "read off a figure",
            Self::SecondHand => "second hand",
            Self::Recall => "from memory, unverified",
        }
    }
}

/// What each test image, or each task, counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Weighting {
    /// Each image alike.
    Micro,
    /// Each task alike.
    Macro,
    /// All tasks have as many test images, so that the two are the same.
    Both,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(untagged)]
enum Number {
    Mean(f64),
    Spread { mean: f64, std: f64 },
}

impl Number {
    fn mean(self) -> f64 {
        match self {
            Self::Mean(mean) | Self::Spread { mean, .. } => mean,
        }
    }

    fn std(self) -> Option<f64> {
        match self {
            Self::Mean(_) => None,
            Self::Spread { std, .. } => Some(std),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    data: String,
    #[serde(default)]
    classes: Option<usize>,
    #[serde(default)]
    protocol: BTreeMap<String, Table>,
    result: Vec<Table>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    id: String,
    method: String,
    #[serde(default)]
    label: Option<String>,
    source: String,
    sure: Sure,
    #[serde(default)]
    paper: Option<String>,
    #[serde(default)]
    repo: Option<String>,
    #[serde(default)]
    note: Option<String>,
    #[serde(default)]
    data: Option<String>,
    #[serde(default)]
    weights: Option<String>,
    #[serde(default)]
    weights_sha256: Option<String>,
    #[serde(default)]
    depth: Option<usize>,
    #[serde(default)]
    pixels: Option<String>,
    #[serde(default)]
    split: Option<String>,
    #[serde(default)]
    split_sha256: Option<String>,
    #[serde(default)]
    images: Option<[usize; 2]>,
    #[serde(default)]
    order: Option<String>,
    #[serde(default)]
    class_order_sha256: Option<String>,
    #[serde(default)]
    first: usize,
    #[serde(default)]
    increment: Option<usize>,
    #[serde(default)]
    scenario: Option<String>,
    #[serde(default)]
    compat: Option<Vec<String>>,
    #[serde(default)]
    precision: Option<String>,
    #[serde(default)]
    seeds: Option<usize>,
    #[serde(default)]
    weighting: Option<Weighting>,
    #[serde(default)]
    last: Option<Number>,
    #[serde(default)]
    average: Option<Number>,
    #[serde(default)]
    forgetting: Option<Number>,
    #[serde(default)]
    other: BTreeMap<String, Number>,
}

/// Published results with their ids, which are unique.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// Id and row.
    pub rows: Vec<(String, Entry)>,
}

impl Published {
    /// Of a data set that the program knows, or of a file.
    ///
    /// # Errors
    /// [`Error::Published`] where there is neither, and for what does not hold in a file.
    pub fn open(name: &str) -> Result<Self> {
        if let Some((name, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Self::parse(text, name);
        }
        match std::fs::read_to_string(Path::new(name)) {
            Ok(text) => Self::parse(&text, name),
            Err(e) => {
                let known: Vec<&str> = BUILT_IN.iter().map(|(known, _)| *known).collect();
                Err(Error::Published {
                    origin: name.to_owned(),
                    problem: format!("{e}; give a file, or one of {}", known.join(", ")),
                })
            }
        }
    }

    /// All that the program knows.
    ///
    /// # Errors
    /// None; the files inside the program are read in the tests.
    pub fn built_in() -> Result<Self> {
        let mut all = Self::default();
        for (name, text) in BUILT_IN {
            all.rows.extend(Self::parse(text, name)?.rows);
        }
        Ok(all)
    }

    /// From TOML; `origin` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Published`].
    pub fn parse(text: &str, origin: &str) -> Result<Self> {
        let error = |problem: String| Error::Published {
            origin: origin.to_owned(),
            problem,
        };
        let file: File = toml::from_str(text).map_err(|e| error(e.to_string()))?;
        let mut rows = Vec::new();
        let mut ids = BTreeSet::new();
        for (n, table) in file.result.iter().enumerate() {
            let place = match table.get("id") {
                Some(Value::String(id)) => format!("result `{id}`"),
                _ => format!("result {}", n + 1),
            };
            let said = |problem: String| error(format!("{place}: {problem}"));
            let row: Row = whole(&file, table)
                .and_then(|table| table.try_into().map_err(|e| e.to_string()))
                .map_err(said)?;
            if !ids.insert(row.id.clone()) {
                return Err(said("the id is given twice".into()));
            }
            let id = row.id.clone();
            rows.push((id, entry(&file, row).map_err(said)?));
        }
        Ok(Self { rows })
    }
}

/// A row's keys over those of its protocol.
fn whole(file: &File, row: &Table) -> std::result::Result<Table, String> {
    let mut row = row.clone();
    let mut table = match row.remove("protocol") {
        None => Table::new(),
        Some(Value::String(name)) => file.protocol.get(&name).cloned().ok_or_else(|| {
            format!("there is no [protocol.{name}]; write it, or remove `protocol`")
        })?,
        Some(other) => return Err(format!("protocol: expected a name, found {other}")),
    };
    table.extend(row);
    Ok(table)
}

fn entry(file: &File, row: Row) -> std::result::Result<Entry, String> {
    let data = row.data.as_ref().unwrap_or(&file.data);
    let cells = cells(&row)?;
    if cells.is_empty() {
        return Err("no number; give `last`, `average`, `forgetting` or `other`".into());
    }
    let mut source = row.source.clone();
    for more in [&row.repo, &row.paper].into_iter().flatten() {
        source = format!("{source}; {more}");
    }
    Ok(Entry {
        name: row.label.clone().unwrap_or_else(|| row.method.clone()),
        method: row.method.clone(),
        origin: Origin::Published {
            id: row.id.clone(),
            source,
            sure: row.sure.words().into(),
            note: row.note.clone(),
        },
        facts: facts(file, &row, data),
        cells,
        seeds: row.seeds,
        runs: Vec::new(),
    })
}

fn facts(file: &File, row: &Row, data: &str) -> BTreeMap<Aspect, Fact> {
    let with_hash = |mut fact: Fact, hash: &Option<String>| {
        fact.exact.extend(hash.clone());
        fact
    };
    let mut split = Fact::told(row.split.as_ref().map(|split| format!("{data}, {split}")));
    if row.split.is_none() {
        split.shown = format!("{data}, split not known");
    }
    split.coarse = row.images.map(|[train, test]| images(train, test));
    let mut order = Fact::told(row.order.clone());
    order.coarse = row.increment.zip(file.classes).map(|(increment, classes)| {
        let text = tasks(&sizes(row.first, increment, classes));
        order.shown = format!("{}, {text}", order.shown);
        text
    });
    let scenario = row.scenario.as_deref().unwrap_or("class-incremental");
    let facts = [
        (
            Aspect::Weights,
            with_hash(Fact::told(row.weights.clone()), &row.weights_sha256),
        ),
        (
            Aspect::Depth,
            row.depth
                .map_or_else(unknown, |d| Fact::known(d.to_string())),
        ),
        (Aspect::Pixels, pixels(row.pixels.as_deref())),
        (Aspect::Split, with_hash(split, &row.split_sha256)),
        (
            Aspect::ClassOrder,
            with_hash(order, &row.class_order_sha256),
        ),
        (Aspect::Scenario, Fact::known(scenario)),
        (
            Aspect::Compat,
            row.compat.as_ref().map_or_else(unknown, |c| compat(c)),
        ),
        (
            Aspect::Precision,
            row.precision.as_ref().map_or_else(unknown, Fact::known),
        ),
    ];
    let facts = facts.into_iter();
    facts.filter(|(aspect, _)| aspect.of_published()).collect()
}

fn unknown() -> Fact {
    Fact::told(None::<String>)
}

fn compat(named: &[String]) -> Fact {
    let mut fact = Fact::known(switches(named));
    if named.is_empty() {
        fact.shown = "none".into();
    }
    fact
}

/// Classes of each task: the first, equal ones, and what is left.
fn sizes(first: usize, increment: usize, classes: usize) -> Vec<usize> {
    let first = if first == 0 { increment } else { first };
    let mut sizes = vec![first.min(classes)];
    let mut left = classes.saturating_sub(first);
    while left > 0 && increment > 0 {
        sizes.push(increment.min(left));
        left = left.saturating_sub(increment);
    }
    sizes
}

/// A preset by its name has the hash that the report of a run with it has; anything else is a name alone.
fn pixels(name: Option<&str>) -> Fact {
    let mut fact = Fact::told(name);
    let preset = name.and_then(Preset::find);
    if let Some(preset) = preset
        && let Ok(settings) = toml::from_str::<Preprocess>(preset.keys())
    {
        let hash = hex(&Sha256::digest(settings.canonical()));
        fact.shown = format!("{} ({})", preset.name, short(&hash));
        fact.exact.insert(hash);
    }
    fact
}

/// The columns that a row has numbers in.
fn cells(row: &Row) -> std::result::Result<Vec<(String, Cell)>, String> {
    let ours = row.scenario.is_none();
    let known = |metric: &str| match ours {
        true => Fact::known(definition(metric)),
        false => unknown(),
    };
    let unsaid = |what: &str| Fact {
        shown: format!("{what}, not said whether each image or each task counts alike"),
        ..Fact::default()
    };
    let mut cells = Vec::new();
    let mut add = |name: &str, number: Option<Number>, definition: Fact| {
        let Some(number) = number else {
            return Ok(());
        };
        let (mean, std) = (number.mean(), number.std());
        if !(-100.0..=100.0).contains(&mean) || std.is_some_and(|s| !(0.0..=100.0).contains(&s)) {
            return Err(format!("{name}: expected a percentage, found {mean}"));
        }
        cells.push((
            name.to_owned(),
            Cell {
                mean,
                std,
                definition,
            },
        ));
        Ok(())
    };
    let average = match row.weighting {
        Some(Weighting::Micro | Weighting::Both) => known("average_incremental_accuracy"),
        Some(Weighting::Macro) => Fact::known("mean over sessions t of macro accuracy(t)"),
        None => unsaid("mean over sessions"),
    };
    add("average_incremental_accuracy", row.average, average)?;
    let (micro, r#macro) = ("last_accuracy_micro", "last_accuracy_macro");
    if let Some(Weighting::Micro | Weighting::Both) = row.weighting {
        add(micro, row.last, known(micro))?;
    }
    if let Some(Weighting::Macro | Weighting::Both) = row.weighting {
        add(r#macro, row.last, known(r#macro))?;
    }
    if row.weighting.is_none() {
        add(micro, row.last, unsaid("last accuracy"))?;
    }
    add("forgetting", row.forgetting, known("forgetting"))?;
    for (name, number) in &row.other {
        add(name, Some(*number), Fact::told(Some(name.clone())))?;
    }
    Ok(cells)
}

/// What a metric of ours means, in the words of a report.
fn definition(metric: &str) -> &'static str {
    let rows = AccuracyMatrix::default().metrics().rows();
    let found = rows.iter().find(|row| row.0 == metric);
    found.map_or("", |row| row.2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_inside_holds_and_no_id_is_there_twice() {
        let all = Published::built_in().unwrap();
        let ids: BTreeSet<&String> = all.rows.iter().map(|(id, _)| id).collect();
        assert_eq!(ids.len(), all.rows.len());
        assert!(all.rows.len() > 80, "{}", all.rows.len());
    }

    #[test]
    fn the_tasks_of_b_and_inc() {
        assert_eq!(sizes(0, 20, 200), [20; 10]);
        assert_eq!(sizes(50, 10, 100), [50, 10, 10, 10, 10, 10]);
        assert_eq!(sizes(0, 30, 100), [30, 30, 30, 10]);
        assert_eq!(tasks(&[50, 10, 10]), "tasks of 50, 2 × 10 classes");
    }

    fn refused(text: &str) -> String {
        let head = "data = \"x\"\nclasses = 10\n";
        Published::parse(&format!("{head}{text}"), "my.toml")
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn what_does_not_hold_is_named() {
        let row = "[[result]]\nid = \"a\"\nmethod = \"m\"\nsource = \"s\"\nsure = \"log\"\n";
        let text = refused(row);
        assert!(text.starts_with("my.toml: result `a`: no number"), "{text}");
        let text = refused(&format!("{row}last = 812.8"));
        assert!(
            text.contains("last_accuracy_micro") && text.contains("812.8"),
            "{text}"
        );
        let text = refused(&format!("{row}last = 1.0\n{row}last = 2.0"));
        assert!(text.contains("result `a`: the id is given twice"), "{text}");
        let text = refused(&format!("{row}last = 1.0\nprotocol = \"p\""));
        assert!(text.contains("no [protocol.p]"), "{text}");
        let text = refused(&format!("{row}lst = 1.0"));
        assert!(
            text.contains("result `a`") && text.contains("`lst`"),
            "{text}"
        );
        let text = refused(&row.replace("log", "certain"));
        assert!(
            text.contains("certain") && text.contains("second-hand"),
            "{text}"
        );
        let text = Published::open("nowhere").unwrap_err().to_string();
        assert!(
            text.contains("nowhere") && text.contains("imagenet-r"),
            "{text}"
        );
    }
}
