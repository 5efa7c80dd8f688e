//! From a card to files in a folder.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use candlewick_hub::{
    Error as HubError, HubConfig, Place, Progress, Record, checksum, fetch_to, files_of,
};
use serde::{Deserialize, Serialize};

use crate::card::{Card, File, HubFiles, Source};
use crate::error::{Error, Result};

/// The file in a set's folder that keeps what a repository held when it was first asked.
const MANIFEST: &str = "fetched.toml";

/// What was fetched, and from where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The source.
    pub source: String,
    /// Name and SHA-256 of each file.
    pub files: Vec<(String, String)>,
}

/// The files of repositories by the names of sources.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Manifest(BTreeMap<String, Listed>);

/// What a repository holds of a set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listed {
    pub repo: String,
    pub commit: String,
    pub files: Vec<String>,
}

impl Manifest {
    fn path(folder: &Path) -> PathBuf {
        folder.join(MANIFEST)
    }

    pub(crate) fn read(folder: &Path) -> Result<Self> {
        let path = Self::path(folder);
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|e| {
                HubError::Record {
                    path,
                    source: Box::new(e),
                }
                .into()
            }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(HubError::io("read", path)(e).into()),
        }
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let text = toml::to_string(self).map_err(HubError::from)?;
        checksum::write_atomically(&Self::path(folder), text.as_bytes())?;
        Ok(())
    }

    /// What is known of a source's repository.
    pub(crate) fn get(&self, source: &Source) -> Option<&Listed> {
        let repo = &source.hub.as_ref()?.repo;
        self.0
            .get(&source.name)
            .filter(|listed| listed.repo == *repo)
    }
}

/// The folder of a set: its own in `CANDLEWICK_DATA`, or in `data` below the working directory.
pub fn default_folder(card: &str) -> PathBuf {
    match std::env::var_os("CANDLEWICK_DATA").filter(|value| !value.is_empty()) {
        Some(root) => PathBuf::from(root).join(card),
        None => Path::new("data").join(card),
    }
}

/// Brings the files of a card's source into a folder: the named one, else the first that a program can fetch. Files that are
/// there are not fetched again, but their digests are held against those that are stated and that were recorded at first use.
///
/// # Errors
/// [`Error::UnknownSource`], [`Error::ByHand`] with what to do, [`Error::NoFiles`], and what network, disk and digests refuse.
pub fn fetch(
    card: &Card,
    source: Option<&str>,
    folder: &Path,
    hub: &HubConfig,
    progress: Option<&dyn Progress>,
) -> Result<Fetched> {
    let source = choose(card, source)?;
    if let Some(how) = &source.by_hand {
        return Err(Error::ByHand {
            set: card.name.clone(),
            how: by_hand(source, how, folder),
        });
    }
    fs::create_dir_all(folder).map_err(HubError::io("create", folder))?;
    let way = Way {
        folder,
        hub,
        progress,
    };
    let mut files = Vec::new();
    if let Some(place) = &source.hub {
        let listed = list(card, source, place, folder, hub)?;
        for file in &listed.files {
            let from = Place::Dataset {
                repo: &place.repo,
                revision: &listed.commit,
                file,
            };
            let sha = way.bring(from, &key(place, file), file, &[])?;
            files.push((file.clone(), sha));
        }
    }
    for file in &source.files {
        if let Some(url) = &file.url {
            let sha = way.bring(Place::Url(url), url, &file.name, &stated(card, file))?;
            files.push((file.name.clone(), sha));
        }
    }
    Ok(Fetched {
        source: source.name.clone(),
        files,
    })
}

/// From where to where.
struct Way<'a> {
    folder: &'a Path,
    hub: &'a HubConfig,
    progress: Option<&'a dyn Progress>,
}

