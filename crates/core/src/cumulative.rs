//! Splits in one, and streams in which what was seen comes again.

use std::sync::Arc;

use candle_core::Tensor;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::error::Result;
use crate::task::{Batch, Batches, Split, Stream, Task, TaskInfo, View};

impl Stream {
    /// The same stream, but the training images of each task are those of all tasks so far: what joint training learns from.
    /// Classes, test images and labels stay as they are.
    pub fn cumulative(&self) -> Self {
        let mut seen: Vec<Arc<dyn Split>> = Vec::new();
        let tasks = self.tasks.iter().map(|task| {
            seen.push(task.train.clone());
            let train = Union::new(seen.clone());
            Task {
                info: TaskInfo {
                    train_len: train.len(),
                    ..task.info.clone()
                },
                train: Arc::new(train),
                test: task.test.clone(),
            }
        });
        Self {
            tasks: tasks.collect(),
            ..self.clone()
        }
    }
}

/// Several splits as one.
pub(crate) struct Union {
    parts: Vec<Arc<dyn Split>>,
    labels: Vec<u32>,
}

impl Union {
    pub(crate) fn new(parts: Vec<Arc<dyn Split>>) -> Self {
        let labels = parts.iter().flat_map(|part| part.labels()).copied();
        Self {
            labels: labels.collect(),
            parts,
        }
    }
}

impl Split for Union {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Ids are unique over a stream, and all parts are of one.
    fn image_name(&self, id: u64) -> String {
        self.parts
            .first()
            .map_or_else(String::new, |part| part.image_name(id))
    }

    /// In training, images of all parts come in an order drawn from the seed and the pass, whatever the batch. In the plain view,
    /// part after part.
    fn batches(&self, view: View, batch: usize) -> Batches<'_> {
        // Which part the next image is of.
        let mut turns: Vec<usize> = Vec::with_capacity(self.len());
        for (at, part) in self.parts.iter().enumerate() {
            turns.resize(turns.len() + part.len(), at);
        }
        if let View::Train { seed, epoch } = view {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(epoch);
            for i in (1..turns.len()).rev() {
                // The bias is below 2⁻³² for anything that fits into memory.
                turns.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
            }
        }
        let passes = self.parts.iter().map(|part| part.batches(view, 1));
        Box::new(Turns {
            passes: passes.collect(),
            turns: turns.into_iter(),
            batch,
        })
    }

    fn only(&self, ids: &[u64]) -> Result<Arc<dyn Split>> {
        let parts = self.parts.iter().map(|part| part.only(ids));
        Ok(Arc::new(Self::new(parts.collect::<Result<_>>()?)))
    }
}

struct Turns<'a> {
    passes: Vec<Batches<'a>>,
    turns: std::vec::IntoIter<usize>,
    batch: usize,
}

impl Iterator for Turns<'_> {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut images = Vec::with_capacity(self.batch);
        while images.len() < self.batch.max(1) {
            let Some(turn) = self.turns.next() else { break };
            match self.passes[turn].next() {
                Some(Ok(image)) => images.push(image),
                Some(Err(error)) => {
                    self.turns = Vec::new().into_iter();
                    return Some(Err(error));
                }
                // Images that were left out make a part shorter than it was said to be.
                None => {}
            }
        }
        match images.is_empty() {
            true => None,
            false => Some(together(images)),
        }
    }
}

