//! Images as bare bytes in files of records.

use std::sync::Arc;

use candlewick_data::{Bytes, Result, RgbImage};

use crate::tree::{Tree, broken};

/// How the bytes of one image lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One byte a pixel, row by row.
    Gray { width: u32, height: u32 },
    /// All red bytes row by row, then all green, then all blue.
    Planes { width: u32, height: u32 },
}

impl Shape {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Gray { width, height } => width as usize * height as usize,
            Self::Planes { width, height } => 3 * width as usize * height as usize,
        }
    }
}

/// Images of one shape somewhere in the files of a tree.
pub(super) struct Pixels {
    pub tree: Arc<dyn Tree>,
    pub shape: Shape,
    /// The file of each image, and where in it its pixels begin.
    pub places: Vec<(usize, u64)>,
}

impl Bytes for Pixels {
    fn read(&self, at: usize) -> Result<Vec<u8>> {
        let (entry, from) = self.places[at];
        self.tree.read(entry, from, self.shape.bytes())
    }

    fn place(&self, at: usize) -> String {
        let (entry, from) = self.places[at];
        format!("byte {from} of {}", self.tree.place(entry))
    }

    fn rgb(&self, at: usize) -> Result<RgbImage> {
        let bytes = self.read(at)?;
        let (width, height, pixels): (_, _, Vec<u8>) = match self.shape {
            Shape::Gray { width, height } => {
                (width, height, bytes.iter().flat_map(|v| [*v; 3]).collect())
            }
            Shape::Planes { width, height } => {
                let plane = bytes.len() / 3;
                let pixel = |i: usize| [bytes[i], bytes[plane + i], bytes[2 * plane + i]];
                (width, height, (0..plane).flat_map(pixel).collect())
            }
        };
        RgbImage::from_raw(width, height, pixels).ok_or_else(|| {
            broken(
                self.tree.path(),
                format!("{}: too few pixels", self.place(at)),
            )
        })
    }
}
