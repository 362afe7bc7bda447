"""What RunPod's Hub and CI read: .runpod/ and .github/workflows/."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from engine.bundle import open_bundle
from engine.config import Settings
from engine.tasks import load_task
from tests import hub_schema
from tests.bundles import write_small_bundle
from tests.checkouts import copy_checkout
from tests.exports import exported_small
from tests.hub_schema import TURING_TO_HOPPER, Hub, unserved

HUB = json.loads(Path(".runpod/hub.json").read_text())
TESTS = json.loads(Path(".runpod/tests.json").read_text())
WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(Path(".github/workflows").glob("*.yml"))}
VARIABLES = {item.metadata["env"] for item in fields(Settings)}
IN_THE_IMAGE = ("feature-extraction", "bert")
"""Task and architecture of the model there, as benchmarks/zoo has them, none without one: a fork says its own."""
TASK_CONFIG = {"dimension": 384}
"""What the jobs need of the task_config in that model's manifest.json, where the small one's is another."""
VERSIONS = ("2.0.0", "1.10.0", "1.1.0")
SDK_VARIABLES = {"RUNPOD_LOG_LEVEL", "RUNPOD_PING_INTERVAL"}
ON_CPU = {"runsOn": "CPU", "cpuFlavor": "cpu3c", "containerDiskInGb": 20}
ON_GPU = {
    "runsOn": "GPU",
    "containerDiskInGb": 20,
    "gpuCount": 1,
    "gpuIds": "ADA_24",
    "allowedCudaVersions": ["12.0", "11.8"],
}


def test_the_hub_file_has_the_fields_of_the_guide():
    assert Hub.model_validate(HUB).config.presets


def test_the_tests_file_has_the_fields_of_the_guide():
    hub_schema.Tests.model_validate(TESTS)


@pytest.mark.parametrize(
    "change",
    [
        {"type": "worker"},
        {"category": "text"},
        {"titel": "x"},
        {"config": {**HUB["config"], "gpuCount": "1"}},
        {"title": ""},
        {"config": ON_GPU | {"runsOn": "CPU"}},
        {"config": ON_GPU | {"cpuFlavor": "cpu3c"}},
        {"config": {name: value for name, value in ON_GPU.items() if name != "gpuIds"}},
        {"config": ON_GPU | {"endpointType": "QUEUE"}},
        {"config": ON_GPU | {"env": [{"key": "BUNDLE"}]}},
    ],
)
def test_the_schema_refuses_what_the_guide_does_not_know(change: dict[str, Any]):
    with pytest.raises(ValidationError):
        Hub.model_validate({**HUB, **change})


@pytest.mark.parametrize(
    "config",
    [
        ON_CPU,
        ON_CPU | {"endpointType": "LB"},
        ON_GPU | {"endpointType": "LB"},
        ON_GPU | {"env": [{"key": "WORKER_LOOP", "value": "http"}]},
        {name: value for name, value in ON_GPU.items() if name != "allowedCudaVersions"},
        ON_GPU | {"gpuIds": "ADA_24,AMPERE_24,-NVIDIA L4"},
    ],
)
def test_a_fork_may_list_what_the_guide_knows(config: dict[str, Any]):
    """https://docs.runpod.io/hub/publishing-guide."""
    Hub.model_validate({**HUB, "config": config})
    given = {"env": TESTS["config"].get("env", [])}
    machine = {"cpuFlavor": "cpu3c"} if "cpuFlavor" in config else {"gpuTypeId": "NVIDIA L4", "gpuCount": 1}
    hub_schema.Tests.model_validate({**TESTS, "config": machine | given})


def test_the_gpus_are_those_that_cuda_11_8_serves():
    """A listing may be one of CPUs."""
    assert unserved(HUB["config"].get("gpuIds", "ADA_24")) == []
    assert TURING_TO_HOPPER.fullmatch(TESTS["config"].get("gpuTypeId", "NVIDIA L4"))


def test_a_gpu_that_a_pool_goes_without_may_be_any():
    assert unserved("ADA_24,AMPERE_24,-NVIDIA L4") == unserved("NVIDIA RTX A4000, -NVIDIA B200") == []
    assert unserved("ADA_24,ADA_32_PRO,NVIDIA B200") == ["ADA_32_PRO", "NVIDIA B200"]


def test_hosts_of_newer_drivers_are_taken():
    """The versions are a list of what a host may have, and every driver since runs CUDA 11.8."""
    newer = [f"{major}.{minor}" for major, last in ((13, 3), (12, 9)) for minor in range(last, -1, -1)]
    for config in (HUB["config"], TESTS["config"]):
        assert config.get("allowedCudaVersions") in ([*newer, "11.8"], None)