fn together(parts: Vec<Batch>) -> Result<Batch> {
    let images: Vec<&Tensor> = parts.iter().map(|part| &part.images).collect();
    Ok(Batch {
        images: Tensor::cat(&images, 0)?,
        labels: parts.iter().flat_map(|part| part.labels.clone()).collect(),
        ids: parts.iter().flat_map(|part| part.ids.clone()).collect(),
        plain: parts.iter().all(|part| part.plain),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Scenario;
    use candle_core::Device;

    /// `n` images from `first` on; a pass in training begins at another one each time.
    struct Few {
        first: u64,
        labels: Vec<u32>,
    }

    impl Split for Few {
        fn len(&self) -> usize {
            self.labels.len()
        }

        fn labels(&self) -> &[u32] {
            &self.labels
        }

        fn image_name(&self, id: u64) -> String {
            format!("image {id}")
        }

        fn batches(&self, view: View, batch: usize) -> Batches<'_> {
            let shift = match view {
                View::Train { epoch, .. } => epoch as usize,
                View::Plain => 0,
            };
            let n = self.len();
            let order: Vec<usize> = (0..n).map(|i| (i + shift) % n).collect();
            let one = move |chunk: &[usize]| -> Result<Batch> {
                let ids: Vec<u64> = chunk.iter().map(|i| self.first + *i as u64).collect();
                let pixels: Vec<f32> = ids.iter().map(|id| *id as f32).collect();
                Ok(Batch {
                    images: Tensor::from_vec(pixels, (ids.len(), 1, 1, 1), &Device::Cpu)?,
                    labels: chunk.iter().map(|i| self.labels[*i]).collect(),
                    ids,
                    plain: view == View::Plain,
                })
            };
            let all: Vec<_> = order.chunks(batch).map(one).collect();
            Box::new(all.into_iter())
        }

        /// Where they follow each other.
        fn only(&self, ids: &[u64]) -> Result<Arc<dyn Split>> {
            let own = |i: &usize| ids.contains(&(self.first + *i as u64));
            let chosen: Vec<usize> = (0..self.len()).filter(own).collect();
            Ok(Arc::new(Self {
                first: self.first + *chosen.first().unwrap_or(&0) as u64,
                labels: chosen.iter().map(|i| self.labels[*i]).collect(),
            }))
        }
    }

    fn stream() -> Stream {
        let sizes = [5usize, 2, 4];
        let mut first = 0;
        let tasks = sizes.iter().enumerate().map(|(index, n)| {
            let split = Arc::new(Few {
                first,
                labels: vec![index as u32; *n],
            });
            first += *n as u64;
            Task {
                info: TaskInfo {
                    index,
                    classes: index..index + 1,
                    names: Vec::new(),
                    train_len: *n,
                    test_len: *n,
                },
                train: split.clone(),
                test: split,
            }
        });
        Stream {
            scenario: Scenario::ClassIncremental,
            tasks: tasks.collect(),
            class_names: vec!["a".into(), "b".into(), "c".into()],
        }
    }

    #[test]
    fn a_union_is_cut_to_some_of_its_images_in_stored_order() {
        let stream = stream().cumulative();
        let mut task = stream.tasks[2].clone();
        task.train = task.train.only(&[9, 3, 77, 8, 5, 2]).unwrap();
        assert_eq!(task.train.labels(), [0, 0, 1, 2, 2]);
        assert_eq!(ids(&task, View::Plain, 2), [2, 3, 5, 8, 9]);
        assert_eq!(task.train.only(&[]).unwrap().len(), 0);
    }

    fn ids(task: &Task, view: View, batch: usize) -> Vec<u64> {
        let mut ids = Vec::new();
        for batch in task.train.batches(view, batch) {
            let batch = batch.unwrap();
            let pixels: Vec<f32> = batch.images.flatten_all().unwrap().to_vec1().unwrap();
            for ((pixel, id), label) in pixels.iter().zip(&batch.ids).zip(&batch.labels) {
                assert_eq!(*pixel, *id as f32);
                assert_eq!(
                    *label,
                    if *id < 5 {
                        0
                    } else if *id < 7 {
                        1
                    } else {
                        2
                    }
                );
            }
            ids.extend(batch.ids);
        }
        ids
    }

    #[test]
    fn every_image_seen_comes_once_in_a_pass_in_an_order_of_all() {
        let stream = stream().cumulative();
        for (task, n) in stream.tasks.iter().zip([5, 7, 11]) {
            assert_eq!((task.train.len(), task.info.train_len), (n, n));
            assert_eq!(task.train.labels().len(), n);
            assert_eq!(task.info.test_len, [5, 2, 4][task.info.index]);
            let all: Vec<u64> = (0..n as u64).collect();
            assert_eq!(ids(task, View::Plain, 3), all);
            let view = |epoch| View::Train { seed: 1, epoch };
            let one = ids(task, view(0), 3);
            assert_eq!(one, ids(task, view(0), 4), "the batch must not matter");
            let mut sorted = one.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, all);
            if n > 5 {
                assert_ne!(one, ids(task, view(1), 3));
                // Tasks are mixed: the last one's images are not all at the end.
                assert_ne!(one, all);
            }
        }
    }
}
