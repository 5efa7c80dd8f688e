//! Continual CLIP: zero-shot over a list of classes that grows (Thengane et al. 2022, "CLIP model is an Efficient Continual Learner";
//! `vgthengane/Continual-CLIP:continual_clip/models.py`).
//!
//! ```text
//! z_c(x) = exp(s) · cos(image(x), u_c)        c over the classes seen, u_c their texts
//! ```
//!
//! Nothing is trained and no training image is looked at: the floor of every table of CLIP methods. See
//! [`class_texts`](crate::class_texts) for the texts.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{Backbone, Batch, Error, Frozen, Method, Result, Session, State, TaskInfo};
use serde::{Deserialize, Serialize};

use crate::class_texts::{ClassTexts, language};
use crate::templates::Templates;

/// `[method] name = "continual-clip"`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContinualClip {
    /// Sentences around the names of classes; "a photo of a {}." where left out.
    #[serde(default)]
    pub templates: Templates,
}

impl ContinualClip {
    /// Checks the templates.
    pub fn check(&self) -> Result<()> {
        self.templates.check()
    }

    /// `backbone` needs a text tower.
    pub fn build(&self, backbone: Arc<dyn Backbone>) -> Result<ZeroShot> {
        self.check()?;
        Ok(ZeroShot {
            texts: ClassTexts::new(language(backbone.as_ref())?, self.templates.clone()),
            frozen: Frozen::new(backbone),
        })
    }
}

/// Zero-shot over the classes that arrived.
pub struct ZeroShot {
    frozen: Frozen,
    texts: ClassTexts,
}

impl Method for ZeroShot {
    fn epochs(&self) -> usize {
        0
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.texts.grow(task)
    }

    fn observe(&mut self, _: &Batch) -> Result<Tensor> {
        Err(Error::State {
            problem: "continual-clip has no training step".into(),
        })
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        self.texts.scores(&self.frozen.query(batch)?)
    }

    fn predict_task(&self, batch: &Batch, task: &TaskInfo) -> Result<Option<Tensor>> {
        self.texts.task_scores(&self.frozen.query(batch)?, task)
    }

    fn trainable(&self) -> usize {
        0
    }

    fn state(&self) -> Result<State> {
        let mut state = State::new();
        self.texts.save(&mut state);
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.texts.load(&mut state.clone())
    }

    fn session(&self) -> Result<Session> {
        Ok(Session::new())
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        self.restore(tasks, state)?;
        session.end()
    }
}
