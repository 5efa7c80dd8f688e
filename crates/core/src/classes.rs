//! Accuracy class by class.

use serde::{Deserialize, Serialize};

/// Correct predictions of each class after each session, over the test images of the tasks seen.
///
/// Rows are as long as there are classes in the stream; a class without a test image so far counts none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClassAccuracy {
    /// `hits[t][c]`: images of class `c` predicted right after task `t`.
    pub hits: Vec<Vec<u64>>,
    /// `images[t][c]`: images of class `c` predicted after task `t`.
    pub images: Vec<Vec<u64>>,
}

impl ClassAccuracy {
    /// Opens a session of a stream of so many classes.
    pub(crate) fn open(&mut self, classes: usize) {
        self.hits.push(vec![0; classes]);
        self.images.push(vec![0; classes]);
    }

    /// Counts an image of the session that was opened last.
    pub(crate) fn count(&mut self, label: u32, right: bool) {
        for (rows, by) in [(&mut self.hits, u64::from(right)), (&mut self.images, 1)] {
            let class = rows.last_mut().and_then(|row| row.get_mut(label as usize));
            if let Some(class) = class {
                *class += by;
            }
        }
    }

    /// Accuracy in percent on class `class` after task `t`; `None` where it has no test image yet.
    pub fn percent(&self, t: usize, class: usize) -> Option<f64> {
        let images = *self.images.get(t)?.get(class)?;
        let hits = *self.hits.get(t)?.get(class)?;
        (images > 0).then(|| 100.0 * hits as f64 / images as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_has_no_accuracy_before_it_has_images() {
        let mut classes = ClassAccuracy::default();
        classes.open(2);
        classes.count(0, true);
        classes.count(0, false);
        classes.open(2);
        for (label, right) in [(0, true), (0, true), (1, false), (7, true)] {
            classes.count(label, right);
        }
        assert_eq!(classes.percent(0, 0), Some(50.0));
        assert_eq!(classes.percent(0, 1), None);
        assert_eq!(classes.percent(1, 0), Some(100.0));
        assert_eq!(classes.percent(1, 1), Some(0.0));
        assert_eq!(classes.percent(2, 0), None);
    }
}
