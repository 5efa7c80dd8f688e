//! Methods that train the whole backbone: what ties them to each other, and the laws of the suite.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candlewick_core::{Method, OptimizerKind, Result, State, Stream, Task, Train, View};
use candlewick_methods::alignment::{Alignment, Shrink};
use candlewick_methods::cofima::{Compat, Merge};
use candlewick_methods::finetune::Part;
use candlewick_methods::fisher::Per;
use candlewick_methods::{CoFiMa, Finetune, Joint, Linear, MethodConfig, Slca, conformance};

use crate::lab::{conforms, micro, micro_in, odd_stream, quick};
use crate::near::precisions;

/// SGD, so that rates matter.
fn sgd() -> Train {
    let mut train = Train::new(1, 16, OptimizerKind::Sgd, 0.05);
    train.weight_decay = 5e-4;
    train
}

fn alignment() -> Alignment {
    Alignment {
        epochs: 2,
        samples: 16,
        lr: 0.01,
        weight_decay: 5e-4,
        logit_norm: Some(0.1),
        shrink: Shrink::Task,
    }
}

fn slca() -> Slca {
    Slca {
        backbone_lr: 0.1,
        alignment: alignment(),
    }
}

fn cofima(merge: Merge) -> CoFiMa {
    CoFiMa {
        backbone_lr: 0.1,
        merge,
        alignment: alignment(),
        compat: None,
    }
}

fn fisher(alpha: f64) -> Merge {
    Merge::Fisher {
        alpha,
        clip: Some(1e-4),
        epsilon: 1e-12,
        per: Per::Batch,
    }
}

fn finetune() -> Finetune {
    Finetune {
        part: Part::All,
        backbone_lr: 1.0,
        layer_decay: 1.0,
    }
}

