//! A block of which few tokens are read, as the last one when the class token is all that counts.
//!
//! A read token's query meets every token, but no token's key is needed for that: `q·(W_k h + b_k)` is `(W_kᵀ q)·h` and a number
//! that all tokens share, which softmax does not see. Nor is any value: `Σ p (W_v h + b_v)` is `W_v (Σ p h) + b_v`. For `R` read
//! tokens of `N` and `H` heads that is `4 R H N D` operations rather than `6 N D²`; the gradient takes twice as many.

use rayon::prelude::*;

use super::WORKSPACE;
use super::product::{Matrix, Start, product};
use crate::block::{BlockWeights, Shape, first_rows, rows_first};
use crate::buffer::Buffer;
use crate::rows;

/// What a batch's forward leaves for its backward, and memory that both work in.
#[derive(Debug, Default)]
pub struct Space {
    /// `W_kᵀ q` of every read token and head, `(B, R, H, D)`.
    keys: Buffer,
    /// Attention `p`, `(B, R, H, N)`.
    weights: Buffer,
    /// The residual stream between attention and MLP.
    middle: Buffer,
    /// Input of the activation.
    hidden: Buffer,
    /// `Σ p h`, later its gradient, as `keys`.
    sums: Buffer,
    /// Gradients of the scores, as `weights`, and of `keys`.
    slopes: Buffer,
    key_grads: Buffer,
    /// Of the width of read tokens, and of the MLP.
    narrow: [Buffer; 3],
    wide: Buffer,
}

/// The read tokens of a batch in a block.
pub struct Few<'a> {
    weights: &'a BlockWeights<'a>,
    shape: Shape,
    threads: usize,
}

/// Which of the fused queries, keys and values.
const KEYS: usize = 1;
const VALUES: usize = 2;

impl<'a> Few<'a> {
    pub fn new(weights: &'a BlockWeights<'a>, shape: Shape) -> Self {
        Self {
            weights,
            shape,
            threads: rayon::current_num_threads(),
        }
    }

    /// Read tokens of the batch.
    fn rows(&self) -> usize {
        self.shape.batch * self.shape.read
    }

    /// Tokens `(B, N, D)` to those that are read, `(B, R, D)`.
    pub fn forward(&self, x: &[f32], space: &mut Space) -> Vec<f32> {
        let w = self.weights;
        let (dim, mlp, n) = (w.dim(), w.mlp(), self.rows());
        let mut out = vec![0f32; n * dim];
        first_rows(x, self.shape.tokens, self.shape.read, dim, &mut out);
        let [near, branch, queries] = &mut space.narrow;
        let near = near.get::<f32>(n * dim);
        let branch = branch.get::<f32>(n * dim);
        let queries = queries.get::<f32>(n * dim);

        // Attention.
        rows::norm(&out, w.norm1.weight, w.norm1.bias, w.norm1.eps, near);
        let wq = Matrix::rows(w.qkv.weight, dim).t();
        let bias = Start::Bias(&w.qkv.bias[..dim]);
        self.product((dim, dim), near, wq, queries, bias);
        let keys = space.keys.get::<f32>(n * w.heads * dim);
        self.up(queries, KEYS, keys);
        let sums = space.sums.get::<f32>(n * w.heads * dim);
        let weights = space.weights.get::<f32>(n * w.heads * self.shape.tokens);
        self.attend(x, keys, weights, sums);
        self.down(sums, VALUES, true, queries);
        self.layer(queries, (dim, dim), w.proj.weight, Start::Zero, branch);
        rows::add_branch(&mut out, branch, w.proj.bias, w.scale1);

        // The MLP.
        space.middle.get::<f32>(n * dim).copy_from_slice(&out);
        rows::norm(&out, w.norm2.weight, w.norm2.bias, w.norm2.eps, near);
        let before = space.hidden.get::<f32>(n * mlp);
        let hidden = space.wide.get::<f32>(n * mlp);
        let bias = Start::Bias(w.fc1.bias);
        self.layer(near, (dim, mlp), w.fc1.weight, bias, before);
        w.activation.apply(before, hidden);
        self.layer(hidden, (mlp, dim), w.fc2.weight, Start::Zero, branch);
        rows::add_branch(&mut out, branch, w.fc2.bias, w.scale2);
        out
    }

