"""The floor: onnxruntime and tokenizers alone, nothing of this project but the exported graph."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from tokenizers import Tokenizer

from benchmarks.floor_files import files
from engine.bundle import open_bundle
from engine.probe import cpu_quota

BATCH = 16
"""Rows in a batch. On a CPU larger ones gain nothing, and their padding costs."""


class Floor:
    """A session and a tokenizer as a script would hold them, one thread for each CPU of the quota."""

    def __init__(self, bundle_path: Path) -> None:
        bundle = open_bundle(bundle_path)
        opened = files(bundle)
        options = ort.SessionOptions()
        options.intra_op_num_threads = cpu_quota()
        options.log_severity_level = 3
        if opened.fused:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = ort.InferenceSession(str(opened.graph), options, providers=["CPUExecutionProvider"])
        self._tokenizer = Tokenizer.from_file(str(opened.tokenizer))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(int(bundle.manifest.task_config["max_length"]))
        self._prompt = opened.prompt
        self._inputs = bundle.manifest.graphs["model"].inputs

    def one_by_one(self, texts: Sequence[str], *, pause_s: float = 0.0) -> list[float]:
        """How long each text takes in ms, its tokenization included, after a warm-up on the first ten.

        After a pause of `pause_s` seconds caches are cold and threads asleep, as in a worker that was idle.
        """
        took: list[float] = []
        warm_up = texts[:10]
        for text in [*warm_up, *texts]:
            time.sleep(pause_s)
            begin = time.perf_counter()
            self._run([self._tokenizer.encode(self._prompt + text)])
            took.append((time.perf_counter() - begin) * 1e3)
        return took[len(warm_up) :]

    def in_batches(self, texts: Sequence[str]) -> float:
        """Rows a second, tokenization included: sorted by length, in batches of BATCH padded to their longest."""
        return self._rows_per_second(texts, _cut)

    def in_equal_lengths(self, texts: Sequence[str]) -> float:
        """Rows a second, tokenization included: only rows of one length share a batch, so that nothing is padded."""
        return self._rows_per_second(texts, _cut_by_length)

    def _rows_per_second(self, texts: Sequence[str], cut: Callable[[list[Any]], Iterable[list[Any]]]) -> float:
        self._run(self._encoded(texts[:BATCH]))  # warm-up
        begin = time.perf_counter()
        for batch in cut(sorted(self._encoded(texts), key=len)):
            self._run(batch)
        return len(texts) / (time.perf_counter() - begin)

    def _encoded(self, texts: Sequence[str]) -> list[Any]:
        found: list[Any] = self._tokenizer.encode_batch([self._prompt + text for text in texts])
        return found

    def _run(self, encodings: Sequence[Any]) -> None:
        longest = max(map(len, encodings))
        feeds = {spec.name: np.full((len(encodings), longest), spec.pad, np.int32) for spec in self._inputs}
        for row, encoding in enumerate(encodings):
            values = {"input_ids": encoding.ids, "attention_mask": encoding.attention_mask}
            values["token_type_ids"] = encoding.type_ids
            for name, feed in feeds.items():
                feed[row, : len(encoding)] = values[name]
        self._session.run(None, feeds)


def _cut(rows: Sequence[Any]) -> Iterable[list[Any]]:
    return (list(rows[start : start + BATCH]) for start in range(0, len(rows), BATCH))


def _cut_by_length(rows: Sequence[Any]) -> Iterable[list[Any]]:
    return (batch for _, same in groupby(rows, key=len) for batch in _cut(list(same)))
