//! FeCAM: nearest class mean by a Mahalanobis distance of each class (Goswami et al. 2023, "FeCAM: Exploiting the
//! Heterogeneity of Class Distributions in Exemplar-Free Continual Learning").
//!
//! ```text
//! x   = z / |z|,  z = f, or f^β with Tukey's transform            sign kept where f < 0
//! μ_c = mean x,  Σ_c = unbiased covariance of x                   training images of class c, test transform
//! Σ_s = Σ_c + γ₁ V₁ I + γ₂ V₂ (1 − I)                             V₁, V₂: mean of Σ_c's diagonal, of the rest
//! R_c = D^(−½) Σ_s D^(−½),  D = diag Σ_s                          correlations
//! score_c(x) = −(x − μ_c)ᵀ R_c⁻¹ (x − μ_c)
//! ```
//!
//! Source: `dipamgoswami/FeCAM:models/base.py`, and for frozen ViTs `FeCAM_vit_cifar100.py` (γ = 1, 0),
//! `FeCAM_vit_imagenet-r.py` (γ = 10, 10), both without Tukey's transform, which is meant for features that are nowhere negative.
//! `compat = "pilot"` is `LAMDA-CL/LAMDA-PILOT:models/fecam.py` (5240714): `x = f/|f| − μ/|μ|` with means and covariances of
//! raw features, `Σ_s = Σ_c + 100 I`, and `R_c` correlates the rows of `Σ_s`, which leaves it near `I`.
//!
//! A class with one image has no covariance yet: `R_c = I`, to which any `Σ_c` shrinks. A class that comes again, in another
//! domain, has mean and covariance of all its images, merged as in [`nearest_mean`](crate::nearest_mean); the scatter of a class is rounded
//! to f32 once a task, by `2⁻²⁴` of itself.

use std::sync::Arc;

use candlewick_core::{Backbone, Error, Result, State, TaskInfo, Train};
use candlewick_stats::{Cholesky, Moments, Symmetric};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::classifier::{
    Classifier, OneLook, Seen, classes, kept, misfit, put, put_kept, singular, take, take_kept,
};
use crate::tuning::{Look, Tuning};

/// `[method] name = "fecam"`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FeCam {
    /// `[γ₁, γ₂]`; `γ₁ > 0` makes the matrices of classes with few images regular.
    pub shrinkage: [f64; 2],
    /// β of Tukey's transform; left out for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tukey: Option<f64>,
    /// Rules of other code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<FeCamCompat>,
    /// Tunes the backbone on the first task; it is left frozen where this is left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuning: Option<Tuning>,
}

/// See [`FeCam::compat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeCamCompat {
    /// The correlation is one between rows of the covariance; `shrinkage[0]` is added as it is, 100 there.
    Pilot,
}

