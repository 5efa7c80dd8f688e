//! Blocks whose products are of bf16 values, on AMX tiles or on AVX-512 vectors.
//!
//! A group of images goes through the whole block before the next one starts, so that its activations stay in the second
//! level cache and every weight is read once a group. Between products all is f32: the residual stream, layer norm, softmax,
//! GELU and every sum.

mod amx;
mod attention;
mod backward;
mod enter;
mod forward;
mod lanes;
mod linear;
mod pack;
mod product;
mod soon;
mod tile;
pub mod trained;
mod unit;
mod vectors;

use std::cell::RefCell;
use std::sync::Arc;

use rayon::prelude::*;

use crate::block::{Activation, BlockWeights, Gradients, Norm, Prefix, Shape, Wanted, chunks};
use crate::buffer::{Buffer, Pool, Pooled, changed};

pub use linear::PackedLinear;
pub use unit::available;

/// Keeps what this thread multiplies bf16 values with busy for `rounds` of products out of registers, to find its limit. Gives the
/// floating-point operations done; `None` where there is nothing.
pub fn busy(rounds: usize) -> Option<u64> {
    enter::busy(rounds)
}

/// Said where bf16 cannot be.
const NONE: &str = "this processor has neither AMX nor AVX-512 BF16 for bf16 products";

/// Rows of a group of images: enough to use each weight often, few enough to stay in the cache.
const GROUP_ROWS: usize = 420;

/// Hidden columns of the MLP at a time, in panels of 32.
const CHUNK: usize = 24;

/// A block's weights, packed once.
#[derive(Debug)]
pub struct PackedBlock {
    dim: usize,
    heads: usize,
    activation: Activation,
    mlp: usize,
    norm1: OwnNorm,
    qkv: Arc<PackedLinear>,
    proj: Arc<PackedLinear>,
    scale1: Vec<f32>,
    norm2: OwnNorm,
    fc1: Arc<PackedLinear>,
    fc2: Arc<PackedLinear>,
    scale2: Vec<f32>,
    kept: Pool<Kept>,
}

/// The linear layers of a block.
#[derive(Debug, Clone)]
pub struct Layers {
    /// Queries, keys and values.
    pub qkv: Arc<PackedLinear>,
    /// Output projection.
    pub proj: Arc<PackedLinear>,
    /// First layer of the MLP.
    pub fc1: Arc<PackedLinear>,
    /// Second layer of the MLP.
    pub fc2: Arc<PackedLinear>,
}

/// A layer norm's weights.
#[derive(Debug)]
struct OwnNorm {
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl OwnNorm {
    fn new(norm: &Norm<'_>) -> Self {
        Self {
            weight: norm.weight.to_vec(),
            bias: norm.bias.to_vec(),
            eps: norm.eps,
        }
    }
}

/// What a group's forward leaves for its backward.
#[derive(Debug, Default)]
struct Kept {
    /// Queries, keys and values of every token, bf16.
    qkv: Buffer,
    /// `x̂` of the second layer norm, bf16.
    normed: Buffer,
    /// `1 / sqrt(var + eps)` of the second layer norm.
    scale: Buffer,
    /// Input of the activation, bf16.
    hidden: Buffer,
}

/// What a batch's forward leaves for its backward.
#[derive(Debug)]
pub struct Saved {
    /// Images of a group; the last may have fewer.
    images: usize,
    groups: Vec<Pooled<Kept>>,
}

/// Memory of one thread.
#[derive(Debug, Default)]
struct Workspace {
    /// A layer's input, bf16.
    input: Buffer,
    qkv: Buffer,
    hidden: Buffer,
    /// Gradient of a layer's input, f32.
    grad: Buffer,
    /// Gradient of queries, keys and values, bf16.
    qkv_grad: Buffer,
    attention: attention::Space,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// A group of images inside a batch.
struct Group<'a> {
    images: usize,
    tokens: usize,
    read: usize,
    prefix: Option<Prefix<'a>>,
}

impl Group<'_> {
    fn rows(&self) -> usize {
        self.images * self.tokens
    }
}

/// `n` up to the next multiple of 32: the width of a row that tiles read.
fn padded(n: usize) -> usize {
    n.next_multiple_of(tile::COLS)
}

