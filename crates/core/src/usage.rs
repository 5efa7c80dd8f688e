//! How the pool of a prompt method is used: what test images choose, how near the keys are, how much of it works.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What the images of a batch take from one pool.
#[derive(Debug, Clone)]
pub struct Choice {
    /// Name of the pool, the same in every batch: `prompts`, `tasks`, `block 3`.
    pub pool: String,
    /// `(B, M)`: how much each image takes of each entry. 1 where it chooses `k` of them; where it weighs all, its
    /// weights, of sum 1.
    pub taken: Tensor,
    /// `(B, M)`: cosine of query and key.
    pub similarity: Tensor,
    /// The fewest entries that can be in use: `k`, or 1 where all are weighed.
    pub least: usize,
}

impl Choice {
    /// Of pool `name`, where each image chooses the entries of its row of `chosen`.
    pub fn of(name: &str, chosen: &[Vec<u32>], similarity: Tensor) -> Result<Self> {
        let (b, m) = similarity.dims2()?;
        let mut taken = vec![0f32; b * m];
        for (row, chosen) in taken.chunks_mut(m.max(1)).zip(chosen) {
            for &entry in chosen {
                match row.get_mut(entry as usize) {
                    Some(taken) => *taken = 1.0,
                    None => return Err(unfit(name, &format!("no entry {entry} among {m}"))),
                }
            }
        }
        Ok(Self {
            pool: name.to_owned(),
            taken: Tensor::from_vec(taken, (b, m), similarity.device())?,
            similarity,
            least: chosen.first().map_or(1, Vec::len),
        })
    }
}

/// How one pool was used at test, for the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PoolUse {
    /// Its name.
    pub pool: String,
    /// `chosen[i][m]`: how often the test images of task `i` took entry `m` after the last task; where images weigh all
    /// entries, the sum of their weights.
    pub chosen: Vec<Vec<f64>>,
    /// After each task, over all test images of the classes seen: mean cosine of queries and the keys they took.
    pub similarity: Vec<f64>,
    /// After each task: `exp(−Σ_m p_m ln p_m)`, where `p_m` is the part of entry `m` in everything that was taken.
    pub effective: Vec<f64>,
    /// Whether, after the last task, [`effective`](Self::effective) is in the lowest tenth between the fewest and the
    /// most it could be: nearly all images take the same entries of a pool that has others.
    pub collapsed: bool,
}

/// The pools over the test images of one task.
#[derive(Debug, Default)]
pub(crate) struct Tally(Vec<PoolTally>);

#[derive(Debug)]
struct PoolTally {
    pool: String,
    least: usize,
    /// Per entry. In f64 and image by image, so that it does not depend on the batches.
    taken: Vec<f64>,
    cosines: f64,
    matches: u64,
}

impl Tally {
    /// Adds a batch.
    pub(crate) fn add(&mut self, choices: &[Choice]) -> Result<()> {
        if self.0.is_empty() {
            for choice in choices {
                self.0.push(PoolTally {
                    pool: choice.pool.clone(),
                    least: choice.least,
                    taken: vec![0.0; choice.taken.dim(1)?],
                    cosines: 0.0,
                    matches: 0,
                });
            }
        }
        let same = |(tally, choice): (&PoolTally, &Choice)| tally.pool == choice.pool;
        if self.0.len() != choices.len() || !self.0.iter().zip(choices).all(same) {
            return Err(unfit("all", "each batch must name the same ones in order"));
        }
        self.0
            .iter_mut()
            .zip(choices)
            .try_for_each(|(t, c)| t.add(c))
    }
}

impl PoolTally {
    fn add(&mut self, choice: &Choice) -> Result<()> {
        if choice.taken.dim(1)? != self.taken.len()
            || choice.taken.dims() != choice.similarity.dims()
        {
            let problem = format!(
                "taken {:?} and similarity {:?} must both be (B, {})",
                choice.taken.dims(),
                choice.similarity.dims(),
                self.taken.len()
            );
            return Err(unfit(&self.pool, &problem));
        }
        let taken: Vec<Vec<f32>> = choice.taken.to_vec2()?;
        let similarity: Vec<Vec<f32>> = choice.similarity.to_vec2()?;
        for (taken, similarity) in taken.iter().zip(&similarity) {
            for (m, (&part, &cosine)) in taken.iter().zip(similarity).enumerate() {
                if part != 0.0 {
                    self.taken[m] += f64::from(part);
                    self.cosines += f64::from(cosine);
                    self.matches += 1;
                }
            }
        }
        Ok(())
    }
}

