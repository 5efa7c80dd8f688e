//! Classifier alignment: heads of all tasks are trained together on features drawn from what is known of each class.
//!
//! ```text
//! statistics   μ_c = mean f(x),  Σ_c = unbiased covariance of f(x) + 10⁻⁴ I        of each class, when its task is over
//! samples      x ~ N(a_c μ_c, Σ_c),  a_c = 0.9 + 0.1 (t_c + 1) / (t + 1)            `samples` of each class in each epoch
//! logits       z = [z_0 … z_t],  z_s = x W_sᵀ + b_s
//! loss         CE(z / (n(z) τ), y),  n(z) = mean_s (‖z_s‖ + 10⁻⁷)                   plain CE(z, y) without τ
//! step         SGD, momentum 0.9, cosine over the epochs, on all W_s and b_s
//! ```
//!
//! `t_c` is the task of class `c`, `t` the present one: statistics of old classes are of older backbones, so their means are
//! shrunk. The gradient flows through `n`. Source: SLCA (Zhang et al. 2023, `GengDavid/SLCA:models/slca.py`, `models/base.py`,
//! 169d4e6), where `t_c` is the class divided by the size of the present task: see [`Shrink::TaskSize`]. CoFiMA and MOS do the
//! same with other numbers.

use candle_core::{D, Device, Tensor, Var};
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{Error, Optimizer, OptimizerKind, Result, Schedule, State, TaskInfo, Train};
use candlewick_stats::{Cholesky, Moments, Symmetric};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use rand_distr::{Distribution as _, StandardNormal};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::classifier::{put, take};
use crate::draw::shuffle;

/// What is added to the diagonal of a covariance.
const JITTER: f64 = 1e-4;

/// Weight and bias of the head of one task, `(K, D)` and `(K)`.
pub type Head = [Tensor; 2];

/// The `[method.alignment]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Alignment {
    /// Passes; 0 for no alignment.
    pub epochs: usize,
    /// Features drawn of each class in each pass, and features of a step.
    pub samples: usize,
    /// Learning rate.
    pub lr: f64,
    /// Added to the gradient; 5e-4 where left out.
    #[serde(default = "weight_decay")]
    pub weight_decay: f64,
    /// `τ`; where left out, the loss is plain cross-entropy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_norm: Option<f64>,
    /// `a_c`.
    #[serde(default, skip_serializing_if = "Shrink::is_default")]
    pub shrink: Shrink,
}

fn weight_decay() -> f64 {
    5e-4
}

/// By how much the means of old classes are shrunk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shrink {
    /// `a_c = 0.9 + 0.1 (t_c + 1) / (t + 1)` with the task of the class.
    #[default]
    Task,
    /// The same with `t_c = c / K_t`, the class divided by the size of the present task: as published, and above 1 where that
    /// task is smaller than earlier ones.
    TaskSize,
    /// `a_c = 1`.
    None,
}

