//! Tasks, streams and the batches they yield.

use std::ops::Range;
use std::sync::Arc;

use candle_core::Tensor;

use crate::error::{Error, Result};

/// A few images with their labels, ready for the backbone.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Normalised images, `(B, 3, H, W)`, f32. `(B, 3, 0, 0)` in a stream for methods that read stored features alone.
    pub images: Tensor,
    /// Labels in order of arrival: the first class of the first task is 0.
    pub labels: Vec<u32>,
    /// One number per image, unique over training and test set of a stream, the same in every pass.
    pub ids: Vec<u64>,
    /// True when the images went through the plain (test) transform: then `ids` determines the pixels.
    pub plain: bool,
}

impl Batch {
    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True when there is no image in it.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }
}

/// Which pixels a pass over a split sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum View {
    /// The test transform, in stored order.
    Plain,
    /// The training transform, shuffled. Everything random is drawn from `(seed, epoch, image)`,
    /// so a pass is the same for any number of threads and any batch size.
    Train {
        /// The run's seed.
        seed: u64,
        /// Counts every training pass of the run, over all tasks.
        epoch: u64,
    },
}

/// The batches of one pass; an item is an error when an image cannot be read.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch>> + 'a>;

/// The training or the test part of one task. It can be passed over again and again.
pub trait Split: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// True when there is no image in it.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Labels in stored order, numbered in order of arrival.
    fn labels(&self) -> &[u32];

    /// The name of the image with this id ([`Batch::ids`]), for the record: a path below the data
    /// root.
    fn image_name(&self, id: u64) -> String;

    /// One pass in batches of `batch` images; the last one may be smaller.
    fn batches(&self, view: View, batch: usize) -> Batches<'_>;

    /// Those of the same pass behind its first `done`.
    fn batches_behind(&self, view: View, batch: usize, done: usize) -> Batches<'_> {
        Box::new(self.batches(view, batch).skip(done))
    }

    /// Those of its images that have one of these ids, in stored order; ids of other images are passed over. What a method
    /// keeps of a task that is over comes again this way.
    fn only(&self, ids: &[u64]) -> Result<Arc<dyn Split>> {
        Err(Error::State {
            problem: format!(
                "{} past images are to come again, but this split cannot be cut to some of its images; it needs `Split::only`",
                ids.len()
            ),
        })
    }
}

/// What a method may know of a task before it sees an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskInfo {
    /// Position in the stream, from 0.
    pub index: usize,
    /// The labels that arrive with this task, consecutive by construction; all labels in every task of a
    /// domain-incremental stream.
    pub classes: Range<usize>,
    /// What those classes are called, in words, for methods that read texts; empty where nobody said.
    pub names: Vec<String>,
    /// Number of training images.
    pub train_len: usize,
    /// Number of test images.
    pub test_len: usize,
}

/// The name of a folder as words: underscores and hyphens are spaces.
pub fn words(class: &str) -> String {
    let parts = class.split(['_', '-', ' ']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join(" ")
}

/// One task of a stream.
#[derive(Clone)]
pub struct Task {
    /// Its place and classes.
    pub info: TaskInfo,
    /// What may be trained on.
    pub train: Arc<dyn Split>,
    /// What it is evaluated on.
    pub test: Arc<dyn Split>,
}

/// What arrives with a task, and what is known of a test image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scenario {
    /// New classes; predictions are over all classes seen.
    #[default]
    ClassIncremental,
    /// New classes; the task of a test image is known, so predictions are over its classes alone.
    TaskIncremental,
    /// The same classes, all in every task, in new domains of these names.
    DomainIncremental(Vec<String>),
    /// The classes of another data set in each task, by these names. The set of a test image is known, and after every task all
    /// sets are evaluated, also those that are not learned yet: ZSCL's MTIL.
    MultiDomain(Vec<String>),
}

impl Scenario {
    /// As recipes and reports write it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::ClassIncremental => "class-incremental",
            Self::TaskIncremental => "task-incremental",
            Self::DomainIncremental(_) => "domain-incremental",
            Self::MultiDomain(_) => "multi-domain",
        }
    }

    /// Whether the task of a test image is known.
    pub fn tells_tasks(&self) -> bool {
        matches!(self, Self::TaskIncremental | Self::MultiDomain(_))
    }
}

/// A sequence of tasks; classes are numbered in order of arrival.
#[derive(Clone)]
pub struct Stream {
    /// How its tasks differ.
    pub scenario: Scenario,
    /// The tasks in order.
    pub tasks: Vec<Task>,
    /// `class_names[label]` is the class that arrives as `label`.
    pub class_names: Vec<String>,
}

impl Stream {
    /// Number of classes over all tasks.
    pub fn classes(&self) -> usize {
        self.class_names.len()
    }

    /// The same stream whose classes are called otherwise in words; `names` are by label.
    pub fn named(mut self, names: &[String]) -> Self {
        for task in &mut self.tasks {
            let own = names.get(task.info.classes.clone());
            task.info.names = own.unwrap_or_default().to_vec();
        }
        self
    }
}
