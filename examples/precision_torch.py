"""Prompt gradients that `precision.rs` computed, against PyTorch in float64; PyTorch's own f32 and bf16 beside them.

    python examples/precision_torch.py MODEL OUT.safetensors

MODEL is a folder in timm's or transformers' (DINOv2) layout, OUT the file that `precision.rs` wrote. An error is the L2 norm
of the difference over that of the float64 gradient.
"""

import json
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import load_file
from transformers import Dinov2Model


def load(folder):
    """A function from images and prompts to the mean of the prompts' outputs, and the module behind it."""
    config = json.loads((folder / "config.json").read_text())
    if "model_args" in config:
        model = timm.models.VisionTransformer(num_classes=0, **config["model_args"])
        model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        embed = lambda x: model._pos_embed(model.patch_embed(x))
        position = lambda: model.pos_embed[:, :1]
        blocks, norm = model.blocks, lambda x: model.norm(x)
    else:
        model = Dinov2Model.from_pretrained(folder, dtype=torch.float32)
        embed = lambda x: model.embeddings(x)
        position = lambda: model.embeddings.position_embeddings[:, :1]
        blocks, norm = model.encoder.layer, lambda x: model.layernorm(x)
    model.eval().requires_grad_(False)

    def run(images, prompts):
        x = embed(images)
        x = torch.cat([x[:, :1], prompts + position(), x[:, 1:]], 1)
        for block in blocks:
            x = block(x)
            x = x[0] if isinstance(x, tuple) else x
        return norm(x)[:, 1 : 1 + prompts.shape[1]].mean(1)

    return run, model


def main():
    folder, file = Path(sys.argv[1]), load_file(sys.argv[2])
    run, model = load(folder)

    def gradient(dtype, bf16=False):
        model.to(dtype)
        prompts = file["prompts"].to(dtype, copy=True).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            out = run(file["images"].to(dtype), prompts)
        (out.to(dtype) * file["cotangent"].to(dtype)).sum().backward()
        return prompts.grad.double()

    exact = gradient(torch.float64)
    found = {
        "candlewick f32": file["grad_f32"].double(),
        "candlewick bf16": file["grad_bf16"].double(),
        "PyTorch f32": gradient(torch.float32),
        "PyTorch bf16 (autocast)": gradient(torch.float32, bf16=True),
    }
    for name, grad in found.items():
        print(f"{name:24} off by {((grad - exact).norm() / exact.norm()).item():.2e}")


if __name__ == "__main__":
    main()
