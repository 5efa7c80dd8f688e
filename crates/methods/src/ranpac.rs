//! RanPAC: ridge regression on a random projection of the feature (McDonnell et al. 2023, "RanPAC: Random Projections and
//! Pre-trained Models for Continual Learning").
//!
//! ```text
//! first task:  the backbone is tuned, where `tuning` is given
//! W (d, M) ~ N(0, 1), drawn once, not scaled;  h = ReLU(f W)          M = 0: h = f
//! every task:  G ← G + Σ h hᵀ,  Q ← Q + Σ h yᵀ                       test transform, y one-hot
//!              λ: of 10⁻⁸ … 10⁸ the one whose head of the first 80 % of the task's shuffled images has the least squared
//!                 error on the other 20 %
//!              W_o = (G + λI)⁻¹ Q
//! score(x) = h W_o                                                   no bias, no norm
//! ```
//!
//! Its saved state holds the features of all past training images while `2n ≤ M`, from which G is had exactly in less room; behind
//! that G and Q, from which no image can be told.
//!
//! Source: `RanPAC/RanPAC:RanPAC.py`, `inc_net.py` (012927f). λ is searched in f64, where small ones differ from the f32 of
//! the source, which solves singular systems. `compat = "pilot"` is the head of `LAMDA-CL/LAMDA-PILOT:models/ranpac.py`:
//! `cos(h, W_o)`.

use std::sync::Arc;

use candle_core::Device;
use candlewick_core::{Backbone, Error, Init, Params, Result, State, TaskInfo, Train};
use candlewick_stats::{
    Identity, Kept, Lift, Projection, RIDGES, Ridge, Symmetric, lifted, lifted_scores,
    validation_errors,
};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use serde::{Deserialize, Serialize};

use crate::classifier::{
    Classifier, OneLook, Seen, classes, misfit, put, singular, take, take_parts, widened,
};
use crate::draw::shuffle;
use crate::tuning::{Look, Tuning};

/// `[method] name = "ranpac"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RanPac {
    /// Values of the projected feature, `M`; 0 for none.
    pub projection: usize,
    /// λ, instead of searching it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ridge: Option<f64>,
    /// A head of other code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<RanPacCompat>,
    /// Tunes the backbone on the first task; it is left frozen where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
}

/// See [`RanPac::compat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RanPacCompat {
    /// Scores are cosines: the norms of the solution are thrown away.
    Pilot,
}

impl RanPac {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        check_ridge(self.ridge)?;
        self.tuning.as_ref().map_or(Ok(()), Tuning::check)
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        let mut found = match self.compat {
            Some(RanPacCompat::Pilot) => vec!["ranpac.compat=pilot".to_owned()],
            None => vec![],
        };
        found.extend(self.tuning.iter().flat_map(|t| t.compat("ranpac")));
        found
    }

    /// Draws `W` from `seed`. `batch` images are looked at together where nothing is trained.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Option<Train>,
        batch: usize,
        seed: u64,
    ) -> Result<OneLook<RidgeHead>> {
        self.check()?;
        let look = Look::new(backbone, self.tuning.as_ref(), train, seed, false)?;
        let head = self.classifier(look.dim(), seed)?;
        Ok(OneLook::new(look, head, batch))
    }

    /// On features of `dim` values.
    pub fn classifier(&self, dim: usize, seed: u64) -> Result<RidgeHead> {
        let weights = match self.projection {
            0 => Vec::new(),
            width => {
                // Not among the parameters: neither counted nor saved, since the seed gives it again.
                let mut drawn = Params::seeded(seed, &Device::Cpu);
                let init = Init::Normal { std: 1.0 };
                let w = drawn.create("projection", &[dim, width], init)?;
                crate::classifier::values(&w)?
            }
        };
        RidgeHead::new(self, dim, weights, Some(seed))
    }
}

