//! Means of classes.

use crate::{Misfit, fits};

/// Sums and counts of the rows of each class, in f64: merged from shards they are off by at most `n·2⁻⁵³·Σ|x|`, below what
/// an f32 mean shows.
#[derive(Debug, Clone, PartialEq)]
pub struct Means {
    dim: usize,
    sums: Vec<f64>,
    counts: Vec<u64>,
}

impl Means {
    /// Nothing yet, of rows of `dim` values.
    pub fn new(dim: usize) -> Self {
        Self {
            dim,
            sums: Vec::new(),
            counts: Vec::new(),
        }
    }

    /// Makes room for `classes` classes in all.
    pub fn grow(&mut self, classes: usize) {
        let classes = classes.max(self.counts.len());
        self.counts.resize(classes, 0);
        self.sums.resize(classes * self.dim, 0.0);
    }

    /// Classes with room.
    pub fn classes(&self) -> usize {
        self.counts.len()
    }

    /// Rows of each class.
    pub fn counts(&self) -> &[u64] {
        &self.counts
    }

    /// Adds rows and their classes.
    pub fn add(&mut self, rows: &[f32], labels: &[u32]) -> Result<(), Misfit> {
        fits("values of features", labels.len() * self.dim, rows.len())?;
        let last = labels.iter().max().map_or(0, |l| *l as usize + 1);
        self.grow(last);
        for (row, &label) in rows.chunks_exact(self.dim.max(1)).zip(labels) {
            self.counts[label as usize] += 1;
            let sum = &mut self.sums[label as usize * self.dim..][..self.dim];
            sum.iter_mut()
                .zip(row)
                .for_each(|(s, v)| *s += f64::from(*v));
        }
        Ok(())
    }

    /// Adds what was taken of other rows.
    pub fn merge(&mut self, other: &Self) -> Result<(), Misfit> {
        fits("values of a feature", self.dim, other.dim)?;
        self.grow(other.classes());
        self.counts
            .iter_mut()
            .zip(&other.counts)
            .for_each(|(a, b)| *a += b);
        self.sums
            .iter_mut()
            .zip(&other.sums)
            .for_each(|(a, b)| *a += b);
        Ok(())
    }

    /// The sum of a class.
    pub fn sum(&self, class: usize) -> &[f64] {
        &self.sums[class * self.dim..][..self.dim]
    }

    /// The mean of a class; `None` where it has no row.
    pub fn mean(&self, class: usize) -> Option<Vec<f64>> {
        match self.counts.get(class) {
            None | Some(0) => None,
            Some(&count) => Some(self.sum(class).iter().map(|s| s / count as f64).collect()),
        }
    }
}

/// The mean of rows of `dim` values.
pub fn means_of(rows: &[f32], dim: usize) -> Option<Vec<f64>> {
    let mut means = Means::new(dim);
    let labels = vec![0; rows.len() / dim.max(1)];
    means.add(rows, &labels).ok()?;
    means.mean(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_in_any_number_have_the_same_means() {
        let rows: Vec<f32> = (0..300).map(|i| (i * 37 % 101) as f32 / 7.0).collect();
        let labels: Vec<u32> = (0..100).map(|i| i % 7).collect();
        let mut whole = Means::new(3);
        whole.add(&rows, &labels).unwrap();
        for shards in [2, 5] {
            let mut merged = Means::new(3);
            for (rows, labels) in rows.chunks(300 / shards).zip(labels.chunks(100 / shards)) {
                let mut part = Means::new(3);
                part.add(rows, labels).unwrap();
                merged.merge(&part).unwrap();
            }
            assert_eq!(merged.counts(), whole.counts());
            for class in 0..7 {
                let (a, b) = (merged.mean(class).unwrap(), whole.mean(class).unwrap());
                assert!(
                    a.iter()
                        .zip(&b)
                        .all(|(a, b)| (a - b).abs() < 1e-12 * b.abs())
                );
            }
        }
        assert!(whole.mean(7).is_none());
        assert!(whole.merge(&Means::new(4)).is_err());
        let want: f64 = (0..15).map(|i| f64::from(rows[i * 21])).sum::<f64>() / 15.0;
        assert!((whole.mean(0).unwrap()[0] - want).abs() < 1e-12);
    }
}
