//! CLIP's text tower: pre-norm blocks in which a token sees those before it, read at the end of the text
//! (`openai/CLIP:clip/model.py`).

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor};
use candlewick_core::{Cue, NoPrompt, Result as CoreResult};

use crate::block::{Block, Style};
use crate::layers::LayerNorm;

/// Tokens to one vector a text.
pub(crate) struct TextTower {
    style: Style,
    tokens: Tensor,
    positions: Tensor,
    blocks: Vec<Block>,
    norm: LayerNorm,
}

impl TextTower {
    /// From tensors by their canonical names, which must all be there.
    pub(crate) fn new(depth: usize, style: Style, weights: &BTreeMap<String, Tensor>) -> Self {
        let get = |name: &str| weights[name].clone();
        let blocks = (0..depth).map(|i| Block::new(i, style, weights)).collect();
        Self {
            style,
            tokens: get("token_embedding.weight"),
            positions: get("positional_embedding"),
            blocks,
            norm: LayerNorm::new(get("norm.weight"), get("norm.bias"), style.eps),
        }
    }

    pub(crate) fn style(&self) -> Style {
        self.style
    }

    /// Tokens that are known.
    pub(crate) fn vocabulary(&self) -> CoreResult<usize> {
        Ok(self.tokens.dim(0)?)
    }

    /// Embeddings `(n, W)` without positions.
    pub(crate) fn embed(&self, tokens: &[u32], device: &Device) -> CoreResult<Tensor> {
        let ids = Tensor::from_slice(tokens, tokens.len(), device)?;
        Ok(self.tokens.index_select(&ids, 0)?)
    }

    /// Embedded texts `(n, L, W)` to `(n, W)`: what stands at the end of each, after the final layer norm.
    pub(crate) fn forward(&self, embedded: &Tensor, ends: &[usize]) -> CoreResult<Tensor> {
        let (n, length, width) = embedded.dims3()?;
        let positions = self.positions.narrow(0, 0, length)?.unsqueeze(0)?;
        let mut x = embedded.to_dtype(DType::F32)?.broadcast_add(&positions)?;
        for block in &self.blocks {
            x = block.forward(&x, None, None, &NoPrompt, &Cue::default())?;
        }
        // A layer norm works row by row, so the other rows need none.
        let rows: Vec<u32> = ends
            .iter()
            .enumerate()
            .map(|(i, end)| (i * length + end) as u32)
            .collect();
        let rows = Tensor::from_vec(rows, n, x.device())?;
        let at_ends = x.reshape((n * length, width))?.index_select(&rows, 0)?;
        Ok(self.norm.forward(&at_ends)?)
    }
}
