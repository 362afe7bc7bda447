import threading
from collections.abc import Iterator

import numpy as np
import pytest

from engine.backends.cuda import Cuda
from engine.errors import EngineError, EngineLost, OutOfMemory
from tests.cuda_double import CUresult, Device, installed


@pytest.fixture
def device() -> Device:
    return Device(capacity=10_000)


@pytest.fixture
def cuda(device: Device) -> Iterator[Cuda]:
    with installed(device):
        yield Cuda()


def test_copies_happen_when_they_are_waited_for(cuda: Cuda):
    with cuda.active("copying"):
        address, source, target = cuda.device(64), cuda.pinned(64), cuda.pinned(64)
        source[:] = np.arange(64)
        done = cuda.event()
        cuda.copy_in(address, source)
        cuda.copy_out(target, address)
        cuda.record(done)
        assert not target.any()
        cuda.wait(done)
    assert np.array_equal(target, source)


def test_a_capture_runs_nothing_until_it_is_replayed(cuda: Cuda, device: Device):
    with cuda.active("capturing"):
        address, source, target = cuda.device(8), cuda.pinned(8), cuda.pinned(8)

        def work() -> None:
            cuda.copy_in(address, source)
            cuda.copy_out(target, address)

        replay = cuda.capture(work)
        cuda.wait_all()
        assert not target.any()
        for value in (1, 2):
            source[:] = value
            device.calls.clear()
            cuda.replay(replay)
            assert device.calls == ["cuGraphLaunch"]
            cuda.wait_all()
            assert (target == value).all()


def test_every_allocation_is_counted_and_freed(cuda: Cuda, device: Device):
    with cuda.active("allocating"):
        for size in (1, 0, 300):
            assert cuda.device(size) % 256 == 0
            cuda.pinned(size)
        assert cuda.memory_left() == (10_000 - 302, 10_000)
    assert cuda.allocations == 6
    cuda.close()
    assert not device.memory
    assert not device.pinned


def test_the_context_is_current_only_in_the_block_and_in_its_thread(cuda: Cuda, device: Device):
    assert not device.stack
    with cuda.active("one"):
        with cuda.active("two"):
            assert len(device.stack) == 1  # pycuda pops the context before it pushes the next
        assert len(device.stack) == 1
    assert not device.stack
    found = []

    def elsewhere() -> None:
        with cuda.active("elsewhere"):
            found.append(cuda.device(1))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found


def test_the_primary_context_is_never_destroyed(device: Device):
    with installed(device):
        Cuda().close()
    assert device.leaked == []


def test_the_stack_is_left_clean_by_an_error(cuda: Cuda, device: Device):
    with pytest.raises(ZeroDivisionError), cuda.active("dividing"):
        raise ZeroDivisionError
    assert not device.stack


def test_out_of_memory_is_told_apart_and_leaves_the_context_usable(cuda: Cuda):
    with (
        pytest.raises(OutOfMemory, match="CUDA failed while loading: cuMemAlloc failed: out of memory"),
        cuda.active("loading"),
    ):
        cuda.device(20_000)
    with cuda.active("loading"):
        cuda.device(5_000)


def test_out_of_memory_of_a_capture(cuda: Cuda, device: Device):
    device.faults["cuGraphInstantiateWithFlags"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with pytest.raises(OutOfMemory, match="cuGraphInstantiateWithFlags failed"), cuda.active("capturing"):
        cuda.capture(lambda: None)


def test_an_error_that_passes_is_not_the_end(cuda: Cuda, device: Device):
    device.faults["cuMemcpyHtoDAsync"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with cuda.active("allocating"):
        source = cuda.pinned(8)
    with pytest.raises(EngineError) as caught, cuda.active("running"):
        cuda.copy_in(1, source)
    assert type(caught.value) is EngineError


@pytest.mark.misuses_cuda
def test_a_copy_to_nobodys_address_is_refused_at_once(cuda: Cuda):
    with cuda.active("allocating"):
        source, address = cuda.pinned(8), cuda.device(4)
    for wrong in (12345, address):
        said = "cuMemcpyHtoDAsync failed: invalid argument"
        with pytest.raises(EngineError, match=said) as caught, cuda.active("running"):
            cuda.copy_in(wrong, source)
        assert type(caught.value) is EngineError


def test_a_sticky_error_is_the_end(cuda: Cuda, device: Device):
    with cuda.active("allocating"):
        source, address = cuda.pinned(8), cuda.device(8)
    with pytest.raises(EngineLost, match="CUDA failed while running.*illegal memory access"), cuda.active("running"):
        device.submit(lambda: device.at(12345, 1)[:].fill(0), cuda.stream)  # a kernel, and nobody's address
        cuda.wait_all()
    with pytest.raises(EngineLost), cuda.active("trying again"):
        cuda.copy_in(address, source)


def test_an_error_of_the_engines_own_becomes_lost_when_the_context_is(cuda: Cuda, device: Device):
    with pytest.raises(EngineError) as caught, cuda.active("running"):
        raise EngineError("TensorRT says no")
    assert type(caught.value) is EngineError
    device.sticky = CUresult.CUDA_ERROR_LAUNCH_FAILED
    with (
        pytest.raises(EngineLost, match=r"says no \(cuStreamSynchronize failed: unspecified launch"),
        cuda.active("running"),
    ):
        raise EngineError("TensorRT says no")


def test_an_error_that_cuda_python_has_no_name_for(cuda: Cuda, device: Device):
    """Drivers are newer than CUDA 11.8, and cuda-python raises a ValueError for codes that came later."""
    with cuda.active("capturing"):
        replay = cuda.capture(lambda: None)
    device.unnamed["cuGraphLaunch"] = 914
    with pytest.raises(EngineError, match="914 is not a valid CUresult") as caught, cuda.active("running"):
        cuda.replay(replay)
    assert type(caught.value) is EngineError
    device.unnamed["cuStreamSynchronize"] = 914  # and it comes back
    with pytest.raises(EngineLost, match=r"it says no \(cuStreamSynchronize failed: an error"), cuda.active("running"):
        raise EngineError("it says no")


def test_a_failing_capture_leaves_the_stream_usable(cuda: Cuda, device: Device):
    for work, error in ((lambda: 1 / 0, ZeroDivisionError), (lambda: cuda.device(8), EngineError)):
        with pytest.raises(error), cuda.active("capturing"):
            cuda.capture(work)  # type: ignore[arg-type]
        assert device.capturing is None
    with cuda.active("capturing"):
        cuda.replay(cuda.capture(lambda: None))
        cuda.wait_all()


def test_captures_are_destroyed_once(cuda: Cuda, device: Device):
    with cuda.active("capturing"):
        cuda.capture(lambda: None)
        cuda.free()
        cuda.free()
    assert [graph.destroyed for graph in device.graphs] == [True]


def test_without_the_packages_the_fix_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "pycuda", None)
    with pytest.raises(EngineError, match=r"install requirements/all\.txt"):
        Cuda()


def test_a_driver_that_does_not_start(device: Device):
    device.faults["cuInit"] = CUresult.CUDA_ERROR_INVALID_VALUE
    with installed(device), pytest.raises(EngineError, match="CUDA does not start") as caught:
        Cuda()
    assert type(caught.value) is EngineError


def test_no_memory_for_a_context_is_memory_that_does_not_suffice(device: Device):
    device.faults["cuDevicePrimaryCtxRetain"] = CUresult.CUDA_ERROR_OUT_OF_MEMORY
    with installed(device), pytest.raises(OutOfMemory, match="CUDA does not start: cuDevicePrimaryCtxRetain failed"):
        Cuda()
