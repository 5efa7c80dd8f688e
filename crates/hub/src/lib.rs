//! Files from the Hugging Face Hub and from plain addresses: resumed, checked, and pinned at first use.
//!
//! [`fetch`] puts a file of a model repository into the cache that Python's `huggingface_hub` uses too, [`fetch_url`] a file
//! from elsewhere beside it. [`files_of`] lists the files of a dataset repository, and [`fetch_to`] brings any file to a place
//! of one's own. A [`Record`] keeps the SHA-256 of what came first and refuses a file that differs later.
//!
//! The transfer is done with `ureq` and not with the `hf-hub` crate, because that one (0.5) gives up after five
//! seconds when another process holds its lock, appends the whole file to the half of it when a server ignores
//! `Range`, fails after a retry that succeeded, compares no hashes, and knows neither `HF_HUB_OFFLINE` nor
//! `HF_HUB_CACHE`.

mod cache;
pub mod checksum;
mod dataset;
mod error;
mod http;
mod hub;

pub use checksum::{Entry, Record};
pub use dataset::{Dataset, Place, fetch_to, files_of};
pub use error::{Error, Result};
pub use hub::{Cached, DEFAULT_ENDPOINT, HubConfig, Wanted, fetch, fetch_url};

/// Told how far a download is. Any `Fn(&str, u64, Option<u64>)` will do.
pub trait Progress {
    /// `done` of `total` bytes of `file` are here. `done` starts above zero when a download is resumed.
    fn update(&self, file: &str, done: u64, total: Option<u64>);
}

impl<F: Fn(&str, u64, Option<u64>)> Progress for F {
    fn update(&self, file: &str, done: u64, total: Option<u64>) {
        self(file, done, total);
    }
}
