"""What a run costs beside its tokens, and how many of them are worth running at once, from measured latencies. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from engine.bucket import Bucket

BEST_TOKENS_OF_A_GPU = 16_384
"""Where nothing was measured. Not measured itself yet."""
_NEAR = 0.95
"""Of the highest rate of tokens: a rate above this counts as the highest, for a larger bucket that is faster by no more
than timings vary is no reason to wait for more rows."""


def overhead_tokens(latencies_us: Mapping[Bucket, int]) -> int:
    """The tokens that take as long as a run without any: a / b of the line a + b * tokens through the latencies.

    Least squares of relative errors, so that small buckets count as much as large ones; between 0 and the tokens of the
    largest bucket.
    """
    points = [(bucket.tokens, us, 1 / us**2) for bucket, us in latencies_us.items()]
    most = max(tokens for tokens, _, _ in points)
    total = sum(weight for *_, weight in points)
    mean = sum(weight * tokens for tokens, _, weight in points) / total
    mean_us = sum(weight * us for _, us, weight in points) / total
    spread = sum(weight * (tokens - mean) ** 2 for tokens, _, weight in points)
    rise = sum(weight * (tokens - mean) * (us - mean_us) for tokens, us, weight in points)
    if rise <= 0 or spread == 0:
        return most  # tokens cost nothing
    slope = rise / spread
    return round(min(max(mean_us / slope - mean, 0), most))


def best_tokens(latencies_us: Mapping[Bucket, int]) -> int:
    """The fewest tokens of a bucket that run at nearly the highest rate of tokens."""
    rates = {bucket: bucket.tokens / us for bucket, us in latencies_us.items()}
    return min(bucket.tokens for bucket, rate in rates.items() if rate >= _NEAR * max(rates.values()))
