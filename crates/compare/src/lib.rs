//! Runs and published results in one table, and what may be read from it.
//!
//! In continual learning on pretrained models a number depends on the tag of the weights, the pixels, the split, the class
//! order and the weighting of the metric, and papers differ in all of them. [`rule`] is what two results must share. A
//! [`Comparison`] applies it to [`Entry`]s, which are read from run directories ([`read`]) or from files of [`published`]
//! results, and marks every number that may not stand beside another. Between runs that may be compared it tests which
//! differences are more than chance ([`significance`]). [`mod@format`] writes the table, [`curve`] the figure.
//!
//! ```
//! use candlewick_compare::{Comparison, Published, format};
//!
//! let rows = Published::open("imagenet-r")?.rows;
//! let entries = rows.into_iter().map(|(_, entry)| entry).collect();
//! let comparison = Comparison::new(entries)?;
//! assert!(!comparison.is_plain(), "papers differ");
//! let table = format::markdown(&comparison);
//! assert!(table.contains("simplecil"));
//! # Ok::<(), candlewick_compare::Error>(())
//! ```

pub mod comparison;
pub mod curve;
pub mod entry;
pub mod error;
pub mod format;
pub mod paired;
mod predictions;
pub mod published;
mod read;
pub mod rule;
pub mod significance;
pub mod style;

pub use comparison::{Bar, Comparison, Group, Mark};
pub use entry::{Cell, Entry, Origin, Run};
pub use error::{Error, Result};
pub use predictions::Counts;
pub use published::{BUILT_IN, Published};
pub use read::{PREDICTIONS, REPORT, SUMMARY, SWEEP, read, read_report};
pub use rule::{Aspect, Difference, Fact, differences};
pub use significance::{Kind, Test, holm, mcnemar};
