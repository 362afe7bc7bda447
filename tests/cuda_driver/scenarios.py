"""`python -m tests.cuda_driver.scenarios NAME`: what needs a whole process, on real pycuda and cuda-python.

For EMU_STRICT=1: what the software driver finds wrong ends the process, also when the interpreter is at its end.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tests.cuda_driver.device import SoftwareDevice, failures, library, replace_double

replace_double()

from engine.backends.cuda import Cuda  # noqa: E402
from engine.batching.feed import run_rows  # noqa: E402
from engine.errors import EngineError, EngineLost  # noqa: E402
from engine.tensors import Row  # noqa: E402
from tests.bundles import write_small_bundle  # noqa: E402
from tests.tensorrt_double import TensorRtDouble, engine_on_double  # noqa: E402

device: Any = SoftwareDevice()


def in_thread(work: Callable[[], Any]) -> Any:
    """What `work` returns, or raises, in a thread of its own that has ended."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).result()


def raised_by(work: Callable[[], Any]) -> BaseException | None:
    """What `work` raises in a thread of its own."""
    with ThreadPoolExecutor(1) as threads:
        return threads.submit(work).exception()


def break_context(cuda: Cuda) -> None:
    device.submit(lambda: device.at(5, 5).fill(0), cuda.stream)
    cuda.wait_all()


def lost(work: Callable[[], object]) -> str:
    try:
        work()
    except EngineLost as error:
        return str(error)
    raise AssertionError("not lost")


def a_thread_ends_after_the_context_broke() -> None:
    """Where the driver answers pop with the sticky error too, pycuda's own stack is not empty when the thread ends."""
    cuda = Cuda()

    def run(work: Callable[[Cuda], None]) -> None:
        with cuda.active("running"):
            work(cuda)

    with cuda.active("allocating"):
        answers = cuda.pinned(8)
    said = "CUDA failed while running: cuStreamSynchronize failed: an illegal memory access was encountered"
    assert in_thread(lambda: lost(lambda: run(break_context))) == said
    for elsewhere in (in_thread, lambda work: work()):
        assert "an illegal memory access" in elsewhere(lambda: lost(lambda: run(Cuda.wait_all)))
    assert not answers.any()  # of the run before: still there for whoever hands them out
    with suppress(EngineLost):
        cuda.close()


def a_context_cannot_be_pushed_within_a_block() -> None:
    cuda = Cuda()

    def nested() -> None:
        with cuda.active("outer"):
            library().emu_fail(b"cuCtxPushCurrent", 1, 1, 999)
            with cuda.active("inner"):
                raise AssertionError

    assert in_thread(lambda: lost(nested)) == "CUDA failed while inner: cuCtxPushCurrent failed: unknown error"


def an_error_while_the_device_is_busy() -> None:
    """Other Python threads run while it is found out whether the error is sticky."""
    cuda, ticks, done = Cuda(), [0], threading.Event()

    def tick() -> None:
        while not done.wait(0.01):
            ticks[0] += 1

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        with cuda.active("running"):
            device.sleep(300, cuda.stream)
            before = ticks[0]
            raise EngineError("TensorRT says no")
    except EngineError:
        pass
    assert ticks[0] - before > 5, ticks[0] - before
    done.set()
    cuda.close()


def an_error_while_another_engine_is_captured() -> None:
    """It is found out whether the error is sticky, and the capture survives that."""
    captured, other = Cuda(), Cuda()

    def fail() -> None:
        with other.active("running"):
            raise EngineError("TensorRT says no")

    def work() -> None:
        captured.copy_in(address, source)
        kinds.append(type(raised_by(fail)))

    kinds: list[type] = []
    with captured.active("capturing"):
        address, source = captured.device(8), captured.pinned(8)
        captured.replay(captured.capture(work))
        captured.wait_all()
    assert kinds == [EngineError]
    for cuda in (captured, other):
        cuda.close()


