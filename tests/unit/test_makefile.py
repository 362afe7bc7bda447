"""Where make lets uv look for packages."""

import os
import subprocess

import pytest

ROOT_CAUSE = "PyPI's torch is for CUDA and needs another cuda-python than requirements/dev.txt pins"


def exported(**environ: str) -> dict[str, str]:
    """uv's variables as a recipe of the Makefile sees them."""
    ours = ("PIP_", "UV_", "MAKE")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    recipe = "include Makefile\nshown:\n\t@env\n"
    command = ["make", "--no-print-directory", "--silent", "--file", "-", "shown"]
    done = subprocess.run(command, input=recipe, env={**clean, **environ}, text=True, capture_output=True, check=True)
    return dict(line.split("=", 1) for line in done.stdout.splitlines() if line.startswith("UV_"))


def test_torch_is_the_one_for_the_cpu_where_packages_come_from_pypi():
    assert exported() == {"UV_TORCH_BACKEND": "cpu"}, ROOT_CAUSE


@pytest.mark.parametrize(
    ("given", "uv"),
    [
        ({"PIP_FIND_LINKS": "/wheels"}, {"UV_FIND_LINKS": "/wheels"}),
        ({"PIP_INDEX_URL": "https://example.org/simple"}, {"UV_DEFAULT_INDEX": "https://example.org/simple"}),
        ({"UV_INDEX": "https://example.org/simple"}, {"UV_INDEX": "https://example.org/simple"}),
    ],
)
def test_places_of_ones_own_are_the_only_ones(given: dict[str, str], uv: dict[str, str]):
    assert exported(**given) == uv
    assert exported(**given, UV_TORCH_BACKEND="cpu") == {**uv, "UV_TORCH_BACKEND": "cpu"}
