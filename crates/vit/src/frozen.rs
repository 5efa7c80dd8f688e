//! A whole frozen block, and its attention alone, as one candle operation each.
//!
//! candle sees tokens and prefix go in and tokens come out. What the backward needs beyond those is kept by the operation
//! itself, and only while something below has a gradient to receive.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use candle_core::{CpuStorage, CustomOp1, CustomOp3, Layout, Result, Shape as Dims, Tensor, bail};
use candlewick_core::Prefix;
use candlewick_kernels::bf16::{self, PackedBlock};
use candlewick_kernels::plain::{self, Heads};
use candlewick_kernels::{self as kernels, Activation, BlockWeights, Precision, Shape, Wanted};

use crate::layers::{LayerNorm, Linear};
use crate::linear::{Values, values};
use crate::ops;

/// The layers of a block.
#[derive(Debug)]
pub(crate) struct Parts {
    pub heads: usize,
    /// Whether a token sees itself and those before it alone.
    pub causal: bool,
    pub activation: Activation,
    pub norm1: LayerNorm,
    pub qkv: Linear,
    pub proj: Linear,
    pub scale1: Option<Tensor>,
    pub norm2: LayerNorm,
    pub fc1: Linear,
    pub fc2: Linear,
    pub scale2: Option<Tensor>,
}

/// A block that runs whole.
#[derive(Debug)]
pub(crate) struct FrozenBlock {
    parts: Arc<Parts>,
    precision: Precision,
    memory: plain::Memory,
    /// bf16 weights, from the first use on.
    packed: OnceLock<PackedBlock>,
}

/// What a forward left for its backward.
enum Saved {
    Plain(plain::Saved),
    Packed(bf16::Saved),
}

impl Parts {
    /// How attention is shared out.
    pub(crate) fn heads(&self) -> Heads {
        Heads {
            count: self.heads,
            causal: self.causal,
        }
    }

    /// True while nothing in the block is trained.
    fn frozen(&self) -> bool {
        let scales = [&self.scale1, &self.scale2];
        self.norm1.frozen()
            && self.norm2.frozen()
            && [&self.qkv, &self.proj, &self.fc1, &self.fc2]
                .iter()
                .all(|layer| layer.frozen())
            && scales.into_iter().flatten().all(|scale| !scale.track_op())
    }

    /// Calls `f` with the values of all weights.
    fn with<R>(&self, f: impl FnOnce(&BlockWeights<'_>) -> Result<R>) -> Result<R> {
        fn pair<'a>([a, b]: [&'a Tensor; 2]) -> (Values<'a>, Values<'a>) {
            (values(a), values(b))
        }
        let norms = [pair(self.norm1.tensors()), pair(self.norm2.tensors())];
        let layers = [&self.qkv, &self.proj, &self.fc1, &self.fc2].map(|l| pair(l.tensors()));
        let scales = [&self.scale1, &self.scale2].map(|s| s.as_ref().map(values));
        let norm = |i: usize, eps: f64| -> Result<kernels::Norm<'_>> {
            Ok(kernels::Norm {
                weight: norms[i].0.get()?,
                bias: norms[i].1.get()?,
                eps: eps as f32,
            })
        };
        let linear = |i: usize| -> Result<kernels::Linear<'_>> {
            Ok(kernels::Linear {
                weight: layers[i].0.get()?,
                bias: layers[i].1.get()?,
            })
        };
        let scale = |i: usize| scales[i].as_ref().map(Values::get).transpose();
        f(&BlockWeights {
            heads: self.heads,
            causal: self.causal,
            activation: self.activation,
            norm1: norm(0, self.norm1.eps())?,
            qkv: linear(0)?,
            proj: linear(1)?,
            scale1: scale(0)?,
            norm2: norm(1, self.norm2.eps())?,
            fc1: linear(2)?,
            fc2: linear(3)?,
            scale2: scale(1)?,
        })
    }
}

impl FrozenBlock {
    pub(crate) fn new(parts: Arc<Parts>, precision: Precision) -> Self {
        Self {
            parts,
            precision,
            memory: plain::Memory::default(),
            packed: OnceLock::new(),
        }
    }

    /// Whether the block can run whole on `x`.
    pub(crate) fn runs(&self, x: &Tensor) -> bool {
        let causal_bf16 = self.parts.causal && self.precision == Precision::Bf16;
        ops::supported(x) && self.parts.frozen() && !causal_bf16
    }

    fn packed(&self) -> Result<&PackedBlock> {
        if let Some(packed) = self.packed.get() {
            return Ok(packed);
        }
        let layers = bf16::Layers {
            qkv: self.parts.qkv.packed()?,
            proj: self.parts.proj.packed()?,
            fc1: self.parts.fc1.packed()?,
            fc2: self.parts.fc2.packed()?,
        };
        let packed = self
            .parts
            .with(|weights| Ok(PackedBlock::share(weights, layers)?))?;
        Ok(self.packed.get_or_init(|| packed))
    }

