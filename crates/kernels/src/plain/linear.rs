//! A frozen linear layer alone.

use rayon::prelude::*;

use super::GROUP_ROWS;
use super::product::{Matrix, Start, product};
use crate::block::Linear;

/// `x Wᵀ + b`: `(M, in)` to `(M, out)`.
pub fn linear(x: &[f32], layer: &Linear<'_>) -> Vec<f32> {
    let n = layer.bias.len();
    let k = layer.weight.len() / n.max(1);
    let w = Matrix::rows(layer.weight, k).t();
    by_rows(x, w, (k, n), Start::Bias(layer.bias))
}

/// The gradient of [`linear`]'s input, `g W`: `(M, out)` to `(M, in)`.
pub fn linear_grad(grad: &[f32], layer: &Linear<'_>) -> Vec<f32> {
    let n = layer.bias.len();
    let k = layer.weight.len() / n.max(1);
    by_rows(grad, Matrix::rows(layer.weight, k), (n, k), Start::Zero)
}

/// The product, rows in pieces as large as a group's in parallel; where these are fewer than the threads, threads share a piece.
fn by_rows(x: &[f32], w: Matrix<'_>, (k, n): (usize, usize), start: Start<'_>) -> Vec<f32> {
    let (k, n) = (k.max(1), n.max(1));
    let mut out = vec![0f32; x.len() / k * n];
    let threads = rayon::current_num_threads();
    let one = |x: &[f32], out: &mut [f32], threads: usize| {
        let sizes = (x.len() / k, k, n);
        product(sizes, Matrix::rows(x, k), w, out, n, start, threads);
    };
    let (from, to) = (GROUP_ROWS * k, GROUP_ROWS * n);
    if x.len().div_ceil(from) < threads {
        for (x, out) in x.chunks(from).zip(out.chunks_mut(to)) {
            one(x, out, threads);
        }
    } else {
        x.par_chunks(from)
            .zip(out.par_chunks_mut(to))
            .for_each(|(x, out)| one(x, out, 1));
    }
    out
}
