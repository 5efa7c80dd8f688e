//! Cards of pretrained vision models, the small embedded one, and the way to their files.
//!
//! A [`Card`] is a TOML file in `cards/`: where a checkpoint lies, how its tensors are named, the facts the
//! tensors do not tell (heads, layer-norm epsilon) and the preprocessing it was trained with. [`list`] gives
//! all cards; [`resolve`] turns a card's name, a path or a Hub id into a [`Located`] file whose SHA-256 is known.
//!
//! ```
//! use candlewick_models::{HubConfig, Options, Weights, resolve};
//!
//! // The embedded model needs neither network nor cache.
//! let hub = HubConfig::at(std::env::temp_dir());
//! let located = resolve("vit-micro", &Options::new(hub))?;
//! assert_eq!(located.card.heads, Some(4));
//! assert!(matches!(located.weights, Weights::Embedded(_)));
//! # Ok::<(), candlewick_models::Error>(())
//! ```
#![doc = include_str!("../README.md")]

mod card;
mod config;
mod error;
mod format;
mod resolve;

pub use candlewick_hub::{self as hub, DEFAULT_ENDPOINT, HubConfig, Progress};
pub use card::{Activation, Card, Interpolation, Layout, Preprocess, Resize, Text, find, list};
pub use error::{Error, Result};
pub use resolve::{Located, Options, Origin, TextFiles, Weights, resolve, resolve_card};
