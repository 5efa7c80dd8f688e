//! CODA-Prompt against the values and gradients of its authors' code.

use candle_core::{Device, Tensor};
use candlewick_core::{
    Batch, Error, Method, OptimizerKind, Prompted, Schedule, State, Train, View,
};
use candlewick_methods::coda::{Components, gram_schmidt};
use candlewick_methods::{Coda, MethodConfig};
use candlewick_vit::Precision;

use crate::base::trainable;
use crate::lab::{
    Tensors, conforms, difference, gradient_holds, here, holds, max_abs, micro, odd_stream, quick,
    task, tensors, tiny, tiny_in,
};
use crate::near::{assert_within, precisions};

const BLOCKS: [usize; 4] = [0, 1, 2, 3];

fn fixture() -> Tensors {
    tensors(here("tests/fixtures/coda.safetensors"))
}

fn config(orthogonality: f64) -> Coda {
    Coda {
        blocks: BLOCKS.to_vec(),
        components: 2,
        length: 4,
        orthogonality,
    }
}

fn rows(tensor: &Tensor, task: usize) -> Tensor {
    tensor.narrow(0, 2 * task, 2).unwrap()
}

/// Two components a task, as the fixture's pool of ten is shared out; `from` is the tensor set of components.
fn state(all: &Tensors, from: &str, head: &str, tasks: usize) -> State {
    let mut state = State::new();
    for t in 0..tasks {
        for block in BLOCKS {
            for part in ["p", "k", "a"] {
                let pool = &all[&format!("{from}.e_{part}_{block}")];
                state.insert(format!("{part}.{t}.{block}"), rows(pool, t));
            }
        }
        for part in ["weight", "bias"] {
            let whole = &all[&format!("{head}.{part}")];
            state.insert(format!("head.{t}.{part}"), rows(whole, t));
        }
    }
    state
}

/// In the middle of task `t`, at the values of the fixture.
fn method(
    all: &Tensors,
    t: usize,
    orthogonality: f64,
    precision: Precision,
) -> Prompted<Components> {
    let backbone = tiny_in(precision);
    let mut method = config(orthogonality).build(backbone, quick(), 0).unwrap();
    let infos: Vec<_> = (0..=t).map(|t| task(t, 2 * t..2 * t + 2)).collect();
    let state = state(all, &format!("task{t}.init"), "p.head", t + 1);
    method.restore(&infos, &state).unwrap();
    method
}

fn batch(all: &Tensors, t: usize) -> Batch {
    let targets: Vec<i64> = all[&format!("task{t}.targets")].to_vec1().unwrap();
    Batch {
        images: all["in.images"].clone(),
        labels: targets.iter().map(|&t| t as u32).collect(),
        ids: (0..4).collect(),
        plain: false,
    }
}

fn close(got: &Tensor, want: &Tensor, bound: f32, what: &str) {
    let far = difference(got, want);
    assert!(far < bound, "{what}: {far:e}");
}

#[test]
fn new_rows_are_made_orthogonal_as_published() {
    let all = fixture();
    for t in 0..2 {
        for (part, block) in ["p", "k", "a"].iter().flat_map(|p| BLOCKS.map(|b| (p, b))) {
            let name = format!("e_{part}_{block}");
            let before = (t > 0).then(|| rows(&all[&format!("task1.before_gs.{name}")], 0));
            let old: Vec<&Tensor> = before.iter().collect();
            let want = rows(&all[&format!("task{t}.init.{name}")], t);
            let raw = all[&format!("task{t}.raw.{name}")]
                .reshape(want.shape())
                .unwrap();
            close(&gram_schmidt(&old, &raw).unwrap(), &want, 1e-5, &name);
        }
    }
}

/// A task draws its rows and makes them orthogonal to those it finds.
#[test]
fn a_task_begins_with_orthonormal_rows() {
    let mut method = config(0.0).build(tiny(), quick(), 0).unwrap();
    for t in 0..3 {
        method.begin_task(&task(t, 2 * t..2 * t + 2)).unwrap();
    }
    let rows = method.prompt().rows(1, true).unwrap();
    for x in [rows.p.flatten_from(1).unwrap(), rows.k, rows.a] {
        let products = x.matmul(&x.t().unwrap()).unwrap();
        let one = Tensor::eye(6, candle_core::DType::F32, &Device::Cpu).unwrap();
        close(&products, &one, 1e-5, "orthonormal");
    }
}

