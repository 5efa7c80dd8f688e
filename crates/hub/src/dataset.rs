//! Files of dataset repositories and of plain addresses, to a place of one's own.

use std::path::Path;

use serde::Deserialize;

use crate::Progress;
use crate::cache::check_part;
use crate::checksum::{self, Lock};
use crate::error::{Error, Result};
use crate::http::Client;
use crate::hub::HubConfig;

/// What a dataset repository holds at a revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dataset {
    /// The commit that the revision stands for.
    pub commit: String,
    /// Its files, by name.
    pub files: Vec<String>,
}

/// Where a file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// A dataset repository of the Hub.
    Dataset {
        /// `organisation/name`.
        repo: &'a str,
        /// Branch, tag or commit.
        revision: &'a str,
        /// The file.
        file: &'a str,
    },
    /// A plain address.
    Url(&'a str),
}

impl Place<'_> {
    fn url(&self, config: &HubConfig) -> Result<String> {
        let (repo, revision, file) = match self {
            Self::Url(url) => return Ok((*url).to_owned()),
            Self::Dataset {
                repo,
                revision,
                file,
            } => (repo, revision, file),
        };
        for (what, value) in [("id", repo), ("revision", revision), ("file", file)] {
            check_part(what, value)?;
        }
        let revision = revision.replace('/', "%2F");
        Ok(format!(
            "{}/datasets/{repo}/resolve/{revision}/{file}",
            config.endpoint
        ))
    }
}

/// The repository, as far as the answer matters.
#[derive(Deserialize)]
struct Info {
    sha: String,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The files of a dataset repository at a revision, as `/api/datasets/ID/revision/REVISION` of the Hub lists them.
///
/// # Errors
/// [`Error::Offline`] where the network is not to be asked, what the server answers but a list, and a name that would leave
/// the folder it is put into.
pub fn files_of(config: &HubConfig, repo: &str, revision: &str) -> Result<Dataset> {
    check_part("id", repo)?;
    check_part("revision", revision)?;
    let url = format!(
        "{}/api/datasets/{repo}/revision/{}",
        config.endpoint,
        revision.replace('/', "%2F")
    );
    if config.offline {
        return Err(Error::Listing { url });
    }
    let body = Client::new(config)
        .text(&url)
        .map_err(|error| match error {
            Error::NotFound { what, .. } => Error::NotFound {
                what,
                repo: repo.to_owned(),
                revision: revision.to_owned(),
                file: "all".into(),
                endpoint: config.endpoint.clone(),
            },
            other => other,
        })?;
    let info: Info = serde_json::from_str(&body).map_err(|source| Error::Answer { url, source })?;
    check_part("commit", &info.sha)?;
    let mut files = Vec::with_capacity(info.siblings.len());
    for sibling in info.siblings {
        // A name with other characters is nothing we fetch, but must not stop what we do.
        if check_part("file", &sibling.rfilename).is_ok() {
            files.push(sibling.rfilename);
        }
    }
    files.sort();
    Ok(Dataset {
        commit: info.sha,
        files,
    })
}

/// Brings a file to `dest`, going on where an earlier attempt stopped: under the name `DEST.TAG.incomplete` until it is whole
/// and its digests are those of the Hub and of `stated`. A file that is there already is left alone.
///
/// # Errors
/// What the network, the file system and the digests refuse; each says what to do.
pub fn fetch_to(
    config: &HubConfig,
    place: Place<'_>,
    dest: &Path,
    stated: &[(&str, &str)],
    progress: Option<&dyn Progress>,
) -> Result<()> {
    if dest.exists() {
        return Ok(());
    }
    let url = place.url(config)?;
    let folder = dest.parent().unwrap_or(Path::new("."));
    let name = dest.file_name().unwrap_or_default().to_string_lossy();
    if config.offline {
        return Err(Error::Offline {
            file: name.into_owned(),
            from: url,
            cache: folder.into(),
        });
    }
    let _lock = Lock::take(&folder.join(format!(".{name}.lock")))?;
    if dest.exists() {
        return Ok(());
    }
    let client = Client::new(config);
    let head = client.head(&url).map_err(|error| match (error, place) {
        (
            Error::NotFound { what, .. },
            Place::Dataset {
                repo,
                revision,
                file,
            },
        ) => Error::NotFound {
            what,
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.to_owned(),
            endpoint: config.endpoint.clone(),
        },
        (Error::NotFound { .. }, Place::Url(_)) => Error::Status {
            url: url.clone(),
            status: 404,
            expected: "200",
        },
        (other, _) => other,
    })?;
    let etag = head.etag.unwrap_or_default();
    // The ETag in the name keeps a resumed download from being joined to another version's half.
    let tag: String = etag.chars().filter(char::is_ascii_alphanumeric).collect();
    let partial = folder.join(format!(".{name}.{tag}.incomplete"));
    client.download(&url, &partial, head.size, &name, progress)?;
    let found = checksum::of_file(&partial)?;
    let by_hub = matches!(place, Place::Dataset { .. }) && etag.len() == 64;
    let by_hub = by_hub.then_some((etag.as_str(), "the Hub's ETag"));
    for by in by_hub.into_iter().chain(stated.iter().copied()) {
        let found = match by.0.len() {
            32 => checksum::md5_of_file(&partial)?,
            _ => found.clone(),
        };
        if let Err(error) = checksum::check(dest, &found, Some(by)) {
            // A resumed download would only grow from the same wrong start.
            std::fs::remove_file(&partial).map_err(Error::io("remove", &partial))?;
            return Err(error);
        }
    }
    std::fs::rename(&partial, dest).map_err(Error::io("rename", &partial))
}
