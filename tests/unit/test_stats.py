"""What engine threads record while somebody else reads it."""

import sys
import threading

import pytest

from engine.batching.stats import Stats


@pytest.fixture
def _quick_switches():
    """Threads that change places as often as the interpreter lets them."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_the_summary():
    stats = Stats()
    for size in (3, 1, 3):
        stats.batch(size, 10 * size, 16 * size)
    for milliseconds in range(1, 101):
        stats.stage("run", milliseconds / 1e3)
    assert stats.summary() == {
        "rows_served": 7,
        "tokens_served": 70,
        "tokens_computed": 112,
        "batches_run": 3,
        "rows_per_batch": {"1": 1, "3": 2},
        "lanes": 0,
        "stages_ms": {"run": {"p50": 51.0, "p90": 91.0, "p99": 100.0}},
    }


@pytest.mark.usefixtures("_quick_switches")
def test_two_engines_record_at_once_and_a_third_reads():
    stats, batches = Stats(), 3000

    def record(engine: int) -> None:
        for number in range(batches):
            stats.batch(number % 50, 1, 2)
            stats.stage(f"stage {engine} {number}", 0.001)

    threads = [threading.Thread(target=record, args=(engine,)) for engine in range(2)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        stats.summary()
    found = stats.summary()
    assert found["batches_run"] == 2 * batches
    assert found["rows_served"] == 2 * sum(number % 50 for number in range(batches))
    assert (found["tokens_served"], found["tokens_computed"]) == (2 * batches, 4 * batches)
    assert len(found["stages_ms"]) == 2 * batches
