//! Ridge regression on lifted features from sums alone.
//!
//! ```text
//! h = lift(f)                          (m) for a feature f (d), such as ReLU(f W)
//! G = Σ h hᵀ,  Q = Σ h yᵀ              y one-hot
//! W_λ = (G + λI)⁻¹ Q                   (m, classes)
//!     = Hᵀ (K + λI)⁻¹ Y,  K = H Hᵀ     the same, by images: exact, and the smaller of the two while n < m
//! ```
//!
//! As long as few images were seen, their features `(n, d)` are kept in place of `G`, which takes more room and says no more. `G` is
//! taken from them when `2n > m`.

use rayon::prelude::*;

use crate::cholesky::{Cholesky, NotPositive};
use crate::head::head;
use crate::lift::{Lift, by_columns, kernel, lifted, lifted_columns, one_hot};
use crate::product::{DEPTH, Real as _, View, block, product};
use crate::symmetric::Symmetric;
use crate::{Misfit, fits};

/// Features of one task and their classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Part {
    /// `(n, d)`.
    pub rows: Vec<f32>,
    /// `n`.
    pub labels: Vec<u32>,
}

/// What ridge regression needs of all images seen.
pub struct Ridge {
    lift: Box<dyn Lift>,
    classes: usize,
    seen: Seen,
}

enum Seen {
    /// Features by task, and the rows of K below them: row `i` is as long as there were images at the end of its task.
    Images {
        parts: Vec<Part>,
        kernel: Vec<Vec<f64>>,
    },
    /// `G`, and the columns of `Q`, in f32.
    Sums {
        gram: Symmetric<f32>,
        sums: Vec<Vec<f32>>,
    },
}

/// A head and the ridge it was solved with.
#[derive(Debug, Clone, PartialEq)]
pub struct Solved {
    /// `W_λ (m, classes)`, row by row.
    pub weights: Vec<f32>,
    /// λ, the one asked for or, where that leaves the matrix singular in f64, the next power of ten above that does not.
    pub ridge: f64,
}

impl Ridge {
    /// Of no image yet.
    pub fn new(lift: Box<dyn Lift>) -> Self {
        Self {
            lift,
            classes: 0,
            seen: Seen::Images {
                parts: Vec::new(),
                kernel: Vec::new(),
            },
        }
    }

    /// Bytes at most in use for features of `dim` values lifted to `width`, besides the lift: what is kept, and solving the head.
    pub fn memory(dim: usize, width: usize, classes: usize, images: usize) -> usize {
        let (x, triangle) = (width * classes, width * (width + f32::STRIP) / 2);
        if images <= width / 2 {
            // Features three times while they are put together; K, its factor, and the dual; a group of lifted columns.
            let square = 8 * (images * images + images * (images + f64::STRIP) / 2);
            return 12 * images * dim + square + 8 * images * classes + 24 * images * 1024 + 12 * x;
        }
        // G and its factor in f64, if it comes to that; Q in f32 and f64; lifted images.
        12 * triangle + 16 * x + 4 * width * DEPTH
    }

    /// What a feature becomes.
    pub fn lift(&self) -> &dyn Lift {
        self.lift.as_ref()
    }

    /// Classes with a column.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Makes room for `classes` classes in all.
    pub fn grow(&mut self, classes: usize) {
        self.classes = self.classes.max(classes);
        let width = self.lift.width();
        if let Seen::Sums { sums, .. } = &mut self.seen {
            sums.resize(self.classes, vec![0.0; width]);
        }
    }

    /// Adds the images of a task.
    pub fn add(&mut self, rows: &[f32], labels: &[u32]) -> Result<(), Misfit> {
        let d = self.lift.dim();
        fits("values of features", labels.len() * d, rows.len())?;
        self.grow(labels.iter().max().map_or(0, |l| *l as usize + 1));
        if let Seen::Images { parts, kernel: k } = &mut self.seen {
            let before: Vec<f32> = parts.iter().flat_map(|p| &p.rows).copied().collect();
            if 2 * (k.len() + labels.len()) <= self.lift.width() {
                let all = [before.as_slice(), rows].concat();
                let n = all.len() / d.max(1);
                let new = kernel(self.lift.as_ref(), &all, k.len());
                k.extend(new.chunks_exact(n.max(1)).map(<[f64]>::to_vec));
                parts.push(Part {
                    rows: rows.to_vec(),
                    labels: labels.to_vec(),
                });
                return Ok(());
            }
            self.fold();
        }
        self.accumulate(rows, labels);
        Ok(())
    }

