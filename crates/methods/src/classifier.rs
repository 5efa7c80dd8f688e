//! What learns from features alone, and the method around it.
//!
//! With a backbone that stands still every image needs to be looked at once. A [`Classifier`] is given the features of a
//! task's training images and never sees an image; [`OneLook`] makes a whole method of it, and may tune the backbone on
//! the first task before that (see [`tuning`](crate::tuning)).

use std::collections::BTreeSet;

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
    /// The classes that have an image here; all of the task's but in a stream of domains.
    pub fn classes(&self) -> Vec<usize> {
        let here: BTreeSet<usize> = self.labels.iter().map(|label| *label as usize).collect();
        let of_task = |class: &usize| self.task.classes.contains(class);
        here.into_iter().filter(of_task).collect()
    }

    /// The features of one class, `(n_c, d)`.
    pub fn class(&self, class: usize) -> Vec<f32> {
        let rows = self.rows.chunks_exact(self.dim.max(1)).zip(self.labels);
        rows.filter(|(_, label)| **label as usize == class)
            .flat_map(|(row, _)| row)
            .copied()
            .collect()
    }
}

/// Learns classes from features, a task at a time, each feature seen once.
pub trait Classifier {
    /// A task begins: its classes get a place.
    fn grow(&mut self, task: &TaskInfo) -> Result<()>;

    /// All training features of the task, which may be of classes that were there before, in another domain.
    fn learn(&mut self, seen: Seen<'_>) -> Result<()>;

    /// Whether a class has had an image.
    fn knows(&self, class: usize) -> bool;

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
        self.none_is_lost(task, &labels)?;
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

impl<C: Classifier> OneLook<C> {
    /// That every class with images has one that could be read, here or in an earlier domain.
    fn none_is_lost(&self, task: &Task, read: &[u32]) -> Result<()> {
        let read: BTreeSet<&u32> = read.iter().collect();
        let known = |label: &u32| read.contains(label) || self.classifier.knows(*label as usize);
        match task.train.labels().iter().find(|label| !known(label)) {
            None => Ok(()),
            Some(label) => Err(Error::State {
                problem: format!(
                    "class {} of task {} has no readable training image; leave the class out, or mend its images",
                    (*label as usize).saturating_sub(task.info.classes.start) + 1,
                    task.info.index + 1
                ),
            }),
        }
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

/// As close to `value` as two f32 come, 48 bits: statistics that go on being added to are saved as such, and kept so that a
/// run that was resumed is the run that went on.
pub(crate) fn kept(value: f64) -> f64 {
    let (high, low) = halves(value);
    f64::from(high) + f64::from(low)
}

fn halves(value: f64) -> (f32, f32) {
    let high = value as f32;
    (high, (value - f64::from(high)) as f32)
}

/// Adds [`kept`] values to what is saved: rounded to f32 as `name`, and what that leaves out as `name.low`.
pub(crate) fn put_kept(
    state: &mut State,
    name: &str,
    values: impl Iterator<Item = f64>,
    shape: &[usize],
) -> Result<()> {
    let (high, low) = values.map(halves).unzip();
    put(state, name, high, shape)?;
    put(state, &format!("{name}.low"), low, shape)
}

/// What [`put_kept`] saved.
pub(crate) fn take_kept(state: &mut State, name: &str, shape: &[usize]) -> Result<Vec<f64>> {
    let high = take(state, name, shape)?;
    let low = take(state, &format!("{name}.low"), shape)?;
    let both = high.into_iter().zip(low);
    Ok(both.map(|(h, l)| f64::from(h) + f64::from(l)).collect())
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

/// Whether a class has an image in any of the parts.
pub(crate) fn in_parts(parts: &[(Vec<f32>, Vec<u32>)], class: usize) -> bool {
    let mut labels = parts.iter().flat_map(|(_, labels)| labels);
    labels.any(|label| *label as usize == class)
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
