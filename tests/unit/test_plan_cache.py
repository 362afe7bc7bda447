"""The boot's side of BUILD_ON_BOOT. The command that builds is replaced by scripts; the real one needs a GPU."""

import argparse
import fcntl
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from shutil import copyfile, copytree

import pytest

from engine import bundle as bundle_format
from engine import probe
from engine.bundle import SIGNATURE, Manifest, open_bundle, write_manifest
from engine.errors import EngineError
from engine.files import turns
from engine.plans import build_plan, late
from engine.plans.build_plan import build
from engine.plans.plan_cache import cached_plans, folder_of, verify
from engine.plans.sidecar import write_sidecar
from engine.probe import Gpu
from export.plans.recipe import add_plan_arguments
from tests.bundles import write_small_bundle
from tests.plans import add_plan, plan
from tests.processes import as_another_user, killed, wait_until_dead

REPOSITORY = Path(__file__).parents[2]
ADDS_A_PLAN = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {repository!r})
    from tests.plans import add_plan
    print("parsing", "a link" if (Path(sys.argv[1]) / "graphs/model/fp32.onnx").is_symlink() else "a copy")
    add_plan(Path(sys.argv[1]), b"built here")
    print("built")
"""


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    path = folder / "build.py"
    path.write_text(textwrap.dedent(script).format(repository=str(REPOSITORY)))
    monkeypatch.setattr(build_plan, "BUILD_COMMAND", (sys.executable, str(path)))


def built(bundle: Path, cache: Path, timeout_s: float = 60, precision: str = "auto") -> list[str]:
    said: list[str] = []
    build(open_bundle(bundle), cache, timeout_s, precision, said.append, lambda: False)
    return said


def test_what_is_built_is_found_by_the_next_boot(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    add_plan(small_bundle, b"for another GPU", compute_capability="8.6")  # which need not be kept again
    before, descriptors = sorted(small_bundle.rglob("*")), set(os.listdir("/proc/self/fd"))
    said = built(small_bundle, tmp_path / "cache")
    assert set(os.listdir("/proc/self/fd")) <= descriptors
    assert "building a plan: parsing a link" in said  # a bundle may hold gigabytes
    assert said[-1].startswith("building a plan: done after ")
    bundle = open_bundle(small_bundle)
    bundle.verify()
    assert sorted(small_bundle.rglob("*")) == before  # it may be read-only
    (found,) = cached_plans(tmp_path / "cache", bundle, "model")
    assert found.path.read_bytes() == b"built here"
    verify(found)
    assert not [path for path in (tmp_path / "cache").rglob(".*") if path.name != ".lock"]


@pytest.mark.parametrize(("precision", "asked"), [("auto", ""), ("fp32", "--precision fp32")])
def test_the_build_is_asked_for_the_precision_that_the_settings_name(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, asked: str
):
    command(monkeypatch, tmp_path, ADDS_A_PLAN + "    print('asked for:', *sys.argv[2:])\n")
    said = built(small_bundle, tmp_path / "cache", precision=precision)
    assert f"building a plan: asked for: {asked}".strip() in said


def test_a_plan_is_built_for_a_bundle_of_a_newer_version(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Which is served as well, though `export plan` would not write its manifest anew."""
    with monkeypatch.context() as newer:
        newer.setattr(bundle_format, "SCHEMA_VERSION", "1.99")
        write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    refuses = "    from export.bundle_folder import refuse_newer\n    refuse_newer(Path(sys.argv[1]))\n"
    command(monkeypatch, tmp_path, ADDS_A_PLAN.replace("    add_plan(", f"{refuses}    add_plan("))
    before = sorted((path, path.read_bytes()) for path in small_bundle.rglob("*") if path.is_file())
    built(small_bundle, tmp_path / "cache")
    assert sorted((path, path.read_bytes()) for path in small_bundle.rglob("*") if path.is_file()) == before
    assert cached_plans(tmp_path / "cache", open_bundle(small_bundle), "model")


