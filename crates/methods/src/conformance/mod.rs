//! The laws every method keeps, as one check for methods of ours and of others.
//!
//! A stream with unequal tasks, one of them of a single class and the last one odd, asks most of a
//! method; so does one of domains, in the first of which a class is missing, of a method that takes those. What [`check`]
//! cannot see of a method from outside, its gradients, [`gradients`] holds; [`resuming`] alone is for streams of domains;
//! [`empty_prompt`] is
//! a law of backbones.

mod resume;
mod seam;

use std::collections::BTreeMap;

use candle_core::{D, Tensor};
use candlewick_core::exemplars::training;
use candlewick_core::{
    Batch, Error, Method, Outcome, Result, RunOptions, State, Stream, Task, TaskInfo, View, run,
};

pub use resume::resuming;
pub use seam::{empty_prompt, gradients};

/// Makes a fresh method; called several times, it must give the same one.
pub type Build<'a> = &'a (dyn Fn() -> Result<Box<dyn Method>> + Sync);

/// Runs every law over `stream`; `frozen` are the weights of the backbone that `build` uses. The error
/// says which law is broken and where.
pub fn check(build: Build<'_>, stream: &Stream, frozen: &BTreeMap<String, Tensor>) -> Result<()> {
    let before = bits(frozen)?;
    let mut method = build()?;
    let mut seen: Vec<TaskInfo> = Vec::new();
    for task in &stream.tasks {
        let old = method.state()?;
        learn(method.as_mut(), stream, seen.len())?;
        old_classes_stand_still(&old, &method.state()?, &task.info, &seen)?;
        seen.push(task.info.clone());
        test_batches_do_not_matter(method.as_ref(), task, task.info.classes.end)?;
        saving_and_loading_changes_nothing(build, method.as_ref(), &seen, task)?;
    }
    resuming_is_the_same_run(build, stream, &method.state()?)?;
    resuming(build, stream)?;
    if bits(frozen)? != before {
        return broken("frozen weights changed");
    }
    same_seed_same_numbers(build, stream)?;
    tasks_without_end(build, stream)
}

/// As a run does it, with the past images that the method keeps.
fn learn(method: &mut dyn Method, stream: &Stream, index: usize) -> Result<()> {
    let task = &stream.tasks[index];
    let kept = method.exemplars();
    method.begin_task(&task.info)?;
    method.prepare(task, &mut |_| Ok(()))?;
    let split = training(method, stream, index)?;
    for epoch in 0..method.epochs() {
        let view = View::Train {
            seed: 1,
            epoch: (index * 1000 + epoch) as u64,
        };
        method.begin_epoch(epoch)?;
        for batch in split.batches(view, method.batch_size()) {
            method.observe(&batch?)?;
        }
    }
    if method.exemplars() != kept {
        return broken(&format!(
            "exemplars are others while task {} is trained: they are chosen behind it",
            index + 1
        ));
    }
    method.end_task(task, &mut |_| Ok(()))
}

/// Heads of earlier tasks, and the rows of earlier tasks in whatever has a row per class, stay bit for bit. Not of classes
/// that come again, in another domain.
fn old_classes_stand_still(
    old: &State,
    new: &State,
    task: &TaskInfo,
    seen: &[TaskInfo],
) -> Result<()> {
    let rows = task.classes.start;
    let again = seen.iter().any(|earlier| earlier.classes == task.classes);
    for (name, before) in old {
        if name.starts_with("head.")
            && !again
            && new.get(name).map(values).transpose()? != Some(values(before)?)
        {
            return broken(&format!(
                "`{name}` moved while task {} was learned",
                task.index + 1
            ));
        }
        let per_class = before.dims().first() == Some(&rows)
            && new
                .get(name)
                .is_some_and(|t| t.dims().first() == Some(&task.classes.end));
        if !per_class || rows == 0 {
            continue;
        }
        let after = new[name].narrow(0, 0, rows)?;
        if values(before)? != values(&after)? {
            return broken(&format!(
                "rows of old classes in `{name}` moved while task {} was learned",
                task.index + 1
            ));
        }
    }
    Ok(())
}

fn test_batches_do_not_matter(method: &dyn Method, task: &Task, classes: usize) -> Result<()> {
    let whole: Vec<Batch> = task.test.batches(View::Plain, 64).collect::<Result<_>>()?;
    let mut expected: BTreeMap<u64, Vec<f32>> = BTreeMap::new();
    for batch in &whole {
        let scores = method.predict(&fresh(batch)?)?;
        if scores.dims() != [batch.len(), classes] {
            return broken(&format!(
                "scores have shape {:?}, expected one per image and class seen, {:?}",
                scores.dims(),
                [batch.len(), classes]
            ));
        }
        for (id, row) in batch.ids.iter().zip(scores.to_vec2()?) {
            expected.insert(*id, row);
        }
    }
    for (size, reversed) in [(1, false), (7, false), (7, true), (64, true)] {
        for batch in regrouped(&whole, size, reversed)? {
            let rows: Vec<Vec<f32>> = method.predict(&batch)?.to_vec2()?;
            for (id, row) in batch.ids.iter().zip(rows) {
                let want = &expected[id];
                let close = want
                    .iter()
                    .zip(&row)
                    // Of a class without images yet, −∞. candle's products differ in their last digit with the number of rows, and
                    // a backbone in bf16 makes up to 3e-4 of that.
                    .all(|(a, b)| a == b || (a - b).abs() <= 1e-3 * a.abs().max(1.0));
                if !close || label(want) != label(&row) {
                    return broken(&format!(
                        "image {id} of task {} is predicted {} in a batch of {size}, {} in a batch of 64",
                        task.info.index,
                        label(&row),
                        label(want)
                    ));
                }
            }
        }
    }
    Ok(())
}