    /// The gradient of the tokens `x`, given that of what [`forward`](Self::forward) gave.
    pub fn backward(&self, x: &[f32], grad: &[f32], space: &mut Space) -> Vec<f32> {
        let w = self.weights;
        let (dim, mlp, n) = (w.dim(), w.mlp(), self.rows());
        let [near, branch, queries] = &mut space.narrow;
        let near = near.get::<f32>(n * dim);
        let branch = branch.get::<f32>(n * dim);
        let queries = queries.get::<f32>(n * dim);
        let mut grad = grad.to_vec();

        // The MLP.
        rows::scaled(&grad, w.scale2, branch);
        let hidden = space.wide.get::<f32>(n * mlp);
        self.layer_grad(branch, (mlp, dim), w.fc2.weight, hidden);
        let before = space.hidden.read::<f32>(n * mlp);
        w.activation.apply_grad(before, hidden);
        self.layer_grad(hidden, (dim, mlp), w.fc1.weight, near);
        let middle = space.middle.read::<f32>(n * dim);
        rows::norm_grad(middle, w.norm2.weight, w.norm2.eps, near, &mut grad);

        // Attention.
        rows::scaled(&grad, w.scale1, branch);
        self.layer_grad(branch, (dim, dim), w.proj.weight, queries);
        let size = n * w.heads;
        let sums = space.sums.get::<f32>(size * dim);
        self.up(queries, VALUES, sums);
        let weights = space.weights.read::<f32>(size * self.shape.tokens);
        let slopes = space.slopes.get::<f32>(size * self.shape.tokens);
        let key_grads = space.key_grads.get::<f32>(size * dim);
        self.attend_grad(x, (weights, sums), slopes, key_grads);
        self.down(key_grads, KEYS, false, queries);
        let wq = Matrix::rows(w.qkv.weight, dim);
        self.product((dim, dim), queries, wq, near, Start::Zero);

        let mut out = vec![0f32; x.len()];
        rows_first(&grad, self.shape.tokens, self.shape.read, dim, &mut out);
        let keys = space.keys.read::<f32>(size * dim);
        self.normed_grad(x, (weights, sums), (slopes, keys), near, &mut out);
        out
    }

    /// `A B` for rows of `k` values and `B (k, n)`.
    fn product(
        &self,
        (k, n): (usize, usize),
        a: &[f32],
        b: Matrix<'_>,
        out: &mut [f32],
        start: Start<'_>,
    ) {
        let (sizes, a) = ((a.len() / k, k, n), Matrix::rows(a, k));
        product(sizes, a, b, out, n, start, self.threads);
    }

    /// `x Wᵀ` of a layer from `k` to `n` values.
    fn layer(
        &self,
        x: &[f32],
        (k, n): (usize, usize),
        weight: &[f32],
        start: Start<'_>,
        out: &mut [f32],
    ) {
        self.product((k, n), x, Matrix::rows(weight, k).t(), out, start);
    }

    /// `g W` of a layer from `k` to `n` values.
    fn layer_grad(&self, grad: &[f32], (k, n): (usize, usize), weight: &[f32], out: &mut [f32]) {
        self.product((n, k), grad, Matrix::rows(weight, k), out, Start::Zero);
    }

