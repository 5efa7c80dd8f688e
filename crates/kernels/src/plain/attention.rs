//! Multi-head attention of one image in f32.

use super::product::{Matrix, Start, product};
use crate::block::Prefix;
use crate::buffer::Buffer;
use crate::rows;

/// The sizes of one image's attention, and its prefix, `(H, P, d)`.
#[derive(Clone, Copy)]
pub struct Image<'a> {
    pub heads: usize,
    pub dim: usize,
    pub tokens: usize,
    pub prefix: Option<Prefix<'a>>,
    /// Whether a token sees the prefix, itself and those before it alone.
    pub causal: bool,
}

impl<'a> Image<'a> {
    fn head(&self) -> usize {
        self.dim / self.heads
    }

    fn length(&self) -> usize {
        self.prefix.map_or(0, |p| p.length)
    }

    fn factor(&self) -> f32 {
        1.0 / (self.head() as f32).sqrt()
    }

    /// A head's part of `[q; k; v]`: 0 queries, 1 keys, 2 values.
    fn part<'b>(&self, qkv: &'b [f32], part: usize, head: usize) -> Matrix<'b> {
        Matrix::rows(&qkv[part * self.dim + head * self.head()..], 3 * self.dim)
    }

    /// `A [Pk; k]ᵀ` and the same for values: rows of `a` against all keys (`part` 1) or values (`part` 2).
    fn against(
        &self,
        a: Matrix<'_>,
        n: usize,
        qkv: &[f32],
        part: usize,
        head: usize,
        out: &mut [f32],
    ) {
        let (d, length) = (self.head(), self.length());
        let wide = length + self.tokens;
        if let Some(rows) = self.prefix_rows(part, head) {
            product((n, d, length), a, rows.t(), out, wide, Start::Zero, 1);
        }
        let own = self.part(qkv, part, head).t();
        product(
            (n, d, self.tokens),
            a,
            own,
            &mut out[length..],
            wide,
            Start::Zero,
            1,
        );
    }

    /// `A [Pv; v]` and the same for keys, to `out`, whose rows are `width` apart.
    fn mix(
        &self,
        a: &[f32],
        n: usize,
        qkv: &[f32],
        part: usize,
        head: usize,
        (out, width): (&mut [f32], usize),
    ) {
        let (d, length) = (self.head(), self.length());
        let wide = length + self.tokens;
        let own = self.part(qkv, part, head);
        let weights = Matrix::rows(&a[length..], wide);
        product(
            (n, self.tokens, d),
            weights,
            own,
            out,
            width,
            Start::Zero,
            1,
        );
        if let Some(rows) = self.prefix_rows(part, head) {
            product(
                (n, length, d),
                Matrix::rows(a, wide),
                rows,
                out,
                width,
                Start::Sum,
                1,
            );
        }
    }

    /// Softmax of the scores of the queries from `first` on, in place; 0 where a query must not see.
    fn softmax(&self, scores: &mut [f32], first: usize) {
        let wide = self.length() + self.tokens;
        let unseen = |scores: &mut [f32], value: f32| {
            for (i, row) in scores.chunks_exact_mut(wide).enumerate() {
                row[(self.length() + first + i + 1).min(wide)..].fill(value);
            }
        };
        if self.causal {
            unseen(scores, f32::MIN);
        }
        rows::softmax(scores, wide, self.factor());
        if self.causal {
            unseen(scores, 0.0);
        }
    }

    fn prefix_rows(&self, part: usize, head: usize) -> Option<Matrix<'a>> {
        let prefix = self.prefix?;
        let (d, n) = (self.head(), prefix.length);
        let values = if part == 1 {
            prefix.keys
        } else {
            prefix.values
        };
        (n > 0).then(|| Matrix::rows(&values[head * n * d..(head + 1) * n * d], d))
    }

    /// `softmax(q [Pk; k]ᵀ / √d) [Pv; v]` for the queries from `first` on, as many as `out` has rows.
    pub fn forward(&self, qkv: &[f32], first: usize, out: &mut [f32], scores: &mut Buffer) {
        let n = out.len() / self.dim;
        let wide = self.length() + self.tokens;
        for head in 0..self.heads {
            let scores = scores.get::<f32>(n * wide);
            let queries = self.part(&qkv[first * 3 * self.dim..], 0, head);
            self.against(queries, n, qkv, 1, head, scores);
            self.softmax(scores, first);
            let out = (&mut out[head * self.head()..], self.dim);
            self.mix(scores, n, qkv, 2, head, out);
        }
    }

    /// Changes `[q; k; v]` to its gradient, if `tokens`, and gives that of the prefix, from the gradient of the output.
    pub fn backward(
        &self,
        qkv: &mut [f32],
        out: &[f32],
        tokens: bool,
        mut prefix: Option<(&mut [f32], &mut [f32])>,
        space: &mut [Buffer; 2],
    ) {
        // As many queries as outputs were read.
        let (n, d, length) = (out.len() / self.dim, self.head(), self.length());
        let (wide, width) = (length + self.tokens, 3 * self.dim);
        let [weights, slopes] = space;
        let weights = weights.get::<f32>(n * wide);
        // Behind the slopes, the gradients of a head until its queries, keys and values are read no more.
        let slopes = slopes.get::<f32>(n * wide + (n + 2 * self.tokens) * d);
        let (slopes, grads) = slopes.split_at_mut(n * wide);
        for head in 0..self.heads {
            let queries = self.part(qkv, 0, head);
            self.against(queries, n, qkv, 1, head, weights);
            self.softmax(weights, 0);
            let out = Matrix::rows(&out[head * d..], self.dim);
            self.against(out, n, qkv, 2, head, slopes);
            rows::softmax_grad(weights, slopes, wide, self.factor());
            // The gradients of `count` keys (values) from column `from` on: rows are scores' columns.
            let columns = |scores: &[f32], from: usize, count, rows, to: &mut [f32]| {
                let turned = Matrix::rows(&scores[from..], wide).t();
                product((count, n, d), turned, rows, to, d, Start::Zero, 1);
            };
            if let Some((keys, values)) = &mut prefix {
                let range = head * length * d..(head + 1) * length * d;
                columns(slopes, 0, length, queries, &mut keys[range.clone()]);
                columns(weights, 0, length, out, &mut values[range]);
            }
            if tokens {
                let (own, pairs) = grads.split_at_mut(n * d);
                let (keys, values) = pairs.split_at_mut(self.tokens * d);
                self.mix(slopes, n, qkv, 1, head, (own, d));
                columns(slopes, length, self.tokens, queries, keys);
                columns(weights, length, self.tokens, out, values);
                for (part, grads) in [&*own, keys, values].into_iter().enumerate() {
                    let places = qkv[part * self.dim + head * d..].chunks_mut(width);
                    for (to, grad) in places.zip(grads.chunks_exact(d)) {
                        to[..d].copy_from_slice(grad);
                    }
                }
            }
        }
        if tokens && n < self.tokens {
            // Queries that nobody read have no gradient.
            for row in qkv[n * width..].chunks_exact_mut(width) {
                row[..self.dim].fill(0.0);
            }
        }
    }
}
