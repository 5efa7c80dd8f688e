"""SimpleCIL in PyTorch, to hold candlewick's numbers against. Prints the micro accuracy after each task.

    pip install torch torchvision timm transformers
    python examples/compare_torch.py crates/data/emoji-r-mini models/vit-micro --increment 10 --seed 1993

DATA has train/CLASS/* and test/CLASS/*; MODEL is a folder in timm's or transformers' (DINOv2) layout.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torchvision import transforms as T
from transformers import Dinov2Model


def backbone(folder):
    """A function from a batch to CLS features, and the test transform."""
    config = json.loads((folder / "config.json").read_text())
    if "model_args" in config:
        model = timm.models.VisionTransformer(num_classes=0, **config["model_args"])
        model.load_state_dict({k: v.float() for k, v in load_file(folder / "model.safetensors").items()})
        cfg = config["pretrained_cfg"]
        crop = cfg["input_size"][1]
        resize, mean, std = int(crop / cfg["crop_pct"]), cfg["mean"], cfg["std"]
        features = model.eval()
    else:
        model = Dinov2Model.from_pretrained(folder, dtype=torch.float32).eval()
        cfg = json.loads((folder / "preprocessor_config.json").read_text())
        crop, resize = cfg["crop_size"]["height"], cfg["size"]["shortest_edge"]
        mean, std = cfg["image_mean"], cfg["image_std"]
        features = lambda x: model(x).last_hidden_state[:, 0]
    steps = [T.Resize(resize, T.InterpolationMode.BICUBIC), T.CenterCrop(crop), T.ToTensor(), T.Normalize(mean, std)]
    return features, T.Compose(steps)


@torch.no_grad()
def extract(folder, classes, features, transform, batch=32):
    paths = [(p, c) for c, name in enumerate(classes) for p in sorted((folder / name).iterdir())]
    rows = []
    for at in range(0, len(paths), batch):
        images = [transform(Image.open(p).convert("RGB")) for p, _ in paths[at : at + batch]]
        rows.append(features(torch.stack(images)))
    return torch.cat(rows), torch.tensor([c for _, c in paths])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--increment", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1993)
    args = parser.parse_args()
    classes = sorted(p.name for p in (args.data / "train").iterdir())
    features, transform = backbone(args.model)
    train, train_labels = extract(args.data / "train", classes, features, transform)
    test, test_labels = extract(args.data / "test", classes, features, transform)
    order = np.random.RandomState(args.seed).permutation(len(classes))
    means = torch.stack([train[train_labels == c].mean(0) for c in range(len(classes))])
    scores = torch.nn.functional.normalize(test, dim=1) @ torch.nn.functional.normalize(means, dim=1).T
    curve = []
    for end in range(args.increment, len(classes) + args.increment, args.increment):
        seen = torch.tensor(order[:end])
        rows = torch.isin(test_labels, seen)
        best = seen[scores[rows][:, seen].argmax(1)]
        curve.append(100 * (best == test_labels[rows]).float().mean().item())
    print(" ".join(f"{a:.2f}" for a in curve))


if __name__ == "__main__":
    main()