def test_actions_are_of_a_node_that_github_has():
    first_of_node_24 = {
        "actions/checkout": 5,
        "actions/download-artifact": 7,
        "actions/setup-python": 6,
        "actions/upload-artifact": 6,
        "docker/login-action": 4,
    }
    for workflow in WORKFLOWS.values():
        for step in (step for job in workflow["jobs"].values() for step in job.get("steps", []) if "uses" in step):
            name, _, version = step["uses"].partition("@v")  # a commit has no version and is as it was chosen
            assert not version or int(version.partition(".")[0]) >= first_of_node_24.get(name, 0), step


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 5090", "NVIDIA B200", "NVIDIA RTX PRO 6000 Blackwell", "Tesla V100-PCIE-16GB"]
)
def test_other_gpus_would_be_noticed(name: str):
    assert not TURING_TO_HOPPER.fullmatch(name)


def defaults_of(config: dict[str, Any]) -> dict[str, str]:
    """The variables of a listing, as a worker gets them where nobody fills in anything."""
    values = {entry["key"]: entry.get("input", {}).get("default", entry.get("value")) for entry in config["env"]}
    return {name: str("" if value is None else value) for name, value in values.items()}


@pytest.mark.parametrize("more", [[], [{"key": "WORKER_LOOP", "value": "http"}]], ids=["", "static"])
def test_every_variable_is_one_of_ours_and_every_default_is_allowed(more: list[dict[str, str]]):
    config = {"env": [], "presets": [], **HUB["config"]}
    entries = defaults_of({"env": [*config["env"], *more]})
    assert set(entries) <= VARIABLES | SDK_VARIABLES
    Settings.from_environ(entries)
    for preset in config["presets"]:
        assert set(preset["defaults"]) <= set(entries)
        Settings.from_environ({name: str(value) for name, value in preset["defaults"].items()})
    assert {entry["key"] for entry in TESTS["config"].get("env", [])} <= VARIABLES | SDK_VARIABLES


def test_every_test_is_a_job_that_the_worker_takes(tmp_path: Path):
    """Of the task in the image, on a small model like the one there."""
    bundle = open_bundle(exported_small(*IN_THE_IMAGE, tmp_path))
    config = {**bundle.manifest.task_config, **TASK_CONFIG}
    task = load_task(replace(bundle, manifest=replace(bundle.manifest, task_config=config)))
    for test in TESTS["tests"]:
        if test["input"] != {"health": True}:
            task.preprocess(task.parse(test["input"]))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job.get("steps", [])]


def test_the_workflows_are_there_and_parse():
    """A fork may have others, or none that run at night."""
    assert {"test", "image", "release"} <= set(WORKFLOWS)
    for workflow in WORKFLOWS.values():
        assert workflow["name"]
        assert workflow[True], "yaml reads the key `on` as true"
        for job in workflow["jobs"].values():
            assert "uses" in job or (job["runs-on"] and job["timeout-minutes"] and job["steps"])


def named(tmp_path: Path, **environ: str) -> str:
    """What the workflow calls the image, with these variables and the inputs' defaults."""
    workflow = WORKFLOWS["image"]
    (step,) = [step for step in steps(workflow) if "GITHUB_ENV" in step.get("run", "")]
    assert workflow["env"]["TAG"] == "${{ inputs.tag }}"
    tag = workflow[True]["workflow_dispatch"]["inputs"]["tag"].get("default", "")
    given = {"GITHUB_REPOSITORY": "Some-Org/Worker", "GITHUB_SHA": "0123456789abcdef" * 2, "GITHUB_RUN_NUMBER": "7"}
    given |= {"GITHUB_RUN_ATTEMPT": "1"}
    file = tmp_path / "env"
    file.write_text("")
    subprocess.run(
        ["bash", "-c", step["run"]], env={**given, "TAG": tag, "GITHUB_ENV": str(file), **environ}, check=True
    )
    return file.read_text()


def test_the_image_has_a_name_that_registries_take(tmp_path: Path):
    """Owners and repositories on GitHub may have capitals."""
    assert named(tmp_path, TAG="E5") == "IMAGE=ghcr.io/some-org/worker:E5\n"


