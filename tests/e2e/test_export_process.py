"""`python -m export` as CI meets it: in processes that are killed, run out of disk or memory, or ask the Hub."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from benchmarks.zoo.text import tiny_model
from engine.bundle import open_bundle
from tests import models
from tests.export_process import Ended, Exports, exports
from tests.exports import TEXTS, embed, reference
from tests.hub_server import COMMIT, TOKEN, Hub, hub
from tests.models import edit_json

pytestmark = pytest.mark.slow

STAGES = ["", "load", "onnx", "optimize", "write", "parity", "cpu"]


@pytest.fixture(scope="module")
def the_hub() -> Iterator[Hub]:
    with hub() as found:
        yield found


@pytest.fixture(scope="module")
def export(the_hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exports]:
    home = tmp_path_factory.mktemp("home")
    with exports(home, HF_ENDPOINT=the_hub.address, HF_HOME=str(home), HF_HUB_OFFLINE="0", HF_TOKEN="") as found:
        yield found


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def refused(ended: Ended, code: int, sentence: str) -> None:
    assert sentence in ended.err
    assert ended.err.startswith("error: ")
    assert ended.err.count("\n") == 1
    assert ended.code == code


def test_a_kill_at_any_stage_leaves_no_half_bundle_and_nothing_in_the_way(export: Exports, bert: Path, tmp_path: Path):
    out = tmp_path / "out" / "bundle"
    left_over = set()
    for stage in STAGES:
        pid = export.start(bert, "--precision", "int8", "--out", out)
        export.send_after(signal.SIGKILL, stage, pid)
        ended = export.ended()
        if out.exists():  # the last stage's line comes before the rename
            assert stage == STAGES[-1]
            open_bundle(out).verify()
            shutil.rmtree(out)
        else:
            assert ended.code == -signal.SIGKILL, stage
        left_over |= set(entries(out.parent))
    assert left_over  # some were killed while they wrote
    assert export.run(bert, "--precision", "int8", "--out", out).code == 0
    assert entries(out.parent) == ["bundle"]
    open_bundle(out).verify()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_at_any_stage_leaves_nothing(export: Exports, bert: Path, tmp_path: Path, number: signal.Signals):
    out = tmp_path / "bundle"
    for stage in STAGES[1:-1] if number is signal.SIGINT else STAGES[2:4]:
        pid = export.start(bert, "--precision", "int8", "--out", out)
        export.send_after(number, stage, pid)
        ended = export.ended()
        assert (ended.code, ended.err) == (130, "interrupted; nothing was written\n"), stage
        assert entries(tmp_path) == [], stage


WHILE_IMPORTED = """
import os, runpy, sys

class Importing:
    def find_spec(self, name, path=None, target=None):
        if name == "engine.bundle":
            os.kill(os.getpid(), int(sys.argv.pop()))

