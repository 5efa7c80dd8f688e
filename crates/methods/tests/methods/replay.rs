//! Images that come again: which are kept, and that a run mixes in these and no others.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::Tensor;
use candlewick_core::exemplars::training;
use candlewick_core::{
    Batch, Method, Observer, Outcome, Phase, Result, RunOptions, Session, Standing, State, Stream,
    View, run,
};
use candlewick_data::{ClassIncremental, class_incremental, demo};
use candlewick_methods::exemplars::{Choice, Kept, Memory};
use candlewick_methods::finetune::Part;
use candlewick_methods::{MethodConfig, Replay};

use crate::lab::{conforms, loader, micro, odd_stream, quick};

fn total(n: usize, choice: Choice) -> Memory {
    Memory {
        total: Some(n),
        per_class: None,
        choice,
    }
}

fn per_class(n: usize, choice: Choice) -> Memory {
    Memory {
        total: None,
        per_class: Some(n),
        choice,
    }
}

fn replay(part: Part, memory: Memory) -> Replay {
    Replay {
        part,
        backbone_lr: 1.0,
        layer_decay: 1.0,
        memory,
    }
}

/// Five numbers of an image that tell it from others.
fn look(batch: &Batch) -> Result<Tensor> {
    let flat = batch.images.flatten_from(1)?;
    let at = |i: usize| flat.narrow(1, 700 + 2311 * i, 1);
    let columns = (0..5).map(at).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::cat(&columns, 1)?)
}

fn learn(kept: &mut Kept, stream: &Stream, t: usize) {
    kept.learn(&stream.tasks[t], &look, 7, &mut |_| Ok(()))
        .unwrap();
}

/// Ids of the images of each class, in stored order, with their features.
type Images = BTreeMap<u32, Vec<(u64, Vec<f64>)>>;

fn images(stream: &Stream) -> Images {
    let mut images = Images::new();
    for task in &stream.tasks {
        for batch in task.train.batches(View::Plain, 16) {
            let batch = batch.unwrap();
            let rows: Vec<Vec<f32>> = look(&batch).unwrap().to_vec2().unwrap();
            for ((id, label), row) in batch.ids.iter().zip(&batch.labels).zip(rows) {
                let row = row.into_iter().map(f64::from).collect();
                images.entry(*label).or_default().push((*id, row));
            }
        }
    }
    images
}

/// iCaRL's choice, from its formula.
fn herded(images: &[(u64, Vec<f64>)], m: usize) -> Vec<u64> {
    let unit: Vec<Vec<f64>> = images
        .iter()
        .map(|(_, row)| {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt() + 1e-8;
            row.iter().map(|v| v / norm).collect()
        })
        .collect();
    let sum = |list: &[usize], c: usize| list.iter().map(|&i| unit[i][c]).sum::<f64>();
    let all: Vec<usize> = (0..unit.len()).collect();
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < m.min(unit.len()) {
        let far = |i: usize| -> f64 {
            let with = [&chosen[..], &[i]].concat();
            let miss =
                |c: usize| sum(&all, c) / all.len() as f64 - sum(&with, c) / with.len() as f64;
            (0..5).map(|c| miss(c).powi(2)).sum()
        };
        let left = all.iter().filter(|i| !chosen.contains(i));
        let best = left.min_by(|a, b| far(**a).total_cmp(&far(**b))).unwrap();
        chosen.push(*best);
    }
    chosen.into_iter().map(|i| images[i].0).collect()
}

#[test]
fn herding_is_the_formula_and_old_lists_are_cut_to_their_first() {
    let stream = odd_stream(false);
    let images = images(&stream);
    let mut kept = total(20, Choice::Herding).build(3).unwrap();
    // 6, 7, 11 and 13 classes.
    for (t, m) in [3, 2, 1, 1].into_iter().enumerate() {
        learn(&mut kept, &stream, t);
        let classes = stream.tasks[t].info.classes.end as u32;
        for class in 0..classes {
            assert_eq!(kept.of(class), herded(&images[&class], m), "class {class}");
        }
        let exemplars = kept.exemplars();
        assert_eq!(exemplars.ids.len(), m * classes as usize);
        assert_eq!(exemplars.rule, "20 in all, herding");
    }
    let mut fixed = per_class(4, Choice::Herding).build(3).unwrap();
    for t in 0..4 {
        learn(&mut fixed, &stream, t);
    }
    for class in 0..13 {
        assert_eq!(fixed.of(class), herded(&images[&class], 4));
    }
}

