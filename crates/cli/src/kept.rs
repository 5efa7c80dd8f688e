//! `candlewick features list` and `clear`: what is kept on disk, of what, and how to be rid of it.

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Result, bail};
use candlewick_core::report::short;
use candlewick_store::{Error, Glance, Identity, glance, remove};

use crate::features::{ENDING, folder, identity};
use crate::prepare::Plan;
use crate::recipe::Recipe;
use crate::watch::{self, Download, megabytes};
use crate::{print, table};

#[derive(clap::Args)]
pub struct ListArgs {
    /// Say of each file whether this recipe would read it
    recipe: Option<PathBuf>,
    /// Change a key of the recipe, for example --set features=f16
    #[arg(long, value_name = "KEY=VALUE", requires = "recipe")]
    set: Vec<String>,
}

#[derive(clap::Args)]
pub struct ClearArgs {
    /// These alone [default: all in the folder of features]
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Only those that nothing was added to for so many days
    #[arg(long, value_name = "DAYS", value_parser = days)]
    older_than: Option<f64>,
    /// All of them, without asking
    #[arg(long, conflicts_with = "files")]
    all: bool,
}

fn days(text: &str) -> std::result::Result<f64, String> {
    match text.parse() {
        Ok(days) if (0.0..1e6).contains(&days) => Ok(days),
        _ => Err("expected a number of days, for example 30 or 0.5".into()),
    }
}

pub fn list(args: &ListArgs) -> Result<()> {
    let wanted = match &args.recipe {
        None => None,
        Some(path) => {
            let bar = Download::new();
            let recipe = Recipe::load(path, &args.set)?;
            let (plan, _) = Plan::new(recipe, &path.display().to_string(), Some(&bar))?;
            Some(identity(&plan, &plan.load(&bar)?))
        }
    };
    let files = there()?;
    if files.is_empty() {
        let place = folder();
        return print(&format!("{}: no features are kept\n", place.display()));
    }
    let mut head = vec![
        "file",
        "images",
        "size",
        "last written",
        "weights",
        "blocks",
        "preprocess",
        "numbers",
        "candlewick",
    ];
    head.extend(wanted.as_ref().map(|_| "this recipe"));
    let mut bytes = 0;
    let mut rows = Vec::new();
    for path in &files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut row = vec![name.into_owned()];
        match glance(path) {
            Ok(seen) => {
                bytes += seen.bytes;
                row.extend(facts(&seen));
                row.extend(wanted.as_ref().map(|wanted| fits(wanted, &seen.identity)));
            }
            Err(error) => row.push(unread(&error)),
        }
        row.resize(head.len(), String::new());
        rows.push(row);
    }
    print(&format!(
        "{}\n{} in {} files in {}\n",
        table::list(&head, rows),
        megabytes(bytes),
        files.len(),
        folder().display()
    ))
}

/// What of a store a person tells others apart by.
fn facts(seen: &Glance) -> [String; 8] {
    let identity = &seen.identity;
    let written = match (seen.busy, age(seen)) {
        (true, _) => "now, by another process".into(),
        (false, Some(age)) => ago(age),
        (false, None) => "?".into(),
    };
    let dtype = format!("{:?}", identity.dtype).to_lowercase();
    [
        seen.images.to_string(),
        megabytes(seen.bytes),
        written,
        short(&identity.weights),
        identity.depth.to_string(),
        sizes(&identity.preprocess),
        format!(
            "{} {dtype}, {} on {}",
            identity.dim, identity.precision, identity.device
        ),
        identity.code.clone(),
    ]
}

/// The sizes of images in a preprocessing, which is what people change.
fn sizes(preprocess: &str) -> String {
    let parsed: serde_json::Value = serde_json::from_str(preprocess).unwrap_or_default();
    let size = |key: &str| parsed.get(key).map(|v| format!("{key} {v}"));
    let sizes: Vec<String> = ["resize", "crop"].into_iter().filter_map(size).collect();
    sizes.join(", ")
}

/// Whether a recipe of this identity reads a file of that one.
fn fits(wanted: &Identity, found: &Identity) -> String {
    if wanted == found {
        return "reads it".into();
    }
    let value = |identity: &Identity| serde_json::to_value(identity).unwrap_or_default();
    let (wanted, found) = (value(wanted), value(found));
    let fields = wanted.as_object().into_iter().flatten();
    let other: Vec<&str> = fields
        .filter(|(field, value)| found.get(field.as_str()) != Some(*value))
        .map(|(field, _)| field.as_str())
        .collect();
    format!("no: other {}", other.join(", "))
}

fn unread(error: &Error) -> String {
    match error {
        Error::Foreign { .. } => "not a feature store".into(),
        Error::Damaged { .. } => "damaged".into(),
        Error::Identity { .. } => "of another version's format".into(),
        other => other.to_string(),
    }
}

fn age(seen: &Glance) -> Option<Duration> {
    SystemTime::now().duration_since(seen.modified?).ok()
}

fn ago(age: Duration) -> String {
    match age.as_secs() {
        s if s < 120 => format!("{s} s ago"),
        s if s < 7200 => format!("{} min ago", s / 60),
        s if s < 172_800 => format!("{} h ago", s / 3600),
        s => format!("{} days ago", s / 86_400),
    }
}

/// All files with the ending of a store in the folder of features, by name.
fn there() -> Result<Vec<PathBuf>> {
    let folder = folder();
    let entries = match std::fs::read_dir(&folder) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        Err(e) => bail!("{}: {e}", folder.display()),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(ENDING) && path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

pub fn clear(args: &ClearArgs) -> Result<()> {
    // Nothing is removed before all that was named is known to be a store.
    for path in &args.files {
        if let Err(error @ (Error::Foreign { .. } | Error::Io { .. })) = glance(path) {
            return Err(error.into());
        }
    }
    let mut files = match args.files.is_empty() {
        true => there()?,
        false => args.files.clone(),
    };
    if let Some(days) = args.older_than {
        let old = |path: &PathBuf| {
            let seen = std::fs::metadata(path)
                .and_then(|about| about.modified())
                .ok();
            let age = seen.and_then(|then| SystemTime::now().duration_since(then).ok());
            age.is_some_and(|age| age.as_secs_f64() >= days * 86_400.0)
        };
        files.retain(old);
    }
    if files.is_empty() {
        return print("nothing to remove\n");
    }
    let told = args.all || args.older_than.is_some() || !args.files.is_empty();
    if !told && !asked(&files)? {
        return print("nothing was removed\n");
    }
    let (mut removed, mut bytes) = (0, 0);
    for path in &files {
        let size = std::fs::metadata(path).map_or(0, |about| about.len());
        match remove(path) {
            Ok(true) => {
                removed += 1;
                bytes += size;
            }
            Ok(false) => left(path, "another process writes it"),
            Err(Error::Foreign { .. }) => left(path, "not a feature store"),
            Err(error) => return Err(error.into()),
        }
    }
    print(&format!(
        "removed {removed} of {} files, {}\n",
        files.len(),
        megabytes(bytes)
    ))
}

fn left(path: &Path, why: &str) {
    watch::say(&format!("{}: left there, {why}", path.display()));
}

/// The answer of a person to what would be removed.
fn asked(files: &[PathBuf]) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("features clear: say what to remove, with FILE, --older-than DAYS or --all");
    }
    let bytes = files.iter().filter_map(|path| std::fs::metadata(path).ok());
    let bytes: u64 = bytes.map(|about| about.len()).sum();
    print(&format!(
        "Remove {} files in {}, {}? [y/N] ",
        files.len(),
        folder().display(),
        megabytes(bytes)
    ))?;
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
