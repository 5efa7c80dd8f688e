//! What can go wrong.

use std::path::{Path, PathBuf};

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused to read or write.
    #[error("{path}: cannot {what} it: {source}")]
    Io {
        /// What was asked for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },

    /// Not a safetensors file, or a cut one.
    #[error("{path}: not a whole safetensors file: {reason}; write it anew")]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },

    /// The models do not have the same parameters.
    #[error("{first} and {other} cannot be merged: {}; merge models of one shape, or name the common part with --only", problems.join("; "))]
    Differ {
        /// The first model.
        first: PathBuf,
        /// The one that is not like it.
        other: PathBuf,
        /// Every difference.
        problems: Vec<String>,
    },

    /// A rule or its numbers do not fit.
    #[error("setting `{key}`: {problem}")]
    Setting {
        /// The setting.
        key: &'static str,
        /// What was expected, what was found, and what to do.
        problem: String,
    },
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn io(what: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { what, path, source }
    }
}