sys.meta_path.insert(0, Importing())
runpy.run_module("export", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_while_the_export_is_imported(tmp_path: Path, number: signal.Signals):
    argv = [sys.executable, "-c", WHILE_IMPORTED, "./no-such-model", "--out", str(tmp_path / "bundle")]
    done = subprocess.run([*argv, str(int(number))], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was written\n")
    done = subprocess.run([*argv, "--json", str(int(number))], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, json.loads(done.stdout)["status"]) == (130, "interrupted")
    assert entries(tmp_path) == []


def test_an_interrupt_is_an_answer_in_json(export: Exports, bert: Path, tmp_path: Path):
    pid = export.start(bert, "--out", tmp_path / "bundle", "--json")
    export.send_after(signal.SIGINT, "load", pid, "stderr")
    ended = export.ended()
    assert (ended.code, ended.json()["status"]) == (130, "interrupted")
    assert [stage["name"] for stage in ended.json()["stages"]] == ["load"]
    assert entries(tmp_path) == []


@pytest.mark.parametrize("size", [5_000, 60_000, 100_000])
def test_a_file_that_cannot_grow_is_a_full_disk(export: Exports, bert: Path, tmp_path: Path, size: int):
    argv: list[str | Path] = [bert, "--precision", "int8", "--out", tmp_path / "bundle"]
    ended = export.run(*argv, limits={"RLIMIT_FSIZE": size}, set={"export.load:DISK_FACTOR": 0})
    refused(ended, 3, "the disk is full; free some space")
    assert entries(tmp_path) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a disk that is small")
def test_a_disk_that_is_full_at_any_stage_leaves_nothing(export: Exports, bert: Path, tmp_path: Path):
    last = set()
    for size in (150, 300, 450, 700, 4000):
        if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", tmp_path], check=False).returncode:
            pytest.skip("this root may not mount")
        try:
            argv: list[str | Path] = [bert, "--precision", "int8", "--out", tmp_path / "bundle"]
            ended = export.run(*argv, set={"export.load:DISK_FACTOR": 0})
            if ended.code == 0:
                break
            refused(ended, 3, "the disk is full; free some space")
            assert entries(tmp_path) == []
            last.add(ended.out.splitlines()[-1].split()[0])
        finally:
            subprocess.run(["umount", tmp_path], check=True)
    assert ended.code == 0
    assert len(last) >= 2  # it was full in several stages


def test_a_disk_that_is_too_small_is_told_before_the_work(export: Exports, bert: Path, tmp_path: Path):
    ended = export.run(bert, "--out", tmp_path / "bundle", set={"export.load:DISK_FACTOR": 1e12})
    refused(ended, 3, "free some space or name a folder on another disk with --out")
    assert entries(tmp_path) == []


def test_too_little_memory_is_one_sentence(export: Exports, bert: Path, tmp_path: Path):
    model = Path(shutil.copytree(bert, tmp_path / "model"))
    name = "embeddings.word_embeddings.weight"
    rows = 1 << 28  # 32 GiB of nothing: a file with a hole
    with open(model / "model.safetensors", "r+b") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header = {name: {"dtype": "F32", "shape": [rows, models.HIDDEN], "data_offsets": [0, 4 * rows * models.HIDDEN]}}
    raw = json.dumps(header).encode()
    with open(model / "model.safetensors", "wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + 4 * rows * models.HIDDEN)
    ended = export.run(
        model, "--out", tmp_path / "out", limits={"RLIMIT_AS": 20 << 30}, set={"export.load:DISK_FACTOR": 0}
    )
    refused(ended, 3, "not enough memory; export on a machine with more")


def test_with_json_stdout_is_one_object(export: Exports, bert: Path, tmp_path: Path):
    ended = export.run(bert, "--out", tmp_path / "bundle", "--json")
    answer = ended.json()
    assert ended.code == answer["exit_code"] == 0
    assert answer["status"] == "written"
    assert answer["bundle"] == str(tmp_path / "bundle")
    bundle = open_bundle(tmp_path / "bundle")
    assert answer["sha256"] == bundle.sha256
    assert answer["files"] == {name: size for name, (size, _) in bundle.manifest.files.items()}
    assert [stage["name"] for stage in answer["stages"]] == ["load", "onnx", "optimize", "write", "parity"]
    assert answer["parity"]["limits"]["min_cosine"] == 0.99999
    assert "load" in ended.err  # the lines are there as well


@pytest.mark.parametrize(
    ("argv", "code", "status"),
    [
        (["./none", "--out", "b"], 2, "refused"),
        (["no/model", "--out", "b"], 3, "unavailable"),
        (["MODEL", "--parity-threshold", "max_relative_difference=0", "--out", "b"], 1, "gate failed"),
    ],
)
def test_with_json_a_failure_is_one_object(
    export: Exports, the_hub: Hub, bert: Path, tmp_path: Path, argv: list[str], code: int, status: str
):
    the_hub.is_broken = True
    argv = [str(bert) if one == "MODEL" else str(tmp_path / "b") if one == "b" else one for one in argv]
    ended = export.run(*argv, "--json")
    the_hub.is_broken = False
    answer = ended.json()
    assert (ended.code, answer["exit_code"], answer["status"]) == (code, code, status)
    assert answer["error"] in ended.err
    assert ("worst" in answer) == (code == 1)
    assert entries(tmp_path) == []


def test_a_defect_keeps_its_traceback_and_has_a_code_of_its_own(export: Exports, bert: Path, tmp_path: Path):
    for options in ([], ["--json"]):
        ended = export.run(bert, "--out", tmp_path / "b", *options, set={"export.optimize:fuse": None})
        assert ended.code == 4
        assert "Traceback (most recent call last)" in ended.err
        assert entries(tmp_path) == []
    assert ended.json()["status"] == "defect"


def test_a_panic_of_the_tokenizers_library_is_a_defect(export: Exports, tmp_path: Path):
    """It is no Exception, so that it may not pass for the code of a gate that failed."""
    model = tiny_model(tmp_path / "model", "bert", "AutoModelForQuestionAnswering")
    too_short = {"export.tasks.question_answering:WINDOW": 16}
    for options in ([], ["--json"]):
        ended = export.run(model, "--out", tmp_path / "b" / "b", *options, set=too_short)
        assert ended.code == 4, ended.err
        assert "PanicException: `stride` must be strictly less" in ended.err
        assert entries(tmp_path / "b") == []
    assert ended.json()["status"] == "defect"
    assert ended.json()["error"].startswith("PanicException: `stride`")


def test_an_id_on_the_hub_is_pinned_to_its_commit(export: Exports, the_hub: Hub, bert: Path, tmp_path: Path):
    the_hub.repositories["owner/tiny"] = bert
    assert export.run("owner/tiny", "--revision", "v1", "--out", tmp_path / "a").code == 0
    manifest = open_bundle(tmp_path / "a").manifest
    assert (manifest.model, manifest.revision) == ("owner/tiny", COMMIT)
    assert f'revision = "{COMMIT}"' in (tmp_path / "a/recipe.toml").read_text()

    the_hub.is_broken = True  # the recipe of the bundle names the commit, which is in the cache
    ended = export.run("--recipe", tmp_path / "a/recipe.toml", "--out", tmp_path / "b")
    the_hub.is_broken = False
    assert ended.code == 0, ended.err
    assert open_bundle(tmp_path / "a").sha256 == open_bundle(tmp_path / "b").sha256


def test_a_gated_model_needs_the_token(export: Exports, the_hub: Hub, bert: Path, tmp_path: Path):
    the_hub.repositories["owner/gated"] = bert
    the_hub.gated.add("owner/gated")
    for token in ("", "hf_of_somebody_else"):
        ended = export.run("owner/gated", "--out", tmp_path / "bundle", environ={"HF_TOKEN": token})
        refused(ended, 2, "owner/gated is gated; accept its terms on the Hub and set HF_TOKEN")
    assert export.run("owner/gated", "--out", tmp_path / "bundle", environ={"HF_TOKEN": TOKEN}).code == 0
    for file in (tmp_path / "bundle").rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes()


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["owner/none"], 2, "owner/none is neither a folder here nor on the Hub; check the spelling"),
        (["owner/tiny", "--revision", "v9"], 2, "owner/tiny has no revision v9; leave --revision out for main"),
    ],
)
def test_what_the_hub_does_not_have(
    export: Exports, the_hub: Hub, bert: Path, tmp_path: Path, argv: list[str], code: int, sentence: str
):
    the_hub.repositories["owner/tiny"] = bert
    refused(export.run(*argv, "--out", tmp_path / "bundle"), code, sentence)


