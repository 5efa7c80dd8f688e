//! Several data sets as one stream, evaluated also before they are learned.

use std::collections::BTreeSet;
use std::path::Path;

use candle_core::{D, Device, Tensor};
use candlewick_core::{
    Batch, Fingerprint, Method, Outcome, Report, Result, RunOptions, Scenario, Session, State,
    Stream, TaskInfo, View, run,
};
use candlewick_data::{Folder, Loader, OnCorrupt, Order, Parts, Several, multi_domain};
use image::{Rgb, RgbImage};
use tempfile::TempDir;

use crate::loading::settings;

/// Test image `k` of a set, whatever its class, has the grey level `50 k`.
const STEP: f32 = 50.0;
/// Test images of each set.
const TESTS: usize = 4;

fn grey(path: &Path, level: u8) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    RgbImage::from_pixel(6, 6, Rgb([level; 3]))
        .save(path)
        .unwrap();
}

/// A folder whose test images are spread over its classes.
fn set(dir: &TempDir, name: &str, classes: &[&str]) -> Parts {
    let path = dir.path().join(name);
    for class in classes {
        for i in 0..3 {
            grey(&path.join(format!("train/{class}/{i}.png")), 7 * i);
        }
    }
    for k in 0..TESTS {
        let class = classes[k % classes.len()];
        grey(&path.join(format!("test/{class}/{k}.png")), 50 * k as u8);
    }
    Folder {
        path,
        split: None,
        expected_images: None,
    }
    .open()
    .unwrap()
}

/// Three sets, two of which have a class of the same name.
fn several(dir: &TempDir) -> Several {
    let sets = [
        ("pets", &["cat", "big_dog"][..]),
        ("toys", &["ball", "cat", "kite"]),
        ("food", &["bread", "rice"]),
    ];
    let sets = sets.map(|(name, classes)| (name.to_owned(), set(dir, name, classes)));
    Several::new(sets.into()).unwrap()
}

fn stream(several: &Several, order: &Order) -> Stream {
    let loader = Loader::new(&settings(), 1, OnCorrupt::Stop).unwrap();
    multi_domain(several, order, &loader).unwrap()
}

#[test]
fn sets_come_one_by_one_with_ids_and_names_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let several = several(&dir);
    let order = Order::Names(vec!["toys".into(), "food".into(), "pets".into()]);
    let stream = stream(&several, &order);
    let Scenario::MultiDomain(names) = &stream.scenario else {
        panic!("{:?}", stream.scenario)
    };
    assert_eq!(names, &["toys", "food", "pets"]);
    let classes = [
        "toys/ball",
        "toys/cat",
        "toys/kite",
        "food/bread",
        "food/rice",
        "pets/big_dog",
        "pets/cat",
    ];
    assert_eq!(stream.class_names, classes);
    let infos: Vec<_> = stream.tasks.iter().map(|task| &task.info).collect();
    assert_eq!(infos[2].classes, 5..7);
    assert_eq!(infos[2].names, ["big dog", "cat"]);
    assert_eq!(infos.iter().map(|i| i.train_len).sum::<usize>(), 21);
    let joined = several.parts().joined();
    let mut ids = BTreeSet::new();
    for task in &stream.tasks {
        for split in [&task.train, &task.test] {
            for batch in split.batches(View::Plain, 5) {
                let batch = batch.unwrap();
                for (id, label) in batch.ids.iter().zip(&batch.labels) {
                    assert!(ids.insert(*id), "id {id} twice");
                    let class = classes[*label as usize];
                    let (set, class) = class.split_once('/').unwrap();
                    let name = split.image_name(*id);
                    assert!(name.starts_with(&format!("{set}/")), "{name}");
                    assert!(name.contains(&format!("/{class}/")), "{name}");
                    assert_eq!(joined.name(*id as usize), name);
                }
            }
        }
    }
    assert_eq!(ids, (0..21 + 12).collect());
}