    fn forward(
        &self,
        x: &[f32],
        shape: Shape,
        prefix: Option<kernels::Prefix<'_>>,
        keep: bool,
    ) -> Result<(Vec<f32>, Option<Saved>)> {
        let dim = self.parts.norm1.tensors()[0].elem_count();
        // Exact where that costs nothing.
        let few = prefix.is_none() && shape.reads_few(dim, self.parts.heads);
        if self.precision == Precision::Bf16 && !few {
            let (y, saved) = self.packed()?.forward(x, shape, prefix, keep);
            return Ok((y, saved.map(Saved::Packed)));
        }
        self.parts.with(|weights| {
            weights.check().map_err(candle_core::Error::msg)?;
            let (y, saved) = plain::forward(weights, &self.memory, x, shape, prefix, keep);
            Ok((y, saved.map(Saved::Plain)))
        })
    }

    fn backward(
        &self,
        x: &[f32],
        shape: Shape,
        prefix: Option<kernels::Prefix<'_>>,
        saved: Saved,
        grad: &[f32],
        wanted: Wanted,
    ) -> Result<kernels::Gradients> {
        match saved {
            Saved::Packed(saved) => {
                let block = self.packed()?;
                Ok(block.backward(x, shape, prefix, &saved, grad, wanted)?)
            }
            Saved::Plain(saved) => self.parts.with(|weights| {
                Ok(plain::backward(
                    weights, x, shape, prefix, saved, grad, wanted,
                ))
            }),
        }
    }
}

/// `(B, N, D)` through a whole block; with `read`, only so many tokens come out, counted from the first.
pub(crate) fn block(
    block: &Arc<FrozenBlock>,
    x: &Tensor,
    prefix: Option<&Prefix>,
    read: Option<usize>,
) -> Result<Tensor> {
    let (batch, tokens, dim) = x.dims3()?;
    let read = read.map_or(tokens, |read| read.min(tokens));
    let op = BlockOp {
        block: block.clone(),
        shape: Shape {
            batch,
            tokens,
            read,
        },
        length: length(prefix, batch, block.parts.heads, dim)?,
        wanted: wanted(x, prefix),
        saved: Mutex::default(),
    };
    apply(x, prefix, op)
}

/// Fused `(B, N, 3D)` queries, keys and values through attention alone, in f32.
pub(crate) fn attention(qkv: &Tensor, heads: Heads, prefix: Option<&Prefix>) -> Result<Tensor> {
    let (batch, tokens, width) = qkv.dims3()?;
    let op = AttentionOp {
        heads,
        shape: Shape::whole(batch, tokens),
        length: length(prefix, batch, heads.count, width / 3)?,
        wanted: wanted(qkv, prefix),
    };
    apply(qkv, prefix, op)
}

fn apply<O>(x: &Tensor, prefix: Option<&Prefix>, op: O) -> Result<Tensor>
where
    O: CustomOp1 + CustomOp3 + Send + Sync + 'static,
{
    let x = x.contiguous()?;
    match prefix {
        None => x.apply_op1(op),
        Some(prefix) => {
            let (keys, values) = (prefix.keys.contiguous()?, prefix.values.contiguous()?);
            x.apply_op3(&keys, &values, op)
        }
    }
}

/// Prompt length of a prefix of the right shape.
fn length(prefix: Option<&Prefix>, batch: usize, heads: usize, dim: usize) -> Result<usize> {
    let Some(prefix) = prefix else { return Ok(0) };
    let expected = |length| [batch, heads, length, dim / heads];
    for tensor in [&prefix.keys, &prefix.values] {
        let length = prefix.keys.dim(2)?;
        if tensor.dims() != expected(length) {
            bail!(
                "a prefix is {:?}, expected (images, heads, length, head width) = {:?}",
                tensor.dims(),
                expected(length)
            );
        }
    }
    prefix.keys.dim(2)
}

fn wanted(x: &Tensor, prefix: Option<&Prefix>) -> Wanted {
    Wanted {
        tokens: x.track_op(),
        prefix: prefix.is_some_and(|p| p.keys.track_op() || p.values.track_op()),
    }
}

/// An operation on tokens and, with three arguments, a prefix.
trait Fused {
    const NAME: &'static str;
    fn run(&self, x: &[f32], prefix: Option<kernels::Prefix<'_>>) -> Result<Vec<f32>>;
    fn slopes(
        &self,
        x: &[f32],
        prefix: Option<kernels::Prefix<'_>>,
        grad: &[f32],
    ) -> Result<kernels::Gradients>;
    fn output(&self, input: &[usize]) -> Vec<usize>;
    fn length(&self) -> usize;
    fn wanted(&self) -> Wanted;
}

struct BlockOp {
    block: Arc<FrozenBlock>,
    shape: Shape,
    length: usize,
    wanted: Wanted,
    saved: Mutex<Option<Saved>>,
}

impl Fused for BlockOp {
    const NAME: &'static str = "frozen-block";

    fn run(&self, x: &[f32], prefix: Option<kernels::Prefix<'_>>) -> Result<Vec<f32>> {
        let keep = self.wanted.tokens || self.wanted.prefix;
        let (y, saved) = self.block.forward(x, self.shape, prefix, keep)?;
        *self.saved.lock().unwrap_or_else(PoisonError::into_inner) = saved;
        Ok(y)
    }

