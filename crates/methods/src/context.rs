//! Learned context in front of class names: texts `[start, v_1 … v_M, name, end]` whose `v` train and whose tower does not
//! (Zhou et al. 2022, "Learning to Prompt for Vision-Language Models"; `KaiyangZhou/CoOp:trainers/coop.py`).

use candle_core::Tensor;
use candlewick_core::language::{embed_all, unit};
use candlewick_core::{Error, Language, Result};

/// The tokens of class names, embedded once.
pub struct Names {
    /// `(n, 1, W)`.
    start: Tensor,
    /// `(n, L − 1, W)`.
    rest: Tensor,
    ends: Vec<usize>,
    length: usize,
}

impl Names {
    /// Texts with room for `length` learned tokens; what is too long for the tower is cut before its end.
    pub fn new<S: AsRef<str>>(
        language: &dyn Language,
        texts: impl IntoIterator<Item = S>,
        length: usize,
    ) -> Result<Self> {
        let most = language.spec().positions;
        if length + 3 > most {
            return Err(Error::setting(
                "method.length",
                format!(
                    "{length} tokens of context leave no room for a name in {most} positions; give at most {}",
                    most.saturating_sub(3)
                ),
            ));
        }
        let tokens = texts.into_iter().map(|text| {
            let mut tokens = language.tokens(text.as_ref())?;
            if tokens.len() + length > most {
                let end = tokens.last().copied();
                tokens.truncate(most - length - 1);
                tokens.extend(end);
            }
            Ok(tokens)
        });
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_>>()?;
        let (embedded, ends) = embed_all(language, &tokens)?;
        let embedded = embedded.detach();
        Ok(Self {
            start: embedded.narrow(1, 0, 1)?,
            rest: embedded.narrow(1, 1, embedded.dim(1)? - 1)?,
            ends: ends.into_iter().map(|end| end + length).collect(),
            length,
        })
    }

    /// `unit(text)` of each name behind `context`, `(n, E)`. The context is `(M, W)` for all, or `(n, M, W)`.
    pub fn texts(&self, language: &dyn Language, context: &Tensor) -> Result<Tensor> {
        let n = self.ends.len();
        let width = language.spec().width;
        let context = context.broadcast_as((n, self.length, width))?;
        let whole = Tensor::cat(&[&self.start, &context.contiguous()?, &self.rest], 1)?;
        unit(&language.texts(&whole.contiguous()?, &self.ends)?)
    }
}