impl FeCam {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let [first, second] = self.shrinkage;
        if !(first > 0.0 && first.is_finite() && second >= 0.0 && second <= first) {
            return Err(Error::setting(
                "method.shrinkage",
                format!("must be [γ1, γ2] with γ1 > 0 and 0 ≤ γ2 ≤ γ1, found [{first}, {second}]"),
            ));
        }
        if let Some(beta) = self.tukey.filter(|b| !(*b > 0.0 && *b <= 1.0)) {
            return Err(Error::setting(
                "method.tukey",
                format!("must be greater than 0 and at most 1, found {beta}"),
            ));
        }
        if self.compat.is_some() && (second != 0.0 || self.tukey.is_some()) {
            return Err(Error::setting(
                "method.compat",
                "\"pilot\" has neither γ2 nor Tukey's transform; set shrinkage = [100.0, 0.0] and remove tukey",
            ));
        }
        self.tuning.as_ref().map_or(Ok(()), Tuning::check)
    }

    /// Names the departures from the default rule, for the record.
    pub fn compat(&self) -> Vec<String> {
        let mut found = match self.compat {
            Some(FeCamCompat::Pilot) => vec!["fecam.compat=pilot".to_owned()],
            None => vec![],
        };
        found.extend(self.tuning.iter().flat_map(|t| t.compat("fecam")));
        found
    }

    /// `batch` images are looked at together where nothing is trained; `seed` draws what `tuning` trains.
    pub fn build(
        &self,
        backbone: Arc<dyn Backbone>,
        train: Option<Train>,
        batch: usize,
        seed: u64,
    ) -> Result<OneLook<Covariances>> {
        self.check()?;
        let look = Look::new(backbone, self.tuning.as_ref(), train, seed, false)?;
        let classifier = self.classifier(look.dim());
        Ok(OneLook::new(look, classifier, batch))
    }

    /// On features of `dim` values.
    pub fn classifier(&self, dim: usize) -> Covariances {
        Covariances {
            config: self.clone(),
            dim,
            classes: Vec::new(),
        }
    }

    fn pilot(&self) -> bool {
        self.compat == Some(FeCamCompat::Pilot)
    }

    /// `x` of a feature as the mean and covariance see it.
    fn transformed(&self, row: &[f32]) -> Vec<f32> {
        match self.pilot() {
            true => row.to_vec(),
            false => normalised(&self.powered(row)),
        }
    }

    fn powered(&self, row: &[f32]) -> Vec<f32> {
        match self.tukey {
            None => row.to_vec(),
            Some(beta) => row
                .iter()
                .map(|v| v.signum() * v.abs().powf(beta as f32))
                .collect(),
        }
    }

    /// `R_c` of a class.
    pub fn correlation(&self, covariance: &Symmetric<f64>) -> Symmetric<f64> {
        let n = covariance.n();
        let [first, second] = self.shrinkage;
        if self.pilot() {
            return normalised_diagonal(&self.row_products(covariance));
        }
        let diagonal = covariance.diagonal_mean();
        if diagonal == 0.0 {
            return Symmetric::from_fn(n, |i, j| f64::from(u8::from(i == j)));
        }
        let rest: f64 = (0..n)
            .flat_map(|i| (0..i).map(move |j| (i, j)))
            .map(|(i, j)| covariance.get(i, j))
            .sum();
        let rest = rest / (n * n.saturating_sub(1) / 2).max(1) as f64;
        let shrunk = Symmetric::from_fn(n, |i, j| {
            covariance.get(i, j)
                + if i == j {
                    first * diagonal
                } else {
                    second * rest
                }
        });
        normalised_diagonal(&shrunk)
    }

    /// `Σ_s` of PILOT.
    fn pilot_shrunk(&self, covariance: &Symmetric<f64>) -> Symmetric<f64> {
        Symmetric::from_fn(covariance.n(), |i, j| {
            covariance.get(i, j) + if i == j { self.shrinkage[0] } else { 0.0 }
        })
    }

    /// `C Cᵀ` of the rows of `Σ_s` less their means: what `torch.corrcoef` normalises.
    fn row_products(&self, covariance: &Symmetric<f64>) -> Symmetric<f64> {
        let n = covariance.n();
        let shrunk = self.pilot_shrunk(covariance);
        let mean = |i: usize| (0..n).map(|j| shrunk.get(i, j)).sum::<f64>() / n as f64;
        let means: Vec<f64> = (0..n).map(mean).collect();
        // Cᵀ row by row.
        let rows = (0..n * n).map(|at| shrunk.get(at % n, at / n) - means[at % n]);
        let mut products = Symmetric::zeros(n);
        products.add_rows(&rows.collect::<Vec<_>>());
        products
    }

    /// Rows less their means are orthogonal to `(1 … 1)`, so that PILOT's `R_c` has one direction that it takes to 0 and the
    /// pseudo-inverse leaves out: `D^½ Σ_s⁻¹ (1 … 1)`, normalised.
    fn left_out(&self, covariance: &Symmetric<f64>) -> Result<Option<Vec<f64>>> {
        if !self.pilot() {
            return Ok(None);
        }
        let n = covariance.n();
        let factor = Cholesky::new(self.pilot_shrunk(covariance), 0.0);
        let factor = factor.map_err(|e| singular("method.shrinkage", e))?;
        let mut direction = vec![1.0; n];
        factor.solve(&mut direction, 1).map_err(misfit)?;
        let products = self.row_products(covariance);
        for (i, v) in direction.iter_mut().enumerate() {
            *v *= products.get(i, i).sqrt();
        }
        let norm = direction.iter().map(|v| v * v).sum::<f64>().sqrt();
        direction.iter_mut().for_each(|v| *v /= norm);
        Ok(Some(direction))
    }
}

