//! Blocks in f32, on any processor.
//!
//! Groups of images run in parallel, each on one thread; a batch that makes fewer groups than there are threads runs group by
//! group with the threads inside the products. The size of a group depends on the number of tokens alone, so that results do
//! not depend on the number of threads.

mod attention;
mod product;

use std::cell::RefCell;

use rayon::prelude::*;

use crate::block::{
    BlockWeights, Gradients, Linear, Prefix, Shape, Wanted, first_rows, rows_first,
};
use crate::buffer::{Buffer, Pool, Pooled, changed};
use crate::rows;
use attention::Image;
use product::{Matrix, product};

/// Rows of a group: enough that packing the weights for each is little work.
const GROUP_ROWS: usize = 1600;

/// Queries that a thread takes at a time.
const QUERIES: usize = 128;

/// What a group's forward leaves for its backward.
#[derive(Debug, Default)]
struct Kept {
    /// Queries, keys and values of every token.
    qkv: Buffer,
    /// The residual stream between attention and MLP.
    middle: Buffer,
    /// Input of GELU.
    hidden: Buffer,
}

/// Memory that a block's batches use again.
#[derive(Debug, Default)]
pub struct Memory(Pool<Kept>);

/// What a batch's forward leaves for its backward.
#[derive(Debug)]
pub struct Saved(Vec<Pooled<Kept>>);

/// Memory of one thread.
#[derive(Debug, Default)]
struct Workspace {
    kept: Kept,
    input: Buffer,
    output: Buffer,
    hidden: Buffer,
    qkv_grad: Buffer,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
    static SCORES: RefCell<[Buffer; 2]> = RefCell::default();
}

/// How a batch is cut into groups.
#[derive(Clone, Copy)]
struct Plan {
    images: usize,
    groups: usize,
    /// Threads inside a group.
    threads: usize,
}

impl Plan {
    fn new(shape: Shape) -> Self {
        let images = (GROUP_ROWS / shape.tokens.max(1)).clamp(1, shape.batch.max(1));
        let groups = shape.batch.div_ceil(images);
        let threads = rayon::current_num_threads();
        Self {
            images,
            groups,
            threads: if groups < threads { threads } else { 1 },
        }
    }

    /// `from` changed group by group.
    fn run<T: Send>(
        &self,
        from: &[f32],
        chunk: usize,
        state: Vec<T>,
        f: impl Fn(usize, &mut [f32], T) + Sync + Send,
    ) -> Vec<f32> {
        if self.threads == 1 {
            return changed(from, chunk, state, f);
        }
        let mut out = from.to_vec();
        for (i, (x, state)) in out.chunks_mut(chunk).zip(state).enumerate() {
            f(i, x, state);
        }
        out
    }

    /// `f` on every piece of work.
    fn each<T: Send>(&self, work: Vec<T>, f: impl Fn(T) + Sync + Send) {
        match self.threads {
            1 => work.into_par_iter().for_each(f),
            _ => work.into_iter().for_each(f),
        }
    }
}

/// Tokens `(B, N, D)` to the same. With `keep`, also what [`backward`] needs.
pub fn forward(
    weights: &BlockWeights<'_>,
    memory: &Memory,
    x: &[f32],
    shape: Shape,
    prefix: Option<Prefix<'_>>,
    keep: bool,
) -> (Vec<f32>, Option<Saved>) {
    let plan = Plan::new(shape);
    let mut saved: Vec<_> = (0..plan.groups)
        .map(|_| keep.then(|| memory.0.take()))
        .collect();
    let state = saved.iter_mut().collect();
    let dim = weights.dim();
    let chunk = plan.images * shape.tokens * dim;
    let one = |i: usize, whole: Option<&[f32]>, x: &mut [f32], kept: &mut Option<Pooled<Kept>>| {
        let values = whole.map_or(x.len(), <[f32]>::len);
        let group = Group::new(weights, plan, i, values, shape, prefix);
        // Taken out while it is used: with threads inside the products, this thread may be lent to another group.
        let mut space = WORKSPACE.take();
        let mut own = std::mem::take(&mut space.kept);
        let kept = kept.as_mut().map_or(&mut own, |k| &mut k.item);
        group.forward(whole, x, kept, &mut space);
        space.kept = own;
        WORKSPACE.set(space);
    };
    let out = if shape.read == shape.tokens {
        plan.run(x, chunk, state, |i, x, kept| one(i, None, x, kept))
    } else {
        let mut out = vec![0f32; shape.batch * shape.read * dim];
        let parts = out.chunks_mut(plan.images * shape.read * dim);
        let work = parts.zip(x.chunks(chunk)).zip(state).enumerate().collect();
        plan.each(work, |(i, ((out, x), kept))| one(i, Some(x), out, kept));
        out
    };
    (out, saved.into_iter().collect::<Option<_>>().map(Saved))
}