def test_every_image_has_a_tag_of_its_own(tmp_path: Path):
    """Workers may go on with the image that was cached under a tag. One commit makes images of several models."""
    assert named(tmp_path) == "IMAGE=ghcr.io/some-org/worker:0123456789ab-7-1\n"
    others = ({"GITHUB_RUN_NUMBER": "8"}, {"GITHUB_RUN_ATTEMPT": "2"}, {"GITHUB_SHA": "f" * 40})
    assert len({named(tmp_path, **other) for other in ({}, *others)}) == 4


def test_a_bundle_on_its_way_to_the_image_is_not_kept_for_months():
    """Whoever may read the repository can download it, and it may be of a gated model."""
    uploads = [step["with"] for step in steps(WORKFLOWS["image"]) if "/upload-artifact@" in step.get("uses", "")]
    assert [upload["path"] for upload in uploads] == ["bundle"] * 3
    assert [upload.get("retention-days") for upload in uploads] == [1] * 3


def test_plans_that_were_paid_are_kept_where_a_later_gpu_is_not_free():
    """The command then ends with an error, and the bundle has those that had come."""
    job = WORKFLOWS["image"]["jobs"]["plans-on-runpod"]
    (upload,) = [step for step in job["steps"] if "/upload-artifact@" in step.get("uses", "")]
    assert upload["if"] == "${{ !cancelled() }}"


@pytest.mark.parametrize("version", VERSIONS)
def test_a_release_has_all_notes_of_its_version(tmp_path: Path, version: str):
    """The first section, one in between and the last one."""
    (step,) = [step for step in steps(WORKFLOWS["release"]) if step.get("name") == "notes of this version"]
    sections = [f"## [{one}] - 2025-01-01\n\n### Added\n\n- first of {one}\n- last of {one}\n" for one in VERSIONS]
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n" + "\n".join(sections))
    environ = {"GITHUB_REF_NAME": f"v{version}", "RUNNER_TEMP": str(tmp_path)}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environ, check=True)
    notes = (tmp_path / "notes.md").read_text()
    assert notes.strip() == f"### Added\n\n- first of {version}\n- last of {version}"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_release_that_was_made_in_the_browser_stays(tmp_path: Path, is_there: bool):
    """Its tag is what starts the workflow, which would make another one of the same name."""
    (step,) = [step for step in steps(WORKFLOWS["release"]) if "gh release" in step.get("run", "")]
    gh = tmp_path / "gh"
    gh.write_text(f'#!/bin/sh\necho "$1 $2 $3" >> asked\n[ $2 = create ] {"||" if is_there else "&&"} exit 0\nexit 1\n')
    gh.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    environ = {"PATH": path, "GITHUB_REF_NAME": "v1.2.3", "RUNNER_TEMP": str(tmp_path)}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=tmp_path, env=environ, check=True)
    created = [] if is_there else ["release create v1.2.3"]
    assert (tmp_path / "asked").read_text().splitlines() == ["release view v1.2.3", *created]


def exported(folder: Path, precision: str, dockerfile: str) -> list[str]:
    """The words of the command that the workflow exports with; none where it does not."""
    (step,) = [step for step in steps(WORKFLOWS["image"]) if '-m export "$MODEL"' in step.get("run", "")]
    assert step["env"]["PRECISION"] == "${{ inputs.precision }}"
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\" > exported\n")
    python.chmod(0o755)
    (folder / "exported").write_text("")
    (folder / "Dockerfile").write_text(dockerfile)
    environ = {"PATH": os.environ["PATH"], "MODEL": "org/name", "TASK": "", "REVISION": "main", "PRECISION": precision}
    subprocess.run(["bash", "-e", "-c", step["run"]], cwd=folder, env=environ, check=True)
    return (folder / "exported").read_text().split()


IN_DOCKERFILE = WORKFLOWS["image"][True]["workflow_dispatch"]["inputs"]["precision"]["default"]


def test_the_dockerfile_has_a_precision_that_the_workflow_finds(tmp_path: Path):
    """Whatever a fork has put there."""
    dockerfile = Path("Dockerfile").read_text()
    (value,) = re.findall(r"^ARG PRECISION=[\"']?([^\s\"']+)", dockerfile, re.MULTILINE)
    words = exported(tmp_path, IN_DOCKERFILE, dockerfile)
    assert words[words.index("--precision") + 1] == value


