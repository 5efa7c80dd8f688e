//! SSF: the output of every operation scaled and shifted (Lian et al. 2022, "Scaling & Shifting Your Features: A New Baseline for
//! Efficient Model Tuning").
//!
//! ```text
//! y ← y ⊙ g + b          behind the patch embedding; in every block LN₁, qkv, projection, LN₂, fc₁ (before GELU), fc₂; the
//!                        last LN
//! ```
//!
//! `g ~ N(1, 0.02)`, `b ~ N(0, 0.02)`. Source: `LAMDA-CL/LAMDA-PILOT:backbone/vit_ssf.py` (5240714).

use std::collections::HashMap;

use candle_core::Tensor;
use candlewick_core::{Cue, Init, Op, Params, Prompt, Result, Spec};

/// A scale and a shift for each operation.
pub struct Ssf(HashMap<Op, [Tensor; 2]>);

impl Ssf {
    /// Creates `ssf.OP.scale` and `ssf.OP.shift`, where OP is [`name`].
    pub fn new(spec: &Spec, params: &mut Params) -> Result<Self> {
        let (dim, hidden) = (spec.dim, spec.mlp_dim);
        let mut ops = vec![(Op::PatchEmbed, dim), (Op::Norm, dim)];
        for i in 0..spec.depth {
            ops.extend([
                (Op::Norm1(i), dim),
                (Op::Qkv(i), 3 * dim),
                (Op::Proj(i), dim),
                (Op::Norm2(i), dim),
                (Op::Fc1(i), hidden),
                (Op::Fc2(i), dim),
            ]);
        }
        let mut all = HashMap::new();
        for (op, width) in ops {
            let Some(name) = name(op) else { continue };
            let init = Init::Normal { std: 0.02 };
            let (scale, shift) = (format!("ssf.{name}.scale"), format!("ssf.{name}.shift"));
            let drawn = params.create(&scale, &[width], init)?;
            params.set(&scale, &(drawn.detach() + 1.0)?)?;
            let shift = params.create(&shift, &[width], init)?;
            all.insert(op, [params.get(&scale)?, shift]);
        }
        Ok(Self(all))
    }
}

/// What the parameters of an operation are called; `None` for those that are left alone.
pub fn name(op: Op) -> Option<String> {
    Some(match op {
        Op::PatchEmbed => "patch_embed".into(),
        Op::Norm => "norm".into(),
        Op::Norm1(i) => format!("{i}.norm1"),
        Op::Qkv(i) => format!("{i}.qkv"),
        Op::Proj(i) => format!("{i}.proj"),
        Op::Norm2(i) => format!("{i}.norm2"),
        Op::Fc1(i) => format!("{i}.fc1"),
        Op::Fc2(i) => format!("{i}.fc2"),
        Op::Attention(_) | Op::AttentionBranch(_) | Op::MlpBranch(_) => return None,
    })
}

impl Prompt for Ssf {
    fn tunes(&self, op: Op) -> bool {
        self.0.contains_key(&op)
    }

    fn tune(&self, op: Op, _: &Tensor, output: Tensor, cue: &Cue) -> Result<Tensor> {
        let Some([scale, shift]) = self.0.get(&op) else {
            return Ok(output);
        };
        // Nothing is differentiated at test, and a graph would keep every activation alive.
        let (scale, shift) = match cue.train {
            true => (scale.clone(), shift.clone()),
            false => (scale.detach(), shift.detach()),
        };
        Ok(output.broadcast_mul(&scale)?.broadcast_add(&shift)?)
    }
}
