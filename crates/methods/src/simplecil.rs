//! SimpleCIL: class means of the frozen feature as a cosine classifier (Zhou et al. 2023,
//! "Revisiting Class-Incremental Learning with Pre-Trained Models"; `LAMDA-CL/LAMDA-PILOT:models/simplecil.py`).
//!
//! `w_c = mean_{i: y_i = c} f(x_i)` over the training images with the test transform, not
//! normalised; `score_c(x) = cos(f(x), w_c)`.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Batch, Error, Frozen, Method, Progress, Result, State, Task, TaskInfo, View,
};
use serde::{Deserialize, Serialize};

/// `[method] name = "simplecil"` has no keys of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimpleCil {}

impl SimpleCil {
    /// `batch` images are looked at together; it does not change the result.
    pub fn build(&self, backbone: Arc<dyn Backbone>, batch: usize) -> Prototypes {
        Prototypes {
            frozen: Frozen::new(backbone),
            batch,
            means: Vec::new(),
        }
    }
}

/// Class means, in order of arrival.
pub struct Prototypes {
    frozen: Frozen,
    batch: usize,
    means: Vec<Vec<f32>>,
}

const NAME: &str = "prototypes";

impl Prototypes {
    fn dim(&self) -> usize {
        self.frozen.backbone().spec().dim
    }
}

impl Method for Prototypes {
    fn epochs(&self) -> usize {
        0
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.means.resize(task.classes.end, vec![0.0; self.dim()]);
        Ok(())
    }

    fn observe(&mut self, _: &Batch) -> Result<Tensor> {
        Err(Error::State {
            problem: "simplecil has no training step; it asks for 0 epochs".into(),
        })
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        let classes = &task.info.classes;
        // f64 sums: the mean does not depend on how images are grouped into batches.
        let mut sums = vec![vec![0f64; self.dim()]; classes.len()];
        let mut counts = vec![0usize; classes.len()];
        for batch in task.train.batches(View::Plain, self.batch) {
            let batch = batch?;
            let features: Vec<Vec<f32>> = self.frozen.query(&batch)?.to_vec2()?;
            for (feature, &label) in features.iter().zip(&batch.labels) {
                let class = label as usize - classes.start;
                counts[class] += 1;
                for (sum, value) in sums[class].iter_mut().zip(feature) {
                    *sum += f64::from(*value);
                }
            }
            progress(batch.len())?;
        }
        for (class, (sum, count)) in sums.iter().zip(counts).enumerate() {
            if count == 0 {
                return Err(Error::State {
                    problem: format!(
                        "class {} of task {} has no readable training image, so it has no mean",
                        class + 1,
                        task.info.index + 1
                    ),
                });
            }
            let mean = sum.iter().map(|s| (s / count as f64) as f32);
            self.means[classes.start + class] = mean.collect();
        }
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let features: Vec<Vec<f32>> = self.frozen.query(batch)?.to_vec2()?;
        let norms: Vec<f64> = self.means.iter().map(|m| dot(m, m).sqrt()).collect();
        let mut scores = Vec::with_capacity(batch.len() * self.means.len());
        for feature in &features {
            let norm = dot(feature, feature).sqrt();
            let row = self.means.iter().zip(&norms);
            scores.extend(row.map(|(m, n)| (dot(feature, m) / (norm * n)) as f32));
        }
        let shape = (batch.len(), self.means.len());
        Ok(Tensor::from_vec(scores, shape, &candle_core::Device::Cpu)?)
    }

    fn trainable(&self) -> usize {
        0
    }

    fn state(&self) -> Result<State> {
        let shape = (self.means.len(), self.dim());
        let means = Tensor::from_vec(self.means.concat(), shape, &candle_core::Device::Cpu)?;
        Ok(State::from([(NAME.to_owned(), means)]))
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        let rows = tasks.last().map_or(0, |task| task.classes.end);
        let expected = [rows, self.dim()];
        match state.get(NAME) {
            Some(means) if means.dims() == expected && state.len() == 1 => {
                self.means = means.to_vec2()?;
                Ok(())
            }
            found => Err(Error::State {
                problem: format!(
                    "expected `{NAME}` of shape {expected:?} alone, found {:?} and {} tensors in all",
                    found.map(|t| t.dims().to_vec()),
                    state.len()
                ),
            }),
        }
    }
}

/// In f64 and in a fixed order, so that a score depends on neither batch nor threads.
fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}
