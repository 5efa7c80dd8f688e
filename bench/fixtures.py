"""Models with drawn weights and inputs with drawn numbers, as safetensors files for both sides."""

import json
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

ROOT = Path(__file__).resolve().parent.parent
MICRO = ROOT / "models/vit-micro"
CLASSES = 10


def models():
    """By name: timm's name (None: a VisionTransformer by its arguments) and arguments."""
    return {
        "vit-b16": ("vit_base_patch16_224", {}),
        "vit-s14": ("vit_small_patch14_dinov2", {"img_size": 224}),
        "vit-micro": (None, json.loads((MICRO / "config.json").read_text())["model_args"]),
    }


def make(model):
    name, args = model
    if name is None:
        return timm.models.VisionTransformer(num_classes=0, **args).eval()
    return timm.create_model(name, pretrained=False, num_classes=0, **args).eval()


@torch.no_grad()
def weights(name, folder, given=None):
    """The file of a model's weights, and the model. What is not given is drawn, so that every layer matters:
    timm's own start leaves layer scale at 1e-5, where whole blocks could be wrong unseen."""
    vit = make(models()[name])
    file = given or (MICRO / "model.safetensors" if name == "vit-micro" else None)
    if file is None:
        draw = torch.Generator().manual_seed(1)
        for key, p in vit.named_parameters():
            noise = torch.randn(p.shape, generator=draw)
            if "norm" in key and key.endswith("weight"):
                p.copy_(1 + 0.1 * noise)
            elif key.endswith("gamma"):
                p.copy_(0.5 + 0.1 * noise)
            elif p.ndim > 1 and key.endswith("weight"):
                p.copy_(noise / p[0].numel() ** 0.5)
            else:
                p.copy_(0.1 * noise)
        file = folder / f"{name}.safetensors"
        save_file(vit.state_dict(), file)
    vit.load_state_dict({k: v.float() for k, v in load_file(file).items()})
    return Path(file), vit


def prompt_shapes(kind, dim):
    """Names and shapes of the prompt parameters, as `Kind::shapes` of candlewick-bench has them."""
    if kind.startswith("l2p"):
        return {"prompts": (10, 5, dim), "keys": (10, dim)}
    if kind == "dualprompt":
        general = {f"g.{i}": (2, 5, dim) for i in (0, 1)}
        return general | {f"e.{i}": (10, 2, 20, dim) for i in (2, 3, 4)} | {"keys": (10, dim)}
    if kind.startswith("cofima"):
        return {}
    shapes = {}
    for i in range(5):
        shapes |= {f"p.{i}": (100, 8, dim), f"k.{i}": (100, dim), f"a.{i}": (100, dim)}
    return shapes


def keys_apart(query, draw):
    """Keys of which every image prefers the same five by far, as trained ones are: otherwise rounding
    alone could change which prompts are chosen, and the gradients could not be compared."""
    mean = F.normalize(F.normalize(query, dim=1).mean(0), dim=0)
    other = torch.randn(10, query.shape[1], generator=draw)
    other = F.normalize(other - (other @ mean)[:, None] * mean, dim=1)
    near = torch.tensor([0, 0.05, 0.1, 0.15, 0.2, 0.8, 0.85, 0.9, 0.95, 1.0])
    near = near[torch.randperm(10, generator=draw)][:, None]
    return near * mean + (1 - near**2).sqrt() * other


@torch.no_grad()
def inputs(vit, case, batch, file):
    """Images that differ at every scale; for a step also labels, query and parameters."""
    draw = torch.Generator().manual_seed(2)
    size = vit.patch_embed.img_size[0]
    coarse = torch.randn(batch, 3, 4, 4, generator=draw)
    images = F.interpolate(coarse, size=(size, size), mode="bicubic")
    given = {"images": images + 0.3 * torch.randn(images.shape, generator=draw)}
    if case != "forward":
        given["query"] = vit(given["images"])
        given["labels"] = torch.randint(0, CLASSES, (batch,), generator=draw)
        shapes = prompt_shapes(case, vit.embed_dim)
        shapes |= {"head.weight": (CLASSES, vit.embed_dim), "head.bias": (CLASSES,)}
        for name, shape in shapes.items():
            scale = 0.02 if name.startswith("head") else 0.5
            given[f"param.{name}"] = scale * torch.randn(shape, generator=draw)
        if case.startswith("l2p"):
            given["param.keys"] = keys_apart(given["query"], draw)
    save_file({name: value.contiguous() for name, value in given.items()}, file)
    return file
