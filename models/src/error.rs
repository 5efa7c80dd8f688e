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
    /// A card without weights.
    #[error("the card {card} says nowhere to get its weights: give it hub and revision, or url")]
    NoPlace {
        /// Its name.
        card: String,
    },

    // What lies on disk
    /// A file could not be had, kept or checked.
    #[error(transparent)]
    Hub(#[from] candlewick_hub::Error),
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
    /// A text tower without its tokens.
    #[error("{} is missing; put the tokenizer.json of the checkpoint there", path.display())]
    NoTokenizer {
        /// Where it would be.
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
}

impl Error {
    /// For `map_err` on file system calls.
    pub(crate) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(io::Error) -> Self {
        let io = candlewick_hub::Error::io(action, path);
        move |source| Self::Hub(io(source))
    }
}
