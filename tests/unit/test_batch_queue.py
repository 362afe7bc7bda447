from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.batching.batch_queue import BatchQueue
from engine.errors import InvalidInput, Overloaded

lengths = st.lists(st.integers(1, 128), min_size=1, max_size=60)


def queue_of(jobs: list[list[int]], **changes: float) -> BatchQueue[int, int]:
    """Jobs 0, 1, ... with rows 0, 1, ... of the given lengths."""
    options = {"max_rows": 8, "max_tokens": 256, "max_queued": 10_000, "overhead_tokens": 8, **changes}
    queue: BatchQueue[int, int] = BatchQueue(**options)  # type: ignore[arg-type]
    for job, rows in enumerate(jobs):
        queue.push(job, list(enumerate(rows)), now=0.0)
    return queue


def drained(queue: BatchQueue[int, int]) -> list[list[tuple[int, int]]]:
    batches = []
    while batch := queue.pop(0.0):
        batches.append(batch)
    return batches


@given(st.lists(lengths, max_size=6), st.integers(1, 16), st.integers(1, 512), st.integers(0, 600))
def test_every_row_goes_once_within_the_budget(jobs: list[list[int]], rows: int, tokens: int, overhead: int):
    batches = drained(queue_of(jobs, max_rows=rows, max_tokens=tokens, overhead_tokens=overhead))
    every = [(job, row) for job, of_job in enumerate(jobs) for row in range(len(of_job))]
    assert sorted(pair for batch in batches for pair in batch) == every
    for batch in batches:
        longest = max(jobs[job][row] for job, row in batch)
        assert len(batch) <= rows
        assert len(batch) == 1 or len(batch) * longest <= tokens


@given(st.lists(lengths, min_size=2, max_size=6))
def test_a_job_waits_at_most_one_turn_of_each_other_job(jobs: list[list[int]]):
    batches = drained(queue_of(jobs))
    served = [
        next(turn for turn, batch in enumerate(batches) if any(j == job for j, _ in batch)) for job in range(len(jobs))
    ]
    assert all(turn < len(jobs) for turn in served)


def test_a_big_job_does_not_starve_a_small_one():
    queue = queue_of([[40] * 5000])
    queue.pop(0.0)
    queue.push(1, [(0, 10)], now=0.0)
    following = [queue.pop(0.0) for _ in range(2)]
    assert any((1, 0) in batch for batch in following)


@given(lengths)
def test_padding_never_costs_more_than_the_runs_that_it_saves(rows: list[int]):
    for batch in drained(queue_of([rows], overhead_tokens=8)):
        of_batch = [rows[row] for _, row in batch]
        padding = len(of_batch) * max(of_batch) - sum(of_batch)
        assert padding <= 8 * (len(of_batch) - 1)


def test_rows_of_near_length_share_a_batch():
    jobs = [[10], [100], [11], [101], [12], [102]]
    batches = drained(queue_of(jobs, max_rows=3, max_tokens=10_000))
    assert [sorted(jobs[job][row] for job, row in batch) for batch in batches] == [[10, 11, 12], [100, 101, 102]]


def test_rows_of_the_nearest_length_go_first():
    queue = queue_of([[100], [50, 99, 140, 180]], max_rows=2, max_tokens=10_000, overhead_tokens=1000)
    assert queue.pop(0.0) == [(0, 0), (1, 1)]


def test_of_two_lengths_that_are_as_near_the_shorter_goes_first_also_when_others_are_used_up():
    lengths = [97, 103, 97, 99, 102, 101, 100, 104]
    queue = queue_of([[100], lengths], max_rows=8, max_tokens=10_000, overhead_tokens=1000)
    assert [lengths[row] for job, row in queue.pop(0.0) if job] == [100, 99, 101, 102, 97, 97, 103]


