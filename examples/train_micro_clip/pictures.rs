//! Pictures as features of the frozen image tower.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use candlewick_core::{Backbone, Split, View};
use candlewick_data::split::TestSplit;
use candlewick_data::transform::Train as Cut;
use candlewick_data::{Folder, Loader, OnCorrupt, Preprocess, Source};
use candlewick_vit::Vit;
use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use crate::{Result, TrainArgs, tower};

/// Features of all pictures, by concept.
pub struct Pictures {
    /// By name.
    pub concepts: Vec<String>,
    /// `(views, n, D)`.
    features: Tensor,
    /// By concept, the places of its pictures.
    of: Vec<Vec<u32>>,
    /// Of all values of a feature together.
    spread: f64,
}

impl Pictures {
    /// Computes the features, or reads them where that was done before.
    pub fn open(args: &TrainArgs, vit: &Vit, preprocess: &Preprocess) -> Result<Self> {
        let folder = Folder {
            path: args.folders[0].join("images"),
            split: Some(TestSplit::default()),
            expected_images: None,
        };
        let source = folder.open()?.joined();
        let mut of = vec![Vec::new(); source.classes().len()];
        for index in 0..source.len() {
            of[source.label(index)].push(index as u32);
        }
        let concepts = source.classes().to_vec();
        let path = args.folders[0].join("features.safetensors");
        // The name says of what they are, so that others are not taken for them.
        let key = format!("{}-{}", source.fingerprint(), args.views);
        let kept = path
            .exists()
            .then(|| candle_core::safetensors::load(&path, &Device::Cpu));
        let kept = kept
            .transpose()
            .map_err(|e| format!("{}: {e}; remove it", path.display()))?;
        let features = match kept.and_then(|mut kept| kept.remove(&key)) {
            Some(features) => features,
            None => {
                let mut views = Vec::new();
                for view in 0..args.views.max(1) {
                    views.push(features(vit, preprocess, source.clone(), view)?);
                }
                let features = Tensor::stack(&views, 0)?;
                tower::save(&[(key, features.clone())].into(), DType::F32, &path)?;
                features
            }
        };
        let spread = (features.sqr()?.mean_all()?.to_scalar::<f32>()?)
            .sqrt()
            .into();
        Ok(Self {
            concepts,
            features,
            of,
            spread,
        })
    }

    /// For each concept `args.pictures` features: each a mixture of two drawings, with noise.
    pub fn draw(&self, batch: &[usize], args: &TrainArgs, rng: &mut ChaCha8Rng) -> Result<Tensor> {
        let (views, n, dim) = self.features.dims3()?;
        let (mut first, mut second, mut part) = (Vec::new(), Vec::new(), Vec::new());
        for concept in batch {
            for _ in 0..args.pictures {
                let mut one = || {
                    let view = rng.random_range(0..views) * n;
                    let picture = self.of[*concept].choose(rng).copied().unwrap_or_default();
                    view as u32 + picture
                };
                first.push(one());
                second.push(one());
                part.push(rng.random_range(0f32..0.5));
            }
        }
        let rows = part.len();
        let all = self.features.flatten_to(1)?;
        let take = |ids: Vec<u32>| all.index_select(&Tensor::from_vec(ids, rows, &Device::Cpu)?, 0);
        let (first, second) = (take(first)?, take(second)?);
        let part = Tensor::from_vec(part, (rows, 1), &Device::Cpu)?;
        let mixed = (&first + (second - &first)?.broadcast_mul(&part)?)?;
        let noise: Vec<f32> = StandardNormal.sample_iter(rng).take(rows * dim).collect();
        let noise =
            (Tensor::from_vec(noise, (rows, dim), &Device::Cpu)? * (args.noise * self.spread))?;
        Ok((mixed + noise)?)
    }

    /// Plain features of all pictures of some concepts, with the place of each concept as its label.
    pub fn all_of(&self, concepts: &[usize]) -> Result<(Tensor, Vec<u32>)> {
        let (mut ids, mut labels): (Vec<u32>, Vec<u32>) = (Vec::new(), Vec::new());
        for (label, concept) in concepts.iter().enumerate() {
            ids.extend(&self.of[*concept]);
            labels.extend(self.of[*concept].iter().map(|_| label as u32));
        }
        let ids = Tensor::from_vec(ids, labels.len(), &Device::Cpu)?;
        Ok((self.features.get(0)?.index_select(&ids, 0)?, labels))
    }
}

/// Features `(n, D)` of a source in its own order; view 0 is the plain one.
fn features(
    vit: &Vit,
    preprocess: &Preprocess,
    source: Arc<dyn Source>,
    view: usize,
) -> Result<Tensor> {
    let mut preprocess = preprocess.clone();
    if view > 0 {
        preprocess.train = Cut::RandomResizedCrop;
        preprocess.scale = Some([0.6, 1.0]);
        preprocess.ratio = Some([0.85, 1.18]);
        preprocess.flip = true;
    }
    let view = match view {
        0 => View::Plain,
        view => View::Train {
            seed: 0,
            epoch: view as u64,
        },
    };
    let n = source.len();
    let loader = Loader::new(&preprocess, 2, OnCorrupt::Stop)?;
    let split = loader.split(source, (0..n).collect(), vec![0; n], 0, 0)?;
    let mut rows: Vec<Vec<f32>> = vec![Vec::new(); n];
    let mut done = 0;
    for batch in split.batches(view, 64) {
        let batch = batch?;
        let found = vit.query(&batch.images)?.to_vec2::<f32>()?;
        done += found.len();
        for (id, row) in batch.ids.iter().zip(found) {
            rows[*id as usize] = row;
        }
        if done % 1024 == 0 || done == n {
            eprintln!("features of {done} of {n} pictures");
        }
    }
    Ok(Tensor::new(rows, &Device::Cpu)?)
}
