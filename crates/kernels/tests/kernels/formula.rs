//! Blocks drawn at random, and the formula itself in f64.

use candlewick_kernels::{Activation, BlockWeights, Linear, Norm, Prefix, Shape};

/// Numbers between −1 and 1 that look random.
pub fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..n)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect()
}

#[derive(Clone, Copy, Debug)]
pub struct Case {
    pub shape: Shape,
    pub dim: usize,
    pub heads: usize,
    pub mlp: usize,
    pub prefix: usize,
    pub scaled: bool,
    pub causal: bool,
    pub activation: Activation,
}

pub fn case(
    batch: usize,
    tokens: usize,
    (dim, heads, mlp): (usize, usize, usize),
    prefix: usize,
) -> Case {
    Case {
        shape: Shape::whole(batch, tokens),
        dim,
        heads,
        mlp,
        prefix,
        scaled: prefix % 2 == 1,
        causal: false,
        activation: Activation::Gelu,
    }
}

/// Odd numbers of everything; those from the sixth on are real widths, the first six and the last three are small.
pub fn cases() -> Vec<Case> {
    vec![
        case(1, 1, (8, 1, 8), 0),
        case(3, 5, (48, 4, 96), 0),
        case(2, 17, (48, 4, 100), 3),
        case(5, 33, (36, 3, 72), 1),
        case(1, 50, (176, 2, 900), 5),
        case(2, 65, (128, 4, 512), 4),
        case(3, 197, (192, 3, 768), 8),
        case(1, 257, (384, 6, 1536), 0),
        Case {
            activation: Activation::QuickGelu,
            ..case(3, 17, (48, 4, 100), 3)
        },
        Case {
            activation: Activation::QuickGelu,
            causal: true,
            ..case(3, 9, (48, 4, 100), 0)
        },
        Case {
            causal: true,
            ..case(1, 40, (36, 3, 72), 2)
        },
    ]
}

pub struct Owned {
    pub case: Case,
    pub parts: Vec<Vec<f32>>,
}

impl Owned {
    pub fn new(case: Case) -> Self {
        let Case { dim: d, mlp: f, .. } = case;
        let weight = |n: usize, k: usize, seed: u64| -> Vec<f32> {
            let spread = (3.0 / k as f32).sqrt();
            noise(n * k, seed).iter().map(|x| x * spread).collect()
        };
        let near = |n: usize, at: f32, seed: u64| -> Vec<f32> {
            noise(n, seed).iter().map(|x| at + 0.3 * x).collect()
        };
        let parts = vec![
            near(d, 1.0, 1),
            near(d, 0.0, 2),
            weight(3 * d, d, 3),
            near(3 * d, 0.0, 4),
            weight(d, d, 5),
            near(d, 0.0, 6),
            near(d, 1.0, 7),
            near(d, 0.0, 8),
            weight(f, d, 9),
            near(f, 0.0, 10),
            weight(d, f, 11),
            near(d, 0.0, 12),
            near(d, 0.5, 13),
            near(d, 0.5, 14),
        ];
        Self { case, parts }
    }

    pub fn weights(&self) -> BlockWeights<'_> {
        let p = &self.parts;
        let norm = |i: usize| Norm {
            weight: &p[i],
            bias: &p[i + 1],
            eps: 1e-6,
        };
        let linear = |i: usize| Linear {
            weight: &p[i],
            bias: &p[i + 1],
        };
        BlockWeights {
            heads: self.case.heads,
            causal: self.case.causal,
            activation: self.case.activation,
            norm1: norm(0),
            qkv: linear(2),
            proj: linear(4),
            scale1: self.case.scaled.then_some(&p[12][..]),
            norm2: norm(6),
            fc1: linear(8),
            fc2: linear(10),
            scale2: self.case.scaled.then_some(&p[13][..]),
        }
    }
}

/// What goes into a block.
pub struct Input {
    pub x: Vec<f32>,
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
    /// Gradient of the output.
    pub grad: Vec<f32>,
}

