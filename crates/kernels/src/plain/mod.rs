//! Blocks in f32, on any processor.
//!
//! Groups of images run in parallel, each on one thread; a batch that makes fewer groups than there are threads runs group by
//! group with the threads inside the products. An image's values do not depend on how a batch is cut, so the cut may follow the
//! number of threads.

mod alone;
mod attention;
mod few;
mod group;
mod linear;
mod product;
#[cfg(target_arch = "x86_64")]
mod wide;

use std::cell::RefCell;

use rayon::prelude::*;

use crate::block::{BlockWeights, Gradients, Prefix, Shape, Wanted, chunks};
use crate::buffer::{Buffer, Pool, Pooled, changed};
use few::Few;
use group::{Group, PrefixGrad};

pub use alone::{Heads, attention, attention_grad};
pub use linear::{bias_grad, linear, linear_grad, weight_grad};
pub use product::{Matrix, Start, product};

/// Rows of a group, about: enough that packing the weights for each is little work, few enough that they stay near the core.
const GROUP_ROWS: usize = 800;

/// What a group's forward leaves for its backward.
#[derive(Debug, Default)]
struct Kept {
    /// Queries, keys and values of every token.
    qkv: Buffer,
    /// The residual stream between attention and MLP.
    middle: Buffer,
    /// Input of the activation.
    hidden: Buffer,
}

/// Memory that a block's batches use again.
#[derive(Debug, Default)]
pub struct Memory {
    groups: Pool<Kept>,
    few: Pool<Box<few::Space>>,
}

/// What a batch's forward leaves for its backward.
#[derive(Debug)]
pub struct Saved(Left);

#[derive(Debug)]
enum Left {
    Groups(Plan, Vec<Pooled<Kept>>),
    Few(Pooled<Box<few::Space>>),
}

/// Memory of one thread.
#[derive(Debug, Default)]
struct Workspace {
    kept: Kept,
    input: Buffer,
    output: Buffer,
    hidden: Buffer,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
    static SCORES: RefCell<[Buffer; 2]> = RefCell::default();
}

/// How a batch is cut into groups.
#[derive(Debug, Clone, Copy)]
struct Plan {
    images: usize,
    groups: usize,
    /// Threads inside a group.
    threads: usize,
}

impl Plan {
    fn new(shape: Shape) -> Self {
        let (batch, threads) = (shape.batch.max(1), rayon::current_num_threads());
        // Threads take groups in turns, so the most even cut is the quickest, and memory that is used again fits all groups. Of two
        // that are as even, the one nearer to the wanted size.
        let most = (3 * GROUP_ROWS / 2 / shape.tokens.max(1)).max(1);
        let images = (1..=most.min(batch)).min_by_key(|&images| {
            let turns = batch.div_ceil(images).next_multiple_of(threads);
            (turns * images, (images * shape.tokens).abs_diff(GROUP_ROWS))
        });
        let images = images.unwrap_or(1);
        let groups = batch.div_ceil(images);
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
    let few = prefix.is_none() && !weights.causal && shape.reads_few(weights.dim(), weights.heads);
    if few {
        let mut space = memory.few.take();
        let out = Few::new(weights, shape).forward(x, &mut space.item);
        return (out, keep.then(|| Saved(Left::Few(space))));
    }
    let plan = Plan::new(shape);
    let mut saved: Vec<_> = (0..plan.groups)
        .map(|_| keep.then(|| memory.groups.take()))
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
        group.forward(whole, x, kept, keep, &mut space);
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
    let groups = saved.into_iter().collect::<Option<_>>();
    (out, groups.map(|groups| Saved(Left::Groups(plan, groups))))
}

/// Gradients of what went into [`forward`], given that of what came out. Works in the memory of `saved`, which
/// then serves the next forward.
#[allow(clippy::too_many_arguments)]
pub fn backward(
    weights: &BlockWeights<'_>,
    x: &[f32],
    shape: Shape,
    prefix: Option<Prefix<'_>>,
    saved: Saved,
    grad: &[f32],
    wanted: Wanted,
) -> Gradients {
    let (plan, mut groups) = match saved.0 {
        Left::Groups(plan, groups) => (plan, groups),
        Left::Few(mut space) => {
            // Where there was no prefix.
            return Gradients {
                tokens: Few::new(weights, shape).backward(x, grad, &mut space.item),
                ..Gradients::default()
            };
        }
    };
    let dim = weights.dim();
    let chunk = plan.images * shape.tokens * dim;
    let mut keys = vec![0f32; prefix.map_or(0, |p| p.keys.len())];
    let mut values = keys.clone();
    let per = plan.images * prefix.map_or(0, |p| p.length * dim);
    let parts: Vec<_> = chunks(&mut keys, per, plan.groups)
        .into_iter()
        .zip(chunks(&mut values, per, plan.groups))
        .zip(&mut groups)
        .collect();
    let one = |i: usize,
               grad: &mut [f32],
               out: Option<&mut [f32]>,
               ((keys, values), kept): (PrefixGrad<'_>, &mut Pooled<Kept>)| {
        let x = &x[i * chunk..x.len().min((i + 1) * chunk)];
        let group = Group::new(weights, plan, i, x.len(), shape, prefix);
        let mut space = WORKSPACE.take();
        let prefix = wanted.prefix.then_some((keys, values));
        group.backward(
            x,
            grad,
            out,
            &mut kept.item,
            &mut space,
            wanted.tokens,
            prefix,
        );
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
