//! Batches of a split: decoding ahead of the model, always in the same order.

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor};
use candlewick_core::{Batch, Batches, Split, View};
use serde::{Deserialize, Serialize};

use crate::ahead::Ahead;
use crate::draw::{self, Purpose};
use crate::error::{Error, Result};
use crate::source::Source;
use crate::transform::{Preprocess, Transform};

/// How many batches may lie ready, counted from the one being put together.
const BATCHES_AHEAD: usize = 2;

/// What to do about an image that cannot be decoded. A file that cannot be read is always an error.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnCorrupt {
    /// End the pass with an error that names the image.
    #[default]
    Stop,
    /// Leave the image out and note it, see [`Loader::skipped`].
    Skip,
}

/// Turns sources into splits; one loader serves all splits of a stream.
#[derive(Clone)]
pub struct Loader {
    transform: Arc<Transform>,
    threads: usize,
    on_corrupt: OnCorrupt,
    skipped: Arc<Mutex<BTreeSet<String>>>,
    /// False: batches of labels and ids alone.
    pixels: bool,
}

impl Loader {
    /// A loader that decodes at most `threads` images at a time. With 1, images are decoded when asked for, in
    /// the calling thread. With more, decoding is ahead of the caller by at most two batches (f32 images in
    /// memory). It is done by the threads of the caller's rayon pool, which candle computes in as well, and by
    /// the caller where its next image is not there; so the pool's size bounds the whole.
    ///
    /// # Errors
    /// [`Error::Setting`] for a field of `preprocess`, or `threads` when it is 0.
    pub fn new(preprocess: &Preprocess, threads: usize, on_corrupt: OnCorrupt) -> Result<Self> {
        if threads == 0 {
            return Err(Error::setting("threads", "expected at least 1, found 0"));
        }
        Ok(Self {
            transform: Arc::new(preprocess.check()?),
            threads,
            on_corrupt,
            skipped: Arc::default(),
            pixels: true,
        })
    }

    /// A loader whose batches have labels and ids, but no pixels (`(B, 3, 0, 0)`): for methods that read features which
    /// are there already. Nothing is read or decoded; images that were left out so far are left out.
    pub fn without_pixels(&self) -> Self {
        Self {
            pixels: false,
            ..self.clone()
        }
    }

    /// The checked preprocessing.
    pub fn transform(&self) -> &Transform {
        &self.transform
    }

    /// The names of the images that were left out so far, sorted; each is counted once, however many passes met it.
    pub fn skipped(&self) -> Vec<String> {
        held(&self.skipped).iter().cloned().collect()
    }

    /// Leaves an image out from now on, where pixels are not asked for.
    pub fn leave_out(&self, name: &str) {
        held(&self.skipped).insert(name.to_owned());
    }

    /// The split of the images `members` of `source`, in that order.
    ///
    /// `labels[k]` belongs to `members[k]`; the id of image `i` of the source is `first_id + i`;
    /// `task` only sets the shuffle apart from those of other tasks.
    ///
    /// # Errors
    /// [`Error::Setting`] for `members`, when it is not as long as `labels` or points behind the source.
    pub fn split(
        &self,
        source: Arc<dyn Source>,
        members: Vec<usize>,
        labels: Vec<u32>,
        first_id: u64,
        task: u64,
    ) -> Result<ImageSplit> {
        if members.len() != labels.len() {
            let problem = format!("{} images, but {} labels", members.len(), labels.len());
            return Err(Error::setting("members", problem));
        }
        if let Some(member) = members.iter().find(|member| **member >= source.len()) {
            let problem = format!(
                "image {member} of a source of {} (they count from 0)",
                source.len()
            );
            return Err(Error::setting("members", problem));
        }
        Ok(ImageSplit {
            loader: self.clone(),
            part: Arc::new(Part {
                source,
                members,
                labels,
                first_id,
                task,
            }),
        })
    }
}

/// The lock, also if a thread died with it: what it guards is whole between any two statements.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Part {
    source: Arc<dyn Source>,
    members: Vec<usize>,
    labels: Vec<u32>,
    first_id: u64,
    task: u64,
}

/// The training or test images of one task.
pub struct ImageSplit {
    loader: Loader,
    part: Arc<Part>,
}

impl Split for ImageSplit {
    fn len(&self) -> usize {
        self.part.members.len()
    }

    fn labels(&self) -> &[u32] {
        &self.part.labels
    }

    fn image_name(&self, id: u64) -> String {
        let index = id
            .checked_sub(self.part.first_id)
            .map(|index| index as usize);
        match index.filter(|index| *index < self.part.source.len()) {
            Some(index) => self.part.source.name(index),
            None => format!("image {id} of another split"),
        }
    }

    fn batches(&self, view: View, batch: usize) -> Batches<'_> {
        self.batches_behind(view, batch, 0)
    }

    /// Decodes none of what is behind.
    fn batches_behind(&self, view: View, batch: usize, done: usize) -> Batches<'_> {
        match Pass::new(self, view, batch, done) {
            Ok(pass) => Box::new(pass),
            Err(error) => Box::new(std::iter::once(Err(error.into()))),
        }
    }

    fn only(&self, ids: &[u64]) -> candlewick_core::Result<Arc<dyn Split>> {
        let wanted: BTreeSet<u64> = ids.iter().copied().collect();
        let part = &*self.part;
        let (members, labels) = part
            .members
            .iter()
            .zip(&part.labels)
            .filter(|(member, _)| wanted.contains(&(part.first_id + **member as u64)))
            .map(|(member, label)| (*member, *label))
            .unzip();
        let part = Part {
            source: Arc::clone(&part.source),
            members,
            labels,
            ..*part
        };
        Ok(Arc::new(Self {
            loader: self.loader.clone(),
            part: Arc::new(part),
        }))
    }
}

