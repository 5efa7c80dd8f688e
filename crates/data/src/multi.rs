//! Multi-domain streams: several data sets, each a task with classes of its own (ZSCL's MTIL).

use std::collections::BTreeSet;
use std::sync::Arc;

use candlewick_core::task::words;
use candlewick_core::{Scenario, Stream};
use image::RgbImage;

use crate::error::{Error, Result};
use crate::loader::Loader;
use crate::order::Order;
use crate::source::{Parts, Source, fingerprint};
use crate::stream::{ClassIncremental, class_incremental, unpaired};

/// Several data sets put behind each other as one, so that ids and names are unique over all: the class `cat` of the set `pets`
/// is `pets/cat`, its image `train/cat/1.png` is `pets/train/cat/1.png`.
#[derive(Clone)]
pub struct Several {
    parts: Parts,
    names: Vec<String>,
    /// Classes of each set, as it calls them.
    classes: Vec<Vec<String>>,
}

impl Several {
    /// Of sets by their names, in this order.
    ///
    /// # Errors
    /// [`Error::Setting`] for `sets`, when there is none, two have one name, or one is without training or test images;
    /// [`Error::UnpairedClass`] when the parts of one do not have the same classes.
    pub fn new(sets: Vec<(String, Parts)>) -> Result<Self> {
        let refuse = |problem: String| Err(Error::setting("sets", problem));
        if sets.is_empty() {
            return refuse("expected at least one data set, found none".into());
        }
        let mut seen = BTreeSet::new();
        for (name, parts) in &sets {
            if !seen.insert(name) {
                return refuse(format!(
                    "two are called `{name}`; give one of them another label"
                ));
            }
            if parts.train.classes() != parts.test.classes() {
                return Err(unpaired(parts.train.classes(), parts.test.classes()));
            }
            for (what, part) in [("training", &parts.train), ("test", &parts.test)] {
                if part.is_empty() {
                    return refuse(format!(
                        "`{name}` has no {what} images; a set is learned and tested"
                    ));
                }
            }
        }
        let part = |of: fn(&Parts) -> &Arc<dyn Source>| -> Arc<dyn Source> {
            let sources = sets.iter().map(|(name, parts)| (name, of(parts)));
            Arc::new(Row::new(sources))
        };
        Ok(Self {
            parts: Parts {
                train: part(|parts| &parts.train),
                test: part(|parts| &parts.test),
            },
            classes: sets
                .iter()
                .map(|(_, parts)| parts.train.classes().to_vec())
                .collect(),
            names: sets.into_iter().map(|(name, _)| name).collect(),
        })
    }

    /// All images: the training parts behind each other, and the test parts.
    pub fn parts(&self) -> &Parts {
        &self.parts
    }

    /// The names of the sets.
    pub fn names(&self) -> &[String] {
        &self.names
    }
}

/// Puts data sets into a multi-domain stream: a task for each, in `order` of the sets, its classes in natural order.
///
/// Ids are those of [`class_incremental`] over all sets. [`TaskInfo::names`](candlewick_core::TaskInfo::names) are the classes
/// as their set calls them.
///
/// # Errors
/// [`Error::Setting`] for `order`.
pub fn multi_domain(several: &Several, order: &Order, loader: &Loader) -> Result<Stream> {
    let sets = order.resolve_of(&several.names, ["data set", "data sets"])?;
    let size = |set: &usize| several.classes[*set].len();
    let first = |set: usize| (0..set).map(|earlier| size(&earlier)).sum::<usize>();
    let classes = sets
        .iter()
        .flat_map(|set| first(*set)..first(*set) + size(set));
    let spec = ClassIncremental {
        sizes: Some(sets.iter().map(size).collect()),
        order: Order::Positions(classes.collect()),
        ..ClassIncremental::default()
    };
    let mut stream = class_incremental(&several.parts, &spec, loader)?;
    for (task, set) in stream.tasks.iter_mut().zip(&sets) {
        let classes = several.classes[*set].iter();
        task.info.names = classes.map(|class| words(class)).collect();
    }
    let names = sets.iter().map(|set| several.names[*set].clone());
    stream.scenario = Scenario::MultiDomain(names.collect());
    Ok(stream)
}

/// Sources behind each other.
struct Row {
    names: Vec<String>,
    sources: Vec<Arc<dyn Source>>,
    /// The first image and the first class of each.
    first: Vec<(usize, usize)>,
    classes: Vec<String>,
}

impl Row {
    fn new<'a>(sources: impl Iterator<Item = (&'a String, &'a Arc<dyn Source>)>) -> Self {
        let mut row = Self {
            names: Vec::new(),
            sources: Vec::new(),
            first: Vec::new(),
            classes: Vec::new(),
        };
        let mut images = 0;
        for (name, source) in sources {
            row.first.push((images, row.classes.len()));
            let classes = source.classes().iter();
            row.classes
                .extend(classes.map(|class| format!("{name}/{class}")));
            images += source.len();
            row.names.push(name.clone());
            row.sources.push(Arc::clone(source));
        }
        row
    }

    /// The set of an image, and its place there. A set without images is never it.
    fn at(&self, index: usize) -> (usize, usize) {
        let set = self.first.partition_point(|(first, _)| *first <= index) - 1;
        (set, index - self.first[set].0)
    }
}

impl Source for Row {
    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn len(&self) -> usize {
        self.sources.iter().map(|source| source.len()).sum()
    }

    fn label(&self, index: usize) -> usize {
        let (set, index) = self.at(index);
        self.first[set].1 + self.sources[set].label(index)
    }

    fn name(&self, index: usize) -> String {
        let (set, index) = self.at(index);
        format!("{}/{}", self.names[set], self.sources[set].name(index))
    }

    fn rgb(&self, index: usize) -> Result<RgbImage> {
        let (set, index) = self.at(index);
        self.sources[set].rgb(index)
    }

    fn content(&self, index: usize) -> Result<[u8; 32]> {
        let (set, index) = self.at(index);
        self.sources[set].content(index)
    }

    fn fingerprint(&self) -> String {
        let sources = self.sources.iter().map(|source| source.fingerprint());
        let digests: Vec<String> = sources.collect();
        let sets = self.names.iter().zip(digests).enumerate();
        let sets = sets.map(|(set, (name, digest))| (name.as_str(), set, digest.into_bytes()));
        fingerprint(&self.classes, sets)
    }
}
