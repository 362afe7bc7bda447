"""Tracing without copies of the weights, of which torch's exporter needs none to make a graph.

By itself it holds every weight three times more when it ends: in the ONNX model, in that model as bytes, and in a model
parsed from these bytes. Here the weights go from torch into files beside the graph, one after the other, as the
exporter itself does only for models of more than 2 GB.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

INSIDE_BELOW = 1024
"""Bytes. Smaller tensors stay in the graph: they cost nothing to parse, and shape inference reads some of them."""

_WORTH_IT = 100_000_000
"""Bytes. Looking for cycles among all that torch and transformers consist of takes a third of a second."""


@contextmanager
def weights_outside() -> Iterator[None]:
    """Inside the block, `torch.onnx.export` to a path writes the weights into files beside it."""
    import torch

    before, deduplicate = torch.onnx.export, torch._C._jit_pass_onnx_deduplicate_initializers
    final: dict[str, Any] = {}

    def deduplicated(graph: Any, parameters: Any, is_training: bool) -> Any:
        """The last step that changes the parameters."""
        found = deduplicate(graph, parameters, is_training)
        final.clear()
        final.update(found)
        return found

    def export(model: Any, args: Any, f: Any, **options: Any) -> Any:
        done = before(model, args, f, export_params=False, **options)
        _add_weights(Path(f), final)
        final.clear()
        return done

    torch.onnx.export, torch._C._jit_pass_onnx_deduplicate_initializers = export, deduplicated
    try:
        yield
    finally:
        torch.onnx.export, torch._C._jit_pass_onnx_deduplicate_initializers = before, deduplicate


def release(size: int) -> None:
    """Hand memory back to the system, of weights of `size` bytes: what is in cycles, and what the allocator keeps."""
    if size < _WORTH_IT:
        return
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):  # another C library than glibc
        pass


def _add_weights(path: Path, parameters: dict[str, Any]) -> None:
    """Turn the inputs of the graph at `path` that are parameters into initializers."""
    import onnx

    model = onnx.load(path)
    graph = model.graph
    inputs = [tensor for tensor in graph.input if tensor.name not in parameters]
    names = [tensor.name for tensor in graph.input if tensor.name in parameters]
    del graph.input[:]
    graph.input.extend(inputs)
    for number, name in enumerate(names):
        graph.initializer.append(_tensor(name, parameters[name], path.with_name(f"{path.name}.{number}.weights")))
    onnx.save(model, path)


def _tensor(name: str, values: Any, path: Path) -> Any:
    """An initializer whose content is in a file of its own, which is what optimum knows how to tidy up."""
    from onnx import TensorProto, helper

    content = values.detach().cpu().contiguous().numpy()
    made = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(content.dtype), dims=content.shape)
    if content.nbytes < INSIDE_BELOW:
        made.raw_data = content.tobytes()
        return made
    with open(path, "wb") as file:
        file.write(content.data)  # `tofile` would hide why it could not write
    made.data_location = TensorProto.EXTERNAL
    made.external_data.add(key="location", value=path.name)
    return made
