"""An image's worker in a container: its own processes, a root file system that nobody can write to, an ordinary user.

What `docker run --read-only` does, by hand: namespaces for mounts and processes, the image's files bound read-only,
/proc, /dev and /sys on top, chroot, and the image's user, environment and command. Stricter in two points: there is no
/dev/shm and no /tmp to write to. The network is the host's, so that the emulated endpoint is on localhost.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from tests.image.buildah import Image

_ENTER = r"""
set -e
root=$1; shift
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind --read-only /sys "$root/sys"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mknod -m 666 "$root/dev/null" c 1 3
mknod -m 666 "$root/dev/zero" c 1 5
mknod -m 666 "$root/dev/urandom" c 1 9
mount -o remount,bind,ro "$root/dev"
mount -o remount,bind,ro "$root"
exec chroot "$@"
"""
_STOP_S = 20.0


class Container:
    """`command`, or the image's own, running; a context manager that leaves nothing behind."""

    def __init__(
        self, image: Image, env: Mapping[str, str], log: Path, command: Sequence[str] = (), user: str = ""
    ) -> None:
        self._image = image
        self._user = user or image.config["User"]
        self._log = log.open("w+")
        values = [*image.config["Env"], *(f"{name}={value}" for name, value in env.items())]
        enter = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, "sh", str(image.root)]
        chroot = [f"--userspec={self._user}", f"--groups={self._user.partition(':')[2]}", str(image.root)]
        run = ["/usr/bin/env", "-i", "-C", image.config["WorkingDir"], *values, *(command or image.config["Cmd"])]
        self._unshare = subprocess.Popen(
            [*enter, *chroot, *run],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        )

    @property
    def main(self) -> psutil.Process:
        """The container's process 1, as the host sees it."""
        deadline = time.monotonic() + 10
        while not (children := psutil.Process(self._unshare.pid).children()):
            assert time.monotonic() < deadline and self._unshare.poll() is None, self.output
            time.sleep(0.01)
        return children[0]

    @property
    def output(self) -> str:
        """What was printed so far."""
        return Path(self._log.name).read_text()

    def healthcheck(self) -> int:
        """The exit code of the image's HEALTHCHECK, run inside."""
        deadline = time.monotonic() + 10
        while self.main.cmdline()[:1] != ["python"]:  # still setting up
            assert time.monotonic() < deadline, self.output
            time.sleep(0.01)
        command = self._image.config["Healthcheck"]["Test"]
        assert command[0] == "CMD"
        user, _, group = self._user.partition(":")
        enter = ["nsenter", "--target", str(self.main.pid), "--mount", "--pid", "--root", f"--setuid={user}"]
        env = ["/usr/bin/env", "-i", "-C", self._image.config["WorkingDir"], *self._image.config["Env"]]
        return subprocess.run([*enter, f"--setgid={group}", *env, *command[1:]], capture_output=True).returncode

    def wait(self, timeout_s: float = _STOP_S) -> int:
        """The exit code, which unshare passes on."""
        return self._unshare.wait(timeout_s)

    def stop(self) -> int:
        """SIGTERM to the container's process 1, as `docker stop` does; the exit code."""
        self.main.terminate()
        return self.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._unshare.poll() is None:
            # --kill-child is not enough: Linux forgets it when chroot changes the user. Process 1 takes the rest along.
            for main in psutil.Process(self._unshare.pid).children() or [self._unshare]:
                main.kill()
            self._unshare.wait()
        self._log.close()
