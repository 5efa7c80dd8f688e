//! The ceiling of a linear head on the frozen feature: trained on all classes seen, from scratch behind every task.
//!
//! ```text
//! W, b ← argmin CE(f(x_i) Wᵀ + b, y_i)          over the features of all tasks so far, by the `[train]` table
//! ```
//!
//! Published as "joint linear probe" beside RanPAC (`RanPAC/RanPAC:RanPAC.py`, `joint_linear`; there with augmented images and a
//! cosine head). Features are taken once, with the test transform. [`linear`](crate::linear) is its floor. Its saved
//! state holds the features of all past training images.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{Backbone, Init, Optimizer, Params, Result, State, TaskInfo, Train};
use candlewick_stats::View;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::{Deserialize, Serialize};

use crate::classifier::{
    Classifier, OneLook, Seen, classes, in_parts, put, put_parts, take, take_parts, values, widened,
};
use crate::draw::shuffle;
use crate::tuning::Look;

/// `[method] name = "joint-linear"` has no keys of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JointLinear {}

impl JointLinear {
    /// `seed` draws the head and the order of images; `batch` images are looked at together.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<OneLook<Probe>> {
        train.check()?;
        let probe = self.classifier(backbone.spec().dim, train, seed);
        Ok(OneLook::new(Look::frozen(backbone), probe, batch))
    }

    /// On features of `dim` values.
    pub fn classifier(&self, dim: usize, train: Train, seed: u64) -> Probe {
        Probe {
            dim,
            train,
            seed,
            classes: 0,
            parts: Vec::new(),
            weight: Vec::new(),
            bias: Vec::new(),
        }
    }
}

/// All features and the head of them.
pub struct Probe {
    dim: usize,
    train: Train,
    seed: u64,
    classes: usize,
    parts: Vec<(Vec<f32>, Vec<u32>)>,
    /// `(dim, classes)`.
    weight: Vec<f32>,
    bias: Vec<f32>,
}

impl Probe {
    fn fit(&mut self) -> Result<()> {
        let device = &Device::Cpu;
        let mut params = Params::seeded(self.seed, device);
        let init = Init::TruncatedNormal { std: 0.02 };
        let weight = params.create("weight", &[self.dim, self.classes], init)?;
        let bias = params.create("bias", &[self.classes], Init::Zeros)?;
        let mut optimizer = Optimizer::new(params.named(), &self.train)?;
        let rows: Vec<&[f32]> = self
            .parts
            .iter()
            .flat_map(|p| p.0.chunks_exact(self.dim))
            .collect();
        let labels: Vec<u32> = self.parts.iter().flat_map(|p| &p.1).copied().collect();
        let mut order: Vec<usize> = (0..rows.len()).collect();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        for epoch in 0..self.train.epochs {
            optimizer.begin_epoch(epoch);
            shuffle(&mut order, &mut rng);
            for batch in order.chunks(self.train.batch) {
                let x: Vec<f32> = batch.iter().flat_map(|&i| rows[i]).copied().collect();
                let y: Vec<u32> = batch.iter().map(|&i| labels[i]).collect();
                let x = Tensor::from_vec(x, (batch.len(), self.dim), device)?;
                let logits = x.matmul(&weight)?.broadcast_add(&bias)?;
                optimizer.step(&masked_cross_entropy(&logits, &y, &(0..self.classes))?)?;
            }
        }
        self.weight = values(&weight)?;
        self.bias = values(&bias)?;
        Ok(())
    }
}

impl Classifier for Probe {
    fn grow(&mut self, task: &TaskInfo) -> Result<()> {
        let before = self.classes;
        self.classes = before.max(task.classes.end);
        self.weight = widened(&self.weight, self.dim, before, self.classes);
        self.bias.resize(self.classes, 0.0);
        Ok(())
    }

    fn learn(&mut self, seen: Seen<'_>) -> Result<()> {
        self.parts.push((seen.rows.to_vec(), seen.labels.to_vec()));
        self.fit()
    }

    fn knows(&self, class: usize) -> bool {
        in_parts(&self.parts, class)
    }

    fn scores(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let weight = View::rows(&self.weight, self.classes);
        let mut scores = candlewick_stats::scores(rows, self.dim, weight, self.classes);
        for row in scores.chunks_exact_mut(self.classes.max(1)) {
            row.iter_mut().zip(&self.bias).for_each(|(s, b)| *s += b);
        }
        Ok(scores)
    }

    fn save(&self, state: &mut State) -> Result<()> {
        put_parts(state, &self.parts, self.dim)?;
        put(
            state,
            "weight",
            self.weight.clone(),
            &[self.dim, self.classes],
        )?;
        put(state, "bias", self.bias.clone(), &[1, self.classes])
    }

    fn load(&mut self, tasks: &[TaskInfo], state: &mut State) -> Result<()> {
        self.classes = classes(tasks);
        self.parts = take_parts(tasks, self.dim, state)?;
        self.weight = take(state, "weight", &[self.dim, self.classes])?;
        self.bias = take(state, "bias", &[1, self.classes])?;
        Ok(())
    }
}
