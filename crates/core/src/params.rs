//! Named trainable parameters, drawn from a seed.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
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
    /// All ones.
    Ones,
    /// Uniform on `[low, high)`.
    Uniform {
        /// Lower end.
        low: f32,
        /// Upper end.
        high: f32,
    },
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
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
            Self::Ones => vec![1.0; n],
            Self::Uniform { low, high } => {
                let uniform = Uniform::new(low, high)
                    .map_err(|e| Error::setting("init", format!("[{low}, {high}): {e}")))?;
                (0..n).map(|_| uniform.sample(rng)).collect()
            }
            Self::Normal { std } => (0..n)
                .map(|_| {
                    let z: f32 = StandardNormal.sample(rng);
                    z * std
                })
                .collect(),
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
/// The generator of parameter `name` is seeded with `SHA-256(seed, name)`. So a value depends on neither the device
/// nor the order of creation.
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
        let mut hash = Sha256::new();
        hash.update(self.seed.to_le_bytes());
        hash.update(name.as_bytes());
        let mut rng = ChaCha8Rng::from_seed(hash.finalize().into());
        let values = init.draw(shape.iter().product(), &mut rng)?;
        let value = Tensor::from_vec(values, shape, &self.device)?;
        let var = Var::from_tensor(&value)?;
        let tensor = var.as_tensor().clone();
        self.vars.insert(name.to_owned(), var);
        Ok(tensor)
    }

    /// Takes a variable made elsewhere, such as a weight of a thawed backbone, under `name`.
    pub fn adopt(&mut self, name: &str, var: Var) -> Result<()> {
        if self.vars.contains_key(name) {
            return Err(Error::State {
                problem: format!("parameter `{name}` exists already; use another name"),
            });
        }
        self.vars.insert(name.to_owned(), var);
        Ok(())
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

    /// Gives `name` a value of its shape; tensors handed out before follow.
    pub fn set(&mut self, name: &str, value: &Tensor) -> Result<()> {
        match self.vars.get(name) {
            Some(var) if var.shape() == value.shape() => {
                Ok(var.set(&value.to_device(&self.device)?)?)
            }
            Some(var) => Err(Error::State {
                problem: format!(
                    "`{name}` has shape {:?}, not {:?}",
                    var.dims(),
                    value.dims()
                ),
            }),
            None => Err(Error::State {
                problem: format!("there is no parameter `{name}`"),
            }),
        }
    }

    /// Where they are.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// All variables in the order of their names.
    pub fn vars(&self) -> Vec<Var> {
        self.vars.values().cloned().collect()
    }

    /// All variables with their names, in that order: what an [`Optimizer`](crate::Optimizer) is made of.
    pub fn named(&self) -> Vec<(String, Var)> {
        let named = self.vars.iter();
        named
            .map(|(name, var)| (name.clone(), var.clone()))
            .collect()
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_depends_on_seed_and_name_alone() -> Result<()> {
        let init = Init::Uniform {
            low: -1.0,
            high: 1.0,
        };
        let draw = |seed, before: bool, name| -> Result<Vec<f32>> {
            let mut params = Params::seeded(seed, &Device::Cpu);
            if before {
                params.create("before", &[3], init)?;
            }
            Ok(params
                .create(name, &[5, 3], init)?
                .flatten_all()?
                .to_vec1()?)
        };
        let value = draw(7, false, "w")?;
        assert_eq!(value, draw(7, true, "w")?);
        assert_ne!(value, draw(8, false, "w")?);
        assert_ne!(value, draw(7, false, "v")?);
        assert!(value.iter().all(|v| (-1.0..1.0).contains(v)));
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
        state.insert(
            "a".into(),
            Tensor::ones(3, candle_core::DType::F32, &Device::Cpu)?,
        );
        state.remove("b");
        state.insert(
            "c".into(),
            Tensor::ones(1, candle_core::DType::F32, &Device::Cpu)?,
        );
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
