//! FeCAM against PILOT's class and its own equations.

use candlewick_methods::fecam::FeCamCompat;
use candlewick_methods::{Classifier, FeCam};

use crate::given::{Tasks, dense, eliminate, near, predicted};

pub fn fecam(shrinkage: [f64; 2], compat: Option<FeCamCompat>) -> FeCam {
    FeCam {
        shrinkage,
        tukey: None,
        compat,
        tuning: None,
    }
}

#[test]
fn fecam_as_pilot_has_it() {
    let tasks = Tasks::new();
    for alpha in [100.0, 1.0] {
        let mut classes = fecam([alpha, 0.0], Some(FeCamCompat::Pilot)).classifier(32);
        for t in 0..3 {
            let task = tasks.task(t, false);
            classes.grow(&task.info).unwrap();
            classes.learn(task.seen()).unwrap();
        }
        let scores = classes.scores(&tasks.test()).unwrap();
        let distance: Vec<f32> = scores.iter().map(|s| -s).collect();
        near(
            "distance",
            &distance,
            &tasks.get(&format!("fecam.alpha{alpha}.distance")),
            1e-4,
        );
        assert_eq!(
            predicted(&scores, 10),
            tasks.get(&format!("fecam.alpha{alpha}.pred"))
        );
        if alpha == 1.0 {
            for class in 0..2 {
                let got = classes.correlation(class).unwrap().map(|v| v as f32);
                near(
                    "correlation",
                    &dense(&got, 32),
                    &tasks.get(&format!("fecam.alpha1.corr_class{class}")),
                    1e-4,
                );
            }
        }
    }
}

/// The paper's rules, written out for one class and one image.
#[test]
fn fecam_follows_its_equations() {
    let tasks = Tasks::new();
    let task = tasks.task(0, false);
    for tukey in [None, Some(0.5)] {
        let config = FeCam {
            tukey,
            ..fecam([1.0, 0.5], None)
        };
        let mut classes = config.classifier(32);
        classes.grow(&task.info).unwrap();
        classes.learn(task.seen()).unwrap();
        let power = |v: f64| match tukey {
            None => v,
            Some(beta) => v.signum() * v.abs().powf(beta),
        };
        let unit = |row: &[f32]| -> Vec<f64> {
            let row: Vec<f64> = row.iter().map(|v| power(f64::from(*v))).collect();
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter().map(|v| v / norm).collect()
        };
        let class: Vec<Vec<f64>> = task.seen().class(2).chunks(32).map(unit).collect();
        let n = class.len() as f64;
        let mean: Vec<f64> = (0..32)
            .map(|j| class.iter().map(|r| r[j]).sum::<f64>() / n)
            .collect();
        let mut sigma = [[0f64; 32]; 32];
        for row in &class {
            for i in 0..32 {
                for j in 0..32 {
                    sigma[i][j] += (row[i] - mean[i]) * (row[j] - mean[j]) / (n - 1.0);
                }
            }
        }
        let diagonal = (0..32).map(|i| sigma[i][i]).sum::<f64>() / 32.0;
        let all: f64 = sigma.iter().flatten().sum();
        let rest = (all - 32.0 * diagonal) / (32.0 * 31.0);
        for (i, row) in sigma.iter_mut().enumerate() {
            for (j, v) in row.iter_mut().enumerate() {
                *v += if i == j { diagonal } else { 0.5 * rest };
            }
        }
        let roots: Vec<f64> = (0..32).map(|i| sigma[i][i].sqrt()).collect();
        for i in 0..32 {
            for j in 0..32 {
                sigma[i][j] /= roots[i] * roots[j];
            }
        }
        let image = &tasks.test()[..32];
        let delta: Vec<f64> = unit(image).iter().zip(&mean).map(|(x, m)| x - m).collect();
        let want: f64 = delta
            .iter()
            .zip(eliminate(sigma, &delta))
            .map(|(d, s)| d * s)
            .sum();
        let got = -f64::from(classes.scores(image).unwrap()[2]);
        assert!((got - want).abs() < 1e-4 * want, "{tukey:?}: {got} {want}");
    }
}
