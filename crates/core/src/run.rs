//! The run: tasks in order, each learned, then everything seen so far evaluated.

use candle_core::{D, Tensor};

use crate::classes::ClassAccuracy;
use crate::error::{Error, Result};
use crate::exemplars::{ExemplarUse, training};
use crate::method::Method;
use crate::metrics::AccuracyMatrix;
use crate::report::{Cost, Prediction};
use crate::standing::{Phase, Standing};
use crate::task::{Batch, Scenario, Split, Stream, Task, TaskInfo, View};
use crate::usage::{self, PoolUse, Tally};

/// What a run needs besides a method and a stream.
#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    /// Orders and augments the training images.
    pub seed: u64,
    /// Images per batch where nothing is trained; a matter of memory, not of results.
    pub eval_batch: usize,
}

/// What a run tells whoever watches it.
#[derive(Debug, Clone, Copy)]
pub enum Event<'a> {
    /// A task begins.
    TaskBegin(&'a TaskInfo),
    /// A training step is done.
    Step {
        /// Pass over the task, from 0.
        epoch: usize,
        /// Passes in all.
        epochs: usize,
        /// Images of this step.
        images: usize,
        /// Images of a pass: those of the task, and past ones that come again.
        pass: usize,
        /// The loss, where it was read back.
        loss: Option<f32>,
    },
    /// This many more training images were looked at outside training steps (prototypes).
    Looked(usize),
    /// The task is learned; its evaluation begins.
    Learned(&'a TaskInfo),
    /// This many more test images are evaluated.
    Evaluated(usize),
    /// A session is over.
    TaskEnd {
        /// The task just learned.
        task: &'a TaskInfo,
        /// Accuracies so far; the last row is of the task just learned.
        accuracy: &'a AccuracyMatrix,
    },
}

/// Watches a run; an error stops it.
pub trait Observer {
    /// One event.
    fn on(&mut self, event: Event<'_>) -> Result<()>;

    /// A place from which the run can be taken up again, by [`go_on`]: behind each step, when the training of a task is
    /// over, behind its end, and behind its evaluation. Whoever wants to writes everything down.
    fn keep(&mut self, at: &Standing, method: &dyn Method) -> Result<()> {
        let _ = (at, method);
        Ok(())
    }
}

/// Ignores everything.
impl Observer for () {
    fn on(&mut self, _: Event<'_>) -> Result<()> {
        Ok(())
    }
}

/// What a run leaves in memory.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Accuracy of each session on each task seen.
    pub accuracy: AccuracyMatrix,
    /// The same class by class.
    pub classes: ClassAccuracy,
    /// Every test image after the last task.
    pub predictions: Vec<Prediction>,
    /// What it took, in counts that do not depend on the machine.
    pub cost: Cost,
    /// What test images took from the pools of the method.
    pub pools: Vec<PoolUse>,
    /// The past images that it kept, of a method that keeps any.
    pub exemplars: Option<ExemplarUse>,
}

/// The loss is read back from the device every so many steps.
const READ_LOSS_EVERY: usize = 10;

/// Runs `method` over `stream`.
pub fn run(
    method: &mut dyn Method,
    stream: &Stream,
    options: RunOptions,
    watch: &mut dyn Observer,
) -> Result<Outcome> {
    go_on(method, stream, options, Standing::default(), watch)
}

/// Goes on from where `at` was [kept](Observer::keep), to the same outcome; `method` has
/// [taken up](Method::resume) its own part, and where the first task has not begun it is fresh.
pub fn go_on(
    method: &mut dyn Method,
    stream: &Stream,
    options: RunOptions,
    mut at: Standing,
    watch: &mut dyn Observer,
) -> Result<Outcome> {
    let mut predictions = Vec::new();
    while let Some(task) = stream.tasks.get(at.task()) {
        watch.on(Event::TaskBegin(&task.info))?;
        if at.phase == Phase::Ahead {
            method.begin_task(&task.info)?;
            method.prepare(task, &mut |images| watch.on(Event::Looked(images)))?;
            at.phase = Phase::Training {
                epoch: 0,
                batches: 0,
            };
        }
        if let Phase::Training { .. } = at.phase {
            let split = training(method, stream, at.task())?;
            let of = (&task.info, &*split);
            train(method, of, options.seed, &mut at, watch)?;
            method.end_task(task, &mut |images| watch.on(Event::Looked(images)))?;
            at.phase = Phase::Learned;
            watch.keep(&at, method)?;
        }
        watch.on(Event::Learned(&task.info))?;
        let mut known = vec![false; stream.classes()];
        for task in &stream.tasks[..=at.task()] {
            for &label in task.train.labels() {
                if let Some(known) = known.get_mut(label as usize) {
                    *known = true;
                }
            }
        }

        let last = at.task() + 1 == stream.tasks.len();
        let (mut row, mut counts, mut tallies) = (Vec::new(), Vec::new(), Vec::new());
        at.classes.open(stream.classes());
        for seen in evaluated(stream, at.task()) {
            // A task that is looked at ahead of its session does not count in this one's.
            let learned = seen.info.index <= task.info.index;
            let keep = last.then_some(&mut predictions);
            let choice = Choosable {
                by_task: stream.scenario.tells_tasks(),
                learned,
                known: &known,
            };
            let classes = learned.then_some(&mut at.classes);
            let kept = Kept {
                predictions: keep,
                classes,
            };
            let Some(seen) = evaluate(method, seen, choice, options.eval_batch, kept, watch)?
            else {
                // The method says nothing of this task; of those behind it a row has no place.
                break;
            };
            at.cost.images_evaluated += seen.images as u64;
            row.push(100.0 * seen.hits as f64 / seen.images as f64);
            counts.push(seen.images);
            if learned || !choice.by_task {
                tallies.push(seen.tally);
            }
        }
        usage::close(&mut at.pools, &tallies)?;
        let kept = method.exemplars().map_or(0, |kept| kept.ids.len());
        at.exemplars.push(kept);
        at.accuracy.push(row, counts);
        at.phase = Phase::Ahead;
        watch.on(Event::TaskEnd {
            task: &task.info,
            accuracy: &at.accuracy,
        })?;
        // Behind the last task there is nothing to go on with.
        if !last {
            watch.keep(&at, method)?;
        }
    }
    at.cost.trainable_parameters = method.trainable() as u64;
    Ok(Outcome {
        accuracy: at.accuracy,
        classes: at.classes,
        predictions,
        cost: at.cost,
        pools: at.pools,
        exemplars: method.exemplars().map(|kept| ExemplarUse {
            rule: kept.rule,
            images: at.exemplars,
        }),
    })
}

/// The tasks whose test images are looked at after task `t`: all seen; the next domain, whose classes are known; of a
/// multi-domain stream all, up to the first of which the method [says nothing](Method::predict_task).
pub fn evaluated(stream: &Stream, t: usize) -> &[Task] {
    let tasks = match stream.scenario {
        Scenario::MultiDomain(_) => stream.tasks.len(),
        Scenario::DomainIncremental(_) => t + 2,
        Scenario::ClassIncremental | Scenario::TaskIncremental => t + 1,
    };
    &stream.tasks[..tasks.min(stream.tasks.len())]
}

/// The passes over a task's images that are left.
fn train(
    method: &mut dyn Method,
    (task, split): (&TaskInfo, &dyn Split),
    seed: u64,
    at: &mut Standing,
    watch: &mut dyn Observer,
) -> Result<()> {
    let epochs = method.epochs();
    while let Phase::Training { epoch, batches } = at.phase
        && epoch < epochs
    {
        if batches == 0 {
            method.begin_epoch(epoch)?;
        }
        let view = View::Train {
            seed,
            epoch: at.passes,
        };
        let left = split.batches_behind(view, method.batch_size(), batches);
        for (step, batch) in left.enumerate() {
            let place = Place {
                task,
                epoch,
                step: batches + step,
                pass: split.len(),
            };
            observe(method, place, &batch?, at, watch)?;
        }
        at.passes += 1;
        at.phase = Phase::Training {
            epoch: epoch + 1,
            batches: 0,
        };
    }
    match epochs {
        0 => Ok(()),
        _ => watch.keep(at, method),
    }
}

/// Where a step is.
struct Place<'a> {
    task: &'a TaskInfo,
    epoch: usize,
    step: usize,
    /// Images of a pass.
    pass: usize,
}

