//! One transformer block, with every seam of [`Prompt`].

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Result as TensorResult, Tensor};
use candlewick_core::{Cue, NoPrompt, Op, Prefix, Prompt, Result, Share};
use candlewick_kernels::plain::Heads;
use candlewick_kernels::{Activation, Precision};

use crate::checkpoint;
use crate::frozen::{self, FrozenBlock, Parts};
use crate::layers::{LayerNorm, Linear, activate, softmax};
use crate::ops;

/// What all blocks of a tower share.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style {
    pub heads: usize,
    pub eps: f64,
    pub causal: bool,
    pub activation: Activation,
    pub precision: Precision,
}

/// `x ← x + γ₁·MHSA(LN₁ x); x ← x + γ₂·MLP(LN₂ x)`, where γ is layer scale or 1.
#[derive(Debug)]
pub(crate) struct Block {
    index: usize,
    parts: Arc<Parts>,
    whole: Arc<FrozenBlock>,
    /// Whether it is run again in the backward pass, where it trains.
    checkpoint: bool,
}

impl Block {
    /// Takes its tensors by their canonical names; the caller has checked that they are there.
    pub(crate) fn new(index: usize, style: Style, tensors: &BTreeMap<String, Tensor>) -> Self {
        let Style { eps, precision, .. } = style;
        let get = |name: &str| tensors[&format!("blocks.{index}.{name}")].clone();
        let linear = |name: &str| {
            let (w, b) = (format!("{name}.weight"), format!("{name}.bias"));
            Linear::new(get(&w), get(&b), precision)
        };
        let norm = |name: &str| {
            let (w, b) = (format!("{name}.weight"), format!("{name}.bias"));
            LayerNorm::new(get(&w), get(&b), eps)
        };
        let scale = |name: &str| tensors.get(&format!("blocks.{index}.{name}")).cloned();
        let parts = Arc::new(Parts {
            heads: style.heads,
            causal: style.causal,
            activation: style.activation,
            norm1: norm("norm1"),
            qkv: linear("attn.qkv"),
            proj: linear("attn.proj"),
            scale1: scale("ls1.gamma"),
            norm2: norm("norm2"),
            fc1: linear("mlp.fc1"),
            fc2: linear("mlp.fc2"),
            scale2: scale("ls2.gamma"),
        });
        Self {
            index,
            whole: Arc::new(FrozenBlock::new(parts.clone(), precision)),
            parts,
            checkpoint: false,
        }
    }

    /// Keeps, where it trains, nothing but what goes in for the backward pass.
    pub(crate) fn checkpoint(&mut self, on: bool) {
        self.checkpoint = on;
    }

    /// `(B, N, D)` to the same: in one operation where nothing in the block is tuned or trained, else one by one. With `read`,
    /// tokens behind so many may be left out of the result.
    pub(crate) fn forward(
        &self,
        x: &Tensor,
        prefix: Option<&Prefix>,
        read: Option<usize>,
        prompt: &dyn Prompt,
        cue: &Cue,
    ) -> Result<Tensor> {
        let tuned = Op::in_block(self.index)
            .into_iter()
            .any(|op| prompt.tunes(op));
        let whole_share = prefix.is_some_and(|p| p.share == Share::Whole);
        if !tuned && !whole_share && self.whole.runs(x) {
            return Ok(frozen::block(&self.whole, x, prefix, read)?);
        }
        // What a prompt does inside a block is not known here, so such blocks keep all.
        let alone = !tuned && prefix.is_none();
        if self.checkpoint && alone && ops::supported(x) {
            let (index, parts) = (self.index, self.parts.clone());
            let run = move |x: &Tensor| {
                by_operation(index, &parts, x, None, &NoPrompt, &Cue::default())
                    .map_err(candle_core::Error::wrap)
            };
            return Ok(checkpoint::checkpointed(x, &self.trained(), Arc::new(run))?);
        }
        by_operation(self.index, &self.parts, x, prefix, prompt, cue)
    }

    /// The weights that train.
    fn trained(&self) -> Vec<&Tensor> {
        let p = &self.parts;
        let norms = [&p.norm1, &p.norm2].into_iter().flat_map(|n| n.tensors());
        let layers = [&p.qkv, &p.proj, &p.fc1, &p.fc2];
        let layers = layers.into_iter().flat_map(|l| l.tensors());
        let scales = [&p.scale1, &p.scale2].into_iter().flatten();
        let all = norms.chain(layers).chain(scales);
        all.filter(|tensor| tensor.track_op()).collect()
    }
}

