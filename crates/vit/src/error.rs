//! What can be wrong with a weight file.

use std::path::PathBuf;

/// Why a backbone could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },

    /// The file is not what its name says.
    #[error("{file}: not a readable {kind} file ({reason}); fetch it again, it may be cut short")]
    Format {
        /// The file.
        file: String,
        /// `safetensors` or `npz`.
        kind: &'static str,
        /// The parser's reason.
        reason: String,
    },

    /// The tensor names belong to no known layout.
    #[error(
        "{file}: the tensor names fit no known ViT layout (timm, Hugging Face ViT, DINOv2, original npz, CLIP, open_clip); \
         the first are {first}; candlewick reads plain vision transformers"
    )]
    UnknownLayout {
        /// The file.
        file: String,
        /// A few names, to recognise the file by.
        first: String,
    },

    /// A file without a text tower.
    #[error(
        "{file}: {tensors} tensors in the {layout} layout, but no text tower; give a CLIP checkpoint with both towers"
    )]
    NoText {
        /// The file.
        file: String,
        /// The recognised layout.
        layout: &'static str,
        /// How many tensors it has.
        tensors: usize,
    },

    /// A file without an image tower.
    #[error(
        "{file}: a text tower without an image tower; give the file of the image tower as the backbone and this one for its texts"
    )]
    NoImage {
        /// The file.
        file: String,
    },

    /// The tokens of a text tower cannot be read.
    #[error(
        "{file}: not a tokenizer that can be read ({reason}); give the tokenizer.json of the checkpoint"
    )]
    Tokenizer {
        /// The file.
        file: String,
        /// The reader's reason.
        reason: String,
    },

    /// Tensors are missing, left over or of another shape.
    #[error("{file}: {} do not fit a {layout} ViT:\n  {}", count(problems.len()), problems.join("\n  "))]
    Tensors {
        /// The file.
        file: String,
        /// The recognised layout.
        layout: &'static str,
        /// One line per tensor.
        problems: Vec<String>,
    },

    /// A number format that weights do not come in.
    #[error(
        "{file}: tensor `{tensor}` is {found}, expected f32, f16 or bf16; convert the file first"
    )]
    Dtype {
        /// The file.
        file: String,
        /// Its name in the file.
        tensor: String,
        /// The format found.
        found: String,
    },

    /// An option that does not fit the weights.
    #[error("{key}: {problem}")]
    Option {
        /// Dotted key, as a recipe writes it.
        key: &'static str,
        /// What was expected and found.
        problem: String,
    },

    /// candle refused an operation.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}

fn count(n: usize) -> String {
    match n {
        1 => "1 tensor".into(),
        n => format!("{n} tensors"),
    }
}

/// The result of loading.
pub type Result<T> = std::result::Result<T, Error>;
