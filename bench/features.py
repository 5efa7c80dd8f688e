"""The statistics of RanPAC and prototype prediction, candlewick and PyTorch in turns on the same numbers.

    pip install torch numpy
    cargo build --release -p candlewick-stats --example measure
    python bench/features.py

Every turn is a process of its own, so that its memory peak is its own; what takes less than a second is done four times in it, and
the median of the last three counts. The opponent computes in f32, in one thread a core; where the
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
# Operations in f32 and in f64, as few as the definition needs: one triangle of G, one factor a ridge.
CASES = {
    "statistics/1325/10000": lambda n, m: (2 * n * DIM * m + n * m * m, 0),
    "statistics/50000/10000": lambda n, m: (2 * n * DIM * m + n * m * m, 0),
    "search/1325/10000": lambda n, m: (2 * n * DIM * m, search_operations(n, m)),
    "head/1325/10000": lambda n, m: (m**3 / 3 + 2 * m * m * CLASSES, 0),
    "predict/1000/10000": lambda n, m: (2 * n * m * (DIM + CLASSES), 0),
    "cosine/6000/0": lambda n, m: (2 * n * DIM * CLASSES, 0),
}


def search_operations(n, m):
    fit, held = 0.8 * n, 0.2 * n
    return fit * (fit + 2 * held) * m + 17 * (fit**3 / 3 + 2 * fit * fit * CLASSES + 2 * held * fit * CLASSES)




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
        seconds, values = again(lambda: search(f, y, w, images * 4 // 5, ridges, way), 1 if way == "authors" else 3)
    elif case == "predict":
        head = torch.from_numpy(drawn(0, width * CLASSES)).reshape(width, CLASSES)
        with torch.inference_mode():
            seconds, found = again(lambda: torch.relu(f @ w) @ head)
        values = list(found[0, :3])
    elif case == "cosine":
        unit = torch.nn.functional.normalize
        with torch.inference_mode():
            seconds, found = again(lambda: unit(f) @ unit(f[:CLASSES]).T)
        values = list(found[0, :3])
    peak = next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM"))
    print(json.dumps({"seconds": seconds, "peak_kib": peak, "values": [float(v) for v in values]}))


def again(work, times=3):
    """The median of some calls, after one that warms up where there are several, and what came out."""
    if times > 1:
        work()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), found


def search(f, y, w, fit, ridges, way):
    import torch

    h, values = torch.relu(f @ w), []
    held = len(f) - fit
    if way == "authors":
        g, q = h[:fit].T @ h[:fit], h[:fit].T @ y[:fit]
        for ridge in ridges:
            head = torch.linalg.solve(g + ridge * torch.eye(len(g)), q)
            values.append(((h[fit:] @ head - y[fit:]) ** 2).sum() / held)
    else:
        a = h.double()
        s, u = torch.linalg.eigh(a[:fit] @ a[:fit].T)
        left, right = a[fit:] @ a[:fit].T @ u, u.T @ y[:fit].double()
        for ridge in ridges:
            p = left @ (right / (s + ridge)[:, None])
            values.append(((p - y[fit:]) ** 2).sum() / held)
    return values


def turn(command, line):
    done = subprocess.run(command, input=line, text=True, capture_output=True)
    if done.returncode:
        sys.exit(f"{command[0]}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    short = [case for case in CASES if "/50000/" not in case]
    parser.add_argument("--only", nargs="*", default=short, choices=CASES, help="the case of 50000 images takes minutes")
    parser.add_argument("--ours", default=str(ROOT / "target/release/examples/measure"))
    parser.add_argument("--authors-search", action="store_true", help="17 LU factors of M x M: minutes")
    parser.add_argument("--torch", nargs=4)
    options = parser.parse_args()
    if options.torch:
        case, images, width, way = options.torch
        return torch_side(case, int(images), int(width), way)
    print("| case | candlewick, s | GFLOP/s | of the limit | PyTorch | its s | times faster | peak MiB, ours / theirs | largest difference |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.only:
        case, images, width = name.split("/")
        ways = ["authors"]
        if case in ("head", "search"):
            ways = (["authors"] if case == "head" or options.authors_search else []) + ["best"]
        ours, theirs = [], {way: [] for way in ways}
        limits = []
        for _ in range(options.rounds):
            limits.append(turn([options.ours], "limit 0 0\n")["values"])
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
            operations = CASES[name](int(images), int(width))
            rate = sum(operations) / median(ours) / 1e9
            limit = [statistics.median(l[i] for l in limits) for i in (0, 1)]
            share = sum(n / l / 1e9 for n, l in zip(operations, limit)) / median(ours)
            peaks = " / ".join(str(max(t["peak_kib"] for t in side) // 1024) for side in (ours, theirs[way]))
            print(
                f"| {name} | {median(ours):.3g} | {rate:.0f} | {share:.2f} | {way} | {median(theirs[way]):.3g} | {ratio:.2f} | {peaks} | {far:.1e} |",
                flush=True,
            )
        print(f"  threads at most: {limit[0]:.0f} GFLOP/s in f32, {limit[1]:.0f} in f64", file=sys.stderr)


if __name__ == "__main__":
    main()
