//! Times the statistics for `bench/features.py`: a line `CASE IMAGES WIDTH` in, a line of JSON out.
//!
//! Features are drawn from their index alone, so that the other side has the same. `limit 0 0` gives what the threads can do at
//! most, in GFLOP/s of f32 and f64; `accuracy` how far heads in f32 are from those in f64, for ridges of 1e6, 1e4, 100 and 1.

use std::hint::black_box;
use std::io::{BufRead as _, Write as _};
use std::time::Instant;

use candlewick_stats::{
    Cholesky, Kept, Projection, RIDGES, Ridge, cosines, lifted_scores, validation_errors,
};
use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

const DIM: usize = 768;
const CLASSES: usize = 200;

/// SplitMix64 of `at`, as a number in [−0.5, 0.5).
fn drawn(at: u64) -> f32 {
    let mut z = at.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 24) as f32 - 0.5
}

fn features(images: usize) -> (Vec<f32>, Vec<u32>) {
    let labels: Vec<u32> = (0..images).map(|i| (i % CLASSES) as u32).collect();
    let rows = (0..images * DIM).into_par_iter().map(|at| {
        let own = at % DIM % CLASSES == at / DIM % CLASSES;
        drawn(at as u64) + if own { 0.5 } else { 0.0 }
    });
    (rows.collect(), labels)
}

fn weights(width: usize) -> Vec<f32> {
    let first = 1u64 << 40;
    (0..DIM * width)
        .into_par_iter()
        .map(|at| 3.5 * drawn(first + at as u64))
        .collect()
}

/// The median of three calls after one that warms up, and what came out.
fn again<T>(work: impl Fn() -> T) -> (f64, T) {
    let mut found = work();
    let mut seconds = [0f64; 3];
    for seconds in &mut seconds {
        let start = Instant::now();
        found = work();
        *seconds = start.elapsed().as_secs_f64();
    }
    seconds.sort_by(f64::total_cmp);
    (seconds[1], found)
}

/// The largest difference of a head and that in f64, beside the largest value.
fn far_from_f64(ridge: &Ridge, value: f64) -> Result<f64, Box<dyn std::error::Error>> {
    let got = ridge.solve(value)?;
    let Kept::Sums(gram, sums) = ridge.kept() else {
        return Err("folded".into());
    };
    let factor = Cholesky::new(gram.map(f64::from), value)?;
    let rows = 0..gram.n();
    let mut want: Vec<f64> = rows
        .flat_map(|i| sums.iter().map(move |sum| f64::from(sum[i])))
        .collect();
    factor.solve(&mut want, sums.len())?;
    let size = want.iter().fold(0f64, |m, v| m.max(v.abs()));
    let pairs = got.weights.iter().zip(&want);
    Ok(pairs.fold(0f64, |m, (g, w)| m.max((f64::from(*g) - w).abs())) / size)
}

/// Enough independent chains to hide the latency of two FMA units, few enough for 16 registers.
const CHAINS: usize = 12;
const ROUNDS: usize = 1_000_000;

/// Fused multiply-adds that touch registers alone; gives their number.
struct Fma<T>(T);

impl WithSimd for Fma<f32> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let (factor, term) = (simd.splat_f32s(self.0), simd.splat_f32s(0.25));
        let mut chains = [simd.splat_f32s(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for x in &mut chains {
                *x = simd.mul_add_f32s(*x, factor, term);
            }
        }
        for x in chains {
            black_box(simd.reduce_sum_f32s(x));
        }
        (ROUNDS * CHAINS * S::F32_LANES) as f64
    }
}

impl WithSimd for Fma<f64> {
    type Output = f64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f64 {
        let (factor, term) = (simd.splat_f64s(self.0), simd.splat_f64s(0.25));
        let mut chains = [simd.splat_f64s(1.0); CHAINS];
        for _ in 0..ROUNDS {
            for x in &mut chains {
                *x = simd.mul_add_f64s(*x, factor, term);
            }
        }
        for x in chains {
            black_box(simd.reduce_sum_f64s(x));
        }
        (ROUNDS * CHAINS * S::F64_LANES) as f64
    }
}

/// GFLOP/s of all threads, the best of several tries.
fn limit<T: From<f32> + Send + Sync>() -> f64
where
    Fma<T>: WithSimd<Output = f64>,
{
    let work = || Arch::new().dispatch(Fma(T::from(black_box(0.5))));
    let tries = (0..9).map(|_| {
        let start = Instant::now();
        let done: f64 = rayon::broadcast(|_| work()).iter().sum();
        2.0 * done / start.elapsed().as_secs_f64() / 1e9
    });
    tries.fold(0.0, f64::max)
}

fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.and_then(|l| l.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let parts: Vec<&str> = line.split_whitespace().collect();
        let [case, images, width] = parts[..] else {
            return Err(format!("expected CASE IMAGES WIDTH, found {line:?}").into());
        };
        let (images, width): (usize, usize) = (images.parse()?, width.parse()?);
        let (rows, labels) = features(images);
        let lift = || Projection::new(DIM, width, weights(width));
        let (seconds, values) = match case {
            "statistics" => {
                let mut ridge = Ridge::new(Box::new(lift()?));
                ridge.grow(CLASSES);
                ridge.fold();
                let start = Instant::now();
                ridge.add(&rows, &labels)?;
                let seconds = start.elapsed().as_secs_f64();
                let Kept::Sums(gram, sums) = ridge.kept() else {
                    return Err("folded".into());
                };
                let last = width - 1;
                let some = [
                    gram.get(0, 0),
                    gram.get(last, 1),
                    gram.get(last, last),
                    sums[7][3],
                ];
                (seconds, some.map(f64::from).to_vec())
            }
            "head" => {
                let mut ridge = Ridge::new(Box::new(lift()?));
                ridge.fold();
                ridge.add(&rows, &labels)?;
                let start = Instant::now();
                let solved = ridge.solve(1e4)?;
                (
                    start.elapsed().as_secs_f64(),
                    vec![f64::from(solved.weights[7])],
                )
            }
            "search" => {
                let (lift, fit) = (lift()?, images * 4 / 5);
                again(|| validation_errors(&lift, &rows, &labels, fit, &(0..CLASSES), &RIDGES))
            }
            "predict" => {
                let lift = lift()?;
                let head: Vec<f32> = (0..width * CLASSES).map(|at| drawn(at as u64)).collect();
                let (seconds, found) = again(|| lifted_scores(&lift, &rows, &head, CLASSES));
                (seconds, found[..3].iter().map(|v| f64::from(*v)).collect())
            }
            "cosine" => {
                let (seconds, found) = again(|| cosines(&rows, &rows[..CLASSES * DIM], DIM, 1));
                (seconds, found[..3].iter().map(|v| f64::from(*v)).collect())
            }
            "accuracy" => {
                let mut ridge = Ridge::new(Box::new(lift()?));
                ridge.fold();
                ridge.add(&rows, &labels)?;
                let start = Instant::now();
                let mut found = Vec::new();
                for value in [1e6, 1e4, 1e2, 1.0] {
                    found.push(far_from_f64(&ridge, value)?);
                }
                (start.elapsed().as_secs_f64(), found)
            }
            "limit" => {
                let start = Instant::now();
                let limits = vec![limit::<f32>(), limit::<f64>()];
                (start.elapsed().as_secs_f64(), limits)
            }
            other => return Err(format!("there is no case {other:?}").into()),
        };
        let peak = peak();
        println!("{{\"seconds\":{seconds},\"peak_kib\":{peak},\"values\":{values:?}}}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
