//! Features of images on disk. A frozen backbone need look at an image once; what it saw is kept here.
//!
//! A [`Store`] holds one row of `dim` numbers for each image, under the SHA-256 of the image's encoded bytes ([`Key`]).
//! Its [`Identity`] says what the numbers depend on besides the image. A file of another identity is refused and an image
//! that was changed has another key, so a stale feature is never found.
//!
//! # The file
//!
//! Numbers are little-endian; `‖` joins bytes.
//!
//! ```text
//! file   = header chunk*
//! header = "candlewick/feat\n" ‖ length: u64 ‖ identity: JSON of that length ‖ SHA-256 of all before
//! chunk  = head ‖ keys: rows × 32 bytes ‖ values: rows × dim × (4 bytes of f32 | 2 of f16) ‖ seal
//! head   = "chunk\0\0\n" ‖ rows: u64 ‖ SHA-256(header's SHA-256 ‖ the chunk's place in the file: u64 ‖ "chunk\0\0\n" ‖ rows)
//! seal   = SHA-256(head ‖ keys ‖ values)
//! ```
//!
//! The writer appends a chunk, syncs, then appends its seal and syncs. So a chunk counts exactly if its seal is there: what
//! a process that died left behind is a last chunk that is too short, which readers pass over and the next
//! writer cuts off. Every other difference is damage, and an error that names the chunk. A chunk is bound to its file
//! and place, so none can be missing in the middle, or come from elsewhere.
//!
//! One process writes at a time, held by a lock on the file; any number read, before, while and after.

mod error;
mod format;
mod keep;
mod merge;
mod read;
mod write;

pub use error::{Error, Result};
pub use format::{Dtype, Identity, Key, key};
pub use keep::{Glance, glance, remove};
pub use merge::merge;
pub use read::Store;
pub use write::{CHUNK, Writer};
