//! Times the statistics for `bench/features.py`: a line `CASE IMAGES WIDTH` in, a line of JSON out.
//!
//! Features are drawn from their index alone, so that the other side has the same.

use std::io::{BufRead as _, Write as _};
use std::time::Instant;

use candlewick_stats::{
    Kept, Lift as _, Projection, RIDGES, Ridge, View, scores, validation_errors,
};
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
                let lift = lift()?;
                let start = Instant::now();
                let errors = validation_errors(
                    &lift,
                    &rows,
                    &labels,
                    images * 4 / 5,
                    &(0..CLASSES),
                    &RIDGES,
                );
                (start.elapsed().as_secs_f64(), errors)
            }
            "predict" => {
                let lift = lift()?;
                let head: Vec<f32> = (0..width * CLASSES).map(|at| drawn(at as u64)).collect();
                let start = Instant::now();
                let lifted = lift.lift(&rows, 0..width);
                let found = scores(&lifted, width, View::rows(&head, CLASSES), CLASSES);
                (
                    start.elapsed().as_secs_f64(),
                    found[..3].iter().map(|v| f64::from(*v)).collect(),
                )
            }
            "cosine" => {
                let means = &rows[..CLASSES * DIM];
                let start = Instant::now();
                let unit = |rows: &[f32]| -> Vec<f64> {
                    let unit = rows.chunks_exact(DIM).flat_map(|row| {
                        let norm = row
                            .iter()
                            .map(|v| f64::from(*v).powi(2))
                            .sum::<f64>()
                            .sqrt();
                        row.iter().map(move |v| f64::from(*v) / norm)
                    });
                    unit.collect()
                };
                let (all, means) = (unit(&rows), unit(means));
                let found = scores(&all, DIM, View::rows(&means, DIM).t(), CLASSES);
                (start.elapsed().as_secs_f64(), found[..3].to_vec())
            }
            other => return Err(format!("there is no case {other:?}").into()),
        };
        let peak = peak();
        println!("{{\"seconds\":{seconds},\"peak_kib\":{peak},\"values\":{values:?}}}");
        std::io::stdout().flush()?;
    }
    Ok(())
}
