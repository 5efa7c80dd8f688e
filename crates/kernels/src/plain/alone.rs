//! Attention alone, for blocks that something is tuned in.

use rayon::prelude::*;

use super::SCORES;
use super::attention::Image;
use crate::block::{Gradients, Prefix, Shape, Wanted, chunks};

/// How attention is shared out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// How many.
    pub count: usize,
    /// Whether a token sees the prefix, itself and those before it alone.
    pub causal: bool,
}

/// `softmax(q [Pk; k]ᵀ / √d) [Pv; v]`: `(B, N, 3D)` to `(B, N, D)`.
pub fn attention(qkv: &[f32], shape: Shape, heads: Heads, prefix: Option<Prefix<'_>>) -> Vec<f32> {
    let dim = qkv.len() / (3 * shape.batch * shape.tokens).max(1);
    let mut out = vec![0f32; qkv.len() / 3];
    out.par_chunks_mut(shape.tokens * dim)
        .zip(qkv.par_chunks(shape.tokens * 3 * dim))
        .enumerate()
        .for_each(|(i, (out, qkv))| {
            let image = Image {
                heads: heads.count,
                causal: heads.causal,
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
    heads: Heads,
    prefix: Option<Prefix<'_>>,
    grad: &[f32],
    wanted: Wanted,
) -> Gradients {
    let dim = qkv.len() / (3 * shape.batch * shape.tokens).max(1);
    let size = shape.tokens * dim;
    let mut tokens = qkv.to_vec();
    let mut keys = vec![0f32; prefix.map_or(0, |p| p.keys.len())];
    let mut values = keys.clone();
    let per = prefix.map_or(0, |p| p.length * dim);
    let parts: Vec<_> = chunks(&mut keys, per, shape.batch)
        .into_iter()
        .zip(chunks(&mut values, per, shape.batch))
        .collect();
    tokens
        .par_chunks_mut(3 * size)
        .zip(parts)
        .enumerate()
        .for_each(|(i, (qkv, (keys, values)))| {
            let image = Image {
                heads: heads.count,
                causal: heads.causal,
                dim,
                tokens: shape.tokens,
                prefix: prefix.map(|p| p.images(i, 1, p.length * dim)),
            };
            let grad = &grad[i * size..][..size];
            let prefix = (wanted.prefix && !keys.is_empty()).then_some((keys, values));
            SCORES.with_borrow_mut(|space| {
                image.backward(qkv, grad, wanted.tokens, prefix, space);
            });
        });
    Gradients {
        tokens,
        keys,
        values,
    }
}