/// With every hook of the prompt.
fn by_operation(
    i: usize,
    p: &Parts,
    x: &Tensor,
    prefix: Option<&Prefix>,
    prompt: &dyn Prompt,
    cue: &Cue,
) -> Result<Tensor> {
    let hook = |op, x: &Tensor, y: Tensor| match prompt.tunes(op) {
        true => prompt.tune(op, x, y, cue),
        false => Ok(y),
    };

    let h = hook(Op::Norm1(i), x, p.norm1.forward(x)?)?;
    let qkv = hook(Op::Qkv(i), &h, p.qkv.forward(&h)?)?;
    let mixed = attend(&qkv, p.heads(), prefix)?;
    let out = hook(Op::Proj(i), &mixed, p.proj.forward(&mixed)?)?;
    let out = hook(Op::Attention(i), &h, out)?;
    let out = hook(Op::AttentionBranch(i), x, scaled(out, &p.scale1)?)?;
    let x = (x + out)?;

    let h = hook(Op::Norm2(i), &x, p.norm2.forward(&x)?)?;
    let hidden = activate(&hook(Op::Fc1(i), &h, p.fc1.forward(&h)?)?, p.activation)?;
    let out = hook(Op::Fc2(i), &hidden, p.fc2.forward(&hidden)?)?;
    let out = hook(Op::MlpBranch(i), &x, scaled(out, &p.scale2)?)?;
    Ok((x + out)?)
}

/// Multi-head attention of fused `(B, N, 3D)` queries, keys and values:
/// `softmax(q [Pk; k]ᵀ / √d) [Pv; v]` per head, heads owning contiguous slices of `D`. With [`Share::Whole`] the weights of
/// `Pv` are divided by their sum behind the softmax.
fn attend(qkv: &Tensor, sharing: Heads, prefix: Option<&Prefix>) -> TensorResult<Tensor> {
    let whole = prefix.filter(|p| p.share == Share::Whole && p.keys.elem_count() > 0);
    if whole.is_none() && ops::supported(qkv) {
        return frozen::attention(qkv, sharing, prefix);
    }
    let heads = sharing.count;
    let (b, n, width) = qkv.dims3()?;
    let dim = width / 3;
    let head = dim / heads;
    let split = qkv
        .reshape((b, n, 3, heads, head))?
        .permute((2, 0, 3, 1, 4))?;
    let q = (split.get(0)?.contiguous()? * (head as f64).powf(-0.5))?;
    let mut k = split.get(1)?.contiguous()?;
    let mut v = split.get(2)?.contiguous()?;
    if let Some(prefix) = prefix {
        k = Tensor::cat(&[&prefix.keys, &k], 2)?.contiguous()?;
        v = Tensor::cat(&[&prefix.values, &v], 2)?.contiguous()?;
    }
    let mut scores = q.matmul(&k.t()?)?;
    if sharing.causal {
        scores = scores.broadcast_add(&unseen(n, k.dim(2)?, qkv)?)?;
    }
    let weights = softmax(&scores)?;
    let mixed = match whole {
        None => weights.matmul(&v)?, // (B, H, N, d)
        Some(prefix) => {
            let length = prefix.keys.dim(2)?;
            let own = weights.narrow(3, 0, length)?;
            let sum = own.sum_keepdim(3)?.maximum(1e-12)?;
            let own = own
                .broadcast_div(&sum)?
                .matmul(&prefix.values.contiguous()?)?;
            let (weights, v) = (weights.narrow(3, length, n)?, v.narrow(2, length, n)?);
            (own + weights.contiguous()?.matmul(&v.contiguous()?)?)?
        }
    };
    mixed.transpose(1, 2)?.contiguous()?.reshape((b, n, dim))
}

/// `(N, P + N)`: −∞ where a token would see one behind it, else 0.
fn unseen(n: usize, wide: usize, like: &Tensor) -> TensorResult<Tensor> {
    let length = wide - n;
    let of = |i: usize| match i % wide > length + i / wide {
        true => f32::NEG_INFINITY,
        false => 0.0,
    };
    let values: Vec<f32> = (0..n * wide).map(of).collect();
    Tensor::from_vec(values, (n, wide), like.device())?.to_dtype(like.dtype())
}

fn scaled(x: Tensor, scale: &Option<Tensor>) -> TensorResult<Tensor> {
    match scale {
        Some(scale) => x.broadcast_mul(scale),
        None => Ok(x),
    }
}
