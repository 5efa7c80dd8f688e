//! SimpleCIL: class means of the frozen feature as a cosine classifier (Zhou et al. 2023,
//! "Revisiting Class-Incremental Learning with Pre-Trained Models"; `LAMDA-CL/LAMDA-PILOT:models/simplecil.py`).
//!
//! `w_c = mean_{i: y_i = c} f(x_i)` over the training images with the test transform, not
//! normalised; `score_c(x) = cos(f(x), w_c)`.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candlewick_core::{
    Backbone, Batch, Error, Frozen, Method, Progress, Result, Session, State, Task, TaskInfo, View,
};
use candlewick_stats::cosines;
use serde::{Deserialize, Serialize};

use crate::classifier::values;

/// `[method] name = "simplecil"` has no keys of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimpleCil {}

impl SimpleCil {
    /// `batch` images are looked at together; it does not change the result.
    pub fn build(&self, backbone: Arc<dyn Backbone>, batch: usize) -> Prototypes {
        Prototypes {
            means: ClassMeans::new(backbone.spec().dim),
            frozen: Frozen::new(backbone),
            batch,
        }
    }
}

/// Class means of the frozen feature.
pub struct Prototypes {
    frozen: Frozen,
    batch: usize,
    means: ClassMeans,
}

impl Method for Prototypes {
    fn epochs(&self) -> usize {
        0
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.means.grow(task);
        Ok(())
    }

    fn observe(&mut self, _: &Batch) -> Result<Tensor> {
        Err(Error::State {
            problem: "simplecil has no training step; it asks for 0 epochs".into(),
        })
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        let feature = |batch: &Batch| self.frozen.query(batch);
        self.means.learn(task, self.batch, progress, feature)
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        self.means.scores(&self.frozen.query(batch)?)
    }

    fn trainable(&self) -> usize {
        0
    }

    fn state(&self) -> Result<State> {
        let mut state = State::new();
        self.means.save(&mut state)?;
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        let rest = self.means.load(tasks, state)?;
        match rest.keys().next() {
            None => Ok(()),
            Some(name) => Err(Error::State {
                problem: format!("`{name}` is not a parameter of this method"),
            }),
        }
    }

    fn session(&self) -> Result<Session> {
        self.means.session()
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        self.restore(tasks, state)?;
        self.means.resume(session)
    }
}

/// The means of a feature over the training images of each class, in order of arrival, and the cosine with them.
///
/// A class that comes again, in another domain, has the mean of all its images.
pub struct ClassMeans {
    dim: usize,
    means: Vec<Vec<f32>>,
    /// What the means are of; `None` where they were loaded.
    sums: Vec<Option<Sum>>,
}

#[derive(Clone)]
struct Sum {
    values: Vec<f64>,
    images: usize,
}

/// Under this name the means are saved, `(classes, dim)`.
const NAME: &str = "prototypes";

impl ClassMeans {
    /// No class yet, of features of `dim` values.
    pub fn new(dim: usize) -> Self {
        Self {
            dim,
            means: Vec::new(),
            sums: Vec::new(),
        }
    }

    /// Makes room for the classes of a task.
    pub fn grow(&mut self, task: &TaskInfo) {
        let none = Sum {
            values: vec![0.0; self.dim],
            images: 0,
        };
        self.means.resize(task.classes.end, vec![0.0; self.dim]);
        self.sums.resize(task.classes.end, Some(none));
    }

