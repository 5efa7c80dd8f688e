//! From files to images: every reader makes a [`Table`] of rows, and a table becomes the two parts of a data set.

mod cifar;
mod idx;
mod images;
mod parquet;
mod pixels;

use std::cmp::Ordering;
use std::path::PathBuf;
use std::sync::Arc;

use candlewick_data::{Bytes, Error, Item, Listing, Parts, Result, TestSplit};
use serde::{Deserialize, Serialize};

pub(crate) use cifar::{Cifar, wanted as is_cifar};
pub(crate) use idx::{Idx, wanted as is_idx};
pub(crate) use images::{Images, part_of, root_of};
pub(crate) use parquet::Parquet;

use crate::tree::broken;

/// The parts that a data set may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Part {
    Train,
    Test,
    Val,
    /// Not divided.
    Whole,
}

impl Part {
    /// By the name of a folder or a shard.
    pub(crate) fn named(name: &str) -> Option<Self> {
        match name {
            "train" | "training" => Some(Self::Train),
            "test" => Some(Self::Test),
            "val" | "valid" | "validation" => Some(Self::Val),
            _ => None,
        }
    }

    /// As the folder is called.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Test => "test",
            Self::Val => "val",
            Self::Whole => "",
        }
    }
}

/// How the paths of images say what they are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// `CLASS/FILE`, maybe below `train` and `test`.
    #[default]
    #[serde(rename = "class")]
    Class,
    /// `DOMAIN/CLASS/FILE`; images are named `CLASS/DOMAIN/FILE`, so that `domain = "folder"` of a stream finds them.
    #[serde(rename = "domain/class")]
    DomainClass,
}

/// How a source is read, where its files do not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reading {
    /// The column of images in a table; its only column of images where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The column of classes in a table: numbers with names in the table's own schema, or names; its only column of class
    /// labels where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How paths say class and domain.
    #[serde(default, skip_serializing_if = "is_default")]
    pub layout: Layout,
    /// Domains whose images are for testing; with `layout = "domain/class"`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test_domains: Vec<String>,
    /// Files beside the archives that list the training images: a path a line, its first word. What no list names is passed
    /// over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub train_lists: Vec<String>,
    /// Files that list the test images.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test_lists: Vec<String>,
}

fn is_default(layout: &Layout) -> bool {
    *layout == Layout::default()
}

/// One image before it has its place.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub part: Part,
    /// A position in the table's classes.
    pub class: usize,
    /// Below the class.
    pub rest: String,
    pub size: u64,
    pub at: usize,
}

/// What a reader finds.
pub(crate) struct Table {
    /// What names the data set in messages.
    pub root: PathBuf,
    /// In natural order; some may have no images.
    pub classes: Vec<String>,
    pub rows: Vec<Row>,
    pub bytes: Arc<dyn Bytes>,
}

/// Something that images are read from.
pub(crate) trait Reader {
    /// All images that are there, in any order.
    fn table(&self) -> Result<Table>;
}

impl Table {
    /// The two parts, as the folders `train/CLASS` and `test/CLASS` (or `CLASS`, to be divided) with the same files would be.
    pub(crate) fn parts(mut self, split: Option<&TestSplit>) -> Result<Parts> {
        let has = |part| self.rows.iter().any(|row| row.part == part);
        if let Some(split) = split {
            if has(Part::Train) && (has(Part::Test) || has(Part::Val)) {
                let problem = format!(
                    "{} is divided already into training and test; remove it",
                    self.root.display()
                );
                return Err(Error::setting("split", problem));
            }
            for row in &mut self.rows {
                row.part = Part::Whole;
            }
            return self.listing(Part::Whole)?.divide(split);
        }
        let test = match has(Part::Test) || !has(Part::Val) {
            true => Part::Test,
            false => Part::Val,
        };
        let missing = [Part::Train, test].into_iter().find(|part| !has(*part));
        if let Some(missing) = missing {
            let problem = match self.rows.iter().all(|row| row.part == Part::Whole) {
                true => {
                    "its images are not divided into training and test; set `data.split`".into()
                }
                false => format!(
                    "it has no part `{}`; set `data.split` to divide what is there",
                    missing.name()
                ),
            };
            return Err(broken(&self.root, problem));
        }
        self.rows
            .retain(|row| row.part == Part::Train || row.part == test);
        // Classes that no image has would be learned from nothing.
        let mut used = vec![false; self.classes.len()];
        self.rows.iter().for_each(|row| used[row.class] = true);
        self.keep(&used);
        let [train, tested] = [self.listing(Part::Train)?, self.listing(test)?];
        Listing::paired(train, tested, ["train", test.name()])
    }

    fn keep(&mut self, used: &[bool]) {
        let mut places = Vec::with_capacity(used.len());
        let mut next = 0;
        for used in used {
            places.push(next);
            next += usize::from(*used);
        }
        let mut used = used.iter();
        self.classes
            .retain(|_| used.next().copied().unwrap_or(false));
        for row in &mut self.rows {
            row.class = places[row.class];
        }
    }

    /// The images of one part, class by class and as a walk through folders meets them.
    fn listing(&mut self, part: Part) -> Result<Listing> {
        if part == Part::Whole {
            let mut used = vec![false; self.classes.len()];
            self.rows.iter().for_each(|row| used[row.class] = true);
            self.keep(&used);
        }
        let mut rows: Vec<&Row> = self.rows.iter().filter(|row| row.part == part).collect();
        if rows.is_empty() {
            return Err(broken(&self.root, "there are no images in it"));
        }
        rows.sort_by(|a, b| (a.class.cmp(&b.class)).then_with(|| walk_order(&a.rest, &b.rest)));
        let same = |pair: &&[&Row]| pair[0].class == pair[1].class && pair[0].rest == pair[1].rest;
        if let Some(pair) = rows.windows(2).find(same) {
            let problem = format!(
                "`{}` of class `{}` is in it twice; each image needs a name of its own",
                pair[0].rest, self.classes[pair[0].class]
            );
            return Err(broken(&self.root, problem));
        }
        let items = rows.into_iter().map(|row| {
            // A slash in the name of a class would be read as a folder.
            let class = self.classes[row.class].replace('/', "-");
            let name = match part {
                Part::Whole => format!("{class}/{}", row.rest),
                part => format!("{}/{class}/{}", part.name(), row.rest),
            };
            Item {
                name,
                label: row.class,
                size: row.size,
                at: row.at,
            }
        });
        let items = items.collect();
        Listing::new(&self.root, self.classes.clone(), items, self.bytes.clone())
    }
}

/// The order in which [`candlewick_data::Folder`] meets files: those of a folder by name, then those of each folder inside.
fn walk_order(a: &str, b: &str) -> Ordering {
    match (a.split_once('/'), b.split_once('/')) {
        (None, None) => a.cmp(b),
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some((a, below_a)), Some((b, below_b))) => {
            a.cmp(b).then_with(|| walk_order(below_a, below_b))
        }
    }
}

/// The name of an image that has none: its number within its part.
fn numbered(number: usize) -> String {
    format!("{number:06}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_before_the_folders_beside_them() {
        let mut names = ["b/1", "a/2", "c", "a/b/1", "a/a", "10", "9"];
        names.sort_by(|a, b| walk_order(a, b));
        assert_eq!(names, ["10", "9", "c", "a/2", "a/a", "a/b/1", "b/1"]);
    }
}
