"""A process that is asked over its standard input and answers over its standard output: a line of JSON each way.

Its first line says that it is ready. Only the answers go to standard output; what libraries print goes to the log.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import IO, Any, Self

from benchmarks.processes import kill_tree, stop_process, tree_memory_mb
from benchmarks.targets.base import ANSWER_TIMEOUT_S, START_TIMEOUT_S

Json = dict[str, Any]


class _TooLate(RuntimeError):
    pass


class PipeProcess:
    """Starts `command` and waits for its first line, kept as `hello`; a context manager that leaves no process behind.

    Raises RuntimeError when the process ends, or says nothing within `timeout_s` seconds.
    """

    def __init__(
        self,
        command: Sequence[str],
        env: Mapping[str, str] | None = None,
        *,
        log: IO[str] | int | None = subprocess.DEVNULL,
        timeout_s: float = START_TIMEOUT_S,
    ) -> None:
        self.started = time.perf_counter()
        self._name = " ".join(command[1:3])
        self._buffer = b""
        self._is_late = False
        self.process = subprocess.Popen(
            command,
            env={**os.environ, **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            process_group=0,  # Ctrl-C is for us, who then end it; else every process prints a traceback
        )
        try:
            self.hello = self._read(timeout_s)
        except BaseException:
            self.kill()
            raise
        self.ready_s = time.perf_counter() - self.started

    def ask(self, question: Json, timeout_s: float = ANSWER_TIMEOUT_S) -> Json:
        """The answer. Raises RuntimeError with its `error`, when the process ended, or after `timeout_s` seconds.

        That one ends the process: what it said later would be taken for the answer to the next question.
        """
        assert self.process.stdin is not None
        if self._is_late:
            raise RuntimeError(f"{self._name} was ended when it did not answer")
        try:
            self.process.stdin.write(json.dumps(question).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # reading tells how it ended
        try:
            answer = self._read(timeout_s)
        except _TooLate:
            self._is_late = True
            self.kill()
            raise
        if "error" in answer:
            raise RuntimeError(str(answer["error"]))
        return answer

    def _read(self, timeout_s: float) -> Json:
        assert self.process.stdout is not None
        descriptor, deadline = self.process.stdout.fileno(), time.perf_counter() + timeout_s
        while b"\n" not in self._buffer:
            left = deadline - time.perf_counter()
            if left <= 0 or not select.select([descriptor], [], [], left)[0]:
                raise _TooLate(f"{self._name} did not answer within {timeout_s:g} s")
            part = os.read(descriptor, 1 << 20)
            if not part:
                raise RuntimeError(f"{self._name} ended with exit code {self.process.wait()}")
            self._buffer += part
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: Json = json.loads(line)
        return answer

    def memory_mb(self) -> dict[str, float]:
        """See `tree_memory_mb`."""
        return tree_memory_mb(self.process.pid)

    def stop(self, timeout_s: float) -> float | None:
        """See `stop_process`."""
        return stop_process(self.process, timeout_s)

    def kill(self) -> None:
        """Kill the process and its children."""
        kill_tree(self.process)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass  # a question that was never read

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
