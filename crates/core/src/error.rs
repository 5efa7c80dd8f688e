//! One error type for everything a method author touches.

/// What went wrong, where, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tensor operation failed inside candle.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),

    /// Data could not be read or decoded; the message of the source names the file.
    #[error("{0}")]
    Data(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A setting is out of its range or does not fit the others.
    #[error("setting `{key}`: {problem}")]
    Setting {
        /// Dotted key as it is written in a recipe, for example `method.top_k`.
        key: String,
        /// What was expected, what was found, and what to do.
        problem: String,
    },

    /// Saved parameters do not fit the method they are loaded into.
    #[error("saved parameters do not fit: {problem}")]
    State {
        /// The names and shapes that differ.
        problem: String,
    },

    /// The run was asked to stop (Ctrl-C); nothing is wrong with it.
    #[error("interrupted")]
    Interrupted,
}

impl Error {
    /// A setting that does not hold; `key` is the dotted key of the recipe.
    pub fn setting(key: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Setting {
            key: key.into(),
            problem: problem.into(),
        }
    }

    /// A batch that came while no task was being learned.
    pub fn no_task() -> Self {
        Self::State {
            problem: "a batch came before the first task or behind its end; call begin_task".into(),
        }
    }

    /// Wraps an error of a data source without flattening it to text.
    pub fn data(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Data(Box::new(source))
    }
}

/// The result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;