#[test]
fn sets_that_cannot_be_told_apart_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = set(&dir, "one", &["a", "b"]);
    let refused = |sets| Several::new(sets).err().unwrap().to_string();
    assert!(refused(vec![]).contains("at least one"));
    let text = refused(vec![
        ("one".into(), one.clone()),
        ("one".into(), one.clone()),
    ]);
    assert!(text.contains("two are called `one`"), "{text}");
    let two = set(&dir, "two", &["a", "b"]);
    let digest = |name: &str, parts: &Parts| {
        let several = Several::new(vec![(name.into(), parts.clone())]).unwrap();
        several.parts().train.fingerprint()
    };
    assert_eq!(digest("x", &one), digest("x", &one));
    assert_ne!(digest("x", &one), digest("y", &one));
    let three = set(&dir, "three", &["a", "c"]);
    assert_ne!(digest("x", &two), digest("x", &three));
}

/// How many test images of set `i` are right after set `t`.
const RIGHT: [[usize; 3]; 3] = [[3, 2, 1], [2, 4, 1], [1, 3, 4]];

/// Gets as many right as [`RIGHT`] says: those of the lowest levels.
struct Told {
    learned: usize,
    classes: usize,
    /// Of which sets it says something before it has learned them.
    ahead: fn(usize) -> bool,
}

impl Told {
    fn new(ahead: fn(usize) -> bool) -> Self {
        Self {
            learned: 0,
            classes: 0,
            ahead,
        }
    }
}

impl Method for Told {
    fn epochs(&self) -> usize {
        0
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.learned = task.index;
        self.classes = task.classes.end;
        Ok(())
    }

    fn observe(&mut self, _: &Batch) -> Result<Tensor> {
        panic!("it does not train")
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        Ok(Tensor::zeros(
            (batch.len(), self.classes),
            candle_core::DType::F32,
            &Device::Cpu,
        )?)
    }

    fn predict_task(&self, batch: &Batch, task: &TaskInfo) -> Result<Option<Tensor>> {
        if task.index > self.learned && !(self.ahead)(task.index) {
            return Ok(None);
        }
        let levels: Vec<f32> = batch.images.flatten_from(1)?.mean(D::Minus1)?.to_vec1()?;
        let classes = task.classes.len();
        let mut scores = vec![0f32; batch.len() * classes];
        for (i, level) in levels.iter().enumerate() {
            let k = (level * 255.0 / STEP).round() as usize;
            let own = batch.labels[i] as usize - task.classes.start;
            let right = k < RIGHT[self.learned][task.index];
            let said = if right { own } else { (own + 1) % classes };
            scores[i * classes + said] = 1.0;
        }
        let shape = (batch.len(), classes);
        Ok(Some(Tensor::from_vec(scores, shape, &Device::Cpu)?))
    }

    fn trainable(&self) -> usize {
        0
    }

    fn state(&self) -> Result<State> {
        Ok(State::new())
    }

    fn restore(&mut self, _: &[TaskInfo], _: &State) -> Result<()> {
        Ok(())
    }

    fn session(&self) -> Result<Session> {
        Ok(Session::new())
    }

    fn resume(&mut self, _: &[TaskInfo], _: &State, session: Session) -> Result<()> {
        session.end()
    }
}

fn outcome(method: &mut dyn Method, stream: &Stream) -> Outcome {
    let options = RunOptions {
        seed: 1,
        eval_batch: 3,
    };
    run::run(method, stream, options, &mut ()).unwrap()
}

