//! How the learning rate rises and falls, anew in every task.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// `train.schedule`: the factor on `train.lr` in epoch `e` of `E`, both counted within a task.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// 1.
    #[default]
    Constant,
    /// `(1 + cos(π e / E)) / 2`, PyTorch's `CosineAnnealingLR` down to 0 with `T_max = E`.
    Cosine,
    /// `cos(99 π j / (200 (E − 1)))` with `j = max(0, e − 1)`: what `GT-RIPL/CODA-Prompt:utils/schedulers.py`
    /// (6417d4f) gives in effect. Its counter starts one step late, so the first two epochs run at the full rate and
    /// the last one well above 0 (0.097 for 20 epochs).
    CodaCosine,
    /// `gamma^k` behind `k` of the milestones, PyTorch's `MultiStepLR`.
    MultiStep {
        /// Epochs before which the rate falls, rising.
        milestones: Vec<usize>,
        /// Factor at each.
        gamma: f64,
    },
}

impl Schedule {
    /// The factor in `epoch`, counted from 0, of `epochs`; epochs past the last one keep its factor.
    pub fn factor(&self, epoch: usize, epochs: usize) -> f64 {
        let last = epochs.saturating_sub(1);
        let epoch = epoch.min(last);
        match self {
            Self::Constant => 1.0,
            Self::Cosine => 0.5 * (1.0 + (PI * epoch as f64 / epochs.max(1) as f64).cos()),
            Self::CodaCosine => {
                let j = epoch.saturating_sub(1) as f64;
                (99.0 * PI * j / (200.0 * last.max(1) as f64)).cos()
            }
            Self::MultiStep { milestones, gamma } => {
                let behind = milestones.iter().filter(|m| **m <= epoch).count();
                gamma.powi(behind as i32)
            }
        }
    }

    /// Checks its parameters; the error names the key.
    pub(crate) fn check(&self) -> Result<()> {
        let Self::MultiStep { milestones, gamma } = self else {
            return Ok(());
        };
        let refuse = |key: &str, expected: &str, found: String| {
            Err(Error::setting(
                format!("train.schedule.multi-step.{key}"),
                format!("must be {expected}, found {found}"),
            ))
        };
        if milestones.is_empty() || milestones.windows(2).any(|pair| pair[0] >= pair[1]) {
            return refuse("milestones", "epochs that rise", format!("{milestones:?}"));
        }
        match *gamma > 0.0 && gamma.is_finite() {
            true => Ok(()),
            false => refuse("gamma", "greater than 0", gamma.to_string()),
        }
    }

    /// Whether it is the default, which recipes leave out.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// `train.warmup`: a linear rise from `start` to 1, over epochs or over steps of a task.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warmup {
    /// For `W` epochs `start + (1 − start) e / W`; then the schedule, counted from 0 over the `E − W` that are left:
    /// PyTorch's `SequentialLR` of `LinearLR` and the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<usize>,
    /// For `W` steps the schedule times `start + (1 − start) s / W`: a `LinearLR` that steps with the batches beside the
    /// schedule, which goes on with the epochs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// The first factor.
    pub start: f64,
}

impl Warmup {
    pub(crate) fn check(&self, epochs: usize) -> Result<()> {
        let refuse = |key: &str, problem: String| Err(Error::setting(key, problem));
        match (self.epochs, self.steps) {
            (Some(_), Some(_)) | (None, None) => {
                return refuse("train.warmup", "expected either `epochs` or `steps`".into());
            }
            (Some(warm), None) if warm == 0 || warm >= epochs => {
                let problem = format!(
                    "must be greater than 0 and below train.epochs = {epochs}, found {warm}"
                );
                return refuse("train.warmup.epochs", problem);
            }
            (None, Some(0)) => {
                let problem = "must be greater than 0, found 0";
                return refuse("train.warmup.steps", problem.into());
            }
            _ => {}
        }
        match self.start > 0.0 && self.start <= 1.0 {
            true => Ok(()),
            false => refuse(
                "train.warmup.start",
                format!("must be greater than 0 and at most 1, found {}", self.start),
            ),
        }
    }

    pub(crate) fn factor(
        &self,
        schedule: &Schedule,
        epoch: usize,
        epochs: usize,
        steps: u64,
    ) -> f64 {
        let rise = |done: f64, of: f64| self.start + (1.0 - self.start) * (done / of).min(1.0);
        match (self.epochs, self.steps) {
            (Some(warm), _) if epoch < warm => rise(epoch as f64, warm as f64),
            (Some(warm), _) => schedule.factor(epoch - warm, epochs.saturating_sub(warm)),
            (None, Some(warm)) => {
                schedule.factor(epoch, epochs) * rise(steps as f64, warm.max(1) as f64)
            }
            (None, None) => schedule.factor(epoch, epochs),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn factors(schedule: Schedule, epochs: usize) -> Vec<f64> {
        (0..epochs).map(|e| schedule.factor(e, epochs)).collect()
    }

    #[test]
    fn cosine_falls_as_pytorch_has_it() {
        let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
        let found = factors(Schedule::Cosine, 4);
        let (high, low) = (0.853_553_390_593, 0.146_446_609_407);
        let want = [1.0, high, 0.5, low];
        assert!(
            found.iter().zip(want).all(|(a, b)| close(*a, b)),
            "{found:?}"
        );
    }

    #[test]
    fn the_published_cosine_lags_one_epoch() {
        let found = factors(Schedule::CodaCosine, 20);
        assert_eq!(found[..2], [1.0, 1.0]);
        assert!((found[2] - 0.996_652_424).abs() < 1e-8);
        assert!((found[19] - 0.097_400_054).abs() < 1e-8);
    }

    #[test]
    fn any_number_of_epochs_gives_numbers() {
        for schedule in [Schedule::Constant, Schedule::Cosine, Schedule::CodaCosine] {
            for epochs in 0..4 {
                assert_eq!(schedule.factor(0, epochs), 1.0);
                let beyond = schedule.factor(9, epochs);
                assert!((0.0..=1.0).contains(&beyond), "{schedule:?} {epochs}");
            }
        }
    }
}
