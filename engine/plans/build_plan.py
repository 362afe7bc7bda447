"""Builds plans on the GPU that a boot woke up on, and keeps them on the volume (plan_cache.py). Seldom, for minutes.

The build itself is the export's, started as a process of its own: nothing here imports it.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from pathlib import Path
from shutil import copyfile, copytree, ignore_patterns

from engine.bundle import CHECKSUM, MANIFEST, SIGNATURE, Bundle, is_newer, open_bundle, write_manifest
from engine.errors import BundleError, EngineError
from engine.files import turns
from engine.files.same_files import SameFiles
from engine.plans import late
from engine.plans.plan_cache import folder_of, machine
from engine.plans.sidecar import TIMING_CACHE, plans_of, sidecar_of

BUILD_COMMAND = (sys.executable, "-m", "export", "plan")
"""Followed by a folder with a bundle, to which it adds plans for this machine's GPU."""
_LEASH = (sys.executable, "-m", "engine.plans.leash")

Say = Callable[[str], None]
"""Takes a line for the log."""

_LEAST = 0.1
"""Share of the time limit that must be left for a build to begin: it takes minutes."""
_WATCH_S = 0.5
_STILL_AT_IT_S = 15.0


def build(
    bundle: Bundle,
    cache: Path,
    timeout_s: float,
    precision: str,
    say: Say,
    is_there: Callable[[], bool],
    *,
    spent_s: float = 0.0,
) -> None:
    """Build plans for every graph of `bundle` on this GPU into `cache`, within `timeout_s` seconds.

    `spent_s` of them are over already. `precision` is the setting: with `auto` the export chooses. One worker builds at
    a time; who waited for another asks `is_there` before building again. What took too long once is not begun again in
    the same way (late.py), and nothing is where hardly any time is left. Raises EngineError.
    """
    deadline = time.monotonic() + timeout_s - spent_s
    notes = late.notes_of(bundle, cache, precision)
    late.way(notes, late.limit(deadline - time.monotonic(), timeout_s))  # refuses before anything is waited for
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _turn(cache, deadline, say) as is_held:
            if is_there():
                return say("another worker has built it meanwhile")
            if (left_s := deadline - time.monotonic()) < _LEAST * timeout_s:
                raise EngineError(
                    f"no plan can be built in the {max(left_s, 0):.0f} s that are left of BUILD_TIMEOUT_S="
                    f"{timeout_s:g}, which counts from the start of the worker; {late.FIX}"
                )
            limit_s = late.limit(left_s, timeout_s)
            way = late.way(notes, limit_s)
            _make_folders(bundle, cache)
            _remove_abandoned(cache, is_held)
            files = SameFiles(bundle.path / name for name in bundle.manifest.files)
            with closing(files), _workplace() as work:
                copy = _copy(bundle, Path(work) / "bundle")
                with _worth_no_failure(say):
                    _bring_timings(bundle, cache, copy)
                asked = [*late.WAYS[way], *([] if precision == "auto" else ["--precision", precision])]
                try:
                    _run([*BUILD_COMMAND, str(copy), *asked], work, deadline, timeout_s, say)
                except late.TooLong:
                    late.note(notes, way, limit_s)
                    raise
                if files.changed():
                    raise _exchanged(bundle)
                _keep(open_bundle(copy), bundle, cache)
                with _worth_no_failure(say):
                    _keep_timings(bundle, cache, copy)
    except OSError as error:
        raise EngineError(
            f"a plan cannot be kept in PLAN_CACHE={cache} ({error.strerror}); attach a volume, or name a folder there "
            "that the worker may write"
        ) from error
    except BundleError as error:
        raise EngineError(f"the build left no bundle: {error}") from error


def _make_folders(bundle: Bundle, cache: Path) -> None:
    """The folder of every graph. Raises OSError or EngineError where nothing can be kept: before it has cost minutes.

    Who may write to the cache may write to them, too: a pod's root may be the first to build there.
    """
    if not _is_writable(cache):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    kept = cache.stat()
    for folder in (folder_of(cache, bundle, graph) for graph in bundle.manifest.graphs):
        try:
            folder.mkdir()
        except FileExistsError:
            if not _is_writable(folder):
                raise EngineError(
                    f"a plan cannot be kept in {folder}, which belongs to another user; let the worker write there, or "
                    "remove it"
                ) from None
        else:
            with suppress(OSError):
                folder.chmod(stat.S_IMODE(kept.st_mode))
                os.chown(folder, kept.st_uid, kept.st_gid)


def _is_writable(folder: Path) -> bool:
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)


def _exchanged(bundle: Bundle) -> EngineError:
    """What is built from another bundle's files would be kept as this one's."""
    return EngineError(f"the bundle at {bundle.path} is another one by now, and no plan of it is kept")


@contextmanager
def _worth_no_failure(say: Say) -> Iterator[None]:
    """For the builder's timings, which save the next build time."""
    try:
        yield
    except OSError as error:
        say(f"the volume's timing cache is left out: {error.strerror}")


def _workplace() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="build-plan-", ignore_cleanup_errors=True)
    except OSError as error:  # which is not PLAN_CACHE's
        raise EngineError(
            f"there is no temporary folder to build a plan in ({error.strerror}); set TMPDIR to one that the worker "
            "may write"
        ) from error


def _turn(cache: Path, deadline: float, say: Say) -> AbstractContextManager[bool]:
    """Where the volume knows no locks two may build the same at once, which wastes time: the last to end is kept."""
    unended = EngineError("another worker builds a plan and does not end (BUILD_TIMEOUT_S)")
    waits = "another worker builds a plan on this volume; waiting for it"
    return turns.turn(cache / ".lock", deadline, lambda: say(waits), unended)


