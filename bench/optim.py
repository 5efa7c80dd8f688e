"""One optimiser step over the 86 M weights of ViT-B/16, candlewick and torch.optim in turns.

    pip install torch
    cargo build --release -p candlewick-bench --example optim
    python bench/optim.py

Every turn is a process of its own; gradients are given. torch.optim is what PyTorch takes by itself, and its fused one.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS = 10


def torch_side(rule, way):
    import torch

    torch.set_num_threads(os.cpu_count())
    dim = 768
    shapes = [(1, 1, dim), (1, 197, dim), (dim, 3, 16, 16), (dim,)]
    for _ in range(12):
        for out, inner in [(3 * dim, dim), (dim, dim), (4 * dim, dim), (dim, 4 * dim)]:
            shapes += [(out, inner), (out,)]
        shapes += [(dim,)] * 4
    shapes += [(dim,)] * 2
    params = [torch.nn.Parameter(0.02 * torch.randn(shape)) for shape in shapes]
    for param in params:
        param.grad = 0.001 * torch.randn(param.shape)
    keys = {"default": {}, "foreach": {"foreach": True}, "fused": {"fused": True}}[way]
    if rule == "sgd":
        optimizer = torch.optim.SGD(params, lr=1e-4, momentum=0.9, weight_decay=0.05, **keys)
    else:
        optimizer = torch.optim.AdamW(params, lr=1e-4, weight_decay=0.05, **keys)
    optimizer.step()
    seconds = []
    for _ in range(STEPS):
        started = time.perf_counter()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    print(json.dumps({"values": sum(p.numel() for p in params), "seconds": seconds}))


def measured(command):
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", nargs=2, metavar=("RULE", "WAY"))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.torch:
        torch_side(*args.torch)
        return
    own = ROOT / "target/release/examples/optim"
    threads = str(os.cpu_count())
    print("| rule | state | seconds | torch default | foreach | fused | times faster than default, foreach, fused |")
    print("|---|---|---:|---:|---:|---:|---:|")
    for rule in ["adamw", "sgd"]:
        ways = {state: [own, rule, state, str(STEPS), threads] for state in ["f32", "bf16"]}
        for way in ["default", "foreach", "fused"]:
            ways[way] = [sys.executable, __file__, "--torch", rule, way]
        times, values = {way: [] for way in ways}, set()
        for _ in range(args.rounds):
            for way, command in ways.items():
                found = measured(command)
                values.add(found["values"])
                times[way] += found["seconds"]
        assert len(values) == 1, f"not the same weights: {values}"
        best = {way: statistics.median(found) for way, found in times.items()}
        theirs = [best[way] for way in ["default", "foreach", "fused"]]
        for state in ["f32", "bf16"]:
            ratios = ", ".join(f"{t / best[state]:.2f}" for t in theirs)
            shown = " | ".join(f"{t:.3f}" for t in theirs)
            print(f"| {rule} | {state} | {best[state]:.3f} | {shown} | {ratios} |")


if __name__ == "__main__":
    main()
