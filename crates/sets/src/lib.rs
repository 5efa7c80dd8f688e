//! Data sets by name, and readers of what they come in.
//!
//! A [`Card`] is a TOML file in `cards/`: what a data set is, who divides it how, and where it can be had. [`fetch()`] brings the
//! files of one of its sources into a folder, [`check()`] says what is there and whether it is whole, and [`open_card`] makes the
//! training and the test part of it. [`open_path`] does so for any folder, archive or table:
//!
//! | what | how it is read |
//! |---|---|
//! | folders of images | as [`candlewick_data::Folder`] does |
//! | tar | its headers once, then each image where it lies |
//! | tar.gz, tgz | once from start to end, then from the nearest of a thousand notes of the decompressor's state |
//! | zip, stored or deflated | its directory once, then each image |
//! | parquet, as the Hub serves it | all columns once for names, labels and lengths, then the page of each image |
//! | CIFAR-10 and CIFAR-100, binary version | labels once, then each record |
//! | IDX, gzipped or not | labels once, then each image |
//!
//! Nothing is unpacked to disk. The same images under the same names give the same [`Parts`](candlewick_data::Parts), with the same fingerprints,
//! from each of them.
//!
//! ```
//! let card = candlewick_sets::find("imagenet-r").ok_or("a card")?;
//! assert_eq!(card.classes, Some(200));
//! assert!(candlewick_sets::open_card(card, "nowhere".as_ref(), None, true).is_err());
//! # Ok::<(), &str>(())
//! ```
#![doc = include_str!("../README.md")]

pub mod card;
mod check;
mod error;
mod fetch;
mod open;
mod read;
mod tree;

pub use card::{Card, find, list, nearest};
pub use check::{Findings, check};
pub use error::{Error, Result};
pub use fetch::{Fetched, default_folder, fetch};
pub use open::{open_card, open_path};
pub use read::{Layout, Reading};
pub use tree::MAX_IMAGE_BYTES;
