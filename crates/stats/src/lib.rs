//! Statistics of features that can be added up, and what is solved from them.
//!
//! Everything here is made of sums over images: class means ([`Means`]), scatter matrices ([`Moments`]), Gram matrices and
//! kernels ([`Ridge`]). Parts taken over shards of a data set are merged to those of the whole, equal to it within
//! the rounding of the sums, which each type states.
//!
//! Work is cut into pieces that do not depend on the number of threads, and each piece is added up in one order: results are
//! the same bit for bit with one thread or many. Slices in, slices out; rows are features, one after the other.
//!
//! `unsafe` is confined to `product`.

mod cholesky;
mod colour;
mod lift;
mod means;
mod moments;
mod product;
mod ridge;
mod search;
mod symmetric;

pub use cholesky::{Cholesky, NotPositive};
pub use lift::{Identity, Lift, Projection};
pub use means::{Means, means_of};
pub use moments::Moments;
pub use product::{Real, View, product, scores};
pub use ridge::{Kept, Part, Ridge, Solved};
pub use search::{RIDGES, validation_errors};
pub use symmetric::Symmetric;

/// Parts that do not fit each other.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}: expected {expected}, found {found}")]
pub struct Misfit {
    /// What was put together.
    pub what: &'static str,
    /// Its size here.
    pub expected: usize,
    /// Its size there.
    pub found: usize,
}

/// That two sizes agree.
pub(crate) fn fits(what: &'static str, expected: usize, found: usize) -> Result<(), Misfit> {
    match expected == found {
        true => Ok(()),
        false => Err(Misfit {
            what,
            expected,
            found,
        }),
    }
}
