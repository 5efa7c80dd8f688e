//! Features of the fixture instead of images, and how results are compared.

use candle_core::Tensor;
use candlewick_core::TaskInfo;
use candlewick_methods::Seen;
use candlewick_stats::Symmetric;

use crate::lab::{Tensors, here, tensors};

/// Features in the order of a loader, by task.
pub struct Tasks {
    pub all: Tensors,
    pub sizes: [usize; 3],
}

pub struct Given {
    pub info: TaskInfo,
    pub rows: Vec<f32>,
    pub labels: Vec<u32>,
    pub dim: usize,
}

impl Given {
    pub fn seen(&self) -> Seen<'_> {
        Seen {
            task: &self.info,
            rows: &self.rows,
            labels: &self.labels,
            dim: self.dim,
        }
    }
}

pub fn flat(t: &Tensor) -> Vec<f32> {
    let t = t.to_dtype(candle_core::DType::F32).unwrap();
    t.flatten_all().unwrap().to_vec1().unwrap()
}

impl Tasks {
    pub fn new() -> Self {
        let all = tensors(here("tests/fixtures/ranpac.safetensors"));
        Self {
            all,
            sizes: [4, 3, 3],
        }
    }

    pub fn get(&self, name: &str) -> Vec<f32> {
        let tensor = self.all.get(name);
        flat(tensor.unwrap_or_else(|| panic!("the fixture has no {name}")))
    }

    pub fn classes(&self, t: usize) -> std::ops::Range<usize> {
        let start = self.sizes[..t].iter().sum();
        start..start + self.sizes[t]
    }

    /// Task `t`, with the second branch behind the first if `both`.
    pub fn task(&self, t: usize, both: bool) -> Given {
        let labels: Vec<u32> = self
            .get(&format!("in.task{t}.labels"))
            .iter()
            .map(|l| *l as u32)
            .collect();
        let first = &self.all[&format!("in.task{t}.features")];
        let rows = match both {
            false => first.clone(),
            true => Tensor::cat(
                &[first, &self.all[&format!("aper.task{t}.train_branch2")]],
                1,
            )
            .unwrap(),
        };
        Given {
            info: TaskInfo {
                index: t,
                classes: self.classes(t),
                names: Vec::new(),
                train_len: labels.len(),
                test_len: 0,
            },
            dim: rows.dim(1).unwrap(),
            rows: flat(&rows),
            labels,
        }
    }

    pub fn test(&self) -> Vec<f32> {
        self.get("in.test_features")
    }
}

pub fn predicted(scores: &[f32], classes: usize) -> Vec<f32> {
    let best = |row: &[f32]| {
        let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        best.unwrap().0 as f32
    };
    scores.chunks(classes).map(best).collect()
}

/// No value further off than `bound` of the largest wanted.
pub fn near(what: &str, got: &[f32], want: &[f32], bound: f32) {
    assert_eq!(got.len(), want.len(), "{what}");
    let size = want.iter().fold(0f32, |m, v| m.max(v.abs()));
    let far = got
        .iter()
        .zip(want)
        .map(|(a, b)| (a - b).abs())
        .fold(0f32, f32::max);
    assert!(far <= bound * size, "{what}: {far:e} of {size:e}");
}

pub fn dense(gram: &Symmetric<f32>, rows: usize) -> Vec<f32> {
    let n = gram.n();
    (0..rows * n).map(|i| gram.get(i / n, i % n)).collect()
}

pub fn eliminate(mut a: [[f64; 32]; 32], b: &[f64]) -> Vec<f64> {
    let mut x = b.to_vec();
    for k in 0..32 {
        for i in k + 1..32 {
            let factor = a[i][k] / a[k][k];
            let pivot = a[k];
            for (to, from) in a[i].iter_mut().zip(pivot).skip(k) {
                *to -= factor * from;
            }
            x[i] -= factor * x[k];
        }
    }
    for k in (0..32).rev() {
        let rest: f64 = (k + 1..32).map(|j| a[k][j] * x[j]).sum();
        x[k] = (x[k] - rest) / a[k][k];
    }
    x
}
