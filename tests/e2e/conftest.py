"""What holds for all exports here."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _speed_decides_nothing() -> Iterator[None]:
    """The models are tiny: which form of int8 runs faster on one says nothing, and differs from run to run."""
    from export import ladder_cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder_cpu, "_STATIC_WORTH", float("inf"))
        yield
