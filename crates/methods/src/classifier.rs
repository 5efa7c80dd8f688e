//! What learns from features alone, and the method around it.
//!
//! With a backbone that stands still every image needs to be looked at once. A [`Classifier`] is given the features of a
//! task's training images and never sees an image; [`OneLook`] makes a whole method of it, and may tune the backbone on
//! the first task before that (see [`tuning`](crate::tuning)).

use candle_core::{Device, Tensor};
use candlewick_core::{
    Batch, Error, Method, Progress, Result, Session, State, Task, TaskInfo, View,
};
use candlewick_stats::{Misfit, NotPositive};

use crate::tuning::Look;

/// The training features of one task.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Its place and classes.
    pub task: &'a TaskInfo,
    /// `(n, d)`, image by image, in stored order.
    pub rows: &'a [f32],
    /// `n` labels.
    pub labels: &'a [u32],
    /// Values of a feature, `d`.
    pub dim: usize,
}

impl Seen<'_> {
    /// The features of one class, `(n_c, d)`.
    pub fn class(&self, class: usize) -> Vec<f32> {
        let rows = self.rows.chunks_exact(self.dim.max(1)).zip(self.labels);
        rows.filter(|(_, label)| **label as usize == class)
            .flat_map(|(row, _)| row)
            .copied()
            .collect()
    }

    /// That every class of the task has an image.
    pub fn none_is_empty(&self) -> Result<()> {
        for class in self.task.classes.clone() {
            if !self.labels.contains(&(class as u32)) {
                return Err(Error::State {
                    problem: format!(
                        "class {} of task {} has no readable training image; leave the class out, or mend its images",
                        class - self.task.classes.start + 1,
                        self.task.index + 1
                    ),
                });
            }
        }
        Ok(())
    }
}

/// Learns classes from features, a task at a time, each feature seen once.
pub trait Classifier {
    /// A task begins: its classes get a place.
    fn grow(&mut self, task: &TaskInfo) -> Result<()>;

    /// All training features of the task.
    fn learn(&mut self, seen: Seen<'_>) -> Result<()>;

    /// Scores `(n, classes seen)` of features `(n, d)`. A row depends on its own feature alone.
    fn scores(&self, rows: &[f32]) -> Result<Vec<f32>>;

    /// Adds what was learned to what is saved, in f32.
    fn save(&self, state: &mut State) -> Result<()>;

    /// Takes its own out of what was saved behind `tasks`. Nothing was learned before.
    fn load(&mut self, tasks: &[TaskInfo], state: &mut State) -> Result<()>;
}

/// A classifier on the features of a backbone.
pub struct OneLook<C> {
    look: Look,
    classifier: C,
    classes: usize,
    batch: usize,
}

impl<C: Classifier> OneLook<C> {
    /// `batch` images are looked at together where nothing is trained; it does not change the result.
    pub fn new(look: Look, classifier: C, batch: usize) -> Self {
        Self {
            look,
            classifier,
            classes: 0,
            batch,
        }
    }

    /// What looks at the images.
    pub fn look(&self) -> &Look {
        &self.look
    }

    /// What learns from the features.
    pub fn classifier(&self) -> &C {
        &self.classifier
    }
}

impl<C: Classifier> Method for OneLook<C> {
    fn epochs(&self) -> usize {
        self.look.epochs()
    }

    fn batch_size(&self) -> usize {
        self.look.batch_size()
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.classes = task.classes.end.max(self.classes);
        self.look.begin_task(task)?;
        self.classifier.grow(task)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.look.begin_epoch(epoch);
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        self.look.observe(batch)
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.look.settle()?;
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for batch in task.train.batches(View::Plain, self.batch) {
            let batch = batch?;
            rows.extend(values(&self.look.features(&batch)?)?);
            labels.extend_from_slice(&batch.labels);
            progress(batch.len())?;
        }
        let seen = Seen {
            task: &task.info,
            rows: &rows,
            labels: &labels,
            dim: self.look.dim(),
        };
        seen.none_is_empty()?;
        self.classifier.learn(seen)
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let rows = values(&self.look.features(batch)?)?;
        let scores = self.classifier.scores(&rows)?;
        let shape = (batch.len(), self.classes);
        Ok(Tensor::from_vec(scores, shape, &Device::Cpu)?)
    }

