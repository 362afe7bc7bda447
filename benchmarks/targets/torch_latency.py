"""BERT encoders in plain PyTorch, timed; a script of its own, for any Python that has torch.

    python torch_latency.py '{"models": {"minilm": {...}}, "seqs": [16], "batches": [1], "modes": ["eager"], ...}'

Prints one JSON object a line: first what runs, then a line a figure, so that a run which is cut short leaves what it
had. On a GPU in fp16, else in fp32 on the CPU. Attention is scaled_dot_product_attention and gets no mask, which is the
fastest that it can be; `compile` is torch.compile in mode reduce-overhead, which replays CUDA graphs as we do.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn import functional


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


def times_ms(run: Callable[[], Any], synchronize: Callable[[], Any], seconds: float, most: int) -> list[float]:
    """One call after the other, each waited for, in ms; after some that do not count."""
    for _ in range(10):
        run()
    synchronize()
    took: list[float] = []
    end = time.perf_counter() + seconds
    while len(took) < most and (time.perf_counter() < end or len(took) < 20):
        begin = time.perf_counter()
        run()
        synchronize()
        took.append((time.perf_counter() - begin) * 1e3)
    return took


def figure(model: Any, shape: Mapping[str, int], mode: str, seq: int, batch: int, asked: Any, device: str) -> Any:
    """The times of one shape, or the error that it ended with."""
    called = model
    if mode == "compile":
        torch._dynamo.reset()
        called = torch.compile(model, mode="reduce-overhead")
    ids = torch.randint(0, shape["vocab_size"], (batch, seq), device=device)
    types = torch.zeros_like(ids)
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    try:
        with torch.inference_mode():
            return {"ms": times_ms(lambda: called(ids, types), wait, asked["seconds"], asked["runs"])}
    except Exception as error:  # out of memory, or a compiler that is not there
        return {"error": f"{type(error).__name__}: {error}"[:300]}


def main(asked: Mapping[str, Any]) -> None:
    """Time every model, mode and shape."""
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.float16) if on_gpu else ("cpu", torch.float32)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if on_gpu else "CPU"
    print(json.dumps({"torch": torch.__version__, "gpu": name, "dtype": str(dtype)}), flush=True)
    for model_name, shape in asked["models"].items():
        model = Encoder(shape).to(device, dtype).eval()
        for mode in asked["modes"]:
            for seq in asked["seqs"]:
                for batch in asked["batches"]:
                    found = figure(model, shape, mode, seq, batch, asked, device)
                    line = {"model": model_name, "mode": mode, "seq": seq, "batch": batch, **found}
                    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
