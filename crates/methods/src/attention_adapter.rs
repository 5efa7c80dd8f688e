//! LAE's adapter beside attention (Gao et al. 2023, "A Unified Continual Learning Framework with General Parameter-Efficient
//! Tuning").
//!
//! ```text
//! h = LN₁ x
//! x ← x + MHSA(h) + s · (U GELU(D h + b_D) + b_U)        D (r, dim), U (dim, r), s a scalar; exact GELU
//! ```
//!
//! `D` starts uniform within `±1/√dim`, `s` at 1, the rest at 0, so that the network starts as it was. Where a backbone scales
//! its layers, the adapter is scaled with its attention. Source: `gqk/LAE:libml/model/pet/adapter.py` (1680e49), mode `parallel`.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candlewick_core::{Cue, Init, Op, Params, Prompt, Result, Spec};

use crate::pet::{affine, as_seen};

/// An adapter in each of some blocks.
pub struct AttentionAdapters(BTreeMap<usize, Block>);

struct Block {
    down: [Tensor; 2],
    up: [Tensor; 2],
    scale: Tensor,
}

impl AttentionAdapters {
    /// Creates `adapter.I.down.weight (r, dim)`, `.down.bias`, `.up.weight (dim, r)`, `.up.bias` and `.scale (1)` for each
    /// block `I` of `blocks`.
    pub fn new(
        blocks: &[usize],
        bottleneck: usize,
        spec: &Spec,
        params: &mut Params,
    ) -> Result<Self> {
        let (r, dim) = (bottleneck, spec.dim);
        let high = 1.0 / (dim as f32).sqrt();
        let drawn = Init::Uniform { low: -high, high };
        let mut block = |i: usize| -> Result<(usize, Block)> {
            let mut new = |name: &str, shape: &[usize], init| {
                params.create(&format!("adapter.{i}.{name}"), shape, init)
            };
            let block = Block {
                down: [
                    new("down.weight", &[r, dim], drawn)?,
                    new("down.bias", &[r], Init::Zeros)?,
                ],
                up: [
                    new("up.weight", &[dim, r], Init::Zeros)?,
                    new("up.bias", &[dim], Init::Zeros)?,
                ],
                scale: new("scale", &[1], Init::Ones)?,
            };
            Ok((i, block))
        };
        Ok(Self(
            blocks.iter().map(|i| block(*i)).collect::<Result<_>>()?,
        ))
    }
}

impl Prompt for AttentionAdapters {
    fn tunes(&self, op: Op) -> bool {
        matches!(op, Op::Attention(i) if self.0.contains_key(&i))
    }

    fn tune(&self, op: Op, input: &Tensor, output: Tensor, cue: &Cue) -> Result<Tensor> {
        let Op::Attention(i) = op else {
            return Ok(output);
        };
        let Some(block) = self.0.get(&i) else {
            return Ok(output);
        };
        let hidden = affine(&input.flatten_to(1)?, &block.down, cue.train)?.gelu_erf()?;
        let change = affine(&hidden, &block.up, cue.train)?.reshape(input.dims())?;
        Ok((output + change.broadcast_mul(&as_seen(&block.scale, cue.train))?)?)
    }
}
