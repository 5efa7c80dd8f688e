//! What the machine can do at most, measured, so that a rate can be read as a share of it.

use std::hint::black_box;
use std::time::Instant;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use pulp::{Arch, Simd, WithSimd};

/// Enough independent chains to hide the latency of two FMA units, few enough for 16 registers.
const CHAINS: usize = 12;
const ROUNDS: usize = 4_000_000;

/// Fused multiply-adds that touch registers alone.
struct Fma {
    factor: f32,
    term: f32,
}

impl WithSimd for Fma {
    /// Floating-point operations done.
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u64 {
        let (factor, term) = (simd.splat_f32s(self.factor), simd.splat_f32s(self.term));
        let mut chains = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for x in &mut chains {
                *x = simd.mul_add_f32s(*x, factor, term);
            }
        }
        for x in chains {
            black_box(simd.reduce_sum_f32s(x));
        }
        (2 * ROUNDS * CHAINS * S::F32_LANES) as u64
    }
}

/// Single-precision FMA in GFLOP/s, all threads together: the best of several tries, for a limit is a maximum.
pub fn f32_fma() -> f64 {
    let work = || {
        // Values that neither overflow nor become denormal, hidden from the compiler.
        Arch::new().dispatch(Fma {
            factor: black_box(0.5),
            term: black_box(0.25),
        })
    };
    best(|| Ok(rayon::broadcast(|_| work()).iter().sum::<u64>() as f64)).unwrap_or(f64::NAN)
}

/// A large f32 product through candle in GFLOP/s.
pub fn f32_matmul() -> Result<f64> {
    const N: usize = 2048;
    let a = Tensor::ones((N, N), DType::F32, &Device::Cpu)?;
    best(|| {
        black_box(a.matmul(&a)?);
        Ok(2.0 * (N as f64).powi(3))
    })
}

/// bfloat16 products in GFLOP/s on the units the backbone uses for them. `None` where there are none.
pub fn bf16() -> Option<f64> {
    let work = || {
        let done = rayon::broadcast(|_| candlewick_kernels::bf16::busy(1 << 18));
        match done.into_iter().sum::<Option<u64>>() {
            Some(done) => Ok(done as f64),
            None => anyhow::bail!("no bf16 products"),
        }
    };
    best(work).ok()
}

/// GFLOP/s of the best of six tries; `work` returns how many operations it did.
fn best(mut work: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut best = 0f64;
    for _ in 0..6 {
        let start = Instant::now();
        let operations = work()?;
        best = best.max(operations / start.elapsed().as_secs_f64() / 1e9);
    }
    Ok(best)
}
