"""The image, from the real Dockerfile, built and run without a docker daemon (`make test-image`)."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.emulator import EmulatorThread
from engine.bundle import open_bundle
from tests.image.buildah import Buildah, Image
from tests.image.conftest import MARKER_SECRET, REVISION
from tests.image.container import Container

pytestmark = [pytest.mark.image, pytest.mark.timeout(1500)]

JOBS = 100
BUDGET_MB = 450
SITE = "opt/venv/lib/python3.11/site-packages"
LIBRARY = "usr/lib/python3.11"
PYTHON = "Python 3.11, standard library"
PARTS = {
    "numpy": ("numpy", "numpy.libs"),
    "ONNX Runtime": ("onnxruntime",),
    "Pillow": ("PIL", "pillow.libs"),
    "tokenizers": ("tokenizers",),
    "huggingface-hub (of tokenizers)": ("huggingface_hub", "hf_xet"),
    "botocore, boto3 (of the SDK)": ("botocore", "boto3"),
    "cryptography (of the SDK)": ("cryptography",),
    "uvloop (of the SDK)": ("uvloop",),
    "runpod (the SDK itself)": ("runpod",),
}
"""Row of the size table -> folders in site-packages."""


def added(image: Image, base: Path) -> Iterator[Path]:
    """The files, below the image's root, that the base has not."""
    for path in image.root.rglob("*"):
        if not path.is_dir() and not (base / path.relative_to(image.root)).exists():
            yield path.relative_to(image.root)


def is_of_library(path: Path) -> bool:
    """Whether it is bytecode of the standard library that the base brings."""
    return path.is_relative_to(LIBRARY) and path.suffix == ".pyc" and path.parent.name == "__pycache__"


def test_a_worker_answers_jobs_as_nobody_in_particular_and_stops(image: Image, tmp_path: Path):
    with EmulatorThread() as emulator, Container(image, emulator.worker_env(), tmp_path / "log") as container:
        jobs = [emulator.submit({"text": "the quick fox", "normalize": False}) for _ in range(JOBS)]
        done = [emulator.wait(job, 60) for job in jobs]
        assert Counter(job.status for job in done) == {"COMPLETED": JOBS}, container.output
        assert len({tuple(job.output["embedding"]) for job in done}) == 1
        front = container.main
        for process in (front, *front.children()):
            assert set(process.uids()) == {10001}
            assert set(process.gids()) == {10001}
        (root,) = [
            line for line in Path(f"/proc/{front.pid}/mountinfo").read_text().splitlines() if line.split()[4] == "/"
        ]
        assert root.split()[5].split(",")[0] == "ro"
        assert container.healthcheck() == 0
        assert container.stop() == 0, container.output
    assert "Traceback" not in container.output


def test_one_job_can_be_tried_without_an_endpoint(image: Image, tmp_path: Path):
    """As docs/deploy.md says: `docker run --rm --read-only worker:cpu python -m handler --test_input ...`."""
    command = ["python", "-m", "handler", "--test_input", '{"input": {"text": "hello"}}']
    with Container(image, {}, tmp_path / "log", command) as container:
        assert container.wait(60) == 0, container.output
    assert "'embedding': [" in container.output


def test_nothing_can_be_written_not_even_by_root(image: Image, tmp_path: Path):
    """So that the test above means something."""
    script = "import os; print(os.getuid()); open('/app/x', 'w')"
    for user in ("10001:10001", "0:0"):
        with Container(image, {}, tmp_path / "log", ["python", "-u", "-c", script], user) as container:
            assert container.wait() == 1
        assert container.output.startswith(user.partition(":")[0])
        assert "Read-only file system" in container.output


def test_the_health_check_fails_before_the_worker_is_ready(image: Image, tmp_path: Path):
    with Container(image, {}, tmp_path / "log", ["python", "-c", "import time; time.sleep(60)"]) as container:
        main = container.main
        assert container.healthcheck() == 1
    assert not main.is_running()  # what a failed test, or this one, leaves behind would go on asking for jobs


@pytest.mark.parametrize("after_s", [0, 0.1, 0.3])
def test_a_worker_that_is_stopped_while_it_starts_stops(image: Image, tmp_path: Path, after_s: float):
    """Process 1 has no default handlers: a signal that it does not handle is lost."""
    with EmulatorThread() as emulator, Container(image, emulator.worker_env(), tmp_path / "log") as container:
        # The engine's process: before it is there, Python itself starts. Earlier children are the shell's that mounts.
        while container.main.cmdline()[:1] != ["python"] or not container.main.children():
            time.sleep(0.005)
        time.sleep(after_s)
        assert container.stop() == 0, container.output
    assert "Traceback" not in container.output