#[test]
fn more_than_there_is_keeps_all_and_less_than_the_classes_nothing() {
    let stream = odd_stream(false);
    let images = images(&stream);
    for choice in [Choice::Herding, Choice::Random] {
        let mut all = per_class(1000, choice).build(3).unwrap();
        let mut none = total(5, choice).build(3).unwrap();
        learn(&mut all, &stream, 0);
        learn(&mut none, &stream, 0);
        for class in 0..6 {
            let own: BTreeSet<u64> = images[&class].iter().map(|(id, _)| *id).collect();
            assert_eq!(all.of(class).len(), own.len());
            assert_eq!(all.of(class).into_iter().collect::<BTreeSet<_>>(), own);
        }
        assert!(none.exemplars().ids.is_empty());
    }
}

#[test]
fn a_draw_is_of_its_class_and_goes_by_the_seed() {
    let stream = odd_stream(false);
    let images = images(&stream);
    let after = |seed: u64, tasks: usize| {
        let mut kept = total(20, Choice::Random).build(seed).unwrap();
        (0..tasks).for_each(|t| learn(&mut kept, &stream, t));
        kept
    };
    let (first, later) = (after(3, 1), after(3, 3));
    assert_eq!(after(3, 1), first);
    assert_ne!(after(4, 1).exemplars().ids, first.exemplars().ids);
    for class in 0..6 {
        let list = first.of(class);
        assert_eq!(list.len(), 3);
        assert_eq!(later.of(class), list[..1]);
        let own = |id: &u64| images[&class].iter().any(|(other, _)| other == id);
        assert!(list.iter().all(own));
    }
}

#[test]
fn a_class_that_comes_again_is_refused_by_lists_and_taken_by_a_reservoir() {
    let stream = odd_stream(false);
    let mut lists = per_class(2, Choice::Random).build(3).unwrap();
    learn(&mut lists, &stream, 0);
    let again = lists.learn(&stream.tasks[0], &look, 7, &mut |_| Ok(()));
    let text = again.unwrap_err().to_string();
    assert!(
        text.contains("class 1 in order of arrival comes again"),
        "{text}"
    );
    let mut reservoir = total(2, Choice::Reservoir).build(3).unwrap();
    learn(&mut reservoir, &stream, 0);
    learn(&mut reservoir, &stream, 0);
    assert_eq!(reservoir.exemplars().ids.len(), 2);
}

/// Two tasks of two classes without pixels, so that it can be passed over often.
fn bare() -> Stream {
    let spec = ClassIncremental {
        sizes: Some(vec![2, 2, 46]),
        ..Default::default()
    };
    let loader = loader(false).without_pixels();
    class_incremental(&demo().unwrap(), &spec, &loader).unwrap()
}

/// Every image seen is kept with the same probability, whenever it came; and no more are kept than there is room for.
#[test]
fn a_reservoir_is_a_fair_sample() {
    let stream = bare();
    let seen: usize = stream.tasks[..2].iter().map(|t| t.info.train_len).sum();
    let room = seen / 3;
    let mut often: BTreeMap<u64, usize> = BTreeMap::new();
    const SEEDS: u64 = 600;
    for seed in 0..SEEDS {
        let mut kept = total(room, Choice::Reservoir).build(seed).unwrap();
        learn(&mut kept, &stream, 0);
        learn(&mut kept, &stream, 1);
        let ids: BTreeSet<u64> = kept.exemplars().ids.into_iter().collect();
        assert_eq!(ids.len(), room);
        for id in ids {
            *often.entry(id).or_default() += 1;
        }
    }
    assert_eq!(often.len(), seen);
    let p = room as f64 / seen as f64;
    // Five standard deviations.
    let bound = 5.0 * (p * (1.0 - p) / SEEDS as f64).sqrt();
    for (id, n) in often {
        let found = n as f64 / SEEDS as f64;
        assert!((found - p).abs() < bound, "image {id}: {found} of {p}");
    }
}

