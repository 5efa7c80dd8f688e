"""Operation counts and the Markdown report."""

import datetime
import os
import platform
import subprocess
import sys
import time

import timm
import torch

import fixtures


def flops(vit, case):
    """Floating-point operations of one image, counted from shapes: products alone, two for a multiply-add.

    Backward counts what a prompt's gradient needs: input gradients of the linear layers (none of their weights') and
    two products for each of attention's two, from the first prompted block on. With prefixes alone, nothing below
    the keys and values of block 0 needs a gradient. Nothing computed twice is counted twice. The last block counts for
    the tokens that are read, whatever a side computes.
    """
    d, patches = vit.embed_dim, vit.patch_embed.num_patches
    hidden = vit.blocks[0].mlp.fc1.out_features
    prompts = 25 if case.startswith("l2p") else 0
    n = 1 + patches + prompts
    prefixes = {"dualprompt": [5, 5, 20, 20, 20], "coda": [4] * 5}.get(case, [])
    whole = len(vit.blocks) - (0 if case.startswith("cofima") else 1)
    prefixes += [0] * (whole - len(prefixes))
    linear = 2 * n * (4 * d * d + 2 * d * hidden)
    attention = sum(4 * n * (n + p) * d for p in prefixes)
    patch = 2 * patches * vit.patch_embed.proj.weight[0].numel() * d
    total = patch + whole * linear + attention
    if case.startswith("cofima"):
        # Weights have gradients too; the images have none.
        return total + patch + 2 * (whole * linear + attention)
    read = 1 + prompts
    once, mixed = last_block(n, read, d, hidden, vit.blocks[0].attn.num_heads)
    total += once + mixed
    if case == "forward":
        return total
    unneeded = 0 if prompts else 2 * n * 3 * d * d
    total += whole * linear - unneeded + 2 * attention + once + 2 * mixed
    return total + flops(vit, "forward") if case == "l2p-full" else total


def last_block(n, read, d, hidden, heads):
    """Operations of the last block's linear layers and of its attention, where `read` of `n` tokens are read.

    Keys and values of all tokens, or none of them: a query goes through the key weights to the tokens instead, and
    their weighted sum through the value weights, head by head.
    """
    layers = 2 * read * (2 * d * d + 2 * d * hidden)
    with_keys = (layers + 4 * n * d * d, 4 * read * n * d)
    without = (layers + 4 * read * d * d, 4 * read * heads * n * d)
    return min(with_keys, without, key=sum)


def table(head, rows):
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in cells)


def spread(values, form):
    """Median and range."""
    values = sorted(values)
    middle = len(values) // 2
    median = values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2
    return f"{median:{form}} ({values[0]:{form}}–{values[-1]:{form}})"


def against(side, rival):
    return spread([b / a for a, b in zip(side.turns, rival.turns)], ".2f")


def mib(size):
    return f"{size / 2**20:.0f}"


def results(cases):
    head = ["model", "case", "batch", "candlewick", "seconds", "images/s", "opponent", "its seconds", "times faster"]
    head += ["times f32's best", "peak MiB, ours / theirs", "GFLOP/s", "% of limit"]
    rows = []
    for case in cases:
        for side in case.ours:
            rival = min(case.rivals, key=lambda s: s.median())
            plain = min((s for s in case.rivals if s.kind == "f32"), key=lambda s: s.median())
            rate = case.flops / side.median() / 1e9
            limit = case.limit[f"{side.kind}_gflops"]
            rows.append(
                [case.model, case.case, case.batch, side.kind, spread(side.turns, ".3g")]
                + [f"{case.batch / side.median():.3g}", rival.name, spread(rival.turns, ".3g"), against(side, rival)]
                + [against(side, plain), f"{mib(side.peak)} / {mib(rival.peak)}", f"{rate:.0f}"]
                + [f"{100 * rate / limit:.0f}" if limit else "–"]
            )
    return table(head, rows)


def variants(cases):
    head = ["model", "case", "batch", "PyTorch", "seconds", "images/s", "peak MiB", "relative error", "cosine"]
    rows = []
    for case in cases:
        for name, seconds, peak, (error, cosine) in case.theirs:
            rate = f"{case.batch / seconds:.3g}"
            rows.append([case.model, case.case, case.batch, name, f"{seconds:.3g}", rate, mib(peak)])
            rows[-1] += ["reference", ""] if name == "f32" else [f"{error:.1e}", f"{cosine:.6f}"]
    return table(head, rows)