fn saving_and_loading_changes_nothing(
    build: Build<'_>,
    method: &dyn Method,
    seen: &[TaskInfo],
    task: &Task,
) -> Result<()> {
    let mut loaded = build()?;
    loaded.restore(seen, &method.state()?)?;
    if loaded.exemplars() != method.exemplars() {
        return broken(&format!(
            "exemplars differ after saving and loading behind task {}",
            task.info.index
        ));
    }
    for batch in task.test.batches(View::Plain, 16) {
        let batch = fresh(&batch?)?;
        let (a, b) = (method.predict(&batch)?, loaded.predict(&batch)?);
        if values(&a)? != values(&b)? {
            return broken(&format!(
                "predictions differ after saving and loading behind task {}",
                task.info.index
            ));
        }
    }
    Ok(())
}

/// Stop behind the first task, load, go on: the end is the same bit for bit.
fn resuming_is_the_same_run(build: Build<'_>, stream: &Stream, end: &State) -> Result<()> {
    let Some(first) = stream.tasks.first() else {
        return broken("the stream has no task");
    };
    let mut method = build()?;
    learn(method.as_mut(), stream, 0)?;
    let saved = method.state()?;
    let mut resumed = build()?;
    resumed.restore(std::slice::from_ref(&first.info), &saved)?;
    for i in 1..stream.tasks.len() {
        learn(resumed.as_mut(), stream, i)?;
    }
    match bits(&resumed.state()?)? == bits(end)? {
        true => Ok(()),
        false => broken("a run resumed behind the first task ends elsewhere"),
    }
}

/// With one thread and with three, in rayon's pool of the moment: where matrices are multiplied.
fn same_seed_same_numbers(build: Build<'_>, stream: &Stream) -> Result<()> {
    let with = |threads: usize| -> Result<Outcome> {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().map_err(|e| Error::State {
            problem: format!("{threads} threads cannot be started: {e}"),
        })?;
        let options = RunOptions {
            seed: 3,
            eval_batch: 16,
        };
        pool.install(|| run::run(build()?.as_mut(), stream, options, &mut ()))
    };
    let (one, three) = (with(1)?, with(3)?);
    if one.accuracy != three.accuracy || one.predictions != three.predictions {
        return broken("two runs with one seed, on one thread and on three, differ");
    }
    match one.pools == three.pools {
        true => Ok(()),
        false => broken("two runs with one seed choose differently from a pool"),
    }
}

/// More tasks than anybody made room for: a method grows, or names the setting that is too small.
fn tasks_without_end(build: Build<'_>, stream: &Stream) -> Result<()> {
    const TASKS: usize = 40;
    let mut method = build()?;
    for index in 0..TASKS {
        let info = TaskInfo {
            index,
            classes: index..index + 1,
            names: vec![format!("class {index}")],
            train_len: 1,
            test_len: 1,
        };
        match method.begin_task(&info) {
            Ok(()) => {}
            Err(Error::Setting { .. }) => return Ok(()),
            Err(other) => {
                let task = index + 1;
                return broken(&format!(
                    "task {task} of one class is refused, but no setting is named: {other}"
                ));
            }
        }
    }
    let Some(batch) = stream.tasks[0].test.batches(View::Plain, 4).next() else {
        return broken("the first task has no test image");
    };
    let batch = batch?;
    let scores = method.predict(&batch)?;
    match scores.dims() == [batch.len(), TASKS] {
        true => Ok(()),
        false => broken(&format!(
            "after {TASKS} tasks of one class, scores have shape {:?}",
            scores.dims()
        )),
    }
}

fn broken<T>(problem: &str) -> Result<T> {
    Err(Error::State {
        problem: format!("broken law: {problem}"),
    })
}

/// The same images under new ids, so that no memory of features answers.
fn fresh(batch: &Batch) -> Result<Batch> {
    Ok(Batch {
        plain: false,
        ..batch.clone()
    })
}

fn regrouped(batches: &[Batch], size: usize, reversed: bool) -> Result<Vec<Batch>> {
    let mut singles = Vec::new();
    for batch in batches {
        for i in 0..batch.len() {
            singles.push((batch.images.narrow(0, i, 1)?, batch.labels[i], batch.ids[i]));
        }
    }
    if reversed {
        singles.reverse();
    }
    let group = |chunk: &[(Tensor, u32, u64)]| -> Result<Batch> {
        let images: Vec<&Tensor> = chunk.iter().map(|(image, _, _)| image).collect();
        Ok(Batch {
            images: Tensor::cat(&images, 0)?,
            labels: chunk.iter().map(|c| c.1).collect(),
            ids: chunk.iter().map(|c| c.2).collect(),
            plain: false,
        })
    };
    singles.chunks(size).map(group).collect()
}

fn label(scores: &[f32]) -> usize {
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(label, _)| label)
}

fn values(tensor: &Tensor) -> Result<Vec<u32>> {
    let values: Vec<f32> = tensor.flatten(0, D::Minus1)?.to_vec1()?;
    Ok(values.into_iter().map(f32::to_bits).collect())
}

fn bits(tensors: &BTreeMap<String, Tensor>) -> Result<BTreeMap<String, Vec<u32>>> {
    tensors
        .iter()
        .map(|(name, t)| Ok((name.clone(), values(t)?)))
        .collect()
}
