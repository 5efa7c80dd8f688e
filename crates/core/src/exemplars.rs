//! Past training images that come again: what a method that replays keeps, and how a run mixes it in.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::cumulative::Union;
use crate::error::{Error, Result};
use crate::method::Method;
use crate::task::{Split, Stream};

/// Past training images that a method keeps, by their ids: the stream has the pixels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exemplars {
    /// Ids of training images ([`Batch::ids`](crate::Batch::ids)) of tasks that are over, each once. They are the same from one
    /// [`begin_task`](Method::begin_task) to the [`end_task`](Method::end_task) behind it, also of a method that was resumed.
    pub ids: Vec<u64>,
    /// Why it is these and so many, in words, for the report: `2000 in all, herding`.
    pub rule: String,
}

/// How much a method kept, for the report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExemplarUse {
    /// [`Exemplars::rule`].
    pub rule: String,
    /// Images kept after each task.
    pub images: Vec<usize>,
}

/// What task `t` is trained on: its own training images and, among them, those of earlier tasks that the method keeps. In
/// training all come in one order drawn from the seed and the pass, augmented by `(seed, pass, image)` as in their own task.
///
/// # Errors
/// When an id is of no training image of an earlier task, or given twice; when a split has no [`only`](Split::only).
pub fn training(method: &dyn Method, stream: &Stream, t: usize) -> Result<Arc<dyn Split>> {
    let Some(task) = stream.tasks.get(t) else {
        return Err(Error::State {
            problem: format!("task {} of a stream of {}", t + 1, stream.tasks.len()),
        });
    };
    let kept = method.exemplars().map_or_else(Vec::new, |kept| kept.ids);
    if kept.is_empty() {
        return Ok(task.train.clone());
    }
    let mut parts = vec![task.train.clone()];
    for earlier in &stream.tasks[..t] {
        let part = earlier.train.only(&kept)?;
        if !part.is_empty() {
            parts.push(part);
        }
    }
    let found: usize = parts.iter().skip(1).map(|part| part.len()).sum();
    match found == kept.len() {
        true => Ok(Arc::new(Union::new(parts))),
        false => Err(Error::State {
            problem: format!(
                "of {} exemplars {found} are training images of tasks before task {}; each must be one, and be named once",
                kept.len(),
                t + 1
            ),
        }),
    }
}
