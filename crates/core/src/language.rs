//! What methods need of a text tower that was trained beside the backbone, as in CLIP.
//!
//! Images and texts meet in a joint space of `E` dimensions, where cosines tell how well they go together:
//! `logit(x, c) = exp(s) · cos(images(f(x)), texts(c))` (Radford et al. 2021, "Learning Transferable Visual Models From Natural
//! Language Supervision").

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{D, Tensor, Var};

use crate::error::{Error, Result};
use crate::method::State;

/// The sizes of a text tower.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextSpec {
    /// Width `E` of the joint space.
    pub dim: usize,
    /// Width `W` of a token.
    pub width: usize,
    /// The longest text, start and end included.
    pub positions: usize,
    /// Number of weights, of the projection of images too.
    pub parameters: usize,
}

/// A text tower, and the way of both towers into the joint space.
pub trait Language: Send + Sync {
    /// Its sizes.
    fn spec(&self) -> &TextSpec;

    /// The tokens of a text, from its start to its end token, cut to the positions there are.
    fn tokens(&self, text: &str) -> Result<Vec<u32>>;

    /// Embeddings `(n, W)` of tokens, without positions: what learned context stands between.
    fn embed(&self, tokens: &[u32]) -> Result<Tensor>;

    /// Embedded texts `(n, L, W)` to the joint space `(n, E)`, not normalised. `ends[i]` is the place of the end token of text `i`; what
    /// stands behind it does not matter. Gradients go to what went in.
    fn texts(&self, embedded: &Tensor, ends: &[usize]) -> Result<Tensor>;

    /// Features `(B, D)` of the backbone to the joint space `(B, E)`, not normalised.
    fn images(&self, features: &Tensor) -> Result<Tensor>;

    /// Whole texts to the joint space `(n, E)`, not normalised. Whoever keeps embeddings answers from there.
    fn encode(&self, texts: &[String]) -> Result<Tensor> {
        let tokens = texts.iter().map(|text| self.tokens(text));
        let tokens: Vec<Vec<u32>> = tokens.collect::<Result<_>>()?;
        if tokens.is_empty() {
            return Err(Error::State {
                problem: "there is no text to encode; give at least one class or template".into(),
            });
        }
        let parts = tokens.chunks(TOGETHER).map(|tokens| {
            let (embedded, ends) = embed_all(self, tokens)?;
            self.texts(&embedded, &ends)
        });
        Ok(Tensor::cat(&parts.collect::<Result<Vec<_>>>()?, 0)?)
    }

    /// The factor `exp(s)` on cosines, a scalar.
    fn scale(&self) -> Result<Tensor>;

    /// A copy in which every weight but the scale is a variable.
    fn thaw(&self) -> Result<ThawedLanguage> {
        Err(Error::State {
            problem: "this text tower cannot be trained; use a method that leaves it frozen".into(),
        })
    }

    /// A frozen copy with `weights` in place of its own, under the names that [`thaw`](Self::thaw) gives them.
    fn with_weights(&self, weights: &State) -> Result<Arc<dyn Language>> {
        let _ = weights;
        Err(Error::State {
            problem:
                "this text tower cannot take other weights; use a method that leaves it frozen"
                    .into(),
        })
    }
}

/// A text tower that trains.
pub struct ThawedLanguage {
    /// The tower over the variables.
    pub language: Arc<dyn Language>,
    /// Every weight by its canonical name.
    pub weights: BTreeMap<String, Var>,
}

/// Texts that go through the tower together.
const TOGETHER: usize = 128;

/// Texts as rows of one tensor `(n, L, W)`, the shorter ones filled up with their last token, and where each ends.
pub fn embed_all<L: Language + ?Sized>(
    language: &L,
    tokens: &[Vec<u32>],
) -> Result<(Tensor, Vec<usize>)> {
    let ends: Vec<usize> = tokens.iter().map(|t| t.len().saturating_sub(1)).collect();
    let length = ends.iter().max().map_or(0, |end| end + 1);
    let filled: Vec<u32> = tokens
        .iter()
        .flat_map(|tokens| {
            let last = tokens.last().copied().unwrap_or_default();
            let fill = std::iter::repeat_n(last, length - tokens.len());
            tokens.iter().copied().chain(fill)
        })
        .collect();
    let rows = language.embed(&filled)?;
    let embedded = rows.reshape((tokens.len(), length, language.spec().width))?;
    Ok((embedded, ends))
}

/// `x / |x|` over the last dimension, CLIP's own normalisation.
pub fn unit(x: &Tensor) -> Result<Tensor> {
    let norm = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    Ok(x.broadcast_div(&norm)?)
}
