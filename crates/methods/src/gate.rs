//! A gate that says for each image whether a second network looks at it too, as in PromptFusion-Lite (Chen et al. 2024, "PromptFusion:
//! Decoupling Stability and Plasticity for Continual Learning"; `HaoranChen/PromptFusion:train_pflite.py`, `utils.py`).
//!
//! ```text
//! a = W_2 tanh(W_1 f + b_1) + b_2                           (2): look, or leave it
//! s = softmax((a + n) / τ)                                  n = −log(−log u) in training, 0 at test
//! g = onehot(argmax s) + s − stop(s)                        hard forward, soft backward
//! L = Λ (mean g_0 − γ)² + Δ KL(softmax(a_old / 2) ‖ softmax(a / 2))      a_old: the gate as the task found it
//! ```
//!
//! The reference draws `n` at test too, so that a prediction is a matter of luck (`at_test = "noisy"`; here it is drawn from the seed and the
//! image), and forgets the `tanh` in `a_old` (`old = "linear"`).

use candle_core::{D, DType, Device, Tensor};
use candle_nn::ops::{log_softmax, softmax};
use candlewick_core::{Error, Init, Params, Result, Session};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use serde::{Deserialize, Serialize};

/// `[method.gate]`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gating {
    /// Width of the hidden layer; 100 as published.
    pub hidden: usize,
    /// `τ`; 3 as published.
    pub temperature: f64,
    /// The part `γ` of the images that are to be looked at twice.
    pub open: f64,
    /// `Λ`, the weight of that.
    pub open_weight: f64,
    /// `Δ`, the weight of what the gate was.
    pub keep_weight: f64,
    /// What the gate was.
    #[serde(default)]
    pub old: OldGate,
    /// How it decides at test.
    #[serde(default)]
    pub at_test: AtTest,
}

/// The gate of the tasks before.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OldGate {
    /// As it was.
    #[default]
    Whole,
    /// Without its `tanh`.
    Linear,
}

/// How a gate decides at test.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtTest {
    /// By the larger of its two outputs.
    #[default]
    Sure,
    /// With noise, as in training.
    Noisy,
}

impl Gating {
    /// Checks ranges by key.
    pub fn check(&self) -> Result<()> {
        let refuse = |key: &str, problem: String| Err(Error::setting(key_of(key), problem));
        if self.hidden == 0 {
            return refuse("hidden", "must be greater than 0, found 0".into());
        }
        let temperature = self.temperature;
        if !(temperature > 0.0 && temperature.is_finite()) {
            let problem = format!("must be greater than 0, found {temperature}");
            return refuse("temperature", problem);
        }
        if !(0.0..=1.0).contains(&self.open) {
            return refuse("open", format!("must be 0 to 1, found {}", self.open));
        }
        for (key, weight) in [
            ("open_weight", self.open_weight),
            ("keep_weight", self.keep_weight),
        ] {
            if !(weight >= 0.0 && weight.is_finite()) {
                return refuse(key, format!("must be at least 0, found {weight}"));
            }
        }
        Ok(())
    }

    /// Named departures.
    pub(crate) fn compat(&self) -> impl Iterator<Item = &'static str> {
        let switches = [
            (self.at_test == AtTest::Noisy, "gate.at_test=noisy"),
            (self.old == OldGate::Linear, "gate.old=linear"),
        ];
        switches
            .into_iter()
            .filter(|(on, _)| *on)
            .map(|(_, name)| name)
    }
}

fn key_of(key: &str) -> String {
    format!("method.gate.{key}")
}

/// Weight and bias of both layers.
type Layers = [Tensor; 4];
const NAMES: [&str; 4] = [
    "gate.0.weight",
    "gate.0.bias",
    "gate.1.weight",
    "gate.1.bias",
];

/// A gate under way.
pub struct Gate {
    config: Gating,
    seed: u64,
    now: Layers,
    /// As the task found it; none in the first.
    old: Option<Layers>,
}

/// What a gate says in training.
pub struct Opened {
    /// `g_0`, `(B, 1)`.
    pub open: Tensor,
    /// The gate's own loss.
    pub loss: Tensor,
}