def test_a_worker_that_cannot_start_says_why(image: Image, tmp_path: Path):
    with EmulatorThread() as emulator:
        env = {**emulator.worker_env(), "BUNDLE": "/app/nowhere"}
        with Container(image, env, tmp_path / "log") as container:
            assert container.wait() == 1
    assert "cannot start: /app/nowhere is not a bundle" in container.output


def test_building_again_gives_the_same_layers(image: Image, buildah: Buildah, context: Path):
    """Labels are no layer: with `make image`'s arguments they tell the bundle, without any they say where to look."""
    again = buildah.build(context, "localhost/worker:again", "--no-cache")
    assert again.layers == image.layers
    names = [f"worker-tensorrt.{name}" for name in ("model", "revision", "bundle.sha256")]
    assert [image.config["Labels"][name] for name in names] == ["toy", REVISION, open_bundle(context / "bundle").sha256]
    assert {again.config["Labels"][name].partition("/")[0] for name in names} == {"see "}


def test_a_change_of_the_handler_rebuilds_no_other_layer(image: Image, buildah: Buildah, context: Path, tmp_path: Path):
    changed = tmp_path / "changed"
    shutil.copytree(context, changed, ignore=shutil.ignore_patterns(".git"))
    log = changed / "handler" / "log.py"
    log.write_text(f"{log.read_text()}\n# changed\n")
    bundle = open_bundle(context / "bundle")
    arguments = [f"MODEL={bundle.manifest.model}", f"REVISION={REVISION}", f"BUNDLE_SHA256={bundle.sha256}"]
    other = buildah.build(changed, "localhost/worker:changed", arguments=arguments)
    assert other.layers[:-1] == image.layers[:-1]
    assert other.layers[-1] != image.layers[-1]
    assert "Prepared" not in other.log, "packages were installed again"
    assert "Prepared" in image.log


def test_no_secret_cache_leftover_or_test_is_inside(image: Image, buildah: Buildah, context: Path):
    files = list(added(image, buildah.base))
    assert len(files) > 1000
    (named,) = re.findall(r"for name in (.*); do", (context / "Dockerfile").read_text())
    without_tests = [Path(SITE, name) for name in named.split()]  # others of a fork's own may import theirs
    tests = [path for path in files if "tests" in path.parts or path.name == "conftest.py"]
    assert [path for path in tests if any(path.is_relative_to(package) for package in without_tests)] == []
    assert [path for path in tests if not path.is_relative_to(SITE)] == []
    wrong = [
        path
        for path in files
        if {".git", ".cache", "pip", "setuptools", "requirements"} & set(path.parts)
        or path.is_relative_to("app/export")
        or path.name in {".env", "pip.conf", "key.pem", ".netrc", "build_env", "Dockerfile"}
        or path.suffix in {".whl", ".deb"}
    ]
    assert wrong == []
    # buildah's own mount points lie in etc.
    others = {path for path in files if path.parts[0] not in {"app", "opt"} and not is_of_library(path)}
    assert others <= {Path("etc/hosts"), Path("etc/resolv.conf")}
    kept = [path for path in files if MARKER_SECRET.encode() in (image.root / path).read_bytes()]
    assert kept == []
    assert MARKER_SECRET not in json.dumps(image.config)
    assert shutil.which("gcc", path=str(image.root / "usr/bin")) is None
    absent = {"torch", "transformers", "onnx", "optimum", "nvidia", "tensorrt", "pycuda", "sympy"}
    assert absent & {path.name for path in (image.root / SITE).iterdir()} == set()


def test_everything_is_readable_and_owned_by_root(image: Image):
    for path in (image.root / "app").rglob("*"):
        status = path.stat()
        assert (status.st_uid, status.st_mode & 0o044) == (0, 0o044), path