pub(crate) fn check_ridge(ridge: Option<f64>) -> Result<()> {
    match ridge {
        Some(ridge) if !(ridge > 0.0 && ridge.is_finite()) => Err(Error::setting(
            "method.ridge",
            format!("must be greater than 0, found {ridge}"),
        )),
        _ => Ok(()),
    }
}

/// Sums over everything seen, and the head solved from them.
pub struct RidgeHead {
    statistics: Ridge,
    fixed: Option<f64>,
    cosine: bool,
    /// Shuffles the images of a task before they are split; in stored order without.
    seed: Option<u64>,
    ridge: f32,
    /// `W_o (m, classes)`.
    head: Vec<f32>,
}

impl RidgeHead {
    /// With `W (dim, projection)` row by row.
    pub fn new(config: &RanPac, dim: usize, weights: Vec<f32>, seed: Option<u64>) -> Result<Self> {
        let lift: Box<dyn Lift> = match config.projection {
            0 => Box::new(Identity(dim)),
            width => Box::new(Projection::new(dim, width, weights).map_err(misfit)?),
        };
        Ok(Self {
            statistics: Ridge::new(lift),
            fixed: config.ridge,
            cosine: config.compat == Some(RanPacCompat::Pilot),
            seed,
            ridge: 0.0,
            head: Vec::new(),
        })
    }

    /// `G` and `Q`.
    pub fn statistics(&self) -> &Ridge {
        &self.statistics
    }

    /// The same, to merge others into; [`solve`](Self::solve) afterwards.
    pub fn statistics_mut(&mut self) -> &mut Ridge {
        &mut self.statistics
    }

    /// λ of the last task.
    pub fn ridge(&self) -> f64 {
        f64::from(self.ridge)
    }

    /// `W_o (m, classes)`, row by row.
    pub fn head(&self) -> &[f32] {
        &self.head
    }

    /// Solves the head for a ridge.
    pub fn solve(&mut self, ridge: f64) -> Result<()> {
        // Saved in f32, so used as f32 from the start.
        let ridge = f64::from(ridge as f32);
        let solved = self.statistics.solve(ridge);
        let solved = solved.map_err(|e| singular("method.ridge", e))?;
        self.ridge = solved.ridge as f32;
        self.head = solved.weights;
        Ok(())
    }

    /// The squared error of each of [`RIDGES`] on the last fifth of the rows, by image.
    pub fn validation(&self, seen: Seen<'_>) -> Vec<f64> {
        let fit = seen.labels.len() * 4 / 5;
        let order = self.shuffled(seen);
        let labels: Vec<u32> = order.iter().map(|&i| seen.labels[i]).collect();
        let rows: Vec<f32> = order
            .iter()
            .flat_map(|&i| &seen.rows[i * seen.dim..(i + 1) * seen.dim])
            .copied()
            .collect();
        let lift = self.statistics.lift();
        validation_errors(lift, &rows, &labels, fit, &seen.task.classes, &RIDGES)
    }

    fn shuffled(&self, seen: Seen<'_>) -> Vec<usize> {
        let mut order: Vec<usize> = (0..seen.labels.len()).collect();
        if let Some(seed) = self.seed {
            let mut rng = ChaCha8Rng::seed_from_u64(seed ^ (seen.task.index as u64) << 32);
            shuffle(&mut order, &mut rng);
        }
        order
    }

    fn search(&self, seen: Seen<'_>) -> Result<f64> {
        if seen.labels.len() < 2 {
            return Err(Error::setting(
                "method.ridge",
                format!(
                    "task {} has {} image, too few to hold some back; set a ridge",
                    seen.task.index + 1,
                    seen.labels.len()
                ),
            ));
        }
        let errors = self.validation(seen);
        let best = errors.iter().zip(RIDGES).min_by(|a, b| a.0.total_cmp(b.0));
        Ok(best.map_or(1.0, |(_, ridge)| ridge))
    }
}

