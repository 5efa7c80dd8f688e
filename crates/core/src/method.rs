//! What a continual-learning method is.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::Tensor;

use crate::error::Result;
use crate::exemplars::Exemplars;
use crate::session::Session;
use crate::task::{Batch, Task, TaskInfo};
use crate::usage::Choice;

/// Named tensors: what a method has learned.
pub type State = BTreeMap<String, Tensor>;

/// Told how many more images were looked at; an error means that the run is to stop.
pub type Progress<'a> = &'a mut dyn FnMut(usize) -> Result<()>;

/// A method sees the tasks in order and can be asked for predictions at any time.
///
/// The run calls, for each task: [`begin_task`](Self::begin_task), then [`epochs`](Self::epochs)
/// passes, each [`begin_epoch`](Self::begin_epoch) and then [`observe`](Self::observe) over its
/// shuffled training batches, then [`end_task`](Self::end_task). Methods that need one plain look at the images, such as
/// prototypes, ask for no epochs and read `task.train` in `end_task`.
pub trait Method {
    /// Passes over the training images of a task.
    fn epochs(&self) -> usize;

    /// Images per training batch; read when there are epochs.
    fn batch_size(&self) -> usize {
        1
    }

    /// A task begins: grow heads and prompts. Depends on `task` and on what was learned so far,
    /// not on images, since [`restore`](Self::restore) replays it.
    fn begin_task(&mut self, task: &TaskInfo) -> Result<()>;

    /// Once behind [`begin_task`](Self::begin_task), before the first pass: for methods that need to look at the task's images
    /// before they train, as for class means of the frozen feature. What it finds is part of [`state`](Self::state); `progress` is
    /// as in [`end_task`](Self::end_task).
    fn prepare(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        let _ = (task, progress);
        Ok(())
    }

    /// A pass over the task begins, counted from 0 in each task; learning-rate schedules go by it.
    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        let _ = epoch;
        Ok(())
    }

    /// One optimiser step; returns the loss, a scalar still on the device.
    fn observe(&mut self, batch: &Batch) -> Result<Tensor>;

    /// The task's training is over. Whoever looks at images here tells `progress` how many, batch by
    /// batch, and passes its error on.
    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        let _ = (task, progress);
        Ok(())
    }

    /// Past training images that are to be among those of the next task: [`observe`](Self::observe) then gets batches of both.
    /// They are chosen in [`end_task`](Self::end_task), which may look at `task.train`, and are part of
    /// [`state`](Self::state). `None` for methods that keep no images.
    fn exemplars(&self) -> Option<Exemplars> {
        None
    }

    /// Scores `(B, classes seen)`; the largest of a row is the predicted label. A row depends on
    /// its own image alone unless a named switch says otherwise.
    fn predict(&self, batch: &Batch) -> Result<Tensor>;

    /// Scores `(B, classes of the task)` of images whose task is known, in the order of `task.classes`; `None` where the method
    /// can say nothing of these classes. Asked of tasks that are learned, and in a multi-domain stream of those to come as well.
    ///
    /// By default the columns of [`predict`](Self::predict), and `None` for classes that have not come. A method that scores
    /// classes by what they are called ([`TaskInfo::names`]) answers for any.
    fn predict_task(&self, batch: &Batch, task: &TaskInfo) -> Result<Option<Tensor>> {
        let scores = self.predict(batch)?;
        let Range { start, end } = task.classes;
        match end <= scores.dim(1)? {
            true => Ok(Some(scores.narrow(1, start, end - start)?.contiguous()?)),
            false => Ok(None),
        }
    }

    /// What the images of a test batch take from each pool that they choose from, for the report; the same pools every
    /// time. Empty for methods without.
    fn choices(&self, batch: &Batch) -> Result<Vec<Choice>> {
        let _ = batch;
        Ok(Vec::new())
    }

    /// Trainable values at present.
    fn trainable(&self) -> usize;

    /// What has been learned, to be saved.
    fn state(&self) -> Result<State>;

    /// Takes up where [`state`](Self::state) was taken; `tasks` are those already trained, in
    /// order. Call it on a method that has seen nothing.
    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()>;

    /// What a run needs besides [`state`](Self::state) to go on from here to the same end, bit for bit: optimisers, counts of
    /// random draws, copies of models, statistics under way. A run asks for it between two steps, when the
    /// training of a task is over, and behind [`end_task`](Self::end_task); never inside it, nor between
    /// [`begin_task`](Self::begin_task) and the first step. Empty where `state` is all there is.
    fn session(&self) -> Result<Session>;

    /// Takes up where [`state`](Self::state) and [`session`](Self::session) were taken; `tasks` are those begun, in order.
    /// Whether the last of them has ended, the session must tell. Neither `begin_task` nor
    /// [`begin_epoch`](Self::begin_epoch) is called again for what was under way. Call it on a method that has seen nothing.
    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()>;
}