/// Adds a session, given the tallies of its tasks, to what earlier sessions left.
pub(crate) fn close(pools: &mut Vec<PoolUse>, tasks: &[Tally]) -> Result<()> {
    let Some((first, others)) = tasks.split_first() else {
        return Ok(());
    };
    if pools.is_empty() {
        pools.extend(first.0.iter().map(|tally| PoolUse {
            pool: tally.pool.clone(),
            chosen: Vec::new(),
            similarity: Vec::new(),
            effective: Vec::new(),
            collapsed: false,
        }));
    }
    let named = |tally: &Tally| {
        tally
            .0
            .iter()
            .map(|t| &t.pool)
            .eq(pools.iter().map(|p| &p.pool))
    };
    if !named(first) || !others.iter().all(named) {
        return Err(unfit("all", "every task must name the same ones in order"));
    }
    for (at, pool) in pools.iter_mut().enumerate() {
        let tallies: Vec<&PoolTally> = tasks.iter().map(|tally| &tally.0[at]).collect();
        let entries = tallies[0].taken.len();
        if tallies.iter().any(|tally| tally.taken.len() != entries) {
            return Err(unfit(&pool.pool, "its size changed within an evaluation"));
        }
        let mut sum = vec![0.0; entries];
        for tally in &tallies {
            sum.iter_mut()
                .zip(&tally.taken)
                .for_each(|(sum, x)| *sum += x);
        }
        let matches: u64 = tallies.iter().map(|tally| tally.matches).sum();
        let cosines: f64 = tallies.iter().map(|tally| tally.cosines).sum();
        let effective = effective(&sum);
        let least = tallies[0].least as f64;
        let most = entries as f64;
        pool.chosen = tallies.iter().map(|tally| tally.taken.clone()).collect();
        pool.similarity.push(cosines / matches.max(1) as f64);
        pool.effective.push(effective);
        pool.collapsed = most > least && effective < least + 0.1 * (most - least);
    }
    Ok(())
}

/// `exp` of the entropy of `taken`, as parts of its sum: `n` where `n` entries are taken alike.
fn effective(taken: &[f64]) -> f64 {
    let sum: f64 = taken.iter().sum();
    let parts = taken.iter().map(|x| x / sum).filter(|p| *p > 0.0);
    parts.map(|p| -p * p.ln()).sum::<f64>().exp()
}

fn unfit(pool: &str, problem: &str) -> Error {
    Error::State {
        problem: format!("pool `{pool}`, as its method tells what was chosen: {problem}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn choice(chosen: &[Vec<u32>], entries: usize) -> Choice {
        let similarity = Tensor::arange(0f32, (chosen.len() * entries) as f32, &Device::Cpu);
        let similarity = similarity.and_then(|t| t.reshape((chosen.len(), entries)));
        Choice::of("prompts", chosen, similarity.unwrap()).unwrap()
    }

    #[test]
    fn counts_cosines_and_effective_number_are_those_by_hand() {
        let (mut first, mut second) = (Tally::default(), Tally::default());
        // Rows of similarity: 0 1 2 3 | 4 5 6 7, then 0 1 2 3.
        first.add(&[choice(&[vec![0, 1], vec![2, 1]], 4)]).unwrap();
        second.add(&[choice(&[vec![3, 1]], 4)]).unwrap();
        let mut pools = Vec::new();
        close(&mut pools, &[first]).unwrap();
        assert_eq!(pools[0].similarity, [(0.0 + 1.0 + 6.0 + 5.0) / 4.0]);
        let mut first = Tally::default();
        first.add(&[choice(&[vec![0, 1]], 4)]).unwrap();
        first.add(&[choice(&[vec![2, 1]], 4)]).unwrap();
        close(&mut pools, &[first, second]).unwrap();
        assert_eq!(
            pools[0].chosen,
            [[1.0, 2.0, 1.0, 0.0], [0.0, 1.0, 0.0, 1.0]]
        );
        // 1, 3, 1, 1 of 6.
        let by_hand = (0.5 * 6f64.ln() + 0.5 * 2f64.ln()).exp();
        assert!((pools[0].effective[1] - by_hand).abs() < 1e-12);
        assert_eq!(pools[0].effective.len(), 2);
        assert!(!pools[0].collapsed);
    }

    #[test]
    fn a_pool_of_which_all_take_the_same_has_collapsed() {
        let collapsed = |chosen: &[Vec<u32>], entries| {
            let mut tally = Tally::default();
            tally.add(&[choice(chosen, entries)]).unwrap();
            let mut pools = Vec::new();
            close(&mut pools, &[tally]).unwrap();
            pools[0].collapsed
        };
        assert!(collapsed(&[vec![1, 2], vec![2, 1], vec![1, 2]], 8));
        assert!(!collapsed(&[vec![1, 2], vec![3, 4], vec![5, 6]], 8));
        // There is nothing else to take.
        assert!(!collapsed(&[vec![0, 1], vec![1, 0]], 2));
    }

    #[test]
    fn choices_that_do_not_fit_are_refused() {
        let similarity = Tensor::zeros((1, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
        let text = Choice::of("prompts", &[vec![2]], similarity)
            .unwrap_err()
            .to_string();
        assert!(text.contains("no entry 2 among 2"), "{text}");
        let mut tally = Tally::default();
        tally.add(&[choice(&[vec![0]], 2)]).unwrap();
        assert!(tally.add(&[choice(&[vec![0]], 3)]).is_err());
        assert!(tally.add(&[]).is_err());
        assert!(close(&mut Vec::new(), &[tally, Tally::default()]).is_err());
    }
}
