//! LAE: when the slow copy is made, how it moves, how both predict.

use candle_core::{D, Tensor};
use candlewick_core::{Batch, Method, Train, View};
use candlewick_methods::lae::{Copies, FreezeIn, OfflineFrom};
use candlewick_methods::vpt::Start;
use candlewick_methods::{Lae, MethodConfig, Pet, conformance};

use crate::base::trainable;
use crate::lab::{conforms, difference, here, micro, odd_stream, quick, tensors};
use crate::pet::{adapter, lora, prefix};

pub fn lae(module: Pet) -> Lae {
    Lae {
        module,
        ema_decay: 0.9,
        freeze_epochs: 1,
        offline_from: OfflineFrom::FirstTask,
        freeze_in: FreezeIn::LaterTasks,
    }
}

fn values(t: &Tensor) -> Vec<f32> {
    t.flatten_all().unwrap().to_vec1().unwrap()
}

fn batch(task: usize) -> Batch {
    let train = &odd_stream(false).tasks[task].train;
    train.batches(View::Plain, 8).next().unwrap().unwrap()
}

fn begin(method: &mut Copies, task: usize) {
    let stream = odd_stream(false);
    method.begin_task(&stream.tasks[task].info).unwrap();
    method.begin_epoch(0).unwrap();
}

/// Largest difference of the two copies.
fn apart(method: &Copies) -> f32 {
    let (online, offline) = (
        method.online().state().unwrap(),
        method.offline().state().unwrap(),
    );
    assert_eq!(
        online.keys().collect::<Vec<_>>(),
        offline.keys().collect::<Vec<_>>()
    );
    let pairs = online.iter().map(|(name, t)| difference(t, &offline[name]));
    pairs.fold(0.0, f32::max)
}

#[test]
fn the_slow_copy_is_made_behind_the_first_task() {
    let config = lae(adapter(&[0, 1], 4));
    let mut method = config.build(micro(), quick(), 1).unwrap();
    let drawn = method.offline().state().unwrap();
    begin(&mut method, 0);
    for _ in 0..3 {
        method.observe(&batch(0)).unwrap();
    }
    let (online, offline) = method.probabilities(&batch(0)).unwrap();
    assert!(offline.is_none());
    assert_eq!(
        difference(&method.predict(&batch(0)).unwrap(), &online),
        0.0
    );
    // The first task moves what learns, and nothing else.
    for (name, t) in method.offline().state().unwrap() {
        assert_eq!(difference(&t, &drawn[&name]), 0.0, "{name}");
    }
    assert!(apart(&method) > 0.0);

    begin(&mut method, 1);
    assert_eq!(apart(&method), 0.0);
    let (online, offline) = method.probabilities(&batch(0)).unwrap();
    let offline = offline.unwrap();
    assert_eq!(difference(&online, &offline), 0.0);
    // Standing still in the first epoch, both stay one, and the head alone learns.
    let heads = method.heads().state().unwrap();
    method.observe(&batch(1)).unwrap();
    assert_eq!(apart(&method), 0.0);
    // The only class of this task has a loss of 0; the next one has four.
    begin(&mut method, 2);
    let before = method.online().state().unwrap();
    method.observe(&batch(2)).unwrap();
    for (name, t) in method.online().state().unwrap() {
        assert_eq!(difference(&t, &before[&name]), 0.0, "{name} stands still");
    }
    let now = method.heads().state().unwrap();
    for (name, t) in &heads {
        assert_eq!(difference(t, &now[name]), 0.0, "{name} is of an old task");
    }
    assert!(now.contains_key("head.2.weight"));
    method.begin_epoch(1).unwrap();
    method.observe(&batch(2)).unwrap();
    assert!(apart(&method) > 0.0);
}

