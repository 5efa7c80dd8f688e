//! A memory of past training images, for methods that replay: which are kept, and how many.
//!
//! ```text
//! total = n        m = ⌊n / classes seen⌋ of each class; the lists of old classes are cut to their first m    (iCaRL)
//! per_class = n    m = n
//! herding          as herding.rs has it, on features of the plain view
//! random           the first m of an order of the class's images that the seed draws
//! reservoir        of all images seen, n: image i < n takes place i, a later one place j, drawn from 0 … i, if j < n
//! ```
//!
//! Images are kept by their ids and never copied; [`training`](candlewick_core::exemplars::training) mixes them into the next task.
//! Sources: Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning",
//! `LAMDA-CL/LAMDA-PILOT:models/base.py` (5240714); Vitter 1985, "Random Sampling with a Reservoir", algorithm R;
//! Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning".

use std::collections::BTreeMap;

use candle_core::{Device, Tensor};
use candlewick_core::{Batch, Error, Exemplars, Progress, Result, State, Task, View};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

use crate::draw::shuffle;
use crate::herding::herd;

/// `[method.memory]`: one of `total` and `per_class`, and `choice`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Images in all, shared evenly by the classes seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<usize>,
    /// Images of each class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_class: Option<usize>,
    /// Which.
    pub choice: Choice,
}

/// Which images are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Those whose mean feature stays nearest to that of their class.
    Herding,
    /// Drawn, class by class.
    Random,
    /// Drawn from all images seen, whatever their class.
    Reservoir,
}

impl Choice {
    /// As recipes write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Herding => "herding",
            Self::Random => "random",
            Self::Reservoir => "reservoir",
        }
    }
}

impl Memory {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, problem: &str| {
            let key = format!(
                "method.memory{}{key}",
                if key.is_empty() { "" } else { "." }
            );
            Err(Error::setting(key, problem))
        };
        match (self.total, self.per_class) {
            (Some(_), Some(_)) => refuse("per_class", "excludes `total`: give one of the two"),
            (None, None) => refuse(
                "",
                "says not how many images are kept; give `total` or `per_class`",
            ),
            (Some(0), _) => refuse("total", "must be greater than 0, found 0"),
            (_, Some(0)) => refuse("per_class", "must be greater than 0, found 0"),
            (None, _) if self.choice == Choice::Reservoir => refuse(
                "choice",
                "\"reservoir\" knows no classes; give `total` instead of `per_class`",
            ),
            _ => Ok(()),
        }
    }

    /// Nothing kept yet; `seed` draws.
    pub fn build(&self, seed: u64) -> Result<Kept> {
        self.check()?;
        Ok(Kept {
            memory: *self,
            seed,
            lists: BTreeMap::new(),
            places: Vec::new(),
            seen: 0,
        })
    }

    /// In words, for reports.
    pub fn rule(&self) -> String {
        let choice = self.choice.name();
        match (self.total, self.per_class) {
            (Some(n), _) => format!("{n} in all, {choice}"),
            (None, n) => format!("{} of each class, {choice}", n.unwrap_or(0)),
        }
    }
}

/// The images kept so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    memory: Memory,
    seed: u64,
    /// Ids by class, in order of choice.
    lists: BTreeMap<u32, Vec<u64>>,
    /// Ids and classes of a reservoir, which has no lists.
    places: Vec<(u64, u32)>,
    /// Images that a reservoir has seen.
    seen: u64,
}

/// Names in the state; two rows or more, so that they have no row per class.
const IDS: &str = "memory.ids";
const CLASSES: &str = "memory.classes";
const SEEN: &str = "memory.seen";
/// Counts are kept as the rows of their lower and higher digits, which f32 holds exactly.
const DIGIT: u64 = 1 << 24;

impl Kept {
    /// The images as a method shows them to the run.
    pub fn exemplars(&self) -> Exemplars {
        Exemplars {
            ids: self.entries().into_iter().map(|(id, _)| id).collect(),
            rule: self.memory.rule(),
        }
    }

    /// The ids of a class, in order of choice.
    pub fn of(&self, class: u32) -> Vec<u64> {
        let own = self.entries().into_iter().filter(|(_, c)| *c == class);
        own.map(|(id, _)| id).collect()
    }

    /// Ids and classes: class by class in order of choice, or place by place.
    fn entries(&self) -> Vec<(u64, u32)> {
        let lists = self.lists.iter();
        let lists = lists.flat_map(|(class, ids)| ids.iter().map(|id| (*id, *class)));
        lists.chain(self.places.iter().copied()).collect()
    }

    /// Chooses among the training images of a task that is over: call it in [`end_task`](candlewick_core::Method::end_task).
    /// They are looked at once, in batches of `batch`; `features` gives theirs, `(B, D)`, and is asked where images are herded.
    ///
    /// # Errors
    /// When a class was kept in an earlier task: lists are of streams whose classes come once.
    pub fn learn(
        &mut self,
        task: &Task,
        features: &dyn Fn(&Batch) -> Result<Tensor>,
        batch: usize,
        progress: Progress<'_>,
    ) -> Result<()> {
        let mut found: BTreeMap<u32, Found> = BTreeMap::new();
        let mut dim = 0;
        for batch in task.train.batches(View::Plain, batch) {
            let batch = batch?;
            let rows: Option<Vec<Vec<f32>>> = match self.memory.choice {
                Choice::Herding => Some(features(&batch)?.to_vec2()?),
                Choice::Random | Choice::Reservoir => None,
            };
            for (i, (&id, &class)) in batch.ids.iter().zip(&batch.labels).enumerate() {
                if self.memory.choice == Choice::Reservoir {
                    self.pour(id, class);
                    continue;
                }
                let own = found.entry(class).or_default();
                own.ids.push(id);
                if let Some(row) = rows.as_ref().and_then(|rows| rows.get(i)) {
                    dim = row.len();
                    own.rows.extend(row);
                }
            }
            progress(batch.len())?;
        }
        let share = self.share(task.info.classes.end);
        for list in self.lists.values_mut() {
            list.truncate(share);
        }
        for (class, own) in found {
            let order = match self.memory.choice {
                Choice::Herding => herd(&own.rows, dim, share),
                _ => self.drawn(class, own.ids.len()),
            };
            let list = order.into_iter().take(share).map(|i| own.ids[i]);
            if self.lists.insert(class, list.collect()).is_some() {
                return Err(Error::State {
                    problem: format!(
                        "class {} in order of arrival comes again, but its exemplars were chosen in an earlier task; a memory by class is of classes that come once",
                        class + 1
                    ),
                });
            }
        }
        Ok(())
    }