#[test]
fn all_sets_are_evaluated_after_each_and_the_metrics_are_those_of_zscl() {
    let dir = tempfile::tempdir().unwrap();
    let stream = stream(&several(&dir), &Order::Natural);
    let outcome = outcome(&mut Told::new(|_| true), &stream);
    let percent = [[75.0, 50.0, 25.0], [50.0, 100.0, 25.0], [25.0, 75.0, 100.0]];
    assert_eq!(outcome.accuracy.percent, percent.map(Vec::from));
    assert_eq!(outcome.cost.images_evaluated, 36);
    assert_eq!(outcome.predictions.len(), 12);
    // What is not learned does not count in what was seen.
    assert_eq!(outcome.accuracy.macro_curve(), [75.0, 75.0, 200.0 / 3.0]);
    assert_eq!(outcome.classes.percent(0, 6), None);

    let report = Report::new("told", &stream, &outcome, Fingerprint::default());
    assert_eq!(report.scenario.as_deref(), Some("multi-domain"));
    // (50 + (25 + 25) / 2) / 2, 525 / 9 and 200 / 3.
    assert_eq!(report.metrics.mtil_transfer, Some(37.5));
    let average = report.metrics.mtil_average.unwrap();
    assert!((average - 525.0 / 9.0).abs() < 1e-12, "{average}");
    assert_eq!(report.metrics.mtil_last, Some(200.0 / 3.0));
    assert!(report.undefined.is_empty());
    let sets: Vec<_> = report.tasks.iter().map(|t| t.set.as_deref()).collect();
    assert_eq!(sets, [Some("pets"), Some("toys"), Some("food")]);
    assert!(report.definitions["mtil_transfer"].contains("its own data set"));
}

#[test]
fn what_a_method_cannot_say_is_not_made_up() {
    let dir = tempfile::tempdir().unwrap();
    let stream = stream(&several(&dir), &Order::Natural);
    // Of no set to come; of the second, but not of the third.
    for (ahead, lengths) in [
        ((|_| false) as fn(usize) -> bool, [1, 2, 3]),
        (|i| i == 1, [2, 2, 3]),
    ] {
        let outcome = outcome(&mut Told::new(ahead), &stream);
        let rows: Vec<usize> = outcome.accuracy.percent.iter().map(Vec::len).collect();
        assert_eq!(rows, lengths);
        let report = Report::new("told", &stream, &outcome, Fingerprint::default());
        assert_eq!(report.metrics.mtil_transfer, None);
        assert_eq!(report.metrics.mtil_average, None);
        assert_eq!(report.metrics.mtil_last, Some(200.0 / 3.0));
        for metric in ["mtil_transfer", "mtil_average"] {
            assert!(report.undefined[metric].contains("not learned"));
            assert!(!report.definitions.contains_key(metric));
        }
    }
}

/// Says nothing of what it has learned.
struct Silent(Told);

impl Method for Silent {
    fn epochs(&self) -> usize {
        0
    }

    fn begin_task(&mut self, task: &TaskInfo) -> Result<()> {
        self.0.begin_task(task)
    }

    fn observe(&mut self, batch: &Batch) -> Result<Tensor> {
        self.0.observe(batch)
    }

    fn predict(&self, batch: &Batch) -> Result<Tensor> {
        Ok(self.0.predict(batch)?.narrow(1, 0, 1)?)
    }

    fn trainable(&self) -> usize {
        0
    }

    fn state(&self) -> Result<State> {
        self.0.state()
    }

    fn restore(&mut self, _: &[TaskInfo], _: &State) -> Result<()> {
        Ok(())
    }

    fn session(&self) -> Result<Session> {
        self.0.session()
    }

    fn resume(&mut self, _: &[TaskInfo], _: &State, session: Session) -> Result<()> {
        session.end()
    }
}

#[test]
fn a_task_that_is_learned_must_be_scored() {
    let dir = tempfile::tempdir().unwrap();
    let stream = stream(&several(&dir), &Order::Natural);
    let options = RunOptions {
        seed: 1,
        eval_batch: 3,
    };
    let run = run::run(&mut Silent(Told::new(|_| true)), &stream, options, &mut ());
    let text = run.unwrap_err().to_string();
    assert!(
        text.contains("no scores of task 1, which it has learned"),
        "{text}"
    );
}
