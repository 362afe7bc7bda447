from hypothesis import given
from hypothesis import strategies as st

from engine.batching.costs import best_tokens, overhead_tokens
from engine.bucket import Bucket, Ladder

LADDER = Ladder((1, 4, 8, 32), (16, 64, 256))


@given(st.integers(0, 5000), st.integers(1, 50))
def test_a_line_through_the_latencies_is_found(overhead: int, slope: int):
    """1000 us for every token, so that rounding to whole numbers is nothing."""
    us = {bucket: 1000 * slope * (overhead + bucket.tokens) for bucket in LADDER}
    assert abs(overhead_tokens(us) - overhead) <= 1
    rate = LADDER.largest.tokens / us[LADDER.largest]
    best = best_tokens(us)
    assert best / (1000 * slope * (overhead + best)) >= 0.95 * rate
    assert all(b.tokens / us[b] < 0.95 * rate for b in LADDER if b.tokens < best)


@given(st.lists(st.integers(1, 10**7), min_size=12, max_size=12))
def test_whatever_was_measured_the_figures_are_within_the_ladder(latencies: list[int]):
    us = dict(zip(LADDER, latencies, strict=True))
    assert 0 <= overhead_tokens(us) <= LADDER.largest.tokens
    assert best_tokens(us) in {bucket.tokens for bucket in LADDER}


def test_tokens_that_cost_nothing_are_padded_to_the_largest_bucket():
    assert overhead_tokens(dict.fromkeys(LADDER, 500)) == LADDER.largest.tokens
    assert best_tokens(dict.fromkeys(LADDER, 500)) == LADDER.largest.tokens
    assert overhead_tokens({Bucket(1, 1): 70}) == best_tokens({Bucket(1, 1): 70}) == 1


def test_a_gpu_that_is_full_at_half_the_largest_batch_is_given_no_more():
    us = {Bucket(1, 64): 500, Bucket(4, 64): 600, Bucket(8, 64): 1000, Bucket(16, 64): 2000, Bucket(32, 64): 4000}
    assert best_tokens(us) == 8 * 64
