//! What can be wrong with what is to be compared.

use std::path::PathBuf;

/// Of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why there is no comparison.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nothing is there.
    #[error(
        "{path}: there is no such run directory; give the path of a run, of the folder of several seeds, of a sweep, or of a report.json"
    )]
    NoSuchRun {
        /// As given.
        path: PathBuf,
    },
    /// A run that did not end, or a folder that is none.
    #[error("{path}: no report.json in it; the run did not end, or this is no run directory")]
    NoReport {
        /// The folder.
        path: PathBuf,
    },
    /// Where one run was wanted.
    #[error("{path}: holds several seeds; name the directories inside it")]
    SeveralSeeds {
        /// The folder.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// As the system has it.
        source: std::io::Error,
    },
    /// Of another version of candlewick.
    #[error(
        "{path}: a report of schema {found}, expected {expected}; read it with the candlewick that wrote it"
    )]
    Schema {
        /// The file.
        path: PathBuf,
        /// In the file.
        found: u32,
        /// Of this version.
        expected: u32,
    },
    /// Not what its name says.
    #[error("{path}: {problem}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was expected, and what is there.
        problem: String,
    },
    /// A file of published results that does not hold.
    #[error("{origin}: {problem}")]
    Published {
        /// The file, or the name of a data set.
        origin: String,
        /// What was expected, and what is there.
        problem: String,
    },
    /// A table or figure that could not be made.
    #[error("the {what} of the comparison was not made: {problem}")]
    Make {
        /// Table or figure.
        what: &'static str,
        /// As the library has it.
        problem: String,
    },
}

impl Error {
    /// A file that is not what it should be.
    pub(crate) fn corrupt(path: impl Into<PathBuf>, problem: impl ToString) -> Self {
        Self::Corrupt {
            path: path.into(),
            problem: problem.to_string(),
        }
    }
}
