//! Rules and files.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candlewick_merge::{Error, Rule, Sources, ema, files};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use safetensors::{SafeTensors, serialize};

/// Shape and values by name.
type Model = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn read(path: &Path) -> Model {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let all = file.iter().filter(|(_, t)| t.dtype() == Dtype::F32);
    let values = |bytes: &[u8]| -> Vec<f32> {
        let words = bytes.as_chunks::<4>().0;
        words.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    all.map(|(name, t)| (name.to_owned(), (t.shape().to_vec(), values(t.data()))))
        .collect()
}

fn write(path: &Path, model: &Model) -> PathBuf {
    let bytes: BTreeMap<&String, Vec<u8>> = model
        .iter()
        .map(|(name, (_, v))| (name, v.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let view = |name: &String, shape: &[usize]| {
        TensorView::new(Dtype::F32, shape.to_vec(), &bytes[name]).unwrap()
    };
    let views = model
        .iter()
        .map(|(name, (shape, _))| (name, view(name, shape)));
    std::fs::write(path, serialize(views, None).unwrap()).unwrap();
    path.to_owned()
}

/// What was recorded of the original implementations.
fn fixture() -> Model {
    read(
        &Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../methods/tests/fixtures/slca_cofima.safetensors"),
    )
}

fn part(fixture: &Model, prefix: &str) -> Model {
    let cut = |(name, t): (&String, &(Vec<usize>, Vec<f32>))| {
        Some((name.strip_prefix(prefix)?.to_owned(), t.clone()))
    };
    fixture.iter().filter_map(cut).collect()
}

fn near(got: &Model, want: &Model) {
    for (name, (_, want)) in want {
        for (g, w) in got[name].1.iter().zip(want) {
            assert!((g - w).abs() <= 1e-5 * w.abs().max(1e-6), "{name}: {g} {w}");
        }
    }
}

fn rules(models: usize) -> Vec<Rule> {
    let mut rules = vec![
        Rule::Average,
        Rule::Ema { decay: 0.9 },
        Rule::TaskArithmetic { scale: 0.3 },
        Rule::Fisher {
            weights: vec![],
            epsilon: 1e-12,
        },
    ];
    if models == 2 {
        rules.push(Rule::Wise { alpha: 0.3 });
    }
    rules
}

/// Numbers of every size, signs of 0, infinities.
fn numbers(n: usize) -> Vec<f32> {
    let mut all: Vec<f32> = (0..n as u32)
        .map(|i| f32::from_bits(i.wrapping_mul(0x9e37_79b9)))
        .filter(|v| !v.is_nan())
        .collect();
    all.extend([
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::MIN_POSITIVE,
    ]);
    all
}

#[test]
fn a_model_merged_with_itself_is_the_model() {
    let dir = tempfile::tempdir().unwrap();
    let values = numbers(300_000);
    let model = Model::from([
        ("a".into(), (vec![values.len()], values)),
        ("b.c".into(), (vec![2, 3], vec![0.1; 6])),
        ("empty".into(), (vec![0, 3], vec![])),
    ]);
    let path = write(&dir.path().join("a"), &model);
    let fisher: Model = model
        .iter()
        .map(|(name, (shape, v))| {
            let weights = (0..v.len()).map(|i| (i % 7) as f32 * 1e-4).collect();
            (name.clone(), (shape.clone(), weights))
        })
        .collect();
    let fisher = write(&dir.path().join("f"), &fisher);
    for models in [2, 3, 5] {
        for rule in rules(models) {
            let out = dir.path().join("out");
            let sources = Sources {
                models: vec![path.clone(); models],
                fishers: match rule.wants_fisher() {
                    true => vec![fisher.clone(); models],
                    false => vec![],
                },
                only: vec![],
            };
            let merged = files(&rule, &sources, &out).unwrap();
            assert_eq!(merged.tensors, 3);
            let bits = |m: &Model| -> Vec<u32> {
                m.values().flat_map(|t| &t.1).map(|v| v.to_bits()).collect()
            };
            assert_eq!(bits(&read(&out)), bits(&model), "{rule:?}");
        }
    }
}

/// At its ends an interpolation is one of its models, signs of 0 and infinities of the other regardless.
#[test]
fn an_end_of_an_interpolation_is_a_model() {
    let a = numbers(1000);
    let b: Vec<f32> = a.iter().rev().copied().collect();
    let fishers = vec![1f32; a.len()];
    let fisher = |first: f64| Rule::Fisher {
        weights: vec![first, 1.0 - first],
        epsilon: 1e-12,
    };
    for (rule, want) in [
        (Rule::Wise { alpha: 0.0 }, &a),
        (Rule::Wise { alpha: 1.0 }, &b),
        (Rule::Ema { decay: 1.0 }, &a),
        (fisher(1.0), &a),
        (fisher(0.0), &b),
    ] {
        let mut got = vec![0f32; a.len()];
        let out = |at: usize, value: f64| got[at] = value as f32;
        rule.merge(&[&a, &b], &[&fishers, &fishers], out).unwrap();
        for (g, w) in got.iter().zip(want) {
            assert_eq!(g.to_bits(), w.to_bits(), "{rule:?}");
        }
    }
}

#[test]
fn averages_over_n_models_are_the_closed_forms() {
    let models: Vec<Vec<f32>> = (0..7)
        .map(|m| {
            (0..50)
                .map(|i| ((i * 7 + m * m * 13) % 31) as f32 / 7.0 - 2.0)
                .collect()
        })
        .collect();
    let slices: Vec<&[f32]> = models.iter().map(Vec::as_slice).collect();
    let fishers: Vec<Vec<f32>> = (0..7).map(|m| vec![0.25 * (m + 1) as f32; 50]).collect();
    let fishers: Vec<&[f32]> = fishers.iter().map(Vec::as_slice).collect();
    let last = models.len() - 1;
    let closed = |rule: &Rule, at: usize| -> f64 {
        let value = |m: usize| f64::from(models[m][at]);
        match rule {
            Rule::Ema { decay } => {
                let steps =
                    (1..=last).map(|m| (1.0 - decay) * decay.powi((last - m) as i32) * value(m));
                decay.powi(last as i32) * value(0) + steps.sum::<f64>()
            }
            Rule::TaskArithmetic { scale } => {
                (1.0 - scale * last as f64) * value(0) + scale * (1..=last).map(value).sum::<f64>()
            }
            Rule::Fisher { .. } => {
                (0..=last).map(|m| (m + 1) as f64 * value(m)).sum::<f64>() / 28.0
            }
            _ => (0..=last).map(value).sum::<f64>() / 7.0,
        }
    };
    for rule in rules(models.len()) {
        rule.merge(&slices, &fishers, |at, got| {
            let want = closed(&rule, at);
            assert!((got - want).abs() < 1e-9, "{rule:?}: {got} {want}");
        })
        .unwrap();
    }
}

#[test]
fn cofima_and_coma_are_the_references() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str, model: &Model| write(&dir.path().join(name), model);
    let mut models = Vec::new();
    let mut fishers = Vec::new();
    let old = part(&fixture, "merge.in.theta_0.");
    for t in ["0", "t"] {
        // The new head, which only the second model has, is copied by both methods.
        let both = |mut m: Model| {
            m.retain(|name, _| old.contains_key(name));
            m
        };
        models.push(path(
            t,
            &both(part(&fixture, &format!("merge.in.theta_{t}."))),
        ));
        fishers.push(path(
            &format!("f{t}"),
            &both(part(&fixture, &format!("merge.in.F_{t}."))),
        ));
    }
    let alpha = f64::from(fixture["merge.in.alpha"].1[0]);
    let fisher = Rule::Fisher {
        weights: vec![1.0 - alpha, alpha],
        epsilon: 1e-12,
    };
    for (rule, fishers, want) in [
        (fisher, fishers, "merge.cofima_clean."),
        (Rule::Wise { alpha }, vec![], "merge.coma."),
    ] {
        let sources = Sources {
            models: models.clone(),
            fishers,
            only: vec![],
        };
        let out = dir.path().join("out");
        files(&rule, &sources, &out).unwrap();
        let mut want = part(&fixture, want);
        want.retain(|name, _| old.contains_key(name));
        near(&read(&out), &want);
    }
}

#[test]
fn steps_of_ema_are_timms() {
    let fixture = fixture();
    let decay = f64::from(fixture["ema.in.decay"].1[0]);
    let (all, want) = (
        &fixture["ema.in.sequence"].1,
        &fixture["ema.out.sequence"].1,
    );
    let mut kept = all[..12].to_vec();
    for (step, want) in want.chunks_exact(12).enumerate() {
        if step > 0 {
            ema(&mut kept, &all[step * 12..(step + 1) * 12], decay);
        }
        for (k, w) in kept.iter().zip(want) {
            assert!((k - w).abs() <= 1e-5 * w.abs().max(1e-2), "{step}: {k} {w}");
        }
    }
}

#[test]
fn differences_are_listed_and_nothing_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let one = |shape: &[usize]| (shape.to_vec(), vec![1f32; shape.iter().product()]);
    let a = Model::from([
        ("here".into(), one(&[2])),
        ("shape".into(), one(&[2, 3])),
        ("head.w".into(), one(&[4])),
    ]);
    let b = Model::from([
        ("there".into(), one(&[2])),
        ("shape".into(), one(&[3, 2])),
        ("head.w".into(), one(&[4])),
    ]);
    let mut sources = Sources {
        models: vec![write(&path("a"), &a), write(&path("b"), &b)],
        ..Sources::default()
    };
    let text = files(&Rule::Average, &sources, &path("out"))
        .unwrap_err()
        .to_string();
    for part in [
        "`here` is in the first alone",
        "`there` is in the second alone",
        "`shape` has shape [2, 3] and [3, 2]",
    ] {
        assert!(text.contains(part), "{text}");
    }
    // What they have in common can be merged.
    sources.only = vec!["head.".into()];
    let merged = files(&Rule::Average, &sources, &path("out")).unwrap();
    assert_eq!((merged.tensors, merged.values), (1, 4));
    sources.only = vec!["neck.".into()];
    let text = files(&Rule::Average, &sources, &path("out"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("its names are head.w, here, shape"), "{text}");

    let fisher = Rule::Fisher {
        weights: vec![],
        epsilon: 0.0,
    };
    sources.only = vec!["head.".into()];
    let text = files(&fisher, &sources, &path("no"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("no information on `head.w`"), "{text}");
    sources.fishers = vec![path("a")];
    let text = files(&fisher, &sources, &path("no"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("for each of 2 models, found 1"), "{text}");
    let text = files(&Rule::Average, &sources, &path("no"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("belongs to the rule fisher"), "{text}");
    assert!(!path("no").exists());

    std::fs::write(path("cut"), &std::fs::read(path("a")).unwrap()[..60]).unwrap();
    sources.models[1] = path("cut");
    sources.fishers.clear();
    let error = files(&Rule::Average, &sources, &path("no")).unwrap_err();
    assert!(matches!(error, Error::Format { .. }), "{error}");
    let names = std::fs::read_dir(dir.path()).unwrap();
    let litter = names.filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_string_lossy()
            .starts_with('.')
    });
    assert_eq!(litter.count(), 0);
}

#[test]
fn numbers_out_of_range_are_refused_by_name() {
    let weights = |weights: &[f64]| Rule::Fisher {
        weights: weights.to_vec(),
        epsilon: 0.0,
    };
    for (rule, models, key) in [
        (Rule::Average, 1, "models"),
        (Rule::Wise { alpha: 0.5 }, 3, "models"),
        (Rule::Wise { alpha: 1.5 }, 2, "alpha"),
        (Rule::Ema { decay: f64::NAN }, 2, "decay"),
        (
            Rule::TaskArithmetic {
                scale: f64::INFINITY,
            },
            2,
            "scale",
        ),
        (weights(&[1.0]), 2, "weights"),
        (weights(&[0.0, 0.0]), 2, "weights"),
        (weights(&[-1.0, 2.0]), 2, "weights"),
    ] {
        let text = rule.check(models).unwrap_err().to_string();
        assert!(text.contains(&format!("`{key}`")), "{rule:?}: {text}");
    }
}

/// Halves are merged as halves; counters must agree and stay.
#[test]
fn types_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, value: f32, counter: i64| {
        let half: Vec<u8> = [f16::from_f32(value).to_le_bytes(); 3].concat();
        let counter = counter.to_le_bytes();
        let views = [
            ("h", TensorView::new(Dtype::F16, vec![3], &half).unwrap()),
            ("n", TensorView::new(Dtype::I64, vec![1], &counter).unwrap()),
        ];
        let path = dir.path().join(name);
        std::fs::write(&path, serialize(views, None).unwrap()).unwrap();
        path
    };
    let mut sources = Sources {
        models: vec![file("a", 1.0, 7), file("b", 2.0, 7)],
        ..Sources::default()
    };
    let out = dir.path().join("out");
    files(&Rule::Average, &sources, &out).unwrap();
    let bytes = std::fs::read(&out).unwrap();
    let merged = SafeTensors::deserialize(&bytes).unwrap();
    let half = merged.tensor("h").unwrap();
    assert_eq!(half.dtype(), Dtype::F16);
    assert_eq!(half.data(), [f16::from_f32(1.5).to_le_bytes(); 3].concat());
    assert_eq!(merged.tensor("n").unwrap().data(), 7i64.to_le_bytes());
    sources.models[1] = file("b", 2.0, 8);
    let text = files(&Rule::Average, &sources, &out)
        .unwrap_err()
        .to_string();
    assert!(text.contains("`n` is of type I64"), "{text}");
}
