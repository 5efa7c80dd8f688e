//! Backbones of candlewick and all their numerics.
//!
//! [`Weights`] opens a file, [`Vit::load`] recognises its layout and builds the network, which
//! serves every prompt through [`candlewick_core::Backbone`].

mod block;
mod checkpoint;
pub mod error;
mod frozen;
pub mod layers;
pub mod layout;
mod linear;
mod ops;
mod position;
mod thaw;
pub mod vit;
pub mod weights;

pub use error::Error;
pub use layout::Layout;
pub use vit::{Options, Precision, Vit};
pub use weights::Weights;
