//! bf16 products on AVX-512 vectors, for processors without tiles: one instruction multiplies sixteen pairs and adds both products to
//! sixteen sums.
//!
//! A sum is one chain over the inputs in their order, so it does not depend on the rows beside it.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::lanes;
use super::soon::{Share, Soon};
use super::tile::{COLS, ROWS, Tile};

/// Rows of `A` at a time: with two vectors of sums each they fill the registers, and every vector of `B` is read once for all of them.
const MOST: usize = 11;
/// Values of `B` between one that is used and one that is asked for: two steps.
const AHEAD: usize = 2 * 2 * ROWS * COLS;
/// Sums that hide the latency of an instruction.
const CHAINS: usize = 16;

/// `C = A B` for `rows ≤ 32` rows of `A`, each `stride` values behind the last; see [`super::unit::Unit::multiply`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn multiply(
    rows: usize,
    a: &[u16],
    stride: usize,
    b: &[Tile],
    c: &mut [f32],
    row: usize,
    soon: &Soon<'_>,
) {
    let steps = b.len() / 2;
    assert!(rows > 0 && steps > 0 && a.len() >= (rows - 1) * stride + steps * 2 * ROWS);
    assert!(row >= 32 && c.len() >= (rows - 1) * row + 32);
    // Even parts: three of eleven, eleven and ten rows rather than two of eleven with a rest.
    let parts = rows.div_ceil(MOST);
    for part in 0..parts {
        let (first, end) = (part * rows / parts, (part + 1) * rows / parts);
        let a = a[first * stride..].as_ptr();
        let c = c[first * row..].as_mut_ptr();
        let soon = soon.part(part, parts, steps);
        // SAFETY: rows `first..end` of `a` and `c` exist, as asserted for the last of them.
        unsafe {
            match end - first {
                1 => part_of::<1>(a, stride, b, c, row, soon),
                2 => part_of::<2>(a, stride, b, c, row, soon),
                3 => part_of::<3>(a, stride, b, c, row, soon),
                4 => part_of::<4>(a, stride, b, c, row, soon),
                5 => part_of::<5>(a, stride, b, c, row, soon),
                6 => part_of::<6>(a, stride, b, c, row, soon),
                7 => part_of::<7>(a, stride, b, c, row, soon),
                8 => part_of::<8>(a, stride, b, c, row, soon),
                9 => part_of::<9>(a, stride, b, c, row, soon),
                10 => part_of::<10>(a, stride, b, c, row, soon),
                _ => part_of::<MOST>(a, stride, b, c, row, soon),
            }
        }
    }
}

/// `R` rows.
///
/// # Safety
///
/// `a` has `R` rows of `16 b.len()` values, `stride` apart, and `c` as many of 32, `row` apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn part_of<const R: usize>(
    a: *const u16,
    stride: usize,
    b: &[Tile],
    c: *mut f32,
    row: usize,
    soon: Share<'_>,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; R];
    let (steps, _) = b.as_chunks::<2>();
    for (step, [low, high]) in steps.iter().enumerate() {
        soon.ask(step);
        let (low, _) = low.0.as_chunks::<32>();
        let (high, _) = high.0.as_chunks::<32>();
        for (pair, (low, high)) in low.iter().zip(high).enumerate() {
            // SAFETY: the arrays have 512 bits, and step and pair are inside a row of `a`.
            unsafe {
                let b = [load(low), load(high)];
                lanes::ask_near(low.as_ptr().wrapping_add(AHEAD).cast());
                lanes::ask_near(high.as_ptr().wrapping_add(AHEAD).cast());
                for (r, sums) in sums.iter_mut().enumerate() {
                    let a = a.add(r * stride + (step * ROWS + pair) * 2);
                    let a = _mm512_set1_epi32(a.cast::<i32>().read_unaligned());
                    let a = std::mem::transmute::<__m512i, __m512bh>(a);
                    sums[0] = _mm512_dpbf16_ps(sums[0], a, b[0]);
                    sums[1] = _mm512_dpbf16_ps(sums[1], a, b[1]);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        // SAFETY: row `r` of `c` has 32 values.
        unsafe {
            _mm512_storeu_ps(c.add(r * row), sums[0]);
            _mm512_storeu_ps(c.add(r * row + ROWS), sums[1]);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn load(x: &[u16; 32]) -> __m512bh {
    // SAFETY: the array has 512 bits, and both types are nothing but bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(_mm512_loadu_si512(x.as_ptr().cast())) }
}

/// `rounds` of products of what is in the registers: the most that the instruction can do. Gives the floating-point operations.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub fn busy(rounds: usize) -> u64 {
    let ones = std::hint::black_box(load(&[0x3f80; 32]));
    let mut sums = [_mm512_setzero_ps(); CHAINS];
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, ones, ones);
        }
    }
    std::hint::black_box(sums);
    (rounds * CHAINS * 2 * 2 * ROWS) as u64
}

#[cfg(test)]
mod tests {
    use super::super::amx::Tiles;
    use super::super::unit::{Unit, available};
    use super::*;
    use crate::noise::noise;

    /// Every unit that there is, for every number of rows, against sums in f64.
    #[test]
    fn units_give_the_sums() {
        if !available() {
            return println!("left out: no bf16 products");
        }
        let units = [Tiles::new().map(Unit::Tiles), Some(Unit::Vectors)];
        let value = |x: u16| f64::from(f32::from_bits(u32::from(x) << 16));
        for steps in [1, 3] {
            let (inputs, stride, width) = (steps * COLS, steps * COLS + 8, 40);
            let rounded = |n, seed| noise(n, seed).into_iter().map(lanes::round).collect();
            let a: Vec<u16> = rounded(32 * stride, 1);
            let mut b = vec![Tile([0; ROWS * COLS]); 2 * steps];
            for (i, tile) in b.iter_mut().enumerate() {
                let values: Vec<u16> = rounded(ROWS * COLS, 2 + i as u64);
                tile.0.copy_from_slice(&values);
            }
            // The tile of step and half of the columns; rows of it are pairs of inputs.
            let weight = |input: usize, column: usize| {
                let tile = &b[input / COLS * 2 + column / ROWS];
                value(tile.0[input % COLS / 2 * COLS + column % ROWS * 2 + input % 2])
            };
            for unit in units.iter().flatten() {
                for rows in 1..=2 * ROWS {
                    let mut c = vec![-1f32; 2 * ROWS * width];
                    let mut parts = vec![];
                    // SAFETY: `available` found what the function is compiled for.
                    unsafe {
                        unit.multiply(
                            rows,
                            &a,
                            stride,
                            &b,
                            &mut c,
                            width,
                            &Soon::NOTHING,
                            |part| parts.extend(part),
                        );
                    }
                    assert!(parts.into_iter().eq(0..2 * ROWS));
                    for row in 0..rows {
                        for column in 0..2 * ROWS {
                            let term = |i: usize| value(a[row * stride + i]) * weight(i, column);
                            let want: f64 = (0..inputs).map(term).sum();
                            let got = f64::from(c[row * width + column]);
                            assert!((got - want).abs() < 1e-4, "{row} {column}: {got} {want}");
                        }
                        assert!(c[row * width + 2 * ROWS..][..8].iter().all(|&x| x == -1.0));
                    }
                    let whole = rows.next_multiple_of(ROWS) * width;
                    assert!(c[whole..].iter().all(|&x| x == -1.0), "{rows} rows");
                }
            }
        }
    }
}
