"""What a task says offline: how to find and check its models, what its graph is like, how it is compared.

A file in export/tasks subclasses ExportTask, or TextExport (export/text.py) for texts, overrides what differs, and
ends with `TASK = ItsClass()`. Stages call the methods in the order in which they stand here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from engine.tasks import task_class
from export.command.said import quiet
from export.errors import Refused
from export.exporters import trace_module
from export.nodes import Axes, Nodes
from export.own_task import missing
from export.source import DYNAMO, OPTIMUM, untraceable

if TYPE_CHECKING:
    from engine.tasks.base import Json, Task
    from engine.tensors import Arrays, Row
    from export.gate.measures import Measure
    from export.recipe import Recipe
    from export.source import Source


@dataclass(frozen=True)
class Layout:
    """What a task's own files say about a model, read before anything else."""

    transformer: str = ""
    """Folder of config.json, weights and tokenizer inside the model's folder."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Whatever the task wants to know later; `Source.settings`."""


@dataclass(frozen=True)
class Probe:
    """One payload for the gate, and what transformers makes of it: the model's own inputs, one mapping a row."""

    label: str
    payload: Json
    inputs: Sequence[Mapping[str, Any]]


class ExportTask:
    """The offline side of one task."""

    tag: ClassVar[str]
    has_model: ClassVar[bool] = True
    """Without one a task needs no file here: its bundle has no graph, and `files` and `task_config` alone are asked.

    The Source that they get has empty values (export/without_model.py)."""
    exporter: ClassVar[str] = ""
    """optimum's name of the task; empty: the tag."""
    traces_itself: ClassVar[bool] = False
    """Whether `trace_graph` gives a graph with the task's own inputs and outputs; else it has those of the model."""
    graphs: ClassVar[tuple[str, ...]] = ("model",)
    """The graphs of a bundle; a row names the one that it is for."""
    heads: ClassVar[tuple[str, ...]] = ()
    """Endings of model classes in config.json that speak for this task when none is named, e.g. ForMaskedLM.

    These and `claims` count in the task's own class alone: what is inherited speaks for the task that has it."""
    options: ClassVar[tuple[str, ...]] = ()
    """Options of the command line that mean something to this task, as attributes of a recipe."""
    poolings: ClassVar[tuple[str, ...]] = ("mean", "cls", "lasttoken", "max", "weightedmean")
    """Values of --pooling, for tasks that it means something to."""
    encoders: ClassVar[tuple[str, ...]] = ()
    """Architectures with an encoder and a decoder, of which the encoder alone does the task."""
    may_miss: ClassVar[tuple[str, ...]] = ()
    """Parts of names of weights that the graph does not use, so that a checkpoint may lack them."""
    reads: ClassVar[str] = ""
    """What such models read, in a word."""
    unit: ClassVar[str] = "inputs"
    """What the gate counts, in parity.json."""
    length_unit: ClassVar[str] = ""
    """What the "length" axis counts; empty without one."""
    measures: ClassVar[Sequence[Measure]] = ()
    """What the gate compares by; --parity-threshold NAME=X replaces a limit."""
    measures_of_all: ClassVar[Sequence[Measure]] = ()
    """Of all rows of a graph together: the order of neighbours, of documents ..."""

    @property
    def online(self) -> type[Task]:
        """The online side."""
        return task_class(self.tag)

    @property
    def exporter_task(self) -> str:
        """The name of the task in optimum."""
        return self.exporter or self.tag

    def auto_classes(self) -> Sequence[str]:
        """The auto classes that transformers loads such models with; the first that knows the architecture is taken."""
        return [self.online.auto_class]

    # Stage 1, load

    def claims(self, root: Path, config: Mapping[str, Any]) -> bool:
        """Whether the files of a model say that it is for this task, more surely than `heads` can."""
        return False

    def layout(self, root: Path, recipe: Recipe) -> Layout:
        """Read the task's own files below `root`. Raises Refused for what a bundle cannot hold."""
        return Layout()

    def check(self, model: str, config: Any) -> None:
        """Look at transformers' config. Raises Refused for models that load but cannot do the task."""

    def input_axes(self) -> Mapping[str, tuple[str, Axes]]:
        """Every input that a traced graph may have: name -> dtype and axes that ours has instead."""
        raise missing(self, "input_axes")

    def processors(self, folder: Path, model: str, layout: Layout, recipe: Recipe) -> Mapping[str, Any]:
        """The tokenizer, image processor ...: `tokenizer` and `processor` of the Source. Raises Refused."""
        return {}

    def max_length(
        self, recipe: Recipe, layout: Layout, processors: Mapping[str, Any], config: Any, positions: int | None
    ) -> int:
        """The longest row, in whatever the "length" axis counts; 1 without one.

        `positions` are those that the architecture has, None where it has no limit. Raises Refused.
        """
        return 1

    def asked_length(self, recipe: Recipe, source: Source) -> int | None:
        """The value of `--max-length` that gives the longest row of `source` again, for the recipe in the bundle."""
        return source.max_length

    def describe(self, source: Source) -> str:
        """A few words for the line of the load stage."""
        return source.architecture

    def exporters(self, config: Any) -> Sequence[str]:
        """The exporters that can trace a model of that config, in the order in which to try them."""
        return (OPTIMUM, DYNAMO)

    # Stage 2, onnx

    def trace_graph(self, source: Source, folder: Path, name: str) -> Path:
        """The traced file of the graph `name`, in `folder`."""
        return self.trace(source, folder)

    def trace(self, source: Source, folder: Path) -> Path:
        """Run the exporter of `source` into `folder`; the traced graph's file. Raises Untraceable where it fails."""
        if source.exporter == OPTIMUM:
            return _by_optimum(source, folder, self.exporter_task)
        from export.tracing.whole_model import whole_model

        folder.mkdir(parents=True, exist_ok=True)
        return trace_module(source, whole_model(source), folder / "model.onnx")

    def adapt(self, nodes: Nodes, name: str, traced_dtype: int, source: Source) -> None:
        """Nodes from our input `name` to what the traced graph read: a tensor of that name that `nodes` adds.

        A cast here; a task on images normalises its pixels here.
        """
        nodes.add("Cast", name, name, to=traced_dtype)

    def head(self, graph: Any, source: Source) -> None:
        """Put what the task needs behind the traced outputs, and declare the outputs that ours has (`set_outputs`).

        Raises Refused when the traced graph lacks an output that the task is made of.
        """
        raise missing(self, "head")

    # Stage 4, write

    def files(self, source: Source) -> Mapping[str, str]:
        """Text files of the bundle beside config.json: name -> content."""
        return {}

    def pads(self, source: Source) -> Mapping[str, int]:
        """What fills an input behind a shorter row, where it is not 0."""
        return {}

    def task_config(self, source: Source, outputs: Mapping[str, Sequence[int | str]]) -> dict[str, Any]:
        """What the online side needs to know; `outputs` are name and shape of the graph's."""
        return {}

    # Stage 5, parity

    def probes(self, source: Source) -> Iterator[Probe]:
        """The payloads that the gate compares on."""
        raise missing(self, "probes")

    def samples(self, source: Source) -> Iterator[Json]:
        """Many ordinary payloads, on which precisions below fp32 are measured; none unless a task has some."""
        return iter(())

    def inputs_of(self, source: Source, payload: Json, rows: Sequence[Row]) -> Sequence[Mapping[str, Any]] | None:
        """The model's own inputs for a payload of the user's, one mapping a row of `rows`, which the worker made of it.

        None where only the worker can tell: the portable fp32 graph is the reference then.
        """
        return None

    def reference(self, source: Source, model: Any, inputs: Mapping[str, Any]) -> Arrays | None:
        """What the graph should answer to one row, from the model in PyTorch; None for a row that it cannot take."""
        raise missing(self, "reference")

    def compare(self, source: Source, expected: Arrays, found: Arrays) -> Sequence[float]:
        """One figure for each of `measures`. Neither side has a batch axis or padding."""
        raise missing(self, "compare")

    def compare_all(self, source: Source, expected: Sequence[Arrays], found: Sequence[Arrays]) -> Sequence[float]:
        """One figure for each of `measures_of_all`; row for row, every row once."""
        return ()


