"""`python -m export` where a package is missing or of another version: one sentence with the command that helps."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.models import write_json

SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Enough of one for what is missing to be met."""
    write_json(tmp_path / "model/config.json", {"model_type": "bert", "architectures": ["BertModel"]})
    return tmp_path / "model"


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """This environment's packages as links, of which a test may take some away."""
    folder = tmp_path / "packages"
    folder.mkdir()
    for entry in SITE_PACKAGES.iterdir():
        (folder / entry.name).symlink_to(entry)
    return folder


def remove(packages: Path, name: str) -> None:
    for entry in [*packages.glob(name), *packages.glob(f"{name}-*.dist-info")]:
        entry.unlink()


def export(packages: Path, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-S", "-m", "export", *argv],  # -S: none of the packages beside those
        env={"PYTHONPATH": str(packages), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize(
    "argv", [["MODEL", "--out", "b"], ["plan", "b"], ["--list-tasks"], ["--task", "api-proxy", "--out", "b"]]
)
def test_without_any_package(tmp_path: Path, model: Path, argv: list[str]):
    (tmp_path / "none").mkdir()
    done = export(tmp_path / "none", *(str(model) if one == "MODEL" else one for one in argv))
    assert (done.returncode, done.stdout) == (3, "")
    assert re.fullmatch(
        r"error: the package \w+ is not installed; pip install -r requirements/export.txt\n", done.stderr
    )  # whichever is imported first


@pytest.mark.parametrize(("module", "package"), [("PIL", "pillow"), ("onnxruntime", "onnxruntime"), ("torch", "torch")])
def test_a_package_that_is_missing_is_named(tmp_path: Path, model: Path, installed: Path, module: str, package: str):
    remove(installed, module)
    done = export(installed, model, "--task", "image-classification", "--out", tmp_path / "b")
    assert done.returncode == 3
    assert done.stderr == f"error: the package {package} is not installed; pip install -r requirements/export.txt\n"


def test_a_package_of_another_version_is_named(tmp_path: Path, model: Path, installed: Path):
    remove(installed, "onnx")
    (installed / "onnx").mkdir()
    (installed / "onnx/__init__.py").write_text("")
    (installed / "onnx-1.99.0.dist-info").mkdir()
    (installed / "onnx-1.99.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: onnx\nVersion: 1.99.0\n")
    done = export(installed, model, "--out", tmp_path / "b")
    assert done.returncode == 3
    assert done.stderr.startswith("error: onnx is 1.99.0, not 1.23.2; pip install -r requirements/export.txt (cannot ")


def test_the_key_tools_help_needs_no_package(tmp_path: Path):
    (tmp_path / "none").mkdir()
    assert export(tmp_path / "none", "keygen", "--help").returncode == 0
    done = export(tmp_path / "none", "keygen", "--key", str(tmp_path / "key"))
    assert done.returncode == 3
    assert done.stderr.startswith("error: the package cryptography is not installed; pip install -r requirements/")
