"""Tasks without a model, as a user meets them: the export, then a worker that takes jobs."""

import base64
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.emulator import EmulatorThread
from benchmarks.worker_process import WorkerProcess
from engine.bundle import open_bundle
from engine.images.examples import LANDSCAPE
from export.__main__ import main


def test_an_image_worker(tmp_path: Path):
    assert main(["--task", "image-transform", "--out", str(tmp_path / "bundle")]) == 0
    open_bundle(tmp_path / "bundle").verify()
    with EmulatorThread() as emulator, WorkerProcess.ours(emulator, tmp_path / "bundle") as worker:
        record = emulator.wait(emulator.submit({"image": LANDSCAPE, "width": 10, "format": "png"}))
        assert record.status == "COMPLETED"
        image = Image.open(io.BytesIO(base64.b64decode(record.output["image"])))
        assert image.size == (10, record.output["height"])
        health = emulator.wait(emulator.submit({"health": True})).output
        assert (health["engine"], health["reason"]) == ("none", "image-transform has no model")
        assert (health["task"], health["rows_served"]) == ("image-transform", 1)
        assert worker.stop() is not None


def test_a_proxy_without_its_settings_does_not_start(tmp_path: Path):
    assert main(["--task", "api-proxy", "--out", str(tmp_path / "bundle")]) == 0
    env = {**os.environ, "BUNDLE": str(tmp_path / "bundle")}
    job = '{"input": {"request": {"path": "/status"}}}'
    found = subprocess.run([sys.executable, "-m", "handler", "--test_input", job], env=env, capture_output=True)
    assert found.returncode == 1
    assert b"cannot start: api-proxy needs UPSTREAM_URL" in found.stdout + found.stderr


def test_a_model_and_a_task_without_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["some/model", "--task", "image-transform", "--out", str(tmp_path / "bundle")]) == 2
    assert "image-transform has no model; leave some/model out" in capsys.readouterr().err
    assert main(["--task", "image-transform", "--plan", "--out", str(tmp_path / "bundle")]) == 2
    assert "nothing to build a plan from; leave --plan out" in capsys.readouterr().err
    assert main(["--task", "image-transform", "--out", str(tmp_path / "none")]) == 0
    plan = ["plan", str(tmp_path / "none"), "--builder", "tensorrt-rtx", "--compute-capability", "8.9"]
    assert main(plan) == 2
    assert "image-transform has no model, so that there is nothing to build a plan from" in capsys.readouterr().err
    assert main(["--task", "feature-extraction", "--out", str(tmp_path / "bundle")]) == 2
    assert "feature-extraction needs a MODEL" in capsys.readouterr().err