def _by_optimum(source: Source, folder: Path, task: str) -> Path:
    from optimum.exporters.onnx import onnx_export_from_model

    from export.padding import model_to_trace
    from export.tracing.lean_trace import weights_outside
    from export.tracing.opset import OPSET
    from export.tracing.torch_onnx import silent

    # main_export would do the same, but load weights that are missing as random numbers
    model = model_to_trace(source)
    with quiet(), silent(), weights_outside(), _graph_alone():
        try:
            onnx_export_from_model(model, folder, opset=OPSET, task=task, do_validation=False)
        except Exception as error:  # whatever the tracer comes across, it is this model that it cannot do
            raise untraceable(source, error) from error
    return folder / "model.onnx"


@contextmanager
def _graph_alone() -> Iterator[None]:
    """Inside the block, optimum saves no tokenizer or processor beside the graph, where nobody reads it.

    transformers makes the names of a tokenizer's chat templates names of files, wherever they lead (CVE-2026-9856).
    """
    from optimum.exporters.onnx import convert

    before, convert.maybe_save_preprocessors = convert.maybe_save_preprocessors, lambda *_, **__: None
    try:
        yield
    finally:
        convert.maybe_save_preprocessors = before


def labels(model: str, config: Any) -> list[str]:
    """The names of a classifier's outputs, in their order. Raises Refused when config.json leaves one out."""
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    if sorted(names) != list(range(len(names))) or not names:
        raise Refused(f"{model}'s config.json has gaps in id2label; name every label from 0 on")
    return [names[number] for number in range(len(names))]