    fn trainable(&self) -> usize {
        self.look.trainable()
    }

    /// As long as the first task is trained on, the classifier has seen nothing.
    fn state(&self) -> Result<State> {
        let mut state = self.look.state()?;
        if !self.look.trains() {
            self.classifier.save(&mut state)?;
        }
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        let mut rest = state.clone();
        self.classifier.load(tasks, &mut rest)?;
        self.look.restore(&rest)
    }

    fn session(&self) -> Result<Session> {
        self.look.session()
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        if session.is_empty() {
            return self.restore(tasks, state);
        }
        for task in tasks {
            self.begin_task(task)?;
        }
        self.look.resume(state, session)
    }
}

/// The values of a tensor in order.
pub(crate) fn values(tensor: &Tensor) -> Result<Vec<f32>> {
    Ok(tensor.flatten_all()?.to_vec1()?)
}

/// Adds rows to what is saved.
pub(crate) fn put(state: &mut State, name: &str, values: Vec<f32>, shape: &[usize]) -> Result<()> {
    let tensor = Tensor::from_vec(values, shape, &Device::Cpu)?;
    state.insert(name.to_owned(), tensor);
    Ok(())
}

/// Takes the values of a tensor of `shape` out of what was saved.
pub(crate) fn take(state: &mut State, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
    match state.remove(name) {
        Some(tensor) if tensor.dims() == shape => values(&tensor),
        found => Err(Error::State {
            problem: format!(
                "expected `{name}` of shape {shape:?}, found {:?}",
                found.map(|t| t.dims().to_vec())
            ),
        }),
    }
}

/// Classes seen behind `tasks`.
pub(crate) fn classes(tasks: &[TaskInfo]) -> usize {
    tasks.iter().map(|task| task.classes.end).max().unwrap_or(0)
}

/// Parts of statistics that do not fit come from a saved state or a feature of another size.
pub(crate) fn misfit(error: Misfit) -> Error {
    Error::State {
        problem: error.to_string(),
    }
}

/// A matrix without a factor; `key` is what to change.
pub(crate) fn singular(key: &str, error: NotPositive) -> Error {
    Error::setting(key, format!("{error}; raise it"))
}

/// In f64 and in a fixed order, so that a score depends on neither batch nor threads.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f64 {
    let pairs = a.iter().zip(b);
    pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

/// A head of `height` rows, from `before` columns to `now`: new classes score 0 until they are learned.
pub(crate) fn widened(head: &[f32], height: usize, before: usize, now: usize) -> Vec<f32> {
    let mut wide = vec![0.0; height * now];
    if before > 0 {
        for (to, from) in wide.chunks_mut(now).zip(head.chunks(before)) {
            to[..before].copy_from_slice(from);
        }
    }
    wide
}

/// Features and labels of each task, as `features.T` and `labels.T`.
pub(crate) fn put_parts(
    state: &mut State,
    parts: &[(Vec<f32>, Vec<u32>)],
    dim: usize,
) -> Result<()> {
    for (t, (rows, labels)) in parts.iter().enumerate() {
        let n = labels.len();
        put(state, &format!("features.{t}"), rows.clone(), &[n, dim])?;
        let labels = labels.iter().map(|l| *l as f32).collect();
        put(state, &format!("labels.{t}"), labels, &[n])?;
    }
    Ok(())
}

/// What [`put_parts`] saved.
pub(crate) fn take_parts(
    tasks: &[TaskInfo],
    dim: usize,
    state: &mut State,
) -> Result<Vec<(Vec<f32>, Vec<u32>)>> {
    let part = |t: usize| {
        let name = format!("labels.{t}");
        let n = state.get(&name).map_or(0, |labels| labels.elem_count());
        let labels = take(state, &name, &[n])?;
        let labels: Vec<u32> = labels.into_iter().map(|l| l as u32).collect();
        if labels.iter().any(|l| *l as usize >= classes(tasks)) {
            return Err(Error::State {
                problem: format!("`{name}` has a class beyond {}", classes(tasks)),
            });
        }
        Ok((take(state, &format!("features.{t}"), &[n, dim])?, labels))
    };
    (0..tasks.len()).map(part).collect()
}
