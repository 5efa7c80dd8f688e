//! Class-incremental streams: classes arrive in groups, in an order, and are numbered as they arrive.

use std::sync::Arc;

use candlewick_core::task::words;
use candlewick_core::{Scenario, Stream, Task, TaskInfo};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::loader::{ImageSplit, Loader};
use crate::order::Order;
use crate::source::Parts;

/// Which classes arrive when, as a recipe writes it: "B-m Inc-n", or a list of sizes.
///
/// ```
/// use candlewick_data::ClassIncremental;
/// let b50_inc10: ClassIncremental = toml::from_str("first = 50\nincrement = 10\norder = { numpy = 1993 }")?;
/// assert_eq!(b50_inc10.task_sizes(100).ok(), Some(vec![50, 10, 10, 10, 10, 10]));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassIncremental {
    /// Classes of the first task; 0 or omitted means as many as `increment`.
    #[serde(default)]
    pub first: usize,
    /// Classes of each further task; what remains at the end forms a smaller last task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub increment: Option<usize>,
    /// Classes of each task, one by one, instead of `first` and `increment`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sizes: Option<Vec<usize>>,
    /// The order in which the classes arrive.
    #[serde(default)]
    pub order: Order,
}

impl ClassIncremental {
    /// The number of classes of each task, for a data set of `classes` classes.
    ///
    /// # Errors
    /// [`Error::Setting`] for `increment`, `first` or `sizes`: when both or neither way is used, a task would
    /// be empty, or the sizes do not add up to `classes`.
    pub fn task_sizes(&self, classes: usize) -> Result<Vec<usize>> {
        match (&self.sizes, self.increment) {
            (Some(_), Some(_)) => Err(Error::setting(
                "sizes",
                "excludes `increment`: give one of the two",
            )),
            (Some(_), None) if self.first > 0 => Err(Error::setting(
                "sizes",
                "excludes `first`: give one of the two",
            )),
            (Some(sizes), None) => {
                if let Some(task) = sizes.iter().position(|size| *size == 0) {
                    let problem = format!("task {task} would have no classes; expected at least 1");
                    return Err(Error::setting("sizes", problem));
                }
                match sizes
                    .iter()
                    .try_fold(0usize, |sum, size| sum.checked_add(*size))
                {
                    Some(sum) if sum == classes => Ok(sizes.clone()),
                    sum => {
                        let sum = sum.map_or("far too many".into(), |sum| sum.to_string());
                        let problem =
                            format!("add up to {sum}, but the data set has {classes} classes");
                        Err(Error::setting("sizes", problem))
                    }
                }
            }
            (None, None) => {
                let problem =
                    "missing: give the number of classes of each task, or `sizes`, a list of them";
                Err(Error::setting("increment", problem))
            }
            (None, Some(0)) => Err(Error::setting(
                "increment",
                "expected at least 1 class, found 0",
            )),
            (None, Some(increment)) => {
                let first = if self.first == 0 {
                    increment
                } else {
                    self.first
                };
                if first > classes {
                    let key = if self.first == 0 {
                        "increment"
                    } else {
                        "first"
                    };
                    let problem = format!(
                        "the first task takes {first} classes, but the data set has {classes}"
                    );
                    return Err(Error::setting(key, problem));
                }
                let mut sizes = vec![first];
                let mut left = classes - first;
                while left > 0 {
                    sizes.push(increment.min(left));
                    left -= increment.min(left);
                }
                Ok(sizes)
            }
        }
    }
}

/// Puts a data set into a class-incremental stream.
///
/// The class at position `p` of the order gets label `p`, and task `t` holds consecutive labels. Within a split,
/// images are sorted by label and then as the source lists them. The id of an image is its index in
/// `parts.train`, or `parts.train.len()` plus its index in `parts.test`.
///
/// # Errors
/// [`Error::Setting`] when order or sizes do not fit the classes, [`Error::UnpairedClass`] when the parts do not
/// have the same classes, [`Error::Setting`] for `sizes` when a task would be without training or test images.
pub fn class_incremental(
    parts: &Parts,
    spec: &ClassIncremental,
    loader: &Loader,
) -> Result<Stream> {
    let classes = parts.train.classes();
    if classes != parts.test.classes() {
        return Err(unpaired(classes, parts.test.classes()));
    }
    let sizes = spec.task_sizes(classes.len())?;
    let order = spec.order.resolve(classes)?;
    let train = by_class(parts, true);
    let test = by_class(parts, false);
    let mut tasks = Vec::with_capacity(sizes.len());
    let mut start = 0;
    for (index, size) in sizes.into_iter().enumerate() {
        let labels = start..start + size;
        let split = |by_class: &[Vec<usize>], training: bool| -> Result<ImageSplit> {
            let (mut members, mut numbers) = (Vec::new(), Vec::new());
            for label in labels.clone() {
                let images = &by_class[order[label]];
                members.extend(images);
                numbers.extend(vec![label as u32; images.len()]);
            }
            let (name, source, first_id) = match training {
                true => ("training", &parts.train, 0),
                false => ("test", &parts.test, parts.train.len() as u64),
            };
            if members.is_empty() {
                let problem = format!("task {index} has no {name} images");
                return Err(Error::setting("sizes", problem));
            }
            loader.split(Arc::clone(source), members, numbers, first_id, index as u64)
        };
        let train = Arc::new(split(&train, true)?);
        let test = Arc::new(split(&test, false)?);
        let info = TaskInfo {
            index,
            classes: labels.clone(),
            names: labels
                .clone()
                .map(|label| words(&classes[order[label]]))
                .collect(),
            train_len: candlewick_core::Split::len(&*train),
            test_len: candlewick_core::Split::len(&*test),
        };
        tasks.push(Task { info, train, test });
        start = labels.end;
    }
    Ok(Stream {
        scenario: Scenario::ClassIncremental,
        tasks,
        class_names: order.iter().map(|class| classes[*class].clone()).collect(),
    })
}

/// The images of each class in the order of the source.
fn by_class(parts: &Parts, training: bool) -> Vec<Vec<usize>> {
    let source = if training { &parts.train } else { &parts.test };
    let mut images = vec![Vec::new(); source.classes().len()];
    for index in 0..source.len() {
        images[source.label(index)].push(index);
    }
    images
}

/// The first class that only one of two different lists has, or a difference in order.
pub(crate) fn unpaired(train: &[String], test: &[String]) -> Error {
    let lacking = |here: &[String], there: &[String], names: [&str; 2]| {
        here.iter()
            .find(|class| !there.contains(class))
            .map(|class| Error::UnpairedClass {
                class: class.clone(),
                here: names[0].into(),
                missing: names[1].into(),
            })
    };
    lacking(train, test, ["train", "test"])
        .or_else(|| lacking(test, train, ["test", "train"]))
        .unwrap_or_else(|| {
            Error::setting(
                "order",
                "training and test part list the same classes in different orders",
            )
        })
}