/// Values from one row to the next where rows of `n` values are a first operand: an odd number of cache lines, so that the rows of a
/// tile fall on different sets of a cache.
fn apart(n: usize) -> usize {
    (n.div_ceil(tile::COLS) | 1) * tile::COLS
}

impl PackedBlock {
    /// Packs the weights; fails where memory or the sizes do not allow it.
    pub fn new(weights: &BlockWeights<'_>) -> std::io::Result<Self> {
        let pack = |linear| PackedLinear::new(linear).map(Arc::new);
        let layers = Layers {
            qkv: pack(&weights.qkv)?,
            proj: pack(&weights.proj)?,
            fc1: pack(&weights.fc1)?,
            fc2: pack(&weights.fc2)?,
        };
        Self::share(weights, layers)
    }

    /// Uses layers that are packed already, for instance because they also run one by one.
    pub fn share(weights: &BlockWeights<'_>, layers: Layers) -> std::io::Result<Self> {
        weights.check().map_err(std::io::Error::other)?;
        if weights.causal {
            return Err(std::io::Error::other("a causal block runs in f32"));
        }
        let (dim, mlp) = (weights.dim(), weights.mlp());
        for (name, layer, sizes) in [
            ("qkv", &layers.qkv, (3 * dim, dim)),
            ("proj", &layers.proj, (dim, dim)),
            ("fc1", &layers.fc1, (mlp, dim)),
            ("fc2", &layers.fc2, (dim, mlp)),
        ] {
            if layer.sizes() != sizes {
                return Err(std::io::Error::other(format!(
                    "{name} is {:?}, expected {sizes:?}",
                    layer.sizes()
                )));
            }
        }
        let ones = || vec![1.0; dim];
        Ok(Self {
            dim,
            heads: weights.heads,
            activation: weights.activation,
            mlp,
            norm1: OwnNorm::new(&weights.norm1),
            qkv: layers.qkv,
            proj: layers.proj,
            scale1: weights.scale1.map_or_else(ones, <[f32]>::to_vec),
            norm2: OwnNorm::new(&weights.norm2),
            fc1: layers.fc1,
            fc2: layers.fc2,
            scale2: weights.scale2.map_or_else(ones, <[f32]>::to_vec),
            kept: Pool::default(),
        })
    }

    /// Images that go through the block together.
    fn group(&self, shape: Shape) -> usize {
        let most = (GROUP_ROWS / shape.tokens).max(1);
        // No thread without a group while there are images for it.
        most.min(shape.batch.div_ceil(rayon::current_num_threads()))
            .max(1)
    }

    /// Tokens `(B, N, D)` to the same. With `keep`, also what [`backward`](Self::backward) needs.
    ///
    /// Sizes are the caller's to check: `x` has `B·N·D` values, a prefix the sizes it states.
    pub fn forward(
        &self,
        x: &[f32],
        shape: Shape,
        prefix: Option<Prefix<'_>>,
        keep: bool,
    ) -> (Vec<f32>, Option<Saved>) {
        let whole = shape.read == shape.tokens;
        if shape.batch == 1 && whole && !keep {
            return (self.forward_one(x, shape.tokens, prefix), None);
        }
        let images = self.group(shape);
        let chunk = images * shape.tokens * self.dim;
        let groups = shape.batch.div_ceil(images);
        let mut saved: Vec<_> = (0..groups)
            .map(|_| keep.then(|| self.kept.take()))
            .collect();
        let state = saved.iter_mut().collect();
        let out = if whole {
            changed(x, chunk, state, |i, x, kept: &mut Option<Pooled<Kept>>| {
                let group = self.at(i * images, x.len(), shape, prefix);
                let kept = kept.as_mut().map(|k| &mut k.item);
                WORKSPACE.with_borrow_mut(|space| {
                    forward::group(self, None, x, &group, space, kept);
                });
            })
        } else {
            let mut out = vec![0f32; shape.batch * shape.read * self.dim];
            out.par_chunks_mut(images * shape.read * self.dim)
                .zip(x.par_chunks(chunk))
                .zip(state)
                .enumerate()
                .for_each(
                    |(i, ((out, x), kept)): (_, (_, &mut Option<Pooled<Kept>>))| {
                        let group = self.at(i * images, x.len(), shape, prefix);
                        let kept = kept.as_mut().map(|k| &mut k.item);
                        WORKSPACE.with_borrow_mut(|space| {
                            forward::group(self, Some(x), out, &group, space, kept);
                        });
                    },
                );
            out
        };
        let groups: Option<_> = saved.into_iter().collect();
        (out, groups.map(|groups| Saved { images, groups }))
    }

