//! How a data set that comes in one piece is divided into training and test.
//!
//! ImageNet-R comes without a division, and published numbers are of several; none compares with another to the decimal.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use md5::Md5;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::listing::{Item, Listing};
use crate::order::Mt19937;
use crate::source::Parts;

/// Which division.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Of each class the images with the smallest SHA-256 of seed and name, `round(test_fraction · n)` of them but at least
    /// one on either side. The same on every machine and whatever other classes there are; a file that is missing moves at most
    /// one other of its class.
    #[default]
    Stratified,
    /// Of all images together, as `torch.utils.data.random_split` after `torch.manual_seed(seed)`: the last of
    /// `torch.randperm(n)` are for testing. What the PyTorch ports of L2P and DualPrompt do.
    Random,
    /// The last of all images in the order of TensorFlow Datasets, by MD5 of `"test"` and `CLASS_FILE`: what
    /// `google-research/l2p` takes of ImageNet-R (`tensorflow/datasets:core/shuffle.py`, `core/hashing.py`,
    /// `datasets/imagenet_r`).
    L2p,
    /// As two files list it. For ImageNet-R, `dataloaders/splits/imagenet-r_train.yaml` and `_test.yaml` of
    /// `GT-RIPL/CODA-Prompt`, which `aimagelab/mammoth` has too, are `coda`.
    #[serde(alias = "coda")]
    Lists,
}

/// `data.split` of a recipe.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TestSplit {
    /// Which division; `stratified` where left out.
    #[serde(default)]
    pub kind: Kind,
    /// The part that is held for testing, between 0 and 1; 0.2 where left out. Not for lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_fraction: Option<f64>,
    /// Of the draw; 0 where left out. Not for `l2p` and lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The list of training images: a path a line, its first word, below the root or not; or YAML with `data`, and with `targets` if
    /// these are the natural order of classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train: Option<PathBuf>,
    /// The list of test images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test: Option<PathBuf>,
}

impl TestSplit {
    /// Divides all images of a data set.
    ///
    /// # Errors
    /// [`Error::Setting`] for a key that is out of range or of another kind, [`Error::CannotSplit`], [`Error::UnpairedClass`],
    /// and [`Error::List`] for what a list names and the data set lacks.
    pub(crate) fn divide(&self, all: Listing) -> Result<Parts> {
        self.check()?;
        let held = match self.kind {
            Kind::Stratified => self.stratified(&all)?,
            Kind::Random => self.last_of(torch_permutation(self.seed(), all.items.len())),
            Kind::L2p => self.last_of(tfds_order(&all)),
            Kind::Lists => return self.listed(all),
        };
        let (test, train): (Vec<_>, Vec<_>) = (0..all.items.len()).partition(|i| held[*i]);
        parts(&all, all.classes.clone(), &all.items, [train, test])
    }

    fn check(&self) -> Result<()> {
        let of_lists = [
            ("train", self.train.is_some()),
            ("test", self.test.is_some()),
        ];
        let of_draws = [
            ("test_fraction", self.test_fraction.is_some()),
            ("seed", self.seed.is_some()),
        ];
        let (needed, other): (&[_], &[_]) = match self.kind {
            Kind::Lists => (&of_lists, &of_draws),
            Kind::L2p => (&[], &[of_lists[0], of_lists[1], of_draws[1]]),
            _ => (&[], &of_lists),
        };
        if let Some((key, _)) = needed.iter().find(|(_, given)| !given) {
            let problem = "missing: a division by lists needs the files `train` and `test`";
            return Err(Error::setting(format!("split.{key}"), problem));
        }
        if let Some((key, _)) = other.iter().find(|(_, given)| *given) {
            let kind = format!("{:?}", self.kind).to_lowercase();
            let problem = format!("has no effect with kind = \"{kind}\"; remove it");
            return Err(Error::setting(format!("split.{key}"), problem));
        }
        let fraction = self.test_fraction();
        if !(0.0 < fraction && fraction < 1.0) {
            let problem = format!("expected a number between 0 and 1, found {fraction}");
            return Err(Error::setting("split.test_fraction", problem));
        }
        Ok(())
    }

    fn test_fraction(&self) -> f64 {
        self.test_fraction.unwrap_or(0.2)
    }

    fn seed(&self) -> u64 {
        self.seed.unwrap_or(0)
    }

    fn stratified(&self, all: &Listing) -> Result<Vec<bool>> {
        let mut held = vec![false; all.items.len()];
        let mut first = 0;
        for files in all.items.chunk_by(|a, b| a.label == b.label) {
            if files.len() < 2 {
                return Err(Error::CannotSplit {
                    path: all.root.join(&all.classes[files[0].label]),
                    found: files.len(),
                });
            }
            let rank = |file: &Item| {
                let mut hash = Sha256::new();
                hash.update(self.seed().to_le_bytes());
                hash.update(file.name.as_bytes());
                hash.finalize()
            };
            let mut order: Vec<usize> = (0..files.len()).collect();
            order.sort_by_cached_key(|i| rank(&files[*i]));
            let wanted = (files.len() as f64 * self.test_fraction()).round() as usize;
            for index in &order[..wanted.clamp(1, files.len() - 1)] {
                held[first + index] = true;
            }
            first += files.len();
        }
        Ok(held)
    }

    /// True for the images behind the training part of an order.
    fn last_of(&self, order: Vec<usize>) -> Vec<bool> {
        let share = (1.0 - self.test_fraction()) * order.len() as f64;
        let train = match self.kind {
            // `int(0.8 * n)`, and tfds rounds a percentage.
            Kind::Random => share as usize,
            _ => share.round() as usize,
        };
        let mut held = vec![true; order.len()];
        for index in &order[..train] {
            held[*index] = false;
        }
        held
    }

