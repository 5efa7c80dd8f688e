//! One head of attention over a sequence with a residual and a norm, PROOF's cross-modal fusion (`LAMDA-CL/PROOF:utils/inc_net.py`).
//!
//! ```text
//! S' = LN(d(W_o d(softmax(W_q S (W_k S)ᵀ / √E)) W_v S + b) + S)        d: dropout, in training
//! ```

use candle_core::{D, Device, Tensor};
use candle_nn::ops::softmax;
use candlewick_core::{Init, Params, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::class_attention::layer_norm;

/// Its weights, `fusion.…` among the parameters.
pub struct Attend {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    bias: Tensor,
    norm: [Tensor; 2],
    dropout: f64,
    seed: u64,
}

impl Attend {
    /// Over tokens of width `dim`: products drawn from `N(0, 1/dim)`.
    pub fn new(dim: usize, dropout: f64, seed: u64, params: &mut Params) -> Result<Self> {
        let std = (1.0 / dim as f32).sqrt();
        let mut draw = |name: &str| params.create(name, &[dim, dim], Init::Normal { std });
        Ok(Self {
            query: draw("fusion.query")?,
            key: draw("fusion.key")?,
            value: draw("fusion.value")?,
            output: draw("fusion.output.weight")?,
            bias: params.create("fusion.output.bias", &[dim], Init::Zeros)?,
            norm: [
                params.create("fusion.norm.weight", &[dim], Init::Ones)?,
                params.create("fusion.norm.bias", &[dim], Init::Zeros)?,
            ],
            dropout,
            seed,
        })
    }

    /// Of `(B, N, E)`. `step`, counted over the run, draws what is left out in training; `None` at test.
    pub fn forward(&self, s: &Tensor, step: Option<u64>) -> Result<Tensor> {
        let (b, n, dim) = s.dims3()?;
        let mut rng = step.filter(|_| self.dropout > 0.0).map(|step| {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
            rng.set_stream(step);
            rng
        });
        let mut left = |x: Tensor| -> Result<Tensor> {
            match &mut rng {
                Some(rng) => Ok((&x * mask(self.dropout, x.dims(), rng, x.device())?)?),
                None => Ok(x),
            }
        };
        let flat = s.reshape((b * n, dim))?;
        let by = |w: &Tensor| flat.matmul(&w.t()?)?.reshape((b, n, dim));
        let (q, k, v) = (by(&self.query)?, by(&self.key)?, by(&self.value)?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? / (dim as f64).sqrt())?;
        let mixed = left(softmax(&scores, D::Minus1)?)?.matmul(&v)?;
        let out = mixed.reshape((b * n, dim))?.matmul(&self.output.t()?)?;
        let out = (left(out.broadcast_add(&self.bias)?)? + flat)?;
        Ok(layer_norm(&out, &self.norm, true)?.reshape((b, n, dim))?)
    }
}

/// 0 with probability `dropout`, else `1 / (1 − dropout)`.
fn mask(dropout: f64, dims: &[usize], rng: &mut ChaCha8Rng, device: &Device) -> Result<Tensor> {
    let below = (dropout * f64::from(u32::MAX)) as u32;
    let kept = (1.0 / (1.0 - dropout)) as f32;
    let draw = |_| if rng.next_u32() < below { 0.0 } else { kept };
    let values: Vec<f32> = (0..dims.iter().product()).map(draw).collect();
    Ok(Tensor::from_vec(values, dims, device)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_left_out_and_the_mean_stays() -> Result<()> {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let mask: Vec<f32> = mask(0.1, &[100_000], &mut rng, &Device::Cpu)?.to_vec1()?;
        let out = mask.iter().filter(|m| **m == 0.0).count();
        assert!((9_500..10_500).contains(&out), "{out}");
        let mean = mask.iter().sum::<f32>() / 100_000.0;
        assert!((mean - 1.0).abs() < 0.01, "{mean}");
        Ok(())
    }

    /// The same step leaves out the same, another one other things, and a test nothing.
    #[test]
    fn what_is_left_out_is_of_the_step() -> Result<()> {
        let mut params = Params::seeded(1, &Device::Cpu);
        let s = params.create("s", &[2, 5, 8], Init::Normal { std: 1.0 })?;
        let dropped = Attend::new(8, 0.3, 1, &mut params)?;
        let values = |attend: &Attend, step| -> Result<Vec<f32>> {
            Ok(attend.forward(&s, step)?.flatten_all()?.to_vec1()?)
        };
        assert_eq!(values(&dropped, Some(4))?, values(&dropped, Some(4))?);
        assert_ne!(values(&dropped, Some(4))?, values(&dropped, Some(5))?);
        let test = values(&dropped, None)?;
        assert_ne!(values(&dropped, Some(4))?, test);
        let whole = Attend {
            dropout: 0.0,
            ..dropped
        };
        assert_eq!(values(&whole, Some(4))?, test);
        Ok(())
    }
}
