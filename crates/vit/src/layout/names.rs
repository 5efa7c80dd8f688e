//! The names themselves: a table per layout, from canonical name to the names in the file.

/// Canonical name, names in the file, and what lies between.
pub(super) type Row = (&'static str, &'static [&'static str], Convert);

/// How the tensors of a file become one canonical tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Convert {
    /// As it is.
    Same,
    /// As it is, where the file has it (registers, layer scale).
    Optional,
    /// Q, K and V one under the other.
    Stack,
    /// `(in, out)` to `(out, in)`.
    Transpose,
    /// Q, K, V kernels `(D, H, d)` to `(3D, D)`.
    StackKernels,
    /// Q, K, V biases `(H, d)` to `(3D)`.
    StackBiases,
    /// Output kernel `(H, d, D)` to `(D, D)`.
    OutKernel,
    /// Convolution `(p, p, 3, D)` to `(D, 3, p, p)`.
    Convolution,
    /// A vector or matrix to the same with dimensions of 1 in front.
    Rows,
}

use Convert::{
    Convolution, Optional, OutKernel, Rows, Same, Stack, StackBiases, StackKernels, Transpose,
};

pub(super) const TIMM_TOP: [Row; 7] = [
    ("cls_token", &["cls_token"], Same),
    ("pos_embed", &["pos_embed"], Same),
    // facebookresearch/dinov2 calls them `register_tokens`.
    ("reg_token", &["reg_token", "register_tokens"], Optional),
    (
        "patch_embed.proj.weight",
        &["patch_embed.proj.weight"],
        Same,
    ),
    ("patch_embed.proj.bias", &["patch_embed.proj.bias"], Same),
    ("norm.weight", &["norm.weight"], Same),
    ("norm.bias", &["norm.bias"], Same),
];

pub(super) const TIMM_BLOCK: [Row; 14] = [
    ("norm1.weight", &["norm1.weight"], Same),
    ("norm1.bias", &["norm1.bias"], Same),
    ("attn.qkv.weight", &["attn.qkv.weight"], Same),
    ("attn.qkv.bias", &["attn.qkv.bias"], Same),
    ("attn.proj.weight", &["attn.proj.weight"], Same),
    ("attn.proj.bias", &["attn.proj.bias"], Same),
    ("ls1.gamma", &["ls1.gamma"], Optional),
    ("norm2.weight", &["norm2.weight"], Same),
    ("norm2.bias", &["norm2.bias"], Same),
    ("mlp.fc1.weight", &["mlp.fc1.weight"], Same),
    ("mlp.fc1.bias", &["mlp.fc1.bias"], Same),
    ("mlp.fc2.weight", &["mlp.fc2.weight"], Same),
    ("mlp.fc2.bias", &["mlp.fc2.bias"], Same),
    ("ls2.gamma", &["ls2.gamma"], Optional),
];

pub(super) const HF_TOP: [Row; 7] = [
    ("cls_token", &["embeddings.cls_token"], Same),
    ("pos_embed", &["embeddings.position_embeddings"], Same),
    ("reg_token", &["embeddings.register_tokens"], Optional),
    (
        "patch_embed.proj.weight",
        &["embeddings.patch_embeddings.projection.weight"],
        Same,
    ),
    (
        "patch_embed.proj.bias",
        &["embeddings.patch_embeddings.projection.bias"],
        Same,
    ),
    ("norm.weight", &["layernorm.weight"], Same),
    ("norm.bias", &["layernorm.bias"], Same),
];

const HF_QKV_WEIGHT: Row = (
    "attn.qkv.weight",
    &[
        "attention.attention.query.weight",
        "attention.attention.key.weight",
        "attention.attention.value.weight",
    ],
    Stack,
);
const HF_QKV_BIAS: Row = (
    "attn.qkv.bias",
    &[
        "attention.attention.query.bias",
        "attention.attention.key.bias",
        "attention.attention.value.bias",
    ],
    Stack,
);
const HF_PROJ_WEIGHT: Row = ("attn.proj.weight", &["attention.output.dense.weight"], Same);
const HF_PROJ_BIAS: Row = ("attn.proj.bias", &["attention.output.dense.bias"], Same);

pub(super) const HF_VIT_BLOCK: [Row; 12] = [
    ("norm1.weight", &["layernorm_before.weight"], Same),
    ("norm1.bias", &["layernorm_before.bias"], Same),
    HF_QKV_WEIGHT,
    HF_QKV_BIAS,
    HF_PROJ_WEIGHT,
    HF_PROJ_BIAS,
    ("norm2.weight", &["layernorm_after.weight"], Same),
    ("norm2.bias", &["layernorm_after.bias"], Same),
    ("mlp.fc1.weight", &["intermediate.dense.weight"], Same),
    ("mlp.fc1.bias", &["intermediate.dense.bias"], Same),
    ("mlp.fc2.weight", &["output.dense.weight"], Same),
    ("mlp.fc2.bias", &["output.dense.bias"], Same),
];

pub(super) const DINOV2_BLOCK: [Row; 14] = [
    ("norm1.weight", &["norm1.weight"], Same),
    ("norm1.bias", &["norm1.bias"], Same),
    HF_QKV_WEIGHT,
    HF_QKV_BIAS,
    HF_PROJ_WEIGHT,
    HF_PROJ_BIAS,
    ("ls1.gamma", &["layer_scale1.lambda1"], Same),
    ("norm2.weight", &["norm2.weight"], Same),
    ("norm2.bias", &["norm2.bias"], Same),
    ("mlp.fc1.weight", &["mlp.fc1.weight"], Same),
    ("mlp.fc1.bias", &["mlp.fc1.bias"], Same),
    ("mlp.fc2.weight", &["mlp.fc2.weight"], Same),
    ("mlp.fc2.bias", &["mlp.fc2.bias"], Same),
    ("ls2.gamma", &["layer_scale2.lambda1"], Same),
];

pub(super) const NPZ_TOP: [Row; 6] = [
    ("cls_token", &["cls"], Same),
    (
        "pos_embed",
        &["Transformer/posembed_input/pos_embedding"],
        Same,
    ),
    (
        "patch_embed.proj.weight",
        &["embedding/kernel"],
        Convolution,
    ),
    ("patch_embed.proj.bias", &["embedding/bias"], Same),
    ("norm.weight", &["Transformer/encoder_norm/scale"], Same),
    ("norm.bias", &["Transformer/encoder_norm/bias"], Same),
];

pub(super) const NPZ_BLOCK: [Row; 12] = [
    ("norm1.weight", &["LayerNorm_0/scale"], Same),
    ("norm1.bias", &["LayerNorm_0/bias"], Same),
    (
        "attn.qkv.weight",
        &[
            "MultiHeadDotProductAttention_1/query/kernel",
            "MultiHeadDotProductAttention_1/key/kernel",
            "MultiHeadDotProductAttention_1/value/kernel",
        ],
        StackKernels,
    ),
    (
        "attn.qkv.bias",
        &[
            "MultiHeadDotProductAttention_1/query/bias",
            "MultiHeadDotProductAttention_1/key/bias",
            "MultiHeadDotProductAttention_1/value/bias",
        ],
        StackBiases,
    ),
    (
        "attn.proj.weight",
        &["MultiHeadDotProductAttention_1/out/kernel"],
        OutKernel,
    ),
    (
        "attn.proj.bias",
        &["MultiHeadDotProductAttention_1/out/bias"],
        Same,
    ),
    ("norm2.weight", &["LayerNorm_2/scale"], Same),
    ("norm2.bias", &["LayerNorm_2/bias"], Same),
    ("mlp.fc1.weight", &["MlpBlock_3/Dense_0/kernel"], Transpose),
    ("mlp.fc1.bias", &["MlpBlock_3/Dense_0/bias"], Same),
    ("mlp.fc2.weight", &["MlpBlock_3/Dense_1/kernel"], Transpose),
    ("mlp.fc2.bias", &["MlpBlock_3/Dense_1/bias"], Same),
];

pub(super) const CLIP_TOP: [Row; 7] = [
    (
        "cls_token",
        &["vision_model.embeddings.class_embedding"],
        Rows,
    ),
    (
        "pos_embed",
        &["vision_model.embeddings.position_embedding.weight"],
        Rows,
    ),
    (
        "patch_embed.proj.weight",
        &["vision_model.embeddings.patch_embedding.weight"],
        Same,
    ),
    // The spelling is that of the files.
    (
        "norm_pre.weight",
        &["vision_model.pre_layrnorm.weight"],
        Same,
    ),
    ("norm_pre.bias", &["vision_model.pre_layrnorm.bias"], Same),
    ("norm.weight", &["vision_model.post_layernorm.weight"], Same),
    ("norm.bias", &["vision_model.post_layernorm.bias"], Same),
];

pub(super) const CLIP_TEXT_TOP: [Row; 7] = [
    (
        "token_embedding.weight",
        &["text_model.embeddings.token_embedding.weight"],
        Same,
    ),
    (
        "positional_embedding",
        &["text_model.embeddings.position_embedding.weight"],
        Same,
    ),
    ("norm.weight", &["text_model.final_layer_norm.weight"], Same),
    ("norm.bias", &["text_model.final_layer_norm.bias"], Same),
    ("text_projection", &["text_projection.weight"], Same),
    ("visual_projection", &["visual_projection.weight"], Same),
    ("logit_scale", &["logit_scale"], Same),
];

pub(super) const CLIP_BLOCK: [Row; 12] = [
    ("norm1.weight", &["layer_norm1.weight"], Same),
    ("norm1.bias", &["layer_norm1.bias"], Same),
    (
        "attn.qkv.weight",
        &[
            "self_attn.q_proj.weight",
            "self_attn.k_proj.weight",
            "self_attn.v_proj.weight",
        ],
        Stack,
    ),
    (
        "attn.qkv.bias",
        &[
            "self_attn.q_proj.bias",
            "self_attn.k_proj.bias",
            "self_attn.v_proj.bias",
        ],
        Stack,
    ),
    ("attn.proj.weight", &["self_attn.out_proj.weight"], Same),
    ("attn.proj.bias", &["self_attn.out_proj.bias"], Same),
    ("norm2.weight", &["layer_norm2.weight"], Same),
    ("norm2.bias", &["layer_norm2.bias"], Same),
    ("mlp.fc1.weight", &["mlp.fc1.weight"], Same),
    ("mlp.fc1.bias", &["mlp.fc1.bias"], Same),
    ("mlp.fc2.weight", &["mlp.fc2.weight"], Same),
    ("mlp.fc2.bias", &["mlp.fc2.bias"], Same),
];

pub(super) const OPEN_CLIP_TOP: [Row; 7] = [
    ("cls_token", &["visual.class_embedding"], Rows),
    ("pos_embed", &["visual.positional_embedding"], Rows),
    ("patch_embed.proj.weight", &["visual.conv1.weight"], Same),
    ("norm_pre.weight", &["visual.ln_pre.weight"], Same),
    ("norm_pre.bias", &["visual.ln_pre.bias"], Same),
    ("norm.weight", &["visual.ln_post.weight"], Same),
    ("norm.bias", &["visual.ln_post.bias"], Same),
];

pub(super) const OPEN_CLIP_TEXT_TOP: [Row; 7] = [
    ("token_embedding.weight", &["token_embedding.weight"], Same),
    ("positional_embedding", &["positional_embedding"], Same),
    ("norm.weight", &["ln_final.weight"], Same),
    ("norm.bias", &["ln_final.bias"], Same),
    ("text_projection", &["text_projection"], Transpose),
    ("visual_projection", &["visual.proj"], Transpose),
    ("logit_scale", &["logit_scale"], Same),
];

pub(super) const OPEN_CLIP_BLOCK: [Row; 12] = [
    ("norm1.weight", &["ln_1.weight"], Same),
    ("norm1.bias", &["ln_1.bias"], Same),
    ("attn.qkv.weight", &["attn.in_proj_weight"], Same),
    ("attn.qkv.bias", &["attn.in_proj_bias"], Same),
    ("attn.proj.weight", &["attn.out_proj.weight"], Same),
    ("attn.proj.bias", &["attn.out_proj.bias"], Same),
    ("norm2.weight", &["ln_2.weight"], Same),
    ("norm2.bias", &["ln_2.bias"], Same),
    ("mlp.fc1.weight", &["mlp.c_fc.weight"], Same),
    ("mlp.fc1.bias", &["mlp.c_fc.bias"], Same),
    ("mlp.fc2.weight", &["mlp.c_proj.weight"], Same),
    ("mlp.fc2.bias", &["mlp.c_proj.bias"], Same),
];
