//! Accuracy over a stream, and the numbers papers draw from it.

use serde::{Deserialize, Serialize};

/// `percent[t][i]`: accuracy in percent on the test images of task `i` after training task `t`,
/// for `i <= t`. Entries above the diagonal are there where tasks are looked at ahead of their session; they are read by the
/// forward transfer, `percent[t][t + 1]`, and by the metrics of multi-domain streams.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct AccuracyMatrix {
    /// One row per session.
    pub percent: Vec<Vec<f64>>,
    /// Test images of each task.
    pub test_images: Vec<usize>,
}

impl AccuracyMatrix {
    /// Appends the row of one more session; `test_images` covers the tasks of the row.
    pub fn push(&mut self, row: Vec<f64>, test_images: Vec<usize>) {
        self.percent.push(row);
        self.test_images = test_images;
    }

    /// Number of sessions so far.
    pub fn sessions(&self) -> usize {
        self.percent.len()
    }

    /// `micro_t = Σ_{i≤t} n_i a[t][i] / Σ_{i≤t} n_i`: accuracy over all test images of the classes
    /// seen, each image counting once.
    pub fn micro_curve(&self) -> Vec<f64> {
        let row = |(t, row): (usize, &Vec<f64>)| {
            let n = &self.test_images[..=t];
            let hits: f64 = row.iter().zip(n).map(|(a, &n)| a * n as f64).sum();
            hits / n.iter().sum::<usize>() as f64
        };
        self.percent.iter().enumerate().map(row).collect()
    }

    /// `macro_t = mean_{i≤t} a[t][i]`: each task counting once.
    pub fn macro_curve(&self) -> Vec<f64> {
        let rows = self.percent.iter().enumerate();
        rows.map(|(t, row)| mean(row[..=t].iter().copied()))
            .collect()
    }

    /// All single-number metrics.
    pub fn metrics(&self) -> Metrics {
        let micro = self.micro_curve();
        Metrics {
            average_incremental_accuracy: mean(micro.iter().copied()),
            last_accuracy_micro: micro.last().copied().unwrap_or(f64::NAN),
            last_accuracy_macro: self.macro_curve().last().copied().unwrap_or(f64::NAN),
            forgetting: self.forgetting(),
            backward_transfer: self.backward_transfer(),
            forward_transfer: None,
            mtil_transfer: None,
            mtil_average: None,
            mtil_last: None,
        }
    }

    /// `FWT = mean_{i>0} (a[i-1][i] − chance)`: accuracy on a task just before it is learned, above that of guessing, in
    /// percent. `None` where it was not measured, as for new classes, or for one task.
    /// (Lopez-Paz & Ranzato 2017, "Gradient Episodic Memory", with guessing in place of an untrained network)
    pub fn forward_transfer(&self, chance: f64) -> Option<f64> {
        let before = (1..self.sessions()).map(|i| self.percent[i - 1].get(i));
        let before: Vec<f64> = before.map(Option::<&f64>::copied).collect::<Option<_>>()?;
        (!before.is_empty()).then(|| mean(before.into_iter()) - chance)
    }

    /// `Transfer = mean_{i>0} mean_{t<i} a[t][i]`: accuracy on tasks before they are learned, averaged by column first so that
    /// each task counts once. `None` before all `tasks` sessions are over, where an entry above the diagonal was not measured,
    /// and for one task.
    /// (Zheng et al. 2023, "Preventing Zero-Shot Transfer Degradation in Continual Learning of Vision-Language Models")
    pub fn mtil_transfer(&self, tasks: usize) -> Option<f64> {
        let matrix = self.square(tasks)?;
        let column = |i: usize| mean(matrix[..i].iter().map(|row| row[i]));
        (tasks > 1).then(|| mean((1..tasks).map(column)))
    }

    /// `Avg = mean_{t,i} a[t][i]` over all entries; `None` where one was not measured.
    pub fn mtil_average(&self, tasks: usize) -> Option<f64> {
        let matrix = self.square(tasks)?;
        Some(mean(matrix.iter().flatten().copied()))
    }

    /// `Last = mean_i a[T-1][i]`; `None` before the last session.
    pub fn mtil_last(&self, tasks: usize) -> Option<f64> {
        let last = self.percent.get(tasks.checked_sub(1)?)?;
        (last.len() == tasks).then(|| mean(last.iter().copied()))
    }

    /// All rows, each with all tasks.
    fn square(&self, tasks: usize) -> Option<&[Vec<f64>]> {
        let whole = self.sessions() == tasks && tasks > 0;
        let whole = whole && self.percent.iter().all(|row| row.len() == tasks);
        whole.then_some(&self.percent)
    }