/// `a_ij / √(a_ii a_jj)`.
fn normalised_diagonal(a: &Symmetric<f64>) -> Symmetric<f64> {
    let roots: Vec<f64> = (0..a.n()).map(|i| a.get(i, i).sqrt()).collect();
    Symmetric::from_fn(a.n(), |i, j| a.get(i, j) / (roots[i] * roots[j]))
}

fn normalised(row: &[f32]) -> Vec<f32> {
    let norm = crate::classifier::dot(row, row).sqrt();
    row.iter().map(|v| (f64::from(*v) / norm) as f32).collect()
}

fn inner(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Mean and covariance of every class.
pub struct Covariances {
    config: FeCam,
    dim: usize,
    classes: Vec<Class>,
}

struct Class {
    count: u64,
    /// To 48 bits.
    mean: Vec<f64>,
    /// `Σ_i (x_i − μ)(x_i − μ)ᵀ`, in f32.
    scatter: Symmetric<f32>,
    /// Of `R_c`, plus `u uᵀ` where there is such a direction.
    factor: Option<Cholesky>,
    /// `u`, see [`FeCam::left_out`].
    left_out: Option<Vec<f64>>,
}

impl Class {
    /// 0 of a single image; `None` without any.
    fn covariance(&self) -> Option<Symmetric<f64>> {
        let n = self.count.checked_sub(1)?.max(1) as f64;
        Some(self.scatter.map(|v| f64::from(v) / n))
    }

    fn narrow(&self) -> Vec<f32> {
        self.mean.iter().map(|v| *v as f32).collect()
    }
}

impl Covariances {
    fn factored(&self, index: usize, mut class: Class) -> Result<Class> {
        let Some(covariance) = class.covariance() else {
            return Ok(class);
        };
        let mut correlation = self.config.correlation(&covariance);
        class.left_out = self.config.left_out(&covariance)?;
        if let Some(direction) = &class.left_out {
            correlation.add_rows(direction);
        }
        let factor = Cholesky::new(correlation, 0.0);
        class.factor = Some(factor.map_err(|e| {
            Error::setting(
                "method.shrinkage",
                format!(
                    "class {} in order of arrival: {e}; raise γ1, above γ2",
                    index + 1
                ),
            )
        })?);
        Ok(class)
    }

    /// `R_c` of a class.
    pub fn correlation(&self, class: usize) -> Option<Symmetric<f64>> {
        let covariance = self.classes.get(class)?.covariance()?;
        Some(self.config.correlation(&covariance))
    }
}

impl Classifier for Covariances {
    fn grow(&mut self, task: &TaskInfo) -> Result<()> {
        let dim = self.dim;
        let all = task.classes.end.max(self.classes.len());
        self.classes.resize_with(all, || Class {
            count: 0,
            mean: vec![0.0; dim],
            scatter: Symmetric::zeros(0),
            factor: None,
            left_out: None,
        });
        Ok(())
    }

    fn learn(&mut self, seen: Seen<'_>) -> Result<()> {
        let here = seen.classes();
        let new: Vec<Class> = here
            .par_iter()
            .map(|&index| {
                let rows = seen.class(index);
                let rows = rows
                    .chunks_exact(self.dim)
                    .flat_map(|row| self.config.transformed(row));
                let new = Moments::of(&rows.collect::<Vec<_>>(), self.dim);
                let old = &self.classes[index];
                let all = match old.count {
                    0 => new,
                    _ => {
                        let mut all = Moments {
                            count: old.count,
                            mean: old.mean.clone(),
                            scatter: old.scatter.map(f64::from),
                        };
                        all.merge(&new).map_err(misfit)?;
                        all
                    }
                };
                let class = Class {
                    count: all.count,
                    mean: all.mean.into_iter().map(kept).collect(),
                    scatter: all.scatter.map(|v| v as f32),
                    factor: None,
                    left_out: None,
                };
                self.factored(index, class)
            })
            .collect::<Result<_>>()?;
        for (index, class) in here.into_iter().zip(new) {
            self.classes[index] = class;
        }
        Ok(())
    }

    fn knows(&self, class: usize) -> bool {
        self.classes.get(class).is_some_and(|class| class.count > 0)
    }

    fn scores(&self, rows: &[f32]) -> Result<Vec<f32>> {
        let pilot = self.config.pilot();
        let rows: Vec<Vec<f32>> = rows
            .chunks_exact(self.dim.max(1))
            .map(|row| normalised(&self.config.powered(row)))
            .collect();
        let distances = |class: &Class| -> Vec<f64> {
            // Without images there is no mean, and nothing is near it.
            let Some(factor) = &class.factor else {
                return vec![f64::INFINITY; rows.len()];
            };
            let mean = match pilot {
                true => normalised(&class.narrow()),
                false => class.narrow(),
            };
            let deltas = rows.iter().flat_map(|row| {
                let pairs = row.iter().zip(&mean);
                pairs.map(|(x, m)| f64::from(*x) - f64::from(*m))
            });
            let deltas: Vec<f64> = deltas.collect();
            let whitened = factor.whitened(&deltas);
            let mut found: Vec<f64> = whitened
                .chunks_exact(self.dim)
                .map(|row| inner(row, row))
                .collect();
            if let Some(direction) = &class.left_out {
                for (distance, delta) in found.iter_mut().zip(deltas.chunks_exact(self.dim)) {
                    *distance -= inner(delta, direction).powi(2);
                }
            }
            found
        };
        let by_class: Vec<Vec<f64>> = self.classes.par_iter().map(distances).collect();
        let scores =
            (0..rows.len()).flat_map(|i| by_class.iter().map(move |class| -class[i] as f32));
        Ok(scores.collect())
    }

    fn save(&self, state: &mut State) -> Result<()> {
        let n = self.classes.len();
        let means = self.classes.iter().flat_map(|c| c.mean.iter().copied());
        put_kept(state, "prototypes", means, &[n, self.dim])?;
        let counts = self.classes.iter().map(|c| c.count as f32);
        put(state, "counts", counts.collect(), &[n])?;
        let triangle = self.dim * (self.dim + 1) / 2;
        let scatters: Vec<f32> = self
            .classes
            .iter()
            .flat_map(|c| match c.count {
                0 => vec![0.0; triangle],
                _ => c.scatter.packed(),
            })
            .collect();
        put(state, "scatters", scatters, &[n, triangle])
    }

    fn load(&mut self, tasks: &[TaskInfo], state: &mut State) -> Result<()> {
        let (n, d) = (classes(tasks), self.dim);
        let triangle = d * (d + 1) / 2;
        let means = take_kept(state, "prototypes", &[n, d])?;
        let counts = take(state, "counts", &[n])?;
        let scatters = take(state, "scatters", &[n, triangle])?;
        self.classes = (0..n)
            .into_par_iter()
            .map(|i| {
                let class = Class {
                    count: counts[i] as u64,
                    mean: means[i * d..(i + 1) * d].to_vec(),
                    scatter: Symmetric::unpacked(d, &scatters[i * triangle..(i + 1) * triangle])
                        .map_err(misfit)?,
                    factor: None,
                    left_out: None,
                };
                self.factored(i, class)
            })
            .collect::<Result<_>>()?;
        Ok(())
    }
}
