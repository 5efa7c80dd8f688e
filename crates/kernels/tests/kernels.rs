//! Both ways of computing a block against the formula itself in f64, values and gradients, over odd sizes.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used)]

use candlewick_kernels::{
    BlockWeights, Gradients, Linear, Norm, Precision, Prefix, Shape, Wanted, plain,
};

/// Numbers between −1 and 1 that look random.
fn noise(n: usize, seed: u64) -> Vec<f32> {
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
struct Case {
    shape: Shape,
    dim: usize,
    heads: usize,
    mlp: usize,
    prefix: usize,
    scaled: bool,
}

fn case(
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
    }
}

/// Odd numbers of everything; the last three are real widths.
fn cases() -> Vec<Case> {
    vec![
        case(1, 1, (8, 1, 8), 0),
        case(3, 5, (48, 4, 96), 0),
        case(2, 17, (48, 4, 100), 3),
        case(5, 33, (36, 3, 72), 1),
        case(1, 50, (176, 2, 352), 5),
        case(2, 65, (128, 4, 512), 4),
        case(3, 197, (192, 3, 768), 8),
        case(1, 257, (384, 6, 1536), 0),
    ]
}

struct Owned {
    case: Case,
    parts: Vec<Vec<f32>>,
}

impl Owned {
    fn new(case: Case) -> Self {
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

    fn weights(&self) -> BlockWeights<'_> {
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
struct Input {
    x: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    /// Gradient of the output.
    grad: Vec<f32>,
}

impl Input {
    fn new(case: Case) -> Self {
        let n = case.shape.batch * case.shape.tokens * case.dim;
        let p = case.shape.batch * case.prefix * case.dim;
        Self {
            x: noise(n, 21).iter().map(|x| 2.0 * x).collect(),
            keys: noise(p, 22),
            values: noise(p, 23),
            grad: noise(n, 24),
        }
    }

    fn prefix(&self, case: Case) -> Option<Prefix<'_>> {
        (case.prefix > 0).then_some(Prefix {
            length: case.prefix,
            keys: &self.keys,
            values: &self.values,
        })
    }
}

/// Φ in f64.
fn normal(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// The formula in f64, one image: tokens `(N, D)`, prefix `(H, P, d)`.
fn formula(owned: &Owned, x: &[f64], keys: &[f64], values: &[f64]) -> Vec<f64> {
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
            let scores: Vec<f64> = (0..p + n)
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
                mixed[i * d + h * head + c] = (0..p + n)
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
        .map(|x| x * normal(x))
        .collect();
    add(&x, linear(&hidden, mlp, &w.fc2), w.scale2)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().copied().map(f64::from).collect()
}

/// `‖a − b‖ / ‖b‖`.
fn error(a: &[f32], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a
        .iter()
        .zip(b)
        .map(|(a, b)| (f64::from(*a) - b).powi(2))
        .sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    (difference / size.max(1e-30)).sqrt()
}

fn run(
    owned: &Owned,
    input: &Input,
    precision: Precision,
    wanted: Wanted,
) -> (Vec<f32>, Vec<f32>, Gradients) {
    let (w, shape) = (owned.weights(), owned.case.shape);
    let prefix = input.prefix(owned.case);
    let (x, grad) = (&input.x, &input.grad);
    match precision {
        Precision::F32 => {
            let memory = plain::Memory::default();
            let (bare, none) = plain::forward(&w, &memory, x, shape, prefix, false);
            assert!(none.is_none());
            let (y, saved) = plain::forward(&w, &memory, x, shape, prefix, true);
            let saved = saved.unwrap();
            (
                bare,
                y,
                plain::backward(&w, x, shape, prefix, &saved, grad, wanted),
            )
        }
        Precision::Bf16 => {
            let block = candlewick_kernels::bf16::PackedBlock::new(&w).unwrap();
            let (bare, _) = block.forward(x, shape, prefix, false);
            let (y, saved) = block.forward(x, shape, prefix, true);
            let saved = saved.unwrap();
            let grads = block
                .backward(x, shape, prefix, &saved, grad, wanted)
                .unwrap();
            (bare, y, grads)
        }
    }
}

fn precisions() -> Vec<(Precision, f64)> {
    let mut all = vec![(Precision::F32, 3e-6)];
    // Eight bits of mantissa: 2⁻⁹ each time a number is rounded.
    match Precision::Bf16.available() {
        true => all.push((Precision::Bf16, 1e-2)),
        false => eprintln!("no AMX here: bf16 is not tested"),
    }
    all
}

const BOTH: Wanted = Wanted {
    tokens: true,
    prefix: true,
};

#[test]
fn values_are_those_of_the_formula() {
    for case in cases() {
        let (owned, input) = (Owned::new(case), Input::new(case));
        let (n, p) = (case.shape.tokens * case.dim, case.prefix * case.dim);
        // The first and the last image: f64 takes its time.
        for image in [0, case.shape.batch - 1] {
            let part = |x: &[f32], n: usize| wide(&x[image * n..(image + 1) * n]);
            let want = formula(
                &owned,
                &part(&input.x, n),
                &part(&input.keys, p),
                &part(&input.values, p),
            );
            for (precision, bound) in precisions() {
                let (bare, y, _) = run(&owned, &input, precision, BOTH);
                assert_eq!(bare.len(), y.len());
                for y in [bare, y] {
                    let worst = error(&y[image * n..(image + 1) * n], &want);
                    assert!(
                        worst < bound,
                        "{case:?} {precision:?} image {image}: {worst:e}"
                    );
                }
            }
        }
    }
}

/// The slope of `Σ grad · y` along a direction, by differences in f64, against the gradients.
#[test]
fn f32_gradients_are_those_of_the_formula() {
    for case in cases().into_iter().take(6) {
        let (owned, input) = (Owned::new(case), Input::new(case));
        let (n, p) = (case.shape.tokens * case.dim, case.prefix * case.dim);
        let (_, _, grads) = run(&owned, &input, Precision::F32, BOTH);
        let image = case.shape.batch - 1;
        let part = |x: &[f32], n: usize| wide(&x[image * n..(image + 1) * n]);
        let inputs = [
            part(&input.x, n),
            part(&input.keys, p),
            part(&input.values, p),
        ];
        let found = [
            part(&grads.tokens, n),
            part(&grads.keys, p),
            part(&grads.values, p),
        ];
        let weight = part(&input.grad, n);
        for which in 0..3 {
            if inputs[which].is_empty() {
                continue;
            }
            for seed in 0..3 {
                let direction = wide(&noise(inputs[which].len(), 100 + seed));
                let value = |step: f64| -> f64 {
                    let mut moved = inputs.clone();
                    for (x, d) in moved[which].iter_mut().zip(&direction) {
                        *x += step * d;
                    }
                    let y = formula(&owned, &moved[0], &moved[1], &moved[2]);
                    y.iter().zip(&weight).map(|(y, w)| y * w).sum()
                };
                let want = (value(1e-5) - value(-1e-5)) / 2e-5;
                let dot: f64 = found[which]
                    .iter()
                    .zip(&direction)
                    .map(|(g, d)| g * d)
                    .sum();
                let size: f64 = found[which].iter().map(|g| g * g).sum::<f64>().sqrt();
                assert!(size > 0.0);
                let off = (dot - want).abs() / size;
                assert!(
                    off < 1e-4,
                    "{case:?} input {which}: {dot} for {want}, {off:e}"
                );
            }
        }
    }
}

#[test]
fn bf16_gradients_are_close_to_f32() {
    if !Precision::Bf16.available() {
        eprintln!("no AMX here: bf16 is not tested");
        return;
    }
    for case in cases() {
        let (owned, input) = (Owned::new(case), Input::new(case));
        let (_, _, want) = run(&owned, &input, Precision::F32, BOTH);
        let (_, _, got) = run(&owned, &input, Precision::Bf16, BOTH);
        for (name, got, want) in [
            ("tokens", &got.tokens, &want.tokens),
            ("keys", &got.keys, &want.keys),
            ("values", &got.values, &want.values),
        ] {
            let off = error(got, &wide(want));
            assert!(off < 1.5e-2, "{case:?} {name}: {off:e}");
        }
    }
}

/// What is not wanted is not computed, and what is wanted does not change for that.
#[test]
fn only_what_is_wanted_is_given() {
    let case = case(2, 17, (48, 4, 96), 3);
    let (owned, input) = (Owned::new(case), Input::new(case));
    for (precision, _) in precisions() {
        let (_, _, all) = run(&owned, &input, precision, BOTH);
        let prefix = Wanted {
            tokens: false,
            prefix: true,
        };
        let (_, _, part) = run(&owned, &input, precision, prefix);
        assert!(part.tokens.is_empty());
        assert!(part.keys == all.keys && part.values == all.values);
        let tokens = Wanted {
            tokens: true,
            prefix: false,
        };
        let (_, _, part) = run(&owned, &input, precision, tokens);
        assert!(part.tokens == all.tokens);
    }
}

/// An image's result depends neither on the images beside it nor on the number of threads.
#[test]
fn batch_and_threads_do_not_matter() {
    for (tokens, sizes) in [(197, (64, 1, 128)), (33, (48, 4, 96))] {
        let whole = case(7, tokens, sizes, 2);
        let (owned, input) = (Owned::new(whole), Input::new(whole));
        for (precision, bound) in precisions() {
            let with = |threads: usize| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                pool.unwrap()
                    .install(|| run(&owned, &input, precision, BOTH))
            };
            let (bare, kept, grads) = with(1);
            assert!(bare == kept);
            for threads in [2, 3, 8] {
                let (again, _, grads_again) = with(threads);
                assert!(bare == again, "{precision:?} with {threads} threads");
                assert!(grads.tokens == grads_again.tokens, "{precision:?}");
                assert!(grads.keys == grads_again.keys, "{precision:?}");
            }
            let alone = Case {
                shape: Shape::whole(1, tokens),
                ..whole
            };
            let (n, p) = (tokens * whole.dim, whole.prefix * whole.dim);
            let one = Input {
                x: input.x[3 * n..4 * n].to_vec(),
                keys: input.keys[3 * p..4 * p].to_vec(),
                values: input.values[3 * p..4 * p].to_vec(),
                grad: input.grad[3 * n..4 * n].to_vec(),
            };
            let owned = Owned::new(alone);
            let (bare_one, _, _) = run(&owned, &one, precision, BOTH);
            let off = error(&bare_one, &wide(&bare[3 * n..4 * n]));
            assert!(off < bound / 10.0, "{precision:?}: {off:e}");
        }
    }
}

/// Without the outputs that nobody reads: the same values, and the gradients of a loss that does not depend on them.
#[test]
fn the_first_tokens_alone_are_the_same() {
    for (full, read) in [
        (case(3, 33, (48, 4, 96), 2), 1),
        (case(5, 70, (48, 4, 100), 0), 40),
        (case(9, 197, (64, 1, 128), 3), 26),
        (case(1, 50, (36, 3, 72), 0), 2),
    ] {
        let (owned, input) = (Owned::new(full), Input::new(full));
        let n = full.shape.tokens * full.dim;
        let mut zeroed = Input::new(full);
        for grad in zeroed.grad.chunks_mut(n) {
            grad[read * full.dim..].fill(0.0);
        }
        let part = |x: &[f32]| -> Vec<f32> {
            let images = x.chunks(n).map(|x| &x[..read * full.dim]);
            images.flatten().copied().collect()
        };
        let mut short = owned.case;
        short.shape.read = read;
        let few = Owned::new(short);
        let narrow = Input {
            grad: part(&input.grad),
            ..Input::new(full)
        };
        for (precision, bound) in precisions() {
            let (_, want, all) = run(&owned, &zeroed, precision, BOTH);
            let (bare, kept, got) = run(&few, &narrow, precision, BOTH);
            assert!(bare == kept);
            assert!(error(&kept, &wide(&part(&want))) < bound / 3.0);
            for (name, got, want) in [
                ("tokens", &got.tokens, &all.tokens),
                ("keys", &got.keys, &all.keys),
                ("values", &got.values, &all.values),
            ] {
                let off = error(got, &wide(want));
                assert!(off < bound / 3.0, "{full:?} {precision:?} {name}: {off:e}");
            }
        }
    }
}
