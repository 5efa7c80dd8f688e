//! Readers, cards and fetching from outside: the same images from every kind of source, sources that are damaged or hostile, and
//! a Hub on loopback.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "sets/broken.rs"]
mod broken;
#[path = "sets/fetching.rs"]
mod fetching;
#[path = "sets/pack.rs"]
mod pack;
#[path = "sets/raw.rs"]
mod raw;
#[path = "sets/same.rs"]
mod same;
#[path = "sets/server.rs"]
mod server;

use std::fs;
use std::path::{Path, PathBuf};

/// A file below `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// The pictures of the fixtures, as `train/CLASS/FILE` and `test/CLASS/FILE`.
fn pictures() -> Vec<(String, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/emoji-r-mini");
    let mut pictures = Vec::new();
    for (part, count) in [("train", 4), ("test", 2)] {
        for class in ["bicycle", "cat", "goat", "star"] {
            let folder = root.join(part).join(class);
            let mut files: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .collect();
            files.sort();
            for file in files.into_iter().take(count) {
                let name = file.file_name().unwrap().to_str().unwrap();
                pictures.push((format!("{part}/{class}/{name}"), fs::read(&file).unwrap()));
            }
        }
    }
    pictures
}