def agreement(cases, tolerance):
    head = ["model", "case", "batch", "candlewick", "relative error", "allowed", "cosine", "allowed"]
    rows = []
    for case in cases:
        for side in case.ours:
            most, least = tolerance[side.kind]["features" if case.case == "forward" else "gradients"]
            error, cosine = side.error
            rows.append([case.model, case.case, case.batch, side.kind, f"{error:.1e}", most, f"{cosine:.6f}", least])
    return table(head, rows)


def busy(sides):
    """Seconds since some start: of the clock, of all cores at work, of the servers' share of it. Linux alone tells."""
    try:
        with open("/proc/stat") as file:
            user, nice, system, *_ = map(int, file.readline().split()[1:])
        own = 0
        for side in sides:
            with open(f"/proc/{side.child.pid}/stat") as file:
                own += sum(map(int, file.read().rsplit(")", 1)[1].split()[11:13]))
    except OSError:
        return time.monotonic(), 0, 0
    tick = os.sysconf("SC_CLK_TCK")
    return time.monotonic(), (user + nice + system) / tick, own / tick


def busy_with_others(before, after):
    """Cores that other programs kept busy between two calls of `busy`."""
    clock, everything, own = (b - a for a, b in zip(before, after))
    return max(0.0, (everything - own) / max(clock, 1e-3))


def run(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, cwd=fixtures.ROOT).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def cpu():
    try:
        with open("/proc/cpuinfo") as lines:
            found = {k.strip(): v.strip() for k, _, v in (line.partition(":") for line in lines)}
    except OSError:
        return platform.processor()
    units = [x for x in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if x in found.get("flags", "").split()]
    return f"{found.get('model name', platform.processor())} ({', '.join(units)})"


def machine(cases, options):
    limits = [case.limit for case in cases if case.ours]
    best = lambda key: max((x[key] for x in limits if x[key]), default=None)
    show = lambda x: f"{x:.0f} GFLOP/s" if x else "not measured"
    return table(
        ["what", "found"],
        [
            ["date", datetime.date.today().isoformat()],
            ["processor", cpu()],
            ["cores", f"{os.cpu_count()}, {options.threads} threads on both sides"],
            ["load when done", " ".join(f"{x:.1f}" for x in os.getloadavg())],
            ["system", f"{platform.system()} {platform.release()}"],
            ["candlewick", run("git", "describe", "--always", "--dirty")],
            ["Rust", run("rustc", "--version")],
            ["Python", f"{sys.version.split()[0]}, torch {torch.__version__}, timm {timm.__version__}"],
            ["limit, f32", f"{show(best('f32_gflops'))} in registers, {show(best('f32_matmul_gflops'))} in a product"],
            ["limit, bf16", show(best("bf16_gflops"))],
        ],
    )


TITLE = ["# Speed and memory", "Written by `bench/compare.py`; [how it measures](../../bench/README.md), [what it comes to](../performance.md)."]


def text(cases, options, about, tolerance):
    drawn = "Weights are drawn, those of vit-micro are trained." if not options.weights else f"Weights: {options.weights}."
    notes = list(dict.fromkeys(f"{case.name()}: {note}".replace("\n", " ") for case in cases for note in case.notes))
    if not cases:
        return "\n\n".join([*TITLE, machine(cases, options), "No case was measured yet."])
    quick = ["**A quick run: it shows that everything works, not how fast it is.**"] if options.quick else []
    parts = [
        *TITLE,
        *quick,
        machine(cases, options),
        "## candlewick and PyTorch in turns",
        f"Median (least–most) of {options.rounds} rounds, in which both took turns. The opponent is the fastest PyTorch "
        "variant, whatever it computes in; `times faster` is its seconds by ours round by round, `times f32's best` the "
        "same for the fastest variant that computes in f32. Peak memory is the process's from the second pass on. "
        "Operations are counted from shapes; the limit is that of the machine's units, measured just before the case.",
        results(cases),
        "## Every PyTorch variant",
        f"Two turns of each before the rounds, to find the opponents. {about} Errors are those against PyTorch's f32.",
        variants(cases),
        "## Agreement",
        f"With PyTorch in f32: features by image, loss and gradients by parameter; the worst is shown. {drawn}",
        agreement(cases, tolerance),
    ]
    if notes:
        parts += ["## Notes", "\n".join(f"- {note}" for note in notes)]
    return "\n\n".join(parts)
