//! Modules of the first session against the values and gradients of PILOT's classes, and APER on each.

use candle_core::{Device, Tensor};
use candlewick_core::{Backbone, Batch, Cue, Method, Params, Prompt, State, Train, View};
use candlewick_methods::adapter::Adapters;
use candlewick_methods::classifier::OneLook;
use candlewick_methods::nearest_mean::Nearest;
use candlewick_methods::ssf::Ssf;
use candlewick_methods::vpt::Start;
use candlewick_methods::{Aper, FeCam, MethodConfig, RanPac, SimpleCil, Tuning};

use crate::base::trainable;
use crate::lab::{
    conforms, difference, gradient_holds, here, holds, micro, odd_stream, quick, task, tensors,
    tiny, tiny_in,
};
use crate::near::precisions;

fn adapter(bottleneck: usize) -> Tuning {
    Tuning::Adapter {
        bottleneck,
        dropout: 0.1,
    }
}

fn every_tuning() -> [Tuning; 5] {
    let init = Start::default();
    [
        Tuning::Finetune {},
        Tuning::VptShallow { length: 2, init },
        Tuning::VptDeep { length: 2, init },
        Tuning::Ssf {},
        // So many that one of them answers to the one token that is read of the last block.
        adapter(16),
    ]
}

/// Our name of a parameter of PILOT's class.
fn renamed(variant: &str, name: &str) -> String {
    let parts: Vec<&str> = name.split('.').collect();
    match (variant, parts.as_slice()) {
        ("aper_adapter", ["blocks", i, "adaptmlp", layer, kind]) => {
            format!("adapter.{i}.{}.{kind}", layer.trim_end_matches("_proj"))
        }
        ("ssf", [rest @ .., last]) => {
            let (kind, number) = last.trim_start_matches("ssf_").split_once('_').unwrap();
            let op = match (rest, number) {
                ([], "1") => "norm".to_owned(),
                (["patch_embed"], "1") => "patch_embed".to_owned(),
                (["blocks", i], n) => format!("{i}.norm{n}"),
                (["blocks", i, "attn"], "1") => format!("{i}.qkv"),
                (["blocks", i, "attn"], "2") => format!("{i}.proj"),
                (["blocks", i, "mlp"], n) => format!("{i}.fc{n}"),
                other => panic!("{other:?}"),
            };
            format!("ssf.{op}.{kind}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn adapters_and_ssf_match_the_reference_values_and_gradients() {
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    let cue = Cue {
        train: true,
        ..Cue::default()
    };
    for precision in precisions() {
        for variant in ["aper_adapter", "ssf"] {
            let backbone = tiny_in(precision);
            let mut params = Params::seeded(0, &Device::Cpu);
            let prompt: Box<dyn Prompt> = match variant {
                "ssf" => Box::new(Ssf::new(backbone.spec(), &mut params).unwrap()),
                _ => Box::new(Adapters::new(7, 0.0, 0, backbone.spec(), &mut params).unwrap()),
            };
            let prefix = format!("{variant}.p.");
            let state: State = all
                .iter()
                .filter_map(|(name, t)| {
                    Some((renamed(variant, name.strip_prefix(&prefix)?), t.clone()))
                })
                .collect();
            // Every parameter has a value, and every value a parameter.
            params.load_state(&state).unwrap();
            let features = backbone
                .forward(&all["in.images"], prompt.as_ref(), &cue)
                .unwrap();
            let cls = features.cls().unwrap();
            holds(
                precision,
                &cls,
                &all[&format!("{variant}.cls")],
                5e-5,
                variant,
            );
            let loss = (cls * &all["in.cls_cotangent"]).unwrap().sum_all().unwrap();
            let want = &all[&format!("{variant}.loss")];
            holds(precision, &loss.reshape(1).unwrap(), want, 1e-4, variant);
            let grads = loss.backward().unwrap();
            let prefix = format!("{variant}.grad.");
            for (name, want) in &all {
                let Some(name) = name.strip_prefix(&prefix) else {
                    continue;
                };
                let var = params.get(&renamed(variant, name)).unwrap();
                let got = grads.get(&var).unwrap();
                gradient_holds(precision, got, want, &format!("{variant} {name}"));
            }
        }
    }
}

fn build(tuning: Tuning) -> OneLook<Nearest> {
    Aper { tuning }.build(micro(), quick(), 16, 5).unwrap()
}

fn learn_without_epochs(method: &mut dyn Method) -> Vec<Vec<Vec<f32>>> {
    let stream = odd_stream(false);
    for task in &stream.tasks {
        method.begin_task(&task.info).unwrap();
        method.end_task(task, &mut |_| Ok(())).unwrap();
    }
    let batches = stream
        .tasks
        .iter()
        .flat_map(|t| t.test.batches(View::Plain, 16));
    batches
        .map(|b| method.predict(&b.unwrap()).unwrap().to_vec2().unwrap())
        .collect()
}

fn label(row: &[f32]) -> usize {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0
}

/// The up projection is 0, so both halves are the same feature, but for the rounding of a block that is computed in
/// pieces to let the adapter in. Of halves that are the same bits, scores are too: see `statistics`.
#[test]
fn an_adapter_without_epochs_is_simplecil() {
    let simple = learn_without_epochs(&mut SimpleCil {}.build(micro(), 16));
    let aper = learn_without_epochs(&mut build(adapter(4)));
    for (a, b) in simple.iter().flatten().zip(aper.iter().flatten()) {
        assert_eq!(label(a), label(b));
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 5e-7));
    }
    // Not so for what starts elsewhere.
    let ssf = learn_without_epochs(&mut build(Tuning::Ssf {}));
    let far = |a: &[f32], b: &[f32]| a.iter().zip(b).any(|(a, b)| (a - b).abs() > 1e-5);
    assert!(
        simple
            .iter()
            .flatten()
            .zip(ssf.iter().flatten())
            .any(|(a, b)| far(a, b))
    );
}

fn images() -> Batch {
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    Batch {
        images: all["in.images"].clone(),
        labels: vec![0, 1, 0],
        ids: vec![0, 1, 2],
        plain: false,
    }
}

/// Every way of tuning lowers the loss it is trained on, and only on the first task.
#[test]
fn every_tuning_trains_on_the_first_task_alone() {
    for tuning in every_tuning() {
        let what = format!("{tuning:?}");
        let train = Train {
            // A whole backbone takes small steps.
            lr: if tuning == (Tuning::Finetune {}) {
                1e-3
            } else {
                1e-2
            },
            ..quick()
        };
        let mut method = Aper { tuning }.build(tiny(), train, 16, 1).unwrap();
        method.begin_task(&task(0, 0..2)).unwrap();
        let before = method.look().params().unwrap().state().unwrap();
        let mut losses = Vec::new();
        for _ in 0..12 {
            let loss = method.observe(&images()).unwrap();
            losses.push(loss.to_scalar::<f32>().unwrap());
        }
        assert!(losses[11] < 0.95 * losses[0], "{what}: {losses:?}");
        let after = method.look().params().unwrap().state().unwrap();
        let moved = |name: &&String| difference(&before[*name], &after[*name]) > 0.0;
        let still: Vec<&String> = before.keys().filter(|n| !moved(n)).collect();
        assert!(still.is_empty(), "{what}: {still:?}");
        method.begin_task(&task(1, 2..3)).unwrap();
        assert_eq!(method.epochs(), 0);
        assert!(method.observe(&images()).is_err());
    }
}

/// The gradient of a thawed backbone against finite differences, for weights of every kind.
#[test]
fn a_thawed_backbone_has_true_gradients() {
    let all = tensors(here("tests/fixtures/pet.safetensors"));
    let frozen = tiny();
    let thawed = frozen.thaw().unwrap();
    let names: Vec<&String> = frozen.weights().keys().collect();
    assert_eq!(thawed.weights.keys().collect::<Vec<_>>(), names);
    let loss = || {
        let features = thawed.backbone.forward(
            &all["in.images"],
            &candlewick_core::NoPrompt,
            &Cue::default(),
        );
        let cls = features.unwrap().cls().unwrap();
        (cls * &all["in.cls_cotangent"]).unwrap().sum_all().unwrap()
    };
    let first = loss();
    let plain = (&all["frozen.cls"] * &all["in.cls_cotangent"])
        .unwrap()
        .sum_all()
        .unwrap();
    assert!(difference(&first, &plain) < 1e-4);
    let grads = first.backward().unwrap();
    for (name, var) in &thawed.weights {
        let grad = grads
            .get(var)
            .unwrap_or_else(|| panic!("no gradient for {name}"));
        let grad: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
        let start: Vec<f32> = var.flatten_all().unwrap().to_vec1().unwrap();
        let (at, largest) = grad
            .iter()
            .enumerate()
            .max_by(|a, b| a.1.abs().total_cmp(&b.1.abs()))
            .unwrap();
        let shape = var.dims().to_vec();
        let value = |delta: f32| {
            let mut moved = start.clone();
            moved[at] += delta;
            var.set(&Tensor::from_vec(moved, shape.as_slice(), &Device::Cpu).unwrap())
                .unwrap();
            f64::from(loss().to_scalar::<f32>().unwrap())
        };
        let numeric = (value(1e-2) - value(-1e-2)) / 2e-2;
        value(0.0);
        let want = f64::from(*largest);
        assert!(
            (numeric - want).abs() < 0.03 * want.abs().max(0.02),
            "{name}: {numeric} {want}"
        );
    }
    let rebuilt = frozen.with_weights(&frozen.weights().clone()).unwrap();
    let cls = |b: &dyn Backbone| b.query(&all["in.images"]).unwrap();
    assert_eq!(
        difference(&cls(rebuilt.as_ref()), &cls(frozen.as_ref())),
        0.0
    );
    let mut wrong = frozen.weights().clone();
    wrong.remove("norm.bias");
    let text = frozen.with_weights(&wrong).err().unwrap().to_string();
    assert!(text.contains("missing `norm.bias`"), "{text}");
}

/// With deep prompts it does so on augmented images, in `vpt`.
#[test]
fn aper_keeps_the_laws() {
    let shallow = Tuning::VptShallow {
        length: 2,
        init: Start::default(),
    };
    for tuning in [Tuning::Finetune {}, Tuning::Ssf {}, adapter(4), shallow] {
        conforms(MethodConfig::Aper(Aper { tuning }), false).unwrap();
    }
}

#[test]
fn ranpac_and_fecam_keep_the_laws_when_tuned() {
    let ranpac = RanPac {
        projection: 300,
        ridge: None,
        compat: None,
        tuning: Some(adapter(4)),
    };
    conforms(MethodConfig::RanPac(ranpac.clone()), false).unwrap();
    let fecam = FeCam {
        shrinkage: [1.0, 0.0],
        tukey: None,
        compat: None,
        tuning: Some(Tuning::Ssf {}),
    };
    conforms(MethodConfig::FeCam(fecam), false).unwrap();
    let text = MethodConfig::RanPac(ranpac)
        .check(None)
        .unwrap_err()
        .to_string();
    assert!(text.contains("epochs"), "{text}");
}

/// The counts that PILOT logs, and a head of ten classes with σ.
#[test]
fn trainable_values_on_a_base_model() {
    let head = 7_680 + 1;
    for (tuning, values) in [
        (adapter(64), 1_189_632),
        (Tuning::Ssf {}, 205_824),
        (
            Tuning::VptDeep {
                length: 5,
                init: Start::default(),
            },
            46_080,
        ),
        (
            Tuning::VptShallow {
                length: 5,
                init: Start::default(),
            },
            3_840,
        ),
    ] {
        let config = MethodConfig::Aper(Aper { tuning });
        assert_eq!(trainable(&config, 3, 10), values + head);
    }
}

#[test]
fn settings_of_a_tuning_are_named() {
    for (tuning, key) in [
        (adapter(0), "method.tuning.bottleneck"),
        (
            Tuning::Adapter {
                bottleneck: 4,
                dropout: 1.0,
            },
            "method.tuning.dropout",
        ),
        (
            Tuning::VptDeep {
                length: 0,
                init: Start::default(),
            },
            "method.tuning.length",
        ),
    ] {
        let config = MethodConfig::Aper(Aper { tuning });
        let text = config.check(Some(&quick())).unwrap_err().to_string();
        assert!(text.contains(key), "{text}");
    }
}
