"""`python -m benchmarks peers`: environments, tables, joined rounds from given figures; a short run for real."""

from __future__ import annotations

import argparse
import math
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import peer_env, peers, results_file
from benchmarks.__main__ import main
from benchmarks.peers import SCENARIO, floor_of, joined, least_cosine
from benchmarks.peers_table import table
from benchmarks.report.targets import name as target_name
from benchmarks.results_file import Results
from benchmarks.rounds import Round, measurements
from benchmarks.targets import catalogue
from benchmarks.targets.base import Target
from benchmarks.targets.catalogue import NAMES, PEERS, Needs, targets
from engine.bundle import open_bundle
from tests.pages import page

ALL = ("cold start", "ready_s"), ("cold start", "first_answer_s"), ("idle", "p50_ms"), ("1 client", "jobs_per_s")


Found = dict[tuple[str, str], float]
"""Point and metric -> what one round found."""


def figures(**changes: float) -> Found:
    found: Found = {
        ("cold start", "first_answer_s"): 1.0,
        ("idle", "p50_ms"): 10.0,
        ("1 client", "jobs_per_s"): 50.0,
        ("32 clients", "jobs_per_s"): 80.0,
        ("32 clients", "p99_ms"): 300.0,
        ("bulk", "rows_per_s"): 100.0,
        ("memory", "pss_mb"): 150.0,
        ("stop", "sigterm_to_exit_s"): 0.1,
    }
    named = {f"{point} {metric}".replace(" ", "_"): (point, metric) for point, metric in found}
    return {**found, **{named[name]: value for name, value in changes.items()}}


def round_of(found: Mapping[str, Found]) -> Round:
    made: Round = {}
    for name, one in found.items():
        for (point, metric), value in one.items():
            made.setdefault((name, point), {})[metric] = value
    return made


def results(found: Mapping[str, Sequence[Found]], **environment: object) -> Results:
    ways = {"ours": "queue", "stock": "queue", "litserve": "http", "floor": "pipe"}
    count = len(next(iter(found.values())))
    rounds = [round_of({name: one[number] for name, one in found.items()}) for number in range(count)]
    return Results(
        {"targets": {}, **environment},
        {"stop_timeout_s": 20.0},
        measurements(SCENARIO, rounds, floor_of),
        {"ways": {name: ways[name] for name in found}, "count": count},
    )


def test_the_table_compares_round_by_round():
    rounds = {
        "ours": [figures(), figures(cold_start_first_answer_s=2.0)],
        "floor": [figures(), figures()],
        "stock": [figures(cold_start_first_answer_s=10.0), figures(cold_start_first_answer_s=10.0)],
        "litserve": [figures(stop_sigterm_to_exit_s=math.nan), figures(stop_sigterm_to_exit_s=math.nan)],
    }
    for both in rounds["floor"]:
        for point, metric in (("32 clients", "jobs_per_s"), ("32 clients", "p99_ms")):
            del both[point, metric]
    lines = table(results(rounds)).splitlines()
    assert lines[0].startswith(
        "| | exec to first answer | idle, p50 | 1 client | 32 clients | 32 clients, p99 | bulk |"
    )
    by_label = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:6]}
    assert list(by_label) == [
        target_name("ours"),
        f"{target_name('floor')} ²",
        target_name("stock"),
        f"{target_name('litserve')} ¹",
    ]
    assert by_label["this worker"][0] == "1.5 s"
    # 10 times in one round, 5 in the other; the ratio of the medians would be 6.7
    assert by_label[target_name("stock")][0] == "10 s (7.5x)"
    assert by_label[f"{target_name('floor')} ²"][3] == "-"
    assert by_label[f"{target_name('litserve')} ¹"][-1] == "killed after 20 s"
    assert "¹ over HTTP, without a queue in front" in lines[-2]
    assert lines[-1].endswith("1 client 100%, 32 clients 80%, bulk 100%.")


def test_a_round_in_which_a_peer_failed_keeps_its_place():
    rounds = {"ours": [figures(), figures()], "floor": [figures(), figures()], "stock": [{}, figures()]}
    found = results(rounds).find(("peers", "stock", "idle", "p50_ms"))
    assert found is not None
    assert found.repeats == (None, 10.0)
    assert found.floor == ("floor", "idle", "p50_ms")


