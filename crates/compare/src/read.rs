//! Finished runs, the folders of several seeds, and the cells of sweeps.

use std::fs;
use std::path::{Path, PathBuf};

use candlewick_core::Report;
use candlewick_core::report::{SCHEMA, hex};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use sha2::{Digest as _, Sha256};

use crate::entry::{Entry, Run};
use crate::error::{Error, Result};

/// Written last: a directory without it is a run that did not end.
pub const REPORT: &str = "report.json";
/// Of several seeds.
pub const SUMMARY: &str = "summary.json";
/// Of a sweep.
pub const SWEEP: &str = "sweep.json";
/// Every test image after the last task.
pub const PREDICTIONS: &str = "predictions.csv";

/// Reads the report of a run directory, or the file itself.
///
/// # Errors
/// [`Error::NoSuchRun`], [`Error::NoReport`], [`Error::SeveralSeeds`]; [`Error::Schema`] or [`Error::Corrupt`] for a file that is not a
/// report of this version.
pub fn read_report(path: &Path) -> Result<Report> {
    if !path.exists() {
        return Err(Error::NoSuchRun { path: path.into() });
    }
    let file = match path.is_dir() {
        true => path.join(REPORT),
        false => path.to_owned(),
    };
    if path.is_dir() && !file.exists() {
        let path = path.to_owned();
        return Err(match path.join(SUMMARY).exists() {
            true => Error::SeveralSeeds { path },
            false => Error::NoReport { path },
        });
    }
    report(&text(&file)?, &file)
}

fn report(text: &str, file: &Path) -> Result<Report> {
    #[derive(Deserialize)]
    struct Head {
        schema: u32,
    }
    if let Ok(Head { schema }) = serde_json::from_str(text)
        && schema != SCHEMA
    {
        return Err(Error::Schema {
            path: file.into(),
            found: schema,
            expected: SCHEMA,
        });
    }
    serde_json::from_str(text).map_err(|e| {
        Error::corrupt(
            file,
            format!("not a report of this version of candlewick: {e}"),
        )
    })
}

fn text(file: &Path) -> Result<String> {
    fs::read_to_string(file).map_err(|source| Error::Read {
        path: file.into(),
        source,
    })
}

fn json<T: DeserializeOwned>(file: &Path, what: &str) -> Result<T> {
    let read = serde_json::from_str(&text(file)?);
    read.map_err(|e| Error::corrupt(file, format!("not {what}: {e}")))
}

/// The rows that a path stands for: one for a run or for the seeds of a recipe, one per variant for a sweep.
///
/// # Errors
/// As [`read_report`], for any of the runs.
pub fn read(path: &Path) -> Result<Vec<Entry>> {
    if path.join(SWEEP).is_file() {
        return sweep(path);
    }
    let name = path.display().to_string();
    if path.join(SUMMARY).is_file() && !path.join(REPORT).exists() {
        return Ok(vec![Entry::of_runs(name, seeds(path)?)]);
    }
    let report = read_report(path)?;
    let dir = match path.is_dir() {
        true => path,
        false => path.parent().unwrap_or(Path::new("")),
    };
    Ok(vec![Entry::of_runs(name, vec![run(report, dir)])])
}

fn run(report: Report, dir: &Path) -> Run {
    Run {
        report,
        predictions: Some(dir.join(PREDICTIONS)).filter(|file| file.is_file()),
    }
}

/// The runs that a summary is of; others may lie beside them.
fn seeds(path: &Path) -> Result<Vec<Run>> {
    #[derive(Deserialize)]
    struct Summary {
        seeds: Vec<u64>,
    }
    let file = path.join(SUMMARY);
    let summary: Summary = json(&file, "the summary of several seeds")?;
    if summary.seeds.is_empty() {
        return Err(Error::corrupt(file, "names no seed"));
    }
    let dirs = summary.seeds.iter().map(|n| path.join(format!("seed-{n}")));
    dirs.map(|dir| Ok(run(read_report(&dir)?, &dir))).collect()
}

/// The variants of a sweep, each from the cells that its row names.
fn sweep(path: &Path) -> Result<Vec<Entry>> {
    #[derive(Deserialize)]
    struct Sweep {
        rows: Vec<Row>,
    }
    #[derive(Deserialize)]
    struct Row {
        backbone: String,
        stream: String,
        label: String,
        #[serde(default)]
        cells: Vec<String>,
    }
    let file = path.join(SWEEP);
    let sweep: Sweep = json(&file, "the result of a sweep")?;
    let row = |row: &Row| {
        if row.cells.is_empty() {
            let problem = "does not name its cells; run the sweep again, which takes what is kept";
            return Err(Error::corrupt(&file, problem));
        }
        let cells = row.cells.iter().map(|digest| cell(path, digest));
        let place = [row.backbone.as_str(), row.stream.as_str()];
        let place = place.join(" ");
        let name = format!("{}: {} ({})", path.display(), row.label, place.trim());
        Ok(Entry::of_runs(name, cells.collect::<Result<_>>()?))
    };
    sweep.rows.iter().map(row).collect()
}

/// A kept cell: the text of a report with its SHA-256.
fn cell(sweep: &Path, digest: &str) -> Result<Run> {
    #[derive(Deserialize)]
    struct Kept {
        sha256: String,
        report: String,
    }
    let file: PathBuf = sweep.join("cells").join(format!("{digest}.json"));
    if !file.is_file() {
        let problem = "this cell of the sweep is not there; run the sweep again";
        return Err(Error::corrupt(file, problem));
    }
    let kept: Kept = json(&file, "a cell of a sweep")?;
    if kept.sha256 != hex(&Sha256::digest(&kept.report)) {
        let problem = "changed since it was written; remove it and run the sweep again";
        return Err(Error::corrupt(file, problem));
    }
    Ok(Run {
        report: report(&kept.report, &file)?,
        predictions: None,
    })
}
