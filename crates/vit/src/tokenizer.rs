//! Texts to tokens, by the `tokenizer.json` of a checkpoint.

use std::path::Path;

use crate::error::{Error, Result};

/// A tokenizer that puts a start and an end token around every text.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    file: String,
    end: u32,
}

impl Tokenizer {
    /// Reads a `tokenizer.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|source| Error::Io {
            path: path.into(),
            source,
        })?;
        Self::of_bytes(&path.display().to_string(), &bytes)
    }

    /// The same of its bytes; `name` is used in messages.
    pub fn of_bytes(name: &str, bytes: &[u8]) -> Result<Self> {
        let error = |reason: String| Error::Tokenizer {
            file: name.to_owned(),
            reason,
        };
        let mut inner =
            tokenizers::Tokenizer::from_bytes(bytes).map_err(|e| error(e.to_string()))?;
        // Texts are cut and filled here, where it is known for which tower.
        inner.with_padding(None);
        inner
            .with_truncation(None)
            .map_err(|e| error(e.to_string()))?;
        let empty = inner.encode("", true).map_err(|e| error(e.to_string()))?;
        let [_, end] = empty.get_ids() else {
            return Err(error(format!(
                "a start and an end token are expected around a text, found {} tokens around an empty one",
                empty.len()
            )));
        };
        Ok(Self {
            end: *end,
            inner,
            file: name.to_owned(),
        })
    }

    /// How many tokens there are.
    pub fn vocabulary(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The tokens of a text, start and end included. Of a text that is longer than `most` tokens the first stay, and the end.
    pub fn encode(&self, text: &str, most: usize) -> Result<Vec<u32>> {
        let encoded = self.inner.encode(text, true);
        let encoded = encoded.map_err(|e| Error::Tokenizer {
            file: self.file.clone(),
            reason: format!("`{text}`: {e}"),
        })?;
        let mut ids = encoded.get_ids().to_vec();
        if ids.len() > most {
            ids.truncate(most);
            if let Some(last) = ids.last_mut() {
                *last = self.end;
            }
        }
        Ok(ids)
    }
}
