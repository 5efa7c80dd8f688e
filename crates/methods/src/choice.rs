//! How images choose prompts: each by itself, or, as some published code has it, a batch as one.

use candle_core::Tensor;
use candlewick_core::Result;
use serde::{Deserialize, Serialize};

/// The published code lets the images of a batch vote for one set of prompts. At test this leaks the
/// task, since test batches hold images of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BatchVote {
    /// Every image chooses for itself.
    #[default]
    Never,
    /// In training alone.
    Train,
    /// In training and at test, as published for CIFAR-100. Predictions depend on the batch.
    Always,
}

impl BatchVote {
    /// The `k` choices of each image, given its scores `(B, M)`: those of the largest scores, or for every image those
    /// that most images of the batch would choose.
    pub fn choose(self, scores: &Tensor, k: usize, train: bool) -> Result<Vec<Vec<u32>>> {
        let rows: Vec<Vec<f32>> = scores.to_vec2()?;
        let chosen: Vec<Vec<u32>> = rows.iter().map(|row| largest(row, k)).collect();
        let vote = match self {
            Self::Never => false,
            Self::Train => train,
            Self::Always => true,
        };
        if !vote {
            return Ok(chosen);
        }
        let mut votes = vec![0f32; scores.dim(1)?];
        for &choice in chosen.iter().flatten() {
            votes[choice as usize] += 1.0;
        }
        Ok(vec![largest(&votes, k); chosen.len()])
    }

    /// Its entry in the record of method `name`, where it departs from the default.
    pub fn compat(self, name: &str) -> Option<String> {
        match self {
            Self::Never => None,
            Self::Train => Some(format!("{name}.batch_vote=train")),
            Self::Always => Some(format!("{name}.batch_vote=always")),
        }
    }
}

/// Indices of the `k` largest values, the largest first, the smaller index where two are equal.
fn largest(values: &[f32], k: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..values.len() as u32).collect();
    order.sort_by(|&a, &b| values[b as usize].total_cmp(&values[a as usize]));
    order.truncate(k);
    order
}
