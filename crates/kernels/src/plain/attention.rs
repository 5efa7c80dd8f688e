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
            rows::softmax(scores, wide, self.factor());
            let out = (&mut out[head * self.head()..], self.dim);
            self.mix(scores, n, qkv, 2, head, out);
        }
    }

    /// Gradients of `[q; k; v]` to `grad` (without `tokens` it is left as it was) and of the prefix, given that of the output.
    pub fn backward(
        &self,
        qkv: &[f32],
        out: &[f32],
        grad: &mut [f32],
        tokens: bool,
        mut prefix: Option<(&mut [f32], &mut [f32])>,
        space: &mut [Buffer; 2],
    ) {
        // As many queries as outputs were read.
        let (n, d, length) = (out.len() / self.dim, self.head(), self.length());
        let (wide, width) = (length + self.tokens, 3 * self.dim);
        if tokens && n < self.tokens {
            // Queries that nobody read have no gradient.
            for row in grad[n * width..].chunks_exact_mut(width) {
                row[..self.dim].fill(0.0);
            }
        }
        let [weights, slopes] = space;
        let weights = weights.get::<f32>(n * wide);
        let slopes = slopes.get::<f32>(n * wide);
        for head in 0..self.heads {
            let queries = self.part(qkv, 0, head);
            self.against(queries, n, qkv, 1, head, weights);
            rows::softmax(weights, wide, self.factor());
            let out = Matrix::rows(&out[head * d..], self.dim);
            self.against(out, n, qkv, 2, head, slopes);
            rows::softmax_grad(weights, slopes, wide, self.factor());
            if tokens {
                let at = |part: usize| part * self.dim + head * d;
                self.mix(slopes, n, qkv, 1, head, (&mut grad[at(0)..], width));
                let turned = Matrix::rows(&slopes[length..], wide).t();
                product(
                    (self.tokens, n, d),
                    turned,
                    queries,
                    &mut grad[at(1)..],
                    width,
                    Start::Zero,
                    1,
                );
                let turned = Matrix::rows(&weights[length..], wide).t();
                product(
                    (self.tokens, n, d),
                    turned,
                    out,
                    &mut grad[at(2)..],
                    width,
                    Start::Zero,
                    1,
                );
            }
            if let Some((keys, values)) = &mut prefix {
                let range = head * length * d..(head + 1) * length * d;
                let turned = Matrix::rows(slopes, wide).t();
                product(
                    (length, n, d),
                    turned,
                    queries,
                    &mut keys[range.clone()],
                    d,
                    Start::Zero,
                    1,
                );
                let turned = Matrix::rows(weights, wide).t();
                product(
                    (length, n, d),
                    turned,
                    out,
                    &mut values[range],
                    d,
                    Start::Zero,
                    1,
                );
            }
        }
    }
}