def test_a_committed_bundle_is_not_exported_again(tmp_path: Path):
    """docs/without-a-model.md says to commit it; an export into a folder that is there would be refused."""
    words = ["-m", "export", "org/name", "--revision", "main", "--precision", "fp32", "--out", "bundle"]
    dockerfile = "FROM tools AS export\nARG PRECISION=fp32\n"
    assert exported(tmp_path, IN_DOCKERFILE, dockerfile) == words
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle/manifest.json").write_text("{}")
    assert exported(tmp_path, IN_DOCKERFILE, dockerfile) == []


@pytest.mark.parametrize(
    ("asked", "argument", "precision"),
    [
        (IN_DOCKERFILE, "ARG PRECISION=int8", "int8"),
        (IN_DOCKERFILE, 'ARG PRECISION="cpu=int8,tensorrt=fp16" ', "cpu=int8,tensorrt=fp16"),
        (IN_DOCKERFILE, "ARG PRECISION='auto'  # the ladder's", "auto"),
        ("", "ARG PRECISION=int8", "int8"),
        (IN_DOCKERFILE, "ARG PRECISION=", ""),
        ("fp16", "ARG PRECISION=int8", "fp16"),
        ("tensorrt=bf16", "", "tensorrt=bf16"),
        ("", "", ""),
    ],
)
def test_the_workflow_exports_in_the_precision_of_a_forks_dockerfile(
    tmp_path: Path, asked: str, argument: str, precision: str
):
    words = exported(tmp_path, asked, f"FROM tools AS export\nARG REVISION=main\n{argument}\nRUN it\n")
    given = ["--precision", precision] if precision else []
    assert words == ["-m", "export", "org/name", "--revision", "main", *given, "--out", "bundle"]


def build_step(**inputs: str) -> tuple[str, dict[str, str]]:
    """What the step that makes the image runs, and its variables, with these inputs of the workflow."""
    workflow = WORKFLOWS["image"]
    (job,) = [
        job for job in workflow["jobs"].values() if any("make image" in one.get("run", "") for one in job["steps"])
    ]
    (step,) = [step for step in job["steps"] if "make image" in step.get("run", "")]
    declared = workflow[True]["workflow_dispatch"]["inputs"]
    assert set(inputs) <= set(declared)
    values = {name: inputs.get(name, about.get("default", "")) for name, about in declared.items()}
    environ = {**workflow.get("env", {}), **job.get("env", {}), **step.get("env", {})}
    return step["run"], {
        name: re.sub(r"\$\{\{ inputs\.(\w+) \}\}", lambda found: str(values[found[1]]), value)
        for name, value in environ.items()
    }


