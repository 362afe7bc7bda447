"""A tar of a bundle, unpacked while it arrives, and no further than the bundle that it is to hold.

Once manifest.json has come, and is the one that is wanted, it says what else is written and how large that is; what
was written before and is none of it is removed. What comes before it is bounded by the room that there is, and by
`_BEFORE_MANIFEST_BYTES`: a wrong address may lead to anything.
"""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO

from engine.bundle import CHECKSUM, MANIFEST, SIGNATURE, open_bundle
from engine.errors import BundleError
from engine.sizes import readable

_BEFORE_MANIFEST_BYTES = 20 * 10**9
_LEAST_BYTES = 10**6  # for which each file of them counts, since a volume has room for so many files and no more
_MANIFEST_BYTES = 64 * 10**6
_KEPT_FREE = 20  # a twentieth of the volume, by what comes before it is known what the tar holds
_ODD_NAME = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG)
_BESIDE = (MANIFEST, CHECKSUM, SIGNATURE)
"""What a manifest does not list."""


def unpack(stream: IO[bytes] | io.RawIOBase, folder: Path, sha256: str, length: int | None) -> int:
    """Write the files of the tar, of `length` bytes where that is known, into `folder`; bytes written.

    Raises BundleError for a tar that no bundle makes, for one of another bundle than that of `sha256`, and where there
    is no room for it; tarfile's errors for what is no tar, OSError from the disk.
    """
    return _Unpacking(folder, sha256).read(stream, length)


class _Unpacking:
    def __init__(self, folder: Path, sha256: str) -> None:
        self._folder = folder
        self._sha256 = sha256.lower()
        self._sizes: dict[PurePosixPath, int] = {}
        self._wanted: Mapping[PurePosixPath, int] | None = None
        """Size of each file that the manifest lists, once it is known."""
        self._beside: frozenset[PurePosixPath] = frozenset()
        """What lies beside that manifest and is not listed, once it is known."""
        self._before_manifest = 0

    def read(self, stream: IO[bytes] | io.RawIOBase, length: int | None) -> int:
        if length is not None:
            self._need(length)
        with tarfile.open(fileobj=stream, mode="r|*") as archive:
            for member in archive:
                if _checked(member) and self._is_wanted(name := PurePosixPath(member.name), member):
                    self._write(archive, member, name)
                    if name.name == MANIFEST and len(name.parts) < 3:
                        self._open_manifest(name)
        return sum(self._sizes.values())

    def _is_wanted(self, name: PurePosixPath, member: tarfile.TarInfo) -> bool:
        """Whether to write it. Raises BundleError where it, or the tar, cannot be the bundle's."""
        if name in self._sizes:
            raise _odd(member)
        if name.name in _BESIDE and member.size > _MANIFEST_BYTES:
            raise BundleError(f"the tar's {name} has {member.size} bytes; make the tar of the bundle's folder")
        if self._wanted is None:
            self._before_manifest += max(member.size, _LEAST_BYTES)
            if self._before_manifest > _BEFORE_MANIFEST_BYTES:
                raise BundleError(
                    f"the tar holds more than {_BEFORE_MANIFEST_BYTES / 1e9:g} GB before {MANIFEST}; see that "
                    f"BUNDLE_URL is right, or make a tar whose first file is {MANIFEST}"
                )
            # A manifest is small, and tells whether there is room: a volume may be fuller than that.
            kept = 0 if name.name in _BESIDE else shutil.disk_usage(self._folder).total // _KEPT_FREE
            self._need(member.size, kept)
            return True
        if name in self._wanted:
            self._compare(name, member.size)
        return name in self._wanted or name in self._beside

    def _write(self, archive: tarfile.TarFile, member: tarfile.TarInfo, name: PurePosixPath) -> None:
        target = self._folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            file = target.open("wb" if name.name == CHECKSUM else "xb")  # that one may be of `_open_manifest`
        except OSError as error:
            if error.errno in _ODD_NAME:  # a file below a file, a name that is too long
                raise _odd(member) from None
            raise
        content = archive.extractfile(member)
        assert content is not None  # a regular file has content
        with file:
            shutil.copyfileobj(content, file, 1 << 20)
        self._sizes[name] = member.size

    def _open_manifest(self, name: PurePosixPath) -> None:
        """Know from now on what is wanted, if it is the manifest at `name`. Raises BundleError."""
        path = self._folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        if found != self._sha256 and len(name.parts) > 1:
            return  # perhaps the bundle's own is still to come
        if not (checksum := path.with_name(CHECKSUM)).exists():
            checksum.write_text(f"{found}  {MANIFEST}\n")  # what the bundle's own says
        files = open_bundle(path.parent, sha256=self._sha256).manifest.files
        self._wanted = {name.parent / file: size for file, (size, _) in files.items()}
        self._beside = frozenset(name.with_name(one) for one in _BESIDE)
        for known, size in self._sizes.items():
            if known in self._wanted:
                self._compare(known, size)
            elif known not in self._beside:
                (self._folder / known).unlink()
        self._need(sum(self._wanted.values()) - sum(self._sizes.get(one, 0) for one in self._wanted))

    def _compare(self, name: PurePosixPath, size: int) -> None:
        assert self._wanted is not None
        if size != self._wanted[name]:
            raise BundleError(
                f"the tar's {name} has {size} bytes, {MANIFEST} says {self._wanted[name]}; make the tar again"
            )

    def _need(self, size: int, kept: int = 0) -> None:
        free = max(0, shutil.disk_usage(self._folder).free - kept)
        if size > free:
            raise BundleError(
                f"{self._folder.parent} has room for {readable(free)}, the tar needs {readable(size)} more; see "
                "that BUNDLE_URL is right, or point BUNDLE_CACHE to a folder with room"
            )


def _checked(member: tarfile.TarInfo) -> bool:
    """Whether it is a file; folders are made for files. Raises BundleError for what is neither, or leads elsewhere."""
    name = PurePosixPath(member.name)
    is_odd = name.is_absolute() or ".." in name.parts or "\0" in member.name
    if is_odd or not (member.isreg() or member.isdir()) or (member.isreg() and not name.parts):
        raise _odd(member)
    return member.isreg()


def _odd(member: tarfile.TarInfo) -> BundleError:
    return BundleError(f"the tar holds {member.name[:80]!r}, which no bundle does; make it of the bundle's folder")
