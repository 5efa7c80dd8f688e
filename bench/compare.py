"""candlewick against PyTorch, turn by turn on the same machine, weights and inputs.

    pip install torch timm safetensors numpy
    cargo build --release -p candlewick-bench
    python bench/compare.py --quick
    python bench/compare.py --write docs/performance/MACHINE.md

Every PyTorch variant is measured on its own first. The fastest then take turns with candlewick, and the one that is
fastest there is the opponent. Outputs and gradients are compared with PyTorch's f32; the run ends with an error
where candlewick's are not within the tolerance. bench/README.md tells the rest.
"""

import argparse
import fnmatch
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import fixtures
import report
from torch_server import VARIANTS

ROOT = fixtures.ROOT
# Largest relative error (L2) and smallest cosine, of features by image and of gradients by parameter.
TOLERANCE = {
    "f32": {"features": (5e-5, 0.99999), "gradients": (2e-4, 0.9999)},
    "bf16": {"features": (0.03, 0.999), "gradients": (0.1, 0.99)},
}
STEPS = ["l2p", "dualprompt", "coda", "l2p-full", "cofima", "cofima-checkpoint"]


class Failed(Exception):
    """A server answered with an error."""


class Side:
    """A server and what was seen of it."""

    def __init__(self, name, kind, command, threads):
        self.name, self.kind = name, kind
        self.turns, self.peak, self.error, self.reps = [], None, None, 1
        env = os.environ | {x: str(threads) for x in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        pipe = subprocess.PIPE
        self.child = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env, stderr=sys.stderr)

    def ask(self, **request):
        try:
            self.child.stdin.write(json.dumps(request, default=str) + "\n")
            self.child.stdin.flush()
        except BrokenPipeError:
            pass
        line = self.child.stdout.readline()
        if not line:
            raise Failed(f"{self.name}: ended with {self.child.wait()} (out of memory?)")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{self.name}: {answer['error']}")
        return answer

    def stop(self):
        self.child.stdin.close()
        self.child.stdout.close()
        self.child.wait()

    def warm_up(self, job, out):
        """Writes the outputs, then measures how many repetitions make a turn of about a second."""
        self.ask(**job, reps=1, out=out)
        self.ask(op="memory", reset=True)
        once = min(self.ask(**job, reps=2)["seconds"])
        self.reps = max(1, min(100, round(1 / once)))

    def turn(self, job):
        self.turns.append(statistics.median(self.ask(**job, reps=self.reps)["seconds"]))

    def median(self):
        return statistics.median(self.turns)


def errors(found, wanted):
    """The worst relative error and cosine of the tensors of two files, and the tensor's name."""
    found, wanted = load_file(found), load_file(wanted)
    worst = (0.0, 1.0, "")
    for name, b in wanted.items():
        a, b = (x.double().reshape(len(x), -1) if name == "features" else x.double().reshape(1, -1) for x in (found[name], b))
        if not a.isfinite().all():
            return float("inf"), 0.0, name
        if b.norm() == 0:
            continue
        relative = ((a - b).norm(dim=1) / b.norm(dim=1)).max().item()
        cosine = torch.cosine_similarity(a, b).min().item()
        worst = max(worst, (relative, cosine, name), key=lambda x: x[0])
    return worst


def check(side, out, reference, case):
    relative, cosine, name = errors(out, reference)
    most, least = TOLERANCE[side.kind]["features" if case == "forward" else "gradients"]
    side.error = relative, cosine
    if relative > most or cosine < least:
        raise Failed(
            f"{side.name}: `{name}` is off by {relative:.2g} (cosine {cosine:.6f}), allowed {most:.2g} ({least})"
        )


def torch_variants(case, options):
    for name, (_, compiles) in VARIANTS.items():
        if compiles and not options.compiles:
            continue
        if not any(fnmatch.fnmatch(name, p) for p in options.variants):
            continue
        # Freezing is for inference; a quick run leaves out the slowest to compile.
        if compiles == "freeze" and (case != "forward" or options.quick):
            continue
        yield name