class Counted(int):
    """A length that counts how often one is compared with another."""

    count: ClassVar[int] = 0

    def __sub__(self, other: int) -> int:
        Counted.count += 1
        return int(self) - int(other)

    def __rsub__(self, other: int) -> int:
        return -(self - other)

    def __lt__(self, other: int) -> bool:
        Counted.count += 1
        return int(self) < int(other)


@pytest.mark.parametrize(("rows", "tokens"), [(8, 10_000), (32, 512)])
def test_what_a_batch_costs_does_not_grow_with_all_that_waits(rows: int, tokens: int):
    """The event loop waits for the queue's lock meanwhile."""
    jobs = [[Counted(length) for length in range(1, 400)] for _ in range(40)]
    queue = queue_of(jobs, max_rows=rows, max_tokens=tokens, max_queued=20_000, overhead_tokens=500)  # type: ignore[arg-type]
    Counted.count = 0
    assert queue.pop(0.0)
    assert Counted.count < 400


def test_a_row_that_makes_all_others_longer_is_charged_for_it():
    """Eight tokens to each of three rows are more than the 20 that a run costs; to one row they are not."""
    queue = queue_of([[10, 10, 10], [18]], max_tokens=10_000, overhead_tokens=20)
    assert sorted(queue.pop(0.0)) == [(0, 0), (0, 1), (0, 2)]
    queue = queue_of([[10], [18]], max_tokens=10_000, overhead_tokens=20)
    assert len(queue.pop(0.0)) == 2


def test_jobs_share_a_batch_equally_beside_its_first_row():
    queue = queue_of([[10] * 9] * 3, max_rows=10, max_tokens=10_000)
    assert Counter(job for job, _ in queue.pop(0.0)) == {0: 4, 1: 3, 2: 3}


def test_where_a_run_is_dear_everything_shares_it():
    jobs = [[10], [100], [11]]
    (batch,) = drained(queue_of(jobs, max_tokens=10_000, overhead_tokens=1000))
    assert len(batch) == 3


def test_a_batch_may_wait_for_company_but_not_for_ever():
    queue = queue_of([], max_delay_s=0.5, max_rows=2)
    assert queue.due_in(0.0) is None
    queue.push(0, [(0, 5)], now=10.0)
    assert queue.due_in(10.1) == pytest.approx(0.4)
    assert queue.pop(10.1) == []
    assert queue.pop(10.5) == [(0, 0)]
    queue.push(1, [(0, 5), (1, 5)], now=11.0)
    assert queue.due_in(11.0) == 0.0  # full
    assert len(queue.pop(11.0)) == 2
    queue = queue_of([], max_delay_s=0.5)
    for job in range(3):
        queue.push(job, [(0, 5)], now=0.2 * job)
    assert queue.due_in(0.4) == pytest.approx(0.1)  # for the first that came
    assert len(queue.pop(0.5)) == 3


def test_a_batch_that_is_full_of_tokens_waits_for_nobody():
    queue = queue_of([], max_delay_s=0.5, max_rows=32, max_tokens=100)
    queue.push(0, [(0, 25), (1, 25), (2, 20)], now=0.0)
    assert queue.due_in(0.0) == pytest.approx(0.5)
    assert queue.due_in(0.0, 75) == 0.0  # of a lane
    queue.push(1, [(0, 16)], now=0.1)  # of another length: it would run alone
    assert queue.pop(0.1) == []
    queue.push(2, [(0, 25), (1, 25)], now=0.1)
    assert len(queue.pop(0.1)) == 4
    assert queue.pop(0.1) == []  # what is left waits on
    queue.push(3, [(0, 300)], now=0.2)  # more than the whole budget
    for job in range(3):
        queue.cancel(job)
    assert queue.pop(0.2) == [(3, 0)]


def test_rows_beyond_a_full_batch_go_at_once_where_they_fill_another():
    """Images, of which few run at once on the CPU."""
    queue = queue_of([[1] * 11], max_delay_s=0.5, max_rows=32, max_tokens=4)
    assert [len(batch) for batch in drained(queue)] == [4, 4]
    assert len(queue.pop(0.5)) == 3


