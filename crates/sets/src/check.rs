//! What is there of a data set, and whether it is whole.

use std::collections::HashMap;
use std::path::Path;

use candlewick_data::{Parts, TestSplit};
use candlewick_hub::{Record, checksum};

use crate::card::{Card, Source};
use crate::error::Result;
use crate::fetch::{self, Manifest};
use crate::open::{Located, located};

/// What [`check`] found.
#[derive(Debug, Default)]
pub struct Findings {
    /// What is as it should be, a line each.
    pub fine: Vec<String>,
    /// What may be meant so, a line each.
    pub notes: Vec<String>,
    /// What is wrong, a line each; empty for a set that can be used.
    pub problems: Vec<String>,
}

/// Holds a data set in a folder against its card: files and digests, numbers of images and classes, and, reading every image
/// file whole, those that are there several times.
///
/// # Errors
/// Only what keeps the folder from being looked at; what is wrong with the set is in [`Findings::problems`].
pub fn check(card: &Card, folder: &Path, split: Option<&TestSplit>) -> Result<Findings> {
    let mut findings = Findings::default();
    let Located {
        source, missing, ..
    } = match located(card, folder) {
        Ok(located) => located,
        Err(error) => {
            findings.problems.push(error.to_string());
            findings.problems.extend(what_to_do(card, folder));
            return Ok(findings);
        }
    };
    match source {
        Some(source) => {
            findings
                .fine
                .push(format!("source: {}, {}", source.name, source.about));
            digests(card, source, folder, &mut findings)?;
            for file in &missing {
                findings
                    .problems
                    .push(format!("{} is missing", folder.join(file).display()));
            }
        }
        None => findings.notes.push(format!(
            "{} holds none of the files that the card names; what is there is read as it lies",
            folder.display()
        )),
    }
    if missing.is_empty() {
        match crate::open::open_card(card, folder, split, false) {
            Ok(parts) => {
                let counted = crate::open::check_count(card, source, folder, &parts);
                findings
                    .problems
                    .extend(counted.err().map(|error| error.to_string()));
                images(&parts, &mut findings);
            }
            Err(error) => findings.problems.push(error.to_string()),
        }
    }
    if !findings.problems.is_empty() {
        findings.problems.extend(what_to_do(card, folder));
    }
    Ok(findings)
}

/// For each source, how it is had.
fn what_to_do(card: &Card, folder: &Path) -> Vec<String> {
    let lines = card.sources.iter().map(|source| match &source.by_hand {
        Some(how) => format!(
            "to have it from `{}`: {}",
            source.name,
            fetch::by_hand(source, how, folder)
        ),
        None => format!(
            "to have it from `{}`: candlewick data fetch {} --source {}",
            source.name, card.name, source.name
        ),
    });
    lines.collect()
}

/// Lengths and digests of the files that are there.
fn digests(card: &Card, source: &Source, folder: &Path, findings: &mut Findings) -> Result<()> {
    let record = Record::new(folder);
    let mut hold =
        |name: &str, key: &str, commit: Option<&str>, stated: Vec<(&str, String)>| -> Result<()> {
            let path = folder.join(name);
            if !path.is_file() {
                return Ok(());
            }
            let sha = match record.verify(key, &path, commit, None) {
                Ok(sha) => sha,
                Err(error) => {
                    findings.problems.push(error.to_string());
                    return Ok(());
                }
            };
            let mut said = Vec::new();
            for (digest, by) in stated {
                let md5 = digest.len() == 32;
                let found = match md5 {
                    true => checksum::md5_of_file(&path)?,
                    false => sha.clone(),
                };
                match checksum::check(&path, &found, Some((digest, &by))) {
                    Ok(()) => said.push(if md5 { "MD5" } else { "SHA-256" }),
                    Err(error) => {
                        findings.problems.push(error.to_string());
                        return Ok(());
                    }
                }
            }
            let known = match said.as_slice() {
                [] => "no digest is published; recorded at first use".to_owned(),
                said => format!("{} as published", said.join(" and ")),
            };
            findings
                .fine
                .push(format!("{name}: SHA-256 {sha}; {known}"));
            Ok(())
        };
    if let (Some(place), Some(listed)) = (&source.hub, Manifest::read(folder)?.get(source)) {
        for file in &listed.files {
            let key = fetch::key(place, file);
            hold(file, &key, Some(&listed.commit), Vec::new())?;
        }
    }
    for file in &source.files {
        let key = file.url.as_deref().unwrap_or(&file.name);
        hold(&file.name, key, None, fetch::stated(card, file))?;
    }
    Ok(())
}

/// Numbers of images and classes, images that cannot be read, and those of the same bytes.
fn images(parts: &Parts, findings: &mut Findings) {
    let classes = parts.train.classes().len();
    findings.fine.push(format!(
        "{} images to train on and {} to test, of {classes} classes",
        parts.train.len(),
        parts.test.len()
    ));
    let all = parts.joined();
    let train = parts.train.len();
    let mut seen: HashMap<[u8; 32], usize> = HashMap::new();
    let (mut twins, mut across, mut unlike) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..all.len() {
        let digest = match all.content(i) {
            Ok(digest) => digest,
            Err(error) => {
                findings.problems.push(error.to_string());
                continue;
            }
        };
        let Some(first) = seen.get(&digest).copied() else {
            seen.insert(digest, i);
            continue;
        };
        let pair = format!("`{}` and `{}`", all.name(first), all.name(i));
        if all.label(first) != all.label(i) {
            unlike.push(pair);
        } else if first < train && i >= train {
            across.push(pair);
        } else {
            twins.push(pair);
        }
    }
    for (pairs, what) in [
        (twins, "images are there again in the same part"),
        (across, "test images are also training images"),
        (unlike, "images are there again under another class"),
    ] {
        if let Some(first) = pairs.first() {
            findings.notes.push(format!(
                "{} {what}, byte for byte; the first: {first}",
                pairs.len()
            ));
        }
    }
}
