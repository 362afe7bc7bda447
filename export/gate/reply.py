"""Part of the gate: the worker's way from the graph's real outputs to a reply, once, before a job goes it."""

from __future__ import annotations

import math
import sys
import traceback
from contextlib import closing
from typing import TYPE_CHECKING, Any

import numpy as np

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.batching.feed import run_rows
from engine.errors import InvalidInput
from engine.tasks import load_task
from engine.tasks.items import ItemsTask
from export.errors import Refused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.bundle import Bundle
    from engine.tasks.base import Task
    from engine.tensors import Arrays, Row
    from export.source import Source
    from export.tasks.base import ExportTask

_CARRIED = "fiub"  # numpy's kinds of numbers and booleans


def check_reply(source: Source, bundle: Bundle) -> None:
    """Let the worker's task answer the first probe, and look whether JSON can carry what it says.

    Raises Refused, with the method and the line, where the task fails on what the graphs give; nothing else calls its
    `postprocess` before the first job. Or where it does not take the first of its own examples, which the closing line
    and the gate of plans make a job of; those behind it may ask for what not every model has.
    """
    task = load_task(bundle)
    says = f"engine/tasks/{source.task.tag.replace('-', '_')}.py: {type(task).__name__}"
    try:
        task.parse(dict(task.examples[0]))
    except InvalidInput as error:
        raise Refused(f"{says}.examples[0] is no job that the task takes: {error}; change it") from error
    payload = next(iter(source.task.probes(source))).payload
    request = task.parse(payload)
    outputs = _outputs(bundle, task.preprocess(request))
    try:
        reply = task.postprocess(request, outputs)
    except Exception as error:
        method, line = place_of(task, error)
        raise Refused(
            f"{says}.{method} fails{line} on what the model gives: {type(error).__name__}: {error}; the payload was "
            f"{str(payload)[:100]}"
        ) from error
    if obstacle := _obstacle(reply, "reply"):
        raise Refused(
            f"{says}.{_own_method(task)} returns what JSON cannot carry: {obstacle}; give numbers, texts, lists and "
            "objects"
        )


def _outputs(bundle: Bundle, rows: Sequence[Row]) -> list[Arrays]:
    """Of every row, from the graph that it is for."""
    outputs: list[Arrays] = [{}] * len(rows)
    for name in dict.fromkeys(row.graph for row in rows):
        with closing(OnnxRuntimeEngine(bundle, name)) as engine:
            for place, row in enumerate(rows):
                if row.graph == name:
                    (outputs[place],) = run_rows(engine, [row])
    return outputs


def place_of(task: Task | ExportTask, error: Exception) -> tuple[str, str]:
    """The method in the file of the task's class that `error` came out of, and the line in words."""
    file = sys.modules[type(task).__module__].__file__
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    methods = [frame.name for frame in frames if not frame.name.startswith("<")]  # no comprehension
    return (methods[-1], f" at line {frames[-1].lineno}") if methods else (_own_method(task), "")


def _own_method(task: Task | ExportTask) -> str:
    return "postprocess" if getattr(type(task), "answer", ItemsTask.answer) is ItemsTask.answer else "answer"


def _obstacle(value: Any, name: str) -> str:
    """What in `value` the worker would refuse to write (handler/reply.py), and where; empty where all of it can be."""
    if isinstance(value, np.ndarray | np.generic):
        if value.dtype.kind not in _CARRIED:
            return f"{name} is an array of {value.dtype}"
        return "" if value.dtype.kind != "f" or bool(np.isfinite(value).all()) else f"{name} holds NaN or infinity"
    if isinstance(value, dict):
        if odd := [key for key in value if not isinstance(key, str)]:
            return f"{name} has the key {odd[0]!r}, which is no text"
        found = (_obstacle(one, f"{name}[{key!r}]") for key, one in value.items())
    elif isinstance(value, list | tuple):
        found = (_obstacle(one, f"{name}[{place}]") for place, one in enumerate(value))
    elif isinstance(value, float):
        return "" if math.isfinite(value) else f"{name} is {value}"
    else:
        return "" if value is None or isinstance(value, str | int) else f"{name} is a {type(value).__name__}"
    return next((one for one in found if one), "")