impl Input {
    pub fn new(case: Case) -> Self {
        let n = case.shape.batch * case.shape.tokens * case.dim;
        let p = case.shape.batch * case.prefix * case.dim;
        Self {
            x: noise(n, 21).iter().map(|x| 2.0 * x).collect(),
            keys: noise(p, 22),
            values: noise(p, 23),
            grad: noise(case.shape.batch * case.shape.read * case.dim, 24),
        }
    }

    pub fn prefix(&self, case: Case) -> Option<Prefix<'_>> {
        (case.prefix > 0).then_some(Prefix {
            length: case.prefix,
            keys: &self.keys,
            values: &self.values,
        })
    }
}

/// Φ in f64.
pub fn normal(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// The formula in f64, one image: tokens `(N, D)`, prefix `(H, P, d)`.
pub fn formula(owned: &Owned, x: &[f64], keys: &[f64], values: &[f64]) -> Vec<f64> {
    let w = owned.weights();
    let Case {
        dim: d, heads, mlp, ..
    } = owned.case;
    let n = x.len() / d;
    let norm = |x: &[f64], norm: &Norm<'_>| -> Vec<f64> {
        let mut out = Vec::new();
        for row in x.chunks(d) {
            let mean = row.iter().sum::<f64>() / d as f64;
            let var = row.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / d as f64;
            let scale = 1.0 / (var + f64::from(norm.eps)).sqrt();
            for ((x, w), b) in row.iter().zip(norm.weight).zip(norm.bias) {
                out.push((x - mean) * scale * f64::from(*w) + f64::from(*b));
            }
        }
        out
    };
    let linear = |x: &[f64], k: usize, layer: &Linear<'_>| -> Vec<f64> {
        let mut out = Vec::new();
        for row in x.chunks(k) {
            for (w, b) in layer.weight.chunks(k).zip(layer.bias) {
                let dot: f64 = row.iter().zip(w).map(|(x, w)| x * f64::from(*w)).sum();
                out.push(dot + f64::from(*b));
            }
        }
        out
    };
    let qkv = linear(&norm(x, &w.norm1), d, &w.qkv);
    let head = d / heads;
    let p = keys.len() / d;
    let mut mixed = vec![0f64; n * d];
    for h in 0..heads {
        let key = |j: usize, c: usize| match j < p {
            true => keys[(h * p + j) * head + c],
            false => qkv[(j - p) * 3 * d + d + h * head + c],
        };
        let value = |j: usize, c: usize| match j < p {
            true => values[(h * p + j) * head + c],
            false => qkv[(j - p) * 3 * d + 2 * d + h * head + c],
        };
        for i in 0..n {
            let seen = if w.causal { p + i + 1 } else { p + n };
            let scores: Vec<f64> = (0..seen)
                .map(|j| {
                    let dot: f64 = (0..head)
                        .map(|c| qkv[i * 3 * d + h * head + c] * key(j, c))
                        .sum();
                    dot / (head as f64).sqrt()
                })
                .collect();
            let most = scores.iter().fold(f64::MIN, |m, s| m.max(*s));
            let sum: f64 = scores.iter().map(|s| (s - most).exp()).sum();
            for c in 0..head {
                mixed[i * d + h * head + c] = (0..seen)
                    .map(|j| (scores[j] - most).exp() / sum * value(j, c))
                    .sum();
            }
        }
    }
    let add = |x: &[f64], branch: Vec<f64>, scale: Option<&[f32]>| -> Vec<f64> {
        let factor = |i: usize| scale.map_or(1.0, |s| f64::from(s[i % d]));
        x.iter()
            .zip(branch)
            .enumerate()
            .map(|(i, (x, y))| x + y * factor(i))
            .collect()
    };
    let x = add(x, linear(&mixed, d, &w.proj), w.scale1);
    let hidden: Vec<f64> = linear(&norm(&x, &w.norm2), d, &w.fc1)
        .into_iter()
        .map(|x| match w.activation {
            Activation::Gelu => x * normal(x),
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
        })
        .collect();
    add(&x, linear(&hidden, mlp, &w.fc2), w.scale2)
}
