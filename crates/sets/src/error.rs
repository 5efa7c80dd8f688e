//! Everything that can go wrong on the way to a data set, each with what to do about it.

use std::path::PathBuf;

/// Result with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a data set could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Something is wrong with the files.
    #[error(transparent)]
    Data(#[from] candlewick_data::Error),

    /// Something is wrong with the way to them.
    #[error(transparent)]
    Hub(#[from] candlewick_hub::Error),

    /// No card of that name.
    #[error(
        "no data set is called '{name}'{}; `candlewick data list` names them all, and `data.path` takes any folder or archive",
        .nearest.as_ref().map(|n| format!(" (did you mean '{n}'?)")).unwrap_or_default()
    )]
    Unknown {
        /// As given.
        name: String,
        /// The card spelled most alike.
        nearest: Option<String>,
    },

    /// No source of that name.
    #[error("{set} has no source '{name}'; it has {known}")]
    UnknownSource {
        /// The card.
        set: String,
        /// As given.
        name: String,
        /// Those there are.
        known: String,
    },

    /// Nothing there yet.
    #[error(
        "{}: {set} is not there; run `candlewick data fetch {set}`, or say with data.path or CANDLEWICK_DATA where it is",
        folder.display()
    )]
    Absent {
        /// The card.
        set: String,
        /// Where it was looked for.
        folder: PathBuf,
    },

    /// Part of it.
    #[error(
        "{}: {set} is there in part: {missing} is missing; run `candlewick data fetch {set}` to go on",
        folder.display()
    )]
    Incomplete {
        /// The card.
        set: String,
        /// Where it is.
        folder: PathBuf,
        /// What is missing.
        missing: String,
    },

    /// Another number of images or classes than the card states.
    #[error(
        "{}: {set} has {expected} {what}, found {found}; run `candlewick data check {set}`, and use data.path without data.name \
         if it is meant to be another set",
        folder.display()
    )]
    Count {
        /// The card.
        set: String,
        /// Where it is.
        folder: PathBuf,
        /// Images of a part, or classes.
        what: String,
        /// As the card states.
        expected: usize,
        /// As counted.
        found: usize,
    },

    /// A set or source that a program cannot fetch.
    #[error("{set} cannot be fetched by a program: {how}")]
    ByHand {
        /// The card.
        set: String,
        /// What to do instead.
        how: String,
    },

    /// A repository without the files a card expects.
    #[error(
        "{repo}@{revision} holds no files like {wanted}; has it been reorganised? `candlewick data show {set}` names other sources"
    )]
    NoFiles {
        /// The card.
        set: String,
        /// The repository.
        repo: String,
        /// The revision.
        revision: String,
        /// What was looked for.
        wanted: String,
    },
}
