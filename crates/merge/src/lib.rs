//! One model of several with the same parameters.
//!
//! A [`Rule`] merges values; [`files`] merges safetensors files a piece at a time, so that models of any size need no memory
//! to speak of. There is no network and no tensor library in this crate: a method merges what it holds with
//! [`Rule::merge`].

mod error;
mod files;
mod rule;

pub use error::{Error, Result};
pub use files::{Merged, Sources, files};
pub use rule::{Rule, ema};
