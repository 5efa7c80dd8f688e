//! The embedded backbone and data, cut to size.

use std::error::Error;
use std::sync::Arc;

use candle_core::Device;
use candlewick_core::{Stream, Train};
use candlewick_data::{ClassIncremental, Loader, OnCorrupt, Preprocess};
use candlewick_models::{HubConfig, Options, Weights as Found};
use candlewick_vit::{Vit, Weights};

/// The first `depth` blocks of the embedded `vit-micro`, and how its images are prepared.
pub fn backbone(depth: usize) -> Result<(Arc<Vit>, Preprocess), Box<dyn Error>> {
    let located = candlewick_models::resolve("vit-micro", &Options::new(HubConfig::from_env()?))?;
    let weights = match &located.weights {
        Found::Embedded(bytes) => Weights::embedded("vit-micro", bytes)?,
        Found::Path(path) => Weights::open(path)?,
    };
    let options = candlewick_vit::Options {
        heads: located.card.heads,
        depth: Some(depth),
        ..Default::default()
    };
    let vit = Vit::load(&weights, &options, &Device::Cpu)?;
    let card = located
        .card
        .preprocess
        .ok_or("the card lacks [preprocess]")?;
    let preprocess = toml::from_str(&toml::to_string(&card)?)?;
    Ok((Arc::new(vit), preprocess))
}

/// The first tasks of the embedded images, of as many classes each as `sizes` says; fewer than 50 in all.
pub fn stream(sizes: &[usize], preprocess: &Preprocess) -> Result<Stream, Box<dyn Error>> {
    let loader = Loader::new(preprocess, 2, OnCorrupt::Stop)?;
    let parts = candlewick_data::demo()?;
    let kept: usize = sizes.iter().sum();
    let mut sizes = sizes.to_vec();
    let tasks = sizes.len();
    sizes.push(parts.train.classes().len().saturating_sub(kept));
    let spec = ClassIncremental {
        sizes: Some(sizes),
        ..Default::default()
    };
    let mut stream = candlewick_data::class_incremental(&parts, &spec, &loader)?;
    stream.tasks.truncate(tasks);
    stream.class_names.truncate(kept);
    Ok(stream)
}

/// A `[train]` table, as in a recipe.
pub fn train(epochs: usize) -> Result<Train, Box<dyn Error>> {
    let table = "batch = 16\noptimizer = \"adam\"\nlr = 0.003\nclip = 1.0";
    Ok(toml::from_str(&format!("epochs = {epochs}\n{table}"))?)
}
