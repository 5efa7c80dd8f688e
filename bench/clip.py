"""CLIP ViT-B/16's towers, candlewick and transformers in turns: images, class prompts of a few tokens, texts of all 77.

    pip install torch transformers safetensors
    cargo build --release -p candlewick-bench --example clip
    python bench/clip.py

Weights are drawn. Every turn is a process of its own; tokens are made in it and not timed on transformers' side. transformers runs in f32
and under bf16 autocast, with texts padded to the longest as its tokenizer does when asked, and to 77, which is what CLIP users write.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STEPS, BATCH = 5, 16
TOKENIZER = ROOT / "crates/vit/tests/fixtures/clip/tokenizer.json"


def config():
    from transformers import CLIPConfig

    return CLIPConfig(vision_config=dict(patch_size=16), projection_dim=512)


def torch_side(folder, precision, tower, inputs, padding):
    import torch
    from safetensors.torch import load_file
    from transformers import CLIPModel, PreTrainedTokenizerFast

    torch.set_num_threads(os.cpu_count())
    model = CLIPModel.from_pretrained(folder).eval()
    if tower == "image":
        pixels = load_file(inputs)["pixels"]
        run = lambda: model.get_image_features(pixel_values=pixels)
    else:
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(TOKENIZER), pad_token="<|endoftext|>")
        lines = Path(inputs).read_text().splitlines()
        padded = True if padding == "longest" else "max_length"
        tokens = tokenizer(lines, padding=padded, truncation=True, max_length=77, return_tensors="pt")
        run = lambda: model.get_text_features(input_ids=tokens["input_ids"])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        features = run()
        features = getattr(features, "pooler_output", features)
        seconds = []
        for _ in range(STEPS):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    print(json.dumps({"features": features.float().flatten().tolist(), "seconds": seconds}))


def measured(command):
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch", nargs=5)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.torch:
        torch_side(*args.torch)
        return
    import torch
    from safetensors.torch import save_file
    from transformers import CLIPModel

    torch.manual_seed(0)
    own, threads = ROOT / "target/release/examples/clip", str(os.cpu_count())
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        CLIPModel(config()).save_pretrained(folder)
        (folder / "tokenizer.json").write_bytes(TOKENIZER.read_bytes())
        save_file({"pixels": torch.randn(BATCH, 3, 224, 224)}, folder / "pixels.safetensors")
        names = ["goldfish", "great white shark", "tree frog", "scuba diver", "electric guitar", "broccoli", "lighthouse", "pug"]
        short = [f"a photo of a {name}." for name in names] * (BATCH // 8)
        (folder / "short.txt").write_text("\n".join(short))
        (folder / "long.txt").write_text("\n".join(" ".join([s] * 20) for s in short))
        print("| tower | precision | candlewick, items/s | transformers, longest | transformers, 77 | times faster | least cosine |")
        print("|---|---|---:|---:|---:|---:|---:|")
        for tower, name in [("image", "pixels.safetensors"), ("text", "short.txt"), ("text", "long.txt")]:
            inputs = folder / name
            for precision in ["f32", "bf16"]:
                ways = {"own": [own, folder, precision, tower, inputs, str(STEPS), threads]}
                for padding in ["longest", "77"] if name == "short.txt" else ["longest"]:
                    ways[padding] = [sys.executable, __file__, "--torch", folder, precision, tower, inputs, padding]
                times, features = {way: [] for way in ways}, {}
                for _ in range(args.rounds):
                    for way, command in ways.items():
                        found = measured([str(c) for c in command])
                        times[way] += found["seconds"]
                        features[way] = torch.tensor(found["features"]).reshape(BATCH, -1)
                rate = {way: BATCH / statistics.median(seconds) for way, seconds in times.items()}
                theirs = [rate.get(way) for way in ["longest", "77"]]
                near = torch.cosine_similarity(features["own"], features["longest"]).min()
                shown = " | ".join("" if r is None else f"{r:.1f}" for r in theirs)
                ratios = ", ".join(f"{rate['own'] / r:.2f}" for r in theirs if r)
                print(f"| {tower}, {name.split('.')[0]} | {precision} | {rate['own']:.1f} | {shown} | {ratios} | {near:.5f} |", flush=True)


if __name__ == "__main__":
    main()