/// Everything that decides about the images of a pass; shared with the threads.
struct Plan {
    part: Arc<Part>,
    transform: Arc<Transform>,
    view: View,
    /// `order[p]` is the place in the part of the image that comes at position `p`.
    order: Vec<usize>,
}

impl Plan {
    fn member(&self, position: usize) -> usize {
        self.part.members[self.order[position]]
    }

    fn id(&self, position: usize) -> u64 {
        self.part.first_id + self.member(position) as u64
    }

    /// Decodes and transforms an image; a panic inside becomes an error, so that there is always something to hand
    /// over.
    fn image(&self, position: usize) -> Result<Vec<f32>> {
        let work = || {
            let image = self.part.source.rgb(self.member(position))?;
            Ok(match self.view {
                View::Plain => self.transform.plain(&image),
                View::Train { seed, epoch } => {
                    let mut rng =
                        draw::generator(Purpose::Augment, [seed, epoch, self.id(position)]);
                    self.transform.augmented(&image, &mut rng)
                }
            })
        };
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| (*text).to_string());
            Err(Error::Panic {
                name: self.part.source.name(self.member(position)),
                message: text
                    .or_else(|| panic.downcast_ref::<String>().cloned())
                    .unwrap_or_default(),
            })
        })
    }
}

struct Pass {
    plan: Arc<Plan>,
    ahead: Option<Ahead>,
    batch: usize,
    plain: bool,
    on_corrupt: OnCorrupt,
    skipped: Arc<Mutex<BTreeSet<String>>>,
    pixels: bool,
    position: usize,
    /// The first position.
    first: usize,
}

impl Pass {
    fn left_out(&self, position: usize) -> bool {
        let skipped = held(&self.skipped);
        !skipped.is_empty()
            && skipped.contains(&self.plan.part.source.name(self.plan.member(position)))
    }

    /// Behind the first `done` batches. Images of theirs that were left out are [known](Loader::skipped).
    fn new(split: &ImageSplit, view: View, batch: usize, done: usize) -> Result<Self> {
        if batch == 0 {
            return Err(Error::setting(
                "batch",
                "expected at least 1 image in a batch, found 0",
            ));
        }
        let loader = &split.loader;
        let mut order: Vec<usize> = (0..split.len()).collect();
        if let View::Train { seed, epoch } = view {
            let mut rng = draw::generator(Purpose::Shuffle, [seed, epoch, split.part.task]);
            draw::shuffle(&mut rng, &mut order);
        }
        let threads = match loader.pixels {
            true => loader.threads.min(order.len()),
            false => 0,
        };
        let plan = Arc::new(Plan {
            part: Arc::clone(&split.part),
            transform: Arc::clone(&loader.transform),
            view,
            order,
        });
        let mut pass = Self {
            ahead: None,
            batch,
            plain: view == View::Plain || loader.transform.trains_on_plain(),
            on_corrupt: loader.on_corrupt,
            skipped: Arc::clone(&loader.skipped),
            pixels: loader.pixels,
            position: 0,
            first: 0,
            plan,
        };
        let (mut left, total) = (done.saturating_mul(batch), pass.plan.order.len());
        while left > 0 && pass.position < total {
            left -= usize::from(!pass.left_out(pass.position));
            pass.position += 1;
        }
        pass.first = pass.position;
        pass.ahead = (threads > 1).then(|| {
            let window = BATCHES_AHEAD.saturating_mul(batch).max(threads);
            let (plan, first) = (Arc::clone(&pass.plan), pass.first);
            let decode = Box::new(move |position| plan.image(first + position));
            Ahead::start(decode, total - first, threads, window)
        });
        Ok(pass)
    }

    fn put_together(&mut self) -> candlewick_core::Result<Option<Batch>> {
        let (height, width) = match self.pixels {
            true => self.plan.transform.size(),
            false => (0, 0),
        };
        let total = self.plan.order.len();
        let expected = self.batch.min(total - self.position);
        let mut pixels = Vec::with_capacity(expected * 3 * height * width);
        let (mut labels, mut ids) = (Vec::with_capacity(expected), Vec::with_capacity(expected));
        while labels.len() < self.batch && self.position < total {
            let position = self.position;
            self.position += 1;
            let image = match &self.ahead {
                _ if !self.pixels && self.left_out(position) => continue,
                _ if !self.pixels => Ok(Vec::new()),
                Some(ahead) => ahead.take(position - self.first),
                None => self.plan.image(position),
            };
            match image {
                Ok(image) => {
                    pixels.extend_from_slice(&image);
                    labels.push(self.plan.part.labels[self.plan.order[position]]);
                    ids.push(self.plan.id(position));
                }
                Err(error) if self.on_corrupt == OnCorrupt::Skip && error.is_corrupt_image() => {
                    held(&self.skipped)
                        .insert(self.plan.part.source.name(self.plan.member(position)));
                }
                Err(error) => return Err(error.into()),
            }
        }
        if labels.is_empty() {
            return Ok(None);
        }
        Ok(Some(Batch {
            images: Tensor::from_vec(pixels, (labels.len(), 3, height, width), &Device::Cpu)?,
            labels,
            ids,
            plain: self.plain,
        }))
    }
}

impl Iterator for Pass {
    type Item = candlewick_core::Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.put_together().transpose();
        if !matches!(next, Some(Ok(_))) {
            self.position = self.plan.order.len();
            self.ahead = None;
        }
        next
    }
}