impl Shrink {
    /// `a_c` of class `class` of task `of`, while `present` is the last task.
    pub fn factor(self, class: usize, of: usize, present: &TaskInfo) -> f64 {
        let task = match self {
            Self::None => return 1.0,
            Self::Task => of,
            Self::TaskSize => class / present.classes.len().max(1),
        };
        0.9 + 0.1 * (task + 1) as f64 / (present.index + 1) as f64
    }

    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Alignment {
    /// Checks ranges; the error names the key.
    pub fn check(&self) -> Result<()> {
        let hold = |key: &str, ok: bool, found: String| match ok {
            true => Ok(()),
            false => Err(Error::setting(
                format!("method.alignment.{key}"),
                format!("must be greater than 0, found {found}"),
            )),
        };
        hold("samples", self.samples > 0, self.samples.to_string())?;
        hold(
            "lr",
            self.lr > 0.0 && self.lr.is_finite(),
            self.lr.to_string(),
        )?;
        let tau = self.logit_norm.unwrap_or(1.0);
        hold("logit_norm", tau > 0.0 && tau.is_finite(), tau.to_string())?;
        match self.weight_decay >= 0.0 && self.weight_decay.is_finite() {
            true => Ok(()),
            false => Err(Error::setting(
                "method.alignment.weight_decay",
                format!("must be at least 0, found {}", self.weight_decay),
            )),
        }
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self, method: &str) -> Vec<String> {
        match self.shrink {
            Shrink::TaskSize => vec![format!("{method}.alignment.shrink=task-size")],
            _ => vec![],
        }
    }

    /// Heads aligned to `classes`, behind the task `present`; `heads` themselves stay. `seed` draws the features, the same on
    /// any machine and any number of threads but for rounding. `tick` is called before each step; its error stops.
    pub fn align(
        &self,
        heads: &[Head],
        classes: &Gaussians,
        present: &TaskInfo,
        seed: u64,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Aligned> {
        let mut factors = classes.factors()?;
        for (class, factor) in factors.iter_mut().enumerate() {
            factor.shrink = self.shrink.factor(class, factor.task, present);
        }
        let mut alignment = Steps::new(self, heads)?;
        for epoch in 0..self.epochs {
            let stream =
                |class: usize| (present.index as u64) << 48 | (epoch as u64) << 32 | class as u64;
            let (features, labels) = draw(&factors, classes.dim, self.samples, seed, stream);
            alignment.epoch(epoch, &features, &labels, classes.dim, tick)?;
        }
        alignment.end()
    }
}

/// What alignment leaves.
#[derive(Debug, Clone)]
pub struct Aligned {
    /// The heads.
    pub heads: Vec<Head>,
    /// The gradients of the last step, by head; `None` without a step.
    pub last: Option<Vec<Head>>,
}

/// The steps over drawn features.
pub struct Steps {
    train: Train,
    tau: Option<f64>,
    vars: Vec<[Var; 2]>,
    optimizer: Optimizer,
    last: Option<Vec<Head>>,
}

impl Steps {
    /// Over copies of `heads`.
    pub fn new(alignment: &Alignment, heads: &[Head]) -> Result<Self> {
        let mut train = Train::new(
            alignment.epochs.max(1),
            alignment.samples,
            OptimizerKind::Sgd,
            alignment.lr,
        );
        train.schedule = Schedule::Cosine;
        train.weight_decay = alignment.weight_decay;
        let vars: Vec<[Var; 2]> = heads
            .iter()
            .map(|[w, b]| Ok([Var::from_tensor(&w.copy()?)?, Var::from_tensor(&b.copy()?)?]))
            .collect::<Result<_>>()?;
        let named = vars.iter().enumerate().flat_map(|(task, [w, b])| {
            [
                (format!("{task}.weight"), w.clone()),
                (format!("{task}.bias"), b.clone()),
            ]
        });
        Ok(Self {
            optimizer: Optimizer::new(named.collect(), &train)?,
            tau: alignment.logit_norm,
            train,
            vars,
            last: None,
        })
    }

    /// One pass over rows of `dim` values in their order; the losses of its steps.
    pub fn epoch(
        &mut self,
        epoch: usize,
        features: &[f32],
        labels: &[u32],
        dim: usize,
        tick: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        self.optimizer.begin_epoch(epoch);
        let Some([weight, _]) = self.vars.first() else {
            return Ok(Vec::new());
        };
        let device = weight.device().clone();
        let mut losses = Vec::new();
        let n = self.train.batch;
        for (rows, labels) in features.chunks(n * dim).zip(labels.chunks(n)) {
            tick()?;
            let x = Tensor::from_slice(rows, (labels.len(), dim), &device)?;
            let loss = self.loss(&x, labels)?;
            let grads = loss.backward()?;
            self.optimizer.apply(&grads)?;
            losses.push(loss.to_scalar::<f32>()?);
            let slope = |var: &Var| match grads.get(var) {
                Some(grad) => Ok(grad.detach()),
                None => Ok::<_, Error>(var.zeros_like()?),
            };
            let slopes = self.vars.iter().map(|[w, b]| Ok([slope(w)?, slope(b)?]));
            self.last = Some(slopes.collect::<Result<_>>()?);
        }
        match losses.iter().find(|loss| !loss.is_finite()) {
            None => Ok(losses),
            Some(loss) => Err(Error::setting(
                "method.alignment.lr",
                format!("the loss of an alignment step is {loss}; lower it"),
            )),
        }
    }

    /// The loss of features `(B, D)`.
    pub fn loss(&self, x: &Tensor, labels: &[u32]) -> Result<Tensor> {
        let part =
            |[w, b]: &[Var; 2]| -> Result<Tensor> { Ok(x.matmul(&w.t()?)?.broadcast_add(b)?) };
        let parts: Vec<Tensor> = self.vars.iter().map(part).collect::<Result<_>>()?;
        let logits = match self.tau {
            Some(tau) => normalised(&parts, tau)?,
            None => Tensor::cat(&parts, 1)?,
        };
        masked_cross_entropy(&logits, labels, &(0..logits.dim(1)?))
    }

    /// The heads as they are now.
    pub fn end(self) -> Result<Aligned> {
        let heads = self
            .vars
            .iter()
            .map(|[w, b]| Ok([w.as_detached_tensor(), b.as_detached_tensor()]));
        Ok(Aligned {
            heads: heads.collect::<Result<_>>()?,
            last: self.last,
        })
    }
}

/// `z / (n(z) τ)`, `(B, classes)`, of the logits of each task.
pub fn normalised(parts: &[Tensor], tau: f64) -> Result<Tensor> {
    let mut sum: Option<Tensor> = None;
    for part in parts {
        // The root's slope at 0 would be infinite.
        let norm = ((part.sqr()?.sum_keepdim(D::Minus1)? + 1e-30)?.sqrt()? + 1e-7)?;
        sum = Some(match sum {
            Some(sum) => (sum + norm)?,
            None => norm,
        });
    }
    let Some(sum) = sum else {
        return Err(Error::State {
            problem: "there is no head to align".into(),
        });
    };
    let mean = (sum * (tau / parts.len() as f64))?;
    Ok(Tensor::cat(parts, 1)?.broadcast_div(&mean)?)
}

/// Mean and covariance of every class, by task.
#[derive(Debug, Clone)]
pub struct Gaussians {
    dim: usize,
    tasks: Vec<Vec<Gaussian>>,
}

/// Of one class.
#[derive(Debug, Clone)]
struct Gaussian {
    mean: Vec<f32>,
    /// With the jitter, in f32.
    covariance: Symmetric<f32>,
}

/// A class, ready to be drawn from.
struct Factor<'a> {
    task: usize,
    shrink: f64,
    mean: &'a [f32],
    root: Cholesky,
}

impl Gaussians {
    /// Of features of `dim` values; no class yet.
    pub fn new(dim: usize) -> Self {
        Self {
            dim,
            tasks: Vec::new(),
        }
    }

