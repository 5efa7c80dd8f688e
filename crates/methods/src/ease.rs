//! EASE: an adapter for each task, class means in every adapter's features, and those that were never measured made up from the
//! likeness of classes (Zhou et al. 2024, "Expandable Subspace Ensemble for Pre-Trained Model-Based Class-Incremental Learning").
//!
//! ```text
//! task t trains adapter t:   L = CE(σ · cos(f_t(x), v_c)) over the task's classes     v and σ new in each task
//! behind it:                 W_c,j = mean f_j of class c of task t,  j ≤ t
//! for j > t:                 Ŵ_c,j = Σ_k softmax_k(cos(W_c,t, W_k,t)) W_k,j           k: all classes of tasks j, j + 1, …
//! score of class c of task t = cos(f_t, W_c,t) + α / T' · Σ_{j≠t} cos(f_j, W_c,j)     T' = tasks seen less one
//! ```
//!
//! An adapter, once its task is over, stands still and is never left out: a test image goes through the backbone once for each
//! task. Source: `LAMDA-CL/LAMDA-PILOT:models/ease.py`, `utils/inc_net.py`, `backbone/linears.py` (5240714), which takes all tasks
//! but the first to be of one size.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use candlewick_core::backbone::l2_normalize;
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{
    Backbone, Batch, Error, Init, Method, Optimizer, Params, Progress, Prompt, Result, Session,
    State, Task, TaskInfo, Train, View,
};
use serde::{Deserialize, Serialize};

use crate::adapter::Adapters;
use crate::classifier::{dot, put, take, values};
use crate::pet::{Pet, cls, dropout};

/// `[method] name = "ease"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ease {
    /// Inner width of an adapter.
    pub bottleneck: usize,
    /// Probability that an inner value is left out in training; 0.1 where left out, as published.
    #[serde(default = "dropout")]
    pub dropout: f32,
    /// What the adapters of other tasks say together, α; 0.1 where left out, as published.
    #[serde(default = "alpha")]
    pub alpha: f64,
}

fn alpha() -> f64 {
    0.1
}

impl Ease {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let adapter = Pet::Adaptformer {
            bottleneck: self.bottleneck,
            dropout: self.dropout,
        };
        adapter.check("method")?;
        match self.alpha.is_finite() {
            true => Ok(()),
            false => Err(Error::setting(
                "method.alpha",
                format!("must be a number, found {}", self.alpha),
            )),
        }
    }

    /// Draws adapters from `seed`, task by task; `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Train,
        batch: usize,
        seed: u64,
    ) -> Result<Subspaces> {
        self.check()?;
        train.check()?;
        Ok(Subspaces {
            config: self.clone(),
            params: Params::seeded(seed, backbone.device()),
            means: Means::new(backbone.spec().dim, self.alpha),
            backbone,
            adapters: Vec::new(),
            train,
            batch,
            seed,
            current: None,
        })
    }
}

/// The adapters of all tasks and the class means in their features.
pub struct Subspaces {
    config: Ease,
    backbone: Arc<dyn Backbone>,
    params: Params,
    adapters: Vec<Adapters>,
    means: Means,
    train: Train,
    batch: usize,
    seed: u64,
    /// The task that is trained on.
    current: Option<(TaskInfo, Optimizer)>,
}

impl Subspaces {
    /// `task.T.adapter.…`, `task.T.weight (K, D)` and `task.T.sigma (1)`: adapters, and the heads they were trained under.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// The training loss of a batch of the current task.
    pub fn loss(&self, batch: &Batch) -> Result<Tensor> {
        let (Some((task, _)), Some(adapter)) = (&self.current, self.adapters.last()) else {
            return Err(Error::no_task());
        };
        let features = cls(self.backbone.as_ref(), &batch.images, adapter, true)?;
        let own = |name: &str| self.params.get(&format!("task.{}.{name}", task.index));
        let weight = l2_normalize(&own("weight")?)?;
        let cosine = l2_normalize(&features)?.matmul(&weight.t()?)?;
        let logits = cosine.broadcast_mul(&own("sigma")?)?;
        masked_cross_entropy(&logits, &batch.labels, &task.classes)
    }

    /// `f_j(x)`, `(B, D)` row by row, of the adapters of the first tasks.
    fn features(&self, batch: &Batch, tasks: usize) -> Result<Vec<Vec<f32>>> {
        let adapters = self.adapters.iter().take(tasks);
        adapters
            .map(|adapter| values(&cls(self.backbone.as_ref(), &batch.images, adapter, false)?))
            .collect()
    }

    fn optimizer(&self, task: usize) -> Result<Optimizer> {
        let start = format!("task.{task}.");
        let own = self.params.named().into_iter();
        let own = own.filter(|(name, _)| name.starts_with(&start));
        Optimizer::new(own.collect(), &self.train)
    }
}

impl Method for Subspaces {
    fn epochs(&self) -> usize {
        self.train.epochs
    }

