//! The ceiling of what sums of the frozen feature can do: ridge regression on all classes seen, λ chosen on all of them.
//!
//! ```text
//! W_λ = (Fᵀ F + λI)⁻¹ Fᵀ Y                      F (n, d): training features of all tasks so far, y one-hot
//! λ: of 10⁻⁸ … 10⁸ the one whose head of 80 % of all images has the least squared error on the rest
//! score(x) = f(x) W_λ
//! ```
//!
//! [`ranpac`](crate::ranpac) without projection is the same for a fixed λ, and chooses λ on the last task alone, since it needs
//! no features of earlier ones. This has those of all past training images in its saved state.

use std::sync::Arc;

use candlewick_core::{Backbone, Result, State, TaskInfo};
use serde::{Deserialize, Serialize};

use crate::classifier::{Classifier, OneLook, Seen, classes, in_parts, put_parts, take_parts};
use crate::ranpac::{RanPac, RidgeHead, check_ridge};
use crate::tuning::Look;

/// `[method] name = "joint-ridge"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JointRidge {
    /// λ, instead of searching it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ridge: Option<f64>,
}

impl JointRidge {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        check_ridge(self.ridge)
    }

    /// `seed` chooses the images held back; `batch` images are looked at together.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        batch: usize,
        seed: u64,
    ) -> Result<OneLook<Joint>> {
        self.check()?;
        let joint = self.classifier(backbone.spec().dim, seed);
        Ok(OneLook::new(Look::frozen(backbone), joint, batch))
    }

    /// On features of `dim` values.
    pub fn classifier(&self, dim: usize, seed: u64) -> Joint {
        Joint {
            config: self.clone(),
            dim,
            seed,
            classes: 0,
            parts: Vec::new(),
            head: None,
        }
    }
}

/// All features and the head of them.
pub struct Joint {
    config: JointRidge,
    dim: usize,
    seed: u64,
    classes: usize,
    parts: Vec<(Vec<f32>, Vec<u32>)>,
    head: Option<RidgeHead>,
}

impl Joint {
    /// From nothing but the features, so that it is the same whenever it is solved.
    fn solve(&mut self) -> Result<()> {
        let config = RanPac {
            projection: 0,
            ridge: self.config.ridge,
            compat: None,
            tuning: None,
        };
        let mut head = RidgeHead::new(&config, self.dim, Vec::new(), Some(self.seed))?;
        let rows: Vec<f32> = self.parts.iter().flat_map(|p| &p.0).copied().collect();
        let labels: Vec<u32> = self.parts.iter().flat_map(|p| &p.1).copied().collect();
        let all = TaskInfo {
            index: 0,
            classes: 0..self.classes,
            names: Vec::new(),
            train_len: labels.len(),
            test_len: 0,
        };
        head.statistics_mut().grow(self.classes);
        // Few columns: sums are the smaller form.
        head.statistics_mut().fold();
        head.learn(Seen {
            task: &all,
            rows: &rows,
            labels: &labels,
            dim: self.dim,
        })?;
        self.head = Some(head);
        Ok(())
    }
}

impl Classifier for Joint {
    fn grow(&mut self, task: &TaskInfo) -> Result<()> {
        self.classes = self.classes.max(task.classes.end);
        self.head.as_mut().map_or(Ok(()), |head| head.grow(task))
    }

    fn learn(&mut self, seen: Seen<'_>) -> Result<()> {
        self.parts.push((seen.rows.to_vec(), seen.labels.to_vec()));
        self.solve()
    }

    fn knows(&self, class: usize) -> bool {
        in_parts(&self.parts, class)
    }

    fn scores(&self, rows: &[f32]) -> Result<Vec<f32>> {
        match &self.head {
            Some(head) => head.scores(rows),
            None => Ok(vec![0.0; rows.len() / self.dim.max(1) * self.classes]),
        }
    }

    fn save(&self, state: &mut State) -> Result<()> {
        put_parts(state, &self.parts, self.dim)
    }

    fn load(&mut self, tasks: &[TaskInfo], state: &mut State) -> Result<()> {
        self.classes = classes(tasks);
        self.parts = take_parts(tasks, self.dim, state)?;
        match tasks.is_empty() {
            true => Ok(()),
            false => self.solve(),
        }
    }
}
