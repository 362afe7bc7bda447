"""Mistakes in a task's offline file that would otherwise go unseen, or end in a library's traceback: a sentence each.

Rule: nothing is imported at the top that help and wrong arguments do not need.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from engine.tasks import task_class
from export.errors import Refused

if TYPE_CHECKING:
    from export.source import Source
    from export.tasks.base import ExportTask

_ALIKE = 0.8
_SMALL = 1024  # bytes of a constant that may be a shape or an axis, which decide shapes behind it


def file_of(task: ExportTask) -> str:
    """The task's file and class, for the beginning of a sentence."""
    return f"export/tasks/{task.tag.replace('-', '_')}.py: {type(task).__name__}"


def missing(task: ExportTask, method: str) -> Refused:
    """For a method that the base leaves to the task."""
    return Refused(f"{file_of(task)} has no method `{method}`, which every task must have (docs/adding-a-task.md)")


def check_class(task: ExportTask) -> None:
    """Raise Refused for a name that was meant to be one of the base's, and for a task that nothing is judged by."""
    kind = type(task)
    of_bases = {name for base in kind.__mro__[1:] for name in _public(base)}
    for name in set(_public(kind)) - of_bases:
        if near := get_close_matches(name, of_bases - set(_public(kind)), 1, _ALIKE):
            raise Refused(
                f"{file_of(task)} has `{name}`, which nothing asks for; did you mean `{near[0]}`? A name of the task's "
                "own that is so near begins with _"
            )
    if task.has_model and not task.measures:
        raise Refused(f"{file_of(task)} has no `measures`, so that no answer could fail the gate; name one at least")


def check_online(tag: str) -> None:
    """Raise Refused where the worker's class lacks what the export asks of it, BundleError as `task_class` does.

    A bundle would be there by the time that the closing line makes a job of the first example.
    """
    kind = task_class(tag)
    says = f"engine/tasks/{tag.replace('-', '_')}.py: {kind.__name__}"
    for name, what in (
        ("summary", "a sentence on what the task does"),
        ("auto_class", "the name of transformers' class for such models, empty without a model"),
    ):
        if not isinstance(getattr(kind, name, None), str):
            raise Refused(f"{says} has no text `{name}`; let it be {what}")
    examples = getattr(kind, "examples", None)
    if not isinstance(examples, list | tuple) or not examples or not isinstance(examples[0], Mapping):
        raise Refused(
            f"{says} has no list of objects as `examples`; let it be one of payloads that the task takes, such as "
            '({"text": "A quick test."},)'
        )
    try:
        json.dumps(examples[0])
    except (TypeError, ValueError) as error:
        raise Refused(f"{says}.examples[0] is no payload of a job: {error}; change it") from error


def _public(kind: type) -> Iterator[str]:
    return (name for name in vars(kind) if not name.startswith("_"))


def check_exporter(task: ExportTask) -> None:
    """Raise Refused for a task that optimum is to trace and does not know, by whichever name."""
    from optimum.exporters.tasks import TasksManager

    known = TasksManager.get_all_tasks()
    if task.exporter_task not in known:
        near = get_close_matches(task.exporter_task, known, 1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise Refused(
            f"{file_of(task)} is traced as {task.exporter_task!r} (its `exporter`, or else its tag), which is no task "
            f"of optimum; {meant}known are: {', '.join(sorted(known))}; or let `exporters` return (DYNAMO,)"
        )


def add_head(model: Any, source: Source) -> None:
    """Put the task's `head` behind the traced ONNX `model`, in place. Raises Refused for what is not so."""
    from export.nodes import NoDtype

    graph = model.graph
    says = f"{file_of(source.task)}.head"
    try:
        source.task.head(graph, source)
    except NoDtype as error:
        raise Refused(f"{says}: {error}") from error
    made = {name for node in graph.node for name in node.output} | {tensor.name for tensor in graph.input}
    for tensor in graph.output:
        if tensor.name not in made:
            near = get_close_matches(tensor.name, made, 1, 0.5)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise Refused(f"{says} declares {tensor.name}, which no node makes{meant}")
    found = _inferred(model)
    for tensor in graph.output:
        declared = _axes(tensor)
        _check_axes(tensor.name, declared, says)
        other = found.get(tensor.name, tensor)
        kinds = [one.type.tensor_type.elem_type for one in (tensor, other)]
        if kinds[1] and (kinds[0] != kinds[1] or not _fit(declared, other)):
            raise Refused(
                f"{says} declares {tensor.name} as {_shown(tensor, declared)}; the graph makes it "
                f"{_shown(other, [axis if isinstance(axis, int) and axis else '?' for axis in _axes(other)])}"
            )


def _inferred(model: Any) -> dict[str, Any]:
    """What ONNX infers about the outputs of `model`, as far as it can: name -> declaration. Weights are not copied."""
    from onnx import helper, shape_inference

    graph = model.graph
    small = [one for one in graph.initializer if len(one.raw_data) <= _SMALL and not one.external_data]
    kept = {one.name for one in small}
    weights = [
        helper.make_tensor_value_info(one.name, one.data_type, list(one.dims))
        for one in graph.initializer
        if one.name not in kept
    ]
    outputs = [helper.make_empty_tensor_value_info(one.name) for one in graph.output]
    bare = helper.make_graph(graph.node, "bare", [*graph.input, *weights], outputs, small)
    try:
        inferred = shape_inference.infer_shapes(helper.make_model(bare, opset_imports=model.opset_import))
    except Exception:  # it cannot tell; ONNX's checker and the gate see the whole graph
        return {}
    return {tensor.name: tensor for tensor in inferred.graph.output}


def _axes(tensor: Any) -> list[int | str]:
    return [axis.dim_param or axis.dim_value for axis in tensor.type.tensor_type.shape.dim]


def _check_axes(name: str, axes: list[int | str], says: str) -> None:
    from engine.bucket import Bucket
    from engine.tensors import TensorSpec

    try:
        TensorSpec(name, "", tuple(axes)).shape_at(Bucket(1, 1))
    except ValueError as error:
        raise Refused(f"{says} declares {name} with an axis of another kind: {error}") from error
    if axes[:1] != ["batch"]:
        raise Refused(f'{says} declares {name} as {axes}; its first axis is "batch", a row of answers each')


def _fit(declared: list[int | str], other: Any) -> bool:
    """Whether the fixed axes agree, as far as those of `other` are known."""
    if not other.type.tensor_type.HasField("shape"):
        return True
    found = _axes(other)
    pairs = zip(declared, found, strict=False)
    clash = any(isinstance(a, int) and isinstance(b, int) and b and a != b for a, b in pairs)
    return len(declared) == len(found) and not clash


def _shown(tensor: Any, axes: list[int | str]) -> str:
    from onnx import helper

    dtype = helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type).name
    return f"{dtype} ({', '.join(map(str, axes))})"
