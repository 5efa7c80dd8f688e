//! How the learning rate falls from epoch to epoch, anew in every task.

use std::f64::consts::PI;

use serde::{Deserialize, Serialize};

/// `train.schedule`: the factor on `train.lr` in epoch `e` of `E`, both counted within a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
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
}

impl Schedule {
    /// The factor in `epoch`, counted from 0, of `epochs`; epochs past the last one keep its factor.
    pub fn factor(self, epoch: usize, epochs: usize) -> f64 {
        let last = epochs.saturating_sub(1);
        let epoch = epoch.min(last);
        match self {
            Self::Constant => 1.0,
            Self::Cosine => 0.5 * (1.0 + (PI * epoch as f64 / epochs.max(1) as f64).cos()),
            Self::CodaCosine => {
                let j = epoch.saturating_sub(1) as f64;
                (99.0 * PI * j / (200.0 * last.max(1) as f64)).cos()
            }
        }
    }

    /// Whether it is the default, which recipes leave out.
    pub(crate) fn is_default(&self) -> bool {
        *self == Self::default()
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
