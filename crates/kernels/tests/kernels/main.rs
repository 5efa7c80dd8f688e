//! Both ways of computing a block against the formula itself in f64, values and gradients, over odd sizes.

// Clippy's leave for tests does not reach the helpers of an integration test.
#![allow(clippy::unwrap_used)]

mod formula;

use candlewick_kernels::{Gradients, Precision, Shape, Wanted, plain};
use formula::{Case, Input, Owned, case, cases, formula, noise};

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
                plain::backward(&w, x, shape, prefix, saved, grad, wanted),
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

fn precisions(case: Case) -> Vec<(Precision, f64)> {
    let mut all = vec![(Precision::F32, 3e-6)];
    // Eight bits of mantissa: 2⁻⁹ each time a number is rounded.
    match Precision::Bf16.available() {
        true if case.causal => {}
        true => all.push((Precision::Bf16, 1e-2)),
        false => eprintln!("neither AMX nor AVX-512 BF16 here: bf16 is not tested"),
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
            for (precision, bound) in precisions(case) {
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
    // f64 takes its time over the real widths.
    for case in cases().into_iter().filter(|case| case.dim < 180) {
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
        eprintln!("neither AMX nor AVX-512 BF16 here: bf16 is not tested");
        return;
    }
    for case in cases().into_iter().filter(|case| !case.causal) {
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
    for (precision, _) in precisions(case) {
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
    for (tokens, sizes, prefix, read) in [
        (197, (64, 1, 128), 2, 197),
        (33, (48, 4, 96), 2, 33),
        (70, (64, 2, 96), 0, 2),
    ] {
        let mut whole = case(7, tokens, sizes, prefix);
        whole.shape.read = read;
        let (owned, input) = (Owned::new(whole), Input::new(whole));
        for (precision, bound) in precisions(whole) {
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
                shape: Shape {
                    batch: 1,
                    ..whole.shape
                },
                ..whole
            };
            let r = read * whole.dim;
            let (n, p) = (tokens * whole.dim, whole.prefix * whole.dim);
            let one = Input {
                x: input.x[3 * n..4 * n].to_vec(),
                keys: input.keys[3 * p..4 * p].to_vec(),
                values: input.values[3 * p..4 * p].to_vec(),
                grad: input.grad[3 * r..4 * r].to_vec(),
            };
            let owned = Owned::new(alone);
            let (bare_one, _, _) = run(&owned, &one, precision, BOTH);
            let off = error(&bare_one, &wide(&bare[3 * r..4 * r]));
            assert!(off < bound / 10.0, "{precision:?}: {off:e}");
        }
    }
}

fn scaled(case: Case) -> Case {
    Case {
        scaled: true,
        ..case
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
        // So few that f32 computes no keys and values.
        (case(3, 33, (48, 3, 96), 0), 1),
        (case(9, 70, (128, 4, 200), 0), 2),
        (scaled(case(1, 50, (36, 2, 72), 0)), 1),
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
        for (precision, bound) in precisions(full) {
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
