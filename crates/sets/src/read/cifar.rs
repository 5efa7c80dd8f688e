//! CIFAR-10 and CIFAR-100 in their binary version (<https://www.cs.toronto.edu/~kriz/cifar.html>): records of one label byte
//! (two for CIFAR-100: superclass, class) and 3072 bytes of pixels.

use std::sync::Arc;

use candlewick_data::Result;

use super::pixels::{Pixels, Shape};
use super::{Part, Reader, Row, Table, numbered};
use crate::tree::{Tree, broken};

const SHAPE: Shape = Shape::Planes {
    width: 32,
    height: 32,
};

/// The records of a tree that has them.
pub(crate) struct Cifar {
    tree: Arc<dyn Tree>,
    files: Vec<(Part, usize)>,
    names: usize,
    /// Bytes of labels before the pixels; the last is the class.
    labels: usize,
}

/// Whether a file belongs to one of the sets.
pub(crate) fn wanted(name: &str) -> bool {
    let name = name.rsplit('/').next().unwrap_or(name);
    part(name).is_some() || name == "batches.meta.txt" || name == "fine_label_names.txt"
}

fn part(name: &str) -> Option<Part> {
    match name {
        "train.bin" => Some(Part::Train),
        "test.bin" | "test_batch.bin" => Some(Part::Test),
        _ => {
            let number = name.strip_prefix("data_batch_")?.strip_suffix(".bin")?;
            number.parse::<u8>().ok().map(|_| Part::Train)
        }
    }
}

impl Cifar {
    /// The binary files among those of a tree; `None` where there are none.
    ///
    /// # Errors
    /// When their names of classes are missing, or files of both sets lie together.
    pub(crate) fn of(tree: Arc<dyn Tree>) -> Result<Option<Self>> {
        let base = |i: usize| {
            let name = &tree.entries()[i].name;
            name.rsplit('/').next().unwrap_or(name)
        };
        let mut files: Vec<(Part, usize)> = (0..tree.entries().len())
            .filter_map(|i| Some((part(base(i))?, i)))
            .collect();
        files.sort_by_key(|(part, i)| (*part, base(*i).to_owned()));
        if files.is_empty() {
            return Ok(None);
        }
        let hundred = |i: usize| matches!(base(i), "train.bin" | "test.bin");
        let of_100 = files.iter().filter(|(_, i)| hundred(*i)).count();
        if of_100 != 0 && of_100 != files.len() {
            return Err(broken(
                tree.path(),
                "files of CIFAR-10 and of CIFAR-100 lie together; give each a folder of its own",
            ));
        }
        let (labels, wanted) = match of_100 {
            0 => (1, "batches.meta.txt"),
            _ => (2, "fine_label_names.txt"),
        };
        let Some(names) = (0..tree.entries().len()).find(|i| base(*i) == wanted) else {
            let problem = format!(
                "there are CIFAR records but not `{wanted}`, which names their classes; it comes in the same archive"
            );
            return Err(broken(tree.path(), problem));
        };
        Ok(Some(Self {
            files,
            names,
            labels,
            tree,
        }))
    }

    fn all(&self, entry: usize) -> Result<Vec<u8>> {
        let size = self.tree.entries()[entry].size as usize;
        self.tree.read(entry, 0, size)
    }
}

impl Reader for Cifar {
    fn table(&self) -> Result<Table> {
        let tree = &self.tree;
        let text = self.all(self.names)?;
        let classes: Vec<String> = String::from_utf8_lossy(&text)
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .map(str::to_owned)
            .collect();
        let record = self.labels + SHAPE.bytes();
        let (mut rows, mut places) = (Vec::new(), Vec::new());
        let mut counted = [0; 2];
        for (part, entry) in &self.files {
            let size = tree.entries()[*entry].size;
            if size == 0 || !size.is_multiple_of(record as u64) {
                let problem = format!(
                    "{} has {size} bytes, expected a multiple of {record}, the length of a record; it is cut off or another file",
                    tree.place(*entry)
                );
                return Err(broken(tree.path(), problem));
            }
            // The labels lie between the pixels, so the file is read whole, once.
            let bytes = self.all(*entry)?;
            for (i, labels) in bytes.chunks_exact(record).enumerate() {
                let class = usize::from(labels[self.labels - 1]);
                if class >= classes.len() {
                    let problem = format!(
                        "record {i} of {} has class {class}, but only {} classes have names; is it the file of another set?",
                        tree.place(*entry),
                        classes.len()
                    );
                    return Err(broken(tree.path(), problem));
                }
                let number = &mut counted[usize::from(*part == Part::Test)];
                rows.push(Row {
                    part: *part,
                    class,
                    rest: numbered(*number),
                    size: SHAPE.bytes() as u64,
                    at: places.len(),
                });
                *number += 1;
                places.push((*entry, (i * record + self.labels) as u64));
            }
        }
        Ok(Table {
            root: tree.path().into(),
            classes,
            rows,
            bytes: Arc::new(Pixels {
                tree: tree.clone(),
                shape: SHAPE,
                places,
            }),
        })
    }
}