fn bits(t: &Tensor) -> Vec<u32> {
    let values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn all_bits(state: &State, prefix: &str) -> BTreeMap<String, Vec<u32>> {
    let own = state.iter().filter(|(name, _)| name.starts_with(prefix));
    own.map(|(name, t)| (name.clone(), bits(t))).collect()
}

fn train(method: &mut dyn Method, task: &Task) {
    method.begin_task(&task.info).unwrap();
    for epoch in 0..method.epochs() {
        method.begin_epoch(epoch).unwrap();
        let view = View::Train {
            seed: 1,
            epoch: task.info.index as u64,
        };
        for batch in task.train.batches(view, method.batch_size()) {
            method.observe(&batch.unwrap()).unwrap();
        }
    }
}

fn learn(method: &mut dyn Method, task: &Task) {
    train(method, task);
    method.end_task(task, &mut |_| Ok(())).unwrap();
}

fn predictions(method: &dyn Method, stream: &Stream, seen: usize) -> Vec<u32> {
    let batches = stream.tasks[..seen]
        .iter()
        .flat_map(|t| t.test.batches(View::Plain, 16));
    batches
        .flat_map(|batch| bits(&method.predict(&batch.unwrap()).unwrap()))
        .collect()
}

#[test]
fn with_the_whole_share_a_merge_is_slca_and_without_one_the_backbone_stays() {
    let stream = odd_stream(false);
    let new = |merge| cofima(merge).build(micro(), sgd(), 16, 3).unwrap();
    let mut slca = slca().build(micro(), sgd(), 16, 3).unwrap();
    let mut all = [new(Merge::Average { alpha: 1.0 }), new(fisher(1.0))];
    let mut none = [new(Merge::Average { alpha: 0.0 }), new(fisher(0.0))];
    let mut first = Vec::new();
    for (t, task) in stream.tasks.iter().enumerate().take(3) {
        learn(&mut slca, task);
        let want = slca.state().unwrap();
        for method in &mut all {
            learn(method, task);
            let got = method.state().unwrap();
            for name in want.keys() {
                // The heads that are merged have another name.
                let here = match name.strip_prefix("head.") {
                    Some(rest) => format!("merged.{rest}"),
                    None => name.clone(),
                };
                assert_eq!(bits(&got[&here]), bits(&want[name]), "{name} of task {t}");
            }
            let (a, b) = (&*method, &slca);
            assert_eq!(
                predictions(a, &stream, t + 1),
                predictions(b, &stream, t + 1)
            );
        }
        for (i, method) in none.iter_mut().enumerate() {
            learn(method, task);
            let backbone = all_bits(&method.state().unwrap(), "backbone.");
            assert!(!backbone.is_empty());
            if t == 0 {
                first.push(backbone);
            } else {
                assert!(first[i] == backbone, "task {t} moved the backbone");
            }
        }
    }
}

/// Half of each is neither.
#[test]
fn a_merge_lies_between_its_networks() {
    let stream = odd_stream(false);
    let mut method = cofima(Merge::Average { alpha: 0.5 })
        .build(micro(), sgd(), 16, 3)
        .unwrap();
    learn(&mut method, &stream.tasks[0]);
    let old = method.state().unwrap();
    train(&mut method, &stream.tasks[1]);
    let new = method.state().unwrap();
    method.end_task(&stream.tasks[1], &mut |_| Ok(())).unwrap();
    let merged = method.state().unwrap();
    for name in old.keys().filter(|name| name.starts_with("backbone.")) {
        let want = ((&old[name] + &new[name]).unwrap() * 0.5).unwrap();
        assert!(
            crate::lab::difference(&merged[name], &want) < 1e-6,
            "{name}"
        );
    }
    // The new head is the trained one.
    assert_eq!(
        bits(&merged["merged.1.weight"]),
        bits(&new["merged.1.weight"])
    );
}

#[test]
fn alignment_moves_no_backbone_and_no_head_that_is_kept() {
    let stream = odd_stream(false);
    let mut method = slca().build(micro(), sgd(), 16, 3).unwrap();
    for (t, task) in stream.tasks.iter().enumerate().take(3) {
        train(&mut method, task);
        let before = method.state().unwrap();
        method.end_task(task, &mut |_| Ok(())).unwrap();
        let after = method.state().unwrap();
        for prefix in ["backbone.", "head."] {
            assert!(
                all_bits(&before, prefix) == all_bits(&after, prefix),
                "{prefix} task {t}"
            );
        }
        // The heads that predict are others, but for the first task.
        let aligned = after.contains_key("aligned.0.weight");
        assert_eq!(aligned, t > 0);
        if aligned {
            assert_ne!(
                bits(&after["aligned.0.weight"]),
                bits(&after["head.0.weight"])
            );
            assert_eq!(
                bits(&method.heads()[0][0]),
                bits(&after["aligned.0.weight"])
            );
        }
        // The next task begins from the heads of before.
        let heads = all_bits(&after, "head.");
        if let Some(next) = stream.tasks.get(t + 1) {
            let mut again = slca().build(micro(), sgd(), 16, 3).unwrap();
            let infos: Vec<_> = stream.tasks[..=t].iter().map(|t| t.info.clone()).collect();
            again.restore(&infos, &after).unwrap();
            again.begin_task(&next.info).unwrap();
            let mut now = all_bits(&again.state().unwrap(), "head.");
            now.retain(|name, _| heads.contains_key(name));
            assert!(now == heads);
        }
    }
}

/// The head alone is `linear`, bit for bit.
#[test]
fn a_head_alone_is_the_linear_method() {
    let stream = odd_stream(false);
    let head = Finetune {
        part: Part::Head,
        ..finetune()
    };
    let mut ours = head.build(micro(), quick(), 3).unwrap();
    let mut linear = Linear {}.build(micro(), quick(), 3).unwrap();
    for (t, task) in stream.tasks.iter().enumerate() {
        learn(&mut ours, task);
        learn(&mut linear, task);
        assert_eq!(
            predictions(&ours, &stream, t + 1),
            predictions(&linear, &stream, t + 1)
        );
    }
    assert_eq!(ours.trainable(), linear.trainable());
}

/// With SGD and no momentum to speak of, a first step is the rate times the gradient: layers are slower the earlier they come.
#[test]
fn rates_fall_from_layer_to_layer() {
    let stream = odd_stream(false);
    let step = |backbone_lr, layer_decay| -> BTreeMap<String, f32> {
        let config = Finetune {
            part: Part::All,
            backbone_lr,
            layer_decay,
        };
        let mut sgd = sgd();
        sgd.weight_decay = 0.0;
        let mut method = config.build(micro(), sgd, 3).unwrap();
        method.begin_task(&stream.tasks[0].info).unwrap();
        let before = method.state().unwrap();
        let view = View::Train { seed: 1, epoch: 0 };
        let batch = stream.tasks[0].train.batches(view, 16).next().unwrap();
        method.observe(&batch.unwrap()).unwrap();
        let after = method.state().unwrap();
        let moved = |name: &String| crate::lab::difference(&after[name], &before[name]);
        before
            .keys()
            .map(|name| (name.clone(), moved(name)))
            .collect()
    };
    let (plain, slow) = (step(1.0, 1.0), step(0.5, 0.25));
    for (name, factor) in [
        ("head.0.weight", 1.0),
        ("backbone.norm.weight", 0.5),
        ("backbone.blocks.1.mlp.fc1.weight", 0.125),
        ("backbone.blocks.0.mlp.fc1.weight", 0.5 / 16.0),
        ("backbone.patch_embed.proj.weight", 0.5 / 64.0),
    ] {
        let (a, b) = (plain[name], slow[name]);
        assert!(
            a > 0.0 && (b / a - factor).abs() < 0.05 * factor,
            "{name}: {a} {b}"
        );
    }
}

/// Joint training sees all images and forgets nothing that it could know.
#[test]
fn joint_training_begins_anew_with_everything() {
    let stream = odd_stream(false).cumulative();
    let build = || Joint(finetune()).build(micro(), quick(), 3).unwrap();
    let mut method = build();
    for task in &stream.tasks[..2] {
        learn(&mut method, task);
    }
    // The second task alone, with the images of both, ends in the same place.
    let mut alone = build();
    alone.begin_task(&stream.tasks[0].info).unwrap();
    learn(&mut alone, &stream.tasks[1]);
    assert_eq!(
        predictions(&method, &stream, 2),
        predictions(&alone, &stream, 2)
    );
}

#[test]
fn methods_that_train_the_backbone_conform() {
    let decayed = Finetune {
        layer_decay: 0.75,
        backbone_lr: 0.1,
        ..finetune()
    };
    let head = Finetune {
        part: Part::Head,
        ..finetune()
    };
    conforms(MethodConfig::Finetune(decayed), true).unwrap();
    conforms(MethodConfig::Finetune(head), false).unwrap();
    conforms(MethodConfig::Slca(slca()), true).unwrap();
}

#[test]
fn merged_methods_conform() {
    let reference = CoFiMa {
        compat: Some(Compat::Reference),
        ..cofima(fisher(0.5))
    };
    let per_sample = Merge::Fisher {
        alpha: 0.5,
        clip: None,
        epsilon: 1e-12,
        per: Per::Sample,
    };
    conforms(MethodConfig::CoFiMa(cofima(fisher(0.5))), true).unwrap();
    conforms(MethodConfig::CoFiMa(cofima(per_sample)), false).unwrap();
    conforms(
        MethodConfig::CoFiMa(cofima(Merge::Average { alpha: 0.4 })),
        false,
    )
    .unwrap();
    conforms(MethodConfig::CoFiMa(reference), false).unwrap();
}

#[test]
fn joint_training_conforms() {
    let slow = Finetune {
        backbone_lr: 0.1,
        ..finetune()
    };
    for precision in precisions() {
        let backbone = micro_in(precision);
        let weights = backbone.weights().clone();
        let config = MethodConfig::Joint(Joint(slow.clone()));
        let build =
            || -> Result<Box<dyn Method>> { config.build(backbone.clone(), Some(&quick()), 16, 5) };
        conformance::check(&build, &odd_stream(false).cumulative(), &weights).unwrap();
    }
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let check = |config: MethodConfig| config.check(Some(&quick())).unwrap_err().to_string();
    let half_head = Finetune {
        part: Part::Head,
        backbone_lr: 0.5,
        layer_decay: 1.0,
    };
    let mut no_samples = slca();
    no_samples.alignment.samples = 0;
    let mut coma = cofima(Merge::Average { alpha: 0.5 });
    coma.compat = Some(Compat::Reference);
    for (config, part) in [
        (MethodConfig::Finetune(half_head), "method.part"),
        (MethodConfig::Slca(no_samples), "method.alignment.samples"),
        (MethodConfig::CoFiMa(coma), "method.compat"),
        (MethodConfig::CoFiMa(cofima(fisher(1.5))), "method.merge"),
    ] {
        let text = check(config);
        assert!(text.contains(part), "{text}");
    }
}
