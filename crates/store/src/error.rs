//! What can be wrong with a store.

use std::io;
use std::path::{Path, PathBuf};

/// Each names the file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("{path}: cannot {action}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },

    /// The content is not what was written.
    #[error(
        "{path}: damaged: {part}, bytes {from} to {to}, does not have the SHA-256 it was written with; remove the file, and its features are computed anew",
        path = path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The header, or a chunk by its number.
        part: String,
        /// Its first byte.
        from: u64,
        /// The byte behind its last.
        to: u64,
    },

    /// Not a feature store at all.
    #[error(
        "{path}: not a feature store: expected it to begin with \"candlewick/feat\\n\", found \"{found}\"",
        path = path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How it begins.
        found: String,
    },

    /// Features of something else.
    #[error(
        "{path}: holds other features: {field} is {found} there, {expected} here; give another folder, or remove the file",
        path = path.display()
    )]
    Identity {
        /// The file.
        path: PathBuf,
        /// The first field that differs.
        field: String,
        /// What the file has.
        found: String,
        /// What was asked for.
        expected: String,
    },

    /// A row that cannot be kept.
    #[error("{path}: a feature cannot be stored: {problem}", path = path.display())]
    Row {
        /// The file.
        path: PathBuf,
        /// Why not.
        problem: String,
    },

    /// Two files have different features of the same image.
    #[error(
        "{path}: another feature of the image with SHA-256 {image} than in {other}; machines that round differently computed them, so remove one of the two and compute it anew",
        path = path.display(), other = other.display()
    )]
    Disagree {
        /// One file.
        path: PathBuf,
        /// The other.
        other: PathBuf,
        /// The image.
        image: String,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io {
            path,
            action,
            source,
        }
    }
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;
