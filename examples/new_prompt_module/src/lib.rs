//! A prompt method outside candlewick's crates: `steered` is the whole method, `setup` what the program and the
//! test need besides.

pub mod setup;
pub mod steered;
