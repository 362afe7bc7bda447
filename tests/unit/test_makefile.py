"""Where make lets uv look for packages."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from pip._internal.models.index import PyPI

ROOT_CAUSE = "PyPI's torch is for CUDA and needs another cuda-python than requirements/dev.txt pins"
AS_PIP = {"UV_INDEX_STRATEGY": "unsafe-best-match"}


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
    ours = ("PIP_", "UV_", "MAKE", "NO_INDEX")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean |= {"PIP_CONFIG_FILE": "/dev/null", "UV_CONFIG_FILE": "/dev/null"}  # this machine's own change nothing
    recipe = "include Makefile\nshown:\n\t@env\n"
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, input=recipe, env={**clean, **environ}, text=True, capture_output=True, check=True)
    return done.stdout


NAMES = ["org/name", "my model", "it's (my) model", '"; touch injected; $HOME `id` $$ #é']


def test_without_a_python_no_image_of_another_model_is_built():
    command = ["make", "--silent", "image", "MODEL=org/name", "DOCKER=echo", "PYTHON=no-such-python"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "name a Python with PYTHON=" in done.stderr


@pytest.mark.parametrize("model", NAMES)
def test_an_image_is_told_the_model_by_its_name_whatever_that_holds(model: str, tmp_path: Path):
    """A local model's is that of its folder, and a bundle may come from anyone."""
    folder = ["--silent", f"--directory={tmp_path}", f"--file={Path.cwd() / 'Makefile'}", "DOCKER=printf '%s\\n'"]

    def told(*options: str, **environ: str) -> list[str]:
        arguments = make("image", *folder, *options, **environ).splitlines()
        assert arguments[:2] == ["build", "--tag"]
        assert arguments[-1] == "."
        assert list(tmp_path.iterdir()) in ([], [tmp_path / "bundle"])
        return [one for one in arguments if one.startswith(("MODEL=", "REVISION=", "BUNDLE_SHA256="))]

    assert told() == []
    assert told(MODEL=model.replace("$", "$$")) == [f"MODEL={model}"]
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text(json.dumps({"model": model, "revision": None}))
    (tmp_path / "bundle/manifest.sha256").write_text(f"{'0' * 64}  manifest.json\n")
    assert told() == [f"MODEL={model}", "REVISION=", f"BUNDLE_SHA256={'0' * 64}"]
    assert told("MODEL=other")[0] == "MODEL=other"


def test_torch_is_the_one_for_the_cpu_where_packages_come_from_pypi():
    assert exported() == {"UV_TORCH_BACKEND": "cpu"}, ROOT_CAUSE


@pytest.mark.parametrize(
    ("given", "uv"),
    [
        ({"PIP_FIND_LINKS": "/wheels"}, {"UV_FIND_LINKS": "/wheels"}),
        ({"PIP_INDEX_URL": "https://example.org/simple"}, {"UV_DEFAULT_INDEX": "https://example.org/simple"}),
        (
            {"PIP_EXTRA_INDEX_URL": "https://a.example/ https://b.example/"},
            {"UV_INDEX": f"{PyPI.simple_url} https://a.example/", "UV_DEFAULT_INDEX": "https://b.example/", **AS_PIP},
        ),
        (
            {"PIP_INDEX_URL": "https://a.example/", "PIP_EXTRA_INDEX_URL": "https://b.example/"},
            {"UV_INDEX": "https://a.example/", "UV_DEFAULT_INDEX": "https://b.example/", **AS_PIP},
        ),
        ({"UV_INDEX": "https://example.org/simple"}, {"UV_INDEX": "https://example.org/simple"}),
        ({"UV_INDEX_URL": "https://example.org/simple"}, {"UV_INDEX_URL": "https://example.org/simple"}),
        ({"UV_INDEX": "https://a.example/", "PIP_INDEX_URL": "https://b.example/"}, {"UV_INDEX": "https://a.example/"}),
    ],
)
def test_places_of_ones_own_are_the_only_ones(given: dict[str, str], uv: dict[str, str]):
    assert exported(**given) == uv
    assert exported(**given, UV_TORCH_BACKEND="cpu") == {**uv, "UV_TORCH_BACKEND": "cpu"}


def test_a_further_index_that_lacks_this_machines_wheel_does_not_hide_it(tmp_path: Path):
    """soundfile's for any machine is without libsndfile; a mirror that had only that one gave an export that failed."""
    whole, partial, into = tmp_path / "whole", tmp_path / "partial", tmp_path / "into"
    this_machine = sysconfig.get_platform().translate(str.maketrans("-.", "__"))
    for index, tags in ((whole, ("any", this_machine)), (partial, ("any",))):
        for tag in tags:
            add_wheel(index / "thing", tag)
    uv = exported(PIP_INDEX_URL=whole.as_uri(), PIP_EXTRA_INDEX_URL=partial.as_uri())
    command = ["uv", "pip", "install", "--no-cache", "--quiet", "--target", str(into), "thing"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_"))}
    subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], env={**clean, **uv}, check=True)
    assert (into / "thing.py").read_text() == this_machine


