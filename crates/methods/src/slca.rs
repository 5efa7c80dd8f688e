//! SLCA: a slow learner with classifier alignment (Zhang et al. 2023).
//!
//! ```text
//! for each task t:
//!   stage 1   L = CE(z_t, y) over the classes of the task; the backbone at lr · backbone_lr, the head at lr
//!   learn     μ_c, Σ_c of the new classes, test transform
//!   stage 2   for t > 0: aligned heads from copies of all heads, on features drawn from all classes
//!   predict   argmax over the logits of the aligned heads
//! ```
//!
//! What is kept are the heads from before stage 2: alignment is done anew behind each task, from them, and predictions read its
//! heads. So evaluation takes nothing back, where `GengDavid/SLCA:models/slca.py` (169d4e6) restores the heads behind it.
//! Statistics of old classes stay as they were taken, though the backbone moves. See [`alignment`](crate::alignment) for stage 2
//! and [`whole`](crate::whole) for stage 1. The original begins with a fresh final norm; here the pretrained one is kept, as in
//! `LAMDA-CL/LAMDA-PILOT:models/slca.py`.

use std::sync::Arc;

use candle_core::Tensor;
use candlewick_core::{
    Backbone, Batch, Method, Progress, Result, Session, State, Task, TaskInfo, Train, View,
};
use serde::{Deserialize, Serialize};

use crate::alignment::{Aligned, Alignment, Gaussians, Head, rows_of};
use crate::classifier::{put, take, values};
use crate::finetune::check_factor;
use crate::whole::{Among, Rates, Whole};

/// `[method] name = "slca"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slca {
    /// Factor on the rate of the backbone; 0.01 as published.
    pub backbone_lr: f64,
    /// Stage 2.
    pub alignment: Alignment,
}

impl Slca {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        check_factor("backbone_lr", self.backbone_lr)?;
        self.alignment.check()
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self, method: &str) -> Vec<String> {
        self.alignment.compat(method)
    }

    /// `seed` draws heads and features; `batch` images are looked at together for statistics.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<SlowLearner> {
        self.check()?;
        let rates = Rates::All {
            backbone: self.backbone_lr,
            layer_decay: 1.0,
        };
        let whole = Whole::new(backbone, train, rates, Among::Task, seed)?;
        Ok(SlowLearner {
            classes: Gaussians::new(whole.dim()),
            whole,
            alignment: self.alignment.clone(),
            aligned: None,
            batch,
            seed,
        })
    }
}

/// SLCA under way.
pub struct SlowLearner {
    pub(crate) whole: Whole,
    alignment: Alignment,
    classes: Gaussians,
    /// Heads of stage 2, until the next task begins.
    aligned: Option<Vec<Head>>,
    batch: usize,
    seed: u64,
}

impl SlowLearner {
    /// The network.
    pub fn whole(&self) -> &Whole {
        &self.whole
    }

    /// The heads that predict: those of stage 2 where there are any.
    pub fn heads(&self) -> Vec<Head> {
        self.aligned.clone().unwrap_or_else(|| self.whole.heads())
    }

    /// Statistics of the new classes, then stage 2.
    pub(crate) fn consolidate(
        &mut self,
        task: &Task,
        progress: Progress<'_>,
    ) -> Result<Option<Aligned>> {
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for batch in task.train.batches(View::Plain, self.batch) {
            let batch = batch?;
            rows.extend(rows_of(&self.whole.features(&batch)?)?);
            labels.extend_from_slice(&batch.labels);
            progress(batch.len())?;
        }
        self.classes.learn(&task.info, &rows, &labels)?;
        if task.info.index == 0 || self.alignment.epochs == 0 {
            return Ok(None);
        }
        let aligned = self.alignment.align(
            &self.whole.heads(),
            &self.classes,
            &task.info,
            self.seed,
            &mut || progress(0),
        )?;
        self.aligned = Some(aligned.heads.clone());
        Ok(Some(aligned))
    }

    /// Takes what is not the network's out of a saved state; `ended` are the tasks that are over.
    fn take(&mut self, ended: &[TaskInfo], state: &mut State) -> Result<()> {
        self.classes.load(ended, state)?;
        self.aligned = None;
        if !state.keys().any(|name| name.starts_with(ALIGNED)) {
            return Ok(());
        }
        let device = self.whole.device();
        let dim = self.whole.dim();
        let heads = ended.iter().enumerate().map(|(t, task)| {
            let n = task.classes.len();
            let mut tensor = |part: &str, shape: &[usize]| -> Result<Tensor> {
                let values = take(state, &format!("{ALIGNED}{t}.{part}"), shape)?;
                Ok(Tensor::from_vec(values, shape, device)?)
            };
            Ok([tensor("weight", &[n, dim])?, tensor("bias", &[n])?])
        });
        self.aligned = Some(heads.collect::<Result<_>>()?);
        Ok(())
    }
}

/// Before the names of the heads of stage 2.
const ALIGNED: &str = "aligned.";

impl Method for SlowLearner {
    fn epochs(&self) -> usize {
        self.whole.train().epochs
    }

    fn batch_size(&self) -> usize {
        self.whole.train().batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.aligned = None;
        self.whole.begin_task(task)
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        self.whole.begin_epoch(epoch);
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        self.whole.observe(batch)
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.whole.settle();
        self.consolidate(task, progress)?;
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let features = self.whole.features(batch)?;
        let Some(heads) = &self.aligned else {
            return self.whole.logits(&features);
        };
        let logits = heads
            .iter()
            .map(|[w, b]| Ok(features.matmul(&w.t()?)?.broadcast_add(b)?));
        let logits: Vec<Tensor> = logits.collect::<Result<_>>()?;
        Ok(Tensor::cat(&logits, 1)?.contiguous()?)
    }

    fn trainable(&self) -> usize {
        self.whole.trainable()
    }

    fn state(&self) -> Result<State> {
        let mut state = self.whole.state()?;
        self.classes.save(&mut state)?;
        for (t, [weight, bias]) in self.aligned.iter().flatten().enumerate() {
            for (part, tensor) in [("weight", weight), ("bias", bias)] {
                put(
                    &mut state,
                    &format!("{ALIGNED}{t}.{part}"),
                    values(tensor)?,
                    tensor.dims(),
                )?;
            }
        }
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        self.resume(tasks, state, Session::new())
    }

    fn session(&self) -> Result<Session> {
        self.whole.session()
    }

    /// A session that is not empty is of a task under way.
    fn resume(&mut self, tasks: &[TaskInfo], state: &State, session: Session) -> Result<()> {
        let ended = match session.is_empty() {
            true => tasks,
            false => &tasks[..tasks.len().saturating_sub(1)],
        };
        let mut network = state.clone();
        // What is left is the network's, which takes all that it is given.
        self.take(ended, &mut network)?;
        self.whole.resume(tasks, &network, session)
    }
}
