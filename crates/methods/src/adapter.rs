//! AdaptFormer's adapter beside the MLP of every block (Chen et al. 2022, "AdaptFormer: Adapting Vision Transformers for Scalable
//! Visual Recognition").
//!
//! ```text
//! y = x + MHSA(LN₁ x)
//! x ← y + MLP(LN₂ y) + 0.1 · (U drop(ReLU(D y + b_D)) + b_U)          D (r, dim), U (dim, r); y is not normed
//! ```
//!
//! `D` starts uniform within `±1/√dim`, the rest at 0, so that the network starts as it was; dropout 0.1 in training. Source:
//! `LAMDA-CL/LAMDA-PILOT:backbone/vit_adapter.py` (5240714).

use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::Tensor;
use candlewick_core::{Cue, Init, Op, Params, Prompt, Result, Session, Spec, TaskInfo};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

use crate::pet::affine;

/// As in the source.
const SCALE: f64 = 0.1;

/// One adapter for each block.
pub struct Adapters {
    blocks: Vec<Block>,
    dropout: f32,
    seed: u64,
    /// Counts the masks drawn, one a block and step.
    masks: AtomicU64,
}

struct Block {
    down: [Tensor; 2],
    up: [Tensor; 2],
}

impl Adapters {
    /// Creates `adapter.I.down.weight (r, dim)`, `.down.bias`, `.up.weight (dim, r)` and `.up.bias`.
    pub fn new(
        bottleneck: usize,
        dropout: f32,
        seed: u64,
        spec: &Spec,
        params: &mut Params,
    ) -> Result<Self> {
        Self::named("adapter", bottleneck, dropout, seed, spec, params)
    }

    /// The same under `name.I.` in place of `adapter.I.`.
    pub fn named(
        name: &str,
        bottleneck: usize,
        dropout: f32,
        seed: u64,
        spec: &Spec,
        params: &mut Params,
    ) -> Result<Self> {
        let all = name;
        let (r, dim) = (bottleneck, spec.dim);
        let high = 1.0 / (dim as f32).sqrt();
        let mut block = |i: usize| -> Result<Block> {
            let mut new = |name: &str, shape: &[usize], init| {
                params.create(&format!("{all}.{i}.{name}"), shape, init)
            };
            let drawn = Init::Uniform { low: -high, high };
            Ok(Block {
                down: [
                    new("down.weight", &[r, dim], drawn)?,
                    new("down.bias", &[r], Init::Zeros)?,
                ],
                up: [
                    new("up.weight", &[dim, r], Init::Zeros)?,
                    new("up.bias", &[dim], Init::Zeros)?,
                ],
            })
        };
        Ok(Self {
            blocks: (0..spec.depth).map(&mut block).collect::<Result<_>>()?,
            dropout,
            seed,
            masks: AtomicU64::new(0),
        })
    }

    /// 0 or `1 / (1 − p)` for every value of `x`.
    fn mask(&self, x: &Tensor) -> Result<Tensor> {
        let drawn = self.masks.fetch_add(1, Ordering::Relaxed);
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(drawn);
        let keep = 1.0 / (1.0 - self.dropout);
        let values = (0..x.elem_count()).map(|_| {
            let uniform = (rng.next_u32() >> 8) as f32 / (1u32 << 24) as f32;
            if uniform < self.dropout { 0.0 } else { keep }
        });
        Ok(Tensor::from_vec(values.collect(), x.dims(), x.device())?)
    }
}

impl Prompt for Adapters {
    /// The masks of a task are its own, whatever was trained before it.
    fn begin_task(&mut self, task: &TaskInfo, _: &mut Params) -> Result<()> {
        self.masks = AtomicU64::new((task.index as u64) << 32);
        Ok(())
    }

    fn session(&self) -> Result<Session> {
        let mut session = Session::new();
        session.put_count("masks", self.masks.load(Ordering::Relaxed))?;
        Ok(session)
    }

    fn resume(&mut self, mut session: Session) -> Result<()> {
        self.masks = AtomicU64::new(session.take_count("masks")?);
        session.end()
    }

    fn tunes(&self, op: Op) -> bool {
        matches!(op, Op::MlpBranch(_))
    }

    fn tune(&self, op: Op, input: &Tensor, output: Tensor, cue: &Cue) -> Result<Tensor> {
        let Op::MlpBranch(i) = op else {
            return Ok(output);
        };
        let block = &self.blocks[i];
        let flat = input.flatten_to(1)?;
        let mut hidden = affine(&flat, &block.down, cue.train)?.relu()?;
        if cue.train && self.dropout > 0.0 {
            hidden = (&hidden * self.mask(&hidden)?)?;
        }
        let change = affine(&hidden, &block.up, cue.train)?.reshape(input.dims())?;
        Ok((output + (change * SCALE)?)?)
    }
}