    /// Tasks there are.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Adds the classes of a task by their features, `(n, dim)`, and labels.
    pub fn learn(&mut self, task: &TaskInfo, rows: &[f32], labels: &[u32]) -> Result<()> {
        let dim = self.dim;
        let classes: Vec<Gaussian> = task
            .classes
            .clone()
            .into_par_iter()
            .map(|class| {
                let all = rows.chunks_exact(dim).zip(labels);
                let own = all.filter(|(_, label)| **label as usize == class);
                let own: Vec<f32> = own.flat_map(|(row, _)| row).copied().collect();
                let moments = Moments::of(&own, dim);
                let Some(covariance) = moments.covariance() else {
                    return Err(Error::State {
                        problem: format!(
                            "class {} in order of arrival has {} training images; a covariance needs two",
                            class + 1,
                            moments.count
                        ),
                    });
                };
                let value = |i: usize, j: usize| {
                    let jitter = if i == j { JITTER } else { 0.0 };
                    (covariance.get(i, j) + jitter) as f32
                };
                Ok(Gaussian {
                    mean: moments.mean.iter().map(|v| *v as f32).collect(),
                    covariance: Symmetric::from_fn(dim, value),
                })
            })
            .collect::<Result<_>>()?;
        self.tasks.push(classes);
        Ok(())
    }

    fn classes(&self) -> impl Iterator<Item = (usize, &Gaussian)> {
        let tasks = self.tasks.iter().enumerate();
        tasks.flat_map(|(task, classes)| classes.iter().map(move |class| (task, class)))
    }

    /// `μ_c`.
    pub fn mean(&self, class: usize) -> Option<&[f32]> {
        Some(&self.classes().nth(class)?.1.mean)
    }

    /// `Σ_c`.
    pub fn covariance(&self, class: usize) -> Option<&Symmetric<f32>> {
        Some(&self.classes().nth(class)?.1.covariance)
    }

    fn factors(&self) -> Result<Vec<Factor<'_>>> {
        let all: Vec<(usize, &Gaussian)> = self.classes().collect();
        all.into_par_iter()
            .enumerate()
            .map(|(class, (task, gaussian))| {
                Ok(Factor {
                    task,
                    shrink: 1.0,
                    mean: &gaussian.mean,
                    root: root(&gaussian.covariance, class)?,
                })
            })
            .collect()
    }

