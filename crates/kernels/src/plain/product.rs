//! Products of f32 matrices: our own with AVX-512, else by the `gemm` crate.
#![allow(unsafe_code)]

use gemm::{Parallelism, gemm};

/// Part of a slice seen as a matrix: the value of row `i` and column `j` is at `i·row + j·column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    /// From the first on.
    pub values: &'a [f32],
    /// From a value to the one below.
    pub row: usize,
    /// From a value to the one beside.
    pub column: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` values, the first column at the start of the slice.
    pub fn rows(values: &'a [f32], width: usize) -> Self {
        Self {
            values,
            row: width,
            column: 1,
        }
    }

    /// The transpose.
    pub fn t(self) -> Self {
        Self {
            row: self.column,
            column: self.row,
            ..self
        }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row + (columns - 1) * self.column < self.values.len()
    }
}

/// What the sums of a product start from.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    /// 0.
    Zero,
    /// What is in C.
    Sum,
    /// A value for each column.
    Bias(&'a [f32]),
}

/// `C = A B`, added to what `start` says; a row is the same to the last bit whatever the number of rows. For `A: (m, k)`, `B: (k, n)` and rows of `C` that are `width` apart. With `threads` above 1
/// the work is shared.
pub fn product(
    (m, k, n): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    width: usize,
    start: Start<'_>,
    threads: usize,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n) && (m - 1) * width + n <= c.len() && n <= width);
    if let Start::Bias(bias) = start {
        assert_eq!(bias.len(), n);
    }
    #[cfg(target_arch = "x86_64")]
    if super::wide::available() {
        // SAFETY: the processor has the instructions, and the sizes were just checked.
        unsafe { super::wide::product((m, k, n), a, b, c, width, start, threads) };
        return;
    }
    if let Start::Bias(bias) = start {
        for row in c.chunks_mut(width).take(m) {
            row[..n].copy_from_slice(bias);
        }
    }
    portable(
        (m, k, n),
        a,
        b,
        c,
        width,
        !matches!(start, Start::Zero),
        threads,
    );
}

/// The same by the `gemm` crate, for sizes that were checked. It adds up single rows, and products of at most 256 values, in another
/// order, so rows are added to such: a row's values shall not depend on how many there are.
fn portable(
    (m, k, n): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    width: usize,
    add: bool,
    threads: usize,
) {
    let least = (256 / n + 1).max(3);
    if m >= least {
        return by_gemm((m, k, n), a, b, c, width, add, threads);
    }
    let mut rows = vec![0f32; least * k];
    for (i, row) in rows.chunks_mut(k).enumerate() {
        for (j, x) in row.iter_mut().enumerate() {
            *x = a.values[i.min(m - 1) * a.row + j * a.column];
        }
    }
    let mut sums = vec![0f32; least * n];
    for (sums, c) in sums.chunks_mut(n).zip(c.chunks(width)).take(m) {
        sums.copy_from_slice(&c[..n]);
    }
    by_gemm(
        (least, k, n),
        Matrix::rows(&rows, k),
        b,
        &mut sums,
        n,
        add,
        threads,
    );
    for (sums, c) in sums.chunks(n).zip(c.chunks_mut(width)).take(m) {
        c[..n].copy_from_slice(sums);
    }
}

fn by_gemm(
    (m, k, n): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    width: usize,
    add: bool,
    threads: usize,
) {
    let parallelism = match threads {
        0 | 1 => Parallelism::None,
        n => Parallelism::Rayon(n),
    };
    // Sums longer than this are cut by `gemm` itself, at places that depend on the number of rows.
    const DEPTH: usize = 512;
    let parts = (0..k).step_by(DEPTH);
    // SAFETY: every value of the three matrices is inside its slice, as the caller asserted; `c` is borrowed alone, and its
    // elements are distinct since a row is no longer than the distance between rows.
    parts.for_each(|p| unsafe {
        gemm(
            m,
            n,
            DEPTH.min(k - p),
            c.as_mut_ptr(),
            1,
            width as isize,
            add || p > 0,
            a.values[p * a.column..].as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values[p * b.row..].as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::noise;

    type Product = fn((usize, usize, usize), Matrix<'_>, Matrix<'_>, &mut [f32], usize, Start<'_>);

    /// Both ways over sizes around those of tiles, vectors and panels, for every layout, against sums in f64. What lies between
    /// the rows of C stays as it was.
    #[test]
    fn both_ways_are_the_sums() {
        let mut ways: Vec<Product> = vec![|sizes, a, b, c, width, start| match start {
            Start::Bias(_) => product(sizes, a, b, c, width, start, 2),
            _ => portable(sizes, a, b, c, width, matches!(start, Start::Sum), 1),
        }];
        ways.push(|sizes, a, b, c, width, start| product(sizes, a, b, c, width, start, 1));
        ways.push(|sizes, a, b, c, width, start| product(sizes, a, b, c, width, start, 2));
        for (i, m) in [1, 5, 6, 7, 13, 100].into_iter().enumerate() {
            for (j, n) in [1, 15, 16, 17, 63, 64, 65, 100, 128, 197]
                .into_iter()
                .enumerate()
            {
                for (l, k) in [1, 3, 16, 17, 40].into_iter().enumerate() {
                    let width = n + (i + j + l) % 3;
                    let (a, b) = (noise(m * k, 1), noise(k * n * 2, 2));
                    let (before, bias) = (noise(m * width, 3), noise(n, 4));
                    let layouts_a = [Matrix::rows(&a, k), Matrix::rows(&a, m).t()];
                    let apart = Matrix {
                        values: &b,
                        row: 2 * n,
                        column: 2,
                    };
                    for a in layouts_a {
                        for b in [Matrix::rows(&b, n), Matrix::rows(&b, k).t(), apart] {
                            for start in [Start::Zero, Start::Sum, Start::Bias(&bias)] {
                                for way in &ways {
                                    let mut c = before.clone();
                                    way((m, k, n), a, b, &mut c, width, start);
                                    check((m, k, n), a, b, (&before, &c, width), start);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn check(
        (m, k, n): (usize, usize, usize),
        a: Matrix<'_>,
        b: Matrix<'_>,
        (before, c, width): (&[f32], &[f32], usize),
        start: Start<'_>,
    ) {
        let at = |x: Matrix<'_>, i, j| f64::from(x.values[i * x.row + j * x.column]);
        for (i, (before, c)) in before
            .chunks(width)
            .zip(c.chunks(width))
            .enumerate()
            .take(m)
        {
            for j in 0..n {
                let sum: f64 = (0..k).map(|p| at(a, i, p) * at(b, p, j)).sum();
                let from = match start {
                    Start::Zero => 0.0,
                    Start::Sum => before[j],
                    Start::Bias(bias) => bias[j],
                };
                let want = sum + f64::from(from);
                assert!(
                    (f64::from(c[j]) - want).abs() < 1e-5,
                    "({i}, {j}) of {m} {k} {n}"
                );
            }
            assert_eq!(c[n..], before[n..]);
        }
    }

    /// A row's values do not depend on the rows beside it, nor on threads.
    #[test]
    fn a_row_is_the_same_alone() {
        let whole: Product =
            |sizes, a, b, c, width, start| product(sizes, a, b, c, width, start, 2);
        let gemm: Product = |sizes, a, b, c, width, _| portable(sizes, a, b, c, width, false, 1);
        for way in [whole, gemm] {
            for (m, k, n) in [(13, 300, 197), (5, 64, 64), (24, 128, 10), (400, 3072, 65)] {
                let (a, b) = (noise(m * k, 1), noise(k * n, 2));
                let w = Matrix::rows(&b, k).t();
                let mut together = vec![0f32; m * n];
                way(
                    (m, k, n),
                    Matrix::rows(&a, k),
                    w,
                    &mut together,
                    n,
                    Start::Zero,
                );
                for (a, together) in a.chunks(k).zip(together.chunks(n)) {
                    let mut alone = vec![0f32; n];
                    way((1, k, n), Matrix::rows(a, k), w, &mut alone, n, Start::Zero);
                    assert_eq!(alone, together, "{m} {k} {n}");
                }
            }
        }
    }
}
