//! What can be wrong with a record.

/// A part of a record that is not what the page is made from.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `report.json` or `timing.json`.
    #[error("{file}: {source}; write it anew by running the recipe again")]
    Json {
        /// Name of the file.
        file: &'static str,
        /// What serde says.
        source: serde_json::Error,
    },
    /// `predictions.csv` or `classes.csv`.
    #[error("{file}: {problem}; write it anew by running the recipe again")]
    Csv {
        /// Name of the file.
        file: &'static str,
        /// What is wrong, and where. The reader's own words say again that this is an error, and of what.
        problem: String,
    },
    /// A thumbnail that could not be encoded.
    #[error("{name}: cannot be made a thumbnail: {source}")]
    Picture {
        /// Name of the image.
        name: String,
        /// What the encoder says.
        source: image::ImageError,
    },
}

impl Error {
    /// What a reader found.
    pub(crate) fn csv(file: &'static str) -> impl Fn(csv::Error) -> Self {
        move |error| {
            let problem = match error.kind() {
                csv::ErrorKind::Deserialize { pos, err } => {
                    let line = pos.as_ref().map_or(0, csv::Position::line);
                    format!("line {line}: {err}")
                }
                _ => error.to_string(),
            };
            Self::Csv { file, problem }
        }
    }
}

/// Of this crate.
pub type Result<T> = std::result::Result<T, Error>;
