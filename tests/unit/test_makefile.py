"""Where make lets uv look for packages."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT_CAUSE = "PyPI's torch is for CUDA and needs another cuda-python than requirements/dev.txt pins"


def exported(*options: str, **environ: str) -> dict[str, str]:
    """uv's variables as a recipe of the Makefile sees them."""
    said = make("--silent", "--file", "-", "shown", *options, **environ)
    return dict(
        line.split("=", 1)
        for line in said.splitlines()
        if line.startswith("UV_") and not line.startswith("UV_CONFIG_FILE=")
    )


def make(*arguments: str, **environ: str) -> str:
    """What make prints; `--file -` has a target `shown` that prints its environment."""
    ours = ("PIP_", "UV_", "MAKE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean |= {"PIP_CONFIG_FILE": "/dev/null", "UV_CONFIG_FILE": "/dev/null"}  # this machine's own change nothing
    recipe = "include Makefile\nshown:\n\t@env\n"
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, input=recipe, env={**clean, **environ}, text=True, capture_output=True, check=True)
    return done.stdout


def test_torch_is_the_one_for_the_cpu_where_packages_come_from_pypi():
    assert exported() == {"UV_TORCH_BACKEND": "cpu"}, ROOT_CAUSE


@pytest.mark.parametrize(
    ("given", "uv"),
    [
        ({"PIP_FIND_LINKS": "/wheels"}, {"UV_FIND_LINKS": "/wheels"}),
        ({"PIP_INDEX_URL": "https://example.org/simple"}, {"UV_DEFAULT_INDEX": "https://example.org/simple"}),
        (
            {"PIP_EXTRA_INDEX_URL": "https://example.org/simple"},
            {"UV_INDEX": "https://example.org/simple", "UV_INDEX_STRATEGY": "unsafe-best-match"},  # as pip chooses
        ),
        ({"UV_INDEX": "https://example.org/simple"}, {"UV_INDEX": "https://example.org/simple"}),
        ({"UV_INDEX_URL": "https://example.org/simple"}, {"UV_INDEX_URL": "https://example.org/simple"}),
        ({"UV_INDEX": "https://a.example/", "PIP_INDEX_URL": "https://b.example/"}, {"UV_INDEX": "https://a.example/"}),
    ],
)
def test_places_of_ones_own_are_the_only_ones(given: dict[str, str], uv: dict[str, str]):
    assert exported(**given) == uv
    assert exported(**given, UV_TORCH_BACKEND="cpu") == {**uv, "UV_TORCH_BACKEND": "cpu"}


@pytest.mark.parametrize(
    ("content", "uv"),
    [
        ("[global]\nindex-url = https://example.org/simple\n", {"UV_DEFAULT_INDEX": "https://example.org/simple"}),
        ("[install]\nfind-links =\n    /wheels\n    /more\n", {"UV_FIND_LINKS": "/wheels,/more"}),
        ("[global]\ncert = /authorities.pem\n", {"UV_TORCH_BACKEND": "cpu"}),
    ],
)
def test_a_pip_conf_counts_as_pips_variables_do(tmp_path: Path, content: str, uv: dict[str, str]):
    (tmp_path / "pip.conf").write_text(content)
    assert exported(f"PIP_FILES={tmp_path / 'pip.conf'}") == uv


@pytest.mark.parametrize(
    ("content", "uv"),
    [
        ('[[index]]\nurl = "https://example.org/simple"\n', {}),
        ('[pip]\nindex-url = "https://example.org/simple"\n', {}),
        ('link-mode = "copy"\n', {"UV_TORCH_BACKEND": "cpu"}),
    ],
)
def test_a_uv_toml_that_names_places_counts(tmp_path: Path, content: str, uv: dict[str, str]):
    (tmp_path / "uv.toml").write_text(content)
    assert exported(UV_CONFIG_FILE=str(tmp_path / "uv.toml")) == uv


@pytest.mark.parametrize(
    ("content", "environ", "is_handed_on"),
    [
        ("", {"PIP_NO_INDEX": "1"}, True),
        ("[global]\nno-index = True\n", {}, True),
        ("[install]\nno_index = yes\n", {"PIP_FIND_LINKS": "/wheels"}, True),
        ("[global]\nno-index = true\n", {"PIP_NO_INDEX": "0"}, False),
        ("", {"PIP_NO_INDEX": "1", "UV_INDEX": "https://example.org/simple"}, False),  # uv is told of its own
        ("", {}, False),
    ],
)
def test_pips_no_index_is_handed_on_to_uv_which_has_no_variable_for_it(
    tmp_path: Path, content: str, environ: dict[str, str], is_handed_on: bool
):
    (tmp_path / "pip.conf").write_text(content)
    options = [f"PIP_FILES={tmp_path / 'pip.conf'}", f"VENV={tmp_path / 'venv'}"]
    said = make("--dry-run", "setup", *options, **environ)
    (installs,) = (line for line in said.splitlines() if "uv pip install" in line)
    assert ("--no-index" in installs.split()) == is_handed_on
    assert ("UV_TORCH_BACKEND" in exported(options[0], **environ)) == (not is_handed_on and "UV_INDEX" not in environ)
