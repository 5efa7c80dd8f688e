//! How many cells run side by side: as many as there are threads, or as there is room for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use rayon::prelude::*;

/// A cell that waits for its turn.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its place among all.
    pub index: usize,
    /// What it is called in tables.
    pub label: String,
    /// What it says it has in use at its height.
    pub bytes: u64,
}

/// Cells by how many of their kind run at once.
pub struct Lanes<'a> {
    groups: BTreeMap<usize, Vec<&'a Cell>>,
    threads: usize,
    room: Option<u64>,
}

impl<'a> Lanes<'a> {
    /// In so many bytes; without a limit where it is not known.
    pub fn new(cells: &'a [Cell], room: Option<u64>) -> Self {
        let threads = rayon::current_num_threads();
        let mut groups: BTreeMap<usize, Vec<&Cell>> = BTreeMap::new();
        for cell in cells {
            groups
                .entry(at_once(cell.bytes, room, threads))
                .or_default()
                .push(cell);
        }
        Self {
            groups,
            threads,
            room,
        }
    }

    /// A line for each method that memory holds back.
    pub fn limits(&self) -> Vec<String> {
        let Some(room) = self.room else {
            return Vec::new();
        };
        let mib = |bytes: u64| bytes.div_ceil(1 << 20);
        let held = self.groups.range(..self.threads);
        let lines = held.flat_map(|(lanes, cells)| {
            let kinds: BTreeSet<(&str, u64)> =
                cells.iter().map(|c| (c.label.as_str(), c.bytes)).collect();
            kinds.into_iter().map(move |(label, bytes)| {
                format!(
                    "{label}: {} MiB a cell, so {lanes} at once in {} MiB; {} threads could run more",
                    mib(bytes),
                    mib(room),
                    self.threads
                )
            })
        });
        lines.collect()
    }

    /// `run` on every cell, the largest first. A cell that waits for its own parallel work may be laid aside for another lane's, so
    /// lanes are counted, not threads.
    pub fn run<T: Send>(&self, run: impl Fn(usize) -> T + Sync) -> Vec<T> {
        let mut results = Vec::new();
        for (&lanes, cells) in &self.groups {
            let next = AtomicUsize::new(0);
            let lane = |_| -> Vec<T> {
                let take = || cells.get(next.fetch_add(1, Ordering::SeqCst));
                std::iter::from_fn(take).map(|c| run(c.index)).collect()
            };
            let done = (0..lanes).into_par_iter().with_max_len(1).map(lane);
            results.extend(done.collect::<Vec<_>>().into_iter().flatten());
        }
        results
    }
}

/// Cells of so many bytes that fit, but one at least and a thread's each at most.
fn at_once(bytes: u64, room: Option<u64>, threads: usize) -> usize {
    let fitting = room.map_or(threads as u64, |room| room / bytes.max(1));
    fitting.clamp(1, threads as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cells() -> Vec<Cell> {
        let cell = |index| Cell {
            index,
            label: if index % 3 == 0 { "large" } else { "small" }.to_owned(),
            bytes: if index % 3 == 0 { 600 << 20 } else { 1 << 20 },
        };
        (0..24).map(cell).collect()
    }

    /// Cells whose own work is parallel, so that a waiting thread looks for other work.
    #[test]
    fn no_more_run_at_once_than_fit() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(4);
        pool.build().unwrap().install(|| {
            let cells = cells();
            let lanes = Lanes::new(&cells, Some(1300 << 20));
            let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
            let mut done = lanes.run(|index| {
                if index % 3 == 0 {
                    most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                }
                (0..8).into_par_iter().with_max_len(1).for_each(|_| {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                });
                if index % 3 == 0 {
                    now.fetch_sub(1, Ordering::SeqCst);
                }
                index
            });
            done.sort_unstable();
            assert_eq!(done, (0..24).collect::<Vec<_>>());
            assert_eq!(most.into_inner(), 2);
            let said = lanes.limits();
            assert_eq!(said.len(), 1, "{said:?}");
            assert!(said[0].starts_with("large: 600 MiB a cell, so 2 at once in 1300 MiB"));
            assert!(Lanes::new(&cells, None).limits().is_empty());
        });
    }

    #[test]
    fn one_runs_however_little_there_is() {
        assert_eq!(at_once(600, Some(5), 4), 1);
        assert_eq!(at_once(0, Some(0), 4), 1);
        assert_eq!(at_once(2, Some(6), 4), 3);
        assert_eq!(at_once(2, Some(600), 4), 4);
        assert_eq!(at_once(2, None, 4), 4);
    }
}
