//! Random draws that never change: ChaCha8 under a key made of what the draw depends on.
//!
//! The 32 bytes of the key are a purpose and three numbers, so that two draws share a generator only if
//! they mean the same thing, and no order of threads or batches can matter.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What a generator is for; eight bytes, the first quarter of its key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose {
    /// Order of a training pass: (seed, epoch, task).
    Shuffle,
    /// Augmentation of one image: (seed, epoch, id).
    Augment,
}

pub(crate) fn generator(purpose: Purpose, numbers: [u64; 3]) -> ChaCha8Rng {
    let tag = match purpose {
        Purpose::Shuffle => b"shuffle\0",
        Purpose::Augment => b"augment\0",
    };
    let mut key = [0; 32];
    key[..8].copy_from_slice(tag);
    for (part, number) in key[8..].chunks_exact_mut(8).zip(numbers) {
        part.copy_from_slice(&number.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

/// Uniform in [0, 1), a multiple of 2^-53.
pub(crate) fn unit(rng: &mut impl RngCore) -> f64 {
    (rng.next_u64() >> 11) as f64 / (1u64 << 53) as f64
}

/// Uniform in [low, high).
pub(crate) fn between(rng: &mut impl RngCore, [low, high]: [f64; 2]) -> f64 {
    low + (high - low) * unit(rng)
}

/// Uniform in 0..=max, by rejection of what lies above `max` under its bit mask.
pub(crate) fn up_to(rng: &mut impl RngCore, max: u64) -> u64 {
    let mask = u64::MAX.checked_shr(max.leading_zeros()).unwrap_or(0);
    loop {
        let value = rng.next_u64() & mask;
        if value <= max {
            return value;
        }
    }
}

/// Fisher-Yates from the last index down: every order is equally likely.
pub(crate) fn shuffle<T>(rng: &mut impl RngCore, items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, up_to(rng, i as u64) as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_depend_on_purpose_and_on_every_number() {
        let first = |purpose, numbers| generator(purpose, numbers).next_u64();
        let base = first(Purpose::Shuffle, [1, 2, 3]);
        assert_eq!(base, first(Purpose::Shuffle, [1, 2, 3]));
        for other in [
            first(Purpose::Augment, [1, 2, 3]),
            first(Purpose::Shuffle, [0, 2, 3]),
            first(Purpose::Shuffle, [1, 0, 3]),
            first(Purpose::Shuffle, [1, 2, 0]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn bounded_draws_stay_in_range_and_reach_both_ends() {
        let mut rng = generator(Purpose::Shuffle, [0; 3]);
        let mut seen = [0; 5];
        for _ in 0..1000 {
            seen[up_to(&mut rng, 4) as usize] += 1;
            let x = between(&mut rng, [-2.0, 3.0]);
            assert!((-2.0..3.0).contains(&x));
        }
        assert!(seen.iter().all(|n| (150..250).contains(n)), "{seen:?}");
        assert_eq!(up_to(&mut rng, 0), 0);
        up_to(&mut rng, u64::MAX);
    }
}
