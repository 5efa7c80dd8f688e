//! The seams of candlewick, a toolkit for continual learning with frozen pretrained vision models.
//!
//! Three things meet here and know nothing else of each other: a [`Stream`] of [`Task`]s brings
//! images, a [`Backbone`] turns them into features, a [`Method`] learns from them. [`run`](run::run)
//! is the loop around them and [`Report`] what it leaves. A [`Prompt`] is what may be put into a
//! frozen backbone; [`Prompted`] makes a method of any prompt.
//!
//! There are no files, images or network in this crate.

pub mod backbone;
pub mod classes;
mod cumulative;
pub mod error;
pub mod exemplars;
pub mod language;
pub mod method;
pub mod metrics;
pub mod optim;
pub mod params;
pub mod prompt;
pub mod prompted;
pub mod report;
pub mod run;
pub mod schedule;
pub mod session;
pub mod standing;
pub mod task;
pub mod train;
pub mod usage;

pub use backbone::{Backbone, Features, Frozen, Spec, Thawed};
pub use classes::ClassAccuracy;
pub use error::{Error, Result};
pub use exemplars::{ExemplarUse, Exemplars};
pub use language::{Language, TextSpec, ThawedLanguage};
pub use method::{Method, Progress, State};
pub use metrics::{AccuracyMatrix, Metrics};
pub use optim::{Group, Optimizer};
pub use params::{Init, Params};
pub use prompt::{
    Cue, Injection, NoPrompt, Op, Outputs, Position, Prefix, Prompt, Share, Site, Span, Tokens,
};
pub use prompted::{Pool, Prompted};
pub use report::{Cost, Fingerprint, Prediction, Report, Summary};
pub use run::{Event, Observer, Outcome, RunOptions};
pub use schedule::{Schedule, Warmup};
pub use session::Session;
pub use standing::{Phase, Standing};
pub use task::{Batch, Batches, Scenario, Split, Stream, Task, TaskInfo, View};
pub use train::{Head, Moments, OptimizerKind, Train};
pub use usage::{Choice, PoolUse};