def test_bytecode_is_there_for_every_module_and_needs_no_check(image: Image):
    """Flags of a .pyc (PEP 552): 0b01 is hash-based and unchecked."""
    modules = [path for top in ("app", SITE) for path in (image.root / top).rglob("*.py")]
    compiled = {
        path.parent.parent / f"{path.name.partition('.')[0]}.py": path for path in image.root.rglob("*-311.pyc")
    }
    lacking = [str(path) for path in modules if path not in compiled and "python2" not in path.name]
    assert lacking == []
    assert {compiled[path].read_bytes()[4:8] for path in modules} == {b"\x01\0\0\0"}


def test_nothing_that_a_worker_imports_is_compiled_again(image: Image, tmp_path: Path):
    """`python -v` names where the code of each module came from; a start could not keep what it compiles."""
    modules = "handler.front, engine.backends.onnxruntime, engine.tasks.feature_extraction, aiohttp, runpod"
    with Container(image, {}, tmp_path / "log", ["python", "-v", "-c", f"import {modules}"]) as container:
        assert container.wait(60) == 0, container.output
    came_from = re.findall(r"^# code object from '?([^'\n]+)", container.output, re.MULTILINE)
    assert len(came_from) > 500
    assert [path for path in came_from if not path.endswith(".pyc")] == []


def test_the_size_is_within_the_budget(image: Image, buildah: Buildah, capsys: pytest.CaptureFixture[str]):
    """Python counts, though this base brings it: another base does not."""
    sizes: Counter[str] = Counter()
    for path in added(image, buildah.base):
        if not path.is_relative_to("app/bundle"):
            sizes[part_of(path)] += (image.root / path).lstat().st_size
    python = [buildah.base / "usr/bin/python3.11", *(buildah.base / LIBRARY).rglob("*")]
    sizes[PYTHON] += sum(path.lstat().st_size for path in python if path.is_file())
    with capsys.disabled():
        print(f"\n\n{size_table(sizes)}\n")
    assert sum(sizes.values()) <= BUDGET_MB * 1e6


def part_of(path: Path) -> str:
    """The row of the size table: a large package, or what it belongs to."""
    if is_of_library(path):
        return PYTHON
    if not path.is_relative_to(SITE):
        return "engine, handler, SBOM" if path.parts[0] == "app" else "other files"
    top = path.relative_to(SITE).parts[0]
    return next((row for row, names in PARTS.items() if top in names), "other packages (most of the SDK)")


def size_table(sizes: Counter[str]) -> str:
    rows = [f"| {name} | {size / 1e6:.1f} |" for name, size in sizes.most_common()]
    return "\n".join(["| what | MB |", "| --- | --- |", *rows, f"| all | {sum(sizes.values()) / 1e6:.0f} |"])


def test_the_bill_of_materials_names_what_is_installed(image: Image):
    bill = json.loads((image.root / "app/sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {
        (re.sub("[-_.]+", "-", component["name"].lower()), component["version"]) for component in bill["components"]
    }
    pins = dict(re.findall(r"^([\w.-]+)==([^ ]+)", Path("requirements/cpu.txt").read_text(), re.MULTILINE))
    assert {("runpod", "1.12.0"), ("onnxruntime", "1.18.1")} <= listed
    assert {name for name, _ in listed} == {name.lower() for name in pins} - {"sympy", "mpmath"}
    assert listed <= {(name.lower(), version) for name, version in pins.items()}


def test_the_bill_of_materials_is_valid(image: Image):
    """By CycloneDX's own schema."""
    code = """
import sys
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

sys.exit(JsonStrictValidator(SchemaVersion.V1_6).validate_str(open(sys.argv[1]).read()))
"""
    uv = str(Path(sys.executable).with_name("uv"))
    command = [uv, "run", "--no-project", "--with", "cyclonedx-python-lib[json-validation]", "python", "-c", code]
    done = subprocess.run([*command, str(image.root / "app/sbom.json")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_bundle_inside_is_the_one_of_the_context(image: Image, context: Path):
    inside = open_bundle(image.root / "app/bundle")
    inside.verify()
    assert inside.sha256 == hashlib.sha256((context / "bundle/manifest.json").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        (f"BUNDLE_SHA256={'0' * 64}", "the bundle is not the one that BUNDLE_SHA256 names"),
        ("MODEL=org/other", "bundle/ is not of org/other"),
    ],
)
def test_a_label_that_would_lie_stops_the_build(buildah: Buildah, context: Path, argument: str, sentence: str):
    done = buildah.try_build(context, "localhost/worker:lie", "--target", "export", arguments=[argument])
    assert done.returncode != 0
    assert sentence in done.stdout + done.stderr