fn observe(
    method: &mut dyn Method,
    place: Place<'_>,
    batch: &Batch,
    at: &mut Standing,
    watch: &mut dyn Observer,
) -> Result<()> {
    let Place { epoch, step, .. } = place;
    let loss = method.observe(batch)?;
    at.cost.optimizer_steps += 1;
    at.cost.images_trained += batch.len() as u64;
    at.phase = Phase::Training {
        epoch,
        batches: step + 1,
    };
    let loss = match step % READ_LOSS_EVERY {
        0 => Some(loss.to_scalar::<f32>()?),
        _ => None,
    };
    if let Some(value) = loss.filter(|l| !l.is_finite()) {
        return Err(Error::setting(
            "train.lr",
            format!(
                "the loss is {value} in task {}, epoch {}, step {}; lower it, or set train.clip",
                place.task.index + 1,
                epoch + 1,
                step + 1
            ),
        ));
    }
    watch.on(Event::Step {
        epoch,
        epochs: method.epochs(),
        images: batch.len(),
        pass: place.pass,
        loss,
    })?;
    watch.keep(at, method)
}

/// What is kept of each image.
struct Kept<'a> {
    /// After the last task.
    predictions: Option<&'a mut Vec<Prediction>>,
    /// Of tasks that are learned.
    classes: Option<&'a mut ClassAccuracy>,
}

