//! Products of f32 matrices with AVX-512.
//!
//! Columns of C are taken in panels of 64. The panel's part of B is laid out row by row, in memory that stays in the second-level
//! cache; then six rows of C at a time are summed in 24 registers over the whole of k, with A read where it lies. That a value
//! of C is one chain of fused additions, in the order of k, makes it independent of the number of rows and of threads.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::product::{Matrix, Start};
use crate::buffer::Buffer;

/// Values in a vector.
const LANES: usize = 16;
/// Vectors in a panel's row.
const VECTORS: usize = 4;
/// Columns of a panel.
const PANEL: usize = VECTORS * LANES;
/// Rows of A taken at a time by the panels that are packed together.
const BLOCK: usize = 96;
/// Values of B that are packed together at most, but for one panel.
const PACKED: usize = 128 * 1024;
/// Rows of B that are asked for before they are needed.
const AHEAD: usize = 16;
/// Rows of C summed at a time.
const ROWS: usize = 6;

thread_local! {
    static PANEL_SPACE: RefCell<Buffer> = RefCell::default();
}

/// Whether this processor has the instructions.
pub fn available() -> bool {
    is_x86_feature_detected!("avx512f")
}

/// Where C begins, for the threads that write its panels.
#[derive(Clone, Copy)]
struct Target(*mut f32);

// SAFETY: each thread writes other columns, see `product`.
unsafe impl Sync for Target {}

impl Target {
    /// A method, so that closures hold the whole of it.
    fn at(self, column: usize) -> *mut f32 {
        self.0.wrapping_add(column)
    }
}

/// As [`super::product::product`], on processors where this is [`available`].
///
/// # Safety
///
/// The processor has AVX-512F; `a`, `b` and `c` hold all values of matrices of these sizes, the rows of `c` being `width ≥ n`
/// apart, and a bias has `n` values.
pub unsafe fn product(
    (m, k, n): (usize, usize, usize),
    a: Matrix<'_>,
    b: Matrix<'_>,
    c: &mut [f32],
    width: usize,
    start: Start<'_>,
    threads: usize,
) {
    let c = Target(c.as_mut_ptr());
    // Panels that are packed together, so that a block of A is read from near the core for each of them but the first.
    let beside = (PACKED / (k * PANEL)).clamp(1, 4);
    let several = |set: usize| {
        PANEL_SPACE.with_borrow_mut(|space| {
            let all = set * beside * PANEL..n.min((set + 1) * beside * PANEL);
            let space = space.get::<f32>(k * beside * PANEL);
            let mut work = [const { None }; 4];
            for ((first, packed), work) in all
                .clone()
                .step_by(PANEL)
                .zip(space.chunks_mut(k * PANEL))
                .zip(&mut work)
            {
                let columns = PANEL.min(all.end - first);
                // SAFETY: columns `first..first + columns` of B exist; `packed` has room for `k` rows of whole vectors.
                unsafe { pack(b, k, first, columns, packed) };
                *work = Some(Panel {
                    a: a.values.as_ptr(),
                    row: a.row,
                    column: a.column,
                    k,
                    packed: packed.as_ptr(),
                    c: c.at(first),
                    width,
                    columns,
                    start: match start {
                        Start::Zero => From::Zero,
                        Start::Sum => From::Sum,
                        Start::Bias(bias) => From::Bias(bias[first..].as_ptr()),
                    },
                });
            }
            for row in (0..m).step_by(BLOCK) {
                for panel in work.iter().flatten() {
                    // SAFETY: these rows exist in A and C, the panel's columns in C, and `packed` was just filled and starts on a
                    // cache line. No other panel has these columns of C, which is borrowed alone by the caller.
                    unsafe { panel.rows(row..m.min(row + BLOCK)) };
                }
            }
        });
    };
    let sets = n.div_ceil(beside * PANEL);
    if threads > 1 {
        (0..sets).into_par_iter().with_max_len(1).for_each(several);
    } else {
        (0..sets).for_each(several);
    }
}

fn mask(n: usize) -> __mmask16 {
    ((1u32 << n.min(LANES)) - 1) as __mmask16
}