def _remove_abandoned(cache: Path, is_held: bool) -> None:
    """What workers that were killed in `_put` have left."""
    for part in (*cache.glob("*/.sm_*"), *cache.glob(f".*.{TIMING_CACHE}.*")):
        if turns.is_abandoned(part, is_held):
            with suppress(OSError):
                part.unlink()


def _copy(bundle: Bundle, to: Path) -> Path:
    """A bundle of links to the files of `bundle`: it lies in an image, which the worker may not write."""
    unsigned = ignore_patterns(SIGNATURE)  # the copy is to be changed, and nobody is to sign that
    try:
        try:
            copytree(bundle.path.resolve(), to, copy_function=os.symlink, ignore=unsigned)
        finally:
            for folder, _, _ in os.walk(to):  # which got the modes of the bundle's own; also to be removed again
                os.chmod(folder, stat.S_IRWXU)
        for name in (MANIFEST, CHECKSUM):
            (to / name).unlink()
            copyfile(bundle.path / name, to / name)
        if open_bundle(to).sha256 != bundle.sha256:  # long ago, perhaps, while another worker built
            raise _exchanged(bundle)
        if is_newer(to):  # the export refuses to write one anew, and of this one nothing but plans is kept
            write_manifest(to, bundle.manifest)
    except OSError as error:
        raise EngineError(
            f"no plan can be built in {to.parent} ({error.strerror or error}); set TMPDIR to a folder that has room"
        ) from error
    return to


def _run(command: list[str], work: str, deadline: float, timeout_s: float, say: Say) -> None:
    """Run `command`, which works in the folder `work`, hand on what it prints, and end it at `deadline`.

    It ends with us, too, however we do (engine/plans/leash.py). Raises EngineError unless it exits with 0.
    """
    begin, last = time.monotonic(), ""
    say(f"building a plan: {' '.join(command)}")
    try:
        process = subprocess.Popen(
            [*_LEASH, work, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},  # lines when they are printed
            text=True,
            errors="replace",
            start_new_session=True,
        )
    except OSError as error:
        raise EngineError(f"the build does not start: {error}; build ahead with `python -m export plan`") from error
    assert process.stdin is not None and process.stdout is not None
    leash, ended = process.stdin, threading.Event()
    why: EngineError | None = None

    def watch() -> None:
        nonlocal why
        said = begin
        while not ended.wait(min(_WATCH_S, max(0.0, deadline - time.monotonic()))):
            now = time.monotonic()
            if now >= deadline:
                why = late.TooLong(
                    f"the build took longer than the {deadline - begin:.0f} s that were left of "
                    f"BUILD_TIMEOUT_S={timeout_s:g}, and was ended; {late.FIX}"
                )
            elif now - said >= _STILL_AT_IT_S:
                said = now
                say(f"building a plan: {now - begin:.0f} s")
            if why:
                leash.close()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        with process.stdout as lines:
            for line in lines:
                if line := line.strip():
                    last = line
                    say(f"building a plan: {line}")
        code = process.wait()
    finally:
        ended.set()
        watcher.join()
        leash.close()
        process.wait()
    if why:
        raise why
    if code:
        raise EngineError(f"the build ended with code {code}: {last or 'it said nothing'}")
    say(f"building a plan: done after {time.monotonic() - begin:.0f} s")


def _keep(built: Bundle, before: Bundle, cache: Path) -> None:
    """Put the plans that `built` has and `before` had not into `cache`. Raises EngineError when there are none."""
    new = [
        (plan, folder_of(cache, before, graph))
        for graph in before.manifest.graphs
        for plan in plans_of(built, graph)
        if (plan.plan.size, plan.plan.sha256) != before.manifest.files.get(str(plan.path.relative_to(built.path)))
    ]
    if not new:
        raise EngineError("the build added no plan")
    for plan, folder in new:
        sources = plan.path, plan.path.with_name(sidecar_of(plan.name))  # the sidecar last: it says "whole"
        _put(*((source, folder / source.name) for source in sources))


def _put(*files: tuple[Path, Path]) -> None:
    """Copy files, each a source and a target, to the volume, where each is whole or absent.

    They come one right after the other, for another worker may keep its own where there are no locks.
    """
    parts = [(source, target.with_name(f".{target.name}.{turns.mark()}"), target) for source, target in files]
    try:
        for source, part, _ in parts:
            copyfile(source, part)
        for _, part, target in parts:
            os.replace(part, target)
    except OSError:
        for _, part, _ in parts:
            part.unlink(missing_ok=True)  # else a volume that is full stays so
        raise


def _bring_timings(bundle: Bundle, cache: Path, copy: Path) -> None:
    for kept, used in _timing_caches(bundle, cache, copy):
        if kept.exists():
            used.parent.mkdir(parents=True, exist_ok=True)
            used.unlink(missing_ok=True)  # it may be a link to the bundle's own
            copyfile(kept, used)


def _keep_timings(bundle: Bundle, cache: Path, copy: Path) -> None:
    for kept, used in _timing_caches(bundle, cache, copy):
        if used.exists():
            _put((used, kept))


def _timing_caches(bundle: Bundle, cache: Path, copy: Path) -> Iterator[tuple[Path, Path]]:
    """For every graph its timing cache on the volume, and the one that the build in `copy` reads and writes.

    TensorRT takes a timing cache on the GPU and by the version only that it comes from.
    """
    if (here := machine()) is None:
        return
    for graph in bundle.manifest.graphs:
        kept = cache / f"{graph}-{here}.{TIMING_CACHE}"
        yield kept, copy / "graphs" / graph / "plans" / TIMING_CACHE