/// One task's test set.
#[derive(Default)]
struct Evaluated {
    /// Correct predictions.
    hits: usize,
    images: usize,
    tally: Tally,
}

/// `None` where the method says nothing of a task that is not learned.
fn evaluate(
    method: &dyn Method,
    task: &Task,
    choice: Choosable<'_>,
    batch_size: usize,
    mut keep: Kept<'_>,
    watch: &mut dyn Observer,
) -> Result<Option<Evaluated>> {
    let mut seen = Evaluated::default();
    for batch in task.test.batches(View::Plain, batch_size) {
        let batch = batch?;
        let scores = match choice.by_task {
            false => method.predict(&batch)?,
            true => match of_task(method, &batch, &task.info)? {
                Some(scores) => scores,
                None if !choice.learned && seen.images == 0 => return Ok(None),
                None => {
                    return Err(Error::State {
                        problem: format!(
                            "the method gives no scores of task {}, which {}",
                            task.info.index + 1,
                            match choice.learned {
                                true => "it has learned",
                                false => "it gave for other images of it",
                            }
                        ),
                    });
                }
            },
        };
        if choice.learned || !choice.by_task {
            seen.tally.add(&method.choices(&batch)?)?;
        }
        let (labels, values) = best(&scores, choice, &task.info)?;
        for i in 0..batch.len() {
            let right = labels[i] == batch.labels[i];
            seen.hits += usize::from(right);
            if let Some(classes) = keep.classes.as_deref_mut() {
                classes.count(batch.labels[i], right);
            }
            if let Some(predictions) = keep.predictions.as_deref_mut() {
                predictions.push(Prediction {
                    image: task.test.image_name(batch.ids[i]),
                    label: batch.labels[i],
                    predicted: labels[i],
                    score: values[i],
                });
            }
        }
        seen.images += batch.len();
        watch.on(Event::Evaluated(batch.len()))?;
    }
    if seen.images == 0 {
        return Err(Error::State {
            problem: format!(
                "task {} has no readable test image, so its accuracy is undefined",
                task.info.index + 1
            ),
        });
    }
    Ok(Some(seen))
}

/// What a method says of images of a task, held to its shape.
fn of_task(method: &dyn Method, batch: &Batch, task: &TaskInfo) -> Result<Option<Tensor>> {
    let scores = method.predict_task(batch, task)?;
    let shape = [batch.len(), task.classes.len()];
    match &scores {
        Some(scores) if scores.dims() != shape => Err(Error::State {
            problem: format!(
                "scores of task {} have shape {:?}, expected one per image and class of it, {shape:?}",
                task.index + 1,
                scores.dims()
            ),
        }),
        _ => Ok(scores),
    }
}

/// Which classes a prediction may name.
#[derive(Clone, Copy)]
struct Choosable<'a> {
    /// Those of the image's own task, which is known.
    by_task: bool,
    /// Whether that task is over.
    learned: bool,
    /// Those that had a training image. A class without one in the domains so far has no say, whatever its method
    /// makes of it; but of a data set that is to come each has.
    known: &'a [bool],
}

/// The label of the largest score of each row, the smaller label where two are equal.
fn best(scores: &Tensor, choice: Choosable<'_>, task: &TaskInfo) -> Result<(Vec<u32>, Vec<f32>)> {
    let mut scores = scores.clone();
    let first = match choice.by_task {
        true => task.classes.start,
        false => 0,
    };
    let known = choice.known.iter().skip(first).take(scores.dim(1)?);
    let barred = choice.learned || !choice.by_task;
    if barred && known.clone().any(|known| !known) {
        let bar = known.map(|known| if *known { 0.0 } else { f32::NEG_INFINITY });
        let bar = Tensor::from_vec(bar.collect(), (1, scores.dim(1)?), scores.device())?;
        scores = scores.broadcast_add(&bar)?;
    }
    let values: Vec<f32> = scores.max(D::Minus1)?.to_vec1()?;
    if let Some(bad) = values.iter().find(|v| !v.is_finite()) {
        return Err(Error::State {
            problem: format!(
                "a score is {bad} on a test image of task {}; training has diverged, lower train.lr",
                task.index + 1
            ),
        });
    }
    let labels: Vec<u32> = scores.argmax(D::Minus1)?.to_vec1()?;
    Ok((
        labels.into_iter().map(|l| first as u32 + l).collect(),
        values,
    ))
}