def test_rounds_are_joined_and_what_was_not_measured_stays_empty():
    before = results(
        {"ours": [figures()], "floor": [figures()], "stock": [figures()]}, targets={"stock": {"torch": "2"}}
    )
    after = results({"ours": [figures()], "floor": [figures()], "litserve": [figures(), figures()][:1]})
    both = joined(before, after)
    repeats = {name: both.find(("peers", name, "idle", "p50_ms")) for name in ("ours", "stock", "litserve")}
    assert {name: one.repeats for name, one in repeats.items() if one} == {
        "ours": (10.0, 10.0),
        "stock": (10.0, None),
        "litserve": (None, 10.0),
    }
    assert both.environment["targets"] == {"stock": {"torch": "2"}}
    assert both.details["ways"]["litserve"] == "http"


def test_rounds_of_other_options_or_versions_are_not_joined():
    rounds = {"ours": [figures()], "floor": [figures()]}
    old = results(rounds, targets={"floor": {"onnxruntime": "1.17"}})
    with pytest.raises(ValueError, match="another version of floor"):
        joined(old, results(rounds, targets={"floor": {"onnxruntime": "1.18"}}))
    known = {"model": "a", "bundle": "0123", "precision": "fp32", "commit": "4567"}
    for changed in ("model", "bundle", "precision", "commit"):
        both = (results(rounds, targets={"ours": one}) for one in (known, {**known, changed: "another"}))
        with pytest.raises(ValueError, match=r"another version of ours \(.*another.*\); measure into another file"):
            joined(*both)
    other = Results({"targets": {}}, {"seconds": 1}, (), {"ways": {}})
    with pytest.raises(ValueError, match="give the same"):
        joined(old, other)


def test_rounds_of_another_machine_are_not_joined():
    """Only what both files tell: a later version of this suite may tell more."""
    here = {"processor": "A", "cpus": 2, "date": "2026-01-01", "commit": "a", "versions": {"numpy": "1", "runpod": "1"}}
    old = results({"ours": [figures()]}, **here)
    later = {**here, "date": "2026-01-02", "commit": "b", "driver": None, "versions": {"numpy": "1", "torch": "2"}}
    assert joined(old, results({"ours": [figures()]}, **later)).environment["commit"] == "b"
    for changed in ({"processor": "B"}, {"cpus": 4}, {"versions": {"numpy": "2"}}):
        name = "numpy" if "versions" in changed else next(iter(changed))
        with pytest.raises(ValueError, match=rf"of another machine \({name} .*, now .*\); measure into another file"):
            joined(old, results({"ours": [figures()]}, **{**here, **changed}))


def test_vectors_of_another_model_are_noticed():
    one = np.array([[1.0, 0.0], [0.0, 2.0]])
    assert least_cosine(one, one * 3) == pytest.approx(1.0)
    assert least_cosine(one, one[:, ::-1]) == pytest.approx(0.0)
    with pytest.raises(RuntimeError, match="shape"):
        least_cosine(one, one[:1])


def test_every_peer_can_be_named_and_made():
    assert {one.name for one in targets(PEERS, Needs())} == set(PEERS)
    assert {one.way for one in targets(PEERS, Needs())} == {"queue", "http", "pipe"}


def test_a_server_that_is_not_there_is_told():
    (target,) = targets(["tei"], Needs(tei="http://127.0.0.1:1"))
    with pytest.raises(RuntimeError, match=r"127\.0\.0\.1:1/health was not ready within 0\.1 s"):
        replace(target, timeout_s=0.1).prepare()  # type: ignore[type-var]


def test_unknown_peers_are_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["peers", "--with", "stock,tgi"])
    assert "there is no peer 'tgi'; choose from ours-int8, ours-web, ours-http, stock" in capsys.readouterr().err


