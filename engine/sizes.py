"""Sizes in words: the one way in which all commands and logs write them. And the largest answer."""

from __future__ import annotations

LARGEST_REPLY = 20_000_000
"""Bytes of a job's final body that RunPod takes (its SDK's check_return_size)."""


def readable(size: float) -> str:
    """A size in bytes as kB, MB or GB, which are powers of ten."""
    if size >= 999.95e6:  # rounded this would be 1000.0 MB
        return f"{size / 1e9:.2f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"