impl Gate {
    /// Over features of `dim` values; weights and biases start as PyTorch's.
    pub fn new(config: Gating, dim: usize, seed: u64, params: &mut Params) -> Result<Self> {
        let shapes: [&[usize]; 4] = [
            &[config.hidden, dim],
            &[config.hidden],
            &[2, config.hidden],
            &[2],
        ];
        let mut layer = |i: usize| {
            let fan_in = if i < 2 { dim } else { config.hidden };
            let high = (1.0 / fan_in as f32).sqrt();
            params.create(NAMES[i], shapes[i], Init::Uniform { low: -high, high })
        };
        Ok(Self {
            config,
            seed,
            now: [layer(0)?, layer(1)?, layer(2)?, layer(3)?],
            old: None,
        })
    }

    /// A task begins; what was learned before is what it is not to forget.
    pub fn begin_task(&mut self, index: usize) -> Result<()> {
        self.old = match index {
            0 => None,
            _ => {
                let [a, b, c, d] = self.now.each_ref().map(|t| t.detach().copy());
                Some([a?, b?, c?, d?])
            }
        };
        Ok(())
    }

    /// `n` for a batch in training, `(B, 2)`; `step` is counted over the run.
    pub fn noise(&self, step: u64, batch: usize) -> Result<Tensor> {
        gumbel(self.seed, &[step], batch, self.now[0].device())
    }

    /// For features `(B, dim)` in training.
    pub fn train(&self, f: &Tensor, noise: &Tensor) -> Result<Opened> {
        let a = logits(&self.now, f, true)?;
        let soft = self.softened(&a, noise)?;
        let hard = hard(&soft)?;
        // One less the other is exactly 0, so forward it is the hard one.
        let g = (hard - soft.detach())?.add(&soft)?;
        let open = g.narrow(1, 0, 1)?;
        let part = (open.mean_all()? - self.config.open)?.sqr()?;
        let mut loss = (part * self.config.open_weight)?;
        if let Some(old) = &self.old {
            let was = logits(old, f, self.config.old == OldGate::Whole)?;
            let log_was = log_softmax(&(was / 2.0)?, D::Minus1)?;
            let log_is = log_softmax(&(a / 2.0)?, D::Minus1)?;
            let apart = (log_was.exp()? * (log_was - log_is)?)?;
            let apart = (apart.sum_all()? / f.dim(0)? as f64)?;
            loss = (loss + (apart * self.config.keep_weight)?)?;
        }
        Ok(Opened { open, loss })
    }

    /// The images, by their place in the batch, that are looked at twice at test.
    pub fn open(&self, f: &Tensor, ids: &[u64]) -> Result<Vec<u32>> {
        let a = logits(&self.now, f, true)?.detach();
        let a = match self.config.at_test {
            AtTest::Sure => a,
            // Beside those of training, which are counted from 0.
            AtTest::Noisy => self.softened(&a, &gumbel(!self.seed, ids, 1, a.device())?)?,
        };
        let rows: Vec<Vec<f32>> = a.to_vec2()?;
        let places = (0u32..).zip(rows);
        Ok(places
            .filter(|(_, row)| row[0] >= row[1])
            .map(|(i, _)| i)
            .collect())
    }

    fn softened(&self, a: &Tensor, noise: &Tensor) -> Result<Tensor> {
        Ok(softmax(
            &((a + noise)? / self.config.temperature)?,
            D::Minus1,
        )?)
    }

    /// What is under way.
    pub fn session(&self) -> Session {
        let mut session = Session::new();
        for (name, tensor) in NAMES.iter().zip(self.old.iter().flatten()) {
            session.put(name, tensor.clone());
        }
        session
    }

    /// Takes it up again.
    pub fn resume(&mut self, mut session: Session) -> Result<()> {
        if let Some(old) = &mut self.old {
            for (name, tensor) in NAMES.iter().zip(old) {
                *tensor = session
                    .take_shaped(name, tensor.dims())?
                    .to_device(tensor.device())?;
            }
        }
        session.end()
    }
}

fn logits([w1, b1, w2, b2]: &Layers, f: &Tensor, bent: bool) -> Result<Tensor> {
    let hidden = f.matmul(&w1.t()?)?.broadcast_add(b1)?;
    let hidden = if bent { hidden.tanh()? } else { hidden };
    Ok(hidden.matmul(&w2.t()?)?.broadcast_add(b2)?)
}