def test_a_hub_that_does_not_answer(export: Exports, the_hub: Hub, tmp_path: Path):
    the_hub.is_broken = True
    ended = export.run("owner/unseen", "--out", tmp_path / "bundle")
    the_hub.is_broken = False
    refused(ended, 3, "it is not in the local Hub cache, and the Hub cannot be reached")


CODE = """
from safetensors.torch import load_file
from transformers import BertModel


class OwnBert(BertModel):
    @classmethod
    def from_pretrained(cls, folder, *_, config, **options):
        model = cls(config)
        model.load_state_dict(load_file(f"{folder}/model.safetensors"), strict=False)
        return model
"""


def test_code_in_another_repository_that_loads_the_weights_itself(
    export: Exports, the_hub: Hub, bert: Path, tmp_path: Path
):
    """As nomic-embed-text has it."""
    the_hub.repositories["owner/code"] = tmp_path / "code"
    (tmp_path / "code").mkdir()
    (tmp_path / "code/modeling.py").write_text(CODE)
    model = Path(shutil.copytree(bert, tmp_path / "model"))
    edit_json(model / "config.json", auto_map={"AutoModel": "owner/code--modeling.OwnBert"})
    argv = (model, "--trust-remote-code", "--out", tmp_path / "bundle")
    the_hub.is_broken = True
    refused(export.run(*argv), 3, "model takes its code from owner/code, which is not in the local Hub cache, and the")
    the_hub.is_broken = False
    the_hub.gated.add("owner/code")
    refused(export.run(*argv), 2, "model takes its code from owner/code: owner/code is gated; accept its terms on the")
    the_hub.gated.clear()
    ended = export.run(*argv)
    assert ended.code == 0, ended.err
    np.testing.assert_allclose(embed(tmp_path / "bundle", TEXTS), reference(bert, TEXTS), atol=1e-5)
    assert open_bundle(tmp_path / "bundle").manifest.code == {"owner/code": COMMIT}
    assert f"code      owner/code at {COMMIT[:12]}" in ended.out

    weights = load_file(model / "model.safetensors")
    lost = weights.pop("encoder.layer.1.output.dense.weight")
    save_file(weights, model / "model.safetensors")
    assert lost.shape == (32, 64)
    again = (*argv[:-1], tmp_path / "other")
    refused(export.run(*again), 2, "lacks 1 weights of OwnBert, encoder.layer.1.output.dense.weight for one")


def test_the_recipe_in_a_bundle_names_what_auto_came_to(export: Exports, bert: Path, tmp_path: Path):
    ended = export.run(bert, "--precision", "auto", "--targets", "cpu,cuda", "--out", tmp_path / "bundle", "--json")
    assert ended.code == 0, ended.err
    chosen = ended.json()["precision"]
    assert chosen.pop("asked") == "auto"
    bundle = open_bundle(tmp_path / "bundle")
    bundle.verify()
    recipe = tomllib.loads((tmp_path / "bundle" / "recipe.toml").read_text())
    form = {"int8": "int8-dynamic"}.get(chosen["cpu"], chosen["cpu"])
    assert recipe["precision"] == {"cpu": form, "cuda": chosen["cuda"]}
    assert ended.json()["sha256"] == bundle.sha256
