//! The seams of candlewick.

pub mod error;
pub mod task;

pub use error::{Error, Result};
pub use task::{Batch, Batches, Split, Stream, Task, TaskInfo, View};