impl Way<'_> {
    /// Brings one file, if it is not there, and gives its SHA-256, held against `stated` and the record of `key`.
    fn bring(
        &self,
        from: Place<'_>,
        key: &str,
        file: &str,
        stated: &[(&str, String)],
    ) -> Result<String> {
        let dest = self.folder.join(file);
        let record = Record::new(self.folder);
        let cite = record.cite(key);
        let known = record.get(key)?;
        let stated: Vec<(&str, &str)> = stated
            .iter()
            .map(|(hash, by)| (*hash, by.as_str()))
            .collect();
        let mut wanted = stated.clone();
        wanted.extend(
            known
                .as_ref()
                .map(|entry| (entry.sha256.as_str(), cite.as_str())),
        );
        let there = dest.exists();
        fetch_to(self.hub, from, &dest, &wanted, self.progress)?;
        if there && known.is_none() {
            // Put there by hand: nothing has held it against what is stated.
            for by in stated {
                let found = match by.0.len() {
                    32 => checksum::md5_of_file(&dest)?,
                    _ => checksum::of_file(&dest)?,
                };
                checksum::check(&dest, &found, Some(by))?;
            }
        }
        let commit = match from {
            Place::Dataset { revision, .. } => Some(revision),
            Place::Url(_) => None,
        };
        Ok(record.verify(key, &dest, commit, None)?)
    }
}

/// The named source, else the first that can be fetched, else the first.
pub(crate) fn choose<'a>(card: &'a Card, name: Option<&str>) -> Result<&'a Source> {
    let found = match name {
        Some(name) => card.sources.iter().find(|source| source.name == name),
        None => {
            let by_program = card.sources.iter().find(|source| source.by_hand.is_none());
            by_program.or(card.sources.first())
        }
    };
    found.ok_or_else(|| {
        let known: Vec<&str> = card.sources.iter().map(|s| s.name.as_str()).collect();
        Error::UnknownSource {
            set: card.name.clone(),
            name: name.unwrap_or_default().to_owned(),
            known: known.join(", "),
        }
    })
}

/// What to download and where to put it.
pub(crate) fn by_hand(source: &Source, how: &str, folder: &Path) -> String {
    let place = folder.display();
    let files: Vec<&str> = source.files.iter().map(|file| file.name.as_str()).collect();
    let what = match files.as_slice() {
        [] => format!("put it into {place}"),
        files => format!("put {} into {place}", files.join(", ")),
    };
    format!(
        "{}; {what}, as it is or unpacked; then run `candlewick data check`",
        how.trim_end_matches('.')
    )
}

/// What a card states about a file, and the name by which messages cite it.
pub(crate) fn stated<'a>(card: &Card, file: &'a File) -> Vec<(&'a str, String)> {
    let digests = [&file.sha256, &file.md5].into_iter().flatten();
    let by = format!("the card {}", card.name);
    digests
        .map(|digest| (digest.as_str(), by.clone()))
        .collect()
}

/// The key of a repository's file in the record.
pub(crate) fn key(place: &HubFiles, file: &str) -> String {
    format!("{}@{}/{file}", place.repo, place.revision)
}

/// The files of a source's repository: those of the commit that was asked first.
fn list(
    card: &Card,
    source: &Source,
    place: &HubFiles,
    folder: &Path,
    hub: &HubConfig,
) -> Result<Listed> {
    let mut manifest = Manifest::read(folder)?;
    if let Some(listed) = manifest.get(source) {
        return Ok(listed.clone());
    }
    let found = files_of(hub, &place.repo, &place.revision)?;
    let mut files = found.files;
    files.retain(|file| place.wants(file));
    if files.is_empty() {
        return Err(Error::NoFiles {
            set: card.name.clone(),
            repo: place.repo.clone(),
            revision: place.revision.clone(),
            wanted: place.files.join(", "),
        });
    }
    let listed = Listed {
        repo: place.repo.clone(),
        commit: found.commit,
        files,
    };
    manifest.0.insert(source.name.clone(), listed.clone());
    manifest.write(folder)?;
    Ok(listed)
}
