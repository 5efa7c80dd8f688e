//! In place of `bf16` where it cannot be: the same names, of which nothing can be made.

use std::sync::Arc;

use crate::block::{BlockWeights, Gradients, Linear, Prefix, Shape, Wanted};

/// Never, on this kind of machine.
pub fn available() -> bool {
    false
}

/// Nothing to keep busy.
pub fn busy(_: usize) -> Option<u64> {
    None
}

fn none<T>() -> std::io::Result<T> {
    Err(std::io::Error::other(
        "no bf16 products on this kind of system",
    ))
}

/// A linear layer packed for tiles.
#[derive(Debug)]
pub enum PackedLinear {}

impl PackedLinear {
    /// Always an error.
    pub fn new(_: &Linear<'_>) -> std::io::Result<Self> {
        none()
    }

    /// Outputs and inputs.
    pub fn sizes(&self) -> (usize, usize) {
        match *self {}
    }

    /// Rows of `in` values to rows of `out`.
    pub fn forward(&self, _: &[f32]) -> Vec<f32> {
        match *self {}
    }

    /// Gradient of the output to that of the input.
    pub fn backward(&self, _: &[f32]) -> std::io::Result<Vec<f32>> {
        match *self {}
    }
}

/// A linear layer that trains.
pub mod trained {
    use crate::block::Linear;

    /// Always an error.
    pub fn linear(_: &[f32], _: &Linear<'_>) -> std::io::Result<Vec<f32>> {
        super::none()
    }

    /// Always an error.
    pub fn linear_grad(_: &[f32], _: &Linear<'_>) -> std::io::Result<Vec<f32>> {
        super::none()
    }

    /// Always an error.
    pub fn weight_grad(_: &[f32], _: &[f32], _: usize) -> std::io::Result<Vec<f32>> {
        super::none()
    }
}

/// The linear layers of a block.
#[derive(Debug, Clone)]
pub struct Layers {
    /// Queries, keys and values.
    pub qkv: Arc<PackedLinear>,
    /// Output projection.
    pub proj: Arc<PackedLinear>,
    /// First layer of the MLP.
    pub fc1: Arc<PackedLinear>,
    /// Second layer of the MLP.
    pub fc2: Arc<PackedLinear>,
}

/// A block packed for tiles.
#[derive(Debug)]
pub enum PackedBlock {}

/// What a forward leaves for its backward.
#[derive(Debug)]
pub enum Saved {}

impl PackedBlock {
    /// Always an error.
    pub fn new(_: &BlockWeights<'_>) -> std::io::Result<Self> {
        none()
    }

    /// Always an error.
    pub fn share(_: &BlockWeights<'_>, _: Layers) -> std::io::Result<Self> {
        none()
    }

    /// Tokens to tokens.
    pub fn forward(
        &self,
        _: &[f32],
        _: Shape,
        _: Option<Prefix<'_>>,
        _: bool,
    ) -> (Vec<f32>, Option<Saved>) {
        match *self {}
    }

    /// Gradients of what went in.
    pub fn backward(
        &self,
        _: &[f32],
        _: Shape,
        _: Option<Prefix<'_>>,
        _: &Saved,
        _: &[f32],
        _: Wanted,
    ) -> std::io::Result<Gradients> {
        match *self {}
    }
}