def an_engine_is_never_closed() -> None:
    cuda = Cuda()
    with cuda.active("allocating"):
        cuda.device(8), cuda.pinned(8), cuda.event()
        cuda.capture(lambda: None)
    in_thread(Cuda)


def nor_one_that_was_lost() -> None:
    an_engine_is_never_closed()
    cuda = Cuda()
    with cuda.active("allocating"):
        cuda.device(8), cuda.pinned(8), cuda.event()
    try:
        with cuda.active("running"):
            break_context(cuda)
    except EngineLost:
        return
    raise AssertionError


def row(length: int) -> Row:
    return Row({name: np.ones(length, np.int32) for name in ("input_ids", "attention_mask")}, length)


def an_engine_goes_from_thread_to_thread() -> None:
    with TemporaryDirectory() as folder:
        engine = in_thread(lambda: engine_on_double(write_small_bundle(Path(folder) / "bundle"), device=device))
        in_thread(engine.warm_up)
        found = [in_thread(lambda: run_rows(engine, [row(9)])) for _ in range(3)]
        assert all(np.isclose(one["embedding"][0], 0.009) for (one,) in found)
        in_thread(engine.close)
        assert not device.memory
        assert not device.pinned


def two_engines_at_once() -> None:
    """As a worker of two graphs, and one of them is captured while the other allocates."""
    with TemporaryDirectory() as folder:
        trt = sys.modules["tensorrt"] = TensorRtDouble(device)

        def serve(name: str) -> None:
            bundle = write_small_bundle(Path(folder) / name)
            for _ in range(3):
                engine = engine_on_double(bundle, device=device, trt=trt)
                engine.warm_up()
                assert not engine.notes, engine.notes
                for number in range(60):
                    slot, length = number % 2, 1 + number % 32
                    (found,) = run_rows(engine, [row(length)], slot)
                    assert np.isclose(found["embedding"][0], length / 1000)
                engine.close()

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(serve, ("a", "b")))
        assert not device.memory


def a_driver_without_a_function() -> None:
    """EMU_HIDDEN=cuGraphUpload: one that is older than cuda-python. Buckets run without a CUDA graph, and say so."""
    with TemporaryDirectory() as folder:
        engine = engine_on_double(write_small_bundle(Path(folder) / "bundle"), device=device)
        engine.warm_up()
        assert engine.notes == [
            "9 of 9 buckets run without a CUDA graph: CUDA failed while capturing Bucket(batch=8, length=32): "
            'cuGraphUpload failed: Function "cuGraphUpload" not found'
        ], engine.notes
        run_rows(engine, [row(9)])
        engine.close()


def the_tests_of_running_engines_on_a_gpu() -> None:
    """Before a GPU's time is spent on them: that they hold here, where TensorRT is the double."""
    from tests.gpu import test_running

    with TemporaryDirectory() as folder:
        engine = engine_on_double(write_small_bundle(Path(folder) / "bundle"), device=device)
        engine.warm_up()
        test_running.test_every_bucket_is_captured_for_every_slot(engine)
        test_running.test_a_replay_equals_a_plain_run_bit_for_bit(engine)
        test_running.test_slots_do_not_disturb_each_other(engine)
        test_running.test_ten_thousand_runs_allocate_nothing(engine)
        engine.close()


SCENARIOS: dict[str, Callable[[], None]] = {
    work.__name__: work
    for work in (
        a_thread_ends_after_the_context_broke,
        a_context_cannot_be_pushed_within_a_block,
        an_error_while_the_device_is_busy,
        an_error_while_another_engine_is_captured,
        an_engine_is_never_closed,
        nor_one_that_was_lost,
        an_engine_goes_from_thread_to_thread,
        two_engines_at_once,
        a_driver_without_a_function,
        the_tests_of_running_engines_on_a_gpu,
    )
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]]()
    print("".join(failures), "done", flush=True)
