"""A bundle whose graph takes tensors from elsewhere: ONNX Runtime would answer with any file, or with memory."""

import ctypes
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

import engine.__main__ as engine
import export.__main__ as export
from engine.bundle import open_bundle, write_manifest
from engine.config import Settings
from engine.errors import BundleError
from engine.files.external_data import LEADING, locations, outside
from handler.boot import boot
from handler.startup.timeline import Timeline
from tests.bundles import DIMENSION, move_weights_out

GRAPH = "graphs/model/fp32.onnx"
MEMORY = "*/_ORT_MEM_ADDR_/*"
SECRET = b"s3cr3t-o"


def placed(place: str, offset: int = 0) -> TensorProto:
    tensor = TensorProto(name="leak", data_type=TensorProto.UINT8, dims=[DIMENSION], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", place), ("offset", str(offset)), ("length", str(DIMENSION))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def answering(file: Path, tensor: TensorProto) -> None:
    """Make `tensor` the answer of the graph in `file`."""
    model = onnx.load(file)
    model.graph.node[-1].output[0] = "before"
    model.graph.initializer.append(tensor)
    model.graph.initializer.append(helper.make_tensor("zero", TensorProto.FLOAT, [1], [0.0]))
    model.graph.node.extend(
        [
            helper.make_node("Cast", [tensor.name], ["content"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["before", "zero"], ["nothing"]),
            helper.make_node("Add", ["nothing", "content"], ["embedding"]),
        ]
    )
    file.write_bytes(model.SerializeToString())


@pytest.mark.parametrize("place", ["../../../secret", "../model/weights.bin", "/etc/passwd", "", MEMORY])
def test_what_lies_elsewhere_is_refused_by_whoever_verifies(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str
):
    secret = ctypes.create_string_buffer(SECRET)
    (small_bundle.parent / "secret").write_bytes(SECRET)
    move_weights_out(small_bundle)
    answering(small_bundle / GRAPH, placed(place, ctypes.addressof(secret) if place == MEMORY else 0))
    if place == MEMORY:  # of that name there may be a file, which ONNX Runtime does not look for
        (small_bundle / "graphs/model" / MEMORY).parent.mkdir(parents=True)
        (small_bundle / "graphs/model" / MEMORY).touch()
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    if place in ("../../../secret", MEMORY):  # what would come of it
        session = onnxruntime.InferenceSession(str(small_bundle / GRAPH))
        ids = np.ones((1, 1), np.int32)
        (answer,) = session.run(None, {"input_ids": ids, "attention_mask": ids})
        assert bytes(map(int, answer[0])) == SECRET

    named = f"takes tensors from {place or 'a place without a name'!r}, which is no file of the manifest; export"
    bundle = open_bundle(small_bundle)
    for verify in (bundle.verify, bundle.verify_common):
        with pytest.raises(BundleError, match=re.escape(named)):
            verify()
    with pytest.raises(BundleError, match=re.escape(named)):
        boot(Settings.from_environ({"BUNDLE": str(small_bundle), "ENGINE": "fake"}), Timeline())
    key = str(tmp_path / "key.pem")
    assert export.main(["keygen", "--key", key]) == 0
    for main, argv in (
        (export.main, ["sign", str(small_bundle), "--key", key]),
        (export.main, ["verify", str(small_bundle)]),
        (engine.main, ["inspect", "--verify", str(small_bundle)]),
    ):
        assert main(argv) == 2
        assert named in capsys.readouterr().err


def test_what_lies_in_the_bundle_is_taken(small_bundle: Path):
    move_weights_out(small_bundle)
    assert locations((small_bundle / GRAPH).read_bytes()) == {b"weights.bin"}
    open_bundle(small_bundle).verify()
    assert outside(small_bundle, GRAPH, {"graphs/model/weights.bin"}) == ""
    assert outside(small_bundle, GRAPH, {"weights.bin"}) == "weights.bin"


def test_a_tensor_is_found_wherever_a_model_may_hold_one():
    """In nodes, which are not walked through where they do not name the key, and at any depth."""

    def constant(**held: Any) -> Any:
        return helper.make_node("Constant", [], ["y"], **held)

    deep = helper.make_graph([constant(value=placed("deep"))], "deep", [], [])
    for depth in range(20):
        deep = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=deep)], f"at{depth}", [], [])
    sparse = onnx.SparseTensorProto(values=placed("values"), indices=placed("indices"))
    graph = helper.make_graph(deep.node, "model", [], [], [placed("initializer")], sparse_initializer=[sparse])
    graph.node.append(constant(sparse_value=sparse))
    several = helper.make_node("Own", [], ["y"], domain="own")
    several.attribute.add(name="tensors", type=onnx.AttributeProto.TENSORS).tensors.append(placed("tensors"))
    several.attribute.add(name="graphs", type=onnx.AttributeProto.GRAPHS).graphs.append(
        helper.make_graph([constant(value=placed("graphs"))], "in", [], [])
    )
    graph.node.append(several)
    function = helper.make_function("own", "F", [], ["y"], [constant(value=placed("function"))], [])
    model = helper.make_model(graph, functions=[function])
    model.training_info.add().algorithm.node.append(constant(value=placed("training")))
    names = "deep values indices initializer tensors graphs function training"
    assert locations(model.SerializeToString()) == {name.encode() for name in names.split()}


