"""A profile for several buckets. In a file that comes last: where execution contexts may not share one, the bindings of
TensorRT 8.6 end the process, and with it the tests behind.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.bert_bundle import bert_bundle
from engine.bundle import open_bundle
from export.plans.gate import gate
from tests.gpu.conftest import BATCHES, BUILD_TIMEOUT_S, ENCODER, LENGTHS, build, opened

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(BUILD_TIMEOUT_S)]


def test_one_profile_for_each_length_serves_every_batch_size(tmp_path: Path):
    bundle = bert_bundle("encoder", tmp_path / "bundle", ENCODER)
    plan = build(bundle, "fp16", BATCHES, LENGTHS, "--profiles", "length")
    assert len(plan.plan.profiles) == len(LENGTHS)
    with opened(bundle, plan) as engine:
        gate(open_bundle(bundle), "model", engine, engine.buckets, "fp16")
