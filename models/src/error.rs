//! Everything that can go wrong on the way to a checkpoint, each with what to do about it.

use std::io;
use std::path::PathBuf;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a checkpoint could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    // What was asked for
    /// A path that leads nowhere.
    #[error("{}: there is no such file or folder; expected weights (.safetensors, .npz) or a folder that holds them", path.display())]
    NoSuchPath {
        /// The path.
        path: std::path::PathBuf,
    },
    /// Neither a card nor a path nor a Hub id.
    #[error(
        "no backbone is called '{name}'{}; a Hub id has the form organisation/name, and a path must exist",
        .nearest.as_ref().map(|n| format!(" (did you mean '{n}'?)")).unwrap_or_default()
    )]
    Unknown {
        /// As given.
        name: String,
        /// The card spelled most alike.
        nearest: Option<String>,
    },
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
    /// A card without weights.
    #[error("the card {card} says nowhere to get its weights: give it hub and revision, or url")]
    NoPlace {
        /// Its name.
        card: String,
    },
    /// Neither `HF_HOME` nor a home directory is known.
    #[error("no place for the model cache: set HF_HOME to a folder (there is no home directory)")]
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
    /// A pickle file: reading one means running code from it.
    #[error(
        "{} is a Python pickle, which can run code when it is read, so candlewick does not; convert it once:\n    \
         import torch, safetensors.torch as st\n    \
         st.save_file({{k: v.contiguous() for k, v in torch.load('{}', map_location='cpu', weights_only=True).items()}}, 'model.safetensors')",
        path.display(), path.display()
    )]
    Pickle {
        /// The file.
        path: PathBuf,
    },
    /// Not a weights file, or half of one.
    #[error("{} is not a usable weights file: expected {expected}, found {found}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        found: String,
    },
    /// A folder without weights.
    #[error(
        "{} holds no weights: expected model.safetensors, one *.npz or one *.safetensors, found {found}",
        folder.display()
    )]
    NoWeights {
        /// The folder.
        folder: PathBuf,
        /// What lies in it.
        found: String,
    },
    /// Weights without a `config.json` beside them.
    #[error(
        "{} has no config.json beside it, so the number of heads and the layer norm's epsilon are unknown; \
         put the model's config.json there, or name the card the file belongs to",
        path.display()
    )]
    NoConfig {
        /// The weights file.
        path: PathBuf,
    },
    /// A configuration file that is not JSON of the known shape.
    #[error("{}: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Place and reason.
        source: serde_json::Error,
    },
    /// A configuration this crate has no model for.
    #[error("{}: {key} is {found}, expected {expected}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// What is supported.
        expected: &'static str,
        /// What the file says.
        found: String,
    },

    // Checksums
    /// The file is not the one that was meant.
    #[error(
        "{}: SHA-256 is {found}, but {stated_by} says {expected}; the file is damaged or another one: if it is there, \
         delete it and run again; if the change is wanted, correct what {stated_by} says",
        path.display()
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
         run once without HF_HUB_OFFLINE, copy a filled cache there, or give a path to the weights",
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
    /// No answer from the server.
    #[error(
        "{url} cannot be reached ({source}) and the file is not in the cache; check the network (HTTPS_PROXY, \
         HF_ENDPOINT for a mirror), set HF_HUB_OFFLINE=1 to work from the cache only, or give a path to the weights"
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
    #[error(
        "{url} answers {status}, expected {expected}; try again later, or give a path to the weights"
    )]
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
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io {
            action,
            path,
            source,
        }
    }
}
