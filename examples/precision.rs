//! What bf16 changes: features of all test images, and gradients of prompts, in f32 and bf16.
//!
//! `cargo run --release -p candlewick-examples --example precision -- MODEL DATA CROP OUT.safetensors`
//!
//! MODEL is a card, a Hub id or a folder, DATA a folder with `train/` and `test/`, CROP the side of the images. OUT gets four
//! images with prompts and both gradients, for `precision_torch.py` to compare with float64.

use std::collections::HashMap;
use std::error::Error;

use candle_core::{DType, Device, Tensor, Var};
use candlewick_core::{Backbone, Cue, Injection, Prompt, Site, Stream, Tokens, View};
use candlewick_core::{Position, Span};
use candlewick_data::{Folder, Preprocess};
use candlewick_examples::tasks;
use candlewick_models::{HubConfig, Options, Weights as Found};
use candlewick_vit::{Precision, Vit, Weights};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The shape of L2P as published: five prompts of five tokens, on four images.
const TOKENS: usize = 25;
const IMAGES: usize = 4;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, data, crop, out] = args.as_slice() else {
        return Err("expected MODEL DATA CROP OUT.safetensors".into());
    };
    let (backbones, preprocess) = load(model, crop.parse()?)?;
    let parts = Folder {
        path: data.into(),
        split: None,
        expected_images: None,
    }
    .open()?;
    let stream = tasks(&parts, parts.test.classes().len(), &preprocess)?;
    compare_features(&backbones, &stream)?;

    let batch = first_images(&stream)?;
    let (tokens, dim) = (TOKENS, backbones[0].spec().dim);
    let prompts = noise(IMAGES * tokens * dim, (IMAGES, tokens, dim))?;
    let cotangent = noise(IMAGES * dim, (IMAGES, dim))?;
    let mut file = HashMap::from([
        ("images".to_owned(), batch.clone()),
        ("prompts".to_owned(), prompts.clone()),
        ("cotangent".to_owned(), cotangent.clone()),
    ]);
    for vit in &backbones {
        let var = Var::from_tensor(&prompts)?;
        let features = vit.forward(&batch, &Free(var.as_tensor().clone()), &Cue::default())?;
        let loss = (features.prompt_mean()? * &cotangent)?.sum_all()?;
        let grads = loss.backward()?;
        let grad = grads.get(&var).ok_or("no gradient reached the prompts")?;
        file.insert(format!("grad_{}", vit.precision().name()), grad.clone());
    }
    candle_core::safetensors::save(&file, out)?;
    println!("prompt gradients are in {out}");
    Ok(())
}

/// The model in f32 and in bf16.
fn load(model: &str, crop: usize) -> Result<([Vit; 2], Preprocess)> {
    let located = candlewick_models::resolve(model, &Options::new(HubConfig::from_env()?))?;
    let weights = match &located.weights {
        Found::Embedded(bytes) => Weights::embedded(model, bytes)?,
        Found::Path(path) => Weights::open(path)?,
    };
    let load = |precision| -> Result<Vit> {
        let options = candlewick_vit::Options {
            heads: located.card.heads,
            eps: Some(located.card.eps),
            image_size: Some(crop),
            precision,
            ..Default::default()
        };
        Ok(Vit::load(&weights, &options, &Device::Cpu)?)
    };
    let card = located.card.preprocess;
    let card = card.ok_or("nothing beside the weights says how images are prepared")?;
    let mut table: toml::Table = toml::to_string(&card)?.parse()?;
    table.insert("crop".into(), toml::Value::Integer(crop.try_into()?));
    let preprocess = toml::from_str(&table.to_string())?;
    let backbones = [load(Precision::F32)?, load(Precision::Bf16)?];
    Ok((backbones, preprocess))
}

fn compare_features([full, half]: &[Vit; 2], stream: &Stream) -> Result<()> {
    // In f64: what is looked for is in the last digits of f32.
    let mut cosines: Vec<f64> = Vec::new();
    let query = |vit: &Vit, images: &Tensor| -> Result<Tensor> {
        Ok(vit.query(images)?.to_dtype(DType::F64)?)
    };
    for task in &stream.tasks {
        for batch in task.test.batches(View::Plain, 32) {
            let images = batch?.images;
            let (a, b) = (query(full, &images)?, query(half, &images)?);
            let dot = |x: &Tensor, y: &Tensor| (x * y)?.sum(1);
            let cos = (dot(&a, &b)? / (dot(&a, &a)? * dot(&b, &b)?)?.sqrt()?)?;
            cosines.extend(cos.to_vec1::<f64>()?);
        }
    }
    let min = cosines.iter().copied().fold(1.0, f64::min);
    let mean = cosines.iter().sum::<f64>() / cosines.len() as f64;
    let n = cosines.len();
    println!("cosine of f32 and bf16 features over {n} test images: min {min:.6}, mean {mean:.6}");
    Ok(())
}

fn first_images(stream: &Stream) -> Result<Tensor> {
    let mut batches = stream.tasks[0].test.batches(View::Plain, IMAGES);
    Ok(batches.next().ok_or("there are no test images")??.images)
}

/// Numbers between −1 and 1, as L2P's prompts start.
fn noise(n: usize, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64 ^ n as u64;
    let values: Vec<f32> = (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    Ok(Tensor::from_vec(values, shape, &Device::Cpu)?)
}

/// Tokens at the input that carry the position of CLS, as L2P's.
struct Free(Tensor);

impl Prompt for Free {
    fn inject(&self, site: Site, _: &Tensor, _: &Cue) -> candlewick_core::Result<Injection> {
        let tokens = (site == Site::Embed).then(|| Tokens {
            values: self.0.clone(),
            span: Span::ToTheEnd,
            position: Position::Cls,
        });
        Ok(Injection {
            tokens,
            ..Injection::default()
        })
    }
}