    /// `F = mean_{i<T-1} (max_{t≥i} a[t][i] − a[T-1][i])`; never negative, 0 for one task.
    pub fn forgetting(&self) -> f64 {
        self.over_old_tasks(|i, last| {
            let column = self.percent[i..].iter().map(|row| row[i]);
            column.fold(f64::NEG_INFINITY, f64::max) - last[i]
        })
    }

    /// `BWT = mean_{i<T-1} (a[T-1][i] − a[i][i])`; 0 for one task.
    pub fn backward_transfer(&self) -> f64 {
        self.over_old_tasks(|i, last| last[i] - self.percent[i][i])
    }

    fn over_old_tasks(&self, f: impl Fn(usize, &[f64]) -> f64) -> f64 {
        match self.percent.last() {
            Some(last) if self.sessions() > 1 => mean((0..self.sessions() - 1).map(|i| f(i, last))),
            _ => 0.0,
        }
    }
}

/// The numbers a table shows, in percent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Metrics {
    /// Mean of the micro curve over all sessions.
    pub average_incremental_accuracy: f64,
    /// Micro accuracy after the last task.
    pub last_accuracy_micro: f64,
    /// Macro accuracy after the last task.
    pub last_accuracy_macro: f64,
    /// See [`AccuracyMatrix::forgetting`].
    pub forgetting: f64,
    /// See [`AccuracyMatrix::backward_transfer`].
    pub backward_transfer: f64,
    /// See [`AccuracyMatrix::forward_transfer`]; of domain-incremental streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_transfer: Option<f64>,
    /// See [`AccuracyMatrix::mtil_transfer`]; of multi-domain streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtil_transfer: Option<f64>,
    /// See [`AccuracyMatrix::mtil_average`]; of multi-domain streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtil_average: Option<f64>,
    /// See [`AccuracyMatrix::mtil_last`]; of multi-domain streams.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtil_last: Option<f64>,
}

impl Metrics {
    /// Name, value and definition of each metric, in the order of tables.
    pub fn rows(&self) -> Vec<(&'static str, f64, &'static str)> {
        let mut rows = vec![
            (
                "average_incremental_accuracy",
                self.average_incremental_accuracy,
                "mean over sessions t of micro accuracy(t)",
            ),
            (
                "last_accuracy_micro",
                self.last_accuracy_micro,
                "correct / all test images of the classes seen, after the last task",
            ),
            (
                "last_accuracy_macro",
                self.last_accuracy_macro,
                "mean over tasks of per-task accuracy, after the last task",
            ),
            (
                "forgetting",
                self.forgetting,
                "mean over tasks but the last of (best accuracy at or after its session - last accuracy)",
            ),
            (
                "backward_transfer",
                self.backward_transfer,
                "mean over tasks but the last of (last accuracy - accuracy when just learned)",
            ),
        ];
        if let Some(forward) = self.forward_transfer {
            let text = "mean over tasks but the first of (accuracy just before it is learned - 100 / classes)";
            rows.push(("forward_transfer", forward, text));
        }
        for (name, value, text) in [
            (
                "mtil_transfer",
                self.mtil_transfer,
                "mean over tasks but the first of (mean over sessions before its own of accuracy on it)",
            ),
            (
                "mtil_average",
                self.mtil_average,
                "mean over sessions and tasks, those to come as well, of per-task accuracy",
            ),
            (
                "mtil_last",
                self.mtil_last,
                "mean over tasks of per-task accuracy, after the last session",
            ),
        ] {
            rows.extend(value.map(|value| (name, value, text)));
        }
        rows
    }
}

/// Arithmetic mean; NaN of nothing.
pub fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (mut sum, mut n) = (0.0, 0usize);
    for v in values {
        sum += v;
        n += 1;
    }
    sum / n as f64
}