/// `θ_off,n = d^n θ_0 + (1 − d) Σ d^(n−i) θ_on,i`.
#[test]
fn the_slow_copy_follows_the_closed_form() {
    let mut method = lae(lora(&[0, 1], 2)).build(micro(), quick(), 1).unwrap();
    begin(&mut method, 0);
    method.observe(&batch(0)).unwrap();
    begin(&mut method, 1);
    begin(&mut method, 2);
    method.begin_epoch(1).unwrap();
    let mut sums: Vec<Vec<f64>> = Vec::new();
    let start = method.offline().state().unwrap();
    for t in start.values() {
        sums.push(values(t).into_iter().map(f64::from).collect());
    }
    const STEPS: usize = 6;
    let d = 0.9f64;
    for sum in &mut sums {
        sum.iter_mut().for_each(|s| *s *= d.powi(STEPS as i32));
    }
    for step in 1..=STEPS {
        method.observe(&batch(2)).unwrap();
        let factor = (1.0 - d) * d.powi((STEPS - step) as i32);
        for (sum, t) in sums
            .iter_mut()
            .zip(method.online().state().unwrap().values())
        {
            let new = values(t);
            sum.iter_mut()
                .zip(new)
                .for_each(|(s, x)| *s += factor * f64::from(x));
        }
    }
    let mut moved = 0.0;
    for (sum, (name, t)) in sums.iter().zip(method.offline().state().unwrap()) {
        for (want, got) in sum.iter().zip(values(&t)) {
            assert!((want - f64::from(got)).abs() < 1e-6, "{name}: {want} {got}");
        }
        moved += difference(&t, &start[&name]);
    }
    assert!(moved > 1e-3);
}

/// The formula of the reference on recorded logits: the largest of both softmax outputs, not of the logits.
#[test]
fn both_predict_by_the_larger_probability() {
    let all = tensors(here("tests/fixtures/slca_cofima.safetensors"));
    let softmax = |name: &str| {
        let logits = &all[&format!("ensemble.in.{name}")];
        candle_nn::ops::softmax(logits, D::Minus1).unwrap()
    };
    let (online, offline) = (softmax("logits_online"), softmax("logits_offline"));
    let both = candlewick_methods::lae::ensemble(&online, &offline).unwrap();
    assert!(difference(&both, &all["ensemble.out.max_softmax"]) < 1e-6);
    let label = |t: &Tensor| -> Vec<u32> { t.argmax(D::Minus1).unwrap().to_vec1().unwrap() };
    let want: Vec<f32> = values(
        &all["ensemble.out.pred"]
            .to_dtype(candle_core::DType::F32)
            .unwrap(),
    );
    let want: Vec<u32> = want.into_iter().map(|l| l as u32).collect();
    assert_eq!(label(&both), want);
    let logits = all["ensemble.in.logits_online"].maximum(&all["ensemble.in.logits_offline"]);
    assert_ne!(
        label(&logits.unwrap()),
        want,
        "another rule predicts otherwise"
    );
}

#[test]
fn lae_has_the_gradients_of_its_loss() {
    for module in [adapter(&[0, 1], 3), prefix(&[0, 1], 2, true)] {
        let mut method = lae(module).build(micro(), quick(), 1).unwrap();
        begin(&mut method, 0);
        // Up projections leave 0, so that there is something to hold.
        for _ in 0..2 {
            method.observe(&batch(0)).unwrap();
        }
        let three = odd_stream(false).tasks[0]
            .train
            .batches(View::Plain, 3)
            .next();
        let three = three.unwrap().unwrap();
        let loss = || method.loss(&three);
        conformance::gradients(&loss, method.online(), &[]).unwrap();
        conformance::gradients(&loss, method.heads(), &[]).unwrap();
    }
}

#[test]
fn lae_keeps_the_laws() {
    let init = Start::default();
    for module in [
        prefix(&[0], 2, true),
        Pet::VptDeep { length: 2, init },
        Pet::Adaptformer {
            bottleneck: 4,
            dropout: 0.1,
        },
    ] {
        conforms(MethodConfig::Lae(lae(module)), false).unwrap();
    }
    let pilot = Lae {
        offline_from: OfflineFrom::Start,
        freeze_in: FreezeIn::EveryTask,
        ..lae(lora(&[0, 1], 2))
    };
    assert_eq!(
        pilot.compat(),
        ["lae.freeze_in=every-task", "lae.offline_from=start"]
    );
    conforms(MethodConfig::Lae(pilot), true).unwrap();
}