    /// Takes `G` and `Q` of the features kept so far, and lets these go.
    pub fn fold(&mut self) {
        let Seen::Images { parts, .. } = &mut self.seen else {
            return;
        };
        let parts = std::mem::take(parts);
        let width = self.lift.width();
        self.seen = Seen::Sums {
            gram: Symmetric::zeros(width),
            sums: vec![vec![0.0; width]; self.classes],
        };
        for part in parts {
            self.accumulate(&part.rows, &part.labels);
        }
    }

    fn accumulate(&mut self, rows: &[f32], labels: &[u32]) {
        let (d, width) = (self.lift.dim().max(1), self.lift.width());
        let Seen::Sums { gram, sums } = &mut self.seen else {
            return;
        };
        let classes = sums.len();
        // Sums of one call are taken in f64, for each lifted value those of all classes, and rounded once.
        let mut exact = vec![0f64; width * classes];
        let mut lifted = Vec::new();
        for (rows, labels) in rows.chunks(DEPTH * d).zip(labels.chunks(DEPTH)) {
            lifted_columns(self.lift.as_ref(), rows, &mut lifted);
            gram.add_columns(&lifted, labels.len());
            let exact = exact.par_chunks_mut(classes.max(1));
            let columns = lifted.par_chunks(labels.len());
            exact
                .zip(columns)
                .with_min_len(64)
                .for_each(|(exact, column)| {
                    let values = column.iter().zip(labels);
                    values.for_each(|(v, label)| exact[*label as usize] += f64::from(*v));
                });
        }
        for (class, sum) in sums.iter_mut().enumerate() {
            let exact = exact.iter().skip(class).step_by(classes);
            sum.iter_mut()
                .zip(exact)
                .for_each(|(s, e)| *s = (f64::from(*s) + e) as f32);
        }
    }

    /// Adds what was taken of other images with the same lift.
    pub fn merge(&mut self, other: &Self) -> Result<(), Misfit> {
        fits("values of a feature", self.lift.dim(), other.lift.dim())?;
        fits(
            "values of a lifted feature",
            self.lift.width(),
            other.lift.width(),
        )?;
        self.grow(other.classes);
        match &other.seen {
            Seen::Images { parts, .. } => {
                for part in parts {
                    self.add(&part.rows, &part.labels)?;
                }
                Ok(())
            }
            Seen::Sums { gram, sums } => {
                self.fold();
                if let Seen::Sums {
                    gram: own,
                    sums: to,
                } = &mut self.seen
                {
                    own.merge(gram)?;
                    for (to, from) in to.iter_mut().zip(sums) {
                        to.iter_mut().zip(from).for_each(|(a, b)| *a += b);
                    }
                }
                Ok(())
            }
        }
    }

    /// `W_λ`.
    pub fn solve(&self, ridge: f64) -> Result<Solved, NotPositive> {
        match &self.seen {
            Seen::Images { parts, kernel } => self.solve_by_images(parts, kernel, ridge),
            Seen::Sums { gram, sums } => {
                let (weights, ridge) = head(gram, sums, ridge)?;
                Ok(Solved { weights, ridge })
            }
        }
    }

    fn solve_by_images(
        &self,
        parts: &[Part],
        kernel: &[Vec<f64>],
        ridge: f64,
    ) -> Result<Solved, NotPositive> {
        let (n, c, width) = (kernel.len(), self.classes, self.lift.width());
        let k = || Symmetric::from_fn(n, |i, j| kernel[i.max(j)][i.min(j)]);
        let (factor, ridge) = factor(k, ridge)?;
        let labels: Vec<u32> = parts.iter().flat_map(|p| &p.labels).copied().collect();
        let rows: Vec<f32> = parts.iter().flat_map(|p| &p.rows).copied().collect();
        let mut dual = one_hot(&labels, &(0..c));
        let _ = factor.solve(&mut dual, c);
        let mut weights = Vec::with_capacity(width * c);
        let mut out = Vec::new();
        by_columns(self.lift.as_ref(), &rows, |columns, lifted| {
            let (m, height) = (columns.len(), block(columns.len()));
            let (left, right) = (View::rows(lifted, m).t(), View::rows(&dual, c));
            out.clear();
            out.resize(m * c, 0f64);
            let parts = out.par_chunks_mut((height * c).max(1)).enumerate();
            parts.with_max_len(1).for_each(|(i, out)| {
                let left = left.from_row(i * height);
                product((out.len() / c, n, c), 1.0, left, right, out);
            });
            weights.extend(out.iter().map(|v| *v as f32));
        });
        Ok(Solved { weights, ridge })
    }