#[derive(Clone, Copy)]
enum From {
    Zero,
    Sum,
    Bias(*const f32),
}

/// A panel of C to be computed.
#[derive(Clone, Copy)]
struct Panel {
    a: *const f32,
    row: usize,
    column: usize,
    k: usize,
    packed: *const f32,
    c: *mut f32,
    width: usize,
    columns: usize,
    start: From,
}

impl Panel {
    /// # Safety
    ///
    /// As for [`product`], with these rows.
    #[target_feature(enable = "avx512f")]
    unsafe fn rows(&self, rows: Range<usize>) {
        // SAFETY: the caller's rows exist in A and C.
        unsafe {
            let part = Self {
                a: self.a.wrapping_add(rows.start * self.row),
                c: self.c.wrapping_add(rows.start * self.width),
                ..*self
            };
            match self.columns.div_ceil(LANES) {
                1 => part.tiles::<1>(rows.len()),
                2 => part.tiles::<2>(rows.len()),
                3 => part.tiles::<3>(rows.len()),
                _ => part.tiles::<VECTORS>(rows.len()),
            }
        }
    }

    /// # Safety
    ///
    /// As for [`product`], with `m` rows and `V` vectors in a row of the panel.
    #[target_feature(enable = "avx512f")]
    unsafe fn tiles<const V: usize>(mut self, m: usize) {
        // SAFETY: rows up to `m` exist in A and C. One beyond the last may be beyond the slices, and is not used.
        unsafe {
            for _ in 0..m / ROWS {
                self.tile::<ROWS, V>();
                self.a = self.a.wrapping_add(ROWS * self.row);
                self.c = self.c.wrapping_add(ROWS * self.width);
            }
            match m % ROWS {
                1 => self.tile::<1, V>(),
                2 => self.tile::<2, V>(),
                3 => self.tile::<3, V>(),
                4 => self.tile::<4, V>(),
                5 => self.tile::<5, V>(),
                _ => {}
            }
        }
    }

    /// `R` rows of C.
    ///
    /// # Safety
    ///
    /// As for [`product`], with `R` rows and `V` vectors in a row of the panel.
    #[inline]
    #[target_feature(enable = "avx512f")]
    #[allow(clippy::needless_range_loop)]
    unsafe fn tile<const R: usize, const V: usize>(&self) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        let mask = |v: usize| mask(self.columns - v * LANES);
        // SAFETY: the caller's matrices hold every value that is touched: row `r < R`, step `p < k`, and the columns under the
        // mask.
        unsafe {
            match self.start {
                From::Zero => {}
                From::Sum => {
                    for r in 0..R {
                        for v in 0..V {
                            let c = self.c.wrapping_add(r * self.width + v * LANES);
                            sums[r][v] = _mm512_maskz_loadu_ps(mask(v), c);
                        }
                    }
                }
                From::Bias(bias) => {
                    for v in 0..V {
                        let bias = _mm512_maskz_loadu_ps(mask(v), bias.wrapping_add(v * LANES));
                        for r in 0..R {
                            sums[r][v] = bias;
                        }
                    }
                }
            }
            let (mut a, mut packed) = (self.a, self.packed);
            for p in 0..self.k {
                if self.column == 1 && p % LANES == 0 {
                    // The rows of the next tile: they are far apart, so the processor does not foresee them.
                    for r in 0..R {
                        _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add((R + r) * self.row).cast());
                    }
                }
                let mut b = [_mm512_setzero_ps(); V];
                for v in 0..V {
                    b[v] = _mm512_load_ps(packed.add(v * LANES));
                }
                for r in 0..R {
                    let a = _mm512_set1_ps(*a.add(r * self.row));
                    for v in 0..V {
                        sums[r][v] = _mm512_fmadd_ps(a, b[v], sums[r][v]);
                    }
                }
                a = a.wrapping_add(self.column);
                packed = packed.add(V * LANES);
            }
            for r in 0..R {
                for v in 0..V {
                    let c = self.c.wrapping_add(r * self.width + v * LANES);
                    _mm512_mask_storeu_ps(c, mask(v), sums[r][v]);
                }
            }
        }
    }
}

