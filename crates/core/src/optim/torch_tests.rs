//! Against the trajectories of `torch.optim` and the rates of `torch.optim.lr_scheduler` in `tests/fixtures/optim.*`,
//! which `optim.py` beside them wrote.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use candle_core::{Device, Tensor, Var};
use serde::Deserialize;

use super::{Group, Optimizer};
use crate::error::Result;
use crate::train::{Moments, Train};

#[derive(Deserialize)]
struct Record {
    steps_per_epoch: usize,
    cases: BTreeMap<String, Case>,
    schedules: BTreeMap<String, Rates>,
}

#[derive(Deserialize)]
struct Case {
    train: Train,
    /// Factor and decay of each variable.
    groups: Option<Vec<(f64, Option<f64>)>>,
}

#[derive(Deserialize)]
struct Rates {
    train: Train,
    lr: Vec<f64>,
}

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

fn record() -> Record {
    let text = std::fs::read_to_string(fixture("optim.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Two variables on `Σ a w² / 2 − c_t w`.
struct Walk {
    given: HashMap<String, Tensor>,
    vars: Vec<Var>,
    optimizer: Optimizer,
    per_epoch: usize,
}

impl Walk {
    fn new(case: &Case, per_epoch: usize) -> Self {
        let given = candle_core::safetensors::load(fixture("optim.safetensors"), &Device::Cpu);
        let given = given.unwrap();
        case.train.check().unwrap();
        let vars: Vec<Var> = (0..2)
            .map(|i| Var::from_tensor(&given[&format!("start.{i}")]).unwrap())
            .collect();
        let named = |i: usize| vec![(format!("w{i}"), vars[i].clone())];
        let optimizer = match &case.groups {
            None => Optimizer::new([named(0), named(1)].concat(), &case.train),
            Some(groups) => {
                let groups = groups.iter().enumerate().map(|(i, (lr, decay))| Group {
                    vars: named(i),
                    lr: *lr,
                    weight_decay: *decay,
                });
                Optimizer::grouped(groups.collect(), &case.train)
            }
        };
        Self {
            given,
            vars,
            optimizer: optimizer.unwrap(),
            per_epoch,
        }
    }

    fn step(&mut self, t: usize) -> Result<()> {
        if t.is_multiple_of(self.per_epoch) {
            self.optimizer.begin_epoch(t / self.per_epoch);
        }
        let mut loss = Tensor::new(0f32, &Device::Cpu)?;
        for (i, w) in self.vars.iter().enumerate() {
            let curved = (&self.given[&format!("curvature.{i}")] * w.as_tensor())?;
            let curved = ((curved * w.as_tensor())? / 2.0)?;
            let pulled = (self.given[&format!("pull.{i}")].get(t)? * w.as_tensor())?;
            loss = (loss + (curved - pulled)?.sum_all()?)?;
        }
        self.optimizer.step(&loss)
    }

    fn values(&self, i: usize) -> Vec<f32> {
        self.vars[i].flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The largest difference from torch behind step `t`, as a part of the largest value.
    fn off(&self, name: &str, t: usize) -> f32 {
        let parts = (0..2).map(|i| {
            let want = self.given[&format!("{name}.{i}")].get(t).unwrap();
            let want: Vec<f32> = want.flatten_all().unwrap().to_vec1().unwrap();
            let size = want.iter().fold(0f32, |m, v| m.max(v.abs()));
            let pairs = want.iter().zip(self.values(i));
            pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs())) / size
        });
        parts.fold(0f32, f32::max)
    }
}

#[test]
fn twenty_steps_are_those_of_torch() {
    let record = record();
    assert_eq!(record.cases.len(), 16);
    for (name, case) in &record.cases {
        let mut walk = Walk::new(case, record.steps_per_epoch);
        for t in 0..20 {
            walk.step(t).unwrap();
            let off = walk.off(name, t);
            assert!(off <= 1e-6, "{name}, step {}: {off:e}", t + 1);
        }
    }
}

/// The operations that other devices go by.
#[test]
fn twenty_steps_by_operations_of_tensors_are_those_of_torch() {
    let record = record();
    for (name, case) in &record.cases {
        let mut walk = Walk::new(case, record.steps_per_epoch);
        walk.optimizer.fuse = false;
        for t in 0..20 {
            walk.step(t).unwrap();
        }
        let off = walk.off(name, 19);
        assert!(off <= 1e-6, "{name}: {off:e}");
    }
}

#[test]
fn rates_are_those_of_torch() {
    let record = record();
    assert_eq!(record.schedules.len(), 8);
    for (name, rates) in &record.schedules {
        rates.train.check().unwrap();
        for (step, want) in rates.lr.iter().enumerate() {
            let epoch = step / record.steps_per_epoch;
            let got = rates.train.lr * rates.train.factor(epoch, step as u64);
            let off = (got - want).abs() / want;
            assert!(off < 1e-12, "{name}, step {}: {got} for {want}", step + 1);
        }
    }
}

/// Stopped behind any step, with moments in f32 and in bf16.
#[test]
fn a_resumed_walk_is_the_same_walk() {
    let record = record();
    for (name, case) in &record.cases {
        for state in [Moments::F32, Moments::Bf16] {
            let case = Case {
                train: Train {
                    state,
                    ..case.train.clone()
                },
                groups: case.groups.clone(),
            };
            let mut through = Walk::new(&case, record.steps_per_epoch);
            let mut stopped = Walk::new(&case, record.steps_per_epoch);
            for t in 0..20 {
                through.step(t).unwrap();
                stopped.step(t).unwrap();
                let session = stopped.optimizer.session().unwrap();
                let mut next = Walk::new(&case, record.steps_per_epoch);
                for (to, from) in next.vars.iter().zip(&stopped.vars) {
                    to.set(from.as_tensor()).unwrap();
                }
                next.optimizer.resume(session).unwrap();
                stopped = next;
                for i in 0..2 {
                    assert_eq!(through.values(i), stopped.values(i), "{name}, step {t}");
                }
            }
        }
    }
}

/// Moments in bf16 go the way of those in f32, within what 8 bits leave of a step; and they go it, other than with
/// rounding to the nearest, which leaves `exp_avg_sq` where it is.
#[test]
fn moments_in_bf16_stay_near() {
    let record = record();
    for name in ["adamw", "adam_decay", "sgd_momentum"] {
        let case = &record.cases[name];
        let case = Case {
            train: Train {
                state: Moments::Bf16,
                ..case.train.clone()
            },
            groups: None,
        };
        let mut walk = Walk::new(&case, record.steps_per_epoch);
        for t in 0..20 {
            walk.step(t).unwrap();
        }
        let off = walk.off(name, 19);
        assert!(off > 0.0 && off < 0.01, "{name}: {off:e}");
        let session = walk.optimizer.session().unwrap();
        for (name, tensor) in session.tensors() {
            let expected = match name.ends_with("step") || !name.contains('.') {
                true => candle_core::DType::I64,
                false => candle_core::DType::BF16,
            };
            // Counters of the whole have no dot.
            let counter = name == "epoch" || name == "steps";
            assert!(counter || tensor.dtype() == expected, "{name}");
        }
    }
}

/// `exp_avg_sq` under gradients of 1: `1 − 0.999ᵗ`, of which bf16 rounded to the nearest never gets beyond 0.25.
#[test]
fn rounding_at_random_keeps_small_steps() -> Result<()> {
    let train = Train {
        state: Moments::Bf16,
        ..Train::new(1, 1, crate::train::OptimizerKind::Adam, 1e-3)
    };
    let var = Var::zeros(4096, candle_core::DType::F32, &Device::Cpu)?;
    let mut optimizer = Optimizer::new(vec![("w".into(), var.clone())], &train)?;
    for _ in 0..1000 {
        optimizer.step(&var.sum_all()?)?;
    }
    let mut session = optimizer.session()?;
    let v = session.take("w.exp_avg_sq")?;
    let mean = v.to_dtype(candle_core::DType::F32)?.mean_all()?;
    let mean = mean.to_scalar::<f32>()?;
    let want = 1.0 - 0.999f32.powi(1000);
    assert!((mean - want).abs() < 0.01 * want, "{mean} for {want}");
    Ok(())
}

#[test]
fn a_gradient_that_is_the_variable_itself_is_no_trouble() -> Result<()> {
    let train = Train {
        momentum: Some(0.0),
        ..Train::new(1, 1, crate::train::OptimizerKind::Sgd, 0.5)
    };
    let var = Var::new(&[1f32, 2.0], &Device::Cpu)?;
    let mut optimizer = Optimizer::new(vec![("w".into(), var.clone())], &train)?;
    let mut grads = var.sum_all()?.backward()?;
    grads.insert(&var, var.as_tensor().clone());
    optimizer.apply(&grads)?;
    assert_eq!(var.to_vec1::<f32>()?, [0.5, 1.0]);
    Ok(())
}

#[test]
fn a_variable_given_twice_is_refused() -> Result<()> {
    let train = Train::new(1, 1, crate::train::OptimizerKind::Sgd, 0.5);
    let var = Var::new(&[1f32], &Device::Cpu)?;
    let named = |name: &str| (name.to_owned(), var.clone());
    let twice = Optimizer::new(vec![named("a"), named("b")], &train);
    let text = twice.err().map(|e| e.to_string()).unwrap_or_default();
    assert!(
        text.contains("`b` is given to the optimiser twice"),
        "{text}"
    );
    Ok(())
}
