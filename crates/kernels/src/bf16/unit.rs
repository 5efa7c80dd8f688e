//! What multiplies bf16 values: the tile unit of AMX where there is one, else the vectors of AVX-512.

use std::ops::Range;
use std::sync::OnceLock;

use super::amx::Tiles;
use super::soon::Soon;
use super::tile::{ROWS, Tile};
use super::vectors;

/// Whether this processor multiplies bf16 values at all, and has the vectors that all else here is done with.
pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
    })
}

/// A way to multiply, set up on this thread.
pub enum Unit {
    /// AMX.
    Tiles(Tiles),
    /// AVX-512 BF16.
    Vectors,
}

impl Unit {
    /// The fastest that there is; `None` where nothing is [`available`].
    pub fn new() -> Option<Self> {
        available().then(|| Tiles::new().map_or(Self::Vectors, Self::Tiles))
    }

    /// Rows that take as long as one of them.
    pub fn rows_together(&self) -> usize {
        match self {
            Self::Tiles(_) => ROWS,
            Self::Vectors => 1,
        }
    }

    /// `C = A B` for `rows ≤ 32` rows of `A`, each `stride` values behind the last, and `2·steps` tiles `B`: for each step of 32
    /// values, the tile of the columns 0..16 and that of 16..32. The rows of `C` are `row` values apart. Rows of `A` up to the next
    /// multiple of 16 must exist, and such rows of `C` may be written. In the course of it this asks for what is wanted `soon` and calls
    /// `between` with parts of the rows 0..32, each once: tiles with a few rows behind every step, for what is done to these rows
    /// takes vectors, which are idle then; vectors with all of them at the end.
    #[allow(clippy::too_many_arguments)]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn multiply(
        &self,
        rows: usize,
        a: &[u16],
        stride: usize,
        b: &[Tile],
        c: &mut [f32],
        row: usize,
        soon: &Soon<'_>,
        mut between: impl FnMut(Range<usize>),
    ) {
        match self {
            Self::Tiles(tiles) => {
                let steps = b.len() / 2;
                let share = soon.part(0, 1, steps);
                tiles.multiply(rows <= ROWS, a, stride, b, c, row, |step| {
                    share.ask(step);
                    between(step * 2 * ROWS / steps..(step + 1) * 2 * ROWS / steps);
                });
            }
            Self::Vectors => {
                vectors::multiply(rows, a, stride, b, c, row, soon);
                between(0..2 * ROWS);
            }
        }
    }

    /// `rounds` times a few products without a load, to find the limit. Gives the floating-point operations done.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
    pub fn busy(&self, rounds: usize) -> u64 {
        match self {
            Self::Tiles(tiles) => tiles.busy(rounds),
            Self::Vectors => vectors::busy(rounds),
        }
    }
}
