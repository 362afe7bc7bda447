"""A BERT encoder in plain PyTorch, timed; a script of its own, for any Python that has torch.

    python torch_latency.py '{"shape": {...}, "mode": "eager", "device": "cuda", "precision": "fp16"}'

Answers as engine_alone.py does, after a first line that says what runs. `device` is cpu or cuda, `precision` fp32,
tf32, fp16 or bf16. Attention is scaled_dot_product_attention and gets no mask, which is the fastest that it can be; the
mode `compile` is torch.compile in mode reduce-overhead, which replays CUDA graphs as we do.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional

_TYPES = {"fp32": torch.float32, "tf32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class Layer(nn.Module):
    """One encoder layer, normalised behind its sums as BERT is."""

    def __init__(self, hidden: int, heads: int, inner: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.mix = (nn.Linear(hidden, hidden) for _ in range(4))
        self.up, self.down = nn.Linear(hidden, inner), nn.Linear(inner, hidden)
        self.first, self.second = (nn.LayerNorm(hidden, eps=1e-12) for _ in range(2))

    def forward(self, x: Any) -> Any:
        """(batch, length, hidden) to the same."""
        batch, length, hidden = x.shape
        split = (batch, length, self.heads, hidden // self.heads)
        q, k, v = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, hidden)
        x = self.first(x + self.mix(mixed))
        return self.second(x + self.down(functional.gelu(self.up(x))))


class Encoder(nn.Module):
    """BERT without its pooler, and the mean over all tokens."""

    def __init__(self, shape: Mapping[str, int]) -> None:
        super().__init__()
        hidden = shape["hidden_size"]
        self.words = nn.Embedding(shape["vocab_size"], hidden)
        self.positions = nn.Embedding(shape["max_position_embeddings"], hidden)
        self.types = nn.Embedding(shape["type_vocab_size"], hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-12)
        heads, inner = shape["num_attention_heads"], shape["intermediate_size"]
        self.layers = nn.ModuleList(Layer(hidden, heads, inner) for _ in range(shape["num_hidden_layers"]))

    def forward(self, ids: Any, types: Any) -> Any:
        """Two (batch, length) of integers to (batch, hidden)."""
        x = self.words(ids) + self.types(types) + self.positions.weight[: ids.shape[1]]
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x)
        return x.mean(1)


def shape_times(model: Any, shape: Mapping[str, int], mode: str, asked: Mapping[str, Any], device: str) -> Any:
    """The times of one shape: each run waited for, in ms."""
    called = model
    if mode == "compile":
        torch._dynamo.reset()
        called = torch.compile(model, mode="reduce-overhead")
    ids = torch.randint(0, shape["vocab_size"], (asked["batch"], asked["length"]), device=device)
    types = torch.zeros_like(ids)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    with torch.inference_mode():
        for _ in range(3):  # compiled at the first, captured at the next
            called(ids, types)
        wait()
        end = time.perf_counter() + asked["warm_up_ms"] / 1e3
        while time.perf_counter() < end:
            called(ids, types)
            wait()
        took: list[float] = []
        first = begin = time.perf_counter()
        while begin < first + asked["duration_s"] or len(took) < asked["iterations"]:
            called(ids, types)
            wait()
            now = time.perf_counter()
            took.append((now - begin) * 1e3)
            begin = now
    return {"ms": took, "seconds": begin - first}


def main(asked: Mapping[str, Any]) -> None:
    """Make the model, say what runs, answer line by line until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what compilers print is no answer
    device, dtype = asked["device"], _TYPES[asked["precision"]]
    torch.set_float32_matmul_precision("high" if asked["precision"] == "tf32" else "highest")
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    model = Encoder(asked["shape"]).to(device, dtype).eval()
    products = torch.get_float32_matmul_precision()
    hello = {"torch": torch.__version__, "gpu": name, "dtype": str(dtype), "float32_matmul_precision": products}
    print(json.dumps(hello), file=answers, flush=True)
    for line in sys.stdin:
        try:
            found = shape_times(model, asked["shape"], asked["mode"], json.loads(line), device)
        except Exception as error:  # out of memory, or a compiler that is not there
            found = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(found), file=answers, flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
