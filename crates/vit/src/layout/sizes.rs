//! The sizes of a tower, and the shapes that follow from them.

use super::names::Convert::{
    self, Convolution, Optional, OutKernel, Rows, Same, Stack, StackBiases, StackKernels, Transpose,
};

/// Sizes read from the tensors.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sizes {
    pub dim: usize,
    pub patch: usize,
    pub mlp: usize,
    pub depth: usize,
    /// Rows of the position embedding.
    pub positions: usize,
    pub registers: usize,
    /// The npz layout alone tells.
    pub heads: Option<usize>,
    /// Of text towers, else 0: tokens that are known, width of the joint space, width of the image tower.
    pub vocabulary: usize,
    pub joint: usize,
    pub image_dim: usize,
}

impl Sizes {
    /// The shape a canonical tensor must have; blocks' names without their prefix.
    pub(super) fn shape(&self, canonical: &str) -> Vec<usize> {
        let d = self.dim;
        match canonical {
            "cls_token" => vec![1, 1, d],
            "pos_embed" => vec![1, self.positions, d],
            "reg_token" => vec![1, self.registers, d],
            "patch_embed.proj.weight" => vec![d, 3, self.patch, self.patch],
            "attn.qkv.weight" => vec![3 * d, d],
            "attn.qkv.bias" => vec![3 * d],
            "attn.proj.weight" => vec![d, d],
            "mlp.fc1.weight" => vec![self.mlp, d],
            "mlp.fc1.bias" => vec![self.mlp],
            "mlp.fc2.weight" => vec![d, self.mlp],
            "token_embedding.weight" => vec![self.vocabulary, d],
            "positional_embedding" => vec![self.positions, d],
            "text_projection" => vec![self.joint, d],
            "visual_projection" => vec![self.joint, self.image_dim],
            "logit_scale" => vec![],
            _ => vec![d],
        }
    }

    /// The shape each of its sources must have in the file.
    pub(super) fn source_shape(&self, canonical: &str, convert: Convert) -> Vec<usize> {
        let shape = self.shape(canonical);
        let (d, heads) = (self.dim, self.heads.unwrap_or(1));
        match convert {
            Same | Optional => shape,
            Stack => [&[shape[0] / 3], &shape[1..]].concat(),
            Transpose => vec![shape[1], shape[0]],
            StackKernels => vec![d, heads, d / heads],
            StackBiases => vec![heads, d / heads],
            OutKernel => vec![heads, d / heads, d],
            Convolution => vec![self.patch, self.patch, 3, d],
            Rows => shape.into_iter().skip_while(|n| *n == 1).collect(),
        }
    }
}
