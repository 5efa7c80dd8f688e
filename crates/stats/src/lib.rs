//! Statistics of features that can be added up, and what is solved from them.
//!
//! Everything here is made of sums over images: class means ([`Means`]), scatter matrices ([`Moments`]), Gram matrices and
//! kernels ([`Ridge`]). Parts taken over shards of a data set are merged to those of the whole, equal to it within
//! the rounding of the sums, which each type states.
//!
//! Work is cut into pieces that do not depend on the number of threads, but for rows that do not depend on each other, and each
//! piece is added up in one order: results are the same bit for bit with one thread or many. Slices in, slices out; rows are features, one after the other.
//!
//! `unsafe` is confined to `product`.

mod cholesky;
mod colour;
mod head;
mod lift;
mod means;
mod moments;
mod pages;
mod product;
mod ridge;
mod search;
mod symmetric;

pub use cholesky::{Cholesky, NotPositive};
pub use lift::{Identity, Lift, Projection, lifted, lifted_scores};
pub use means::{Means, means_of};
pub use moments::Moments;
pub use product::{Real, View, cosines, product, scores};
pub use ridge::{Kept, Part, Ridge, Solved};
pub use search::{RIDGES, search_memory, validation_errors};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lift::tests::{features, projection};

    /// All that is computed here, of sizes that are shared between threads.
    fn everything() -> Vec<Vec<u64>> {
        let (d, m) = (24, 1100);
        let (rows, labels) = features(700, d);
        let bits = |values: &[f32]| values.iter().map(|v| u64::from(v.to_bits())).collect();
        let wide = |values: &[f64]| values.iter().map(|v| v.to_bits()).collect();
        let mut out: Vec<Vec<u64>> = Vec::new();
        let lift = projection(d, m);
        out.push(bits(&lifted(lift.as_ref(), &rows, 0..m)));
        let mut columns = Vec::new();
        crate::lift::lifted_columns(lift.as_ref(), &rows, &mut columns);
        out.push(bits(&columns));
        out.push(bits(&scores(
            &rows,
            d,
            View::rows(&rows[..40 * d], d).t(),
            40,
        )));
        out.push(bits(&cosines(&rows, &rows[..40 * d], d, 1)));
        out.push(bits(&lifted_scores(
            lift.as_ref(),
            &rows,
            &columns[..m * 10],
            10,
        )));
        for ridge in [1e3, 1e-3] {
            let mut statistics = Ridge::new(projection(d, m));
            statistics.add(&rows[..500 * d], &labels[..500]).unwrap();
            out.push(bits(&statistics.solve(ridge).unwrap().weights));
            statistics.add(&rows[500 * d..], &labels[500..]).unwrap();
            out.push(bits(&statistics.gram().packed()));
            out.push(bits(&statistics.solve(ridge).unwrap().weights));
        }
        let classes = 0..5;
        for fit in [560, 600] {
            // By images, then by sums.
            let lift = projection(d, if fit == 560 { m } else { 300 });
            let errors = validation_errors(lift.as_ref(), &rows, &labels, fit, &classes, &RIDGES);
            out.push(wide(&errors));
        }
        let moments = Moments::of(&columns[..700 * 400], 400);
        out.push(wide(&moments.scatter.packed()));
        let factor = Cholesky::new(moments.scatter, 1.0).unwrap();
        let values: Vec<f64> = (0..400 * 50).map(|i| (i % 97) as f64).collect();
        out.push(wide(&factor.whitened(&values)));
        out
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        let on = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
            pool.build().unwrap().install(everything)
        };
        let one = on(1);
        for threads in [2, 3] {
            for (i, (a, b)) in one.iter().zip(on(threads)).enumerate() {
                assert!(*a == b, "{threads} threads, result {i}");
            }
        }
    }
}