fn pools() -> [Pet; 4] {
    [
        "kind = \"l2p\"\nprompts = 4\nlength = 2\ntop_k = 2\npull = 0.1\nprompt_init = \"pytorch\"\nkey_init = \"pytorch\"",
        "kind = \"dualprompt\"\ng_blocks = [0]\ng_length = 2\ne_blocks = [1]\ne_length = 2\npull = 1.0\n\
         prompt_init = \"pytorch\"\nkey_init = \"pytorch\"",
        "kind = \"coda\"\nblocks = [0, 1]\ncomponents = 3\nlength = 4",
        "kind = \"dap\"\nlength = 3\nembedding = 5\npull = 1.0",
    ]
    .map(|table| toml::from_str(table).unwrap())
}

/// Prompts that choose, grow with the tasks and bring a loss of their own.
#[test]
fn lae_over_pools_of_prompts_keeps_the_laws() {
    for module in pools() {
        conforms(MethodConfig::Lae(lae(module)), false).unwrap();
    }
}

#[test]
fn a_pool_in_lae_has_its_own_loss_where_it_moves() {
    let [mut l2p, ..] = pools();
    // All are taken: a choice has no slope.
    if let Pet::L2p(pool) = &mut l2p {
        pool.prompts = pool.top_k;
    }
    let mut method = lae(l2p).build(micro(), quick(), 1).unwrap();
    begin(&mut method, 0);
    method.observe(&batch(0)).unwrap();
    begin(&mut method, 1);
    // In its first epoch the module stands still: the same head and the same prompts, without the pull of 0.1 times a cosine.
    let loss = |method: &Copies| {
        let loss = method.loss(&batch(1)).unwrap();
        loss.to_scalar::<f32>().unwrap()
    };
    let still = loss(&method);
    method.begin_epoch(1).unwrap();
    let pull = loss(&method) - still;
    assert!(pull != 0.0 && pull.abs() <= 0.2, "{pull}");
    conformance::gradients(&|| method.loss(&batch(1)), method.online(), &[]).unwrap();
}

/// PILOT: the slow copy is of the drawn module, and the module stands still in the first task.
#[test]
fn the_switches_of_pilot_do_what_they_say() {
    let config = Lae {
        offline_from: OfflineFrom::Start,
        freeze_in: FreezeIn::EveryTask,
        ..lae(adapter(&[0, 1], 4))
    };
    let mut method = config.build(micro(), quick(), 1).unwrap();
    begin(&mut method, 0);
    let drawn = method.online().state().unwrap();
    method.observe(&batch(0)).unwrap();
    for (name, t) in method.online().state().unwrap() {
        assert_eq!(difference(&t, &drawn[&name]), 0.0, "{name}");
    }
    assert!(method.probabilities(&batch(0)).unwrap().1.is_some());
    method.begin_epoch(1).unwrap();
    method.observe(&batch(0)).unwrap();
    let far = apart(&method);
    assert!(far > 0.0);
    // Nothing is copied behind it.
    begin(&mut method, 1);
    assert_eq!(apart(&method), far);
}

/// The module twice is not trained twice: five blocks of ViT-B/16 and three heads of ten classes.
#[test]
fn trainable_values_on_a_base_model() {
    let blocks = [0, 1, 2, 3, 4];
    let heads = 3 * (7_680 + 10);
    for (module, values) in [
        (adapter(&blocks, 5), 42_270),
        (lora(&blocks, 5), 76_810),
        (prefix(&blocks, 10, true), 76_810),
    ] {
        let config = MethodConfig::Lae(lae(module));
        assert_eq!(trainable(&config, 3, 10), values + heads);
    }
}

#[test]
fn settings_of_lae_are_named() {
    let train: Train = quick();
    for (config, key) in [
        (
            Lae {
                ema_decay: 1.5,
                ..lae(adapter(&[0], 1))
            },
            "method.ema_decay",
        ),
        (lae(adapter(&[0], 0)), "method.module.bottleneck"),
        (
            lae(
                toml::from_str("kind = \"coda\"\nblocks = [0]\ncomponents = 0\nlength = 4")
                    .unwrap(),
            ),
            "method.module.components",
        ),
    ] {
        let config = MethodConfig::Lae(config);
        let text = config.check(Some(&train)).unwrap_err().to_string();
        assert!(text.contains(key), "{text}");
    }
    let zeros = lae(Pet::VptDeep {
        length: 1,
        init: Start::Zeros,
    });
    assert_eq!(zeros.compat(), ["lae.module.init=zeros"]);
}