    /// Adds what was learned to what is saved: `mean.T (K, D)` and `covariance.T (K, D (D + 1) / 2)`, triangles row by row.
    pub fn save(&self, state: &mut State) -> Result<()> {
        let (dim, triangle) = (self.dim, self.dim * (self.dim + 1) / 2);
        for (t, classes) in self.tasks.iter().enumerate() {
            let n = classes.len();
            let means = classes.iter().flat_map(|c| c.mean.clone()).collect();
            put(state, &format!("mean.{t}"), means, &[n, dim])?;
            let triangles = classes.iter().flat_map(|c| c.covariance.packed());
            let triangles = triangles.collect();
            put(state, &format!("covariance.{t}"), triangles, &[n, triangle])?;
        }
        Ok(())
    }

    /// Takes the classes of `tasks` out of what was saved.
    pub fn load(&mut self, tasks: &[TaskInfo], state: &mut State) -> Result<()> {
        let (dim, triangle) = (self.dim, self.dim * (self.dim + 1) / 2);
        self.tasks.clear();
        for (t, task) in tasks.iter().enumerate() {
            let n = task.classes.len();
            let means = take(state, &format!("mean.{t}"), &[n, dim])?;
            let triangles = take(state, &format!("covariance.{t}"), &[n, triangle])?;
            let pairs = means
                .chunks(dim.max(1))
                .zip(triangles.chunks(triangle.max(1)));
            let class = |(mean, triangle): (&[f32], &[f32])| {
                Ok(Gaussian {
                    mean: mean.to_vec(),
                    covariance: Symmetric::unpacked(dim, triangle)
                        .map_err(crate::classifier::misfit)?,
                })
            };
            self.tasks.push(pairs.map(class).collect::<Result<_>>()?);
        }
        Ok(())
    }
}

/// The factor of a covariance. Rounding to f32 can leave one of few images with a negative eigenvalue as small as that of
/// rounding: then as much is added as is needed, in steps of ten from its largest value's rounding on.
fn root(covariance: &Symmetric<f32>, class: usize) -> Result<Cholesky> {
    let n = covariance.n();
    let largest = (0..n)
        .map(|i| f64::from(covariance.get(i, i)))
        .fold(0.0, f64::max);
    let wide = covariance.map(f64::from);
    let mut ridge = 0.0;
    loop {
        match Cholesky::new(wide.clone(), ridge) {
            Ok(root) => return Ok(root),
            Err(e) if ridge > 1e-3 * largest || !largest.is_finite() => {
                return Err(Error::State {
                    problem: format!(
                        "the features of class {} in order of arrival cannot be drawn: {e}; training has diverged, lower train.lr",
                        class + 1
                    ),
                });
            }
            Err(_) if ridge == 0.0 => ridge = f64::from(f32::EPSILON) * largest.max(JITTER),
            Err(_) => ridge *= 10.0,
        }
    }
}

/// `samples` features of each class, shuffled, with their labels. Each class has a generator of its own, by `stream`.
fn draw(
    factors: &[Factor<'_>],
    dim: usize,
    samples: usize,
    seed: u64,
    stream: impl Fn(usize) -> u64 + Sync,
) -> (Vec<f32>, Vec<u32>) {
    let generator = |class: usize| {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream(class));
        rng
    };
    let rows: Vec<Vec<f32>> = factors
        .par_iter()
        .enumerate()
        .map(|(class, factor)| {
            let mut rng = generator(class);
            let z: Vec<f64> = (0..samples * dim)
                .map(|_| StandardNormal.sample(&mut rng))
                .collect();
            let mut x = factor.root.coloured(&z);
            for row in x.chunks_exact_mut(dim) {
                row.iter_mut()
                    .zip(factor.mean)
                    .for_each(|(x, mean)| *x += factor.shrink * f64::from(*mean));
            }
            x.into_iter().map(|x| x as f32).collect()
        })
        .collect();
    let mut order: Vec<usize> = (0..factors.len() * samples).collect();
    shuffle(&mut order, &mut generator(factors.len()));
    let row = |i: &usize| &rows[i / samples][i % samples * dim..][..dim];
    let features = order.iter().flat_map(row).copied().collect();
    (
        features,
        order.iter().map(|i| (i / samples) as u32).collect(),
    )
}

/// Features of plain images, all of a task: rows and labels. On the CPU.
pub(crate) fn rows_of(features: &Tensor) -> Result<Vec<f32>> {
    Ok(features
        .to_device(&Device::Cpu)?
        .flatten_all()?
        .to_vec1::<f32>()?)
}
