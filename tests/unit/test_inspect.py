"""`python -m engine inspect`: what a bundle holds, without loading anything of it."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import engine.inspection
from engine.__main__ import main
from engine.bundle import open_bundle, write_manifest
from engine.plans.sidecar import Plan
from engine.probe import Gpu
from tests import plans
from tests.processes import interrupted_while_it_imports


def add_plan(bundle: Path, **changes: Any) -> Plan:
    """Of one bucket; nothing here would load it."""
    return plans.add_plan(bundle, batches=(1,), lengths=(16,), profiles=plans.profiles((1,), (16,)), **changes)


def described(bundle: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert main(["inspect", str(bundle), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], version: str | None) -> None:
    monkeypatch.setattr(engine.inspection, "gpu", lambda: Gpu("NVIDIA L4", capability))
    monkeypatch.setattr(engine.inspection, "tensorrt_version", lambda: version)


def test_model_graphs_and_parity_are_told(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    figures = {
        "graphs": {"graphs/model/fp32.onnx": {"answers": 37, "min_cosine": 0.9999, "max_relative_difference": 3e-7}}
    }
    (small_bundle / "parity.json").write_text(json.dumps(figures))
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    found = described(small_bundle, capsys)
    assert (found["model"], found["task"], found["precision"]) == ("toy", "feature-extraction", "fp32")
    (file,) = found["graphs"]["model"]["onnx"]
    assert file["file"] == "graphs/model/fp32.onnx"
    assert file["parity"]["min_cosine"] == 0.9999
    assert found["plans"] == []
    assert main(["inspect", str(small_bundle)]) == 0
    said = capsys.readouterr().out
    assert "min cosine 0.9999, max relative difference 3e-07" in said
    assert "no plans; `python -m export plan BUNDLE`" in said


def test_a_bundle_without_a_model_is_told_of_no_plan(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    manifest = open_bundle(small_bundle).manifest
    write_manifest(small_bundle, replace(manifest, task="image-transform", graphs={}, architecture="", precision=""))
    assert main(["inspect", str(small_bundle)]) == 0
    said = capsys.readouterr().out
    assert said.endswith("\n\nno graphs and no plans, for image-transform has no model\n")
    assert "export plan" not in said
    assert "GRAPH" not in said


def test_figures_that_are_no_numbers_are_told(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    """As they stand in a bundle that was allowed to fail its gate."""
    figures = {"graphs": {"graphs/model/fp32.onnx": {"min_cosine": None, "max_relative_difference": 0.5}}}
    (small_bundle / "parity.json").write_text(json.dumps(figures))
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    assert main(["inspect", str(small_bundle)]) == 0
    assert "min cosine not a number, max relative difference 0.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "sentence"), [("{", "parity.json is not JSON ("), (None, "parity.json cannot be read (No such file")]
)
def test_figures_that_cannot_be_read_are_a_sentence(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], content: str | None, sentence: str
):
    file = small_bundle / "parity.json"
    file.write_text(content or "{}")
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    if content is None:
        file.unlink()
    assert main(["inspect", str(small_bundle)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.endswith("; copy the bundle again or export the model again\n")


@pytest.mark.parametrize(
    ("capability", "version", "obstacle"),
    [
        ((8, 9), "10.13.0.35", None),
        ((9, 0), "10.13.0.35", "it was built for sm_89, and this GPU is NVIDIA L4 (sm_90)"),
        ((8, 9), "8.6.1", "it was built with TensorRT 10.13.0.35, and TensorRT 8.6.1 is installed"),
        ((8, 9), None, "TensorRT is not installed here"),
    ],
)
def test_a_plan_is_usable_here_or_a_sentence_says_why_not(
    small_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    capability: tuple[int, int],
    version: str | None,
    obstacle: str | None,
):
    add_plan(small_bundle)
    on_a_gpu(monkeypatch, capability, version)
    (plan,) = described(small_bundle, capsys)["plans"]
    assert plan["file"] == "graphs/model/plans/sm_89-trt10.13.0-fp16.plan"
    assert plan["usable_here"] == (obstacle is None)
    assert (plan["obstacle"] or "").startswith(obstacle or "")
    assert main(["inspect", str(small_bundle)]) == 0
    said = capsys.readouterr().out
    assert "sm_89 (NVIDIA L4)  10.13.0.35  fp16       1 x 16" in said
    assert (obstacle or "usable") in said


def test_a_plan_of_a_graph_that_changed_is_told(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    add_plan(small_bundle, onnx_sha256="0" * 64)
    on_a_gpu(monkeypatch, (8, 9), "10.13.0.35")
    (plan,) = described(small_bundle, capsys)["plans"]
    assert "it was built from another graphs/model/fp32.onnx" in plan["obstacle"]


def test_without_a_gpu_nothing_is_usable(
    small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    add_plan(small_bundle)
    monkeypatch.setattr(engine.inspection, "gpu", lambda: None)
    (plan,) = described(small_bundle, capsys)["plans"]
    assert plan["obstacle"] == "there is no NVIDIA driver or no GPU here"


def test_what_is_no_bundle_is_refused_with_a_command_that_would_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here" / "build").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")

    def said(path: Path) -> str:
        assert main(["inspect", str(path)]) == 2
        return capsys.readouterr().err

    assert f"--out '{tmp_path / 'a b'}'`" in said(tmp_path / "a b")
    (tmp_path / "notes.txt").write_text("")
    assert "--out bundle`" in said(tmp_path)  # an export writes into no folder that holds something
    assert "notes.txt is a file, and a bundle is a folder" in said(tmp_path / "notes.txt")
    assert "cannot be read (File name too long)" in said(tmp_path / ("a" * 300))
    assert "--out org/bundle`, or set BUNDLE_REPO where that is a repository" in said(Path("org/bundle"))
    assert "BUNDLE_REPO" not in said(Path("build/no-such")) + said(Path("no-such")) + said(Path("/no/such"))


def test_a_reader_that_has_read_enough_is_no_error(small_bundle: Path):
    command = f"set -o pipefail; {shlex.quote(sys.executable)} -m engine inspect '{small_bundle}' | true"
    for _ in range(2):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("more", ["", " --json"])
def test_a_full_disk_is_one_sentence(small_bundle: Path, more: str):
    command = f"{shlex.quote(sys.executable)} -m engine inspect '{small_bundle}'{more} > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    said = "error: the output cannot be written (No space left on device); send it elsewhere\n"
    assert (done.returncode, done.stderr) == (3, said)


def test_ctrl_c_while_it_imports_is_no_traceback(small_bundle: Path):
    done = interrupted_while_it_imports("argparse", "engine", "inspect", str(small_bundle))
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")


def test_code_and_adapters_are_named_beside_the_revision(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    of: dict[str, Any] = {
        "code": {"owner/code": "c" * 40},
        "adapters": {"lora": {"revision": None, "sha256": "d" * 64}},
    }
    write_manifest(small_bundle, replace(open_bundle(small_bundle).manifest, **of))
    assert described(small_bundle, capsys).items() >= of.items()
    assert main(["inspect", str(small_bundle)]) == 0
    said = capsys.readouterr().out
    assert f"\ncode          owner/code at {'c' * 40}\nadapter       lora at {'d' * 64}\n" in said


def test_verify_finds_a_damaged_file(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["inspect", str(small_bundle), "--verify"]) == 0
    assert "verified      every file" in capsys.readouterr().out
    with open(small_bundle / "tokenizer.json", "ab") as file:
        file.write(b" ")
    assert main(["inspect", str(small_bundle)]) == 0
    assert "verified" not in capsys.readouterr().out
    assert main(["inspect", str(small_bundle), "--verify"]) == 2
    assert "tokenizer.json" in capsys.readouterr().err


def test_it_loads_no_runtime(small_bundle: Path):
    """Not even numpy: it answers at once, on a machine that has none of them."""
    add_plan(small_bundle)
    code = (
        "import sys; from engine.__main__ import main; assert main(sys.argv[1:]) == 0;"
        "print(*sorted({'numpy', 'onnx', 'onnxruntime', 'tensorrt', 'pycuda'} & set(sys.modules)), sep='')"
    )
    command = [sys.executable, "-c", code, "inspect", str(small_bundle)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.endswith("GPU here\n\n")


def test_latencies_are_told_where_they_were_measured(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    add_plan(small_bundle, latencies_us=(110,))
    add_plan(small_bundle, precision="fp32")
    assert main(["inspect", str(small_bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any("fp16" in line and "  110 to 110  " in line for line in lines)
    assert main(["inspect", str(small_bundle), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)["plans"]
    assert first["latencies_us"] == [[1, 16, 110]]
    assert second["latencies_us"] == []
