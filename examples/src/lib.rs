//! What the examples share: the backbone and the data inside candlewick.

use std::error::Error;
use std::sync::Arc;

use candle_core::Device;
use candlewick_core::Stream;
use candlewick_data::{ClassIncremental, Loader, OnCorrupt, Order, Parts, Preprocess};
use candlewick_models::{HubConfig, Options, Weights as Found};
use candlewick_vit::{Vit, Weights};

/// The embedded `vit-micro` with its preprocessing.
pub fn vit_micro() -> Result<(Arc<Vit>, Preprocess), Box<dyn Error>> {
    let located = candlewick_models::resolve("vit-micro", &Options::new(HubConfig::from_env()?))?;
    let weights = match &located.weights {
        Found::Embedded(bytes) => Weights::embedded("vit-micro", bytes)?,
        Found::Path(path) => Weights::open(path)?,
    };
    let options = candlewick_vit::Options {
        heads: located.card.heads,
        ..Default::default()
    };
    let vit = Vit::load(&weights, &options, &Device::Cpu)?;
    let card = located
        .card
        .preprocess
        .ok_or("the card says how images are prepared")?;
    let preprocess: Preprocess = toml::from_str(&toml::to_string(&card)?)?;
    Ok((Arc::new(vit), preprocess))
}

/// `parts` as tasks of `increment` classes in an order of numpy's.
pub fn tasks(
    parts: &Parts,
    increment: usize,
    preprocess: &Preprocess,
) -> Result<Stream, Box<dyn Error>> {
    let loader = Loader::new(preprocess, 2, OnCorrupt::Stop)?;
    let spec = ClassIncremental {
        increment: Some(increment),
        order: Order::Numpy(1993),
        ..Default::default()
    };
    Ok(candlewick_data::class_incremental(parts, &spec, &loader)?)
}
