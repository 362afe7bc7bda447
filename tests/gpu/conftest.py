"""Bundles with plans that were built on this machine. Needs a GPU and TensorRT, but no torch and no transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bert_bundle import bert_bundle
from benchmarks.bert_graph import Shape
from engine.bundle import open_bundle
from engine.plans.sidecar import PlanFile, plans_of
from engine.probe import Gpu, gpu, tensorrt_version
from tests.bundles import write_small_bundle

ENCODER = Shape(2, 64, 4, 128, vocab_size=500, max_position_embeddings=64)
BATCHES, LENGTHS = (1, 4, 8), (16, 32, 64)
CONTRACT_BATCHES, CONTRACT_LENGTHS = (1, 2, 3, 4, 8, 16, 32), (8, 16, 24, 32)
BUILD_TIMEOUT_S = 600
"""Of a test and of the worker in it: either may build plans. It must not end while one is built: an exception in one of
the builder's callbacks aborts the process, and all tests with it."""


@pytest.fixture(scope="session", autouse=True)
def this_gpu() -> Gpu:
    found = gpu()
    if found is None:
        pytest.exit("these tests need an NVIDIA driver and a GPU; there is none here", returncode=2)
    if tensorrt_version() is None:
        pytest.exit("these tests need the package tensorrt (requirements/all.txt)", returncode=2)
    return found


def build(bundle: Path, precision: str, batches: tuple[int, ...], lengths: tuple[int, ...], *more: str) -> PlanFile:
    """The command that a user runs; what it adds has passed its own gate at every bucket."""
    from export.__main__ import main

    ladder = ["--batches", ",".join(map(str, batches)), "--lengths", ",".join(map(str, lengths))]
    assert main(["plan", str(bundle), "--precision", precision, *ladder, *more]) == 0
    bundle_now = open_bundle(bundle)
    bundle_now.verify()
    (found,) = (one for one in plans_of(bundle_now) if one.plan.precision == precision)
    return found


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT encoder of two layers, whose plans the tests share."""
    return bert_bundle("encoder", tmp_path_factory.mktemp("encoder") / "bundle", ENCODER)


@pytest.fixture(scope="session")
def plan_in(encoder: Path) -> Callable[[str], PlanFile]:
    """The plan of the encoder in a precision, built when it is first asked for; a build that fails is not repeated."""
    built: dict[str, PlanFile | Exception] = {}

    def plan(precision: str) -> PlanFile:
        if precision not in built:
            try:
                built[precision] = build(encoder, precision, BATCHES, LENGTHS)
            except Exception as error:
                built[precision] = error
        found = built[precision]
        if isinstance(found, Exception):
            raise found
        return found

    return plan


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy model of the engine's contract, with a plan in fp32."""
    bundle = write_small_bundle(tmp_path_factory.mktemp("toy") / "bundle")
    build(bundle, "fp32", CONTRACT_BATCHES, CONTRACT_LENGTHS, "--optimization-level", "0")
    return bundle


@contextmanager
def opened(bundle: Path, plan: PlanFile) -> Iterator[Any]:
    """A TensorRtEngine that is warm, closed afterwards."""
    from engine.backends.tensorrt import TensorRtEngine

    engine = TensorRtEngine(open_bundle(bundle), "model", plan)
    try:
        engine.warm_up()
        yield engine
    finally:
        engine.close()


@pytest.fixture
def engine(encoder: Path, plan_in: Callable[[str], PlanFile]) -> Iterator[Any]:
    """The encoder in fp16."""
    with opened(encoder, plan_in("fp16")) as made:
        yield made
