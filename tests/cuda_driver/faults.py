"""`python -m tests.cuda_driver.faults CODE STEP FOLDER`: an engine's life in which one call ends with CODE.

For the first, the STEP-th after it and so on, each in a process of its own, which must end as if nothing had been: with
EngineErrors where they belong and no others, and with memory freed where the context works.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from pathlib import Path

import numpy as np

from tests.cuda_driver.device import SoftwareDevice, library, replace_double, reports

replace_double()

from engine.batching.feed import run_rows  # noqa: E402
from engine.errors import EngineError, EngineLost  # noqa: E402
from engine.tensors import Row  # noqa: E402
from tests.bundles import write_small_bundle  # noqa: E402
from tests.plans import profiles  # noqa: E402
from tests.tensorrt_double import engine_on_double  # noqa: E402

BATCHES, LENGTHS = (1, 4), (32,)


def live(bundle: Path) -> list[EngineError]:
    """Load, warm up, run and close an engine; what it raised."""
    raised: list[EngineError] = []
    try:
        made = profiles(BATCHES, LENGTHS)
        # It says that it takes the double's Device, in whose place this one stands: see `replace_double`.
        engine = engine_on_double(bundle, device=SoftwareDevice(), profiles=made, batches=BATCHES, lengths=LENGTHS)  # type: ignore[arg-type]
    except EngineError as error:
        return [error]
    try:
        engine.warm_up()
        for slot in (0, 1, 0):
            row = Row({name: np.ones(3, np.int32) for name in ("input_ids", "attention_mask")}, 3)
            try:
                (found,) = run_rows(engine, [row], slot)
                assert np.isclose(found["embedding"][0], 0.003), found
            except EngineError as error:
                raised.append(error)
    except EngineError as error:
        raised.append(error)
    engine.close()
    return raised


def child(bundle: Path, nth: int, code: int) -> None:
    """One life, in a thread of its own."""
    library().emu_fail(b"*", nth, 1, code)
    raised: list[EngineError] = []
    thread = threading.Thread(target=lambda: raised.extend(live(bundle)))
    thread.start()
    thread.join()
    lib = library()
    works = not lib.emu_sticky() and not any(isinstance(error, EngineLost) for error in raised)
    name = lib.emu_fault_met().decode()
    works = works and "Current" not in name  # push and pop
    if works and "Free" not in name and (lib.emu_allocated(0) or lib.emu_allocated(1)):
        sys.exit(f"call {nth}, {name}: memory is left, after {raised}")
    if said := reports():
        sys.exit(f"call {nth}, {name}: {said}")


def main(code: int, step: int, folder: Path) -> int:
    """How many lives did not end well."""
    bundle = write_small_bundle(folder / "bundle")
    read, write = os.pipe()
    if not (pid := os.fork()):
        live(bundle)
        os.write(write, str(library().emu_call_count()).encode())
        return 0
    os.close(write)  # else a child that ends without a word would be waited for
    count, failed = int(os.read(read, 100)), 0
    os.waitpid(pid, 0)
    for nth in range(1, count + 1, step):
        if not (pid := os.fork()):
            child(bundle, nth, code)
            return 0  # and all that the interpreter does at its end
        _, status = os.waitpid(pid, 0)
        if status:
            print(f"call {nth} of {count}: status {status}", flush=True)
            failed += 1
    return failed


def end(hook: threading.ExceptHookArgs) -> None:
    """Of what is no EngineError."""
    traceback.print_exception(hook.exc_value)
    os._exit(3)


if __name__ == "__main__":
    threading.excepthook = end
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])))
