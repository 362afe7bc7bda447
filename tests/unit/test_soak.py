"""The soak, short, and what it makes of a worker that leaks."""

import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks import mixed_jobs as mixed
from benchmarks import soak
from benchmarks.__main__ import main
from benchmarks.mixed_jobs import MixedLoad, mixed_jobs
from benchmarks.results_file import read
from benchmarks.soak import Report, Sample
from benchmarks.worker_process import WorkerProcess
from tests.processes import wait_until_dead

REPOSITORY = Path(__file__).parents[2]
STEADY = Sample(rss_mb=100.0, pss_mb=80.0, fds=14, connections=35, threads=13, processes=2)


def report(last: Sample = STEADY, **changes: Any) -> Report:
    return replace(Report(1000, [0.2] * 10, [STEADY] * 6 + [last] * 6, ({}, {}), [], 0), **changes)


def test_a_short_soak(small_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Whether memory grows takes more jobs to tell; all else must hold here too."""
    out = tmp_path / "soak.json"
    options = ["--jobs", 1500, "--warm-up", 300, "--engine", "fake", "--bundle", small_bundle, "--json", out]
    main(["soak", *(str(option) for option in options)])
    results = read(out)
    found = results.details
    assert [complaint for complaint in found["complaints"] if "memory" not in complaint] == []
    assert found["wrong"] == []
    assert found["exit_code"] == 0
    assert len(found["samples"]) == 51
    assert all(sample["rss_mb"] > 20 and sample["processes"] > 0 for sample in found["samples"])
    first, last = found["health"]
    assert first["engine"] == "fake"
    assert 1350 < last["jobs_done"] - first["jobs_done"] <= 1501  # without those that were cancelled or not allowed
    assert last["jobs_failed"] - first["jobs_failed"] <= 15
    growth = results.find(("soak", "ours-fake", "mixed jobs", "rss_growth"))
    assert growth is not None and len(growth.repeats) == 5
    by_hand = found["samples"][10]["rss_mb"] / found["samples"][0]["rss_mb"]
    assert growth.repeats[0] == pytest.approx(by_hand)
    assert "| threads " in capsys.readouterr().out


def test_a_portion_ends_with_the_last_of_its_jobs_and_no_other_job_counts(
    small_bundle: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(mixed, "STALL_S", 5.0)
    load, payloads = MixedLoad(), mixed_jobs()
    with load.emulator as emulator, WorkerProcess.ours(emulator, small_bundle, env={"ENGINE": "fake"}):
        for jobs in (1, 40, 1):
            assert emulator.wait(emulator.submit({"health": True})).output["engine"] == "fake"
            load.run(jobs, payloads)
            assert all(record.finished for record in emulator.jobs.values())
    assert load.wrong == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_benchmark_that_is_told_to_end_leaves_no_worker_behind(small_bundle: Path, number: signal.Signals):
    """One of the stock SDK's would ask an endpoint that is gone for jobs, again and again, on a whole CPU."""
    command = [sys.executable, "-m", "benchmarks", "soak", "--engine", "fake", "--bundle", str(small_bundle)]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )  # under nohup, which these tests may be, it would rightly stay
    benchmark = psutil.Process(process.pid)
    while len(children := benchmark.children(recursive=True)) < 2:  # the worker's two
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.splitlines()[-1]) == (130, "soak: interrupted")
    for child in children:
        wait_until_dead(child.pid)


def test_a_worker_that_dies_is_noticed_without_waiting_for_its_answers(small_bundle: Path):
    command = "soak --jobs 20000 --warm-up 0 --engine fake --bundle"
    asked = [sys.executable, "-m", "benchmarks", *command.split(), str(small_bundle)]
    with subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY) as process:
        assert process.stderr
        assert process.stderr.readline()  # a line of progress: it is under way
        workers = [one for one in psutil.Process(process.pid).children() if one.cmdline()[-2:] == ["-m", "handler"]]
        (worker,) = workers
        worker.kill()
        _, said = process.communicate(timeout=50)
    assert process.returncode == 2
    ended = "the worker was killed by signal 9 in the middle of its work; it said last: "
    assert said.splitlines()[-1].startswith(f"soak: {ended}")


def test_a_worker_that_keeps_its_shape_passes():
    assert soak.verdict(report()) == []
    assert soak.verdict(report(replace(STEADY, rss_mb=101.9, pss_mb=95.0, connections=60))) == []
    assert soak.verdict(report(replace(STEADY, rss_mb=90.0, fds=10, threads=9, processes=1))) == []


@pytest.mark.parametrize(
    ("leak", "complaint"),
    [
        ({"rss_mb": 102.0}, "resident memory grew by 2.0%; allowed is less than 2%"),
        ({"rss_mb": 150.0}, "resident memory grew by 50.0%; allowed is less than 2%"),
        ({"fds": 15}, "open files grew from 14 to 15"),
        ({"threads": 14}, "threads grew from 13 to 14"),
        ({"processes": 3}, "processes grew from 2 to 3"),
        ({"connections": 200}, "200 connections are open; the load explains 68"),
    ],
)
def test_growth_is_flagged(leak: dict[str, Any], complaint: str):
    assert soak.verdict(report(replace(STEADY, **leak))) == [complaint]


def test_one_high_sample_is_no_growth():
    samples = [*[STEADY] * 9, replace(STEADY, rss_mb=140.0), STEADY, STEADY]
    assert soak.verdict(report(samples=samples)) == []


def test_wrong_answers_and_a_bad_end_are_flagged():
    assert soak.verdict(report(wrong=["a job ended FAILED: x"])) == ["wrong answer: a job ended FAILED: x"]
    assert soak.verdict(report(exit_code=1)) == ["the worker ended with exit code 1 after SIGTERM"]
    assert soak.verdict(report(exit_code=None)) == ["the worker had to be killed after SIGTERM"]


def test_the_jobs_are_mixed_and_the_same_each_time():
    jobs = list(islice(mixed_jobs(), 200))
    assert jobs == list(islice(mixed_jobs(), 200))
    assert sum(isinstance(job.get("texts"), str) for job in jobs) == 2
    assert max(len(job["texts"]) for job in jobs if isinstance(job.get("texts"), list)) == 32
    assert sum("text" in job for job in jobs) > 150
