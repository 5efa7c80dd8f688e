//! Named trainable parameters, drawn from a seed.

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal, Uniform};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// How a parameter starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zeros.
    Zeros,
    /// Uniform on `[low, high)`.
    Uniform {
        /// Lower end.
        low: f32,
        /// Upper end.
        high: f32,
    },
    /// Normal with mean 0, cut at two standard deviations.
    TruncatedNormal {
        /// Standard deviation before the cut.
        std: f32,
    },
}

impl Init {
    fn draw(self, n: usize, rng: &mut ChaCha8Rng) -> Result<Vec<f32>> {
        Ok(match self {
            Self::Zeros => vec![0.0; n],
            Self::Uniform { low, high } => {
                let uniform = Uniform::new(low, high)
                    .map_err(|e| Error::setting("init", format!("[{low}, {high}): {e}")))?;
                (0..n).map(|_| uniform.sample(rng)).collect()
            }
            Self::TruncatedNormal { std } => (0..n)
                .map(|_| {
                    loop {
                        let z: f32 = StandardNormal.sample(rng);
                        if z.abs() <= 2.0 {
                            break z * std;
                        }
                    }
                })
                .collect(),
        })
    }
}

/// The parameters of one method: variables by name, each drawn from its own generator.
///
/// The generator of row `r` of parameter `name` is seeded with `SHA-256(seed, name, r)`. So a value
/// depends on neither the device, the order of creation nor how classes are grouped into tasks.
///
/// A tensor handed out shares its storage with the variable and follows its updates. A snapshot
/// needs [`Tensor::copy`].
#[derive(Debug)]
pub struct Params {
    seed: u64,
    device: Device,
    vars: BTreeMap<String, Var>,
}

impl Params {
    /// No parameters yet.
    pub fn seeded(seed: u64, device: &Device) -> Self {
        Self {
            seed,
            device: device.clone(),
            vars: BTreeMap::new(),
        }
    }

    /// Creates `name` with the given shape; its first dimension counts rows.
    pub fn create(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        if self.vars.contains_key(name) {
            return Err(Error::State {
                problem: format!("parameter `{name}` exists already; use another name"),
            });
        }
        let rows = self.rows(name, 0, shape, init)?;
        self.put(name, &rows)
    }

    /// Gives `name` `rows` rows in all: those it has stay as they are, the others are drawn. The
    /// variable is a new one, so take the returned tensor in place of the old.
    pub fn grow(&mut self, name: &str, rows: usize, init: Init) -> Result<Tensor> {
        let old = self.get(name)?;
        let mut shape = old.dims().to_vec();
        let have = shape[0];
        if rows <= have {
            return Ok(old);
        }
        shape[0] = rows;
        let new = self.rows(name, have, &shape, init)?;
        let both = Tensor::cat(&[&old.copy()?, &new], 0)?;
        self.put(name, &both)
    }

    /// The current value of `name`.
    pub fn get(&self, name: &str) -> Result<Tensor> {
        match self.vars.get(name) {
            Some(var) => Ok(var.as_tensor().clone()),
            None => Err(Error::State {
                problem: format!("there is no parameter `{name}`"),
            }),
        }
    }

    /// All variables in the order of their names.
    pub fn vars(&self) -> Vec<Var> {
        self.vars.values().cloned().collect()
    }

    /// Number of trainable values.
    pub fn count(&self) -> usize {
        self.vars.values().map(|v| v.elem_count()).sum()
    }