def test_every_way_to_a_tensor_is_known():
    """Of the onnx that the export is made with."""
    reached = {"TensorProto": onnx.TensorProto.DESCRIPTOR}
    pending, fields = [onnx.ModelProto.DESCRIPTOR], {}
    while pending:
        message = pending.pop()
        if message.name not in fields:
            fields[message.name] = {field.number: field.message_type for field in message.fields if field.message_type}
            pending += fields[message.name].values()
    for _ in fields:
        reached |= {name: of for name, of in fields.items() if {one.name for one in of.values()} & set(reached)}
    ways = {name: {n: of.name for n, of in fields[name].items() if of.name in reached} for name in reached}
    place = onnx.TensorProto.DESCRIPTOR.fields_by_name["external_data"]
    ways["TensorProto"] = {place.number: place.message_type.name}
    assert ways | {place.message_type.name: {}} == LEADING


def sized(number: int, content: bytes, *, wide: bool = False) -> bytes:
    """A field of bytes; `wide`: its numbers take more bytes than they need."""
    if wide:
        return (
            bytes([number << 3 | 2 | 128, 0]) + bytes([len(content) & 127 | 128, len(content) >> 7 | 128, 0]) + content
        )
    return bytes([number << 3 | 2, len(content)]) + content


@pytest.mark.parametrize(
    "entry",
    [
        sized(2, b"place") + sized(1, b"location"),
        sized(1, b"location", wide=True) + sized(2, b"place", wide=True),
        sized(1, b"location") + sized(2, b"weights.bin") + sized(2, b"place"),
        sized(1, b"offset") + sized(2, b"place") + sized(1, b"location"),
        sized(2, sized(13, b"")) + sized(1, b"location") + sized(2, b"weights.bin") + sized(2, b"place"),
        b"\x18\x96\x01\x25abcd\x29abcdefgh" + sized(1, b"location") + sized(2, b"place"),
    ],
    ids=["value-first", "wide", "last-value", "last-key", "looks-like-another", "unknown-fields"],
)
def test_it_is_read_as_protobuf_reads_it(entry: bytes):
    """However a sender writes it."""
    graph = sized(5, sized(9, b"\0" * 100) + sized(13, entry, wide=True), wide=True)
    content = b"\x08\x08" + sized(7, graph, wide=True) + sized(7, b"")
    (tensor,) = onnx.ModelProto.FromString(content).graph.initializer
    assert [(one.key, one.value) for one in tensor.external_data] == [("location", "place")]
    assert locations(content) == {b"place"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"content",
        b"\x3a\x05ab",
        b"\x08",
        b"\x08" + b"\xff" * 10 + b"\x01",
        b"\x0b\x0c",
        b"\xba\x80\x80\x80\x10\x00",
        b"\x25abc",
        b"\x3a\x0c\x0a" + b"\xff" * 9 + b"\x01\x00",
    ],
    ids=["empty", "text", "beyond", "no-number", "long-number", "group", "long-tag", "cut", "long-size"],
)
def test_what_protobuf_may_read_otherwise_is_refused(small_bundle: Path, content: bytes):
    (small_bundle / GRAPH).write_bytes(content)
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    with pytest.raises(BundleError, match=r"fp32\.onnx is not an ONNX file \(.*\); copy the bundle again or export"):
        open_bundle(small_bundle).verify()