/// Sample standard deviation (n − 1); 0 for fewer than two values.
pub fn std_dev(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let m = mean(values.iter().copied());
    let sum: f64 = values.iter().map(|v| (v - m).powi(2)).sum();
    (sum / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The matrix of `fixtures/protocol`, whose values come from the code of PILOT, Mammoth and
    /// Avalanche.
    #[test]
    fn matches_the_frameworks() {
        let text = include_str!("../tests/fixtures/protocol_metrics.json");
        let cases: serde_json::Value = serde_json::from_str(text).unwrap();
        let case = &cases[0];
        let matrix = AccuracyMatrix {
            percent: serde_json::from_value(case["R"].clone()).unwrap(),
            test_images: serde_json::from_value(case["n_test"].clone()).unwrap(),
        };
        let expected = &case["expected"];
        let list =
            |key: &str| -> Vec<f64> { serde_json::from_value(expected[key].clone()).unwrap() };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9, "{a} {b}");
        for (a, b) in matrix.micro_curve().iter().zip(list("micro_curve")) {
            close(*a, b);
        }
        for (a, b) in matrix.macro_curve().iter().zip(list("macro_curve")) {
            close(*a, b);
        }
        assert_eq!(matrix.micro_curve().len(), 4);
        let metrics = matrix.metrics();
        close(
            metrics.average_incremental_accuracy,
            expected["Abar_micro"].as_f64().unwrap(),
        );
        close(
            metrics.last_accuracy_micro,
            expected["last_micro"].as_f64().unwrap(),
        );
        close(
            metrics.last_accuracy_macro,
            expected["last_macro"].as_f64().unwrap(),
        );
        close(
            metrics.forgetting,
            expected["forgetting_max_all_minus_last"].as_f64().unwrap(),
        );
        close(metrics.backward_transfer, expected["bwt"].as_f64().unwrap());
    }

    #[test]
    fn one_task_forgets_nothing() {
        let mut matrix = AccuracyMatrix::default();
        matrix.push(vec![50.0], vec![4]);
        let metrics = matrix.metrics();
        assert_eq!((metrics.forgetting, metrics.backward_transfer), (0.0, 0.0));
        assert_eq!(metrics.last_accuracy_micro, 50.0);
    }

    /// Reckoned by hand.
    #[test]
    fn transfer_is_of_what_lies_above_the_diagonal_column_by_column() {
        let mut matrix = AccuracyMatrix {
            percent: vec![
                vec![80.0, 40.0, 10.0],
                vec![70.0, 90.0, 30.0],
                vec![60.0, 85.0, 95.0],
            ],
            test_images: vec![1, 1, 1],
        };
        // (40 + (10 + 30) / 2) / 2, where the plain mean of the three would be 26.67.
        assert_eq!(matrix.mtil_transfer(3), Some(30.0));
        let average = matrix.mtil_average(3).unwrap();
        assert!((average - 560.0 / 9.0).abs() < 1e-12, "{average}");
        assert_eq!(matrix.mtil_last(3), Some(80.0));
        // Before the last session nothing of it is known.
        for metric in [
            AccuracyMatrix::mtil_transfer,
            AccuracyMatrix::mtil_average,
            AccuracyMatrix::mtil_last,
        ] {
            assert_eq!(metric(&matrix, 4), None);
        }
        // One entry that was not measured.
        matrix.percent[0].truncate(2);
        assert_eq!(matrix.mtil_transfer(3), None);
        assert_eq!(matrix.mtil_average(3), None);
        assert_eq!(matrix.mtil_last(3), Some(80.0));
        let one = AccuracyMatrix {
            percent: vec![vec![50.0]],
            test_images: vec![1],
        };
        assert_eq!(one.mtil_transfer(1), None);
        assert_eq!(one.mtil_average(1), Some(50.0));
    }

    #[test]
    fn deviation_is_of_the_sample() {
        assert!((std_dev(&[1.0, 3.0]) - 2f64.sqrt()).abs() < 1e-12);
        assert_eq!(std_dev(&[1.0]), 0.0);
    }

    #[test]
    fn forward_transfer_is_above_chance_and_only_where_it_was_measured() {
        let mut matrix = AccuracyMatrix {
            percent: vec![
                vec![50.0, 30.0],
                vec![40.0, 60.0, 45.0],
                vec![40.0, 55.0, 70.0],
            ],
            test_images: vec![10, 10, 20],
        };
        assert_eq!(matrix.forward_transfer(20.0), Some(17.5));
        // What lies above the diagonal changes nothing else.
        let with = (matrix.metrics(), matrix.micro_curve(), matrix.macro_curve());
        for (t, row) in matrix.percent.iter_mut().enumerate() {
            row.truncate(t + 1);
        }
        assert_eq!(
            with,
            (matrix.metrics(), matrix.micro_curve(), matrix.macro_curve())
        );
        assert_eq!(matrix.forward_transfer(20.0), None);
        assert_eq!(
            AccuracyMatrix {
                percent: vec![vec![1.0]],
                test_images: vec![1]
            }
            .forward_transfer(0.0),
            None
        );
    }
}
