"""docs/deploy.md: its commands are run, or are on the list of those that need what a test machine lacks."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from engine.config import Settings
from tests.pages import page
from tests.runpod_api import KEY, EmulatedApi

DOC = page("docs/deploy.md")
COMMANDS = [
    line.strip()
    for line in re.findall(r"^ {4,7}(\S.*)$", DOC.replace("\\\n", " "), re.MULTILINE)
    if re.match(r"(make|docker|python|\.venv/bin/python|curl|gh|cut|tar|export) ", line)
]
NOT_RUN = {
    "curl": "needs an endpoint on RunPod",
    "make setup": "is what made the environment of this test",
    ".venv/bin/python -m export sentence-transformers": "the README has it too, and its test runs it",
    "docker": "needs a docker daemon",
    "gh": "needs a repository on GitHub",
    "export RUNPOD_API_KEY": "is set below",
}
PYTHON = shlex.quote(sys.executable)
RUN = ["make image", "cut", "tar", "python -m export"]


def commands(start: str) -> list[str]:
    found = [command for command in COMMANDS if command.startswith(start)]
    assert found, start
    return found


def shell(command: str, folder: Path, **env: str) -> str:
    """Run a command of the page in `folder`; its output."""
    command = re.sub(r"^python ", f"{PYTHON} ", command)
    # A make that runs these tests tells the one in the command that it is its child, which then prints more.
    outside = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    environ = {**outside, "PYTHONPATH": str(Path.cwd()), **env}
    done = subprocess.run(command, shell=True, cwd=folder, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def folder(small_bundle: Path) -> Path:
    """A folder with a bundle/ in it."""
    shutil.copytree(small_bundle, small_bundle.parent / "bundle")
    return small_bundle.parent


def test_every_command_is_run_or_told_why_not():
    for command in COMMANDS:
        starts = [start for start in (*NOT_RUN, *RUN) if command.startswith(start)]
        assert starts, command


def the(start: str) -> str:
    (command,) = commands(start)
    return command


def test_hash_tar_and_signature(folder: Path):
    digest = shell(the("cut"), folder).strip()
    shell(the("tar"), folder)
    assert (folder / "bundle.tar").stat().st_size > 0
    key = shell(the("python -m export keygen"), folder).strip().removeprefix("BUNDLE_PUBLIC_KEY=")
    shell(the("python -m export sign"), folder)
    output = shell(the("python -m export verify").replace("KEY", key), folder)
    assert f"sha256    {digest}" in output
    assert f"signed by {key}" in output


def test_the_dry_run_prints_what_the_page_shows(folder: Path):
    (command,) = [c for c in commands("python -m export plan bundle --on-runpod 'NVIDIA L4,NVIDIA A40'") if "dry" in c]
    with EmulatedApi() as api:
        printed = shell(command, folder, RUNPOD_API_BASE_URL=api.url, RUNPOD_API_KEY=KEY)
        assert api.created == []
    shown = "".join(f"    {line}\n" for line in printed.splitlines())
    assert shown in DOC


def test_make_image_runs_what_the_page_shows(folder: Path):
    """With `echo` in docker's place; the real build is `make test-image`'s."""
    shutil.copy("Makefile", folder)
    by_hand = the("make image IMAGE=registry.example/worker:1")
    printed = shell(f"{by_hand} DOCKER=echo PYTHON={PYTHON}", folder).splitlines()[-1]
    (shown,) = [command for command in commands("docker build") if "BUNDLE_SHA256" in command]
    digest = (folder / "bundle/manifest.sha256").read_text()[:64]
    for value, found in {"sentence-transformers/all-MiniLM-L6-v2": "toy", "REVISION=...": "REVISION="}.items():
        shown = shown.replace(value, found)
    wanted = shown.replace("BUNDLE_SHA256=...", f"BUNDLE_SHA256={digest}")
    assert printed.split() == wanted.split()[1:]


def test_make_image_changes_nothing_of_the_dockerfile_that_nobody_asked_for(folder: Path):
    shutil.copy("Makefile", folder)
    for given in ([], ["ENGINE_SET=cpu"], ["ENGINE_SET=cpu", "WITH_BUILDER=1"]):
        printed = shell(shlex.join(["make", "image", "DOCKER=echo", f"PYTHON={sys.executable}", *given]), folder)
        assert re.findall(r"--build-arg ((?:ENGINE_SET|WITH_BUILDER)=\S*)", printed.splitlines()[-1]) == given


def test_every_variable_of_the_page_is_in_the_readme_or_the_dockerfile():
    known = {item.metadata["env"] for item in fields(Settings)} | set(
        re.findall(r"\bARG (\w+)", Path("Dockerfile").read_text())
    )
    ours = set(re.findall(r"`([A-Z][A-Z_]+[A-Z0-9]*)(?:=[^`]*)?`", DOC))
    outside = {
        "HF_TOKEN",
        "HF_HUB_CACHE",
        "HF_HOME",
        "RUNPOD_API_KEY",
        "RUNPOD_REGISTRY",
        "BUNDLE_SIGNING_KEY",
        "RUNPOD_LOG_LEVEL",
        "RUNPOD_INIT_TIMEOUT",
        "PIP_INDEX_URL",
        "UV_DEFAULT_INDEX",
        "UV_TORCH_BACKEND",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "NVIDIA_VISIBLE_DEVICES",
        "NVIDIA_DRIVER_CAPABILITIES",
    }
    pools = {name for name in ours if name.startswith(("AMPERE_", "ADA_"))}
    later = {"BUILD_ON_BOOT", "HEALTHCHECK", "NAME"}
    assert ours - outside - pools - later <= known


def test_the_parts_of_the_image_are_those_that_test_image_weighs():
    from tests.image.test_image import BUDGET_MB, PARTS

    section = " ".join(DOC[DOC.index("## What is in the image") : DOC.index("Python is Debian's there")].split())
    for part in PARTS:
        for word in re.findall(r"\w+", part.partition("(")[0]):
            assert word.lower() in section.lower(), part
    assert f"budget is {BUDGET_MB} MB" in section
