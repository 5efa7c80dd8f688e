//! How the prompts and keys of a pool start, and the order of things.

use candlewick_core::{Error, Init, Result};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore as _;
use serde::{Deserialize, Serialize};

/// A uniform distribution, by the name of the code that has it or by its ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(
    untagged,
    expecting = "expected \"jax\", \"pytorch\" or [low, high], two numbers"
)]
pub enum Draw {
    /// As a code base has it.
    Of(CodeBase),
    /// On `[low, high)`.
    Between([f32; 2]),
}

/// The code bases of L2P and DualPrompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CodeBase {
    /// `[0, 0.01)`, flax's `uniform` (`google-research/l2p:models/prompt.py`).
    Jax,
    /// `[−1, 1)` (`JH-LEE-KR/l2p-pytorch:prompt.py`, `LAMDA-CL/LAMDA-PILOT:backbone/prompt.py`).
    PyTorch,
}

impl Draw {
    /// Its ends.
    pub fn ends(self) -> [f32; 2] {
        match self {
            Self::Of(CodeBase::Jax) => [0.0, 0.01],
            Self::Of(CodeBase::PyTorch) => [-1.0, 1.0],
            Self::Between(ends) => ends,
        }
    }

    /// As something that can be drawn.
    pub fn init(self) -> Init {
        let [low, high] = self.ends();
        Init::Uniform { low, high }
    }

    /// That the ends are in order; the error names `key`.
    pub fn check(self, key: &str) -> Result<()> {
        let [low, high] = self.ends();
        match low < high && low.is_finite() && high.is_finite() {
            true => Ok(()),
            false => Err(Error::setting(
                key,
                format!("must be [low, high] with low < high, found [{low}, {high}]"),
            )),
        }
    }
}

/// Fisher and Yates, the same on every machine.
pub(crate) fn shuffle(order: &mut [usize], rng: &mut ChaCha8Rng) {
    for i in (1..order.len()).rev() {
        // The bias is below 2⁻³² for anything that fits into memory.
        order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
    }
}
