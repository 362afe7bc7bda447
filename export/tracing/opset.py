"""From opset 18, which torch.export writes, to 17, which TensorRT 8.6 takes and our own nodes are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from onnx import helper, numpy_helper

from export.nodes import replace_all

OPSET = 17
"""The newest that TensorRT 8.6's parser takes."""

IR_VERSION = 8
"""What belongs to opset 17."""

_AXES_AS_INPUT = frozenset(
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSumSquare".split()
)
"""Opset 18 made an input of the attribute `axes` (as 13 had done to ReduceSum); nothing else of them changed."""
_NEW = frozenset(
    "BitwiseAnd BitwiseNot BitwiseOr BitwiseXor CenterCropPad Col2Im GroupNormalization LpPool Mish".split()
)
_NEW_ATTRIBUTES: Mapping[str, Mapping[str, Any]] = {
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    # Without sizes, 13 divides evenly or does not run; 18 makes the last part smaller.
    "Split": {"num_outputs": None},
}
"""What 18 added to operators that are otherwise the same, and the value that says no more than 17 does (None: any)."""


def to_opset_17(model: Any) -> str | None:
    """Make `model` one of opset 17, or return what stands against it: an operator as opset 18 has it."""
    versions = [opset for opset in model.opset_import if opset.domain in ("", "ai.onnx")]
    if all(opset.version <= 17 for opset in versions):
        for node in model.graph.node:  # torch's own way down leaves them where they were
            if node.op_type in _NEW_ATTRIBUTES and not _without_attributes(node, _NEW_ATTRIBUTES[node.op_type]):
                return str(node.op_type)
        return None
    if any(opset.version > 18 for opset in versions):
        return "a later opset"
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for node in model.graph.node:
        if not _lower(node, constants):
            return str(node.op_type)
    for opset in versions:
        opset.version = 17
    return None


def _lower(node: Any, constants: dict[str, Any]) -> bool:
    if node.op_type in _NEW or any(attribute.HasField("g") for attribute in node.attribute):
        return False
    if node.op_type == "Pad":
        return len(node.input) < 4 or not node.input[3]
    if node.op_type == "Resize" and any(one.name == "axes" for one in node.attribute):
        return False
    if node.op_type in _NEW_ATTRIBUTES:
        return _without_attributes(node, _NEW_ATTRIBUTES[node.op_type])
    if node.op_type in ("ScatterElements", "ScatterND"):
        return not any(helper.get_attribute_value(one) in (b"max", b"min") for one in node.attribute)
    if node.op_type not in _AXES_AS_INPUT or len(node.input) < 2:
        return True
    if node.input[1] not in constants:
        return False
    axes = numpy_helper.to_array(constants[node.input[1]]).tolist()
    attributes = [one for one in node.attribute if one.name != "noop_with_empty_axes"]
    del node.input[1:], node.attribute[:]
    node.attribute.extend([*attributes, helper.make_attribute("axes", axes)] if axes else attributes)
    return True


def _without_attributes(node: Any, new: Mapping[str, Any]) -> bool:
    values = {one.name: helper.get_attribute_value(one) for one in node.attribute}
    if any(name in values and meaning is not None and values[name] != meaning for name, meaning in new.items()):
        return False
    replace_all(node.attribute, [one for one in node.attribute if one.name not in new])
    return True
