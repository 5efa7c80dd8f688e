//! How far a run has come.

use serde::{Deserialize, Serialize};

use crate::classes::ClassAccuracy;
use crate::metrics::AccuracyMatrix;
use crate::report::Cost;
use crate::task::{Stream, TaskInfo};
use crate::usage::PoolUse;

/// Everything that a run knows besides what its method holds: with the method's
/// [`state`](crate::Method::state) and [`session`](crate::Method::session) it is all that is needed to go on. Images are drawn from
/// the seed, the pass and the image, so the place in the data is a few counts.
///
/// To be written where floats come back as they were.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Where in the task that is not evaluated yet.
    pub phase: Phase,
    /// Passes over training images that are over, of all tasks.
    pub passes: u64,
    /// Accuracies of the tasks that are over.
    pub accuracy: AccuracyMatrix,
    /// The same class by class.
    pub classes: ClassAccuracy,
    /// Counts so far.
    pub cost: Cost,
    /// Use of pools so far.
    pub pools: Vec<PoolUse>,
    /// Past images that the method kept after each task.
    #[serde(default)]
    pub exemplars: Vec<usize>,
}

/// Where in a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// It has not begun.
    #[default]
    Ahead,
    /// In training.
    Training {
        /// Pass over the task, from 0; as many as the method asks for where training is over.
        epoch: usize,
        /// Batches of this pass that are behind.
        batches: usize,
    },
    /// Behind `end_task`; its evaluation is due.
    Learned,
}

impl Standing {
    /// The task at hand, from 0: those before it are evaluated.
    pub fn task(&self) -> usize {
        self.accuracy.sessions()
    }

    /// The tasks that the method has begun.
    pub fn begun(&self, stream: &Stream) -> Vec<TaskInfo> {
        let begun = self.task() + usize::from(self.phase != Phase::Ahead);
        let tasks = stream.tasks.iter().take(begun);
        tasks.map(|task| task.info.clone()).collect()
    }
}
