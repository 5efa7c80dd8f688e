//! Products of f32 matrices, by the `gemm` crate.
#![allow(unsafe_code)]

use gemm::{Parallelism, gemm};

/// Part of a slice seen as a matrix: the value of row `i` and column `j` is at `i·row + j·column`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    pub values: &'a [f32],
    pub row: usize,
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

/// `C = A B`, or `C + A B` if `add`, for `A: (m, k)`, `B: (k, n)` and rows of `C` that are `width` apart. With `threads` above 1 the
/// work is shared.
#[allow(clippy::too_many_arguments)]
pub fn product(
    (m, k, n): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    width: usize,
    add: bool,
    threads: usize,
) {
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(a.holds(m, k) && b.holds(k, n) && (m - 1) * width + n <= c.len() && n <= width);
    let parallelism = match threads {
        0 | 1 => Parallelism::None,
        n => Parallelism::Rayon(n),
    };
    // SAFETY: every value of the three matrices is inside its slice, as asserted; `c` is borrowed alone, and its elements are
    // distinct since a row is no longer than the distance between rows.
    unsafe {
        gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            width as isize,
            add,
            a.values.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.values.as_ptr(),
            b.column as isize,
            b.row as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}