/// Columns `first..first + columns` of B to `packed`, row by row of whole vectors; lanes beyond the last column are zero.
///
/// # Safety
///
/// The processor has AVX-512F, B holds `k` rows and these columns, and `packed` has `k` rows of whole vectors.
#[target_feature(enable = "avx512f")]
unsafe fn pack(b: Matrix<'_>, k: usize, first: usize, columns: usize, packed: &mut [f32]) {
    let width = columns.next_multiple_of(LANES);
    let from = b.values[first * b.column..].as_ptr();
    let to = packed.as_mut_ptr();
    let vectors = || (0..columns).step_by(LANES);
    // Rows of B are far apart, so the processor does not foresee them. A prefetch may be of any address.
    // SAFETY: columns up to `columns` of B from `from` on exist in each of the `k` rows; `to` has `k` rows of whole vectors.
    unsafe {
        if b.column == 1 {
            for p in 0..k {
                for at in vectors() {
                    let from = from.wrapping_add(p * b.row + at);
                    _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(AHEAD * b.row).cast());
                    let x = _mm512_maskz_loadu_ps(mask(columns - at), from);
                    _mm512_storeu_ps(to.add(p * width + at), x);
                }
            }
        } else if b.row == 1 {
            for p in (0..k).step_by(LANES) {
                for at in vectors() {
                    let from = from.add(at * b.column + p);
                    let sizes = (LANES.min(columns - at), LANES.min(k - p));
                    turn(from, b.column, sizes, to.add(p * width + at), width);
                }
            }
        } else {
            for p in 0..k {
                for lane in 0..width {
                    *to.add(p * width + lane) = match lane < columns {
                        true => *from.add(p * b.row + lane * b.column),
                        false => 0.0,
                    };
                }
            }
        }
    }
}

/// The transpose of `rows` by `columns` values, each at most sixteen, whose rows are `distance` apart; the result's rows are whole
/// vectors `width` apart.
///
/// # Safety
///
/// The processor has AVX-512F; these values exist, and `columns` vectors at `to`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn turn(
    from: *const f32,
    distance: usize,
    (rows, columns): (usize, usize),
    to: *mut f32,
    width: usize,
) {
    let mut x = [_mm512_setzero_ps(); LANES];
    let mask = mask(columns);
    for (i, x) in x.iter_mut().enumerate().take(rows) {
        // SAFETY: row `i` exists, and columns beyond its last are masked.
        let from = from.wrapping_add(i * distance);
        *x = unsafe { _mm512_maskz_loadu_ps(mask, from) };
        _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(2 * LANES).cast());
    }
    // Pairs of rows, then fours: `fours[4 i + j]` holds columns j, 4 + j, 8 + j and 12 + j of rows 4 i to 4 i + 3.
    let mut pairs = x;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_ps(x[2 * i], x[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_ps(x[2 * i], x[2 * i + 1]);
    }
    let mut fours = pairs;
    for i in 0..4 {
        for j in 0..2 {
            let low = _mm512_castps_pd(pairs[4 * i + j]);
            let high = _mm512_castps_pd(pairs[4 * i + 2 + j]);
            fours[4 * i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            fours[4 * i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    let mut turned = x;
    for j in 0..4 {
        let even = _mm512_shuffle_f32x4::<0x88>(fours[j], fours[4 + j]);
        let odd = _mm512_shuffle_f32x4::<0xdd>(fours[j], fours[4 + j]);
        let even2 = _mm512_shuffle_f32x4::<0x88>(fours[8 + j], fours[12 + j]);
        let odd2 = _mm512_shuffle_f32x4::<0xdd>(fours[8 + j], fours[12 + j]);
        turned[j] = _mm512_shuffle_f32x4::<0x88>(even, even2);
        turned[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd, odd2);
        turned[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even, even2);
        turned[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd, odd2);
    }
    for (j, &x) in turned.iter().enumerate().take(columns) {
        // SAFETY: there are `columns` vectors at `to`.
        unsafe { _mm512_storeu_ps(to.wrapping_add(j * width), x) };
    }
}