def test_a_model_with_other_weights_finds_nothing(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    built(small_bundle, tmp_path / "cache")
    other = write_small_bundle(tmp_path / "other")
    assert cached_plans(tmp_path / "cache", open_bundle(other), "model")  # the same model
    (other / "graphs/model/weights.bin").write_bytes(b"weights")
    add_plan(other)  # brings the manifest up to date
    assert cached_plans(tmp_path / "cache", open_bundle(other), "model") == []


def with_half(bundle: Path, content: bytes) -> Manifest:
    """Its manifest, with a graph in fp16 of these bytes."""
    (bundle / "graphs/model/fp16.onnx").write_bytes(content)
    manifest = open_bundle(bundle).manifest
    described = manifest.graphs["model"]
    onnx = {**described.onnx, "fp16": "graphs/model/fp16.onnx"}
    return replace(manifest, graphs={"model": replace(described, onnx=onnx)})


def with_shape(bundle: Path, *shape: int | str) -> Manifest:
    manifest = open_bundle(bundle).manifest
    described = manifest.graphs["model"]
    inputs = (replace(described.inputs[0], shape=shape), *described.inputs[1:])
    return replace(manifest, graphs={"model": replace(described, inputs=inputs)})


def with_length(bundle: Path, length: int) -> Manifest:
    manifest = open_bundle(bundle).manifest
    return replace(manifest, task_config={**manifest.task_config, "max_length": length})


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (lambda bundle: with_half(bundle, b"half"), lambda bundle: with_half(bundle, b"half, with sums in fp32")),
        (lambda bundle: with_length(bundle, 16), lambda bundle: with_length(bundle, 32)),
        (
            lambda bundle: replace(open_bundle(bundle).manifest, precisions={"tensorrt": "fp16"}),
            lambda bundle: replace(open_bundle(bundle).manifest, precisions={"tensorrt": "fp32"}),
        ),
        (lambda bundle: with_shape(bundle, "batch", 64), lambda bundle: with_shape(bundle, "batch", 32)),
    ],
    ids=["another graph in half precision", "longer rows", "another precision", "other inputs"],
)
def test_a_model_that_was_exported_otherwise_finds_nothing(
    small_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    first: Callable[[Path], Manifest],
    then: Callable[[Path], Manifest],
):
    """And the one before it finds its own again: two versions of an endpoint may share a volume."""
    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    write_manifest(small_bundle, first(small_bundle))
    other = Path(copytree(small_bundle, tmp_path / "other"))
    write_manifest(other, then(other))
    for bundle in (small_bundle, other):
        assert cached_plans(tmp_path / "cache", open_bundle(bundle), "model") == []
        built(bundle, tmp_path / "cache")
    found = [cached_plans(tmp_path / "cache", open_bundle(bundle), "model") for bundle in (small_bundle, other)]
    assert [len(plans) for plans in found] == [1, 1]
    assert found[0] != found[1]


@pytest.mark.parametrize("when", ["before the build", "while it builds"])
def test_no_plan_of_another_bundle_is_kept_as_this_ones(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
):
    """`current` is pointed to the next version, while another worker builds or this one does."""
    link, other = tmp_path / "current", write_small_bundle(tmp_path / "other", revision="next")
    link.symlink_to(small_bundle)
    bundle = open_bundle(link)
    exchange = f"Path({str(link)!r}).unlink()\n    Path({str(link)!r}).symlink_to({str(other)!r})"
    command(monkeypatch, tmp_path, ADDS_A_PLAN + (f"    {exchange}\n" if when == "while it builds" else ""))
    if when == "before the build":
        link.unlink()
        link.symlink_to(other)
    with pytest.raises(EngineError, match=r"current is another one by now, and no plan of it is kept$"):
        build(bundle, tmp_path / "cache", 60, "auto", lambda line: None, lambda: False)
    assert not list((tmp_path / "cache").rglob("*.plan"))


