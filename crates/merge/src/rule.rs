//! The rules, value by value.

use crate::error::{Error, Result};

/// How several values of a parameter become one.
///
/// Everything is computed in f64. A value that is the same in all models stays, bit for bit, under every rule; so does the value of
/// the only model with a weight other than 0.
#[derive(Debug, Clone, PartialEq)]
pub enum Rule {
    /// `θ = Σ θ_i / n` (model soups, Wortsman et al. 2022).
    Average,
    /// `θ ← decay·θ + (1 − decay)·θ_i` from model to model, beginning with the first one: `n` steps give
    /// `decayⁿ θ_0 + (1 − decay) Σ_i decayⁿ⁻ⁱ θ_i` (timm's `ModelEmaV2`, LAE).
    Ema {
        /// Between 0 and 1.
        decay: f64,
    },
    /// `θ = Σ λ_i (F_i + ε) θ_i / Σ λ_i (F_i + ε)` with the diagonal Fisher information `F_i` of each model (Matena and Raffel
    /// 2022; CoFiMA, `IemProg/CoFiMA:models/cofima.py`, which has no ε: 0/0 where both are 0).
    Fisher {
        /// `λ_i`, one for each model; all 1 where empty.
        weights: Vec<f64>,
        /// `ε`: where no model has information, it leaves the average by `λ`.
        epsilon: f64,
    },
    /// `θ = (1 − α) θ_0 + α θ_1` of two models (WiSE-FT, Wortsman et al. 2022; CoMA).
    Wise {
        /// `α`.
        alpha: f64,
    },
    /// `θ = θ_0 + s Σ_{i>0} (θ_i − θ_0)`: the first model is the one the others were tuned from (Ilharco et al. 2023).
    TaskArithmetic {
        /// `s`.
        scale: f64,
    },
}

impl Rule {
    /// Whether it asks for a Fisher information of each model.
    pub fn wants_fisher(&self) -> bool {
        matches!(self, Self::Fisher { .. })
    }

    /// That its numbers are in range and fit so many models.
    pub fn check(&self, models: usize) -> Result<()> {
        let share = |key, value: f64| match (0.0..=1.0).contains(&value) {
            true => Ok(()),
            false => refuse(key, format!("must be between 0 and 1, found {value}")),
        };
        if models < 2 {
            return refuse(
                "models",
                format!("expected at least two models, found {models}"),
            );
        }
        match self {
            Self::Average => Ok(()),
            Self::Ema { decay } => share("decay", *decay),
            Self::Wise { alpha } => match models {
                2 => share("alpha", *alpha),
                _ => refuse(
                    "models",
                    format!("wise takes two models, found {models}; merge more by average"),
                ),
            },
            Self::TaskArithmetic { scale } if !scale.is_finite() => {
                refuse("scale", format!("must be a number, found {scale}"))
            }
            Self::TaskArithmetic { .. } => Ok(()),
            Self::Fisher { weights, epsilon } => {
                if !weights.is_empty() && weights.len() != models {
                    let found = weights.len();
                    return refuse(
                        "weights",
                        format!("expected one for each of {models} models, found {found}"),
                    );
                }
                let good = |w: &f64| w.is_finite() && *w >= 0.0;
                if !weights.iter().all(good)
                    || weights.iter().sum::<f64>() == 0.0 && !weights.is_empty()
                {
                    return refuse(
                        "weights",
                        format!("must be 0 or greater and not all 0, found {weights:?}"),
                    );
                }
                match good(epsilon) {
                    true => Ok(()),
                    false => refuse("epsilon", format!("must be 0 or greater, found {epsilon}")),
                }
            }
        }
    }

    /// Merges `models`, slices of one length, into `out`; `fishers`, as many, where the rule asks for them.
    ///
    /// # Errors
    /// As of [`check`](Self::check), and where lengths differ.
    pub fn merge<T: Copy + Into<f64>>(
        &self,
        models: &[&[T]],
        fishers: &[&[T]],
        mut out: impl FnMut(usize, f64),
    ) -> Result<()> {
        self.check(models.len())?;
        let length = models[0].len();
        if self.wants_fisher() && fishers.len() != models.len() {
            return refuse(
                "fisher",
                format!(
                    "expected one for each of {} models, found {}",
                    models.len(),
                    fishers.len()
                ),
            );
        }
        if models.iter().chain(fishers).any(|m| m.len() != length) {
            return refuse("models", "the slices differ in length".into());
        }
        let fishers = match self.wants_fisher() {
            true => fishers,
            false => &[],
        };
        let (mut values, mut weights) = (vec![0f64; models.len()], vec![0f64; fishers.len()]);
        for at in 0..length {
            values
                .iter_mut()
                .zip(models)
                .for_each(|(v, m)| *v = m[at].into());
            weights
                .iter_mut()
                .zip(fishers)
                .for_each(|(w, f)| *w = f[at].into());
            out(at, self.value(&values, &weights));
        }
        Ok(())
    }

    fn value(&self, values: &[f64], fishers: &[f64]) -> f64 {
        let first = values[0];
        if values.iter().all(|v| v.to_bits() == first.to_bits()) {
            return first;
        }
        match self {
            Self::Average => values.iter().sum::<f64>() / values.len() as f64,
            Self::Ema { decay } => values[1..].iter().fold(first, |sum, v| {
                weighted([(*decay, sum), (1.0 - decay, *v)].into_iter())
            }),
            Self::Wise { alpha } => {
                weighted([(1.0 - alpha, first), (*alpha, values[1])].into_iter())
            }
            Self::TaskArithmetic { scale } => {
                first + scale * values[1..].iter().map(|v| v - first).sum::<f64>()
            }
            Self::Fisher { weights, epsilon } => {
                let weight = |i: usize| weights.get(i).unwrap_or(&1.0) * (fishers[i] + epsilon);
                let mut alone = (0..values.len()).filter(|&i| weight(i) != 0.0);
                if let (Some(i), None) = (alone.next(), alone.next()) {
                    return values[i];
                }
                let sum = weighted((0..values.len()).map(|i| (weight(i), values[i])));
                sum / (0..values.len()).map(weight).sum::<f64>()
            }
        }
    }
}

/// `Σ w v` over those with a weight: a model without one has no say, not even by an infinity or the sign of a 0.
fn weighted(terms: impl Iterator<Item = (f64, f64)>) -> f64 {
    let said = terms.filter(|(w, _)| *w != 0.0).map(|(w, v)| w * v);
    said.reduce(|sum, term| sum + term).unwrap_or(0.0)
}

/// One step of [`Rule::Ema`] in place: `kept ← decay·kept + (1 − decay)·new`, of f32 values in f64.
pub fn ema(kept: &mut [f32], new: &[f32], decay: f64) {
    let rule = Rule::Ema { decay };
    for (kept, new) in kept.iter_mut().zip(new) {
        *kept = rule.value(&[f64::from(*kept), f64::from(*new)], &[]) as f32;
    }
}

fn refuse<T>(key: &'static str, problem: String) -> Result<T> {
    Err(Error::Setting { key, problem })
}
