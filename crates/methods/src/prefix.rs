//! Prefix tuning with LAE's compensation (Li and Liang 2021, "Prefix-Tuning"; Gao et al. 2023, "A Unified Continual Learning
//! Framework with General Parameter-Efficient Tuning").
//!
//! ```text
//! [w_P, w] = softmax(q [s_k P_k ; k]ᵀ / √d)               P_k, P_v (L, D), s_k, s_v scalars; behind the projection, per head
//! out      = w_P / max(Σ w_P, 1e-12) · s_v P_v + w v       with compensation; else out = w_P · s_v P_v + w v
//! ```
//!
//! The compensated prefix receives the whole of a query's attention however small its share, and the tokens keep theirs: prefixes
//! then adapt about as fast as adapters and LoRA. Tokens start uniform on `[0, 0.01)`, scalars at 1. Source:
//! `gqk/LAE:libml/model/pet/prefix.py`, `libml/model/pet_mixin/prefix.py` (1680e49).

use std::collections::BTreeMap;

use candle_core::Tensor;
use candlewick_core::{Cue, Init, Injection, Params, Prefix, Prompt, Result, Share, Site, Spec};

use crate::pet::as_seen;

/// A prefix in each of some blocks, the same for every image.
pub struct FreePrefixes {
    blocks: BTreeMap<usize, Pair>,
    heads: usize,
    share: Share,
}

struct Pair {
    keys: [Tensor; 2],
    values: [Tensor; 2],
}

impl FreePrefixes {
    /// Creates `prefix.I.keys (L, D)`, `.keys.scale (1)`, `.values` and `.values.scale` for each block `I` of `blocks`.
    pub fn new(
        blocks: &[usize],
        length: usize,
        compensate: bool,
        spec: &Spec,
        params: &mut Params,
    ) -> Result<Self> {
        let drawn = Init::Uniform {
            low: 0.0,
            high: 0.01,
        };
        let mut new = |name: String| -> Result<[Tensor; 2]> {
            Ok([
                params.create(&name, &[length, spec.dim], drawn)?,
                params.create(&format!("{name}.scale"), &[1], Init::Ones)?,
            ])
        };
        let mut pair = |i: usize| -> Result<(usize, Pair)> {
            let keys = new(format!("prefix.{i}.keys"))?;
            let values = new(format!("prefix.{i}.values"))?;
            Ok((i, Pair { keys, values }))
        };
        Ok(Self {
            blocks: blocks.iter().map(|i| pair(*i)).collect::<Result<_>>()?,
            heads: spec.heads,
            share: match compensate {
                true => Share::Whole,
                false => Share::Softmax,
            },
        })
    }
}

impl Prompt for FreePrefixes {
    fn inject(&self, site: Site, tokens: &Tensor, cue: &Cue) -> Result<Injection> {
        let Site::Block(i) = site else {
            return Ok(Injection::default());
        };
        let Some(pair) = self.blocks.get(&i) else {
            return Ok(Injection::default());
        };
        let scaled = |[tokens, scale]: &[Tensor; 2]| {
            as_seen(tokens, cue.train).broadcast_mul(&as_seen(scale, cue.train))
        };
        let both = Tensor::stack(&[scaled(&pair.keys)?, scaled(&pair.values)?], 0)?;
        let (two, length, dim) = both.dims3()?;
        let both = both
            .unsqueeze(0)?
            .expand((tokens.dim(0)?, two, length, dim))?;
        let prefix = Prefix {
            share: self.share,
            ..Prefix::of_heads(&both, self.heads)?
        };
        Ok(Injection {
            prefix: Some(prefix),
            ..Injection::default()
        })
    }
}