def test_a_share_of_what_waits_is_no_full_batch():
    queue = queue_of([[1] * 3], max_delay_s=0.5, max_rows=32, max_tokens=4)
    assert queue.pop(0.0, rows=1) == []


def test_a_full_queue_takes_all_rows_of_a_job_or_none():
    queue = queue_of([[1, 1]], max_queued=3)
    with pytest.raises(Overloaded, match=r"2 rows wait, 2 more are over the limit of 3 \(MAX_QUEUED_ROWS\)"):
        queue.push(1, [(0, 1), (1, 1)], now=0.0)
    assert len(queue) == 2
    with pytest.raises(InvalidInput, match=r"the job makes 4 rows, allowed are 3 \(MAX_QUEUED_ROWS\)"):
        queue.push(1, [(index, 1) for index in range(4)], now=0.0)  # a retry would never help
    queue.push(2, [(0, 1)], now=0.0)
    assert sorted(queue.drain()) == [0, 2]
    assert len(queue) == 0


class Queue(RuleBasedStateMachine):
    """Anything may happen in any order: no row is lost, none goes twice, no budget is exceeded, nobody starves."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: BatchQueue[int, tuple[int, int]] = BatchQueue(
            max_rows=4, max_tokens=200, max_queued=40, overhead_tokens=16, max_delay_s=1.0
        )
        self.now = 0.0
        self.next_job = 0
        self.waiting: dict[int, list[tuple[int, int]]] = {}  # job -> (number, length)
        self.turns_left: dict[int, int] = {}  # job -> batches within which it must be served

    @rule(rows=st.lists(st.integers(1, 300), min_size=1, max_size=12), wait=st.floats(0, 2))
    def push(self, rows: list[int], wait: float):
        self.now += wait
        job, self.next_job = self.next_job, self.next_job + 1
        numbered = list(enumerate(rows))
        if sum(map(len, self.waiting.values())) + len(rows) > 40:
            with pytest.raises(Overloaded):
                self.queue.push(job, [((n, length), length) for n, length in numbered], self.now)
        else:
            self.queue.push(job, [((n, length), length) for n, length in numbered], self.now)
            self.waiting[job] = numbered
            self.turns_left[job] = len(self.waiting)

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject):
        job = data.draw(st.sampled_from(sorted(self.waiting)))
        assert self.queue.cancel(job) == len(self.waiting.pop(job))
        assert self.queue.cancel(job) == 0

    @rule(wait=st.floats(0, 2), rows=st.none() | st.integers(1, 6), tokens=st.none() | st.integers(1, 300))
    def pop(self, wait: float, rows: int | None, tokens: int | None):
        self.now += wait
        due = self.queue.due_in(self.now, tokens)
        batch = self.queue.pop(self.now, rows, tokens)
        assert bool(batch) == (due == 0.0)
        if not batch:
            return
        lengths = [length for _, (_, length) in batch]
        assert len(batch) <= min(4, rows or 4)
        assert len(batch) == 1 or len(batch) * max(lengths) <= min(200, tokens or 200)
        for job, row in batch:
            # Among rows of equal length the order within a job is kept.
            assert row == next(other for other in self.waiting[job] if other[1] == row[1])
            self.waiting[job].remove(row)
        served = {job for job, _ in batch}
        self.waiting = {job: rows for job, rows in self.waiting.items() if rows}
        for job in self.waiting:
            self.turns_left[job] = len(self.waiting) if job in served else self.turns_left[job] - 1
            assert self.turns_left[job] > 0

    @invariant()
    def nothing_is_lost(self):
        assert len(self.queue) == sum(map(len, self.waiting.values()))
        assert (self.queue.due_in(self.now) is None) == (not self.waiting)

    def teardown(self):
        self.now += 10
        while batch := self.queue.pop(self.now):
            for job, row in batch:
                self.waiting[job].remove(row)
        assert not any(self.waiting.values())


Queue.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestQueue = Queue.TestCase
