//! `report.html`: the page of a run, and `candlewick page`, which makes it anew or one of several runs.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use candlewick_compare::{Comparison, differences, format};
use candlewick_core::Report;
use candlewick_data::{Parts, Source};
use candlewick_page::{Difference, Page, Run};

use crate::prepare::split_hash;
use crate::print;
use crate::recipe::Recipe;
use crate::record::{self, REPORT, SUMMARY};
use crate::sets;

/// The page of a run directory.
pub const PAGE: &str = "report.html";

#[derive(clap::Args)]
pub struct PageArgs {
    /// Run directories, or directories of several seeds
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The file [default: report.html, of one run in its directory, of several here]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn page(args: &PageArgs) -> Result<()> {
    let mut dirs = Vec::new();
    for dir in &args.runs {
        dirs.extend(seeds(dir)?);
    }
    let place = match dirs.as_slice() {
        [dir] if dir.is_dir() => dir.join(PAGE),
        _ => PathBuf::from(PAGE),
    };
    let out = args.out.clone().unwrap_or(place);
    several(&args.runs, &dirs, &out)?;
    print(&format!("The page is {}\n", out.display()))
}

/// The directories of single runs in a directory of several seeds; else the directory itself.
fn seeds(dir: &Path) -> Result<Vec<PathBuf>> {
    if dir.join(REPORT).exists() || !dir.join(SUMMARY).exists() {
        return Ok(vec![dir.to_owned()]);
    }
    let summary = dir.join(SUMMARY);
    let name = || summary.display().to_string();
    #[derive(serde::Deserialize)]
    struct Seeds {
        seeds: Vec<u64>,
    }
    let text = fs::read_to_string(&summary).with_context(name)?;
    let found: Seeds = serde_json::from_str(&text).with_context(name)?;
    let paths = found
        .seeds
        .iter()
        .map(|seed| dir.join(format!("seed-{seed}")));
    Ok(paths.collect())
}

/// One page of finished runs, from what they have left. `places` are what is compared in it, single runs or folders of several
/// seeds; `dirs` are the runs themselves.
pub fn several(places: &[PathBuf], dirs: &[PathBuf], out: &Path) -> Result<()> {
    let (mut runs, mut reports) = (Vec::new(), Vec::new());
    for (dir, name) in dirs.iter().zip(names(dirs)) {
        let (run, report) = read(dir, &name)?;
        runs.push(run);
        reports.push(report);
    }
    let folder = match out.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    if !folder.is_dir() {
        bail!(
            "{}: there is no such folder; make it, or give another --out",
            folder.display()
        );
    }
    let html = html(
        "Runs side by side",
        &runs.iter().collect::<Vec<_>>(),
        &reports.iter().collect::<Vec<_>>(),
        side_by_side(places)?,
    );
    record::write_whole(folder, out, html.as_bytes())
        .with_context(|| format!("{}: not written", out.display()))
}

/// What `candlewick compare` says of them, where there are several.
fn side_by_side(places: &[PathBuf]) -> Result<Option<String>> {
    let mut entries = Vec::new();
    for place in places {
        entries.extend(candlewick_compare::read(place)?);
    }
    if entries.len() < 2 {
        return Ok(None);
    }
    Ok(Some(format::html(&Comparison::new(entries)?)))
}

/// The page of these runs, with the differences of their reports.
pub fn html(title: &str, runs: &[&Run], reports: &[&Report], comparison: Option<String>) -> String {
    let found = differences(reports).into_iter();
    let differences: Vec<Difference> = found
        .map(|d| Difference {
            field: d.field.to_owned(),
            incomparable: d.incomparable,
        })
        .collect();
    let page = Page {
        title,
        runs,
        differences: Some(&differences),
        comparison,
        ..Page::default()
    };
    page.html()
}

/// Paths without what they begin with alike.
fn names(dirs: &[PathBuf]) -> Vec<String> {
    let parts = |dir: &PathBuf| -> Vec<String> {
        let parts = dir.components().map(|c| c.as_os_str().to_string_lossy());
        parts.map(|part| part.into_owned()).collect()
    };
    let all: Vec<Vec<String>> = dirs.iter().map(parts).collect();
    let shortest = all.iter().map(Vec::len).min().unwrap_or(0);
    let alike = (0..shortest.saturating_sub(1))
        .take_while(|&i| all.iter().all(|one| one[i] == all[0][i]))
        .count();
    let names = all.iter().map(|one| one[alike..].join("/"));
    match dirs {
        [one] => vec![one.display().to_string()],
        _ => names.collect(),
    }
}

/// What the page shows of a finished run, and its report.
fn read(dir: &Path, name: &str) -> Result<(Run, Report)> {
    let report = record::read_report(dir)?;
    let folder = match dir.is_dir() {
        true => dir,
        false => dir.parent().unwrap_or(Path::new(".")),
    };
    let file = |name: &str| -> Result<Option<Vec<u8>>> {
        let path = folder.join(name);
        match path.exists() {
            true => Ok(Some(
                fs::read(&path).with_context(|| path.display().to_string())?,
            )),
            false => Ok(None),
        }
    };
    let text = match dir.is_dir() {
        true => dir.join(REPORT),
        false => dir.to_owned(),
    };
    let text = fs::read_to_string(&text).with_context(|| text.display().to_string())?;
    let of = || folder.display().to_string();
    let mut run = Run::new(name, &text).with_context(of)?;
    if let Some(bytes) = file("predictions.csv")? {
        run.predictions(&bytes).with_context(of)?;
    }
    if let Some(bytes) = file("classes.csv")? {
        run.classes(&bytes).with_context(of)?;
    }
    if let Some(bytes) = file("timing.json")? {
        run.timing(&String::from_utf8_lossy(&bytes))
            .with_context(of)?;
    }
    // Images that are not here any more, or are not the same, are no fault of the page.
    let parts = images(&folder.join("config.toml"));
    if let Some(parts) = parts.filter(|parts| split_hash(parts) == report.fingerprint.split) {
        pictures(&mut run, parts.test.as_ref());
    }
    Ok((run, report))
}

/// The images of a recipe, if they can be found.
fn images(config: &Path) -> Option<Parts> {
    if !config.exists() {
        return None;
    }
    let images = sets::images(&Recipe::load(config, &[]).ok()?);
    images.ok().map(|images| images.parts)
}

/// Adds thumbnails of the worst images; those that cannot be read are named only.
pub fn pictures(run: &mut Run, images: &dyn Source) {
    let worst = run.worst();
    if worst.is_empty() {
        return;
    }
    let places: HashMap<String, usize> = (0..images.len())
        .map(|i| (images.name(i), i))
        .filter(|(name, _)| worst.contains(name))
        .collect();
    for name in worst {
        if let Some(image) = places.get(&name).and_then(|i| images.rgb(*i).ok()) {
            let _ = run.picture(&name, &image);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_called_by_what_tells_them_apart() {
        let of = |dirs: &[&str]| names(&dirs.iter().map(PathBuf::from).collect::<Vec<_>>());
        assert_eq!(of(&["runs/demo/l2p"]), ["runs/demo/l2p"]);
        assert_eq!(
            of(&["runs/demo/l2p", "runs/demo/linear"]),
            ["l2p", "linear"]
        );
        assert_eq!(of(&["runs/a", "runs/b/seed-1"]), ["a", "b/seed-1"]);
        assert_eq!(of(&["a", "a"]), ["a", "a"]);
        assert_eq!(of(&["a", "a/b"]), ["a", "a/b"]);
    }
}