#[test]
fn what_is_kept_is_saved_and_goes_on_the_same() {
    let stream = bare();
    for memory in [
        total(9, Choice::Random),
        per_class(2, Choice::Random),
        total(9, Choice::Reservoir),
    ] {
        let mut kept = memory.build(7).unwrap();
        let mut state = State::new();
        kept.save(&mut state).unwrap();
        let mut empty = memory.build(7).unwrap();
        empty.load(&mut state).unwrap();
        assert_eq!(empty, kept);
        learn(&mut kept, &stream, 0);
        kept.save(&mut state).unwrap();
        state.insert(
            "other".into(),
            Tensor::new(&[1f32], &candle_core::Device::Cpu).unwrap(),
        );
        let mut loaded = memory.build(7).unwrap();
        loaded.load(&mut state).unwrap();
        assert_eq!(loaded, kept);
        assert_eq!(state.keys().collect::<Vec<_>>(), ["other"]);
        learn(&mut kept, &stream, 1);
        learn(&mut loaded, &stream, 1);
        assert_eq!(loaded, kept);
        let text = loaded.load(&mut state).unwrap_err().to_string();
        assert!(text.contains("`memory.ids` is missing"), "{text}");
    }
}

/// New images and exemplars, each once, in another order in each pass; and an exemplar looks as it would in its own task.
#[test]
fn a_task_is_trained_on_its_own_images_and_those_that_are_kept() {
    let stream = odd_stream(true);
    let config = replay(Part::Head, total(12, Choice::Herding));
    let mut method = config.build(micro(), quick(), 16, 3).unwrap();
    for t in 0..2 {
        method.begin_task(&stream.tasks[t].info).unwrap();
        method.end_task(&stream.tasks[t], &mut |_| Ok(())).unwrap();
    }
    let kept = method.exemplars().unwrap().ids;
    assert_eq!(kept.len(), 7);
    let split = training(&method, &stream, 2).unwrap();
    let pass = |split: &dyn candlewick_core::Split, epoch: u64, batch: usize| {
        let mut order = Vec::new();
        let mut pixels: BTreeMap<u64, (u32, Vec<f32>)> = BTreeMap::new();
        for batch in split.batches(View::Train { seed: 5, epoch }, batch) {
            let batch = batch.unwrap();
            for i in 0..batch.len() {
                let image = batch.images.get(i).unwrap().flatten_all().unwrap();
                let seen = (batch.labels[i], image.to_vec1().unwrap());
                assert!(
                    pixels.insert(batch.ids[i], seen).is_none(),
                    "an image twice"
                );
                order.push(batch.ids[i]);
            }
        }
        (order, pixels)
    };
    let (order, pixels) = pass(split.as_ref(), 4, 8);
    assert_eq!(
        order,
        pass(split.as_ref(), 4, 5).0,
        "the batch must not matter"
    );
    assert_ne!(order, pass(split.as_ref(), 5, 8).0);
    let (_, new) = pass(stream.tasks[2].train.as_ref(), 4, 16);
    assert_eq!(pixels.len(), new.len() + kept.len());
    let mut old = pass(stream.tasks[0].train.as_ref(), 4, 16).1;
    old.extend(pass(stream.tasks[1].train.as_ref(), 4, 16).1);
    for id in &kept {
        assert!(pixels[id] == old[id], "exemplar {id} looks otherwise");
        assert!(pixels[id].0 < 7);
    }
    for (id, image) in new {
        assert!(pixels[&id] == image, "image {id} looks otherwise");
    }
    // Among the new ones, not behind them.
    let last = order.iter().rev().take(kept.len());
    assert!(last.clone().any(|id| !kept.contains(id)));
}

#[test]
fn an_id_of_no_past_image_is_an_error() {
    struct Wrong(Box<dyn Method>, Vec<u64>);
    impl Method for Wrong {
        fn epochs(&self) -> usize {
            0
        }
        fn begin_task(&mut self, task: &candlewick_core::TaskInfo) -> Result<()> {
            self.0.begin_task(task)
        }
        fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
            self.0.observe(batch)
        }
        fn exemplars(&self) -> Option<candlewick_core::Exemplars> {
            Some(candlewick_core::Exemplars {
                ids: self.1.clone(),
                rule: "wrong".into(),
            })
        }
        fn predict(&self, batch: &Batch) -> Result<Tensor> {
            self.0.predict(batch)
        }
        fn trainable(&self) -> usize {
            0
        }
        fn state(&self) -> Result<State> {
            self.0.state()
        }
        fn restore(&mut self, _: &[candlewick_core::TaskInfo], _: &State) -> Result<()> {
            Ok(())
        }
        fn session(&self) -> Result<Session> {
            self.0.session()
        }
        fn resume(&mut self, _: &[candlewick_core::TaskInfo], _: &State, _: Session) -> Result<()> {
            Ok(())
        }
    }
    let stream = bare();
    let ids = |t: usize| -> Vec<u64> {
        let batches = stream.tasks[t].train.batches(View::Plain, 64);
        batches.flat_map(|batch| batch.unwrap().ids).collect()
    };
    let (past, present) = (ids(0)[0], ids(1)[0]);
    for (ids, right) in [
        (vec![past], true),
        (vec![past, past], false),
        (vec![past, present], false),
        (vec![past, 9_999_999], false),
    ] {
        let inner = candlewick_methods::SimpleCil {}.build(micro(), 16);
        let method = Wrong(Box::new(inner), ids);
        let found = training(&method, &stream, 1);
        assert_eq!(found.is_ok(), right);
        if let Err(error) = found {
            let text = error.to_string();
            assert!(text.contains("exemplars 1 are training images"), "{text}");
        }
    }
}

