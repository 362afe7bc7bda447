"""What a TensorRT builder says: its errors, kept for the sentence that may follow, and its progress.

`trt` is the module: tensorrt, or tensorrt_rtx, whose names are the same.
"""

from __future__ import annotations

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from export.command import interrupts

_KEPT = 200
_MOST_SHOWN = 5
_PERIOD_S = 10.0
_LAYER = re.compile(r"^Name: (.*?), LayerType: (\w+)", re.MULTILINE)


@cache
def logger_of(trt: Any) -> Any:
    """The logger of `trt`, one a process: TensorRT keeps the first that it is given. `clear` it before a build.

    `errors` holds the latest errors, `layers` what was said of layers that were built, and `warning` the last one:
    TensorRT 8.6 calls it a warning that CUDA does not start, and has no other word for it.
    """
    severities = trt.ILogger.Severity

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: deque[str] = deque(maxlen=_KEPT)
            self.layers: list[str] = []
            self.warning = ""

        def clear(self) -> None:
            self.errors.clear()
            self.layers.clear()
            self.warning = ""

        def log(self, severity: Any, text: str) -> None:
            if severity in (severities.INTERNAL_ERROR, severities.ERROR):
                self.errors.append(text)
            elif severity == severities.WARNING:
                self.warning = text
            elif ", LayerType: " in text:
                self.layers.append(text)

    return Logger()


def kernels_of(logger: Any) -> tuple[int, int]:
    """How many kernels the layers that were built have, and how many of them are fused attention.

    Builders tell it where profiling verbosity is detailed. Attention that is not fused is two products and a softmax.
    """
    found = [pair for text in logger.layers for pair in _LAYER.findall(text)]
    names = [name for name, kind in found if kind not in ("signal", "wait")]
    return len(names), sum("_mha" in name for name in names)


def errors_of(logger: Any) -> str:
    """The first errors since the list was cleared, which name the layer, and the last, which says what came of them.

    On one line; empty without any.
    """
    found = list(dict.fromkeys(" ".join(text.split()) for text in logger.errors))
    return "; ".join(found if len(found) <= _MOST_SHOWN else [*found[: _MOST_SHOWN - 1], found[-1]])


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Note Ctrl-C, SIGTERM and SIGHUP while TensorRT works and raise KeyboardInterrupt afterwards.

    Raised in one of its callbacks, of which the logger is one, an exception would be swallowed by TensorRT's bindings.
    """
    interrupts.check()
    try:
        with interrupts.held():
            yield
    finally:
        interrupts.check()


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def monitor_of(trt: Any, show: Callable[[str], None] = _show) -> Any | None:
    """A progress monitor that shows at most a line in ten seconds, or None where `trt` (before 10) has none.

    The build ends early when a signal has come. Must live as long as the builder's configuration does.
    """
    base: Any = getattr(trt, "IProgressMonitor", None)
    if base is None:
        return None

    class Monitor(base):
        def __init__(self) -> None:
            super().__init__()
            self._steps: dict[str, int] = {}
            self._shown = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Called from several threads; false ends the build."""
            if time.monotonic() - self._shown >= _PERIOD_S:
                self._shown = time.monotonic()
                show(f"    {phase_name}: {step + 1} of {self._steps.get(phase_name, 0)}")
            return not interrupts.came()

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

    return Monitor()