    /// One image, its rows shared over the threads.
    fn forward_one(&self, x: &[f32], tokens: usize, prefix: Option<Prefix<'_>>) -> Vec<f32> {
        let group = self.at(0, x.len(), Shape::whole(1, tokens), prefix);
        let threads = rayon::current_num_threads();
        let together = unit::Unit::new().map_or(1, |unit| unit.rows_together());
        let rows = tokens.div_ceil(threads).next_multiple_of(together);
        let width = apart(3 * self.dim);
        let mut kept = self.kept.take();
        let qkv = kept.item.qkv.get::<u16>((tokens + product::SLACK) * width);
        qkv[..tokens * width]
            .par_chunks_mut(rows * width)
            .zip(x.par_chunks(rows * self.dim))
            .for_each(|(qkv, x)| {
                WORKSPACE.with_borrow_mut(|space| enter::queries(self, x, space, qkv));
            });
        let qkv = &*qkv;
        let pieces = tokens.div_ceil(rows);
        changed(x, rows * self.dim, vec![(); pieces], |i, x, ()| {
            let rows = i * rows..i * rows + x.len() / self.dim;
            WORKSPACE.with_borrow_mut(|space| {
                enter::rest(self, x, qkv, &group, rows, space, None);
            });
        })
    }

    fn at<'a>(
        &self,
        first: usize,
        values: usize,
        shape: Shape,
        prefix: Option<Prefix<'a>>,
    ) -> Group<'a> {
        let images = values / (shape.tokens * self.dim);
        Group {
            images,
            tokens: shape.tokens,
            read: shape.read,
            prefix: prefix.map(|p| p.images(first, images, p.length * self.dim)),
        }
    }

    /// Gradients of what went into [`forward`](Self::forward), given that of what came out.
    pub fn backward(
        &self,
        x: &[f32],
        shape: Shape,
        prefix: Option<Prefix<'_>>,
        saved: &Saved,
        grad: &[f32],
        wanted: Wanted,
    ) -> std::io::Result<Gradients> {
        let turned = backward::Turned::new(self)?;
        let Saved { images, groups } = saved;
        let chunk = images * shape.tokens * self.dim;
        let mut keys = vec![0f32; prefix.map_or(0, |p| p.keys.len())];
        let mut values = keys.clone();
        let per = images * prefix.map_or(0, |p| p.length * self.dim);
        let parts: Vec<_> = chunks(&mut keys, per, groups.len())
            .into_iter()
            .zip(chunks(&mut values, per, groups.len()))
            .zip(groups)
            .collect();
        let one =
            |i: usize,
             grad: &mut [f32],
             out: Option<&mut [f32]>,
             ((keys, values), kept): (attention::PrefixGrad<'_>, &Pooled<Kept>)| {
                let x = &x[i * chunk..x.len().min((i + 1) * chunk)];
                let group = self.at(i * images, x.len(), shape, prefix);
                WORKSPACE.with_borrow_mut(|space| {
                    let prefix = wanted.prefix.then_some((keys, values));
                    let kept = &kept.item;
                    enter::backward(
                        &turned,
                        x,
                        grad,
                        out,
                        &group,
                        kept,
                        space,
                        wanted.tokens,
                        prefix,
                    );
                });
            };
        let tokens = if shape.read == shape.tokens {
            changed(grad, chunk, parts, |i, grad, part| one(i, grad, None, part))
        } else {
            let mut grad = grad.to_vec();
            let mut out = vec![0f32; x.len()];
            grad.par_chunks_mut(images * shape.read * self.dim)
                .zip(out.par_chunks_mut(chunk))
                .zip(parts)
                .enumerate()
                .for_each(|(i, ((grad, out), part))| one(i, grad, Some(out), part));
            out
        };
        Ok(Gradients {
            tokens: if wanted.tokens { tokens } else { vec![] },
            keys,
            values,
        })
    }
}
