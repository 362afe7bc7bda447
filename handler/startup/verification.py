"""The bundle's files, hashed by a process of their own.

Not by a thread: it would wait for the interpreter lock, up to 5 ms each time, after every piece that it has read while
modules load; and hashing a mapped file in one call takes a third more CPU time than reading it in pieces.
"""

from __future__ import annotations

import json
import os
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TypeAlias

from engine.bundle import Bundle, is_weights
from engine.errors import BundleError
from engine.files.same_files import SameFiles
from handler.log import Progress
from handler.processes import signals
from handler.processes.fork import end_with, fork

_NICENESS = 8  # while nobody waits for it, so that the engine has a CPU of two for itself

_Files: TypeAlias = "Sequence[str] | None"  # None: those that every boot reads


class Verification:
    """Begins at once. To be made before CUDA exists, which does not survive a fork.

    First come the files that every boot reads, then those that are asked for: of a bundle for many machines only what
    this one uses is read. An engine may load while its weights are hashed: they are numbers, which nobody parses, and
    no answer goes out before `result`. Others open the files by their paths, as the process that hashes them does: a
    bundle that is exchanged meanwhile counts as damaged.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._files = SameFiles(bundle.path / name for name in bundle.common)
        self._numbers = {name: number for number, name in enumerate(bundle.manifest.files)}
        self._asked: set[str] = set()
        self._pending: deque[_Files] = deque([None])
        self._told = b""
        self._took_ms = 0.0
        self._damage: BundleError | None = None
        self._pid = 0
        with suppress(OSError):  # there is no other process to be had
            self._pid, self._end = fork(self._serve)

    def ask(self, names: Iterable[str]) -> None:
        """Have these files compared as well, after what was asked for before."""
        new = [name for name in names if name not in self._asked]
        if new:
            self._asked.update(new)
            self._files.add(self._bundle.path / name for name in new)
            self._pending.append(new)
            if self._pid:
                with suppress(OSError):  # it has ended: `wait` finds that out
                    self._end.sendall(" ".join(str(self._numbers[name]) for name in new).encode() + b"\n")

    def need(self, names: Sequence[str]) -> None:
        """`ask`, and `wait`."""
        self.ask(names)
        self.wait()

    @property
    def delays(self) -> bool:
        """Whether `wait` would wait."""
        if not self._pid or self._told or all(map(_are_weights, self._pending)):
            return False
        told = select.poll()
        told.register(self._end, select.POLLIN)
        return not told.poll(0)

    def wait(self) -> None:
        """Wait until all that was asked for, and is no weights, was compared. Raises as `Bundle.verify` does.

        What the other process does not tell, because it could not be had or was killed, is found out here.
        """
        self._settle(_are_weights)

    def result(self) -> float:
        """Wait for everything, and let the other process end; ms that it took. Raises as above.

        To be called when all that is opened has been: what lies there now is what was there at the beginning.
        """
        try:
            self._settle(lambda names: False)
            if changed := self._files.changed():
                raise BundleError(f"{changed} was exchanged while the worker started; start it again")
            return round(self._took_ms, 1)
        finally:
            self._end_other()
            self._files.close()

    def _settle(self, may_wait: Callable[[_Files], bool]) -> None:
        while not all(map(may_wait, self._pending)) and self._damage is None:
            try:
                self._took_ms += self._compared(self._pending.popleft())
            except BundleError as error:
                self._damage = error
        if self._damage is not None:
            self._end_other()  # nothing more will be asked
            self._files.close()
            raise self._damage

    def _compared(self, names: _Files) -> float:
        if self._pid and (line := self._line()):
            took_ms, why = json.loads(line)
            if why:
                raise BundleError(why)
            return float(took_ms)
        self._end_other()
        begin = time.perf_counter()
        _compare(self._bundle, names)
        return _ms_since(begin)

    def _line(self) -> bytes:
        """The next one that the other process tells; empty where it ends without."""
        while b"\n" not in self._told:
            try:
                received = self._end.recv(65536)
            except ConnectionError:  # it was asked something after its end
                received = b""
            if not received:
                return b""
            self._told += received
        line, _, self._told = self._told.partition(b"\n")
        return line

    def _end_other(self) -> None:
        if self._pid:
            self._end.close()
            with suppress(ChildProcessError):  # whoever started us ignores SIGCHLD
                os.waitpid(self._pid, 0)
            self._pid = 0

    # In the other process

    def _serve(self, end: socket.socket) -> None:
        signals.ignore()  # a terminal's; this process ends with the one that began it
        _close_all_but(end.fileno())  # else whoever listens to the process that forked would not hear of its end
        files, is_nice = list(self._numbers), False
        with suppress(Exception):  # no thread, no memory, a defect: found out, and told, by the process that forked
            end_with(end)
            self._bundle = replace(self._bundle, told=self._read)
            self._tell(end, None)
            for line in end.makefile("rb"):
                names = [files[int(number)] for number in line.split()]
                if _are_weights(names) and not is_nice:
                    os.nice(_NICENESS)
                    is_nice = True
                self._tell(end, names)

    def _tell(self, end: socket.socket, names: _Files) -> None:
        begin, why = time.perf_counter(), ""
        files, read = self._bundle.manifest.files, self._bundle.common if names is None else names
        self._progress = Progress(sum(files[name][0] for name in read))
        try:
            _compare(self._bundle, names)
        except BundleError as error:
            why = str(error)
        end.sendall(json.dumps([_ms_since(begin), why]).encode() + b"\n")

    def _read(self, name: str, size: int) -> None:
        self._progress.add(size, f"still reading {name}, to compare its SHA-256")


def _compare(bundle: Bundle, names: _Files) -> None:
    if names is None:
        bundle.verify_common()
    else:
        bundle.verify(names)


def _are_weights(names: _Files) -> bool:
    return names is not None and all(map(is_weights, names))


def _close_all_but(kept: int) -> None:
    """Not os.closerange: where it knows no close_range(2) it asks for every number up to the limit, perhaps 10^9."""
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != kept:
            with suppress(OSError):  # the listing's own
                os.close(number)


def _ms_since(begin: float) -> float:
    return round((time.perf_counter() - begin) * 1e3, 1)