/// Gradients of what went into [`forward`], given that of what came out.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    weights: &BlockWeights<'_>,
    x: &[f32],
    shape: Shape,
    prefix: Option<Prefix<'_>>,
    saved: &Saved,
    grad: &[f32],
    wanted: Wanted,
) -> Gradients {
    let plan = Plan::new(shape);
    let dim = weights.dim();
    let chunk = plan.images * shape.tokens * dim;
    let mut keys = vec![0f32; prefix.map_or(0, |p| p.keys.len())];
    let mut values = keys.clone();
    let per = plan.images * prefix.map_or(0, |p| p.length * dim);
    let parts: Vec<_> = crate::block::chunks(&mut keys, per, plan.groups)
        .into_iter()
        .zip(crate::block::chunks(&mut values, per, plan.groups))
        .zip(&saved.0)
        .collect();
    let one = |i: usize,
               grad: &mut [f32],
               out: Option<&mut [f32]>,
               ((keys, values), kept): (PrefixGrad<'_>, &Pooled<Kept>)| {
        let x = &x[i * chunk..x.len().min((i + 1) * chunk)];
        let group = Group::new(weights, plan, i, x.len(), shape, prefix);
        let mut space = WORKSPACE.take();
        let prefix = wanted.prefix.then_some((keys, values));
        group.backward(x, grad, out, &kept.item, &mut space, wanted.tokens, prefix);
        WORKSPACE.set(space);
    };
    let tokens = if shape.read == shape.tokens {
        plan.run(grad, chunk, parts, |i, grad, part| one(i, grad, None, part))
    } else {
        let mut grad = grad.to_vec();
        let mut out = vec![0f32; x.len()];
        let grads = grad.chunks_mut(plan.images * shape.read * dim);
        let work = grads
            .zip(out.chunks_mut(chunk))
            .zip(parts)
            .enumerate()
            .collect();
        plan.each(work, |(i, ((grad, out), part))| {
            one(i, grad, Some(out), part)
        });
        out
    };
    Gradients {
        tokens: if wanted.tokens { tokens } else { vec![] },
        keys,
        values,
    }
}

/// Where the gradients of a prefix's keys and values go.
type PrefixGrad<'a> = (&'a mut [f32], &'a mut [f32]);

/// A group of images in a block.
struct Group<'a> {
    weights: &'a BlockWeights<'a>,
    images: usize,
    tokens: usize,
    read: usize,
    threads: usize,
    prefix: Option<Prefix<'a>>,
}

impl<'a> Group<'a> {
    fn new(
        weights: &'a BlockWeights<'a>,
        plan: Plan,
        i: usize,
        values: usize,
        shape: Shape,
        prefix: Option<Prefix<'a>>,
    ) -> Self {
        let images = values / (shape.tokens * weights.dim());
        Self {
            weights,
            images,
            tokens: shape.tokens,
            read: shape.read,
            threads: plan.threads,
            prefix: prefix.map(|p| p.images(i * plan.images, images, p.length * weights.dim())),
        }
    }