    /// Images of each class.
    fn share(&self, classes: usize) -> usize {
        match (self.memory.total, self.memory.per_class) {
            (Some(total), _) => total / classes.max(1),
            (None, n) => n.unwrap_or(0),
        }
    }

    /// An order of the `n` images of a class.
    fn drawn(&self, class: u32, n: usize) -> Vec<usize> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(u64::from(class));
        let mut order: Vec<usize> = (0..n).collect();
        shuffle(&mut order, &mut rng);
        order
    }

    /// One more image of the stream. Each has a draw of its own, so nothing but their number need be known to go on.
    fn pour(&mut self, id: u64, class: u32) {
        let size = self.memory.total.unwrap_or(0);
        let i = self.seen;
        self.seen += 1;
        if self.places.len() < size {
            self.places.push((id, class));
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(i);
        // The bias is below 2⁻³² for anything that fits into memory.
        let place = rng.next_u64() % (i + 1);
        if let Some(place) = self.places.get_mut(place as usize) {
            *place = (id, class);
        }
    }

    /// Adds what is kept to the state of its method.
    pub fn save(&self, state: &mut State) -> Result<()> {
        let entries = self.entries();
        let ids: Vec<u64> = entries.iter().map(|(id, _)| *id).collect();
        let classes: Vec<u64> = entries.iter().map(|(_, class)| (*class).into()).collect();
        state.insert(IDS.into(), counts(&ids)?);
        state.insert(CLASSES.into(), counts(&classes)?);
        state.insert(SEEN.into(), counts(&[self.seen])?);
        Ok(())
    }

    /// The state of a method whose `network` goes by names behind `start`, and what is kept. Heads of earlier tasks are trained on with
    /// exemplars, so they are not called `head.…`, which is the name of heads that stand still.
    pub fn beside(&self, start: &str, network: State) -> Result<State> {
        let named = |(name, tensor)| (format!("{start}{name}"), tensor);
        let mut state: State = network.into_iter().map(named).collect();
        self.save(&mut state)?;
        Ok(state)
    }

    /// Takes it out of such a state again; gives the network's part.
    pub fn apart(&mut self, start: &str, state: &State) -> Result<State> {
        let mut state = state.clone();
        self.load(&mut state)?;
        let own = |(name, tensor): (String, Tensor)| match name.strip_prefix(start) {
            Some(own) => (own.to_owned(), tensor),
            None => (name, tensor),
        };
        Ok(state.into_iter().map(own).collect())
    }

    /// Takes it out of a state again.
    pub fn load(&mut self, state: &mut State) -> Result<()> {
        let [ids, classes, seen] = [
            taken(state, IDS)?,
            taken(state, CLASSES)?,
            taken(state, SEEN)?,
        ];
        if ids.len() != classes.len() || seen.len() != 1 {
            let problem = format!(
                "`{IDS}` has {} values, `{CLASSES}` {} and `{SEEN}` {}; expected two of one length and one value",
                ids.len(),
                classes.len(),
                seen.len()
            );
            return Err(Error::State { problem });
        }
        self.lists.clear();
        self.places.clear();
        self.seen = seen[0];
        for (id, class) in ids.into_iter().zip(classes) {
            let class = class as u32;
            match self.memory.choice {
                Choice::Reservoir => self.places.push((id, class)),
                Choice::Herding | Choice::Random => self.lists.entry(class).or_default().push(id),
            }
        }
        Ok(())
    }
}

/// Images of one class of a task.
#[derive(Default)]
struct Found {
    ids: Vec<u64>,
    rows: Vec<f32>,
}

/// `(2, n)`: lower and higher digits.
fn counts(values: &[u64]) -> Result<Tensor> {
    let low = values.iter().map(|v| (v % DIGIT) as f32);
    let high = values.iter().map(|v| (v / DIGIT) as f32);
    let digits: Vec<f32> = low.chain(high).collect();
    Ok(Tensor::from_vec(digits, (2, values.len()), &Device::Cpu)?)
}

fn taken(state: &mut State, name: &str) -> Result<Vec<u64>> {
    let Some(tensor) = state.remove(name) else {
        return Err(Error::State {
            problem: format!("`{name}` is missing in the saved memory"),
        });
    };
    match tensor.dims() {
        [2, _] => {}
        dims => {
            return Err(Error::State {
                problem: format!("`{name}` has shape {dims:?}, expected [2, images]"),
            });
        }
    }
    let rows: Vec<Vec<f32>> = tensor.to_vec2()?;
    let value = |(low, high): (&f32, &f32)| *low as u64 + *high as u64 * DIGIT;
    Ok(rows[0].iter().zip(&rows[1]).map(value).collect())
}