/// One-hot of the larger of two, the first where they are equal.
fn hard(soft: &Tensor) -> Result<Tensor> {
    let soft = soft.detach();
    let (first, second) = (soft.narrow(1, 0, 1)?, soft.narrow(1, 1, 1)?);
    let open = first.ge(&second)?.to_dtype(DType::F32)?;
    Ok(Tensor::cat(&[&open, &open.affine(-1.0, 1.0)?], 1)?)
}

/// Gumbel noise `(streams · rows, 2)`, for `rows` rows of two from each of the streams of a seed.
fn gumbel(seed: u64, streams: &[u64], rows: usize, device: &Device) -> Result<Tensor> {
    let mut noise = Vec::with_capacity(2 * rows * streams.len());
    for &stream in streams {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(stream);
        noise.extend((0..2 * rows).map(|_| {
            // Within (0, 1).
            let u = ((rng.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
            -(-u.ln()).ln() as f32
        }));
    }
    Ok(Tensor::from_vec(noise, (rows * streams.len(), 2), device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATING: Gating = Gating {
        hidden: 8,
        temperature: 3.0,
        open: 0.4,
        open_weight: 0.7,
        keep_weight: 0.1,
        old: OldGate::Whole,
        at_test: AtTest::Sure,
    };

    fn gate() -> Result<(Gate, Params, Tensor)> {
        let mut params = Params::seeded(3, &Device::Cpu);
        let gate = Gate::new(GATING, 5, 3, &mut params)?;
        let f = params.create("f", &[400, 5], Init::Normal { std: 1.0 })?;
        Ok((gate, params, f))
    }

    #[test]
    fn noise_is_gumbels_and_of_the_step_alone() -> Result<()> {
        let noise = |stream, rows| -> Result<Vec<f32>> {
            let noise = gumbel(1, &[stream], rows, &Device::Cpu)?;
            Ok(noise.flatten_all()?.to_vec1()?)
        };
        let many = noise(7, 20_000)?;
        let n = many.len() as f64;
        let mean = many.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
        let apart = many.iter().map(|x| (f64::from(*x) - mean).powi(2));
        let var = apart.sum::<f64>() / n;
        // Euler's constant, and π² / 6.
        assert!((mean - 0.5772).abs() < 0.02, "{mean}");
        assert!((var - 1.6449).abs() < 0.05, "{var}");
        assert_eq!(noise(7, 3)?, many[..6]);
        assert_ne!(noise(8, 3)?, many[..6]);
        Ok(())
    }

    /// Open or shut, and not the same with other noise; at test by the larger output.
    #[test]
    fn a_gate_is_open_or_shut() -> Result<()> {
        let (gate, _, f) = gate()?;
        let opened = |step: u64| -> Result<Vec<f32>> {
            let open = gate.train(&f, &gate.noise(step, 400)?)?.open;
            Ok(open.flatten_all()?.to_vec1()?)
        };
        assert!(opened(0)?.iter().all(|g| (g * (g - 1.0)).abs() < 1e-6));
        assert_ne!(opened(0)?, opened(1)?);
        let ids: Vec<u64> = (0..400).collect();
        let sure = gate.open(&f, &ids)?;
        assert!(!sure.is_empty() && sure.len() < 400);
        let noisy = Gate {
            config: Gating {
                at_test: AtTest::Noisy,
                ..GATING
            },
            ..gate
        };
        let drawn = noisy.open(&f, &ids)?;
        assert_ne!(drawn, sure);
        // An image has its own draw, whatever it stands beside.
        let last = noisy.open(&f.narrow(0, 399, 1)?, &ids[399..])?;
        assert_eq!(drawn.contains(&399), !last.is_empty());
        Ok(())
    }

    #[test]
    fn ranges_are_checked_by_key() {
        for (change, key) in [
            (
                Gating {
                    hidden: 0,
                    ..GATING
                },
                "hidden",
            ),
            (
                Gating {
                    temperature: 0.0,
                    ..GATING
                },
                "temperature",
            ),
            (
                Gating {
                    open: 1.5,
                    ..GATING
                },
                "open",
            ),
            (
                Gating {
                    open_weight: -1.0,
                    ..GATING
                },
                "open_weight",
            ),
            (
                Gating {
                    keep_weight: f64::NAN,
                    ..GATING
                },
                "keep_weight",
            ),
        ] {
            let error = change.check().map_err(|e| e.to_string());
            assert!(error.is_err_and(|e| e.contains(&format!("method.gate.{key}`"))));
        }
        assert!(GATING.check().is_ok());
    }
}
