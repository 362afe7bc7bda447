"""Stage 3: two graphs, one file of weights.

    graphs/model/fp32.onnx       portable and unfused: for TensorRT and ONNX Runtime's CUDA provider
    graphs/model/fp32.cpu.onnx   as ONNX Runtime optimises it for CPU; loaded with optimisation switched off
    graphs/model/weights.bin     every distinct tensor of both, once

A graph of another precision is added beside them (`add_graph`) and brings the tensors that are not there yet, or all of
its own where few are: a worker reads at boot what its graph refers to, and compares it with the manifest.

Measured on all-MiniLM-L6-v2: loading the saved, fused graph with weights outside takes 42 ms instead of 170 ms and
113 MB of resident memory instead of 194 MB, because weights are mapped into memory and not parsed and copied.

Equal models give equal bytes.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import onnx
import onnxruntime as ort
from onnx import TensorProto, numpy_helper

from export.tracing.lean_trace import INSIDE_BELOW, release

WEIGHTS = "weights.bin"

ALIGNMENT = 4096
"""Bytes; a page. ONNX Runtime maps a tensor only from the beginning of a page on."""

_FEW = 1 / 8
_LOG_ERRORS_ONLY = 3


Places: TypeAlias = dict[bytes, tuple[str, int]]
"""Digest of a tensor's content -> the file beside the graphs that holds it, and the offset there in bytes."""


def optimize(model: Any, graph_folder: Path, work: Path) -> tuple[Path, Path, Places]:
    """Write the ONNX model `model` as two graphs into `graph_folder`; their paths, portable one first, and the tensors.

    `work` holds ONNX Runtime's own output meanwhile. `model` is changed: its weights move out of it. Raises
    onnx.checker.ValidationError when the portable graph is not valid.
    """
    graph_folder.mkdir(parents=True)
    portable, fused = graph_folder / "fp32.onnx", graph_folder / "fp32.cpu.onnx"
    with _Weights(graph_folder / WEIGHTS) as weights:
        _save(model, portable, weights)
        weights.flush()
        size = (graph_folder / WEIGHTS).stat().st_size
        del model
        release(size)
        onnx.checker.check_model(portable, full_check=True)
        path = fuse(portable, work)
        release(size)
        _save(onnx.load(path, load_external_data=False), fused, weights, path.parent)
    return portable, fused, weights.places


def add_graph(model: Any, path: Path, places: Places) -> None:
    """Write `model` to `path`; tensors that `places` does not know go into a .bin file of the same name.

    Those that it knows go there as well where they are less than _FEW of the graph's bytes.
    """
    total = shared = 0
    for content in map(_content, model.graph.initializer):
        if len(content) >= INSIDE_BELOW:
            total += len(content)
            shared += len(content) if _digest(content) in places else 0
    are_few = shared < _FEW * total
    with _Weights(path.with_suffix(".bin"), None if are_few else places) as weights:
        _save(model, path, weights)


def remove_graph(*paths: Path) -> None:
    """Take back graphs that `add_graph` wrote, as far as they are there."""
    for path in paths:
        path.unlink(missing_ok=True)
        path.with_suffix(".bin").unlink(missing_ok=True)


def load_whole(path: Path) -> Any:
    """The ONNX model at `path` with its weights in it.

    `onnx.load` refuses weights whose file has several names, as those of a bundle have while a changed copy is made.
    """
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        if (content := outside(tensor, path.parent)) is not None:
            _move_in(tensor, content)
    return model


def fuse(portable: Path, work: Path) -> Path:
    """Let ONNX Runtime optimise a graph for CPU and save it.

    "Extended" is the highest level whose result does not depend on this machine's instruction set.
    """
    work.mkdir(parents=True, exist_ok=True)
    fused = work / "fused.onnx"
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(fused)
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.enable_cpu_mem_arena = False  # it would keep what it had
    options.add_session_config_entry("session.disable_prepacking", "1")  # nothing is run, so no copy of the weights
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "fused.bin")
    # What stays inside keeps its old place where it had one, and onnx puts tensors from 991 bytes on beside a graph.
    smallest = str(INSIDE_BELOW // 2)
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", smallest)
    ort.InferenceSession(str(portable), options, providers=["CPUExecutionProvider"])
    return fused


class _Weights:
    """A file of tensors, each distinct content once, found again by its digest; and the tensors of earlier files."""

    def __init__(self, path: Path, known: Places | None = None) -> None:
        self.places: Places = dict(known or {})
        self._name = path.name
        self._file = open(path, "wb")  # noqa: SIM115  (closed by __exit__)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def flush(self) -> None:
        """Make what was added readable by others."""
        self._file.flush()

    def add(self, content: bytes) -> tuple[str, int]:
        """Return the file and the offset of `content`, which is written unless it is there."""
        digest = _digest(content)
        if digest not in self.places:
            self._file.write(b"\0" * (-self._file.tell() % ALIGNMENT))
            self.places[digest] = (self._name, self._file.tell())
            self._file.write(content)
        return self.places[digest]


def _save(model: Any, path: Path, weights: _Weights, beside: Path | None = None) -> None:
    """Write `model` to `path` and its weights to `weights`; those that it has outside are in files of `beside`."""
    for tensor in model.graph.initializer:
        content = _content(tensor, beside)
        if len(content) >= INSIDE_BELOW:
            _move_out(tensor, *weights.add(content), len(content))
        elif tensor.data_location == TensorProto.EXTERNAL:
            _move_in(tensor, content)
    model.graph.value_info.sort(key=lambda tensor: tensor.name)  # ONNX Runtime's order is that of addresses in memory
    path.write_bytes(model.SerializeToString(deterministic=True))


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _content(tensor: Any, beside: Path | None = None) -> bytes:
    return outside(tensor, beside) or tensor.raw_data or numpy_helper.to_array(tensor).tobytes()


def outside(tensor: Any, folder: Path | None) -> bytes | None:
    """The content of a tensor that lies in a file of `folder`; None for one that the model itself holds."""
    if folder is None or tensor.data_location != TensorProto.EXTERNAL:
        return None
    place = {entry.key: entry.value for entry in tensor.external_data}
    with open(folder / place["location"], "rb") as file:
        file.seek(int(place.get("offset", 0)))
        return file.read(int(place["length"]))


def _move_in(tensor: Any, content: bytes) -> None:
    tensor.raw_data = content
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")


def _move_out(tensor: Any, location: str, offset: int, size: int) -> None:
    name, dtype, dims = tensor.name, tensor.data_type, list(tensor.dims)
    tensor.Clear()
    tensor.name, tensor.data_type = name, dtype
    tensor.dims.extend(dims)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", size)):
        tensor.external_data.add(key=key, value=str(value))
