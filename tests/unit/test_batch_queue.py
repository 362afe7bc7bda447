import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.batch_queue import BatchQueue, Entry
from engine.errors import Overloaded

lengths = st.lists(st.integers(1, 128), max_size=200)


def queue_of(lengths: list[int], max_rows: int = 8, max_tokens: int = 256) -> BatchQueue[int]:
    queue: BatchQueue[int] = BatchQueue(max_rows=max_rows, max_tokens=max_tokens, max_queued=1000)
    queue.push([Entry(index, length) for index, length in enumerate(lengths)])
    return queue


def drained(queue: BatchQueue[int]) -> list[list[Entry[int]]]:
    batches = []
    while batch := queue.pop():
        batches.append(batch)
    return batches


@given(lengths, st.integers(1, 16), st.integers(1, 512))
def test_every_row_goes_once_within_the_budget(lengths: list[int], max_rows: int, max_tokens: int):
    batches = drained(queue_of(lengths, max_rows, max_tokens))
    assert sorted(entry.item for batch in batches for entry in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * max(entry.length for entry in batch) <= max_tokens


@given(lengths)
def test_the_oldest_row_always_goes(lengths: list[int]):
    queue, waiting = queue_of(lengths), set(range(len(lengths)))
    while batch := queue.pop():
        assert min(waiting) in {entry.item for entry in batch}
        waiting -= {entry.item for entry in batch}


def test_rows_of_near_length_share_a_batch():
    queue = queue_of([10, 100, 11, 101, 12, 102], max_rows=3, max_tokens=10_000)
    assert [sorted(entry.length for entry in batch) for batch in drained(queue)] == [[10, 11, 12], [100, 101, 102]]


def test_abandoned_rows_do_not_run():
    queue: BatchQueue[int] = BatchQueue(max_rows=8, max_tokens=100, max_queued=9, abandoned=lambda item: item % 2 == 0)
    queue.push([Entry(index, 1) for index in range(6)])
    assert sorted(entry.item for entry in queue.pop()) == [1, 3, 5]
    assert queue.pop() == []
    assert len(queue) == 0


def test_a_full_queue_takes_all_rows_of_a_job_or_none():
    queue: BatchQueue[int] = BatchQueue(max_rows=8, max_tokens=100, max_queued=3)
    queue.push([Entry(0, 1), Entry(1, 1)])
    with pytest.raises(Overloaded, match="2 rows wait, 2 more are over the limit of 3"):
        queue.push([Entry(2, 1), Entry(3, 1)])
    assert len(queue) == 2
    queue.push([Entry(4, 1)])
    assert [entry.item for entry in queue.drain()] == [0, 1, 4]
