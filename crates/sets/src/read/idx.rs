//! IDX files as MNIST and Fashion-MNIST have them (<http://yann.lecun.com/exdb/mnist/>): `train-images-idx3-ubyte`,
//! `train-labels-idx1-ubyte` and the same with `t10k`, gzipped or not.

use std::sync::Arc;

use candlewick_data::Result;

use super::pixels::{Pixels, Shape};
use super::{Part, Reader, Row, Table, numbered};
use crate::tree::{Tree, broken};

/// The four files.
pub(crate) struct Idx {
    tree: Arc<dyn Tree>,
    /// Part, images, labels.
    pairs: Vec<(Part, usize, usize)>,
    /// Names of the classes; their numbers where there are none.
    names: Vec<String>,
}

/// Whether a file is one of these.
pub(crate) fn wanted(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    part(name.strip_suffix(".gz").unwrap_or(name)).is_some()
}

/// The part, and whether images.
fn part(name: &str) -> Option<(Part, bool)> {
    // Some unpackers write a dot for the second dash.
    let name = name.replace(".idx", "-idx");
    let (part, rest) = name.split_once('-')?;
    let part = match part {
        "train" => Part::Train,
        "t10k" | "test" => Part::Test,
        _ => return None,
    };
    match rest {
        "images-idx3-ubyte" => Some((part, true)),
        "labels-idx1-ubyte" => Some((part, false)),
        _ => None,
    }
}

impl Idx {
    /// The IDX files among those of a tree; `None` where there are none.
    ///
    /// # Errors
    /// Images without labels or the other way round.
    pub(crate) fn of(tree: Arc<dyn Tree>, names: &[String]) -> Result<Option<Self>> {
        let mut pairs = Vec::new();
        for wanted in [Part::Train, Part::Test] {
            let find = |images: bool| {
                tree.entries().iter().position(|entry| {
                    let name = entry.name.rsplit('/').next().unwrap_or(&entry.name);
                    part(name) == Some((wanted, images))
                })
            };
            match (find(true), find(false)) {
                (Some(images), Some(labels)) => pairs.push((wanted, images, labels)),
                (None, None) => {}
                (found, _) => {
                    let (has, lacks) = match found {
                        Some(_) => ("images", "labels-idx1-ubyte"),
                        None => ("labels", "images-idx3-ubyte"),
                    };
                    let file = if wanted == Part::Train {
                        "train"
                    } else {
                        "t10k"
                    };
                    let problem =
                        format!("there are {has} of the part `{file}`, but not `{file}-{lacks}`");
                    return Err(broken(tree.path(), problem));
                }
            }
        }
        Ok((!pairs.is_empty()).then(|| Self {
            tree,
            pairs,
            names: names.to_vec(),
        }))
    }

    /// The dimensions of a file, after its magic number has been held against `expected` and its size against them.
    fn header(&self, entry: usize, expected: u8) -> Result<Vec<u32>> {
        let size = self.tree.entries()[entry].size;
        let len = 4 + 4 * u64::from(expected);
        let wrong = |found: String| {
            let problem = format!(
                "{}: expected an IDX file of unsigned bytes with {expected} dimensions, found {found}",
                self.tree.place(entry)
            );
            broken(self.tree.path(), problem)
        };
        if size < len {
            return Err(wrong(format!("{size} bytes")));
        }
        let head = self.tree.read(entry, 0, len as usize)?;
        if head[..4] != [0, 0, 8, expected] {
            return Err(wrong(format!(
                "the beginning `{}`",
                head[..4].escape_ascii()
            )));
        }
        let dims: Vec<u32> = head[4..]
            .chunks_exact(4)
            .map(|d| d.iter().fold(0, |n, byte| n << 8 | u32::from(*byte)))
            .collect();
        let stated = dims
            .iter()
            .try_fold(1u64, |n, d| n.checked_mul(u64::from(*d)));
        if stated.and_then(|n| n.checked_add(len)) != Some(size) {
            return Err(wrong(format!(
                "{size} bytes for the dimensions {dims:?}; it is cut off, fetch it again"
            )));
        }
        Ok(dims)
    }
}

impl Reader for Idx {
    fn table(&self) -> Result<Table> {
        let (mut rows, mut places, mut shape) = (Vec::new(), Vec::new(), None);
        let mut classes = self.names.clone();
        for (part, images, labels) in &self.pairs {
            let (dims, count) = (self.header(*images, 3)?, self.header(*labels, 1)?[0]);
            let problem = |problem: String| broken(self.tree.path(), problem);
            let (width, height) = (dims[2], dims[1]);
            if dims[0] != count {
                return Err(problem(format!(
                    "{} images have {count} labels in the part `{}`",
                    dims[0],
                    part.name()
                )));
            }
            let found = Shape::Gray { width, height };
            if *shape.get_or_insert(found) != found {
                return Err(problem("its parts have images of different sizes".into()));
            }
            for (i, label) in self
                .tree
                .read(*labels, 8, count as usize)?
                .iter()
                .enumerate()
            {
                let class = usize::from(*label);
                if class >= classes.len() {
                    if !self.names.is_empty() {
                        return Err(problem(format!(
                            "label {i} of the part `{}` is {class}, but there are only {} classes",
                            part.name(),
                            classes.len()
                        )));
                    }
                    classes.extend((classes.len()..=class).map(|n| n.to_string()));
                }
                rows.push(Row {
                    part: *part,
                    class,
                    rest: numbered(i),
                    size: found.bytes() as u64,
                    at: places.len(),
                });
                places.push((*images, 16 + (i * found.bytes()) as u64));
            }
        }
        let none = Shape::Gray {
            width: 0,
            height: 0,
        };
        Ok(Table {
            root: self.tree.path().into(),
            classes,
            rows,
            bytes: Arc::new(Pixels {
                tree: self.tree.clone(),
                shape: shape.unwrap_or(none),
                places,
            }),
        })
    }
}
