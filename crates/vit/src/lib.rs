//! Backbones of candlewick and all their numerics.
//!
//! [`Weights`] opens a file, [`Vit::load`] recognises its layout and builds the network, which
//! serves every prompt through [`candlewick_core::Backbone`]. [`Clip::load`] builds the text tower of the same file.

mod block;
mod checkpoint;
pub mod clip;
pub mod error;
mod frozen;
pub mod layers;
pub mod layout;
mod linear;
mod ops;
mod position;
mod text;
mod thaw;
mod tokenizer;
pub mod vit;
pub mod weights;

pub use candlewick_kernels::Activation;
pub use clip::{Clip, TextOptions};
pub use error::Error;
pub use layout::Layout;
pub use tokenizer::Tokenizer;
pub use vit::{Options, Precision, Vit};
pub use weights::Weights;