    fn batch_size(&self) -> usize {
        self.train.batch
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        let (t, spec) = (task.index, self.backbone.spec());
        let mut adapters = Adapters::named(
            &format!("task.{t}.adapter"),
            self.config.bottleneck,
            self.config.dropout,
            self.seed,
            spec,
            &mut self.params,
        )?;
        adapters.begin_task(task, &mut self.params)?;
        self.adapters.push(adapters);
        let high = 1.0 / (spec.dim as f32).sqrt();
        let init = Init::Uniform { low: -high, high };
        let shape = [task.classes.len(), spec.dim];
        self.params
            .create(&format!("task.{t}.weight"), &shape, init)?;
        self.params
            .create(&format!("task.{t}.sigma"), &[1], Init::Ones)?;
        self.means.grow(task.classes.len());
        self.current = Some((task.clone(), self.optimizer(t)?));
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: usize) -> Result<()> {
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.begin_epoch(epoch);
        }
        Ok(())
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        let loss = self.loss(batch)?;
        if let Some((_, optimizer)) = &mut self.current {
            optimizer.step(&loss)?;
        }
        Ok(loss.detach())
    }

    fn end_task(&mut self, task: &Task, progress: Progress<'_>) -> Result<()> {
        self.current = None;
        let (t, classes) = (task.info.index, &task.info.classes);
        let dim = self.means.dim;
        // f64 sums: the mean does not depend on how images are grouped into batches.
        let mut sums = vec![vec![0f64; classes.len() * dim]; t + 1];
        let mut images = vec![0usize; classes.len()];
        for batch in task.train.batches(View::Plain, self.batch) {
            let batch = batch?;
            for (sum, features) in sums.iter_mut().zip(self.features(&batch, t + 1)?) {
                for (row, &label) in features.chunks(dim).zip(&batch.labels) {
                    let class = label as usize - classes.start;
                    let sum = &mut sum[class * dim..][..dim];
                    sum.iter_mut()
                        .zip(row)
                        .for_each(|(s, x)| *s += f64::from(*x));
                }
            }
            for &label in &batch.labels {
                images[label as usize - classes.start] += 1;
            }
            progress(batch.len())?;
        }
        if let Some(class) = images.iter().position(|n| *n == 0) {
            return Err(Error::State {
                problem: format!(
                    "class {} of task {} has no readable training image, so it has no mean",
                    class + 1,
                    t + 1
                ),
            });
        }
        let mean = |sum: Vec<f64>| {
            let rows = sum.chunks(dim).zip(&images);
            let rows = rows.flat_map(|(row, n)| row.iter().map(|s| (s / *n as f64) as f32));
            rows.collect()
        };
        self.means.learn(sums.into_iter().map(mean).collect());
        Ok(())
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        let features = self.features(batch, self.means.learned())?;
        let scores = self.means.scores(&features, batch.len());
        let shape = (batch.len(), self.means.classes());
        Ok(Tensor::from_vec(scores, shape, &Device::Cpu)?)
    }

    fn trainable(&self) -> usize {
        self.params.count()
    }

    fn state(&self) -> Result<State> {
        let mut state = self.params.state()?;
        for (t, task) in self.means.tasks.iter().enumerate() {
            for (j, mean) in task.measured.iter().enumerate() {
                let shape = [task.classes, self.means.dim];
                put(&mut state, &format!("means.{t}.{j}"), mean.clone(), &shape)?;
            }
        }
        Ok(state)
    }

    fn restore(&mut self, tasks: &[TaskInfo], state: &State) -> Result<()> {
        for task in tasks {
            self.begin_task(task)?;
        }
        self.current = None;
        let mut rest = state.clone();
        for t in 0..tasks.len() {
            let classes = self.means.tasks[t].classes;
            if rest.contains_key(&format!("means.{t}.0")) {
                let shape = [classes, self.means.dim];
                let measured = (0..=t).map(|j| take(&mut rest, &format!("means.{t}.{j}"), &shape));
                let measured = measured.collect::<Result<_>>()?;
                self.means.learn_task(t, measured);
            }
        }
        self.params.load_state(&rest)
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        if let (Some((_, optimizer)), Some(adapter)) = (&self.current, self.adapters.last()) {
            session.put_part("optimizer", optimizer.session()?);
            session.put_part("adapter", adapter.session()?);
        }
        Ok(session)
    }

    fn resume(&mut self, tasks: &[TaskInfo], state: &State, mut session: Session) -> Result<()> {
        self.restore(tasks, state)?;
        if let (false, Some(task)) = (session.is_empty(), tasks.last()) {
            let mut optimizer = self.optimizer(task.index)?;
            optimizer.resume(session.take_part("optimizer"))?;
            self.current = Some((task.clone(), optimizer));
            if let Some(adapter) = self.adapters.last_mut() {
                adapter.resume(session.take_part("adapter"))?;
            }
        }
        session.end()
    }
}

