//! LoRA: a product of two thin matrices added to a frozen weight (Hu et al. 2022, "LoRA: Low-Rank Adaptation of Large Language
//! Models"), as LAE uses it (Gao et al. 2023).
//!
//! ```text
//! W ← W + s · B A             A (r, in), B (out, r), s a scalar; one of each for every weight that is tuned
//! ```
//!
//! `A` starts uniform within `±1/√in`, `B` at 0, `s` at 1, so that the network starts as it was. There is no factor `α/r` and no
//! dropout. LAE tunes keys and values: the rows of the fused `(3D, D)` weight behind those of the queries.
//! Source: `gqk/LAE:libml/model/pet/lora.py` (1680e49).

use std::collections::BTreeMap;

use candle_core::Tensor;
use candlewick_core::{Cue, Init, Op, Params, Prompt, Result, Spec};
use serde::{Deserialize, Serialize};

use crate::pet::as_seen;

/// A weight of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Of the queries.
    Q,
    /// Of the keys.
    K,
    /// Of the values.
    V,
    /// The output projection of attention.
    Proj,
    /// First layer of the MLP.
    Fc1,
    /// Second layer of the MLP.
    Fc2,
}

impl Target {
    /// LAE's: keys and values.
    pub fn keys_and_values() -> Vec<Self> {
        vec![Self::K, Self::V]
    }

    /// As parameters and recipes call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q => "q",
            Self::K => "k",
            Self::V => "v",
            Self::Proj => "proj",
            Self::Fc1 => "fc1",
            Self::Fc2 => "fc2",
        }
    }

    /// Values in and out.
    fn sizes(self, spec: &Spec) -> (usize, usize) {
        let (dim, hidden) = (spec.dim, spec.mlp_dim);
        match self {
            Self::Q | Self::K | Self::V | Self::Proj => (dim, dim),
            Self::Fc1 => (dim, hidden),
            Self::Fc2 => (hidden, dim),
        }
    }
}

/// Low-rank changes of some weights in some blocks.
pub struct Lora(BTreeMap<(usize, Target), Change>);

struct Change {
    a: Tensor,
    b: Tensor,
    scale: Tensor,
}

impl Lora {
    /// Creates `lora.I.TARGET.a (r, in)`, `.b (out, r)` and `.scale (1)` for each block `I` of `blocks` and each target of `on`.
    pub fn new(
        blocks: &[usize],
        on: &[Target],
        rank: usize,
        spec: &Spec,
        params: &mut Params,
    ) -> Result<Self> {
        let mut changes = BTreeMap::new();
        for &i in blocks {
            for &target in on {
                let (from, to) = target.sizes(spec);
                let high = 1.0 / (from as f32).sqrt();
                let mut new = |name: &str, shape: &[usize], init| {
                    params.create(&format!("lora.{i}.{}.{name}", target.name()), shape, init)
                };
                let change = Change {
                    a: new("a", &[rank, from], Init::Uniform { low: -high, high })?,
                    b: new("b", &[to, rank], Init::Zeros)?,
                    scale: new("scale", &[1], Init::Ones)?,
                };
                changes.insert((i, target), change);
            }
        }
        Ok(Self(changes))
    }

    fn change(&self, i: usize, target: Target, x: &Tensor, train: bool) -> Result<Option<Tensor>> {
        let Some(change) = self.0.get(&(i, target)) else {
            return Ok(None);
        };
        let [a, b, scale] = [&change.a, &change.b, &change.scale].map(|t| as_seen(t, train));
        let thin = x.flatten_to(1)?.matmul(&a.t()?)?.broadcast_mul(&scale)?;
        let (n, tokens, _) = x.dims3()?;
        Ok(Some(thin.matmul(&b.t()?)?.reshape((n, tokens, ()))?))
    }
}

impl Prompt for Lora {
    fn tunes(&self, op: Op) -> bool {
        let has = |i: usize, targets: &[Target]| {
            let mut targets = targets.iter();
            targets.any(|target| self.0.contains_key(&(i, *target)))
        };
        match op {
            Op::Qkv(i) => has(i, &[Target::Q, Target::K, Target::V]),
            Op::Proj(i) => has(i, &[Target::Proj]),
            Op::Fc1(i) => has(i, &[Target::Fc1]),
            Op::Fc2(i) => has(i, &[Target::Fc2]),
            _ => false,
        }
    }

    fn tune(&self, op: Op, input: &Tensor, output: Tensor, cue: &Cue) -> Result<Tensor> {
        let change = |i, target| self.change(i, target, input, cue.train);
        let change = match op {
            Op::Qkv(i) => {
                let mut parts = Vec::new();
                for target in [Target::Q, Target::K, Target::V] {
                    parts.push(match change(i, target)? {
                        Some(change) => change,
                        None => input.zeros_like()?,
                    });
                }
                Some(Tensor::cat(&parts, 2)?)
            }
            Op::Proj(i) => change(i, Target::Proj)?,
            Op::Fc1(i) => change(i, Target::Fc1)?,
            Op::Fc2(i) => change(i, Target::Fc2)?,
            _ => None,
        };
        Ok(match change {
            Some(change) => (output + change)?,
            None => output,
        })
    }
}
