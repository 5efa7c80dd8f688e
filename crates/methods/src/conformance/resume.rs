//! Law: stopped after any step and taken up by a fresh method, a run ends where it would have ended.

use std::collections::BTreeMap;

use candle_core::Tensor;
use candlewick_core::exemplars::training;
use candlewick_core::{Method, Result, Session, State, Stream, Task, TaskInfo, View};

use super::{Build, bits, broken, fresh, values};

/// Two methods side by side: one goes through, the other is saved and taken up by a fresh one behind every step, when the
/// training of a task is over, and behind its end. Losses, parameters and predictions are the same bit for bit.
pub fn resuming(build: Build<'_>, stream: &Stream) -> Result<()> {
    let (mut through, mut stopped) = (build()?, build()?);
    let mut begun: Vec<TaskInfo> = Vec::new();
    let mut passes = 0;
    for (t, task) in stream.tasks.iter().enumerate() {
        through.begin_task(&task.info)?;
        stopped.begin_task(&task.info)?;
        through.prepare(task, &mut |_| Ok(()))?;
        stopped.prepare(task, &mut |_| Ok(()))?;
        begun.push(task.info.clone());
        let split = training(through.as_ref(), stream, t)?;
        let epochs = through.epochs();
        for epoch in 0..epochs {
            through.begin_epoch(epoch)?;
            stopped.begin_epoch(epoch)?;
            let view = View::Train {
                seed: 2,
                epoch: passes,
            };
            passes += 1;
            for (step, batch) in split.batches(view, through.batch_size()).enumerate() {
                let batch = batch?;
                let losses = [through.observe(&batch)?, stopped.observe(&batch)?];
                let [one, two] = losses.map(|loss| loss.to_scalar::<f32>());
                if one?.to_bits() != two?.to_bits() {
                    return broken(&format!(
                        "taken up behind the step before, step {} of epoch {} of task {} has another loss",
                        step + 1,
                        epoch + 1,
                        task.info.index + 1
                    ));
                }
                stopped = taken_up(build, stopped.as_ref(), &begun)?;
            }
        }
        if epochs > 0 && bits(&through.state()?)? != bits(&stopped.state()?)? {
            return broken(&format!(
                "taken up on the way, the training of task {} leaves other parameters",
                task.info.index + 1
            ));
        }
        through.end_task(task, &mut |_| Ok(()))?;
        stopped.end_task(task, &mut |_| Ok(()))?;
        stopped = taken_up(build, stopped.as_ref(), &begun)?;
        same(through.as_ref(), stopped.as_ref(), task)?;
    }
    Ok(())
}

/// A fresh method in place of one that stopped; nothing is shared between the two.
fn taken_up(build: Build<'_>, method: &dyn Method, begun: &[TaskInfo]) -> Result<Box<dyn Method>> {
    let (state, session) = (method.state()?, method.session()?);
    let mut next = build()?;
    next.resume(begun, &copies(&state)?, copies(session.tensors())?.into())?;
    if next.exemplars() != method.exemplars() {
        return broken("taken up, the method keeps other exemplars");
    }
    let again = next.session()?;
    let names = |session: &Session| session.tensors().keys().cloned().collect::<Vec<_>>();
    match names(&session) == names(&again) {
        true => Ok(next),
        false => broken(&format!(
            "taken up, the method has another session: {:?}, not {:?}",
            names(&again),
            names(&session)
        )),
    }
}

fn copies(tensors: &BTreeMap<String, Tensor>) -> Result<State> {
    let copy = |(name, tensor): (&String, &Tensor)| Ok((name.clone(), tensor.copy()?));
    tensors.iter().map(copy).collect()
}

fn same(one: &dyn Method, two: &dyn Method, task: &Task) -> Result<()> {
    let number = task.info.index + 1;
    if bits(&one.state()?)? != bits(&two.state()?)? {
        return broken(&format!(
            "taken up on the way, task {number} leaves other parameters"
        ));
    }
    for batch in task.test.batches(View::Plain, 16) {
        let batch = fresh(&batch?)?;
        let scores = [one.predict(&batch)?, two.predict(&batch)?];
        let [one, two] = scores.map(|scores| values(&scores));
        if one? != two? {
            return broken(&format!(
                "taken up on the way, task {number} leaves other predictions"
            ));
        }
    }
    Ok(())
}