    /// Copies of all values.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>> {
        self.vars
            .iter()
            .map(|(name, var)| Ok((name.clone(), var.as_tensor().copy()?)))
            .collect()
    }

    /// Sets every parameter from `state`; names and shapes must be the same, else nothing changes.
    pub fn load_state(&mut self, state: &BTreeMap<String, Tensor>) -> Result<()> {
        let mut problems = Vec::new();
        for (name, var) in &self.vars {
            match state.get(name) {
                None => problems.push(format!("`{name}` is missing")),
                Some(t) if t.shape() != var.shape() => problems.push(format!(
                    "`{name}` has shape {:?}, expected {:?}",
                    t.dims(),
                    var.dims()
                )),
                Some(_) => {}
            }
        }
        for name in state.keys().filter(|name| !self.vars.contains_key(*name)) {
            problems.push(format!("`{name}` is not a parameter of this method"));
        }
        if !problems.is_empty() {
            return Err(Error::State {
                problem: problems.join("; "),
            });
        }
        for (name, var) in &self.vars {
            var.set(&state[name].to_device(&self.device)?)?;
        }
        Ok(())
    }

    fn rows(&self, name: &str, first: usize, shape: &[usize], init: Init) -> Result<Tensor> {
        let (rows, row_shape) = match shape {
            [] => {
                return Err(Error::State {
                    problem: format!("parameter `{name}` needs at least one dimension"),
                });
            }
            [rows, rest @ ..] => (*rows, rest),
        };
        let width: usize = row_shape.iter().product();
        let mut values = Vec::with_capacity((rows - first) * width);
        for row in first..rows {
            let mut hash = Sha256::new();
            hash.update(self.seed.to_le_bytes());
            hash.update(name.as_bytes());
            hash.update((row as u64).to_le_bytes());
            let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
            values.extend(init.draw(width, &mut rng)?);
        }
        let mut new_shape = shape.to_vec();
        new_shape[0] = rows - first;
        Ok(Tensor::from_vec(values, new_shape, &self.device)?.to_dtype(DType::F32)?)
    }

    fn put(&mut self, name: &str, value: &Tensor) -> Result<Tensor> {
        let var = Var::from_tensor(value)?;
        let tensor = var.as_tensor().clone();
        self.vars.insert(name.to_owned(), var);
        Ok(tensor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_do_not_depend_on_how_they_came() -> Result<()> {
        let init = Init::Uniform {
            low: -1.0,
            high: 1.0,
        };
        let mut at_once = Params::seeded(7, &Device::Cpu);
        let whole = at_once.create("w", &[5, 3], init)?.to_vec2::<f32>()?;
        let mut grown = Params::seeded(7, &Device::Cpu);
        grown.create("other", &[2], Init::Zeros)?;
        grown.create("w", &[2, 3], init)?;
        let step = grown.grow("w", 5, init)?.to_vec2::<f32>()?;
        assert_eq!(whole, step);
        let mut other_seed = Params::seeded(8, &Device::Cpu);
        let other = other_seed.create("w", &[5, 3], init)?.to_vec2::<f32>()?;
        assert_ne!(whole, other);
        Ok(())
    }

    #[test]
    fn truncated_normal_stays_within_two_deviations() -> Result<()> {
        let mut params = Params::seeded(1, &Device::Cpu);
        let init = Init::TruncatedNormal { std: 0.02 };
        let values: Vec<f32> = params.create("w", &[4000], init)?.to_vec1()?;
        assert!(values.iter().all(|v| v.abs() <= 0.04));
        let var = values.iter().map(|v| v * v).sum::<f32>() / 4000.0;
        // Var of a standard normal cut at ±2 is 0.774.
        assert!((var / (0.02 * 0.02) - 0.774).abs() < 0.05, "{var}");
        Ok(())
    }

    #[test]
    fn loading_lists_every_misfit_and_changes_nothing() -> Result<()> {
        let mut params = Params::seeded(1, &Device::Cpu);
        params.create("a", &[2], Init::Zeros)?;
        params.create("b", &[2], Init::Zeros)?;
        let mut state = params.state()?;
        state.insert("a".into(), Tensor::ones(3, DType::F32, &Device::Cpu)?);
        state.remove("b");
        state.insert("c".into(), Tensor::ones(1, DType::F32, &Device::Cpu)?);
        let text = params
            .load_state(&state)
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default();
        for part in [
            "`a` has shape [3], expected [2]",
            "`b` is missing",
            "`c` is not",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(params.get("a")?.to_vec1::<f32>()?, [0.0, 0.0]);
        Ok(())
    }
}