def test_a_plan_without_a_sidecar_is_not_whole(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    built(small_bundle, tmp_path / "cache")
    (found,) = cached_plans(tmp_path / "cache", open_bundle(small_bundle), "model")
    found.path.with_suffix(".json").unlink()
    assert not cached_plans(tmp_path / "cache", open_bundle(small_bundle), "model")
    later = found.path.with_name("sm_90-trt10.13.0-fp16.plan")  # of another kind of GPU, by a worker that is done
    later.write_bytes(b"")
    write_sidecar(plan(compute_capability="9.0"), later.parent)
    assert [one.path for one in cached_plans(tmp_path / "cache", open_bundle(small_bundle), "model")] == [later]


@pytest.mark.parametrize("damage", [b"", b"built hero", b"built here and more"])
def test_a_damaged_plan_is_noticed(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes):
    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    built(small_bundle, tmp_path / "cache")
    (found,) = cached_plans(tmp_path / "cache", open_bundle(small_bundle), "model")
    found.path.write_bytes(damage)
    with pytest.raises(EngineError, match="not the plan that its sidecar describes"):
        verify(found)
    found.path.unlink()
    with pytest.raises(EngineError, match="cannot be read"):
        verify(found)


def test_a_bundle_that_is_named_from_the_working_directory(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As BUNDLE's default is; and the copy has no signature, for it is to be changed."""
    (small_bundle / SIGNATURE).write_text("signed")
    reads = "    (Path(sys.argv[1]) / 'graphs/model/fp32.onnx').read_bytes()\n"
    command(monkeypatch, tmp_path, ADDS_A_PLAN + reads + f"    print((Path(sys.argv[1]) / {SIGNATURE!r}).exists())\n")
    assert "building a plan: False" in built(Path(os.path.relpath(small_bundle)), tmp_path / "cache")


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        (
            r"import sys; sys.stdout.buffer.write(b'error: \xff, no GPU here\n'); sys.exit(2)",
            "ended with code 2: error: \ufffd, no GPU here",
        ),
        ("import os; os.abort()", "ended with code 134: it said nothing"),
        ("pass", "the build added no plan"),
        ("import pathlib, sys; (pathlib.Path(sys.argv[1]) / 'manifest.json').unlink()", "left no bundle"),
    ],
)
def test_a_build_that_fails_says_why(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, sentence: str
):
    command(monkeypatch, tmp_path, script)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(EngineError, match=sentence):
        built(small_bundle, tmp_path / "cache")
    assert set(os.listdir("/proc/self/fd")) <= before  # the worker serves on, with the next best engine


