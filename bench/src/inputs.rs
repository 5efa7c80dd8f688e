//! What a request's file holds: `images (B, 3, S, S)`, and for steps `labels (B)`, `query (B, D)` (all but
//! `l2p-full`) and every parameter as `param.NAME`.

use std::collections::HashMap;

use anyhow::{Context, Result};
use candle_core::{Device, Tensor};
use candlewick_core::{Init, Params, Spec};

use crate::prompts::Kind;

/// Tensors by name.
pub type Inputs = HashMap<String, Tensor>;

/// Stands before the names of parameters.
pub const PARAM: &str = "param.";
const CLASSES: usize = 10;

/// The tensor `name`.
pub fn take(inputs: &Inputs, name: &str) -> Result<Tensor> {
    let found = inputs.get(name);
    Ok(found
        .with_context(|| format!("the input file has no tensor `{name}`"))?
        .clone())
}

/// Names and shapes of everything a step trains.
pub fn parameters(kind: Kind, dim: usize) -> Vec<(String, Vec<usize>)> {
    let mut shapes = kind.shapes(dim);
    shapes.push(("head.bias".to_owned(), vec![CLASSES]));
    shapes.push(("head.weight".to_owned(), vec![CLASSES, dim]));
    shapes
}

/// A batch and parameters drawn from a seed, for benches and tests.
pub fn draw(kind: Kind, spec: &Spec, batch: usize, seed: u64) -> Result<Inputs> {
    let mut params = Params::seeded(seed, &Device::Cpu);
    let wide = Init::Uniform {
        low: -1.0,
        high: 1.0,
    };
    let mut inputs = Inputs::new();
    for (name, shape) in parameters(kind, spec.dim) {
        let name = format!("{PARAM}{name}");
        let value = params.create(&name, &shape, wide)?.copy()?;
        inputs.insert(name, value);
    }
    let size = spec.image_size;
    for (name, shape) in [
        ("images", vec![batch, 3, size, size]),
        ("query", vec![batch, spec.dim]),
    ] {
        let value = params.create(name, &shape, wide)?.copy()?;
        inputs.insert(name.to_owned(), value);
    }
    let labels: Vec<u32> = (0..batch).map(|i| (i % CLASSES) as u32).collect();
    let labels = Tensor::from_vec(labels, batch, &Device::Cpu)?;
    inputs.insert("labels".to_owned(), labels);
    Ok(inputs)
}
