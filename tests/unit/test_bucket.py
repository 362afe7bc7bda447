import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.bucket import Bucket, Ladder, rungs

sizes = st.lists(st.integers(1, 64), min_size=1, unique=True).map(sorted)


@given(sizes, sizes, st.integers(1, 80), st.integers(1, 80))
def test_the_smallest_bucket_that_fits(batches: list[int], lengths: list[int], batch: int, length: int):
    ladder = Ladder(batches, lengths)
    fitting = [b for b in ladder if b.batch >= batch and b.length >= length]
    if fitting:
        found = ladder.fit(batch, length)
        assert found in fitting
        assert all(found.batch <= other.batch and found.length <= other.length for other in fitting)
    else:
        with pytest.raises(ValueError, match="no bucket holds"):
            ladder.fit(batch, length)


@given(sizes, sizes)
def test_the_least_rows_of_a_bucket(batches: list[int], lengths: list[int]):
    ladder = Ladder(batches, lengths)
    for bucket in ladder:
        least = ladder.least(bucket)
        assert ladder.fit(*least) == bucket
        for fewer in (Bucket(least.batch - 1, least.length), Bucket(least.batch, least.length - 1)):
            assert 0 in fewer or ladder.fit(*fewer) != bucket


@given(sizes, sizes)
def test_a_ladder_is_the_sequence_of_its_buckets(batches: list[int], lengths: list[int]):
    ladder = Ladder(batches, lengths)
    listed = list(ladder)
    assert len(ladder) == len(listed)
    assert [ladder[i] for i in range(len(ladder))] == listed == sorted(listed)
    assert ladder[-1] == ladder.largest == listed[-1]
    assert list(ladder[1:3]) == listed[1:3]


@given(sizes, sizes, st.integers(1, 600))
def test_within_so_many_tokens_are_the_buckets_that_batches_come_to(batches: list[int], lengths: list[int], most: int):
    """Those of at most so many tokens, and one row alone however long."""
    whole = Ladder(batches, lengths)
    found = whole.within(most)
    rows, longest = range(1, batches[-1] + 1), range(1, lengths[-1] + 1)
    formed = {whole.fit(n, length) for n in rows for length in longest if n == 1 or n * length <= most}
    assert list(found) == sorted(formed)
    assert all(found.fit(*whole.least(bucket)) == bucket for bucket in formed)
    assert found.max_tokens == (most if len(formed) < len(whole) else 0)  # so that nothing is held to it for nothing
    assert list(found.within(0)) == list(found.within(most)) == list(found)
    assert list(found.within(most + 100)) == list(found)
    for bucket in set(whole) - formed:
        with pytest.raises(ValueError, match=rf"no bucket holds .*, only up to {most} tokens"):
            found.fit(*bucket)


@pytest.mark.parametrize("sizes", [[], [0], [2, 1], [1, 1]])
def test_sizes_out_of_order_are_refused(sizes: list[int]):
    with pytest.raises(ValueError, match="rising whole numbers"):
        Ladder(sizes, [1])
    with pytest.raises(ValueError, match="rising whole numbers"):
        Ladder([1], sizes)


@given(st.integers(1, 600), st.integers(1, 64))
def test_rungs_rise_to_the_maximum(maximum: int, step: int):
    found = rungs(maximum, step)
    assert found[-1] == maximum
    assert all(size % step == 0 for size in found[:-1])
    assert list(found) == sorted(set(found))
    assert len(found) == -(-maximum // step)


def test_tokens_count_padding():
    assert Bucket(4, 16).tokens == 64