def test_a_build_that_takes_too_long_is_ended_with_all_that_it_started(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And not begun again in the same way, unless what was tried is something else now."""
    script = """
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        open(sys.argv[0] + ".pids", "w").write(f"{{os.getpid()}} {{child.pid}}")
        time.sleep(600)
    """
    command(monkeypatch, tmp_path, script)
    monkeypatch.setattr(build_plan, "_LEAST", 0.0)  # else a machine that is busy might not do
    gpu, version = Gpu("NVIDIA L4", (8, 9)), "10.13.0.35"
    monkeypatch.setattr(probe, "gpu", lambda: gpu)
    monkeypatch.setattr(probe, "tensorrt_version", lambda: version)
    cache, fix = tmp_path / "cache", "raise BUILD_TIMEOUT_S, or build ahead with `python -m export plan`"
    with pytest.raises(EngineError, match=rf"than the \d s that were left of BUILD_TIMEOUT_S=2, and was ended; {fix}$"):
        built(small_bundle, cache, timeout_s=2)
    for pid in (tmp_path / "build.py.pids").read_text().split():
        wait_until_dead(int(pid))

    def again(timeout_s: float = 2, precision: str = "auto", bundle: Path = small_bundle) -> str:
        with pytest.raises(EngineError) as failed:
            built(bundle, cache, timeout_s, precision)
        return str(failed.value)

    tried = "the build ended with code 1: it is tried"
    command(monkeypatch, tmp_path, "raise SystemExit('it is tried')")
    (note,) = cache.rglob("*.late")
    assert again() == tried
    late.note([note], 1, 2)  # fewer profiles are too slow as well
    assert again() == (
        f"an earlier build here had as much time as this one (BUILD_TIMEOUT_S) and was ended; {fix}; to try again as "
        f"it is remove {note}"
    )
    assert again(timeout_s=1).startswith("an earlier build here")
    assert again(timeout_s=20) == tried
    assert again(20, precision="fp32") == tried
    other = write_small_bundle(tmp_path / "other")
    (other / "graphs/model/weights.bin").write_bytes(b"other weights")
    write_manifest(other, open_bundle(other).manifest)
    monkeypatch.setattr(build_plan, "_run", lambda *_: pytest.fail("it is tried", pytrace=False))
    for change in ("graph", "gpu", "version"):
        gpu = Gpu("NVIDIA L40S", (8, 9)) if change == "gpu" else Gpu("NVIDIA L4", (8, 9))
        version = "10.14.1" if change == "version" else "10.13.0.35"
        with pytest.raises(pytest.fail.Exception, match="it is tried"):
            built(other if change == "graph" else small_bundle, cache, timeout_s=2)


def test_the_boot_after_a_build_that_took_too_long_asks_for_fewer_profiles(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked: list[list[str]] = []

    def run(command: list[str], *_: object) -> None:
        asked.append(command[len(build_plan.BUILD_COMMAND) + 1 :])
        raise late.TooLong("too long")

    monkeypatch.setattr(build_plan, "_run", run)
    monkeypatch.setattr(probe, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    monkeypatch.setattr(probe, "tensorrt_version", lambda: "10.13.0.35")
    for timeout_s, ways in ((60, [[], ["--profiles", "length"], None]), (90, [[], ["--profiles", "length"], None])):
        for way in ways:
            before = len(asked)
            with pytest.raises(EngineError, match="too long" if way is not None else "an earlier build here had"):
                built(small_bundle, tmp_path, timeout_s)
            assert asked[before:] == ([] if way is None else [way])
    parser = argparse.ArgumentParser()
    add_plan_arguments(parser, "--precision")
    for options in late.WAYS:
        parser.parse_args(options)


def test_a_build_that_had_a_part_of_its_time_says_that_so_much_is_too_little(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The boot may have fetched a bundle, or waited for another worker. Seconds more or less are the same again."""

    def run(command: list[str], *_: object) -> None:
        tried.append(command[len(build_plan.BUILD_COMMAND) + 1 :])
        raise late.TooLong("too long")

    monkeypatch.setattr(build_plan, "_run", run)
    monkeypatch.setattr(probe, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    monkeypatch.setattr(probe, "tensorrt_version", lambda: "10.13.0.35")
    tried = list[list[str]]()

    def boot_after(spent_s: float) -> list[str] | None:
        before = len(tried)
        with pytest.raises(EngineError, match="too long|had as much time as this one"):
            build(open_bundle(small_bundle), tmp_path, 1000, "auto", lambda _: None, lambda: False, spent_s=spent_s)
        return tried[before] if len(tried) > before else None

    fewer = ["--profiles", "length"]
    assert [boot_after(spent_s) for spent_s in (430, 425, 435)] == [[], fewer, None]
    assert [boot_after(spent_s) for spent_s in (10, 430, 20, 30)] == [[], fewer, fewer, None]


def test_with_hardly_any_time_left_no_build_is_begun(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And one that another worker has built is taken all the same."""
    command(monkeypatch, tmp_path, "raise SystemExit('nobody should build')")
    bundle, cache, said = open_bundle(small_bundle), tmp_path / "cache", list[str]()
    for spent_s, left in ((365, 25), (400, 0)):
        refusal = (
            rf"no plan can be built in the {left} s that are left of BUILD_TIMEOUT_S=390, which counts from the st"
        )
        with pytest.raises(EngineError, match=refusal):
            build(bundle, cache, 390, "auto", said.append, lambda: False, spent_s=spent_s)
        build(bundle, cache, 390, "auto", said.append, lambda: True, spent_s=spent_s)
    assert said == ["another worker has built it meanwhile"] * 2
    assert not list(cache.rglob("*.late"))


def test_who_waited_does_not_repeat_the_build_that_took_too_long(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(turns, "_CHECK_S", 0.01)
    monkeypatch.setattr(probe, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    monkeypatch.setattr(probe, "tensorrt_version", lambda: "10.13.0.35")
    command(monkeypatch, tmp_path, "raise SystemExit('nobody should build')")
    bundle, cache, waits = open_bundle(small_bundle), tmp_path / "cache", threading.Event()
    (note,) = late.notes_of(bundle, cache, "auto")
    note.parent.mkdir(parents=True)
    with ThreadPoolExecutor(1) as pool:
        with open(cache / ".lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            waiting = pool.submit(build, bundle, cache, 60, "auto", lambda _: waits.set(), lambda: False)
            assert waits.wait(20)
            for way in range(len(late.WAYS)):
                late.note([note], way, 60)
        assert str(waiting.exception()).startswith(
            "an earlier build here had as much time as this one (BUILD_TIMEOUT_S)"
        )


BUILDS = """
    import os, sys, time
    from pathlib import Path
    sys.path.insert(0, {repository!r})
    from engine.plans import build_plan
    from engine.bundle import open_bundle
    from handler.processes.fork import end_with, fork
    build_plan.BUILD_COMMAND = (sys.executable, {command!r})
    build_plan._WATCH_S = 0.01
    def serve(end):
        {ends}
        bundle = open_bundle(Path({bundle!r}))
        build_plan.build(bundle, Path({cache!r}), 60, "auto", lambda line: print(line, flush=True), lambda: False)
    _, end = fork(serve)
    while not os.path.exists({command!r} + ".pids"):
        time.sleep(0.01)
    os._exit(0)
"""


@pytest.mark.parametrize("of_two", [True, False])
def test_a_build_ends_with_the_worker_that_it_was_for(small_bundle: Path, tmp_path: Path, of_two: bool):
    """A worker is two processes: when the one that talks to RunPod dies, the one that boots must not build on.

    With the SDK's loop it is one, and whoever started that, such as a shell, may end.
    """
    build_py, ended = tmp_path / "build.py", tmp_path / "ended"
    waits = f"""
    import os, pathlib, time
    pathlib.Path({str(build_py)!r} + ".pids").write_text(str(os.getpid()))
    while not os.path.exists({str(ended)!r}):
        time.sleep(0.01)
    time.sleep(0.1)
    """
    build_py.write_text(textwrap.dedent(waits + ADDS_A_PLAN).format(repository=str(REPOSITORY)))
    script = textwrap.dedent(BUILDS).format(
        repository=str(REPOSITORY),
        command=str(build_py),
        bundle=str(small_bundle),
        cache=str(tmp_path / "cache"),
        ends="end_with(end)" if of_two else "pass",
    )
    command = [sys.executable, "-c", script]
    # Its output is closed by the last of the two.
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.wait(60) == 0
        if of_two:
            wait_until_dead(int(Path(f"{build_py}.pids").read_text()))
        ended.touch()
        assert process.stdout is not None
        said = process.stdout.read()
    assert ("building a plan: done after" in said) is not of_two, said


def test_a_long_build_says_what_it_prints_at_once_and_that_it_is_at_it(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build_plan, "_STILL_AT_IT_S", 0.05)
    monkeypatch.setattr(build_plan, "_WATCH_S", 0.02)
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    said, heard = list[str](), tmp_path / "heard"
    waits = f"import os, time\nprint('begun')\nwhile not os.path.exists({str(heard)!r}):\n    time.sleep(0.01)"
    command(monkeypatch, tmp_path, waits + ADDS_A_PLAN.replace("\n    ", "\n"))

    def say(line: str) -> None:
        said.append(line)
        if re.fullmatch(r"building a plan: \d+ s", line) and "building a plan: begun" in said:
            heard.touch()

    build(open_bundle(small_bundle), tmp_path / "cache", 20, "auto", say, lambda: False)


TIMES = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {repository!r})
    from tests.plans import add_plan
    plans = Path(sys.argv[1]) / "graphs/model/plans"
    add_plan(Path(sys.argv[1]), b"built here")
    file = plans / "timing.cache"
    before = file.read_bytes() if file.exists() else b""
    print("timings:", before.decode() or "none")
    file.unlink(missing_ok=True)
    file.write_bytes(before + b"more ")
"""


def test_the_builders_timings_are_kept_on_the_volume_for_every_model_on_that_gpu(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command(monkeypatch, tmp_path, TIMES)
    monkeypatch.setattr(probe, "tensorrt_version", lambda: "10.13.0.35")
    cache = tmp_path / "cache"

    def timings(bundle: Path, gpu: str = "NVIDIA L4") -> str:
        monkeypatch.setattr(probe, "gpu", lambda: Gpu(gpu, (8, 9)))
        (line,) = (line for line in built(bundle, cache) if "timings: " in line)
        return line.rpartition("timings: ")[2].strip()

    other = write_small_bundle(tmp_path / "other")
    (other / "graphs/model/weights.bin").write_bytes(b"other weights")
    write_manifest(other, open_bundle(other).manifest)
    assert [timings(small_bundle), timings(small_bundle), timings(other)] == ["none", "more", "more more"]
    assert timings(other, "NVIDIA L40S") == "none"
    assert sorted(path.name for path in cache.glob("*.timing.cache")) == [
        "model-NVIDIA_L4-trt10.13.0.35.timing.cache",
        "model-NVIDIA_L40S-trt10.13.0.35.timing.cache",
    ]
    assert not list(cache.glob(".model-*"))


def test_timings_on_the_volume_are_not_written_over_those_in_the_bundle(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command(monkeypatch, tmp_path, TIMES)
    monkeypatch.setattr(probe, "tensorrt_version", lambda: "10.13.0.35")
    monkeypatch.setattr(probe, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    add_plan(small_bundle, b"for another GPU", compute_capability="8.6")
    own, kept = (
        small_bundle / "graphs/model/plans/timing.cache",
        tmp_path / "model-NVIDIA_L4-trt10.13.0.35.timing.cache",
    )
    own.write_bytes(b"own ")
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    kept.write_bytes(b"kept ")
    assert "building a plan: timings: kept" in built(small_bundle, tmp_path)
    assert (own.read_bytes(), kept.read_bytes()) == (b"own ", b"kept more ")


def test_one_builds_and_the_other_waits_for_it(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "_CHECK_S", 0.01)
    command(monkeypatch, tmp_path, "raise SystemExit('nobody should build')")
    cache = tmp_path / "cache"
    cache.mkdir()
    said: list[str] = []
    with open(cache / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        other = threading.Thread(
            target=lambda: build(open_bundle(small_bundle), cache, 60, "auto", said.append, lambda: True)
        )
        other.start()
        while not said:
            time.sleep(0.01)
        time.sleep(0.05)  # it says so once
    other.join()
    assert said == [
        "another worker builds a plan on this volume; waiting for it",
        "another worker has built it meanwhile",
    ]


def test_a_lock_that_is_never_released(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(turns, "_CHECK_S", 0.01)
    holder = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, time; f = open({str(tmp_path / '.lock')!r}, 'a');"
         "fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(EngineError, match=r"another worker builds a plan and does not end \(BUILD_TIMEOUT_S\)"):
            built(small_bundle, tmp_path, timeout_s=0.1)
    finally:
        holder.kill()
        holder.communicate()


def test_a_volume_without_locks_still_gets_its_plan(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def no_locks(file: int, operation: int) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    built(small_bundle, tmp_path / "cache")
    assert cached_plans(tmp_path / "cache", open_bundle(small_bundle), "model")


def test_without_locks_two_that_build_the_same_do_not_write_one_file(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And all workers have one process id, as in containers. A plan comes together with its own sidecar."""
    both = threading.Barrier(2, timeout=30)
    kept: list[Path] = []

    def together(source: Path, target: Path) -> None:
        copyfile(source, target)
        if target.name.startswith(".sm_"):
            kept.extend(target.parent.glob("sm_*"))
            both.wait()

    def no_locks(file: int, operation: int) -> None:
        raise OSError(38, os.strerror(38))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    monkeypatch.setattr(build_plan, "copyfile", together)
    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: built(small_bundle, tmp_path / "cache"), range(2)))
    assert kept == []
    (found,) = cached_plans(tmp_path / "cache", open_bundle(small_bundle), "model")
    verify(found)
    assert not [path for path in (tmp_path / "cache").rglob(".*") if path.name != ".lock"]


def test_what_a_killed_worker_was_keeping_is_removed_by_the_next(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "cache"

    def cut_short(source: Path, target: Path) -> None:
        copyfile(source, target)
        if target.name.startswith(".sm_"):
            os.kill(os.getpid(), signal.SIGKILL)

    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    with monkeypatch.context() as patched:
        patched.setattr(build_plan, "copyfile", cut_short)
        killed(lambda: built(small_bundle, cache))
    (left,) = cache.glob("*/.sm_*")
    others = [
        left.with_name(".sm_89-trt10.13.0-fp16.plan.17"),  # of an earlier version
        cache / ".model-NVIDIA_L4-trt10.13.0.35.timing.cache.0000feed-1",
        left.with_name(".sm_86-trt10.13.0-fp16.plan.0000feed-2"),
    ]
    for path in others:
        path.touch()
    for path in others[:2]:
        os.utime(path, (0, 0))
    built(small_bundle, cache)
    assert sorted(cache.rglob(".*")) == [cache / ".lock", others[2]]  # another machine's, which may be at it


@pytest.fixture
def for_all() -> Iterator[Path]:
    """A folder that other users may enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_may_not_be_written_to_is_found_out_before_the_build(for_all: Path, is_there: bool):
    """Whoever may has left a lock for all in it; and, while this one waited for the lock, perhaps the plan."""
    bundle, cache, said = write_small_bundle(for_all / "bundle"), for_all / "cache", list[str]()
    cache.mkdir()
    (cache / ".lock").touch()
    (cache / ".lock").chmod(0o666)
    cache.chmod(0o555)

    def ask() -> list[str]:
        build(open_bundle(bundle), cache, 60, "auto", said.append, lambda: is_there)
        return said

    found = as_another_user(ask)
    cache.chmod(0o755)
    if is_there:
        assert found == ["another worker has built it meanwhile"]
        return
    assert isinstance(found, EngineError)
    assert str(found).startswith(f"a plan cannot be kept in PLAN_CACHE={cache} (Permission denied); attach a volume")


def test_a_graphs_folder_that_may_not_be_written_to_is_found_out_before_the_build(
    for_all: Path, monkeypatch: pytest.MonkeyPatch
):
    bundle, cache = write_small_bundle(for_all / "bundle"), for_all / "cache"
    folder = folder_of(cache, open_bundle(bundle), "model")
    folder.mkdir(parents=True)
    cache.chmod(0o777)
    folder.chmod(0o555)
    command(monkeypatch, for_all, "raise SystemExit('nobody should build')")
    found = as_another_user(lambda: built(bundle, cache))
    folder.chmod(0o755)
    assert isinstance(found, EngineError)
    assert str(found) == (
        f"a plan cannot be kept in {folder}, which belongs to another user; let the worker write there, or remove it"
    )


def test_whoever_may_write_to_the_cache_may_add_to_what_another_user_built(
    for_all: Path, monkeypatch: pytest.MonkeyPatch
):
    """A pod's root, for one kind of GPU; then a worker's user, for another."""
    bundle, cache = write_small_bundle(for_all / "bundle"), for_all / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    os.chown(cache, 4321, 1234)
    capabilities = iter(("8.6", "8.9"))

    def run(command: list[str], *_: object) -> None:
        add_plan(Path(command[-1]), b"built here", compute_capability=next(capabilities))

    monkeypatch.setattr(build_plan, "_run", run)  # the other user may not run our Python
    built(bundle, cache)
    folder = folder_of(cache, open_bundle(bundle), "model").stat()
    assert (folder.st_uid, folder.st_gid) == (4321, 1234)
    assert as_another_user(lambda: built(bundle, cache)) == []
    found = cached_plans(cache, open_bundle(bundle), "model")
    assert [one.plan.compute_capability for one in found] == ["8.6", "8.9"]


def test_timings_that_cannot_be_read_or_kept_cost_no_plan(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command(monkeypatch, tmp_path, TIMES)
    monkeypatch.setattr(probe, "tensorrt_version", lambda: "10.13.0.35")
    monkeypatch.setattr(probe, "gpu", lambda: Gpu("NVIDIA L4", (8, 9)))
    (tmp_path / "model-NVIDIA_L4-trt10.13.0.35.timing.cache").mkdir()
    lines = built(small_bundle, tmp_path)
    assert lines.count("the volume's timing cache is left out: Is a directory") == 2
    assert len(cached_plans(tmp_path, open_bundle(small_bundle), "model")) == 1


def test_a_folder_that_cannot_be_written_names_the_setting(small_bundle: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"PLAN_CACHE=.*/file/plans \(Not a directory\); attach a volume"):
        built(small_bundle, tmp_path / "file" / "plans")


def test_nothing_half_written_stays_on_a_volume_that_does_not_take_a_plan(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    command(monkeypatch, tmp_path, ADDS_A_PLAN)
    folder = folder_of(tmp_path / "cache", open_bundle(small_bundle), "model")
    (folder / "sm_89-trt10.13.0-fp16.plan").mkdir(parents=True)
    with pytest.raises(EngineError, match=r"cannot be kept in PLAN_CACHE=.* \(Is a directory\)"):
        built(small_bundle, tmp_path / "cache")
    assert [path.name for path in folder.iterdir()] == ["sm_89-trt10.13.0-fp16.plan"]


def test_without_a_temporary_folder_the_volume_is_not_to_blame(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(EngineError, match=r"no temporary folder to build a plan in \(No such file .*set TMPDIR"):
        built(small_bundle, tmp_path / "cache")


def test_a_bundle_in_folders_that_may_not_be_written_to_gets_its_plan(for_all: Path, monkeypatch: pytest.MonkeyPatch):
    """As in an image. Nothing of the copy stays behind, and nothing of the bundle is touched to have it so."""
    bundle, cache, temporary = write_small_bundle(for_all / "bundle"), for_all / "cache", for_all / "tmp"
    for folder in (cache, temporary):
        folder.mkdir()
        folder.chmod(0o777)
    for path in (bundle, *bundle.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(build_plan, "_run", lambda command, *_: add_plan(Path(command[-1]), b"built here"))
    assert as_another_user(lambda: built(bundle, cache)) == []
    assert len(cached_plans(cache, open_bundle(bundle), "model")) == 1
    assert not list(temporary.iterdir())
    assert {path.stat().st_mode & 0o777 for path in (bundle, *bundle.rglob("*"))} == {0o555, 0o444}


def test_a_full_temporary_folder_is_not_blamed_on_the_volume(for_all: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = write_small_bundle(for_all / "bundle")
    monkeypatch.setattr(tempfile, "tempdir", str(for_all))
    for_all.chmod(0o777)

    def no_room() -> object:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return built(bundle, for_all / "cache")

    found = as_another_user(no_room)
    assert isinstance(found, EngineError)
    assert re.fullmatch(
        rf"no plan can be built in {for_all}/build-plan-\w+ \(File too large\); set TMPDIR to a folder that has room",
        str(found),
    )


def test_a_build_that_does_not_start_is_not_blamed_on_the_volume(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(build_plan, "_LEASH", (str(tmp_path / "python"),))
    with pytest.raises(
        EngineError, match=r"^the build does not start: .*No such file.*/python'; build ahead with `pyt"
    ):
        built(small_bundle, tmp_path / "cache")
