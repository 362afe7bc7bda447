"""The command line, before any work."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from export.__main__ import main
from export.errors import Refused, Unavailable, blaming_the_disk, refusal_of
from export.recipe import Recipe, command_from_argv

ARGV = ["owner/name", "--task", "feature-extraction", "--out"]


def test_every_option(tmp_path: Path):
    out = tmp_path / "bundle"
    argv = [*ARGV, str(out), "--revision", "v1", "--pooling", "cls", "--max-length", "64"]
    argv += ["--precision", "int8", "--trust-remote-code", "--parity-threshold", "0.999"]
    assert command_from_argv(argv).recipe == Recipe(
        "owner/name", "feature-extraction", out, "v1", "cls", 64, "int8", True, {"": 0.999}
    )


def test_only_what_is_required(tmp_path: Path):
    assert command_from_argv([*ARGV, str(tmp_path)]).recipe == Recipe("owner/name", "feature-extraction", tmp_path)


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        ([], "the following arguments are required: --out; see python -m export --help"),
        (["--out", "b"], "name a MODEL, a folder or an id on the Hugging Face Hub"),
        (["m", "--task", "no-task", "--out", "b"], "unknown task 'no-task'; known are: "),
        (["m", "--task", "fill_masks", "--out", "b"], "unknown task 'fill_masks'; did you mean fill-mask? known are: "),
        ([*ARGV, "b", "--pooling", "sum"], "invalid choice: 'sum'"),
        ([*ARGV, "b", "--max-length", "0"], "--max-length must be at least 1, got 0"),
        ([*ARGV, "b", "--max-length", "many"], "invalid int value: 'many'"),
        (
            [*ARGV, "b", "--parity-threshold", "1.5"],
            "--parity-threshold is NAME=X with a number X from 0 to 1, got '1.5'",
        ),
        ([*ARGV, "b", "--precision", "cuda=int8"], "--precision cuda=int8: cuda takes one of auto, fp32, fp16"),
        (
            [*ARGV, "b", "--precision", "tpu=fp16"],
            "--precision 'tpu=fp16' is not TARGET=PRECISION with a target of cpu, cuda, tensorrt",
        ),
        (
            [*ARGV, "b", "--precision", "tensorrt=int8-static"],
            "--precision tensorrt=int8-static: tensorrt takes one of auto, fp32, fp16, bf16, int8",
        ),
        (
            [*ARGV, "b", "--precision", "int8-static", "--targets", "cuda"],
            "--precision int8-static is for cpu; add --targets cpu, or write cpu=int8-static",
        ),
        (
            [*ARGV, "b", "--precision", "fp16"],
            "--precision fp16 is for cuda and tensorrt; add --targets tensorrt, or write tensorrt=fp16",
        ),
        ([*ARGV, "b", "--precision", "fp8"], "unknown precision 'fp8'; known are: auto, fp32"),
        ([*ARGV, "b", "--targets", "tpu"], "unknown target 'tpu'; known are: cpu, cuda, tensorrt"),
        (
            [*ARGV, "b", "--plan", "--compute-capability", "8.9"],
            "--compute-capability is for --builder tensorrt-rtx; plain TensorRT builds for the GPU that it runs on",
        ),
        (
            [*ARGV, "b", "--plan", "--builder", "tensorrt-rtx"],
            "--builder tensorrt-rtx builds for the GPUs that --compute-capability names, such as 8.6,8.9,12.0",
        ),
        ([*ARGV, "b", "--plan", "--workspace-mib", "0"], "0 is not a whole number from 1 up"),
        (
            [*ARGV, "b", "--plan", "--plan-precision", "int8", "--precision", "cpu=int8,tensorrt=fp16"],
            "--plan-precision int8 builds from a graph in int8, which is made for TensorRT only when asked for; add "
            "--precision tensorrt=int8",
        ),
        (
            [*ARGV, "b", "--plan", "--form", "half", "--plan-precision", "fp32"],
            "--form is for plans in fp16 and bf16, not in fp32",
        ),
        (
            [*ARGV, "b", "--plan", "--form", "half", "--targets", "cpu,tensorrt"],
            "--form is for plans in fp16 and bf16, not in fp32",
        ),
        ([*ARGV, "b", "--image-size", "480by640"], "--image-size is HEIGHTxWIDTH in pixels, such as 480x640"),
        ([*ARGV, "b", "--no-such-option"], "unrecognized arguments: --no-such-option"),
        ([*ARGV, "b", "--precison", "int8"], "unrecognized arguments: --precison int8; did you mean --precision? see"),
        (["m", "--task", "ner", "--out", "b"], "unknown task 'ner'; did you mean token-classification? known are: "),
        ([*ARGV, "b", "--batches", "1,8"], "--batches is for TensorRT plans, and none is built without --plan; add it"),
        ([*ARGV, "b", "--no-plan", "--plan-precision=fp16"], "add it, or leave --plan-precision out"),
        ([*ARGV, "n" * 300], "cannot be a folder (File name too long); name another one with --out"),
        (["m", "--write-recipe", "."], ". is a folder; name a new file in it with --write-recipe"),
        ([*ARGV, __file__], "test_export_recipe.py is a file; name a folder with --out"),
        (
            [*ARGV, str(Path(__file__).parent)],
            "exists and is not empty; name another folder with --out, or remove it first",
        ),
    ],
)
def test_refusals(argv: list[str], sentence: str):
    with pytest.raises(Refused) as refused:
        command_from_argv(argv)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_the_folder_that_it_runs_in_is_no_place_for_a_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for out in (".", str(tmp_path)):
        with pytest.raises(Refused, match="is the folder that this runs in, which a bundle cannot replace"):
            command_from_argv([*ARGV, out])
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(Refused, match=r"loop cannot be a folder \(Too many levels of symbolic links\)"):
        command_from_argv([*ARGV, "loop"])


LATIN1 = os.fsdecode("sorti\xe8e".encode("latin-1"))


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ([*ARGV, LATIN1], "--out /"),
        ([LATIN1, "--out", "b"], "the model sorti"),
        (["m", "--adapter", f"./{LATIN1}", "--out", "b"], "--adapter ./sorti"),
        (["m", "--write-recipe", LATIN1], "--write-recipe /"),
        (["m", "--parity-data", LATIN1, "--out", "b"], "--parity-data sorti"),
        (["m", "--revision", LATIN1, "--out", "b"], "--revision sorti"),
        (["m", "--parity-threshold", f"{LATIN1}=0.5", "--write-recipe", "r"], "--parity-threshold sorti"),
    ],
)
def test_a_name_of_other_bytes_than_utf8(argv: list[str], name: str):
    with pytest.raises(Refused) as refused:
        command_from_argv(argv)
    said = str(refused.value)
    assert said.startswith(name)
    assert "sorti\\udce8e" in said
    assert said.endswith(" is not UTF-8; rename it, or name another")
    said.encode()


def test_home_is_known_where_a_shell_leaves_it_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command_from_argv(["m", "--task", "fill-mask", "--out=~/bundle"]).recipe.out == tmp_path / "bundle"


def test_options_of_plans_in_a_recipe_wait_for_a_plan(tmp_path: Path):
    (tmp_path / "recipe.toml").write_text('model = "m"\ntask = "fill-mask"\nout = "b"\n[plan]\nbatches = [1]\n')
    argv = ["--recipe", str(tmp_path / "recipe.toml")]
    assert command_from_argv([*argv, "--lengths", "max"]).recipe.plan is not None
    assert command_from_argv([*argv, "--no-plan"]).recipe.plan is None


@pytest.mark.parametrize(
    "options",
    [
        ["--plan-precision", "int8", "--precision", "int8", "--targets", "cpu,tensorrt"],
        ["--form", "half"],
        ["--form", "half", "--precision", "auto"],
        ["--form", "half", "--precision", "tensorrt=int8", "--plan-precision", "bf16"],
    ],
)
def test_options_of_plans_that_the_ladder_may_fit_are_taken(options: list[str]):
    assert command_from_argv([*ARGV, "b", "--plan", *options]).recipe.plan is not None


def test_a_command_that_is_misspelt_is_told(capsys: pytest.CaptureFixture[str]):
    assert main(["sgin", "bundle"]) == 2
    assert (
        capsys.readouterr().err == "error: there is no command 'sgin'; did you mean sign? see python -m export --help\n"
    )


def test_help_names_the_other_commands_and_each_has_help(capsys: pytest.CaptureFixture[str]):
    for argv in ([], ["plan"], ["plan", "--on-runpod"], ["keygen"], ["sign"], ["verify"]):
        with pytest.raises(SystemExit) as done:
            main([*argv, "--help"])
        assert done.value.code == 0
        told = " ".join(capsys.readouterr().out.split())
        assert told.startswith(f"usage: python -m export {'' if not argv else argv[0]}".strip())
        assert "Exit codes" in told
        if not argv:
            assert all(f"`{name}" in told for name in ("python -m export plan", "keygen", "sign", "verify"))


def test_what_to_copy_and_run_next_is_quoted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "a recipe.toml"
    assert main(["owner/name", "--write-recipe", str(path)]) == 0
    assert capsys.readouterr().out == f"next      python -m export --recipe '{path}' --out FOLDER\n"


@pytest.mark.parametrize(("out", "rest"), [([], " --out FOLDER"), (["--out", "b"], "")])
def test_the_command_that_a_recipe_names_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: list[str], rest: str
):
    monkeypatch.chdir(tmp_path)
    assert main(["owner/name", "--write-recipe", "recipe.toml", *out]) == 0
    following = f"python -m export --recipe recipe.toml{rest}"
    assert capsys.readouterr().out == f"next      {following}\n"
    assert Path("recipe.toml").read_text().startswith(f"# {following}\n")
    assert command_from_argv(following.split()[3:]).recipe.out.name in ("b", "FOLDER")


def test_a_full_disk_is_found_below_what_libraries_raise():
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as full:
            raise RuntimeError("cannot save") from full
    except RuntimeError as error:
        refused = refusal_of(error)
    assert "the disk is full" in str(refused)


def test_a_folder_that_cannot_be_written_is_named():
    refused = refusal_of(PermissionError(errno.EACCES, "Permission denied", "/models/bundle"))
    assert str(refused).startswith("/models/bundle: Permission denied;")


def test_other_errors_stay_what_they_are():
    assert refusal_of(FileNotFoundError(errno.ENOENT, "No such file", "x")) is None
    assert refusal_of(ValueError("x")) is None


def test_a_missing_package_is_named_and_a_module_of_ours_is_a_defect():
    refused = refusal_of(ModuleNotFoundError("No module named 'optimum'", name="optimum"))
    assert str(refused) == "the package optimum-onnx is not installed; pip install -r requirements/export.txt"
    assert refused is not None
    assert refused.exit_code == 3
    assert refusal_of(ModuleNotFoundError("No module named 'export.none'", name="export.none")) is None
    # These packages are there, in the versions that are pinned: what asks them for that is wrong.
    assert refusal_of(ImportError("cannot import name 'x' from 'onnx'", name="onnx")) is None
    assert refusal_of(ModuleNotFoundError("No module named 'onnx.none'", name="onnx.none")) is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), "not enough memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"), "not enough"),
        (RuntimeError("std::bad_alloc"), "not enough memory"),
        (RuntimeError("PytorchStreamWriter failed: No space left on device"), "the disk is full"),
        (OSError(errno.EFBIG, "File too large"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
    ],
)
def test_what_the_machine_lacks(error: Exception, sentence: str):
    refused = refusal_of(error)
    assert isinstance(refused, Unavailable)
    assert str(refused).startswith(sentence)


def test_what_fails_on_a_full_disk_is_the_disks_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))
    with pytest.raises(OSError, match="No space left"), blaming_the_disk(tmp_path):
        raise RuntimeError("Protobuf serialization failed.")
    with pytest.raises(Refused, match="a sentence"), blaming_the_disk(tmp_path):
        raise Refused("a sentence")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=1 << 30))
    with pytest.raises(RuntimeError, match="Protobuf"), blaming_the_disk(tmp_path):
        raise RuntimeError("Protobuf serialization failed.")


def test_an_output_that_cannot_be_written_is_found_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    with pytest.raises(Refused, match="file is a file, so that .*bundle cannot be made; name another folder"):
        command_from_argv([*ARGV, str(tmp_path / "file" / "deep" / "bundle")])
    monkeypatch.setattr(os, "access", lambda folder, mode: False)  # root may write everywhere
    with pytest.raises(Refused, match=f"{tmp_path} cannot be written; change its permissions or name another folder"):
        command_from_argv([*ARGV, str(tmp_path / "deep" / "bundle")])
