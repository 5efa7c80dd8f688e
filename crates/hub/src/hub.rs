//! Files of model repositories, in the cache that Python's `huggingface_hub` uses too.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::Progress;
use crate::cache::{Repo, check_part};
use crate::checksum::{self, Lock, Record};
use crate::error::{Error, Result};
use crate::http::Client;

/// The Hub that is asked unless `HF_ENDPOINT` names a mirror.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Where files come from and where they are kept. [`HubConfig::from_env`] reads the variables that Python's
/// `huggingface_hub` reads.
#[derive(Clone)]
#[non_exhaustive]
pub struct HubConfig {
    /// `HF_HOME`; `candlewick/` in it keeps the record of checksums and files from plain addresses.
    pub home: PathBuf,
    /// `HF_HUB_CACHE`; `hub` in the home otherwise.
    pub cache: PathBuf,
    /// `HF_ENDPOINT`.
    pub endpoint: String,
    /// `HF_TOKEN`, or the first line of the token file. Sent to the endpoint only, never to where it redirects.
    pub token: Option<String>,
    /// `HF_HUB_OFFLINE`: never ask the network.
    pub offline: bool,
    /// Wait after the first failed attempt; doubled after each that brought nothing.
    pub retry_wait: Duration,
}

/// Leaves out the token.
impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("home", &self.home)
            .field("cache", &self.cache)
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "..."))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubConfig {
    /// The default Hub with this home, without token.
    pub fn at(home: impl Into<PathBuf>) -> Self {
        let home = home.into();
        Self {
            cache: home.join("hub"),
            home,
            endpoint: DEFAULT_ENDPOINT.to_owned(),
            token: None,
            offline: false,
            retry_wait: Duration::from_millis(500),
        }
    }

    /// From `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH` and `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// [`Error::NoHome`].
    pub fn from_env() -> Result<Self> {
        Self::from_vars(|name| std::env::var(name).ok(), std::env::home_dir())
    }

    fn from_vars(var: impl Fn(&str) -> Option<String>, home_dir: Option<PathBuf>) -> Result<Self> {
        // Python treats a variable set to nothing as not set.
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let path = |name: &str| {
            var(name).map(|value| match (value.strip_prefix("~/"), &home_dir) {
                (Some(rest), Some(dir)) => dir.join(rest),
                _ => PathBuf::from(&value),
            })
        };
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|dir| dir.join("huggingface")))
            .or_else(|| home_dir.as_ref().map(|dir| dir.join(".cache/huggingface")))
            .ok_or(Error::NoHome)?;
        let mut config = Self::at(home);
        if let Some(cache) = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE")) {
            config.cache = cache;
        }
        if let Some(endpoint) = var("HF_ENDPOINT") {
            config.endpoint = endpoint.trim_end_matches('/').to_owned();
        }
        config.token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| {
                let file = path("HF_TOKEN_PATH").unwrap_or_else(|| config.home.join("token"));
                std::fs::read_to_string(file).ok()
            });
        config.token = config
            .token
            .map(|t| t.trim().to_owned())
            .filter(|t| !t.is_empty());
        config.offline = var("HF_HUB_OFFLINE").is_some_and(|v| {
            matches!(v.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
        });
        Ok(config)
    }

    /// The record of checksums.
    pub fn record(&self) -> Record {
        Record::new(&self.home.join("candlewick"))
    }
}

/// A file of a repository at a revision, and what it must hash to.
pub struct Wanted<'a> {
    /// `organisation/name`.
    pub repo: &'a str,
    /// Branch, tag or commit.
    pub revision: &'a str,
    /// The file.
    pub file: &'a str,
    /// A hash, and who says so.
    pub stated: Option<(&'a str, &'a str)>,
}

/// A file in the cache, and the commit it belongs to.
pub struct Cached {
    /// The file.
    pub path: PathBuf,
    /// The commit.
    pub commit: String,
}

/// The file from the cache, or from the Hub into the cache.
///
/// What is cached is not asked for again: a branch moves only when its cached reference does.
///
/// # Errors
/// What the network, the file system and the digests refuse; each says what to do.
pub fn fetch(
    config: &HubConfig,
    want: &Wanted<'_>,
    progress: Option<&dyn Progress>,
) -> Result<Cached> {
    let repo = Repo::new(&config.cache, want.repo)?;
    check_part("revision", want.revision)?;
    check_part("file", want.file)?;
    if let Some(cached) = repo.lookup(want.revision, want.file)? {
        return Ok(cached);
    }
    if config.offline {
        return Err(Error::Offline {
            file: want.file.to_owned(),
            from: format!("{}@{}", want.repo, want.revision),
            cache: repo.folder.clone(),
        });
    }
    let url = format!(
        "{}/{}/resolve/{}/{}",
        config.endpoint,
        want.repo,
        want.revision.replace('/', "%2F"),
        want.file
    );
    let client = Client::new(config);
    let head = client
        .head(&url)
        .map_err(|e| name_missing(e, config, want))?;
    let missing = |header| Error::Header {
        url: url.clone(),
        header,
        found: "none".to_owned(),
    };
    let commit = head.commit.ok_or_else(|| missing("X-Repo-Commit"))?;
    let etag = head.etag.ok_or_else(|| missing("ETag"))?;
    for (header, value) in [("X-Repo-Commit", &commit), ("ETag", &etag)] {
        // Both become file names.
        if check_part("answer", value).is_err() || value.contains('/') {
            return Err(Error::Header {
                url,
                header,
                found: value.clone(),
            });
        }
    }

    // One process downloads, the others wait and find the blob. Python takes the same lock.
    let _lock = Lock::take(
        &config
            .cache
            .join(".locks")
            .join(&repo.name)
            .join(format!("{etag}.lock")),
    )?;
    let blob = repo.blob(&etag);
    if !blob.exists() {
        let partial = repo.blob(&format!("{etag}.incomplete"));
        client.download(&url, &partial, head.size, want.file, progress)?;
        let found = checksum::of_file(&partial)?;
        // Large files have their SHA-256 as ETag.
        let by_hub = (etag.len() == 64).then_some((etag.as_str(), "the Hub's ETag"));
        accept(&partial, &blob, &found, [by_hub, want.stated])?;
    }
    repo.link(&etag, &commit, want.revision, want.file)
}

