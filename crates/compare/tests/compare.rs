//! Which pairs are told apart, what is tested between the others, and how it is written.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "compare/lab.rs"]
mod lab;
#[path = "compare/pairs.rs"]
mod pairs;
#[path = "compare/reading.rs"]
mod reading;
#[path = "compare/significance.rs"]
mod significance;
#[path = "compare/writing.rs"]
mod writing;