    /// What is kept, for saving: the features by task, or `G` packed and `Q` by classes.
    pub fn kept(&self) -> Kept<'_> {
        match &self.seen {
            Seen::Images { parts, .. } => Kept::Images(parts),
            Seen::Sums { gram, sums } => Kept::Sums(gram, sums),
        }
    }

    /// Takes up saved sums.
    pub fn restore(&mut self, gram: Symmetric<f32>, sums: Vec<Vec<f32>>) -> Result<(), Misfit> {
        let width = self.lift.width();
        fits("rows of G", width, gram.n())?;
        for sum in &sums {
            fits("values of a column of Q", width, sum.len())?;
        }
        self.classes = sums.len();
        self.seen = Seen::Sums { gram, sums };
        Ok(())
    }

    /// `G` of everything seen, whatever is kept.
    pub fn gram(&self) -> Symmetric<f32> {
        match &self.seen {
            Seen::Sums { gram, .. } => gram.clone(),
            Seen::Images { parts, .. } => {
                let mut gram = Symmetric::zeros(self.lift.width());
                for part in parts {
                    gram.add_rows(&lifted(self.lift(), &part.rows, 0..self.lift.width()));
                }
                gram
            }
        }
    }
}

/// See [`Ridge::kept`].
pub enum Kept<'a> {
    /// By task.
    Images(&'a [Part]),
    /// `G` and the columns of `Q`.
    Sums(&'a Symmetric<f32>, &'a [Vec<f32>]),
}

/// The factor for `ridge`, or for the first power of ten above it that has one.
pub(crate) fn factor(
    matrix: impl Fn() -> Symmetric<f64>,
    ridge: f64,
) -> Result<(Cholesky, f64), NotPositive> {
    let mut tried = ridge;
    loop {
        match Cholesky::new(matrix(), tried) {
            Ok(factor) => return Ok((factor, tried)),
            Err(error) if tried > 1e12 || tried == 0.0 => return Err(error),
            // Rounded, so that it is the same after it was saved in f32.
            Err(_) => tried = f64::from((tried * 10.0) as f32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Identity;
    use crate::lift::tests::{features, projection};

    fn near(a: &Solved, b: &Solved, bound: f32) {
        assert_eq!(a.weights.len(), b.weights.len());
        let size = b.weights.iter().fold(0f32, |m, v| m.max(v.abs()));
        let far = a.weights.iter().zip(&b.weights).map(|(a, b)| (a - b).abs());
        let far = far.fold(0f32, f32::max);
        assert!(far <= bound * size, "{far} of {size}");
    }

    /// Images and sums are two forms of one head; so are any shards, and any order of tasks.
    #[test]
    fn forms_shards_and_orders_give_one_head() {
        let (d, m) = (6, 290);
        let (rows, labels) = features(140, d);
        let mut whole = Ridge::new(projection(d, m));
        whole.add(&rows, &labels).unwrap();
        assert!(matches!(whole.kept(), Kept::Images(_)));
        let by_images = whole.solve(1.0).unwrap();
        whole.fold();
        assert!(matches!(whole.kept(), Kept::Sums(..)));
        near(&whole.solve(1.0).unwrap(), &by_images, 1e-3);
        for shards in [2, 5] {
            let mut cut: Vec<_> = rows
                .chunks(140 / shards * d)
                .zip(labels.chunks(140 / shards))
                .collect();
            cut.reverse();
            let mut merged = Ridge::new(projection(d, m));
            for (rows, labels) in cut {
                let mut part = Ridge::new(projection(d, m));
                part.add(rows, labels).unwrap();
                merged.merge(&part).unwrap();
            }
            near(&merged.solve(1.0).unwrap(), &by_images, 1e-6);
        }
    }

    /// Past half the width the sums take over by themselves.
    #[test]
    fn many_images_are_summed() {
        let (d, m) = (6, 40);
        let (rows, labels) = features(140, d);
        let mut ridge = Ridge::new(projection(d, m));
        ridge.add(&rows[..20 * d], &labels[..20]).unwrap();
        assert!(matches!(ridge.kept(), Kept::Images(_)));
        ridge.add(&rows[20 * d..], &labels[20..]).unwrap();
        let Kept::Sums(gram, sums) = ridge.kept() else {
            panic!("140 images of width 40");
        };
        let (gram, sums) = (gram.clone(), sums.to_vec());
        let want = ridge.solve(0.1).unwrap();
        let mut again = Ridge::new(projection(d, m));
        again.restore(gram, sums).unwrap();
        assert_eq!(again.solve(0.1).unwrap(), want);
        let mut other = Ridge::new(projection(d, m + 1));
        assert!(other.merge(&again).is_err());
    }

    #[test]
    fn a_ridge_too_small_for_f64_gives_way() {
        let mut ridge = Ridge::new(Box::new(Identity(40)));
        let rows = vec![1e6f32; 3 * 40];
        ridge.add(&rows, &[0, 1, 1]).unwrap();
        let solved = ridge.solve(1e-8).unwrap();
        assert!(solved.ridge > 1e-8 && solved.weights.iter().all(|w| w.is_finite()));
    }
}