    fn image(&self, i: usize) -> Image<'a> {
        let dim = self.weights.dim();
        Image {
            heads: self.weights.heads,
            dim,
            tokens: self.tokens,
            prefix: self.prefix.map(|p| p.images(i, 1, p.length * dim)),
        }
    }

    /// `x Wᵀ` without the bias.
    fn linear(&self, x: &[f32], layer: &Linear<'_>, out: &mut [f32]) {
        let n = layer.bias.len();
        let k = layer.weight.len() / n;
        let w = Matrix::rows(layer.weight, k).t();
        let sizes = (x.len() / k, k, n);
        product(sizes, Matrix::rows(x, k), w, out, n, false, self.threads);
    }

    /// `g W`.
    fn linear_grad(&self, grad: &[f32], layer: &Linear<'_>, out: &mut [f32]) {
        let n = layer.bias.len();
        let k = layer.weight.len() / n;
        let w = Matrix::rows(layer.weight, k);
        let sizes = (grad.len() / n, n, k);
        product(sizes, Matrix::rows(grad, n), w, out, k, false, self.threads);
    }

    /// `f` on pieces of rows, shared over the group's threads.
    fn rows(&self, out: &mut [f32], width: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
        if self.threads == 1 {
            return f(0, out);
        }
        let rows = (out.len() / width).div_ceil(4 * self.threads).max(1);
        out.par_chunks_mut(rows * width)
            .enumerate()
            .for_each(|(i, out)| f(i * rows, out));
    }

    /// `x` is changed from the block's input to its output. Where not all tokens are read, the input is `whole` and `x` only receives
    /// the output.
    fn forward(
        &self,
        whole: Option<&[f32]>,
        x: &mut [f32],
        kept: &mut Kept,
        space: &mut Workspace,
    ) {
        let w = self.weights;
        let (dim, mlp) = (w.dim(), w.mlp());
        let n = self.images * self.tokens;
        let input = space.input.get::<f32>(n * dim);
        let output = space.output.get::<f32>(n * dim);
        let from = whole.unwrap_or(x);
        self.rows(input, dim, |row, out| {
            let x = &from[row * dim..][..out.len()];
            rows::norm(x, w.norm1.weight, w.norm1.bias, w.norm1.eps, out);
        });
        let qkv = kept.qkv.get::<f32>(n * 3 * dim);
        self.linear(input, &w.qkv, qkv);
        self.rows(qkv, 3 * dim, |_, out| rows::add_bias(out, w.qkv.bias));
        if let Some(whole) = whole {
            first_rows(whole, self.tokens, self.read, dim, x);
        }
        // From here on rows are those that are read.
        let n = self.images * self.read;
        let (input, output) = (&mut input[..n * dim], &mut output[..n * dim]);
        self.attend(qkv, input);
        self.linear(input, &w.proj, output);
        let branch = &*output;
        self.rows(x, dim, |row, x| {
            rows::add_branch(x, &branch[row * dim..][..x.len()], w.proj.bias, w.scale1);
        });

        let middle = kept.middle.get::<f32>(n * dim);
        middle.copy_from_slice(x);
        let from = &*middle;
        self.rows(input, dim, |row, out| {
            let x = &from[row * dim..][..out.len()];
            rows::norm(x, w.norm2.weight, w.norm2.bias, w.norm2.eps, out);
        });
        let before = kept.hidden.get::<f32>(n * mlp);
        self.linear(input, &w.fc1, before);
        self.rows(before, mlp, |_, out| rows::add_bias(out, w.fc1.bias));
        let hidden = space.hidden.get::<f32>(n * mlp);
        let from = &*before;
        self.rows(hidden, mlp, |row, out| {
            rows::gelu(&from[row * mlp..][..out.len()], out);
        });
        self.linear(hidden, &w.fc2, output);
        let branch = &*output;
        self.rows(x, dim, |row, x| {
            rows::add_branch(x, &branch[row * dim..][..x.len()], w.fc2.bias, w.scale2);
        });
    }

    fn attend(&self, qkv: &[f32], out: &mut [f32]) {
        let dim = self.weights.dim();
        let one = |i: usize, first: usize, out: &mut [f32]| {
            let qkv = &qkv[i * self.tokens * 3 * dim..][..self.tokens * 3 * dim];
            SCORES.with_borrow_mut(|[scores, _]| self.image(i).forward(qkv, first, out, scores));
        };
        let images = out.chunks_mut(self.read * dim).enumerate();
        for (i, out) in images {
            // The same pieces either way, so that products are of the same sizes and round alike.
            if self.threads == 1 {
                let pieces = out.chunks_mut(QUERIES * dim).enumerate();
                pieces.for_each(|(at, out)| one(i, at * QUERIES, out));
            } else {
                let pieces = out.par_chunks_mut(QUERIES * dim).enumerate();
                pieces.for_each(|(at, out)| one(i, at * QUERIES, out));
            }
        }
    }

    /// `grad` is changed from the gradient of the output to that of the input `x`, if `tokens`. Where not all tokens were read, that
    /// of the input goes to `out`.
    #[allow(clippy::too_many_arguments)]
    fn backward(
        &self,
        x: &[f32],
        grad: &mut [f32],
        out: Option<&mut [f32]>,
        kept: &Kept,
        space: &mut Workspace,
        tokens: bool,
        prefix: Option<PrefixGrad<'_>>,
    ) {
        let w = self.weights;
        let (dim, mlp) = (w.dim(), w.mlp());
        let (all, n) = (self.images * self.tokens, self.images * self.read);
        let whole_input = space.input.get::<f32>(all * dim);
        let input = &mut whole_input[..n * dim];
        let output = space.output.get::<f32>(n * dim);
        let hidden = space.hidden.get::<f32>(n * mlp);
        let middle = kept.middle.read::<f32>(n * dim);
        rows::scaled(grad, w.scale2, output);
        self.linear_grad(output, &w.fc2, hidden);
        let before = kept.hidden.read::<f32>(n * mlp);
        self.rows(hidden, mlp, |row, grad| {
            rows::gelu_grad(&before[row * mlp..][..grad.len()], grad);
        });
        self.linear_grad(hidden, &w.fc1, input);
        let from = &*input;
        self.rows(grad, dim, |row, grad| {
            let range = row * dim..row * dim + grad.len();
            let (x, from) = (&middle[range.clone()], &from[range]);
            rows::norm_grad(x, w.norm2.weight, w.norm2.eps, from, grad);
        });

        rows::scaled(grad, w.scale1, output);
        self.linear_grad(output, &w.proj, input);
        let qkv = kept.qkv.read::<f32>(all * 3 * dim);
        let qkv_grad = space.qkv_grad.get::<f32>(all * 3 * dim);
        self.attend_grad(qkv, input, qkv_grad, tokens, prefix);
        if !tokens {
            return;
        }
        let grad = match out {
            Some(out) => {
                rows_first(grad, self.tokens, self.read, dim, out);
                out
            }
            None => grad,
        };
        self.linear_grad(qkv_grad, &w.qkv, whole_input);
        let from = &*whole_input;
        self.rows(grad, dim, |row, grad| {
            let range = row * dim..row * dim + grad.len();
            let (x, from) = (&x[range.clone()], &from[range]);
            rows::norm_grad(x, w.norm1.weight, w.norm1.eps, from, grad);
        });
    }

    fn attend_grad(
        &self,
        qkv: &[f32],
        out: &[f32],
        grad: &mut [f32],
        tokens: bool,
        prefix: Option<PrefixGrad<'_>>,
    ) {
        let dim = self.weights.dim();
        let per = self.prefix.map_or(0, |p| p.length * dim);
        let (keys, values) = prefix.unwrap_or_default();
        let parts = crate::block::chunks(keys, per, self.images)
            .into_iter()
            .zip(crate::block::chunks(values, per, self.images));
        let size = self.tokens * dim;
        let work: Vec<_> = grad.chunks_mut(3 * size).zip(parts).enumerate().collect();
        let one = |(i, (grad, (keys, values))): (usize, (&mut [f32], PrefixGrad<'_>))| {
            let qkv = &qkv[i * 3 * size..][..3 * size];
            let out = &out[i * self.read * dim..][..self.read * dim];
            let prefix = (!keys.is_empty()).then_some((keys, values));
            SCORES.with_borrow_mut(|space| {
                self.image(i)
                    .backward(qkv, out, grad, tokens, prefix, space);
            });
        };
        if self.threads == 1 {
            work.into_iter().for_each(one);
        } else {
            work.into_par_iter().for_each(one);
        }
    }
}