@pytest.mark.parametrize("options", ["--bundle {bundle}", "--append"])
def test_options_that_need_another(options: str, small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["peers", *options.format(bundle=small_bundle).split()]) == 2
    assert capsys.readouterr().err.startswith("peers: --")


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\x00"])
def test_a_file_that_holds_no_rounds_is_told(
    content: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(peers, "targets", lambda *asked: pytest.fail("it went on"))
    broken = tmp_path / "broken.json"
    broken.write_text(content)
    assert main(["peers", "--append", "--json", str(broken)]) == 2
    assert f"peers: {broken} is not a results file of this suite" in capsys.readouterr().err
    assert broken.read_text() == content


def test_what_is_not_named_is_not_taken_from_another_model(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """Nor is what all share made of it."""
    monkeypatch.setattr(catalogue, "_demo_bundle", lambda **asked: pytest.fail(f"exported: {asked}"))
    for needs, what, option in (
        (Needs(model=small_bundle), Needs.fp32, "--bundle"),
        (Needs(model=small_bundle, bundle=small_bundle), Needs.int8, "--bundle-int8"),
        (Needs(bundle=small_bundle), Needs.folder, "--model"),
    ):
        with pytest.raises(RuntimeError, match=f"must be of the same one; name it with {option}$"):
            what(needs)


@pytest.mark.parametrize("command", ["memory --bundle {0}", "memory --model {0} --with none", "distance --bundle {0}"])
def test_a_bundle_is_not_set_beside_another_model(
    command: str, small_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    for module in ("memory", "distance"):
        monkeypatch.setattr(f"benchmarks.{module}.targets", lambda *asked: pytest.fail("it went on"))
    assert main(command.format(small_bundle).split()) == 2
    assert "--with none" in capsys.readouterr().err


def test_ours_and_the_floor_for_real(
    small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "peers.json"
    bundle = str(small_bundle)
    options = ["--with", "ours-web,ours-http", "--model", bundle, "--bundle", bundle, "--rounds", "1"]
    # A second: on a busy machine 0.3 s passed without a job.
    options += ["--seconds", "1", "--idle-jobs", "2", "--bulk-rows", "40", "--json", str(out)]
    assert main(["peers", *options]) == 0
    said = capsys.readouterr()
    assert "tei is left out: give the address of one with --tei URL" in said.err
    found = results_file.read(out)
    assert {one.target for one in found.measurements} == {"ours", "floor", "ours-web", "ours-http"}
    for name in ("ours", "ours-web", "ours-http"):
        version = found.environment["targets"][name]
        assert version["model"] == open_bundle(small_bundle).manifest.model
        assert (version["engine"], version["precision"]) == ("onnxruntime-cpu", "fp32")
        assert open_bundle(small_bundle).sha256.startswith(version["bundle"])
        assert len(version["commit"].partition("-")[0]) == 12 or version["commit"] == "unknown"
    for one in found.measurements:
        assert len(one.repeats) == 1
        assert one.repeats[0] is not None and one.repeats[0] > 0, one
        if one.floor is not None:
            assert len(found.ratios(one)) == 1, one
    cosine = found.find(("peers", "ours", "answers", "min_cosine"))
    assert cosine is not None and cosine.median == pytest.approx(1.0, abs=1e-5)
    assert table(found) in said.out
    options[1] = "none"

    def measured(targets: Sequence[Target], rounds: int, *more: Any) -> list[Round]:
        more[-1](found := [round_of({target.name: figures() for target in targets})] * rounds)
        return found

    monkeypatch.setattr(peers, "in_turn", measured)
    assert main(["peers", *options, "--append"]) == 0
    again = results_file.read(out).find(idle := ("peers", "ours", "idle", "p50_ms"))
    first = found.find(idle)
    assert first is not None and again is not None
    assert again.repeats == (*first.repeats, 10.0)


# Environments


def test_the_environment_of_a_peer_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def uv(*arguments: str) -> None:
        calls.append(arguments[0])
        (tmp_path / "peers" / "some").mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr(peer_env, "_uv", uv)
    pins = tmp_path / "pins.txt"
    pins.write_text("a==1\n")
    for _ in range(2):
        python = peer_env.python_of("some", pins=pins, root=tmp_path / "peers")
        assert python == tmp_path / "peers" / "some" / "bin" / "python"
    assert calls == ["venv", "pip"]
    pins.write_text("a==2\n")
    peer_env.python_of("some", pins=pins, root=tmp_path / "peers")
    assert calls == ["venv", "pip"] * 2


def test_an_environment_that_was_not_finished_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root, pins = tmp_path / "peers", tmp_path / "pins.txt"
    (root / "some").mkdir(parents=True)
    pins.write_text("a==1\n")
    calls: list[str] = []

    def uv(*arguments: str) -> None:
        calls.append(arguments[0])
        if arguments[0] == "pip" and len(calls) == 2:
            raise RuntimeError("`uv pip` failed: the connection broke")

    monkeypatch.setattr(peer_env, "_uv", uv)
    with pytest.raises(RuntimeError, match="the connection broke"):
        peer_env.python_of("some", pins=pins, root=root)
    peer_env.python_of("some", pins=pins, root=root)
    assert calls == ["venv", "pip", "venv", "pip"]


def test_a_peer_without_an_environment_says_why(tmp_path: Path):
    with pytest.raises(RuntimeError, match=r"there is no .*missing\.txt"):
        peer_env.python_of("some", pins=tmp_path / "missing.txt", root=tmp_path)
    pins = tmp_path / "pins.txt"
    pins.write_text("not a requirement\n")
    with pytest.raises(RuntimeError, match="`uv pip` failed: "):
        peer_env.python_of("some", pins=pins, root=tmp_path)


def without_places(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))] + ["NO_INDEX"]:
        monkeypatch.delenv(name, raising=False)
    for name in ("PIP_CONFIG_FILE", "UV_CONFIG_FILE"):
        monkeypatch.setenv(name, "/dev/null")  # this machine's own change nothing


def test_uv_is_told_the_places_that_make_would_tell_it(monkeypatch: pytest.MonkeyPatch):
    """Where none is named torch is the one for the CPU: PyPI's is for CUDA, and the pins hold none of its libraries."""
    without_places(monkeypatch)
    ours = {"UV_CONFIG_FILE": "/dev/null"}
    assert peer_env._places() == ([], {**ours, "UV_TORCH_BACKEND": "cpu"})
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.org/simple")
    assert peer_env._places() == ([], {**ours, "UV_DEFAULT_INDEX": "https://example.org/simple"})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.delenv("PIP_INDEX_URL")
    option, variables = peer_env._places()
    assert (option, variables) == (["--no-index"], {**ours, "UV_FIND_LINKS": "/wheels"})
    for name, value in {**variables, "NO_INDEX": option[0], "MAKEFLAGS": "n", "MAKELEVEL": "1"}.items():
        monkeypatch.setenv(name, value)  # as under `make peers`
    assert peer_env._places() == (option, variables)


def test_an_environment_is_made_of_what_pip_would_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    without_places(monkeypatch)
    (tmp_path / "wheels").mkdir()
    with zipfile.ZipFile(tmp_path / "wheels" / "nowhere_else-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("nowhere_else.py", "")
        info = "nowhere_else-1.0.dist-info"
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nowhere-else\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    (tmp_path / "pip.conf").write_text(f"[global]\nno-index = true\nfind-links = {tmp_path / 'wheels'}\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    (tmp_path / "pins.txt").write_text("nowhere-else==1.0\n")
    python = peer_env.python_of("some", pins=tmp_path / "pins.txt", root=tmp_path / "peers")
    assert peer_env.versions(python, ["nowhere-else"]) == {"nowhere-else": "1.0"}


def test_every_environment_has_its_pins():
    for name in ("fastembed", "infinity", "infinity-server", "litserve"):
        lines = Path("requirements", f"peers-{name}.txt").read_text().splitlines()
        assert all("==" in line for line in lines if line.strip())


def test_the_pages_commands_are_understood_and_its_targets_are_there():
    text = page("docs/peers.md")
    commands = [line.split()[3:] for line in text.splitlines() if line.startswith("    python -m benchmarks ")]
    assert {command for command, *_ in commands} == {"peers", "throughput", "latency", "accuracy", "memory"}
    for command, *options in commands:
        parser = argparse.ArgumentParser()
        import_module(f"benchmarks.{command}").add_arguments(parser)
        parser.parse_args(options)
    assert all(f"`{name}`" in text for name in NAMES)
