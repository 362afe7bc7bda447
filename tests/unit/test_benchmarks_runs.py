"""The benchmarks themselves, as short as they get: a toy model and the fake engine."""

import argparse
import asyncio
import math
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clients as clients_module
from benchmarks import distance, load, page_cache
from benchmarks.__main__ import main
from benchmarks.clients import Clients, embed_jobs
from benchmarks.emulator import Emulator, JobRecord
from benchmarks.emulator.exchange import now
from benchmarks.floor import Floor
from benchmarks.results_file import read
from benchmarks.rounds import REACHED
from benchmarks.targets.catalogue import targets
from benchmarks.targets.queue_worker import Command, QueueWorker
from benchmarks.worker_process import WorkerProcess
from benchmarks.workload import stream, texts
from engine.bundle import open_bundle, write_manifest
from engine.tensors import TensorSpec


def run(*command: object) -> int:
    return main([str(one) for one in command])


def test_one_cold_start(small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "cold.json"
    assert (
        run("coldstart", "--runs", 1, "--bundle", small_bundle, "--engine", "fake", "--warm-only", "--json", out) == 0
    )
    results = read(out)
    stages = results.details["stages"]
    figures = {one.key[1:]: one.median for one in results.of("coldstart")}
    assert 0 < figures["ours-fake", "warm", "ready_s"] < 60  # as the worker says; the first answer may be out by then
    assert figures["ours-fake", "warm", "first_take_s"] < figures["ours-fake", "warm", "first_answer_s"]
    assert {"interpreter", "imports", "verify"} <= set(stages["ours-fake"]["warm"])
    floor = stages["floor"]["warm"]
    ready_ms = figures["floor", "warm", "ready_s"] * 1e3
    assert sum(floor[name][0] for name in ("interpreter", "imports", "session", "tokenizer")) == pytest.approx(ready_ms)
    assert figures["floor", "warm", "ready_s"] < figures["floor", "warm", "first_answer_s"]
    assert all(results.ratios(one) for one in results.of("coldstart") if one.target == "ours-fake")
    assert "exec to first answer / floor's exec to first answer" in capsys.readouterr().out


def test_a_worker_at_a_distance(small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Nothing is faster than light: what is half a round trip away takes a whole one to come and go."""
    out = tmp_path / "distance.json"
    short = ("--rounds", 1, "--jobs", 2, "--pause", 0.1, "--rtt-ms", 60, "--with", "none", "--engine", "fake")
    assert run("distance", *short, "--bundle", small_bundle, "--json", out) == 0
    figures = {one.key[2:]: one.median for one in read(out).of("distance")}
    assert figures["in turn", "p50_ms"] >= 60
    assert figures["after a pause", "p50_ms"] >= 60
    assert figures["start", "first_answer_s"] >= 0.06
    assert "| round trip 60 ms, TLS" in capsys.readouterr().out


def test_a_peer_that_fails_costs_only_its_own_figures(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    command = [sys.executable, "-c", "raise SystemExit('no luck')"]
    broken = QueueWorker("stock", lambda: Command(command, {}), 1)
    monkeypatch.setattr(distance, "targets", lambda names, needs: [*targets(["ours"], needs), broken])
    out = tmp_path / "distance.json"
    short = ("--rounds", 2, "--jobs", 2, "--pause", 0.1, "--rtt-ms", 1, "--with", "none", "--engine", "fake")
    assert run("distance", *short, "--bundle", small_bundle, "--json", out) == 0
    assert {one.target for one in read(out).measurements} == {"ours"}
    assert all(len(one.repeats) == 2 for one in read(out).measurements)
    said = "stock failed in this round: the worker ended with exit code 1 before it took a job; it said last: no luck"
    assert capsys.readouterr().err.count(said) == 2


SCENARIOS = {
    "load": "--rounds 1 --clients 1 --rates --idle-jobs 0 --bulk-rows 0 --seconds 0.1",
    "batching": "--rounds 1 --bulk-rows 4 --seconds 0.1",
    "coldstart": "--runs 1 --warm-only",
    "soak": "--jobs 50 --warm-up 0",
}


@pytest.mark.parametrize("command", SCENARIOS)
def test_a_file_tells_the_code_that_began_the_model_and_the_precision_that_was_served(
    command: str, small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """fp32 is the bundle's; a plan's, which a GPU would serve, is stood in for."""
    out, begun = tmp_path / "out.json", []
    start = WorkerProcess.ours

    def ours(*arguments: Any, **named: Any) -> WorkerProcess:
        begun.append(True)
        return start(*arguments, **named)

    monkeypatch.setattr(WorkerProcess, "ours", ours)
    monkeypatch.setattr(f"benchmarks.{command}.served_precision", lambda path, environ: "fp16" if begun else "none yet")
    monkeypatch.setattr(f"benchmarks.{command}.environment", lambda: {"commit": "later" if begun else "at the start"})
    run(command, *SCENARIOS[command].split(), "--bundle", small_bundle, "--json", out)
    found = read(out)
    assert found.environment == {"commit": "at the start"}
    assert found.options["model"] == "toy"
    assert open_bundle(small_bundle).sha256.startswith(found.options["bundle_sha256"])
    assert {one.target for one in found.of(command)} - {"floor"} == {"ours-fp16"}


def test_what_imports_cost(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert run("coldstart", "--imports", "--bundle", small_bundle, "--engine", "fake") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 22
    assert any(line.startswith("| numpy ") for line in lines)


def test_a_short_load(small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "load.json"
    loops = ("--clients", 1, 4, "--rates", "50%", 20, "--seconds", 0.3, "--idle-jobs", 3, "--bulk-rows", 40)
    assert run("load", *loops, "--rounds", 1, "--bundle", small_bundle, "--engine", "fake", "--json", out) == 0
    results = read(out)
    points = ["idle", "1 client", "4 clients", "rate 0.5", "rate 20/s", "bulk"]
    assert list(dict.fromkeys(one.point for one in results.of("load") if one.target == "ours-fake")) == points
    bare = dict.fromkeys(one.point for one in results.of("load") if one.target == "bare")
    assert list(bare) == ["idle", "1 client", "4 clients"]
    for found in results.details["counts"]:
        assert found["errors"] == [0]
        assert found["jobs"][0] > 0
        if found["point"] != "bulk":
            p50, p99, most = (
                results.find(("load", found["target"], found["point"], metric))
                for metric in ("p50_ms", "p99_ms", "max_ms")
            )
            assert p50 and p99 and most
            assert 0 < p50.median <= p99.median <= most.median
    assert results.details["counts"][0]["jobs"] == [3]
    half, twenty = results.details["open_loop"]
    closed = [results.find(("load", "ours-fake", f"{clients}", "jobs_per_s")) for clients in ("1 client", "4 clients")]
    best = max(one.median for one in closed if one)
    assert half["offered_per_s"][0] == pytest.approx(best / 2, rel=0.3)
    assert (twenty["point"], len(twenty["reached_per_s"])) == ("rate 20/s", 1)
    for loop in (half, twenty):  # never more, though the last job came before the loop was over
        assert loop["reached_per_s"][0] <= loop["offered_per_s"][0]
    assert "| ours-fake, 4 clients " in capsys.readouterr().out


def test_the_bulk_job_of_a_classifier_asks_for_no_vectors(small_bundle: Path, tmp_path: Path):
    manifest = open_bundle(small_bundle).manifest
    outputs = (TensorSpec("logits", "float32", ("batch", 2)),)
    changed = replace(
        manifest, task="text-classification", graphs={"model": replace(manifest.graphs["model"], outputs=outputs)}
    )
    config = {"max_length": 32, "labels": ["a", "b"], "function": "softmax"}
    write_manifest(small_bundle, replace(changed, task_config=config))
    out = tmp_path / "load.json"
    loops = ("--clients", 1, "--rates", "--seconds", 0.1, "--idle-jobs", 0, "--bulk-rows", 20)
    assert run("load", *loops, "--rounds", 1, "--bundle", small_bundle, "--engine", "fake", "--json", out) == 0
    counts = {found["point"]: (found["jobs"], found["errors"]) for found in read(out).details["counts"]}
    assert counts["bulk"] == ([1], [0])


def test_the_floor_of_a_load(small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    out = tmp_path / "load.json"
    loops = ("--clients", 1, 2, "--rates", "--seconds", 0.2, "--idle-jobs", 2, "--bulk-rows", 20, "--floor-rows", 10)
    monkeypatch.setenv("MAX_CONCURRENCY", "64")
    assert run("load", *loops, "--rounds", 2, "--bundle", small_bundle, "--json", out) == 0
    results = read(out)
    for one in results.of("load"):
        assert len(results.ratios(one)) == (2 if one.target == "ours" else 0), one.key
    assert (results.options["served_engine"], results.options["concurrency"]) == ("onnxruntime-cpu", 64)


def test_without_idle_jobs_there_is_no_figure_of_them(small_bundle: Path):
    parser = argparse.ArgumentParser()
    load.add_arguments(parser)
    args = parser.parse_args(["--idle-jobs", "0", "--bulk-rows", "0", "--floor-rows", "5"])
    found = load._floor(Floor(small_bundle), args)
    assert [point for _, point in found] == ["one by one", "batches", "equal lengths", "bulk"]


def test_a_rate_in_percent_needs_a_closed_loop(small_bundle: Path, capsys: pytest.CaptureFixture[str]):
    assert run("load", "--clients", "--rates", "50%", "--bundle", small_bundle) == 2
    assert "name --clients" in capsys.readouterr().err


def test_the_floor_embeds_every_text(small_bundle: Path):
    floor = Floor(small_bundle)
    assert len(floor.one_by_one(texts(20))) == 20
    assert floor.in_batches(texts(40)) > 0
    assert floor.in_equal_lengths(texts(40)) > 0


class Instant:
    """Answers each job on the emulator's loop, seconds `after_s` it is queued; fails those whose text is "bad"."""

    after_s: Iterator[float] = repeat(0.0)

    def __init__(self, clients: Clients) -> None:
        self.clients = clients
        self.exchange = clients.emulator.emulator._exchange
        clients.emulator.call(self.start)

    def start(self, emulator: Emulator) -> None:
        self.task = asyncio.get_running_loop().create_task(self.serve())

    async def serve(self) -> None:
        while True:
            for job in await self.exchange.take("worker-1", 10):
                body = {"error": "no"} if job.input["text"] == "bad" else {"output": 1}
                asyncio.get_running_loop().call_later(next(self.after_s), self.post, job.id, body)

    def post(self, job: str, body: dict[str, Any]) -> None:
        self.exchange.store.post("worker-1", job, body, False, now())


@pytest.fixture
def instant() -> Iterator[Instant]:
    with Clients() as clients:
        instant = Instant(clients)
        yield instant
        clients.emulator.call(lambda emulator: instant.task.cancel())


@pytest.fixture
def clients(instant: Instant) -> Clients:
    return instant.clients


def test_closed_loops_count_what_is_answered_in_time(clients: Clients):
    answers = clients.closed_loop(3, 0.1, embed_jobs(stream()))
    assert len(answers.ms) > 3
    assert 0 < answers.seconds <= 0.1
    assert answers.summary()["jobs_per_s"] == len(answers.ms) / answers.seconds
    assert len(clients.emulator.jobs) <= 1000


def test_percentiles_of_closed_loops_know_the_jobs_that_were_late(clients: Clients):
    """All but those of the loop's length and less were left out: no worker was slower than the loop was long."""
    settle = clients._settle

    def late(record: JobRecord) -> None:
        assert record.done is not None
        record.done += 1.0
        settle(record)

    clients._settle = late  # type: ignore[method-assign]  # the answers of an instant worker, a second later
    answers = clients.closed_loop(3, 0.1, embed_jobs(["good", "bad", "good"]))
    assert (answers.ms, len(answers.late_ms), answers.errors) == ([], 2, ["no"])
    summary = answers.summary()
    assert (summary["jobs"], summary["jobs_per_s"]) == (0, 0)
    assert min(summary["p50_ms"], summary["p99_ms"]) >= 1000


def test_open_loops_send_everything(clients: Clients):
    begin = time.perf_counter()
    answers = clients.open_loop([0.0, 0.0, 0.05, 0.1], embed_jobs(stream()))
    assert len(answers.ms) == 4
    assert 0.1 <= answers.seconds <= time.perf_counter() - begin
    assert clients.open_loop([], embed_jobs(stream())).ms == []


def test_a_worker_that_takes_its_time_for_each_job_keeps_up(instant: Instant):
    """The last job comes shortly before the end of the loop, and its answer after it."""
    instant.after_s = repeat(0.5)
    parser = argparse.ArgumentParser()
    load.add_arguments(parser)
    run = load._Run(parser.parse_args("--clients --rates 20 --seconds 1 --idle-jobs 0 --bulk-rows 0".split()))
    run.load(instant.clients, "ours")
    figures = run.found["ours", "rate 20/s"]
    assert figures["p50_ms"] >= 500
    assert REACHED * run.offered["rate 20/s"] < figures["jobs_per_s"] <= run.offered["rate 20/s"]


def test_a_loop_waits_for_as_long_as_answers_come(instant: Instant, monkeypatch: pytest.MonkeyPatch):
    """What an overloaded worker has to catch up on may take it longer than any one answer does."""
    monkeypatch.setattr(clients_module, "_GRACE_S", 1.0)
    instant.after_s = count(0.4, 0.4)
    assert len(instant.clients.open_loop([0.0] * 5, embed_jobs(stream())).ms) == 5
    instant.after_s = repeat(60.0)
    with pytest.raises(RuntimeError, match="2 jobs were not answered, and no answer came for 1 s"):
        instant.clients.open_loop([0.0, 0.0], embed_jobs(stream()))


def test_a_load_that_fails_leaves_the_rounds_before(
    small_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run_round, begun = load._Run.load, []

    def fails_later(self: load._Run, *arguments: Any) -> None:
        begun.append(True)
        if len(begun) > 2:
            raise RuntimeError("no answer came")
        run_round(self, *arguments)

    monkeypatch.setattr(load._Run, "load", fails_later)
    out = tmp_path / "load.json"
    loops = SCENARIOS["load"].replace("--rounds 1", "--rounds 3").split()
    assert run("load", *loops, "--bundle", small_bundle, "--engine", "fake", "--json", out) == 2
    assert {len(one.repeats) for one in read(out).measurements} == {2}


def test_the_last_job_of_an_open_loop_is_waited_for(clients: Clients, monkeypatch: pytest.MonkeyPatch):
    send = clients._send

    def send_late(*job: Any) -> None:
        time.sleep(0.05)  # for that long the job is neither planned nor sent, if it is taken off the plan first
        send(*job)

    monkeypatch.setattr(clients, "_send", send_late)
    assert len(clients.open_loop([0.02], embed_jobs(stream())).ms) == 1


def test_errors_are_kept_apart(clients: Clients):
    answers = clients.one_by_one(3, embed_jobs(["good", "bad", "good"]))
    assert (len(answers.ms), answers.errors) == (2, ["no"])
    summary = clients.one_by_one(1, embed_jobs(["bad"])).summary()
    assert (summary["jobs"], summary["errors"], summary["jobs_per_s"]) == (0, 1, 0)
    assert math.isnan(summary["p50_ms"])


def test_evicting_files_leaves_them_whole(small_bundle: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(small_bundle))
    drop, sentence = page_cache.way_to_drop(small_bundle)
    drop()
    assert sentence.startswith("cold: ")
    assert "evicted" in sentence
    before = (small_bundle / "manifest.json").read_bytes()
    page_cache._forget([small_bundle / "manifest.json", small_bundle / "missing"])
    assert (small_bundle / "manifest.json").read_bytes() == before
