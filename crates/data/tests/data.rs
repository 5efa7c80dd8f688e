//! The crate from outside: against Pillow and torchvision, against stored orders and splits, on folders on disk,
//! and the loader under several threads.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "data/folders.rs"]
mod folders;
#[path = "data/loading.rs"]
mod loading;
#[path = "data/multi.rs"]
mod multi;
#[path = "data/pictures.rs"]
mod pictures;
#[path = "data/pool.rs"]
mod pool;
#[path = "data/splits.rs"]
mod splits;
#[path = "data/streams.rs"]
mod streams;

use std::path::PathBuf;

/// A file below `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}