/// Attention alone, for blocks that something is tuned in: `(B, N, 3D)` to `(B, N, D)`.
pub fn attention(qkv: &[f32], shape: Shape, heads: usize, prefix: Option<Prefix<'_>>) -> Vec<f32> {
    let dim = qkv.len() / (3 * shape.batch * shape.tokens).max(1);
    let mut out = vec![0f32; qkv.len() / 3];
    out.par_chunks_mut(shape.tokens * dim)
        .zip(qkv.par_chunks(shape.tokens * 3 * dim))
        .enumerate()
        .for_each(|(i, (out, qkv))| {
            let image = Image {
                heads,
                dim,
                tokens: shape.tokens,
                prefix: prefix.map(|p| p.images(i, 1, p.length * dim)),
            };
            SCORES.with_borrow_mut(|[scores, _]| image.forward(qkv, 0, out, scores));
        });
    out
}

/// Gradients of what went into [`attention`]: `tokens` is that of `qkv`.
pub fn attention_grad(
    qkv: &[f32],
    shape: Shape,
    heads: usize,
    prefix: Option<Prefix<'_>>,
    grad: &[f32],
    wanted: Wanted,
) -> Gradients {
    let dim = qkv.len() / (3 * shape.batch * shape.tokens).max(1);
    let size = shape.tokens * dim;
    let mut tokens = vec![0f32; qkv.len()];
    let mut keys = vec![0f32; prefix.map_or(0, |p| p.keys.len())];
    let mut values = keys.clone();
    let per = prefix.map_or(0, |p| p.length * dim);
    let parts: Vec<_> = crate::block::chunks(&mut keys, per, shape.batch)
        .into_iter()
        .zip(crate::block::chunks(&mut values, per, shape.batch))
        .collect();
    tokens
        .par_chunks_mut(3 * size)
        .zip(parts)
        .enumerate()
        .for_each(|(i, (to, (keys, values)))| {
            let image = Image {
                heads,
                dim,
                tokens: shape.tokens,
                prefix: prefix.map(|p| p.images(i, 1, p.length * dim)),
            };
            let qkv = &qkv[i * 3 * size..][..3 * size];
            let grad = &grad[i * size..][..size];
            let prefix = (wanted.prefix && !keys.is_empty()).then_some((keys, values));
            SCORES.with_borrow_mut(|space| {
                image.backward(qkv, grad, to, wanted.tokens, prefix, space);
            });
        });
    Gradients {
        tokens,
        keys,
        values,
    }
}
