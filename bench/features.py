"""The statistics of RanPAC and prototype prediction, candlewick and PyTorch in turns on the same numbers.

    pip install torch numpy
    cargo build --release -p candlewick-stats --example measure
    python bench/features.py

Every turn is a process of its own, so that its memory peak is its own. The opponent computes in f32, in one thread a core; where the
authors' code does more than is needed (the whole of G, a factor for every ridge), a second opponent does it the
best way that PyTorch offers.
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
DIM, CLASSES = 768, 200
# Operations of the fewest that the definition needs; the head's without its right-hand sides.
CASES = {
    "statistics/1325/10000": lambda n, m: 2 * n * DIM * m + n * m * m,
    "statistics/5000/10000": lambda n, m: 2 * n * DIM * m + n * m * m,
    "head/1325/10000": lambda n, m: m**3 / 3 + 2 * m * m * CLASSES,
    "search/1325/10000": lambda n, m: 2 * n * DIM * m + (0.8 * n) ** 2 * m + 17 * (0.8 * n) ** 3 / 3,
    "predict/1000/10000": lambda n, m: 2 * n * m * (DIM + CLASSES),
    "cosine/6000/0": lambda n, m: 2 * n * DIM * CLASSES,
}


def torch_side(case, images, width, way):
    import numpy as np
    import torch

    torch.set_num_threads(os.cpu_count())

    def drawn(first, count):
        z = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = (z ^ (z >> np.uint64(31))) >> np.uint64(40)
        return z.astype(np.float32) / np.float32(1 << 24) - np.float32(0.5)

    labels = np.arange(images) % CLASSES
    f = drawn(0, images * DIM).reshape(images, DIM)
    f += 0.5 * (np.arange(DIM)[None] % CLASSES == labels[:, None]).astype(np.float32)
    f, y = torch.from_numpy(f), torch.nn.functional.one_hot(torch.from_numpy(labels), CLASSES).float()
    w = torch.from_numpy(3.5 * drawn(1 << 40, DIM * width)).reshape(DIM, width)
    ridges = [10.0**e for e in range(-8, 9)]

    def sums(g, q, f, y):
        for a, b in zip(f.split(512), y.split(512)):
            h = torch.relu(a @ w)
            g.addmm_(h.T, h)
            q.addmm_(h.T, b)

    if case == "statistics":
        g, q = torch.zeros(width, width), torch.zeros(width, CLASSES)
        start = time.perf_counter()
        sums(g, q, f, y)
        seconds = time.perf_counter() - start
        values = [g[0, 0], g[-1, 1], g[-1, -1], q[3, 7]]
    elif case == "head":
        g, q = torch.zeros(width, width), torch.zeros(width, CLASSES)
        sums(g, q, f, y)
        start = time.perf_counter()
        if way == "authors":
            head = torch.linalg.solve(g + 1e4 * torch.eye(width), q)
        else:
            g.diagonal().add_(1e4)
            head = torch.cholesky_solve(q, torch.linalg.cholesky(g))
        seconds = time.perf_counter() - start
        values = [head[0, 7]]
    elif case == "search":
        fit = images * 4 // 5
        start = time.perf_counter()
        h = torch.relu(f @ w)
        values = []
        if way == "authors":
            g, q = h[:fit].T @ h[:fit], h[:fit].T @ y[:fit]
            for ridge in ridges:
                head = torch.linalg.solve(g + ridge * torch.eye(width), q)
                values.append(((h[fit:] @ head - y[fit:]) ** 2).sum() / (images - fit))
        else:
            a = h.double()
            s, u = torch.linalg.eigh(a[:fit] @ a[:fit].T)
            left, right = a[fit:] @ a[:fit].T @ u, u.T @ y[:fit].double()
            for ridge in ridges:
                p = left @ (right / (s + ridge)[:, None])
                values.append(((p - y[fit:]) ** 2).sum() / (images - fit))
        seconds = time.perf_counter() - start
    elif case == "predict":
        head = torch.from_numpy(drawn(0, width * CLASSES)).reshape(width, CLASSES)
        with torch.inference_mode():
            start = time.perf_counter()
            found = torch.relu(f @ w) @ head
            seconds = time.perf_counter() - start
        values = list(found[0, :3])
    elif case == "cosine":
        with torch.inference_mode():
            start = time.perf_counter()
            unit = torch.nn.functional.normalize
            found = unit(f) @ unit(f[:CLASSES]).T
            seconds = time.perf_counter() - start
        values = list(found[0, :3])
    peak = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_kib": peak, "values": [float(v) for v in values]}))


def turn(command, line):
    done = subprocess.run(command, input=line, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(CASES))
    parser.add_argument("--ours", default=str(ROOT / "target/release/examples/measure"))
    parser.add_argument("--authors-search", action="store_true", help="17 LU factors of M x M: minutes")
    parser.add_argument("--torch", nargs=4)
    options = parser.parse_args()
    if options.torch:
        case, images, width, way = options.torch
        return torch_side(case, int(images), int(width), way)
    print("| case | candlewick, s | GFLOP/s | PyTorch | its s | times faster | peak MiB, ours / theirs | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.only:
        case, images, width = name.split("/")
        ways = ["authors"]
        if case in ("head", "search"):
            ways = (["authors"] if case == "head" or options.authors_search else []) + ["best"]
        ours, theirs = [], {way: [] for way in ways}
        for _ in range(options.rounds):
            ours.append(turn([options.ours], f"{case} {images} {width}\n"))
            for way in ways:
                theirs[way].append(turn([sys.executable, __file__, "--torch", case, images, width, way], ""))
        median = lambda turns: statistics.median(t["seconds"] for t in turns)
        for way in ways:
            # Round by round: both see the same load.
            ratio = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(ours, theirs[way]))
            # Ridges below 1e-3 are ill-conditioned in f32.
            pairs = list(zip(ours[0]["values"], theirs[way][0]["values"]))[5 if case == "search" else 0 :]
            far = max(abs(a - b) / max(abs(b), 1e-9) for a, b in pairs)
            rate = CASES[name](int(images), int(width)) / median(ours) / 1e9
            peaks = " / ".join(str(max(t["peak_kib"] for t in side) // 1024) for side in (ours, theirs[way]))
            print(
                f"| {name} | {median(ours):.3g} | {rate:.0f} | {way} | {median(theirs[way]):.3g} | {ratio:.2f} | {peaks} | {far:.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
