"""Dense modules of sentence-transformers: layers behind the pooling, as LaBSE and EmbeddingGemma have them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.tensors import Array
from engine.vectors import OUTPUT
from export.command.said import first_line
from export.errors import Refused
from export.model_files.json_files import TEXT, read_module
from export.nodes import Nodes, set_outputs

_DEFAULT = "torch.nn.modules.activation.Tanh"  # sentence-transformers', where the file says none
_ACTIVATIONS: Mapping[str, tuple[str, Callable[[Array], Array]]] = {
    "Identity": ("", lambda values: values),
    "ReLU": ("Relu", lambda values: np.maximum(values, 0)),
    "Sigmoid": ("Sigmoid", lambda values: 1 / (1 + np.exp(-values))),
    "Tanh": ("Tanh", np.tanh),
}
"""Name in torch -> name in ONNX, and the function."""
_NAMES = ("module_input_name", "module_output_name")


@dataclass(frozen=True)
class Dense:
    """One layer: where its weights are, and what follows them."""

    folder: Path
    activation: str
    """One of _ACTIVATIONS."""

    def weights(self) -> tuple[Array, Array | None]:
        """Weight, float32 (out, in), and bias, float32 (out). Raises Refused."""
        from safetensors import SafetensorError, safe_open

        file = self.folder / "model.safetensors"
        if not file.is_file():
            raise Refused(
                f"the model's {self.folder.name} has no model.safetensors, and pickled weights are never loaded; load "
                "the model with SentenceTransformer(...) in a sandbox and save it, then export that folder"
            )
        try:
            with safe_open(file, framework="pt") as tensors:
                held = list(tensors.keys())  # it is no mapping that one could iterate over
                names = [name for name in held if name in ("linear.weight", "linear.bias")]
                found = {name: tensors.get_tensor(name).float().numpy() for name in names}
        except (SafetensorError, OSError) as error:
            raise Refused(f"{file} cannot be read ({first_line(error)}); download the model again") from error
        if "linear.weight" not in found:
            raise Refused(f"{file} holds {', '.join(held[:3])} instead of linear.weight; download the model again")
        weight, bias = found["linear.weight"], found.get("linear.bias")
        if weight.ndim != 2 or (bias is not None and bias.shape != weight.shape[:1]):
            raise Refused(f"{file} holds a weight and a bias that do not fit together; download the model again")
        return weight, bias

    def apply(self, vector: Array) -> Array:
        """What comes out for a vector, float32 (in)."""
        weight, bias = self.weights()
        values = weight @ vector if bias is None else weight @ vector + bias
        _, function = _ACTIVATIONS[self.activation]
        return function(values)


def read_dense(folder: Path) -> Dense:
    """The layer in `folder`. Raises Refused for one that a bundle cannot hold."""
    settings = read_module(folder, dict.fromkeys(("activation_function", *_NAMES), TEXT))
    activation = str(settings.get("activation_function", _DEFAULT))
    package, _, name = activation.rpartition(".")
    if not package.startswith("torch.nn.modules.") or name not in _ACTIVATIONS:
        known = ", ".join(_ACTIVATIONS)
        raise Refused(f"the model's {folder.name} has the activation {activation}, a bundle takes one of {known}")
    for key in _NAMES:
        if settings.get(key) not in (None, "sentence_embedding"):
            raise Refused(
                f"the model's {folder.name} is not for the embedding of a text ({key} is {settings[key]}), which a "
                "bundle cannot hold; export a model without it"
            )
    return Dense(folder, name)


def append_dense(graph: Any, layers: Sequence[Dense]) -> None:
    """Put `layers` behind the embedding of `graph`, in place."""
    if not layers:
        return
    pooled = next(node for node in graph.node if OUTPUT in node.output)
    pooled.output[:] = [f"{OUTPUT}/pooled" if name == OUTPUT else name for name in pooled.output]
    nodes, values = Nodes(graph, "dense"), f"{OUTPUT}/pooled"
    size = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    for number, layer in enumerate(layers):
        weight, bias = layer.weights()
        if weight.shape[1] != size:
            raise Refused(
                f"the model's {layer.folder.name} is for vectors of {weight.shape[1]} numbers, and gets {size}; "
                "download the model again"
            )
        size = len(weight)
        steps: list[tuple[str, tuple[str, ...]]] = [
            ("MatMul", (nodes.constant(f"weight_{number}", np.ascontiguousarray(weight.T), np.float32),)),
            *([("Add", (nodes.constant(f"bias_{number}", bias, np.float32),))] if bias is not None else []),
            *([(kind, ())] if (kind := _ACTIVATIONS[layer.activation][0]) else []),
        ]
        for step, (kind, others) in enumerate(steps):
            is_last = number == len(layers) - 1 and step == len(steps) - 1
            values = nodes.add(kind, f"{number}_{kind}", values, *others, output=OUTPUT if is_last else "")
    set_outputs(graph, [(OUTPUT, "float32", ("batch", size))])
