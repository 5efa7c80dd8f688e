//! One group of images through a block, forward and backward.

use rayon::prelude::*;

use super::attention::Image;
use super::product::{Matrix, Start, product};
use super::{Kept, Plan, SCORES, Workspace};
use crate::block::{BlockWeights, Linear, Prefix, Shape, chunks, first_rows, rows_first};
use crate::rows;

/// Queries that a thread takes at a time.
const QUERIES: usize = 128;
/// Hidden columns of the MLP at a time, so that those of a group stay near the core.
const HIDDEN: usize = 768;

/// Where the gradients of a prefix's keys and values go.
pub type PrefixGrad<'a> = (&'a mut [f32], &'a mut [f32]);

/// A group of images in a block.
pub struct Group<'a> {
    weights: &'a BlockWeights<'a>,
    images: usize,
    tokens: usize,
    read: usize,
    threads: usize,
    prefix: Option<Prefix<'a>>,
}

impl<'a> Group<'a> {
    pub fn new(
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
            causal: self.weights.causal,
            heads: self.weights.heads,
            dim,
            tokens: self.tokens,
            prefix: self.prefix.map(|p| p.images(i, 1, p.length * dim)),
        }
    }

    /// `x Wᵀ`, and `+ b` if `start` says so.
    fn linear(&self, x: &[f32], layer: &Linear<'_>, start: Start<'_>, out: &mut [f32]) {
        let n = layer.bias.len();
        let k = layer.weight.len() / n;
        let w = Matrix::rows(layer.weight, k).t();
        self.product((k, n), x, w, (out, n), start);
    }

    /// `g W`.
    fn linear_grad(&self, grad: &[f32], layer: &Linear<'_>, out: &mut [f32]) {
        let n = layer.bias.len();
        let k = layer.weight.len() / n;
        let w = Matrix::rows(layer.weight, k);
        self.product((n, k), grad, w, (out, k), Start::Zero);
    }

    /// `A B` for rows of `k` values and `B (k, n)`, to rows that are `width` apart.
    fn product(
        &self,
        (k, n): (usize, usize),
        a: &[f32],
        b: Matrix<'_>,
        (out, width): (&mut [f32], usize),
        start: Start<'_>,
    ) {
        let (sizes, a) = ((a.len() / k, k, n), Matrix::rows(a, k));
        product(sizes, a, b, out, width, start, self.threads);
    }

    /// The MLP's hidden columns, a part at a time: the first, how many, and what sums over them start from.
    fn hidden_parts(&self) -> impl Iterator<Item = (usize, usize, Start<'static>)> {
        let mlp = self.weights.mlp();
        (0..mlp).step_by(HIDDEN).map(move |first| {
            let start = if first == 0 { Start::Zero } else { Start::Sum };
            (first, HIDDEN.min(mlp - first), start)
        })
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
    pub fn forward(
        &self,
        whole: Option<&[f32]>,
        x: &mut [f32],
        kept: &mut Kept,
        keep: bool,
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
        self.linear(input, &w.qkv, Start::Bias(w.qkv.bias), qkv);
        if let Some(whole) = whole {
            first_rows(whole, self.tokens, self.read, dim, x);
        }
        // From here on rows are those that are read.
        let n = self.images * self.read;
        let (input, output) = (&mut input[..n * dim], &mut output[..n * dim]);
        self.attend(qkv, input);
        self.linear(input, &w.proj, Start::Zero, output);
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
        // All of the activation's input is kept for a backward, else that of one part.
        let width = if keep { mlp } else { mlp.min(HIDDEN) };
        let before = kept.hidden.get::<f32>(n * width);
        for (first, columns, start) in self.hidden_parts() {
            let at = if keep { first } else { 0 };
            let w1 = Matrix::rows(&w.fc1.weight[first * dim..], dim).t();
            let bias = Start::Bias(&w.fc1.bias[first..first + columns]);
            self.product((dim, columns), input, w1, (&mut before[at..], width), bias);
            let hidden = space.hidden.get::<f32>(n * columns);
            let from = &*before;
            self.rows(hidden, columns, |row, out| {
                for (i, out) in out.chunks_exact_mut(columns).enumerate() {
                    w.activation
                        .apply(&from[(row + i) * width + at..][..columns], out);
                }
            });
            let w2 = Matrix::rows(&w.fc2.weight[first..], mlp).t();
            self.product((columns, dim), hidden, w2, (&mut *output, dim), start);
        }
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
            if self.threads == 1 {
                one(i, 0, out);
            } else {
                let pieces = out.par_chunks_mut(QUERIES * dim).enumerate();
                pieces.for_each(|(at, out)| one(i, at * QUERIES, out));
            }
        }
    }

    /// `grad` is changed from the gradient of the output to that of the input `x`, if `tokens`. Where not all tokens were read, that
    /// of the input goes to `out`.
    #[allow(clippy::too_many_arguments)]
    pub fn backward(
        &self,
        x: &[f32],
        grad: &mut [f32],
        out: Option<&mut [f32]>,
        kept: &mut Kept,
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
        let middle = kept.middle.read::<f32>(n * dim);
        rows::scaled(grad, w.scale2, output);
        let before = kept.hidden.read::<f32>(n * mlp);
        for (first, columns, start) in self.hidden_parts() {
            let w2 = Matrix::rows(&w.fc2.weight[first..], mlp);
            let hidden = space.hidden.get::<f32>(n * columns);
            self.product((dim, columns), output, w2, (hidden, columns), Start::Zero);
            self.rows(hidden, columns, |row, grad| {
                for (i, grad) in grad.chunks_exact_mut(columns).enumerate() {
                    w.activation
                        .apply_grad(&before[(row + i) * mlp + first..][..columns], grad);
                }
            });
            let w1 = Matrix::rows(&w.fc1.weight[first * dim..], dim);
            self.product((columns, dim), hidden, w1, (&mut *input, dim), start);
        }
        let from = &*input;
        self.rows(grad, dim, |row, grad| {
            let range = row * dim..row * dim + grad.len();
            let (x, from) = (&middle[range.clone()], &from[range]);
            rows::norm_grad(x, w.norm2.weight, w.norm2.eps, from, grad);
        });

        rows::scaled(grad, w.scale1, output);
        self.linear_grad(output, &w.proj, input);
        let qkv = kept.qkv.get::<f32>(all * 3 * dim);
        self.attend_grad(qkv, input, tokens, prefix);
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
        self.linear_grad(qkv, &w.qkv, whole_input);
        let from = &*whole_input;
        self.rows(grad, dim, |row, grad| {
            let range = row * dim..row * dim + grad.len();
            let (x, from) = (&x[range.clone()], &from[range]);
            rows::norm_grad(x, w.norm1.weight, w.norm1.eps, from, grad);
        });
    }

    /// With `tokens`, `qkv` is changed to its gradient.
    fn attend_grad(
        &self,
        qkv: &mut [f32],
        out: &[f32],
        tokens: bool,
        prefix: Option<PrefixGrad<'_>>,
    ) {
        let dim = self.weights.dim();
        let per = self.prefix.map_or(0, |p| p.length * dim);
        let (keys, values) = prefix.unwrap_or_default();
        let parts =
            chunks(keys, per, self.images)
                .into_iter()
                .zip(chunks(values, per, self.images));
        let size = self.tokens * dim;
        let work: Vec<_> = qkv.chunks_mut(3 * size).zip(parts).enumerate().collect();
        let one = |(i, (qkv, (keys, values))): (usize, (&mut [f32], PrefixGrad<'_>))| {
            let out = &out[i * self.read * dim..][..self.read * dim];
            let prefix = (!keys.is_empty()).then_some((keys, values));
            SCORES.with_borrow_mut(|space| {
                self.image(i).backward(qkv, out, tokens, prefix, space);
            });
        };
        if self.threads == 1 {
            work.into_iter().for_each(one);
        } else {
            work.into_par_iter().for_each(one);
        }
    }
}