    fn listed(&self, all: Listing) -> Result<Parts> {
        let lists = [&self.train, &self.test].map(|path| path.clone().unwrap_or_default());
        let mut index: HashMap<&str, usize> = HashMap::new();
        for (i, file) in all.items.iter().enumerate() {
            index.insert(&file.name, i);
        }
        let mut taken = HashSet::new();
        let mut targets: HashMap<usize, i64> = HashMap::new();
        let mut sides = [Vec::new(), Vec::new()];
        for (path, side) in lists.iter().zip(&mut sides) {
            let list = List::read(path)?;
            let problem = |problem: String| Error::List {
                path: path.clone(),
                problem,
            };
            let mut missing = Vec::new();
            for (k, entry) in list.data.iter().enumerate() {
                let Some(&image) = index.get(tail(entry, &index)) else {
                    missing.push(entry.as_str());
                    continue;
                };
                if !taken.insert(image) {
                    return Err(problem(format!(
                        "`{entry}` is listed twice; each image has one place"
                    )));
                }
                side.push(image);
                if let Some(target) = list.targets.get(k) {
                    let class = all.items[image].label;
                    if targets
                        .insert(class, *target)
                        .is_some_and(|other| other != *target)
                    {
                        let class = &all.classes[class];
                        return Err(problem(format!("class `{class}` has several targets")));
                    }
                }
            }
            if let Some(first) = missing.first() {
                return Err(problem(format!(
                    "{} of {} images are not in {}, the first is `{first}`; is the data set complete, and the list of this one?",
                    missing.len(),
                    list.data.len(),
                    all.root.display()
                )));
            }
            side.sort_unstable();
        }
        // The classes that are listed, in the order of their targets, else by name.
        let mut classes: Vec<usize> = (0..all.classes.len()).collect();
        classes.retain(|class| {
            let has = |side: &Vec<usize>| side.iter().any(|i| all.items[*i].label == *class);
            sides.iter().any(has)
        });
        classes.sort_by_key(|class| targets.get(class).copied());
        let places: HashMap<usize, usize> = classes
            .iter()
            .enumerate()
            .map(|(at, class)| (*class, at))
            .collect();
        let mut files = all.items.clone();
        for file in &mut files {
            file.label = places.get(&file.label).copied().unwrap_or(0);
        }
        for side in &mut sides {
            side.sort_by_key(|i| (files[*i].label, *i));
        }
        let names = classes.iter().map(|class| all.classes[*class].clone());
        parts(&all, names.collect(), &files, sides)
    }
}

/// What a list holds.
#[derive(Deserialize)]
struct List {
    data: Vec<String>,
    /// A number for the class of each image; none in a list of lines.
    #[serde(default)]
    targets: Vec<i64>,
}

impl List {
    fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path).map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
        let problem = |problem: String| Error::List {
            path: path.into(),
            problem,
        };
        let yaml = path.extension().is_some_and(|ending| {
            ending.eq_ignore_ascii_case("yaml") || ending.eq_ignore_ascii_case("yml")
        });
        let list = match yaml {
            true => serde_saphyr::from_str::<Self>(&text).map_err(|e| {
                problem(format!(
                    "expected YAML with lists `data` and `targets`: {e}"
                ))
            })?,
            false => Self {
                data: text
                    .lines()
                    .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
                    .collect(),
                targets: Vec::new(),
            },
        };
        if list.data.is_empty() {
            return Err(problem("names no image".into()));
        }
        if !list.targets.is_empty() && list.targets.len() != list.data.len() {
            return Err(problem(format!(
                "has {} targets for {} images",
                list.targets.len(),
                list.data.len()
            )));
        }
        Ok(list)
    }
}

/// The part of a path that names an image of the data set: lists are written where the root had another name.
fn tail<'a>(entry: &'a str, index: &HashMap<&str, usize>) -> &'a str {
    let mut rest = entry;
    while !index.contains_key(rest) {
        match rest.split_once('/') {
            Some((_, below)) => rest = below,
            None => return entry,
        }
    }
    rest
}

fn parts(
    all: &Listing,
    classes: Vec<String>,
    items: &[Item],
    sides: [Vec<usize>; 2],
) -> Result<Parts> {
    let [train, test] = sides.map(|side| Listing {
        root: all.root.clone(),
        classes: classes.clone(),
        items: side.into_iter().map(|i| items[i].clone()).collect(),
        bytes: all.bytes.clone(),
    });
    Listing::paired(train, test, ["the training part", "the test part"])
}

/// `torch.manual_seed(seed); torch.randperm(n)` on the CPU, for `n` below 2³²/20: the seed's lower half starts the Mersenne
/// Twister, and each place is swapped with one at or behind it (`pytorch/pytorch:aten/src/ATen/native/TensorFactories.cpp`).
pub fn torch_permutation(seed: u64, n: usize) -> Vec<usize> {
    let mut generator = Mt19937::numpy(seed as u32);
    let mut order: Vec<usize> = (0..n).collect();
    for i in 0..n.saturating_sub(1) {
        let ahead = generator.next_u32() as usize % (n - i);
        order.swap(i, i + ahead);
    }
    order
}

/// All images by MD5 of the split's name and `CLASS_FILE`.
fn tfds_order(all: &Listing) -> Vec<usize> {
    let mut order: Vec<usize> = (0..all.items.len()).collect();
    order.sort_by_cached_key(|i| {
        let file = &all.items[*i];
        let name = file.name.rsplit('/').next().unwrap_or(&file.name);
        let mut hash = Md5::new();
        hash.update(b"test");
        hash.update(all.classes[file.label].as_bytes());
        hash.update(b"_");
        hash.update(name.as_bytes());
        hash.finalize()
    });
    order
}