def add_wheel(folder: Path, tag: str) -> None:
    """A wheel of `thing` 1.0 for machines of `tag`, whose module is that tag, in a page of an index."""
    folder.mkdir(parents=True, exist_ok=True)
    about = "thing-1.0.dist-info"
    files = {
        "thing.py": tag,
        f"{about}/METADATA": "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n",
        f"{about}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-{tag}\n",
        f"{about}/RECORD": "",
    }
    wheel = f"thing-1.0-py3-none-{tag}.whl"
    with zipfile.ZipFile(folder / wheel, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with (folder / "index.html").open("a") as page:
        page.write(f'<a href="{wheel}">{wheel}</a>\n')


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


# With EXTRA=gpu


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    """As after `make EXTRA=gpu setup`, for make."""
    (tmp_path / "venv/bin").mkdir(parents=True)
    for stamp in ("uv", "dev", "gpu"):
        (tmp_path / f"venv/{stamp}.stamp").touch()
    return tmp_path / "venv"


def test_the_libraries_of_the_packages_are_found_before_the_machines(venv: Path):
    def path(*options: str, **environ: str) -> list[str]:
        said = make("--silent", "--file", "-", "shown", f"VENV={venv}", *options, **environ).splitlines()
        return [line for line in said if line.startswith("LD_LIBRARY_PATH=")]

    cuda = f"LD_LIBRARY_PATH={venv}/lib/cuda"
    assert path("EXTRA=gpu", LD_LIBRARY_PATH="") == [cuda]
    assert path("EXTRA=gpu", LD_LIBRARY_PATH="/a:/b") == [f"{cuda}:/a:/b"]
    assert path(LD_LIBRARY_PATH="/a:/b") == ["LD_LIBRARY_PATH=/a:/b"]


def test_they_lie_in_one_folder_and_pycuda_is_compiled_with_the_headers_of_a_package(venv: Path, tmp_path: Path):
    site, compiles = venv / "lib/python3.11/site-packages", tmp_path / "with_cuda_headers.sh"
    for name in (
        "nvidia/cublas/lib/libcublas.so.11",
        "nvidia/cudnn/lib/libcudnn.so.8",
        "tensorrt_libs/libnvinfer.so.10",
    ):
        (site / name).parent.mkdir(parents=True)
        (site / name).touch()
    compiles.write_text(f'#!/bin/sh\necho "$@" > {tmp_path / "ran"}\n')
    (venv / "bin/uv").write_text("#!/bin/sh\n")
    for script in (compiles, venv / "bin/uv"):
        script.chmod(0o755)
    for _ in range(2):  # again, as after new pins
        (venv / "gpu.stamp").unlink()
        make("--silent", "EXTRA=gpu", "setup", f"VENV={venv}", f"WITH_CUDA_HEADERS={compiles}", PIP_NO_INDEX="1")
    assert (tmp_path / "ran").read_text().split() == [
        f"{venv}/bin/python", f"{venv}/bin/uv", "pip", "install", "--no-index", "--python", f"{venv}/bin/python",
        "--build-constraints", "requirements/build.txt", "-r", "requirements/all.txt",
    ]  # fmt: skip
    found = {link.name: link.resolve() for link in (venv / "lib/cuda").iterdir()}
    assert sorted(found) == ["libcublas.so.11", "libcudnn.so.8", "libnvinfer.so.10"]
    assert all(str(target).startswith(str(site)) for target in found.values())


@pytest.mark.parametrize("before", ["", "/a b:/c"])
def test_torch_gets_the_libraries_of_the_machine(venv: Path, before: str):
    options = ("--silent", "EXTRA=gpu", f"VENV={venv}", f"TORCH_PYTHON={sys.executable}")
    make(*options, "torch-python", LD_LIBRARY_PATH=before)
    asked = [f"{venv}/torch-python", "-c", "import os, sys; print(sys.argv[1], os.environ['LD_LIBRARY_PATH'])", "x y"]
    said = subprocess.run(asked, env={"LD_LIBRARY_PATH": "/other"}, text=True, capture_output=True, check=True)
    assert said.stdout == f"x y {before}\n"
    for target in ("gpu", "latency"):
        assert f"--torch-python {venv}/torch-python" in make("--dry-run", *options, target)
        assert "--torch-python none" in make("--dry-run", *options[:-1], "TORCH_PYTHON=none", target)
    assert f"--torch-python {sys.executable}" in make("--dry-run", options[-1], f"VENV={venv}", "latency")
