//! Statistics, alignment, information and merging against the original implementations of SLCA and CoFiMA.

use candle_core::{Device, Tensor, Var};
use candlewick_core::train::masked_cross_entropy;
use candlewick_core::{State, TaskInfo};
use candlewick_methods::alignment::{Alignment, Gaussians, Head, Shrink, Steps, normalised};
use candlewick_methods::cofima::Merge;
use candlewick_methods::fisher::{Fisher, Per};

use crate::lab::{Tensors, difference, here, max_abs, task, tensors};

fn fixture() -> Tensors {
    tensors(here("tests/fixtures/slca_cofima.safetensors"))
}

/// The published numbers.
fn published() -> Alignment {
    Alignment {
        epochs: 1,
        samples: 256,
        lr: 0.01,
        weight_decay: 5e-4,
        logit_norm: Some(0.1),
        shrink: Shrink::Task,
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn heads(all: &Tensors, name: &str) -> Vec<Head> {
    let head =
        |t: usize| ["weight", "bias"].map(|part| all[&format!("{name}.head{t}.{part}")].clone());
    vec![head(0), head(1)]
}

fn labels(all: &Tensors, name: &str) -> Vec<u32> {
    let dtype = candle_core::DType::U32;
    all[name].to_dtype(dtype).unwrap().to_vec1().unwrap()
}

fn tasks() -> [TaskInfo; 2] {
    [task(0, 0..3), task(1, 3..6)]
}

/// From the fixture's features.
fn gaussians(all: &Tensors) -> Gaussians {
    let mut known = Gaussians::new(16);
    for task in tasks() {
        let (mut rows, mut labels) = (Vec::new(), Vec::new());
        for class in task.classes.clone() {
            let features = &all[&format!("in.class{class}.features")];
            rows.extend(values(features));
            labels.extend(vec![class as u32; features.dim(0).unwrap()]);
        }
        known.learn(&task, &rows, &labels).unwrap();
    }
    known
}

#[test]
fn statistics_are_the_references() {
    let all = fixture();
    let known = gaussians(&all);
    for class in 0..6 {
        let mean = Tensor::new(known.mean(class).unwrap(), &Device::Cpu).unwrap();
        assert!(difference(&mean, &all["stats.mean"].get(class).unwrap()) < 1e-6);
        let covariance = known.covariance(class).unwrap();
        let square: Vec<f32> = (0..256).map(|i| covariance.get(i / 16, i % 16)).collect();
        let square = Tensor::from_vec(square, (16, 16), &Device::Cpu).unwrap();
        assert!(difference(&square, &all["stats.cov"].get(class).unwrap()) < 1e-5);
    }
    // What is saved is all there is.
    let mut state = State::new();
    known.save(&mut state).unwrap();
    let mut loaded = Gaussians::new(16);
    loaded.load(&tasks(), &mut state).unwrap();
    assert!(state.is_empty());
    assert_eq!(loaded.mean(4), known.mean(4));
    assert_eq!(loaded.covariance(5), known.covariance(5));
}

#[test]
fn means_are_shrunk_as_published_and_as_meant() {
    let all = fixture();
    let [_, present] = tasks();
    for (rule, name) in [
        (Shrink::TaskSize, "shrink.factor_reference"),
        (Shrink::Task, "shrink.factor_true_task"),
    ] {
        for (class, want) in values(&all[name]).iter().enumerate() {
            let got = rule.factor(class, class / 3, &present);
            assert!(
                (got - f64::from(*want)).abs() < 1e-6,
                "{name} {class}: {got}"
            );
        }
    }
    for class in 0..6 {
        let a = Shrink::TaskSize.factor(class, class / 3, &present) as f32;
        let want = all["ca.shrunk_mean"].get(class).unwrap();
        let got = (all["stats.mean"].get(class).unwrap() * f64::from(a)).unwrap();
        assert!(difference(&got, &want) < 1e-6);
    }
    // Tasks of 6, 1 and 4 classes: as published, a class of the first counts as of a later one than there is.
    let present = task(2, 7..11);
    assert!((Shrink::Task.factor(5, 0, &present) - (0.9 + 0.1 / 3.0)).abs() < 1e-12);
    let single = task(1, 6..7);
    assert!(Shrink::TaskSize.factor(5, 0, &single) > 1.0);
    assert_eq!(Shrink::None.factor(5, 0, &single), 1.0);
}

#[test]
fn alignment_is_the_references() {
    let all = fixture();
    let (features, labels) = (
        values(&all["ca.epoch0.features"]),
        labels(&all, "ca.epoch0.labels"),
    );
    let start = heads(&all, "in");
    let tick = &mut || Ok(());

    let x = Tensor::from_slice(&features[..256 * 16], (256, 16), &Device::Cpu).unwrap();
    let logits: Vec<Tensor> = start
        .iter()
        .map(|[w, b]| x.matmul(&w.t().unwrap()).unwrap().broadcast_add(b).unwrap())
        .collect();
    let want = &all["ca.step0.normalised_logits"];
    assert!(difference(&normalised(&logits, 0.1).unwrap(), want) < 1e-5 * max_abs(want));

    let mut first = Steps::new(&published(), &start).unwrap();
    first
        .epoch(0, &features[..256 * 16], &labels[..256], 16, tick)
        .unwrap();
    let last = first.end().unwrap().last.unwrap();
    for (got, want) in last.iter().zip(heads(&all, "ca.step0.grad")) {
        for (got, want) in got.iter().zip(&want) {
            assert!(difference(got, want) < 1e-4 * max_abs(want));
        }
    }

    let mut steps = Steps::new(&published(), &start).unwrap();
    let losses = steps.epoch(0, &features, &labels, 16, tick).unwrap();
    for (got, want) in losses.iter().zip(values(&all["ca.loss_per_step"])) {
        assert!((got - want).abs() < 1e-5, "{got} {want}");
    }
    for (got, want) in steps
        .end()
        .unwrap()
        .heads
        .iter()
        .zip(heads(&all, "ca.final"))
    {
        for (got, want) in got.iter().zip(&want) {
            assert!(difference(got, want) < 1e-5);
        }
    }

    let plain = Alignment {
        logit_norm: None,
        ..published()
    };
    let loss = Steps::new(&plain, &start)
        .unwrap()
        .loss(&x, &labels[..256])
        .unwrap();
    let want = values(&all["ca.step0.loss_without_norm"])[0];
    assert!((loss.to_scalar::<f32>().unwrap() - want).abs() < 1e-5);
}

/// The same for any number of threads, other ones for another seed and another task; the heads given stay.
#[test]
fn aligned_heads_depend_on_seed_and_task_alone() {
    let all = fixture();
    let known = gaussians(&all);
    let start = heads(&all, "in");
    let before = values(&start[0][0]);
    let align = |seed, present: &TaskInfo, threads| -> Vec<f32> {
        let pool = rayon_pool(threads);
        let aligned = pool.install(|| {
            let config = Alignment {
                epochs: 2,
                samples: 40,
                ..published()
            };
            config.align(&start, &known, present, seed, &mut || Ok(()))
        });
        let heads = aligned.unwrap().heads;
        heads.iter().flatten().flat_map(values).collect()
    };
    let [_, present] = tasks();
    let one = align(1, &present, 1);
    assert_eq!(one, align(1, &present, 3));
    assert_ne!(one, align(2, &present, 1));
    assert_ne!(one, align(1, &task(2, 3..6), 1));
    assert_eq!(values(&start[0][0]), before);
}

fn rayon_pool(threads: usize) -> rayon::ThreadPool {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build().unwrap()
}

/// Features drawn have the mean and the covariance they are drawn with: a head that separates classes on the statistics alone.
#[test]
fn alignment_learns_the_classes_that_statistics_tell() {
    let dim = 4;
    let mut known = Gaussians::new(dim);
    let row = |class: usize, i: usize| {
        let noise = move |j: usize| ((i * 7 + j * 5 + class) % 11) as f32 / 50.0 - 0.1;
        (0..dim).map(move |j| noise(j) + if j == class { 2.0 } else { 0.0 })
    };
    for t in 0..2 {
        let classes = 2 * t..2 * t + 2;
        let rows = classes
            .clone()
            .flat_map(|c| (0..30).flat_map(move |i| row(c, i)));
        let labels: Vec<u32> = classes.clone().flat_map(|c| vec![c as u32; 30]).collect();
        known
            .learn(&task(t, classes), &rows.collect::<Vec<_>>(), &labels)
            .unwrap();
    }
    let zero = || {
        let device = &Device::Cpu;
        let weight = Tensor::zeros((2, dim), candle_core::DType::F32, device).unwrap();
        [
            weight,
            Tensor::zeros(2, candle_core::DType::F32, device).unwrap(),
        ]
    };
    let config = Alignment {
        epochs: 5,
        samples: 64,
        lr: 0.1,
        logit_norm: None,
        ..published()
    };
    let aligned = config
        .align(&[zero(), zero()], &known, &task(1, 2..4), 1, &mut || Ok(()))
        .unwrap();
    let x = Tensor::eye(dim, candle_core::DType::F32, &Device::Cpu).unwrap();
    let logits: Vec<Tensor> = aligned
        .heads
        .iter()
        .map(|[w, b]| x.matmul(&w.t().unwrap()).unwrap().broadcast_add(b).unwrap())
        .collect();
    let found = Tensor::cat(&logits, 1).unwrap().argmax(1).unwrap();
    assert_eq!(found.to_vec1::<u32>().unwrap(), [0, 1, 2, 3]);
}

#[test]
fn a_class_of_one_image_is_named() {
    let error = Gaussians::new(2)
        .learn(&task(0, 0..2), &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[0, 0, 1])
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("class 2 in order of arrival has 1"),
        "{error}"
    );
}

#[test]
fn information_is_the_references_per_batch() {
    let all = fixture();
    let var = |name: &str| {
        let value = &all[&format!("fisher.in.{name}")];
        (name.to_owned(), Var::from_tensor(value).unwrap())
    };
    let vars = vec![var("weight"), var("bias")];
    let mut per_batch = Fisher::new(vars.clone());
    let mut per_sample = Fisher::new(vars.clone());
    let mut squares = 0f64;
    let mut images = 0;
    for b in 0..3 {
        let x = &all[&format!("fisher.in.batch{b}.features")];
        let y = labels(&all, &format!("fisher.in.batch{b}.labels"));
        let loss = |x: &Tensor, y: &[u32]| {
            let logits = x.matmul(&vars[0].1.t().unwrap()).unwrap();
            let logits = logits.broadcast_add(&vars[1].1).unwrap();
            masked_cross_entropy(&logits, y, &(0..4)).unwrap()
        };
        per_batch.add(&loss(x, &y).backward().unwrap()).unwrap();
        for i in 0..y.len() {
            let grads = loss(&x.narrow(0, i, 1).unwrap(), &y[i..=i])
                .backward()
                .unwrap();
            let bias = values(grads.get(&vars[1].1).unwrap());
            squares += f64::from(bias[0]).powi(2);
            images += 1;
            per_sample.add(&grads).unwrap();
        }
    }
    let fisher = per_batch.mean(Some(1e-4)).unwrap();
    for name in ["weight", "bias"] {
        let want = &all[&format!("fisher.out.{name}")];
        assert!(difference(&fisher[name], want) < 1e-5 * max_abs(want));
    }
    let got = f64::from(values(&per_sample.mean(None).unwrap()["bias"])[0]);
    assert!((got - squares / images as f64).abs() < 1e-6 * got);
}

#[test]
fn information_without_a_gradient_is_none() {
    let moved = Var::from_vec(vec![1f32, 2.0], 2, &Device::Cpu).unwrap();
    let idle = Var::from_vec(vec![1f32], 1, &Device::Cpu).unwrap();
    let named = vec![
        ("moved".to_owned(), moved.clone()),
        ("idle".to_owned(), idle),
    ];
    let mut fisher = Fisher::new(named);
    let loss = moved.sqr().unwrap().sum_all().unwrap();
    fisher.add(&loss.backward().unwrap()).unwrap();
    let fisher = fisher.mean(Some(5.0)).unwrap();
    assert_eq!(values(&fisher["moved"]), [4.0, 5.0]);
    assert_eq!(values(&fisher["idle"]), [0.0]);
}

#[test]
fn cofima_merges_as_meant_and_as_published() {
    let all = fixture();
    let part = |name: &str| -> State {
        let cut = |(key, t): (&String, &Tensor)| {
            Some((
                key.strip_prefix(&format!("merge.{name}."))?.to_owned(),
                t.clone(),
            ))
        };
        all.iter().filter_map(cut).collect()
    };
    let (old, new) = (part("in.theta_0"), part("in.theta_t"));
    let (before, now) = (part("in.F_0"), part("in.F_t"));
    let alpha = f64::from(values(&all["merge.in.alpha"])[0]);
    let fisher = |epsilon| Merge::Fisher {
        alpha,
        clip: None,
        epsilon,
        per: Per::Batch,
    };
    for (rule, reference, want) in [
        (fisher(1e-12), false, "cofima_clean"),
        (fisher(0.0), true, "cofima_reference"),
        (Merge::Average { alpha }, false, "coma"),
    ] {
        let merged = rule.merged(&old, &new, [&before, &now], reference).unwrap();
        let want = part(want);
        assert_eq!(merged.len(), want.len());
        for (name, want) in want {
            assert!(
                difference(&merged[&name], &want) <= 1e-5 * max_abs(&want),
                "{name}"
            );
        }
    }
}
