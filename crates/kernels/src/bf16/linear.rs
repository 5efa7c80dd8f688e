//! A single frozen layer, for blocks that something is tuned in and that therefore run operation by operation.

use std::sync::OnceLock;

use rayon::prelude::*;

use super::pack::Packed;
use super::product::SLACK;
use super::{WORKSPACE, apart, available, enter};
use crate::block::Linear;

/// Rows that one thread multiplies at a time.
const ROWS: usize = 256;

/// A frozen `y = x Wᵀ + b`, packed once.
#[derive(Debug)]
pub struct PackedLinear {
    inputs: usize,
    pub(super) forward: Packed,
    pub(super) bias: Vec<f32>,
    /// `Wᵀ`, once a backward needs it.
    turned: OnceLock<Packed>,
}

impl PackedLinear {
    /// Packs the weight.
    pub fn new(linear: &Linear<'_>) -> std::io::Result<Self> {
        let outputs = linear.bias.len();
        if outputs == 0 || !linear.weight.len().is_multiple_of(outputs) {
            return Err(std::io::Error::other(format!(
                "a weight of {} values does not fit a bias of {outputs}",
                linear.weight.len()
            )));
        }
        if !available() {
            return Err(std::io::Error::other(super::NONE));
        }
        let inputs = linear.weight.len() / outputs;
        Ok(Self {
            inputs,
            forward: Packed::new(outputs, inputs, |i, j| linear.weight[i * inputs + j])?,
            bias: linear.bias.to_vec(),
            turned: OnceLock::new(),
        })
    }

    /// Outputs and inputs.
    pub fn sizes(&self) -> (usize, usize) {
        (self.bias.len(), self.inputs)
    }

    /// `Wᵀ`, packed from the packed `W`, which has all the bits that it will have.
    pub(super) fn turned(&self) -> std::io::Result<&Packed> {
        if let Some(packed) = self.turned.get() {
            return Ok(packed);
        }
        let value = |i, j| self.forward.value(j, i);
        let packed = Packed::new(self.inputs, self.bias.len(), value)?;
        Ok(self.turned.get_or_init(|| packed))
    }

    /// Rows of `in` values to rows of `out`.
    pub fn forward(&self, x: &[f32]) -> Vec<f32> {
        rows(x, self.inputs, &self.forward, &self.bias)
    }

    /// Gradient of `y`, rows of `out` values, to that of `x`.
    pub fn backward(&self, grad: &[f32]) -> std::io::Result<Vec<f32>> {
        let none = vec![0f32; self.inputs];
        Ok(rows(grad, self.bias.len(), self.turned()?, &none))
    }
}

/// `x Wᵀ + b`, `ROWS` rows on a thread.
pub(super) fn rows(x: &[f32], inputs: usize, w: &Packed, bias: &[f32]) -> Vec<f32> {
    let outputs = bias.len();
    let mut y = bias.repeat(x.len() / inputs);
    y.par_chunks_mut(ROWS * outputs)
        .zip(x.par_chunks(ROWS * inputs))
        .for_each(|(y, x)| {
            WORKSPACE.with_borrow_mut(|space| {
                let size = (x.len() / inputs + SLACK) * apart(inputs);
                enter::linear(w, x, inputs, space.input.get(size), y, outputs);
            });
        });
    y
}