/// Moves a finished download to its name, or removes it if it is not what it should be.
fn accept<const N: usize>(
    partial: &Path,
    dest: &Path,
    found: &str,
    stated: [Option<(&str, &str)>; N],
) -> Result<()> {
    for by in stated {
        if let Err(error) = checksum::check(dest, found, by) {
            // A resumed download would only grow from the same wrong start.
            std::fs::remove_file(partial).map_err(Error::io("remove", partial))?;
            return Err(error);
        }
    }
    std::fs::rename(partial, dest).map_err(Error::io("rename", partial))
}

/// A file from a plain address, into `candlewick/files/NAME` in the home.
///
/// # Errors
/// What the network, the file system and the digests refuse; each says what to do.
pub fn fetch_url(
    config: &HubConfig,
    name: &str,
    url: &str,
    file: &str,
    stated: Option<(&str, &str)>,
    progress: Option<&dyn Progress>,
) -> Result<PathBuf> {
    check_part("id", name)?;
    check_part("file", file)?;
    let folder = config.home.join("candlewick").join("files").join(name);
    let dest = folder.join(file);
    if dest.exists() {
        return Ok(dest);
    }
    if config.offline {
        return Err(Error::Offline {
            file: file.to_owned(),
            from: url.to_owned(),
            cache: folder,
        });
    }
    let _lock = Lock::take(&folder.join(format!("{file}.lock")))?;
    if dest.exists() {
        return Ok(dest);
    }
    let client = Client::new(config);
    let head = client.head(url).map_err(|error| match error {
        Error::NotFound { .. } => Error::Status {
            url: url.to_owned(),
            status: 404,
            expected: "200",
        },
        other => other,
    })?;
    // The ETag in the name keeps a resumed download from being joined to another version's half.
    let tag: String = head
        .etag
        .unwrap_or_default()
        .chars()
        .filter(char::is_ascii_alphanumeric)
        .collect();
    let partial = folder.join(format!("{file}.{tag}.incomplete"));
    client.download(url, &partial, head.size, file, progress)?;
    accept(&partial, &dest, &checksum::of_file(&partial)?, [stated])?;
    Ok(dest)
}

/// Puts names to a 404.
fn name_missing(error: Error, config: &HubConfig, want: &Wanted<'_>) -> Error {
    let Error::NotFound { what, .. } = error else {
        return error;
    };
    Error::NotFound {
        what,
        repo: want.repo.to_owned(),
        revision: want.revision.to_owned(),
        file: want.file.to_owned(),
        endpoint: config.endpoint.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> HubConfig {
        let get = |name: &str| {
            vars.iter()
                .find(|(n, _)| *n == name)
                .map(|(_, v)| (*v).to_owned())
        };
        HubConfig::from_vars(get, Some("/home/ada".into())).unwrap()
    }

    #[test]
    fn the_environment_is_read_as_python_reads_it() {
        let plain = config(&[("HF_HUB_OFFLINE", "0"), ("HF_ENDPOINT", "")]);
        assert_eq!(plain.cache, Path::new("/home/ada/.cache/huggingface/hub"));
        assert_eq!(
            (plain.endpoint.as_str(), plain.offline, &plain.token),
            (DEFAULT_ENDPOINT, false, &None)
        );
        assert_eq!(
            config(&[("XDG_CACHE_HOME", "/x")]).home,
            Path::new("/x/huggingface")
        );

        let set = config(&[
            ("HF_HOME", "~/hf"),
            ("HF_HUB_CACHE", "/big/cache"),
            ("HF_ENDPOINT", "https://mirror.example/"),
            ("HF_TOKEN", " hf_secret\n"),
            ("HF_HUB_OFFLINE", "true"),
        ]);
        assert_eq!(set.home, Path::new("/home/ada/hf"));
        assert_eq!(set.cache, Path::new("/big/cache"));
        assert_eq!(set.endpoint, "https://mirror.example");
        assert_eq!(set.token.as_deref(), Some("hf_secret"));
        assert!(set.offline);
        assert!(!format!("{set:?}").contains("secret"));

        let error = HubConfig::from_vars(|_| None, None).unwrap_err();
        assert!(matches!(error, Error::NoHome));
    }

    #[test]
    fn the_token_file_is_read_when_no_variable_is_set() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("token"), "from_file\n").unwrap();
        let home = dir.path().to_str().unwrap();
        assert_eq!(
            config(&[("HF_HOME", home)]).token.as_deref(),
            Some("from_file")
        );
        assert_eq!(
            config(&[("HF_HOME", home), ("HF_TOKEN", "t")])
                .token
                .as_deref(),
            Some("t")
        );
    }
}