    /// The rows of the fused weight that make `part` of head `h`, `(d, D)`.
    fn head(&self, part: usize, h: usize) -> Matrix<'a> {
        let (w, dim) = (self.weights, self.weights.dim());
        let first = part * dim + h * (dim / w.heads);
        Matrix::rows(&w.qkv.weight[first * dim..], dim)
    }

    /// `Wᵀ y` of every head's part of a token: `(B, R, H, d)` to `(B, R, H, D)`.
    fn up(&self, from: &[f32], part: usize, to: &mut [f32]) {
        let (dim, heads) = (self.weights.dim(), self.weights.heads);
        let d = dim / heads;
        for h in 0..heads {
            let (rows, sizes) = (Matrix::rows(&from[h * d..], dim), (self.rows(), d, dim));
            let (to, width) = (&mut to[h * dim..], heads * dim);
            let weight = self.head(part, h);
            product(sizes, rows, weight, to, width, Start::Zero, self.threads);
        }
    }

    /// `W y`, and `+ b` if `bias`, of what every head has of a token: `(B, R, H, D)` to `(B, R, H, d)`.
    fn down(&self, from: &[f32], part: usize, bias: bool, to: &mut [f32]) {
        let (w, dim, heads) = (self.weights, self.weights.dim(), self.weights.heads);
        let d = dim / heads;
        for h in 0..heads {
            let rows = Matrix::rows(&from[h * dim..], heads * dim);
            let (to, sizes) = (&mut to[h * d..], (self.rows(), dim, d));
            let start = match bias {
                true => Start::Bias(&w.qkv.bias[part * dim + h * d..][..d]),
                false => Start::Zero,
            };
            let weight = self.head(part, h).t();
            product(sizes, rows, weight, to, dim, start, self.threads);
        }
    }

    /// `f` on the input of the first layer norm, what comes out of it, and an image's part of `state`.
    fn images<T: Send>(&self, x: &[f32], state: Vec<T>, f: impl Fn(&[f32], T) + Sync) {
        let size = self.shape.tokens * self.weights.dim();
        let norm = &self.weights.norm1;
        x.par_chunks(size).zip(state).for_each(|(x, state)| {
            WORKSPACE.with_borrow_mut(|space| {
                let normed = space.input.get::<f32>(size);
                rows::norm(x, norm.weight, norm.bias, norm.eps, normed);
                f(normed, state);
            });
        });
    }

    /// `p = softmax(u h / √d)` and `Σ p h`, for `u` in `keys`.
    fn attend(&self, x: &[f32], keys: &[f32], weights: &mut [f32], sums: &mut [f32]) {
        let (dim, tokens) = (self.weights.dim(), self.shape.tokens);
        let n = self.shape.read * self.weights.heads;
        let state = keys
            .chunks_exact(n * dim)
            .zip(weights.chunks_exact_mut(n * tokens))
            .zip(sums.chunks_exact_mut(n * dim))
            .collect();
        self.images(x, state, |normed, ((keys, weights), sums)| {
            let h = Matrix::rows(normed, dim);
            let keys = Matrix::rows(keys, dim);
            product(
                (n, dim, tokens),
                keys,
                h.t(),
                weights,
                tokens,
                Start::Zero,
                1,
            );
            rows::softmax(weights, tokens, self.factor());
            let p = Matrix::rows(weights, tokens);
            product((n, tokens, dim), p, h, sums, dim, Start::Zero, 1);
        });
    }

    /// From the gradient of `Σ p h` in `sums` to that of the scores and of `u`.
    fn attend_grad(
        &self,
        x: &[f32],
        (weights, sums): (&[f32], &[f32]),
        slopes: &mut [f32],
        keys: &mut [f32],
    ) {
        let (dim, tokens) = (self.weights.dim(), self.shape.tokens);
        let n = self.shape.read * self.weights.heads;
        let state = weights
            .chunks_exact(n * tokens)
            .zip(sums.chunks_exact(n * dim))
            .zip(slopes.chunks_exact_mut(n * tokens))
            .zip(keys.chunks_exact_mut(n * dim))
            .collect();
        self.images(x, state, |normed, (((weights, sums), slopes), keys)| {
            let h = Matrix::rows(normed, dim);
            let sums = Matrix::rows(sums, dim);
            product(
                (n, dim, tokens),
                sums,
                h.t(),
                slopes,
                tokens,
                Start::Zero,
                1,
            );
            rows::softmax_grad(weights, slopes, tokens, self.factor());
            let slopes = Matrix::rows(slopes, tokens);
            product((n, tokens, dim), slopes, h, keys, dim, Start::Zero, 1);
        });
    }

    /// Adds to `out` what comes through the first layer norm: `pᵀ ∂(Σ p h) + ∂sᵀ u`, and for read tokens that of their queries.
    fn normed_grad(
        &self,
        x: &[f32],
        (weights, sums): (&[f32], &[f32]),
        (slopes, keys): (&[f32], &[f32]),
        queries: &[f32],
        out: &mut [f32],
    ) {
        let (norm, dim, tokens) = (&self.weights.norm1, self.weights.dim(), self.shape.tokens);
        let (read, n) = (self.shape.read, self.shape.read * self.weights.heads);
        out.par_chunks_exact_mut(tokens * dim)
            .enumerate()
            .for_each(|(i, out)| {
                WORKSPACE.with_borrow_mut(|space| {
                    let grad = space.input.get::<f32>(tokens * dim);
                    for (scores, rows, start) in
                        [(weights, sums, Start::Zero), (slopes, keys, Start::Sum)]
                    {
                        let turned = Matrix::rows(&scores[i * n * tokens..], tokens).t();
                        let rows = Matrix::rows(&rows[i * n * dim..], dim);
                        product((tokens, n, dim), turned, rows, grad, dim, start, 1);
                    }
                    let own = &queries[i * read * dim..][..read * dim];
                    grad.iter_mut().zip(own).for_each(|(g, q)| *g += q);
                    let x = &x[i * tokens * dim..][..tokens * dim];
                    rows::norm_grad(x, norm.weight, norm.eps, grad, out);
                });
            });
    }

    fn factor(&self) -> f32 {
        1.0 / ((self.weights.dim() / self.weights.heads) as f32).sqrt()
    }
}
