import weakref
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.backends.buffers import ALIGNMENT, MOST_VIEWS, Buffers, DeviceBuffers, Layout
from engine.bucket import Ladder
from engine.tensors import Array, TensorSpec

AXES: st.SearchStrategy[int | str] = st.sampled_from(["batch", "length", 1, 3, 7])
DTYPES = st.sampled_from(["int32", "float32", "float16", "uint8", "int64", "bool"])
SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=4, unique=True).map(sorted)
ladders = st.builds(Ladder, SIZES, SIZES, st.sampled_from([0, 0, 50, 400]))


@st.composite
def tensors(draw: st.DrawFn, prefix: str) -> list[TensorSpec]:
    shapes = draw(st.lists(st.lists(AXES, max_size=2), min_size=1, max_size=4))
    return [TensorSpec(f"{prefix}{i}", draw(DTYPES), ("batch", *shape)) for i, shape in enumerate(shapes)]


class Host:
    """Memory of this machine in the role of the device's."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def device(self, size: int) -> int:
        self.asked.append(size)
        return 0x7F00_0000_0000

    def pinned(self, size: int) -> Array:
        self.asked.append(size)
        return np.zeros(size, np.uint8)


def ends(view: Array) -> tuple[int, int]:
    begin = view.__array_interface__["data"][0]
    return begin, begin + view.nbytes


@given(tensors("in"), tensors("out"), ladders, st.integers(1, 2))
def test_one_copy_covers_all_tensors_of_a_bucket_and_nothing_else(
    inputs: list[TensorSpec], outputs: list[TensorSpec], ladder: Ladder, slots: int
):
    host = Host()
    buffers = DeviceBuffers(host, inputs, outputs, ladder, slots)
    assert len(host.asked) == 2
    sides = [max(Layout(specs).size(bucket) for bucket in ladder) for specs in (inputs, outputs)]
    assert host.asked == [sum(sides), slots * sum(sides)]  # and not for buckets that are left out
    for bucket in ladder:
        addresses = buffers.addresses(bucket)
        spans = []
        for slot in range(slots):
            for specs, views, block, device in (
                (inputs, buffers.feeds(bucket, slot), buffers.host_in(bucket, slot), buffers.device_in),
                (outputs, buffers.results(bucket, slot), buffers.host_out(bucket, slot), buffers.device_out),
            ):
                assert list(views) == [spec.name for spec in specs]
                begin, end = ends(block)
                assert block.flags.c_contiguous
                for spec in specs:
                    view = views[spec.name]
                    assert (view.shape, view.dtype.name) == (spec.shape_at(bucket), spec.dtype)
                    assert view.flags.c_contiguous
                    low, high = ends(view)
                    assert begin <= low < high <= end
                    # The device's side of the copy lies in the same order at the same distances.
                    assert addresses[spec.name] - device == low - begin
                    assert addresses[spec.name] % ALIGNMENT == 0
                    spans.append((low, high))
                assert end - begin < sum(view.nbytes for view in views.values()) + ALIGNMENT * len(specs)
                assert device + len(block) <= 0x7F00_0000_0000 + host.asked[0]
        # No two tensors overlap, of whatever slot and direction.
        spans.sort()
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
        assert buffers.device_in + len(buffers.host_in(bucket, 0)) <= buffers.device_out


def test_views_are_the_same_at_every_call():
    ladder = Ladder([1, 2], [8])
    spec = TensorSpec("a", "int32", ("batch", "length"))
    buffers = DeviceBuffers(Host(), [spec], [spec], ladder, 2)
    for slot in (0, 1):
        assert buffers.feeds(ladder[0], slot)["a"] is buffers.feeds(ladder[0], slot)["a"]
        assert buffers.results(ladder[1], slot)["a"] is buffers.results(ladder[1], slot)["a"]
    assert np.shares_memory(buffers.feeds(ladder[0], 0)["a"], buffers.feeds(ladder[1], 0)["a"])
    assert not np.shares_memory(buffers.feeds(ladder[1], 0)["a"], buffers.feeds(ladder[1], 1)["a"])


def test_views_of_thousands_of_buckets_are_not_kept():
    """As seldom ones come, these would make a worker larger for days."""
    specs = [TensorSpec("ids", "int32", ("batch", "length"))]
    ladder = Ladder(range(1, 33), range(1, 33))
    buffers = Buffers(specs, ladder)
    first = buffers.at(ladder.fit(1, 1))["ids"]
    first[:] = 7
    del first
    kept = [weakref.ref(buffers.at(bucket)["ids"]) for bucket in ladder]
    assert sum(view() is not None for view in kept) == MOST_VIEWS < len(kept)
    assert buffers.at(ladder.fit(1, 1))["ids"].tolist() == [[7]]  # the same memory as ever


@given(tensors("t"), ladders)
def test_a_smaller_bucket_never_needs_more(specs: list[TensorSpec], ladder: Ladder):
    layout, host = Layout(specs), Buffers(specs, ladder)
    for bucket in ladder:
        assert layout.size(bucket) <= layout.size(ladder.largest)
        assert layout.size(bucket) % ALIGNMENT == 0
        assert sum(view.nbytes for view in host.at(bucket).values()) <= layout.size(bucket)


@pytest.mark.parametrize("slot", [0, 1])
def test_bytes_written_through_a_view_are_in_the_block(slot: int):
    ladder = Ladder([2], [4])
    specs = [TensorSpec("a", "int32", ("batch", "length")), TensorSpec("b", "float16", ("batch",))]
    buffers = DeviceBuffers(Host(), specs, specs, ladder, 2)
    feeds = buffers.feeds(ladder[0], slot)
    feeds["a"][:] = 7
    feeds["b"][:] = 1
    block = buffers.host_in(ladder[0], slot)
    assert block[:32].view(np.int32).tolist() == [7] * 8
    assert block[ALIGNMENT : ALIGNMENT + 4].view(np.float16).tolist() == [1, 1]
    assert not buffers.host_in(ladder[0], 1 - slot).any()