/// More rows than dimensions cannot be orthogonal; they stay of length 1 and there is an end to it.
#[test]
fn rows_beyond_the_last_dimension() {
    let drawn = Tensor::new(&[[1f32, 2.0], [3.0, 1.0], [0.5, -1.0]], &Device::Cpu).unwrap();
    let zero = Tensor::zeros((1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let made = gram_schmidt(&[&zero], &drawn).unwrap();
    for row in made.to_vec2::<f32>().unwrap() {
        let length = row.iter().map(|x| x * x).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-6, "{row:?}");
    }
}

#[test]
fn weights_prefixes_and_penalties_match_block_by_block() {
    let all = fixture();
    for t in 0..2 {
        let method = method(&all, t, 0.1, Precision::F32);
        for block in BLOCKS {
            let get = |name: &str| &all[&format!("task{t}.layer{block}.{name}")];
            let rows = method.prompt().rows(block, true).unwrap();
            let weights = rows.weights(&all["out.query"]).unwrap();
            close(&weights, get("alpha"), 2e-5, "alpha");
            let pairs = rows.sum(&weights).unwrap();
            for (at, name) in ["P_k", "P_v"].iter().enumerate() {
                let part = pairs.narrow(1, at, 1).unwrap().squeeze(1).unwrap();
                close(&part, get(name), 2e-5, name);
            }
            let penalty = (rows.penalty().unwrap() * 0.1).unwrap();
            close(
                &penalty.reshape(1).unwrap(),
                get("penalty"),
                2e-6,
                "penalty",
            );
        }
    }
}

/// In task 1 the images pull keys and attention of the last block opposite ways: what is left of the gradient, 4e-4 long, is a
/// fifth to a twentieth of the other blocks', but the rounding of bf16 is left whole. Found to be off by 10 %.
const CANCELLED: f64 = 0.2;

#[test]
fn losses_logits_and_gradients_match() {
    let all = fixture();
    let tasks = precisions().into_iter().flat_map(|p| [(p, 0), (p, 1)]);
    for (precision, t) in tasks {
        let batch = batch(&all, t);
        for (orthogonality, loss, grad) in [(0.0, "ce", "grad_ce"), (0.1, "loss", "grad_total")] {
            let method = method(&all, t, orthogonality, precision);
            let logits = all[&format!("task{t}.eval.logits")]
                .narrow(1, 0, 2 * (t + 1))
                .unwrap();
            let got = method.predict(&batch).unwrap();
            holds(precision, &got, &logits, 5e-5, "logits");
            let got = method.loss(&batch).unwrap();
            let want = &all[&format!("task{t}.train.{loss}")];
            holds(precision, &got.reshape(1).unwrap(), want, 5e-5, loss);

            let grads = got.backward().unwrap();
            let from = format!("task{t}.{grad}");
            for (name, want) in state(&all, &from, &format!("{from}.head"), t + 1) {
                let got = grads.get(&method.params().get(&name).unwrap());
                if name.split('.').nth(1) == Some(&t.to_string()) {
                    let what = format!("task {t} {grad} {name}");
                    let cancels = ["a.1.3", "k.1.3"].contains(&name.as_str());
                    if precision == Precision::Bf16 && cancels {
                        assert_within(CANCELLED, &what, got.unwrap(), &want);
                        continue;
                    }
                    gradient_holds(precision, got.unwrap(), &want, &what);
                } else {
                    assert!(got.is_none() && max_abs(&want) == 0.0, "task {t} {name}");
                }
            }
        }
    }
}

#[test]
fn the_schedule_is_the_published_one() {
    let all = fixture();
    for epochs in [20, 50] {
        let want: Vec<f32> = all[&format!("lr.epochs{epochs}")].to_vec1().unwrap();
        assert_eq!(want.len(), epochs);
        for (epoch, want) in want.iter().enumerate() {
            let got = Schedule::CodaCosine.factor(epoch, epochs);
            assert!(
                (got - f64::from(*want)).abs() < 1e-6,
                "{epoch} of {epochs}: {got}"
            );
        }
    }
}

fn small() -> Coda {
    Coda {
        blocks: vec![0, 1],
        components: 3,
        length: 4,
        orthogonality: 0.0,
    }
}

fn scheduled() -> Train {
    Train {
        schedule: Schedule::CodaCosine,
        epochs: 3,
        ..quick()
    }
}

/// The number of tasks is told to no one: components come with the tasks.
#[test]
fn coda_keeps_the_laws() {
    conforms(MethodConfig::Coda(small()), false).unwrap();
}

/// A rate that falls to nothing is a step that changes nothing: the schedule reaches the optimiser.
#[test]
fn the_schedule_reaches_the_steps() {
    let stream = odd_stream(false);
    let train = Train {
        schedule: Schedule::Cosine,
        epochs: 1000,
        ..quick()
    };
    let mut method = small().build(micro(), train, 3).unwrap();
    method.begin_task(&stream.tasks[0].info).unwrap();
    let view = View::Train { seed: 1, epoch: 0 };
    let batch = stream.tasks[0]
        .train
        .batches(view, 16)
        .next()
        .unwrap()
        .unwrap();
    let mut step = |epoch| -> f32 {
        let before = method.state().unwrap();
        method.begin_epoch(epoch).unwrap();
        method.observe(&batch).unwrap();
        let after = method.state().unwrap();
        difference(&before["head.0.weight"], &after["head.0.weight"])
    };
    let (first, last) = (step(0), step(999));
    assert!((first - 0.01).abs() < 1e-4, "{first}");
    assert!(last < 1e-5 * first, "{last}");
}

/// Components of earlier tasks stay bit for bit, whatever is decayed and penalised.
#[test]
fn old_components_stand_still() {
    let stream = odd_stream(false);
    let train = Train {
        optimizer: OptimizerKind::AdamW,
        weight_decay: 0.1,
        ..scheduled()
    };
    let config = Coda {
        orthogonality: 0.1,
        ..small()
    };
    let mut method = config.build(micro(), train, 3).unwrap();
    let bits = |tensor: &Tensor| -> Vec<u32> {
        let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
        values.into_iter().map(f32::to_bits).collect()
    };
    for (t, task) in stream.tasks.iter().enumerate() {
        method.begin_task(&task.info).unwrap();
        let begun = method.state().unwrap();
        for epoch in 0..2 {
            method.begin_epoch(epoch).unwrap();
            let view = View::Train {
                seed: 1,
                epoch: epoch as u64,
            };
            for batch in task.train.batches(view, 16) {
                method.observe(&batch.unwrap()).unwrap();
            }
        }
        for (name, after) in method.state().unwrap() {
            let moved = bits(&begun[&name]) != bits(&after);
            let current = name.split('.').nth(1) == Some(&t.to_string());
            // A task of a single class has nothing to learn.
            let expected = match task.info.classes.len() {
                1 => moved && current,
                _ => current,
            };
            assert_eq!(moved, expected, "{name} in task {t}");
        }
    }
}

#[test]
fn settings_out_of_range_are_named() {
    let wrong = |config: Coda, key: &str, part: &str| {
        let found = match config.build(micro(), quick(), 0) {
            Err(Error::Setting { key, problem }) => (key, problem),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{key} must be refused"),
        };
        assert_eq!(found.0, format!("method.{key}"));
        assert!(found.1.contains(part), "{}", found.1);
    };
    wrong(
        Coda {
            blocks: vec![],
            ..small()
        },
        "blocks",
        "at least one",
    );
    wrong(
        Coda {
            blocks: vec![1, 1],
            ..small()
        },
        "blocks",
        "block 1 stands twice",
    );
    wrong(
        Coda {
            blocks: vec![2],
            ..small()
        },
        "blocks",
        "no block 2; the backbone has 2, 0 to 1",
    );
    wrong(
        Coda {
            components: 0,
            ..small()
        },
        "components",
        "greater than 0",
    );
    wrong(
        Coda {
            components: 129,
            ..small()
        },
        "components",
        "width 128",
    );
    wrong(
        Coda {
            length: 5,
            ..small()
        },
        "length",
        "even",
    );
    wrong(
        Coda {
            orthogonality: -1.0,
            ..small()
        },
        "orthogonality",
        "0 or greater",
    );
}

/// A pool of 100 components in ten tasks of ten classes on ViT-B/16, as published.
#[test]
fn trainable_values_on_a_base_model() {
    let published = MethodConfig::Coda(Coda {
        blocks: vec![0, 1, 2, 3, 4],
        components: 10,
        length: 8,
        orthogonality: 0.0,
    });
    let head = 100 * 769;
    assert_eq!(
        trainable(&published, 10, 10),
        5 * (100 * 8 * 768 + 2 * 100 * 768) + head
    );
}
