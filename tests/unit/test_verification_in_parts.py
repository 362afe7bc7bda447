"""What a boot may leave for later, or for another engine: files under graphs/ alone, whatever others are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.backends.onnxruntime import OnnxRuntimeEngine
from engine.bundle import open_bundle, write_manifest
from engine.config import Settings
from engine.errors import BundleError
from handler.boot import boot
from handler.startup.timeline import Timeline
from handler.startup.verification import Verification
from tests.bundles import move_weights_out


@pytest.mark.parametrize("name", ["vocabulary.bin", "more.plan", "more.cache"])
def test_a_file_outside_graphs_is_compared_before_anything_is_read(small_bundle: Path, name: str):
    (small_bundle / name).write_bytes(b"w" * 100)
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    bundle = open_bundle(small_bundle)
    bundle.verify_common()
    (small_bundle / name).write_bytes(b"x" * 100)
    with pytest.raises(BundleError, match=f"{name} does not match the SHA-256 in the manifest"):
        bundle.verify_common()


def test_damage_ends_the_other_process(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    (small_bundle / "tokenizer.json").write_bytes(b"x" * bundle.manifest.files["tokenizer.json"][0])
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(BundleError, match=r"tokenizer\.json does not match"):
        Verification(bundle).wait()
    assert set(os.listdir("/proc/self/fd")) <= before  # whose end of the socket is closed was waited for


class OwnEngine(OnnxRuntimeEngine):
    """A runtime of a fork: docs/architecture.md, To add a backend."""


@pytest.mark.parametrize("name", ["weights.bin", "own.plan", "own.cache"])
@pytest.mark.parametrize("engine", ["own", "onnxruntime-own"])
def test_whatever_an_engine_of_a_fork_may_open_is_compared(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch, engine: str, name: str
):
    monkeypatch.setattr("engine.boot.load_engine", lambda choice, bundle, settings, graph: OwnEngine(bundle, graph))
    move_weights_out(small_bundle)
    (small_bundle / "graphs/model/own.plan").write_bytes(b"w" * 100)
    (small_bundle / "graphs/model/own.cache").write_bytes(b"w" * 100)
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    settings = Settings(bundle=small_bundle, engine=engine, bundle_sha256=open_bundle(small_bundle).sha256)
    boot(settings, Timeline()).batcher.close()
    file = small_bundle / "graphs/model" / name
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} does not match the SHA-256 in the manifest"):
        boot(settings, Timeline())


def test_a_pipe_in_the_place_of_a_graph_is_not_waited_for(small_bundle: Path):
    """Which weights a graph names is found out by reading it."""
    graph = move_weights_out(small_bundle)
    graph.unlink()
    os.mkfifo(graph)
    with pytest.raises(BundleError, match=r"fp32\.onnx is not a file"):
        boot(Settings(bundle=small_bundle, engine="onnxruntime-cpu"), Timeline())