    fn slopes(
        &self,
        x: &[f32],
        prefix: Option<kernels::Prefix<'_>>,
        grad: &[f32],
    ) -> Result<kernels::Gradients> {
        let saved = self
            .saved
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        // Taken, so that its memory serves the next step at once. A second backward through the same graph is rare and
        // computes it again.
        let saved = match saved {
            Some(saved) => saved,
            None => match self.block.forward(x, self.shape, prefix, true)?.1 {
                Some(saved) => saved,
                None => bail!("a frozen block kept nothing for its backward"),
            },
        };
        self.block
            .backward(x, self.shape, prefix, saved, grad, self.wanted)
    }

    fn output(&self, input: &[usize]) -> Vec<usize> {
        let mut dims = input.to_vec();
        if let Some(tokens) = dims.get_mut(1) {
            *tokens = self.shape.read;
        }
        dims
    }

    fn length(&self) -> usize {
        self.length
    }

    fn wanted(&self) -> Wanted {
        self.wanted
    }
}

struct AttentionOp {
    heads: Heads,
    shape: Shape,
    length: usize,
    wanted: Wanted,
}

impl Fused for AttentionOp {
    const NAME: &'static str = "frozen-attention";

    fn run(&self, x: &[f32], prefix: Option<kernels::Prefix<'_>>) -> Result<Vec<f32>> {
        Ok(plain::attention(x, self.shape, self.heads, prefix))
    }

    fn slopes(
        &self,
        x: &[f32],
        prefix: Option<kernels::Prefix<'_>>,
        grad: &[f32],
    ) -> Result<kernels::Gradients> {
        Ok(plain::attention_grad(
            x,
            self.shape,
            self.heads,
            prefix,
            grad,
            self.wanted,
        ))
    }

    fn output(&self, input: &[usize]) -> Vec<usize> {
        let mut dims = input.to_vec();
        if let Some(last) = dims.last_mut() {
            *last /= 3;
        }
        dims
    }

    fn length(&self) -> usize {
        self.length
    }

    fn wanted(&self) -> Wanted {
        self.wanted
    }
}

/// A prefix of length 0 is none, so that it takes the way of a block without one and changes no bit.
fn some<'a>(length: usize, keys: &'a [f32], values: &'a [f32]) -> Option<kernels::Prefix<'a>> {
    (length > 0).then_some(kernels::Prefix {
        length,
        keys,
        values,
    })
}

/// Candle asks for two implementations of what is one operation here.
macro_rules! custom_ops {
    ($type:ty) => {
        impl CustomOp1 for $type {
            fn name(&self) -> &'static str {
                Self::NAME
            }

            fn cpu_fwd(&self, x: &CpuStorage, lx: &Layout) -> Result<(CpuStorage, Dims)> {
                let y = self.run(ops::slice(x, lx)?, None)?;
                Ok((CpuStorage::F32(y), Dims::from(self.output(lx.dims()))))
            }

            fn bwd(&self, x: &Tensor, _: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
                let grad = grad.contiguous()?;
                let slopes = self.slopes(values(x).get()?, None, values(&grad).get()?)?;
                as_tensor(self.wanted().tokens, slopes.tokens, x)
            }
        }

        impl CustomOp3 for $type {
            fn name(&self) -> &'static str {
                Self::NAME
            }

            fn cpu_fwd(
                &self,
                x: &CpuStorage,
                lx: &Layout,
                k: &CpuStorage,
                lk: &Layout,
                v: &CpuStorage,
                lv: &Layout,
            ) -> Result<(CpuStorage, Dims)> {
                let prefix = some(self.length(), ops::slice(k, lk)?, ops::slice(v, lv)?);
                let y = self.run(ops::slice(x, lx)?, prefix)?;
                Ok((CpuStorage::F32(y), Dims::from(self.output(lx.dims()))))
            }

            fn bwd(
                &self,
                x: &Tensor,
                k: &Tensor,
                v: &Tensor,
                _: &Tensor,
                grad: &Tensor,
            ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
                let grad = grad.contiguous()?;
                let (keys, own) = (values(k), values(v));
                let prefix = some(self.length(), keys.get()?, own.get()?);
                let slopes = self.slopes(values(x).get()?, prefix, values(&grad).get()?)?;
                let wanted = self.wanted();
                Ok((
                    as_tensor(wanted.tokens, slopes.tokens, x)?,
                    as_tensor(wanted.prefix, slopes.keys, k)?,
                    as_tensor(wanted.prefix, slopes.values, v)?,
                ))
            }
        }
    };
}

custom_ops!(BlockOp);
custom_ops!(AttentionOp);

/// A gradient with the shape of what it is the gradient of.
fn as_tensor(wanted: bool, values: Vec<f32>, of: &Tensor) -> Result<Option<Tensor>> {
    match wanted {
        true => Ok(Some(Tensor::from_vec(values, of.dims(), of.device())?)),
        false => Ok(None),
    }
}