def made(folder: Path, **inputs: str) -> list[str]:
    """The words of the docker command that the workflow runs around folder/bundle."""
    shutil.copy("Makefile", folder)
    run, environ = build_step(**inputs)
    given = {"PATH": os.environ["PATH"], "DOCKER": "echo", "PYTHON": sys.executable, "IMAGE": "ghcr.io/org/worker:1"}
    command = ["bash", "-e", "-c", run]
    done = subprocess.run(command, cwd=folder, env={**given, **environ}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()


def test_the_image_is_named_after_the_bundle_that_was_committed(tmp_path: Path):
    """Not after the input `model`, which has a default: the Dockerfile would stop the build."""
    write_small_bundle(tmp_path / "bundle", model="api-proxy")
    assert [word for word in made(tmp_path) if word.startswith("MODEL=")] == ["MODEL=api-proxy"]


def test_what_a_fork_changed_in_its_dockerfile_holds_unless_an_input_says_otherwise(tmp_path: Path):
    """The inputs have defaults, which must not be build arguments."""
    write_small_bundle(tmp_path / "bundle")
    names = re.compile("ENGINE_SET|WITH_BUILDER")
    assert not [word for word in made(tmp_path) if names.match(word)]
    asked = made(tmp_path, engine_set="tensorrt", with_builder="1")
    assert [word for word in asked if names.match(word)] == ["ENGINE_SET=tensorrt", "WITH_BUILDER=1"]


def test_no_image_is_pushed_without_the_plans_that_were_asked_for():
    """A job that ran into its timeout is neither a success nor a failure to the next one."""
    job = WORKFLOWS["image"]["jobs"]["build-and-push"]
    assert set(job["needs"]) == {"export", "plans-here", "plans-on-runpod"}
    for result in ("failure", "cancelled"):
        assert f"!contains(needs.*.result, '{result}')" in job["if"]


def told(folder: Path, script: str, registry: str = "") -> int:
    """Run the step that rents pods, with `script` in place of Python; what GitHub signals when the job is cancelled."""
    (step,) = [step for step in steps(WORKFLOWS["image"]) if "--on-runpod" in step.get("run", "")]
    assert step["env"]["REGISTRY"] == "${{ vars.RUNPOD_REGISTRY }}"
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (folder / "step.sh").write_text(step["run"] + "\n")  # a file, as GitHub makes one: bash -c may exec by itself
    environ = {"PATH": os.environ["PATH"], "GPU_TYPES": "NVIDIA L4", "BUILDER": "image", "REGISTRY": registry}
    with subprocess.Popen(["bash", "-e", "step.sh"], cwd=folder, env=environ) as shell:
        assert shell.wait() == 0
    return shell.pid


@pytest.mark.parametrize(("registry", "given"), [("", []), ("cr 1", ["--registry", "cr 1"])])
def test_pods_are_told_what_pulls_a_private_image(tmp_path: Path, registry: str, given: list[str]):
    """The credential is a variable of the repository, as keys are its secrets."""
    told(tmp_path, "printf '%s\\n' \"$@\" > told", registry)
    words = (tmp_path / "told").read_text().splitlines()
    assert words[3:8] == ["bundle", "--on-runpod", "NVIDIA L4", "--image", "image"]
    assert words[8:-4] == given


def test_a_workflow_that_is_cancelled_signals_what_ends_its_pods(tmp_path: Path):
    """Not a shell that waits for it: both would be killed a moment later, and the pod stay."""
    assert told(tmp_path, "echo $$ > pid") == int((tmp_path / "pid").read_text())


def test_the_image_that_is_tested_has_a_bundle_of_the_tests_own(tmp_path: Path):
    """Whatever bundle/ is committed, and without git."""
    for name in (
        ".gitignore",
        "bundle/manifest.json",
        "build/x",
        ".venv/y",
        ".git/config",
        "model.onnx",
        "engine/a.py",
    ):
        (tmp_path / "fork" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fork" / name).touch()
    shutil.copy(".gitignore", tmp_path / "fork")
    copied = copy_checkout(tmp_path / "context", tmp_path / "fork")
    assert {str(path.relative_to(copied)) for path in copied.rglob("*")} == {".gitignore", "engine", "engine/a.py"}
    assert (copy_checkout(tmp_path / "context") / "Dockerfile").exists()
    write_small_bundle(tmp_path / "context/bundle")


def test_every_action_is_pinned_to_a_full_version_or_a_commit():
    used = [step["uses"] for workflow in WORKFLOWS.values() for step in steps(workflow) if "uses" in step]
    assert used
    assert [action for action in used if not re.fullmatch(r"[\w./-]+@(v\d+\.\d+\.\d+|[0-9a-f]{40})", action)] == []


def test_no_workflow_may_do_more_than_it_needs():
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"], name
        assert "write-all" not in str(workflow["permissions"])


def test_every_make_target_and_file_of_a_step_exists():
    targets = set(re.findall(r"^([a-z-]+):", Path("Makefile").read_text(), re.MULTILINE))
    runs = [step["run"] for workflow in WORKFLOWS.values() for step in steps(workflow) if "run" in step]
    used = {target for run in runs for target in re.findall(r"\bmake ([a-z-]+)", run)}
    assert {"test", "test-image", "image"} <= used
    assert used <= targets
    for run in runs:
        for path in re.findall(r"(?:bash|sh|-f|--file|-r) ((?:\.ci|requirements)/[\w./-]+)", run):
            assert Path(path).is_file(), path
        for module in re.findall(r"python -m (\w+)", run):
            assert not Path(module).is_dir() or Path(module, "__main__.py").is_file(), module


def test_inputs_reach_a_shell_only_as_variables():
    """An expression inside a script is pasted into it before the shell reads it."""
    for workflow in WORKFLOWS.values():
        for step in steps(workflow):
            assert "${{" not in step.get("run", ""), step


def test_every_expression_names_an_input_that_is_declared():
    for name, workflow in WORKFLOWS.items():
        declared = set()
        for trigger in ("workflow_dispatch", "workflow_call"):
            declared |= set(((workflow[True] or {}).get(trigger) or {}).get("inputs") or {})
        used = set(re.findall(r"\binputs\.([\w-]+)", json.dumps(workflow, default=str)))
        assert used <= declared, name


def test_the_hubs_handler_starts_the_worker(small_bundle: Path):
    command = [sys.executable, ".runpod/handler.py", "--test_input", '{"input": {"text": "the fox"}}']
    done = subprocess.run(command, env={**os.environ, "BUNDLE": str(small_bundle)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "'embedding': [" in done.stdout