class Case:
    """One kind of work at one batch size on one model."""

    def __init__(self, model, case, batch, weights, folder, vit, options):
        self.model, self.case, self.batch, self.options, self.folder = model, case, batch, options, folder
        self.weights, self.heads = weights, vit.blocks[0].attn.num_heads
        self.flops = report.flops(vit, case) * batch
        self.ours, self.theirs, self.notes, self.failed = [], [], [], []
        file = fixtures.inputs(vit, case, batch, folder / "inputs.safetensors")
        kind = case.removesuffix("-checkpoint")
        self.load = {"checkpoint": True} if kind != case else {}
        what = {"images": file} if case == "forward" else {"kind": kind, "inputs": file}
        self.job = {"op": "forward" if case == "forward" else "step", **what}

    def run(self):
        kept = []
        try:
            kept = self.select()
            self.start_ours()
            best = kept + self.ours
            for side in kept:
                side.turns = []
            before = report.busy(best)
            for i in range(self.options.rounds):
                # The one who begins changes, so that nobody always follows the same neighbour.
                for side in best[i % len(best) :] + best[: i % len(best)]:
                    side.turn(self.job)
            others = report.busy_with_others(before, report.busy(best))
            if others > 0.1:
                self.note(f"other programs took {others:.1f} cores during the rounds; measure again on a quiet machine")
            for side in best:
                side.peak = side.ask(op="memory")["peak_bytes"]
            self.rivals = kept
        finally:
            for side in kept + self.ours:
                side.stop()
        return self

    def start_ours(self):
        for precision in self.options.precision:
            side = Side(f"candlewick {precision}", precision, [self.options.server], self.options.threads)
            try:
                side.ask(
                    op="load",
                    weights=self.weights,
                    precision=precision,
                    threads=self.options.threads,
                    heads=self.heads,
                    **self.load,
                )
            except Failed as e:
                self.note(str(e))
                side.stop()
                continue
            self.ours.append(side)
            self.limit = side.ask(op="limit")
            side.warm_up(self.job, self.folder / "ours.safetensors")
            try:
                check(side, self.folder / "ours.safetensors", self.folder / "reference.safetensors", self.case)
            except Failed as e:
                self.failed.append(str(e))
                self.note(f"WRONG: {e}")

    def select(self):
        """Measures every variant of PyTorch; those that go on into the rounds still run when this returns."""
        kept = []
        for variant in torch_variants(self.case, self.options):
            kind = "f32" if VARIANTS[variant][0] is None else "bf16"
            command = [sys.executable, ROOT / "bench/torch_server.py"]
            side = Side(variant, kind, command, self.options.threads)
            reference = self.folder / "reference.safetensors"
            out = reference if variant == "f32" else self.folder / "theirs.safetensors"
            try:
                model = fixtures.models()[self.model]
                load = {"weights": self.weights, "variant": variant, "threads": self.options.threads, **self.load}
                side.ask(op="load", model=model, **load)
                side.warm_up(self.job, out)
                check(side, out, reference, self.case)
                for _ in range(2):
                    side.turn(self.job)
                side.peak = side.ask(op="memory")["peak_bytes"]
            except Failed as e:
                side.stop()
                if variant == "f32":
                    raise
                self.note(str(e))
                continue
            self.theirs.append((variant, side.median(), side.peak, side.error))
            # The fastest in f32 and the two fastest of all.
            kept.append(side)
            kept.sort(key=Side.median)
            go_on = kept[:2] + [s for s in kept if s.kind == "f32"][:1]
            for side in set(kept) - set(go_on):
                side.stop()
            kept = [side for side in kept if side in go_on]
        return kept

    def note(self, text):
        self.notes.append(text)
        print(f"{self.name()}: {text}", file=sys.stderr)

    def name(self):
        return f"{self.model}/{self.case}/{self.batch}"


def can_compile(options):
    side = Side("torch.compile", "f32", [sys.executable, ROOT / "bench/torch_server.py"], options.threads)
    try:
        ok = side.ask(op="compiles_at_all")["ok"]
        return ok, "torch.compile works." if ok else "torch.compile gives wrong results here; it was left out."
    except Failed as e:
        return False, f"torch.compile does not work here and was left out: {str(e).splitlines()[0]}"
    finally:
        side.stop()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of MODEL/CASE/BATCH, such as 'vit-b16/*'")
    parser.add_argument("--quick", action="store_true", help="vit-micro, two rounds: whether everything works")
    parser.add_argument("--rounds", type=int, help="turns of each side (5)")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", nargs="*", default=["f32", "bf16"], choices=["f32", "bf16"])
    parser.add_argument("--weights", nargs="*", default=[], metavar="MODEL=FILE", help="timm weights, not drawn ones")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out; the tables say so")
    parser.add_argument("--variants", nargs="*", default=["*"], help="patterns of PyTorch variants; f32 is always one")
    parser.add_argument("--server", type=Path, default=ROOT / "target/release/candlewick-bench")
    parser.add_argument("--write", type=Path, help="write the report here too")
    options = parser.parse_args()
    options.rounds = options.rounds or (2 if options.quick else 5)
    options.variants.append("f32")
    options.weights = dict(x.split("=", 1) for x in options.weights)
    if not options.server.exists():
        parser.error(f"{options.server} is missing: cargo build --release -p candlewick-bench")
    return options


def main():
    options = arguments()
    torch.set_num_threads(options.threads)
    options.compiles, about = (False, "torch.compile was left out.") if options.no_compile else can_compile(options)
    if options.variants != ["*", "f32"]:
        about += f" Only these variants of PyTorch took part: {', '.join(options.variants)}."
    names = ["vit-micro"] if options.quick else list(fixtures.models())
    forwards = [("forward", b) for b in ([16] if options.quick else [1, 16, 64])]
    done, broken = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for model in names:
            cases = [
                (case, batch)
                for case, batch in forwards + [(case, 16) for case in STEPS]
                if any(fnmatch.fnmatch(f"{model}/{case}/{batch}", p) for p in options.only)
            ]
            if not cases:
                continue
            weights, vit = fixtures.weights(model, folder, options.weights.get(model))
            for case, batch in cases:
                print(f"{model}/{case}/{batch} ...", file=sys.stderr)
                try:
                    done.append(Case(model, case, batch, weights, folder, vit, options).run())
                    if options.write:  # hours of work are not to be lost with the last minute
                        options.write.write_text(report.text(done, options, about, TOLERANCE) + "\n")
                except Failed as e:  # the other cases may still be worth their time
                    broken.append(f"{model}/{case}/{batch}: {e}")
                    print(broken[-1], file=sys.stderr)
    text = report.text(done, options, about, TOLERANCE)
    print(text)
    if options.write:
        options.write.write_text(text + "\n")
    failed = [f"{case.name()}: {x}" for case in done for x in case.failed]
    if failed or broken:
        sys.exit("\n".join(["outside the tolerance, or broken off:", *failed, *broken]))


if __name__ == "__main__":
    main()
