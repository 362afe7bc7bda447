import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from engine.batching.lanes import TOGETHER, Lanes


class Turns(RuleBasedStateMachine):
    """Whatever happens, TOGETHER runs alone, nobody takes more than waits, and something may run when nothing does."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.running: dict[int, int] = {}
        self.waiting = 0

    @rule(count=st.integers(2, 5))
    def opened(self, count: int):
        if not self.lanes.count:
            self.lanes.open(count)

    @rule(rows=st.integers(1, 9))
    def pushed(self, rows: int):
        self.waiting += rows

    @rule(lane=st.integers(0, 5), fewer=st.integers(0, 2))
    def asked(self, lane: int, fewer: int):
        if lane > self.lanes.count:
            return
        share = self.lanes.share(lane, self.waiting)
        assert 0 <= share <= self.waiting
        if not share:
            return
        assert lane not in self.running
        assert TOGETHER not in self.running
        assert lane != TOGETHER or not self.running
        rows = max(1, share - fewer)  # what is of near length may be less
        self.lanes.begin(lane, rows)
        self.running[lane] = rows
        self.waiting -= rows

    @rule(lane=st.integers(0, 5))
    def ended(self, lane: int):
        self.lanes.end(lane)
        self.running.pop(lane, None)

    @invariant()
    def somebody_may_run(self):
        shares = [self.lanes.share(lane, self.waiting) for lane in range(self.lanes.count + 1)]
        assert any(shares) == bool(self.waiting) or self.running
        assert sum(map(bool, shares[1:])) == (self.lanes.free(self.waiting) if self.waiting else 0)


TestTurns = Turns.TestCase


@pytest.mark.parametrize("waiting", [1, 2, 30])
def test_until_they_are_open_everything_runs_together(waiting: int):
    assert Lanes().share(TOGETHER, waiting) == waiting


def test_rows_are_shared_out_among_the_free_lanes():
    lanes = Lanes()
    lanes.open(3)
    assert [lanes.share(lane, 2) for lane in range(4)] == [2, 0, 0, 0]  # a thread would have nothing to do
    assert [lanes.share(lane, 7) for lane in range(4)] == [0, 3, 3, 3]
    lanes.begin(2, 3)
    assert [lanes.share(lane, 4) for lane in range(4)] == [0, 2, 0, 2]
    assert [lanes.share(lane, 0) for lane in range(4)] == [0, 0, 0, 0]
    lanes.begin(1, 1)
    lanes.end(2)
    assert [lanes.share(lane, 1) for lane in range(4)] == [0, 0, 0, 0]  # two rows in all: soon it is TOGETHER's turn
    lanes.end(1)
    assert [lanes.share(lane, 1) for lane in range(4)] == [1, 0, 0, 0]
