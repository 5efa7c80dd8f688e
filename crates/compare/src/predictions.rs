//! Which test images a run got right.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// One row of `predictions.csv`.
#[derive(Deserialize)]
struct Row {
    image: String,
    class: String,
    predicted: String,
}

/// Every test image by name: its class, and whether that was predicted.
pub(crate) type Hits = BTreeMap<String, (String, bool)>;

pub(crate) fn read(file: &Path) -> Result<Hits> {
    let error = |e: csv::Error| {
        Error::corrupt(
            file,
            format!("not the predictions of a run, `image, class, predicted`: {e}"),
        )
    };
    let mut hits = Hits::new();
    for row in csv::Reader::from_path(file).map_err(error)?.deserialize() {
        let row: Row = row.map_err(error)?;
        let hit = row.class == row.predicted;
        let image = row.image.clone();
        if hits.insert(row.image, (row.class, hit)).is_some() {
            let problem = format!("`{image}` is there twice; each test image has one prediction");
            return Err(Error::corrupt(file, problem));
        }
    }
    if hits.is_empty() {
        return Err(Error::corrupt(file, "holds no prediction"));
    }
    Ok(hits)
}

/// How two runs fared on the same test images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// Images.
    pub n: u64,
    /// Those that the first alone got right: b of McNemar's table.
    pub b: u64,
    /// Those that the second alone got right: c.
    pub c: u64,
}

/// Both must be of the same images with the same classes.
pub(crate) fn counts(a: &Hits, b: &Hits, files: [&Path; 2]) -> Result<Counts> {
    let mut counts = Counts {
        n: a.len() as u64,
        b: 0,
        c: 0,
    };
    let other = |image: &str| {
        let problem = format!(
            "not of the same test images as {}, though the split is: `{image}` is not in both with the same class",
            files[0].display()
        );
        Error::corrupt(files[1], problem)
    };
    if let Some(image) = b.keys().find(|image| !a.contains_key(*image)) {
        return Err(other(image));
    }
    for (image, (class, first)) in a {
        let Some((_, second)) = b.get(image).filter(|(c, _)| c == class) else {
            return Err(other(image));
        };
        counts.b += u64::from(*first && !*second);
        counts.c += u64::from(!*first && *second);
    }
    Ok(counts)
}
