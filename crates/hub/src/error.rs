//! Everything that can go wrong on the way to a file, each with what to do about it.

use std::io;
use std::path::PathBuf;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a file could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // What was asked for
    /// A Hub id, revision or file name with characters that cannot be part of one.
    #[error(
        "'{value}' cannot be a Hub {what}: letters, digits, '.', '_', '-' and '/' between parts are allowed"
    )]
    BadId {
        /// `id`, `revision`, `file` or what the server sent.
        what: &'static str,
        /// As given.
        value: String,
    },
    /// Neither `HF_HOME` nor a home directory is known.
    #[error(
        "no place for the cache of the Hub: set HF_HOME to a folder (there is no home directory)"
    )]
    NoHome,

    // What lies on disk
    /// The file system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file or folder.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },

    // Checksums
    /// The file is not the one that was meant.
    #[error(
        "{}: {} is {found}, but {stated_by} says {expected}; the file is damaged or another one: if it is there, \
         delete it and run again; if the change is wanted, correct what {stated_by} says",
        path.display(),
        if .expected.len() == 32 { "MD5" } else { "SHA-256" }
    )]
    HashMismatch {
        /// The file.
        path: PathBuf,
        /// The hash it should have.
        expected: String,
        /// The hash it has.
        found: String,
        /// Who says what it should be.
        stated_by: String,
    },
    /// `checksums.toml` was edited into something else.
    #[error("{} is not a record of checksums (delete it to start a new one): {source}", path.display())]
    Record {
        /// The record.
        path: PathBuf,
        /// Place and reason.
        source: Box<toml::de::Error>,
    },
    /// `checksums.toml` could not be put into words.
    #[error("the record of checksums cannot be written as TOML: {0}")]
    RecordWrite(#[from] toml::ser::Error),

    // Network
    /// Offline, and the file is not in the cache.
    #[error(
        "{file} of {from} is not in the cache ({}) and HF_HUB_OFFLINE is set; \
         run once without HF_HUB_OFFLINE, copy a filled cache there, or give a path to it",
        cache.display()
    )]
    Offline {
        /// The file.
        file: String,
        /// Repository and revision, or address.
        from: String,
        /// Where it was looked for.
        cache: PathBuf,
    },
    /// Offline, and what a repository holds is not known.
    #[error("{url} is not asked, since HF_HUB_OFFLINE is set; run once without it")]
    Listing {
        /// The address.
        url: String,
    },
    /// An answer that is not the JSON that a Hub sends.
    #[error("{url} does not answer like a Hub: {source}; check HF_ENDPOINT")]
    Answer {
        /// The address.
        url: String,
        /// Place and reason.
        source: serde_json::Error,
    },
    /// No answer from the server.
    #[error(
        "{url} cannot be reached ({source}) and the file is not in the cache; check the network (HTTPS_PROXY, \
         HF_ENDPOINT for a mirror), set HF_HUB_OFFLINE=1 to work from the cache only, or give a path to it"
    )]
    Network {
        /// The address.
        url: String,
        /// The transport's reason.
        source: Box<ureq::Error>,
    },
    /// 401 or 403.
    #[error(
        "{url} answers {status}: {}",
        if *.token_sent {
            "the token in HF_TOKEN may not read this repository; accept its terms on its page, or use another token"
        } else {
            "the repository is private, gated or misspelled; accept its terms on its page and set HF_TOKEN to a token that may read it"
        }
    )]
    Denied {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// Whether a token went along.
        token_sent: bool,
    },
    /// 404.
    #[error(
        "not found: {what} (repository {repo}, revision {revision}, file {file}, at {endpoint})"
    )]
    NotFound {
        /// Which of the three is missing, as far as the server tells.
        what: String,
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// The file.
        file: String,
        /// The server.
        endpoint: String,
    },
    /// Any other status.
    #[error("{url} answers {status}, expected {expected}; try again later, or give a path to it")]
    Status {
        /// The address.
        url: String,
        /// The status.
        status: u16,
        /// What would have been right.
        expected: &'static str,
    },
    /// An answer without the headers a Hub sends.
    #[error(
        "{url} does not answer like a Hub: expected header {header}, found {found}; check HF_ENDPOINT"
    )]
    Header {
        /// The address.
        url: String,
        /// The header.
        header: &'static str,
        /// What came.
        found: String,
    },
    /// The transfer broke off again and again.
    #[error(
        "{url} broke off after {done} bytes of {}: {reason}; what came is kept, run again to go on from there",
        .total.map_or_else(|| "an unknown number".to_owned(), |t| t.to_string())
    )]
    Cut {
        /// The address.
        url: String,
        /// Bytes on disk.
        done: u64,
        /// Bytes expected.
        total: Option<u64>,
        /// The last reason.
        reason: String,
        /// The last error, if there was one.
        source: Option<io::Error>,
    },
}

impl Error {
    /// For `map_err` on file system calls.
    pub fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