impl Classifier for RidgeHead {
    fn grow(&mut self, task: &TaskInfo) -> Result<()> {
        let before = self.statistics.classes();
        self.statistics.grow(task.classes.end);
        let now = self.statistics.classes();
        // A class scores 0 until it is learned.
        self.head = widened(&self.head, self.statistics.lift().width(), before, now);
        Ok(())
    }

    fn learn(&mut self, seen: Seen<'_>) -> Result<()> {
        let ridge = match self.fixed {
            Some(ridge) => ridge,
            None => self.search(seen)?,
        };
        let added = self.statistics.add(seen.rows, seen.labels);
        added.map_err(misfit)?;
        self.solve(ridge)
    }

    fn knows(&self, class: usize) -> bool {
        match self.statistics.kept() {
            Kept::Images(parts) => {
                let mut labels = parts.iter().flat_map(|part| &part.labels);
                labels.any(|label| *label as usize == class)
            }
            // The column of a class without images is 0.
            Kept::Sums(_, sums) => sums
                .get(class)
                .is_some_and(|sum| sum.iter().any(|v| *v != 0.0)),
        }
    }

    fn scores(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let (width, c) = (self.statistics.lift().width(), self.statistics.classes());
        let mut scores = lifted_scores(self.statistics.lift(), rows, &self.head, c);
        if self.cosine {
            let lifted = lifted(self.statistics.lift(), rows, 0..width);
            let norm = |values: &mut dyn Iterator<Item = f32>| -> f32 {
                let squares: f64 = values.map(|v| f64::from(v) * f64::from(v)).sum();
                squares.sqrt().max(1e-12) as f32
            };
            let column = |c0: usize| self.head.iter().skip(c0).step_by(c.max(1)).copied();
            let norms: Vec<f32> = (0..c).map(|c0| norm(&mut column(c0))).collect();
            for (row, h) in scores
                .chunks_exact_mut(c.max(1))
                .zip(lifted.chunks_exact(width.max(1)))
            {
                let own = norm(&mut h.iter().copied());
                row.iter_mut().zip(&norms).for_each(|(s, n)| *s /= own * n);
            }
        }
        Ok(scores)
    }

    /// The features by task, as long as they take less room than `G`; else `G` and `Q`. The head is solved again.
    fn save(&self, state: &mut State) -> Result<()> {
        let (d, width) = (self.statistics.lift().dim(), self.statistics.lift().width());
        match self.statistics.kept() {
            Kept::Images(parts) => {
                for (t, part) in parts.iter().enumerate() {
                    let n = part.labels.len();
                    put(state, &format!("features.{t}"), part.rows.clone(), &[n, d])?;
                    let labels = part.labels.iter().map(|l| *l as f32).collect();
                    put(state, &format!("labels.{t}"), labels, &[n])?;
                }
            }
            Kept::Sums(gram, sums) => {
                let packed = gram.packed();
                let n = packed.len();
                put(state, "gram", packed, &[n])?;
                put(state, "sums", sums.concat(), &[sums.len(), width])?;
            }
        }
        put(state, "ridge", vec![self.ridge], &[1])
    }

    fn load(&mut self, tasks: &[TaskInfo], state: &mut State) -> Result<()> {
        let (d, width) = (self.statistics.lift().dim(), self.statistics.lift().width());
        if state.contains_key("gram") {
            let packed = take(state, "gram", &[width * (width + 1) / 2])?;
            let gram = Symmetric::unpacked(width, &packed).map_err(misfit)?;
            let sums = take(state, "sums", &[classes(tasks), width])?;
            let sums = sums.chunks(width.max(1)).map(<[f32]>::to_vec).collect();
            self.statistics.restore(gram, sums).map_err(misfit)?;
        } else {
            for (rows, labels) in take_parts(tasks, d, state)? {
                self.statistics.add(&rows, &labels).map_err(misfit)?;
            }
        }
        let ridge = take(state, "ridge", &[1])?;
        match tasks.is_empty() {
            true => Ok(()),
            false => self.solve(f64::from(ridge[0])),
        }
    }
}
