"""buildah without a daemon, in a storage of its own, and a stand-in for the base image.

The stand-in is Debian's smallest system with Python 3.11, made by debootstrap: the base image of the Dockerfile comes
from a registry, which a machine that runs tests may not reach. What the Dockerfile adds to a base is the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

BASE = "localhost/stand-in:bookworm"
_PACKAGES = "ca-certificates,python3.11-minimal,libpython3.11-stdlib"
_INDEX_SETTINGS = (
    *("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_CERT"),
    *("UV_DEFAULT_INDEX", "UV_INDEX", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"),
)
"""What tells pip and uv where packages are and whom to trust; handed to the build as a secret."""


def missing() -> str | None:
    """Why no image can be built here, or None."""
    if os.geteuid() != 0:
        return "needs root: buildah's chroot isolation and debootstrap mount and change owners"
    absent = [tool for tool in ("buildah", "debootstrap", "unshare", "nsenter") if shutil.which(tool) is None]
    return f"needs {' and '.join(absent)} (Debian: apt-get install buildah debootstrap util-linux)" if absent else None


@dataclass(frozen=True)
class Image:
    """A built image."""

    id: str
    config: dict[str, Any]
    layers: tuple[str, ...]
    """SHA-256 of the layers' content, the base's first."""
    log: str
    """What the build printed."""
    root: Path
    """Its files, mounted; not to be written to."""


class Buildah:
    """buildah with its storage below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # vfs copies every layer in full; overlay needs a kernel that has it.
        driver = "overlay" if "overlay" in Path("/proc/filesystems").read_text() else "vfs"
        self._storage = (
            "--root",
            str(folder / "storage"),
            "--runroot",
            str(folder / "run"),
            "--storage-driver",
            driver,
        )
        self.base = folder / "base"

    def run(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command of buildah; its result, whatever the exit code."""
        return subprocess.run(["buildah", *self._storage, *arguments], capture_output=True, text=True)

    def output(self, *arguments: str | Path) -> str:
        """What a command of buildah that must succeed prints."""
        done = self.run(*arguments)
        assert done.returncode == 0, f"buildah {arguments[0]}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
        return done.stdout.strip()

    def make_base(self) -> None:
        """Make the stand-in and tag it BASE."""
        if not (self.base / "etc").is_dir():
            command = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", "bookworm", str(self.base)]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
            for archive in (self.base / "var/cache/apt/archives").glob("*.deb"):
                archive.unlink()
        container = self.output("from", "scratch")
        self.output("add", "--quiet", container, self.base, "/")
        self.output("commit", "--quiet", "--rm", "--timestamp", "0", container, BASE)

    def build(self, context: Path, tag: str, *options: str, arguments: Sequence[str] = ()) -> Image:
        """Build the Dockerfile of `context`. `arguments` are NAME=value of its ARGs."""
        done = self.try_build(context, tag, *options, arguments=arguments)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-3000:]
        found = json.loads(self.output("inspect", "--type", "image", tag))
        root = Path(self.output("mount", self.output("from", tag)))
        layers = tuple(found["OCIv1"]["rootfs"]["diff_ids"])
        return Image(found["FromImageID"], found["Docker"]["config"], layers, done.stdout + done.stderr, root)

    def try_build(
        self, context: Path, tag: str, *options: str, arguments: Sequence[str] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Build as `build` does; the result, whatever the exit code."""
        # Format docker, for OCI's has no HEALTHCHECK. One time for every file: all else that differs shows.
        fixed = ("--isolation", "chroot", "--format", "docker", "--layers", "--timestamp", "0", "--tag", tag)
        asked = [f"--build-arg={argument}" for argument in (f"BASE_IMAGE={BASE}", "ENGINE_SET=cpu", *arguments)]
        return self.run("bud", *fixed, *asked, *self._index_secret(), *options, context)

    def copy(self, image: Image) -> Image:
        """The image, with files of its own that may be written to."""
        return replace(image, root=Path(self.output("mount", self.output("from", image.id))))

    def _index_secret(self) -> list[str]:
        """The build_env secret, and the certificates that it names, mounted over a folder that every base has."""
        values = {name: os.environ[name] for name in _INDEX_SETTINGS if os.environ.get(name)}
        certificates = {Path(value).parent for value in values.values() if value.startswith("/")}
        assert len(certificates) <= 1, "the certificates lie in several folders, and one can be mounted"
        for name, value in values.items():
            if value.startswith("/"):
                values[name] = f"/mnt/{Path(value).name}"
        secret = self._folder / "build_env"
        secret.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))
        mounts = [f"--volume={folder}:/mnt:ro" for folder in certificates]
        return [f"--secret=id=build_env,src={secret}", *mounts]

    def remove(self) -> None:
        """Unmount and remove everything but the stand-in's files."""
        self.run("rm", "--all")
        self.run("rmi", "--all", "--force")
        for name in ("storage", "run"):
            shutil.rmtree(self._folder / name, ignore_errors=True)
