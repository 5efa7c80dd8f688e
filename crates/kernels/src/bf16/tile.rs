//! How second operands and results of bf16 products lie in memory: as the AMX unit has them, which suits vectors as well.

/// Rows of a tile, and bf16 pairs in one of its rows.
pub const ROWS: usize = 16;
/// bf16 values in a row of a tile.
pub const COLS: usize = 32;
/// One tile of bf16 values; as the second operand of a product, row `r` holds the pairs `(2r, 2r+1)` of 16 columns.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C, align(64))]
pub struct Tile(pub [u16; ROWS * COLS]);

/// Where a product of 32 by 32 values lands, row by row.
#[repr(C, align(64))]
pub struct Scratch(pub [f32; 1024]);

impl Scratch {
    /// All zero.
    pub const fn new() -> Self {
        Self([0.0; 1024])
    }

    /// Values `16·half ..` of row `row`.
    #[inline]
    pub fn half(&self, row: usize, half: usize) -> &[f32; 16] {
        self.from(row).half(0, half)
    }

    /// The rows from `first` on.
    #[inline]
    pub fn from(&self, first: usize) -> Rows<'_> {
        let (halves, _) = self.0.as_chunks::<16>();
        Rows(&halves[2 * first..])
    }
}

/// Rows of a [`Scratch`].
#[derive(Clone, Copy)]
pub struct Rows<'a>(&'a [[f32; 16]]);

impl<'a> Rows<'a> {
    /// Values `16·half ..` of row `row`.
    #[inline]
    pub fn half(self, row: usize, half: usize) -> &'a [f32; 16] {
        &self.0[2 * row + half]
    }
}
