//! Is the one method better than the other, over the same class orders?

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// Up to so many pairs, all ways to swap them are gone through.
const EXACT: usize = 20;

/// Two-sided p of the paired permutation test (Fisher's): the share of all `2ⁿ` ways to swap the members of pairs that
/// part the means at least as far as they are apart. It assumes no distribution. With `n` pairs it is at least `2 / 2ⁿ`, so
/// five seeds cannot show 5 %. Beyond 20 pairs, 2²⁰ ways are drawn with a fixed seed.
pub fn p_value(differences: &[f64]) -> f64 {
    let n = differences.len();
    let observed = differences.iter().sum::<f64>().abs();
    // Sums in another order must not count as smaller.
    let reached = |sum: f64| sum.abs() >= observed - 1e-9 * (1.0 + observed);
    let total = 1u64 << n.min(EXACT);
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    let mut count = 0u64;
    for way in 0..total {
        let sum: f64 = if n <= EXACT {
            let sign = |i: usize| if way >> i & 1 == 1 { -1.0 } else { 1.0 };
            differences
                .iter()
                .enumerate()
                .map(|(i, d)| sign(i) * d)
                .sum()
        } else {
            let mut signs = 0;
            let swapped = |(i, d): (usize, &f64)| {
                if i % 64 == 0 {
                    signs = rng.next_u64();
                }
                if signs >> (i % 64) & 1 == 1 { -d } else { *d }
            };
            differences.iter().enumerate().map(swapped).sum()
        };
        count += u64::from(reached(sum));
    }
    count as f64 / total as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_cases_by_hand() {
        // All signs alike: only all or none swapped reach as far.
        assert_eq!(p_value(&[1.0, 2.0, 3.0]), 2.0 / 8.0);
        assert_eq!(p_value(&[-0.1; 10]), 2.0 / 1024.0);
        // Sum 3: of ±1 ±2 ±4 the sums 3, 5, 7 and their negatives: 6 of 8.
        assert_eq!(p_value(&[1.0, -2.0, 4.0]), 6.0 / 8.0);
        assert_eq!(p_value(&[0.0, 0.0]), 1.0);
        assert_eq!(p_value(&[1.0, -1.0]), 1.0);
        assert_eq!(p_value(&[]), 1.0);
    }

    #[test]
    fn many_pairs_are_drawn_and_come_near() {
        // A normal sum: mean 0, deviation √30; observed 10 is 1.826 deviations, with its half-step p is about 0.1.
        let differences: Vec<f64> = (0..30).map(|i| if i < 20 { 1.0 } else { -1.0 }).collect();
        let exact = 0.098_737; // P(Binomial(30, 1/2) ≥ 20 or ≤ 10)
        let p = p_value(&differences);
        assert!((p - exact).abs() < 0.002, "{p}");
    }
}