/// Keeps the run as it stood behind the first step of pass 2 in task 2.
#[derive(Default)]
struct Stop(Option<(Standing, State, Session)>);

impl Observer for Stop {
    fn on(&mut self, _: candlewick_core::Event<'_>) -> Result<()> {
        Ok(())
    }

    fn keep(&mut self, at: &Standing, method: &dyn Method) -> Result<()> {
        let inside = Phase::Training {
            epoch: 1,
            batches: 1,
        };
        if at.task() == 1 && at.phase == inside {
            let copy = |tensors: &State| -> Result<State> {
                let copies = tensors
                    .iter()
                    .map(|(name, t)| Ok((name.clone(), t.copy()?)));
                copies.collect()
            };
            let session = copy(method.session()?.tensors())?;
            self.0 = Some((at.clone(), copy(&method.state()?)?, session.into()));
        }
        Ok(())
    }
}

#[test]
fn a_run_resumed_inside_the_second_task_ends_the_same_and_counts_what_it_trained_on() {
    let mut stream = odd_stream(true);
    stream.tasks.truncate(3);
    let config = replay(Part::All, total(12, Choice::Reservoir));
    let build = || config.build(micro(), quick(), 16, 3).unwrap();
    let options = RunOptions {
        seed: 9,
        eval_batch: 16,
    };
    let (mut through, mut stop) = (build(), Stop::default());
    let whole: Outcome = run::run(&mut through, &stream, options, &mut stop).unwrap();
    let (at, state, session) = stop.0.unwrap();
    let mut resumed = build();
    resumed.resume(&at.begun(&stream), &state, session).unwrap();
    let rest = run::go_on(&mut resumed, &stream, options, at, &mut ()).unwrap();
    assert_eq!(rest.accuracy, whole.accuracy);
    assert_eq!(rest.predictions, whole.predictions);
    assert_eq!(rest.cost, whole.cost);
    assert_eq!(rest.exemplars, whole.exemplars);
    let bits = |method: &dyn Method| -> Vec<(String, Vec<u32>)> {
        let bits = |t: &Tensor| -> Vec<u32> {
            let values: Vec<f32> = t.flatten_all().unwrap().to_vec1().unwrap();
            values.into_iter().map(f32::to_bits).collect()
        };
        let state = method.state().unwrap().into_iter();
        state.map(|(name, t)| (name, bits(&t))).collect()
    };
    assert!(bits(&resumed) == bits(&through));

    let kept = whole.exemplars.unwrap();
    assert_eq!(kept.images, [12, 12, 12]);
    assert_eq!(kept.rule, "12 in all, reservoir");
    let new: usize = stream.tasks.iter().map(|task| task.info.train_len).sum();
    assert_eq!(whole.cost.images_trained, 2 * (new + 12 + 12) as u64);
}

#[test]
fn replay_conforms() {
    for (part, memory, augmented) in [
        (Part::All, total(20, Choice::Herding), true),
        (Part::Head, per_class(2, Choice::Random), false),
        (Part::Head, total(15, Choice::Reservoir), false),
    ] {
        conforms(MethodConfig::Replay(replay(part, memory)), augmented).unwrap();
    }
}

#[test]
fn settings_of_a_memory_that_make_no_sense_are_named() {
    let two = Memory {
        per_class: Some(3),
        ..total(3, Choice::Random)
    };
    let none = Memory {
        total: None,
        ..total(3, Choice::Random)
    };
    for (memory, part) in [
        (two, "method.memory.per_class"),
        (none, "`method.memory`"),
        (total(0, Choice::Random), "method.memory.total"),
        (per_class(0, Choice::Random), "method.memory.per_class"),
        (per_class(3, Choice::Reservoir), "method.memory.choice"),
    ] {
        let config = MethodConfig::Replay(replay(Part::All, memory));
        let text = config.check(Some(&quick())).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    }
}