/// Class means in the features of each adapter.
pub struct Means {
    dim: usize,
    alpha: f64,
    tasks: Vec<TaskMeans>,
    /// By task `t`, then by adapter `j`, `(K_t, D)`: measured for `j ≤ t`, else made up.
    full: Vec<Vec<Vec<f32>>>,
}

struct TaskMeans {
    classes: usize,
    /// By adapter `j ≤ t`, `(K_t, D)`; empty until the task is learned.
    measured: Vec<Vec<f32>>,
}

impl Means {
    /// Of features of `dim` values, with the weight α of other tasks' adapters.
    pub fn new(dim: usize, alpha: f64) -> Self {
        Self {
            dim,
            alpha,
            tasks: Vec::new(),
            full: Vec::new(),
        }
    }

    /// A place for the classes of the next task.
    pub fn grow(&mut self, classes: usize) {
        self.tasks.push(TaskMeans {
            classes,
            measured: Vec::new(),
        });
    }

    /// The means of the newest task, by adapter.
    pub fn learn(&mut self, measured: Vec<Vec<f32>>) {
        if let Some(newest) = self.tasks.len().checked_sub(1) {
            self.learn_task(newest, measured);
        }
    }

    fn learn_task(&mut self, t: usize, measured: Vec<Vec<f32>>) {
        if let Some(task) = self.tasks.get_mut(t) {
            task.measured = measured;
        }
        let learned = self.learned();
        self.full = (0..learned)
            .map(|t| (0..learned).map(|j| self.mean(t, j, learned)).collect())
            .collect();
    }

    fn classes(&self) -> usize {
        self.tasks.iter().map(|task| task.classes).sum()
    }

    fn learned(&self) -> usize {
        let tasks = self.tasks.iter();
        tasks.take_while(|task| !task.measured.is_empty()).count()
    }

    /// `W_t,j`, or what is made up in its place, `(K_t, D)`.
    fn mean(&self, t: usize, j: usize, learned: usize) -> Vec<f32> {
        if let Some(measured) = self.tasks[t].measured.get(j) {
            return measured.clone();
        }
        let of = |adapter: usize| -> Vec<f32> {
            let later = self.tasks[j..learned].iter();
            later
                .flat_map(|task| task.measured[adapter].clone())
                .collect()
        };
        let (near, there) = (of(t), of(j));
        let mut made = Vec::new();
        for own in self.tasks[t].measured[t].chunks(self.dim) {
            // Cosines are at most 1, so nothing overflows.
            let likeness = near.chunks(self.dim).map(|other| cosine(own, other).exp());
            let likeness: Vec<f64> = likeness.collect();
            let sum: f64 = likeness.iter().sum();
            let mut row = vec![0f64; self.dim];
            for (weight, other) in likeness.iter().zip(there.chunks(self.dim)) {
                let weight = weight / sum;
                row.iter_mut()
                    .zip(other)
                    .for_each(|(r, x)| *r += weight * f64::from(*x));
            }
            made.extend(row.into_iter().map(|r| r as f32));
        }
        made
    }

    /// Scores `(n, classes)` of the features of `n` images, adapter by adapter. A task that is not learned yet is never the best.
    pub fn scores(&self, features: &[Vec<f32>], n: usize) -> Vec<f32> {
        let learned = self.full.len();
        let others = self.alpha / learned.saturating_sub(1).max(1) as f64;
        let images: Vec<Vec<f64>> = features.iter().map(|rows| self.norms(rows)).collect();
        let mut scores = vec![f32::NEG_INFINITY; n * self.classes()];
        let mut first = 0;
        for (t, full) in self.full.iter().enumerate() {
            let classes = self.tasks[t].classes;
            let means: Vec<Vec<f64>> = full.iter().map(|rows| self.norms(rows)).collect();
            for (i, class) in (0..n).flat_map(|i| (0..classes).map(move |class| (i, class))) {
                let parts = (0..learned).map(|j| {
                    let weight = if j == t { 1.0 } else { others };
                    let product = dot(self.row(&features[j], i), self.row(&full[j], class));
                    weight * product / (images[j][i] * means[j][class]).max(1e-12)
                });
                scores[i * self.classes() + first + class] = parts.sum::<f64>() as f32;
            }
            first += classes;
        }
        scores
    }

    fn norms(&self, rows: &[f32]) -> Vec<f64> {
        let rows = rows.chunks(self.dim);
        rows.map(|row| dot(row, row).sqrt()).collect()
    }

    fn row<'a>(&self, rows: &'a [f32], row: usize) -> &'a [f32] {
        &rows[row * self.dim..][..self.dim]
    }

    /// `W_t,j`, measured or made up, `(K_t, D)`, of the tasks learned.
    pub fn of(&self, task: usize, adapter: usize) -> Option<&[f32]> {
        Some(self.full.get(task)?.get(adapter)?)
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12)
}
