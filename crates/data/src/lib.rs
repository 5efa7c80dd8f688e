//! Images for candlewick: decoding as Pillow does it, preprocessing as torchvision does it, folders of images,
//! a loader that works ahead in the pool's threads, and streams of classes, of domains and of data sets.
//!
//! The way of the data is [`Folder::open`] or [`demo()`] → [`Parts`] → [`class_incremental`] with a [`Loader`] →
//! [`candlewick_core::Stream`]. A data set from elsewhere implements [`Source`].
//!
//! ```
//! use candlewick_core::View;
//! use candlewick_data::{ClassIncremental, Loader, OnCorrupt, Preprocess, class_incremental, demo};
//!
//! let preprocess: Preprocess = toml::from_str(
//!     r#"
//!     resize = 32
//!     crop = 32
//!     interpolation = "bicubic"
//!     mean = [0.5, 0.5, 0.5]
//!     std = [0.5, 0.5, 0.5]
//!     "#,
//! )?;
//! let loader = Loader::new(&preprocess, 2, OnCorrupt::Stop)?;
//! let spec = ClassIncremental { increment: Some(10), ..Default::default() };
//! let stream = class_incremental(&demo()?, &spec, &loader)?;
//! assert_eq!(stream.tasks.len(), 5);
//! let first = stream.tasks[0].train.batches(View::Train { seed: 1, epoch: 0 }, 8).next();
//! let batch = first.ok_or("a batch")??;
//! assert_eq!(batch.images.dims(), [8, 3, 32, 32]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod ahead;
pub mod decode;
pub mod demo;
pub mod domain;
mod draw;
pub mod error;
pub mod folder;
pub mod listing;
pub mod loader;
pub mod multi;
pub mod order;
pub mod preset;
pub mod resize;
pub mod source;
pub mod split;
pub mod stream;
pub mod transform;

pub use decode::decode_rgb;
pub use demo::{DEMO_ATTRIBUTION, demo};
pub use domain::{Domain, domain_incremental};
pub use error::{Error, Result};
pub use folder::{Folder, entries, of_paths};
pub use image::RgbImage;
pub use listing::{Bytes, Item, Listing};
pub use loader::{ImageSplit, Loader, OnCorrupt};
pub use multi::{Several, multi_domain};
pub use order::Order;
pub use preset::{PRESETS, Preset};
pub use resize::{Interpolation, Rect};
pub use source::{MemoryImage, MemorySource, Parts, Source};
pub use split::TestSplit;
pub use stream::{ClassIncremental, class_incremental};
pub use transform::{CropOffset, Preprocess, Resize, Train, Transform};
