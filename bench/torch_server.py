"""PyTorch behind the protocol of candlewick-bench: one JSON request per line, one JSON answer per line.

Frozen weights have no gradient, attention is torch's fused one, prefixes are concatenated to keys and values,
Adam is the fused one. `variant` names what else is switched on, see VARIANTS.
"""

import copy
import json
import sys
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

# What computes in bfloat16, and what torch.compile does. "freeze" is inductor's constant folding for inference.
VARIANTS = {
    "f32": (None, None),
    "f32 compile": (None, "compile"),
    "f32 compile, freezing": (None, "freeze"),
    "f32, bf16 products": ("products", None),
    "bf16 autocast": ("autocast", None),
    "bf16 autocast, compile": ("autocast", "compile"),
    "pure bf16": ("pure", None),
    "pure bf16, compile": ("pure", "compile"),
    "pure bf16, compile, freezing": ("pure", "freeze"),
}
PULL = 0.1


def normalize(x):
    return x / x.square().sum(-1, keepdim=True).clamp_min(1e-12).sqrt()


class Prompted(nn.Module):
    """A training loss of one of the prompt methods; the same shapes as `Prompts` of candlewick-bench."""

    def __init__(self, vit, kind, params, autocast):
        super().__init__()
        self.vit, self.kind, self.autocast = [vit], kind, autocast
        self.params = {name: nn.Parameter(value) for name, value in params.items()}

    def heads(self, x):
        b, n, d = x.shape
        h = self.vit[0].blocks[0].attn.num_heads
        return x.reshape(b, n, h, d // h).transpose(1, 2)

    def prefix(self, block, query):
        p = self.params
        if self.kind == "dualprompt" and block < 5:
            pair = p[f"g.{block}"] if block < 2 else p[f"e.{block}"][1]
            return [self.heads(x.unsqueeze(0)).expand(query.shape[0], -1, -1, -1) for x in pair]
        if self.kind == "coda" and block < 5:
            k, a, x = p[f"k.{block}"], p[f"a.{block}"], p[f"p.{block}"]
            k = k / k.square().sum(1, keepdim=True).sqrt()
            alpha = (query @ (a * k).T) / (query.square() @ a.square().T).sqrt()
            mixed = (alpha @ x.flatten(1)).reshape(len(query), *x.shape[1:])
            return [self.heads(half) for half in mixed.chunk(2, 1)]
        return None

    def block(self, block, x, prefix):
        if prefix is None:
            return block(x)
        attn = block.attn
        b, n, d = x.shape
        qkv = attn.qkv(block.norm1(x)).reshape(b, n, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        k, v = (torch.cat([p.to(x.dtype), x], 2) for p, x in zip(prefix, (k, v)))
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + block.ls1(attn.proj(mixed))
        return x + block.ls2(block.mlp(block.norm2(x)))

    def forward(self, images, labels, query):
        vit, p = self.vit[0], self.params
        aux, tokens = 0.0, None
        prefixes = [self.prefix(i, query) for i in range(len(vit.blocks))]
        if self.kind.startswith("l2p"):
            similarity = normalize(query) @ normalize(p["keys"]).T
            nearest, ids = similarity.topk(5)
            tokens = p["prompts"][ids].flatten(1, 2)
            aux = -PULL * nearest.sum() / len(query)
        elif self.kind == "dualprompt":
            aux = -PULL * (normalize(query) * normalize(p["keys"][1:2])).sum() / len(query)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            x = vit.patch_embed(images) + vit.pos_embed[:, 1:]
            at_cls = vit.pos_embed[:, :1]
            parts = [(vit.cls_token + at_cls).expand(len(x), -1, -1), x]
            if tokens is not None:
                parts.insert(1, (tokens + at_cls).to(x.dtype))
            x = torch.cat(parts, 1)
            for block, prefix in zip(vit.blocks, prefixes):
                x = self.block(block, x, prefix)
            # Only what the head reads is normed.
            x = vit.norm(x[:, :1] if tokens is None else x[:, 1 : 1 + tokens.shape[1]])
        logits = x.float().mean(1) @ p["head.weight"].T + p["head.bias"]
        return F.cross_entropy(logits, labels) + aux


class Whole(nn.Module):
    """The loss of a backbone that trains, every weight of it."""

    def __init__(self, vit, params, autocast, checkpoint):
        super().__init__()
        self.vit, self.autocast = copy.deepcopy(vit).requires_grad_(True), autocast
        self.vit.set_grad_checkpointing(checkpoint)
        self.params = {name: nn.Parameter(value) for name, value in params.items()}

    def forward(self, images, labels, query):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            x = self.vit(images)
        return F.cross_entropy(x.float() @ self.params["head.weight"].T + self.params["head.bias"], labels)


class Server:
    def load(self, model, weights, variant, threads, checkpoint=False):
        self.checkpoint = checkpoint
        torch.set_num_threads(threads)
        torch.set_num_interop_threads(1)
        self.bf16, self.compiles = VARIANTS[variant]
        if self.compiles == "freeze":
            torch._inductor.config.freezing = True
        if self.bf16 == "products":
            torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        name, args = model
        make = timm.models.VisionTransformer if name is None else lambda **a: timm.create_model(name, **a)
        vit = make(num_classes=0, **args).eval().requires_grad_(False)
        vit.load_state_dict({k: v.float() for k, v in load_file(weights).items()})
        if self.bf16 == "pure":
            vit.to(torch.bfloat16)
        self.vit, self.plain = vit, self.compiled(vit)
        self.nets = {}
        return {}

    def compiled(self, module):
        return torch.compile(module, dynamic=False) if self.compiles else module

    def features(self, images):
        if self.bf16 == "pure":
            images = images.to(torch.bfloat16)
        # Compiled graphs of inference tensors could not be used again; for eager code it is the faster mode.
        mode = torch.no_grad() if self.compiles else torch.inference_mode()
        with mode, torch.autocast("cpu", torch.bfloat16, enabled=self.bf16 == "autocast"):
            return self.plain(images)

    def forward(self, images, reps, out=None):
        images = load_file(images)["images"]
        if out:
            save_file({"features": self.features(images).float().clone()}, out)
        return {"seconds": timed(reps, lambda: self.features(images))}

    def step(self, kind, inputs, reps, out=None):
        given = load_file(inputs)
        params = {k.removeprefix("param."): v for k, v in given.items() if k.startswith("param.")}
        if kind not in self.nets:
            autocast = self.bf16 == "autocast"
            if kind == "cofima":
                net = Whole(self.vit, params, autocast, self.checkpoint)
            else:
                net = Prompted(self.vit, kind, params, autocast)
            self.nets[kind] = net, self.compiled(net)
        net, run = self.nets[kind]
        with torch.no_grad():
            for name, value in params.items():
                net.params[name].copy_(value)
            if kind == "cofima":
                net.vit.load_state_dict(self.vit.state_dict())
        images, labels = given["images"], given["labels"].long()
        trained = dict(net.params)
        if kind == "cofima":
            trained |= {f"backbone.{name}": p for name, p in net.vit.named_parameters()}
            groups = [{"params": net.vit.parameters(), "lr": 1e-4}, {"params": net.params.values(), "lr": 1e-2}]
            optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4, fused=True)
        else:
            optimizer = torch.optim.Adam(net.params.values(), lr=1e-3, fused=True)

        def loss():
            query = self.features(images).float().clone() if kind == "l2p-full" else given["query"]
            x = images.to(torch.bfloat16) if self.bf16 == "pure" else images
            return run(x, labels, query)

        def step():
            optimizer.zero_grad(set_to_none=True)
            loss().backward()
            if kind == "l2p-full":
                nn.utils.clip_grad_norm_(net.params.values(), 1.0)
            optimizer.step()

        if out:
            optimizer.zero_grad(set_to_none=True)
            value = loss()
            value.backward()
            grads = {f"grad.{name}": p.grad.float().contiguous() for name, p in trained.items()}
            save_file({"loss": value.detach().float(), **grads}, out)
        return {"seconds": timed(reps, step)}

    def memory(self, reset=False):
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM:"))
        return {"peak_bytes": int(line.split()[1]) * 1024}

    def compiles_at_all(self):
        """torch.compile needs a C++ compiler; says whether it does its work."""
        x = torch.ones(64)
        return {"ok": bool((torch.compile(lambda x: x.sin() + 1)(x) == x.sin() + 1).all())}


def timed(reps, work):
    seconds = []
    for _ in range(reps):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def main():
    # Whatever torch prints must not end up among the answers.
    answers, sys.stdout = sys.stdout, sys.stderr
    server = Server()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(server, request.pop("op"))(**request)
        except Exception as e:  # the other side decides what an error means
            answer = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