    /// Takes the means of `feature`, `(B, dim)`, over the plain training images of a task.
    pub fn learn(
        &mut self,
        task: &Task,
        batch: usize,
        progress: Progress<'_>,
        feature: impl Fn(&Batch) -> Result<Tensor>,
    ) -> Result<()> {
        let classes = &task.info.classes;
        // f64 sums: the mean does not depend on how images are grouped into batches.
        let state = |problem: String| Error::State { problem };
        for batch in task.train.batches(View::Plain, batch) {
            let batch = batch?;
            let features: Vec<Vec<f32>> = feature(&batch)?.to_vec2()?;
            for (feature, &label) in features.iter().zip(&batch.labels) {
                let class = label as usize;
                let Some(Some(sum)) = self.sums.get_mut(class) else {
                    return Err(state(format!(
                        "class {} was loaded as a mean, so no images can be added to it",
                        class + 1
                    )));
                };
                sum.images += 1;
                for (sum, value) in sum.values.iter_mut().zip(feature) {
                    *sum += f64::from(*value);
                }
            }
            progress(batch.len())?;
        }
        // Every class has images in the task it arrives with; in a stream of domains, perhaps in a later one.
        let labels = task.train.labels();
        for class in classes.clone() {
            let Some(sum) = &self.sums[class] else {
                continue;
            };
            if sum.images == 0 && labels.contains(&(class as u32)) {
                return Err(state(format!(
                    "class {} of task {} has no readable training image, so it has no mean",
                    class - classes.start + 1,
                    task.info.index + 1
                )));
            }
            if sum.images > 0 {
                let mean = sum.values.iter().map(|s| (s / sum.images as f64) as f32);
                self.means[class] = mean.collect();
            }
        }
        Ok(())
    }

    /// `cos(feature, mean)`, `(B, classes)`.
    pub fn scores(&self, features: &Tensor) -> Result<Tensor> {
        let (n, c) = (features.dim(0)?, self.means.len());
        let mut scores = cosines(&values(features)?, &self.means.concat(), self.dim);
        // Of a class without images there is no mean: it is never the nearest.
        for (class, mean) in self.means.iter().enumerate() {
            if mean.iter().all(|v| *v == 0.0) {
                let column = scores.iter_mut().skip(class).step_by(c);
                column.for_each(|score| *score = f32::NEG_INFINITY);
            }
        }
        Ok(Tensor::from_vec(scores, (n, c), &Device::Cpu)?)
    }

    /// Adds the means to what is saved.
    pub fn save(&self, state: &mut State) -> Result<()> {
        let shape = (self.means.len(), self.dim);
        let means = Tensor::from_vec(self.means.concat(), shape, &Device::Cpu)?;
        state.insert(NAME.to_owned(), means);
        Ok(())
    }

    /// What the means are of, so that images can be added.
    pub fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        for (class, sum) in self.sums.iter().enumerate() {
            if let Some(sum) = sum.as_ref().filter(|sum| sum.images > 0) {
                let values = Tensor::new(sum.values.as_slice(), &Device::Cpu)?;
                session.put(&format!("{class}.sum"), values);
                session.put_count(&format!("{class}.images"), sum.images as u64)?;
            }
        }
        Ok(session)
    }

    /// Takes them up; the means are [loaded](Self::load).
    pub fn resume(&mut self, mut session: Session) -> Result<()> {
        for (class, sum) in self.sums.iter_mut().enumerate() {
            let mut part = session.take_part(&class.to_string());
            *sum = Some(match part.is_empty() {
                true => Sum {
                    values: vec![0.0; self.dim],
                    images: 0,
                },
                false => Sum {
                    values: part.take_shaped("sum", &[self.dim])?.to_vec1()?,
                    images: part.take_count("images")? as usize,
                },
            });
            part.end()?;
        }
        session.end()
    }

    /// Takes the means of the classes of `tasks` from what was saved, and gives back the rest of it.
    pub fn load(&mut self, tasks: &[TaskInfo], state: &State) -> Result<State> {
        let rows = tasks.last().map_or(0, |task| task.classes.end);
        let expected = [rows, self.dim];
        let mut rest = state.clone();
        match rest.remove(NAME) {
            Some(means) if means.dims() == expected => {
                self.means = means.to_vec2()?;
                self.sums = vec![None; rows];
                Ok(rest)
            }
            found => Err(Error::State {
                problem: format!(
                    "expected `{NAME}` of shape {expected:?}, found {:?}",
                    found.map(|t| t.dims().to_vec())
                ),
            }),
        }
    }
}
