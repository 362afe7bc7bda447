"""Where a model or an adapter comes from: a folder, the Hub, or the Hub's cache as RunPod or a user laid it out.

What comes from the Hub is pinned to a commit, which is the name of its folder in the cache.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from export.command.arguments import file_path
from export.errors import CacheFull, Refused, Unavailable, is_of_full_disk

RUNPOD_CACHE = Path("/runpod-volume/huggingface-cache/hub")
"""Where RunPod puts an endpoint's cached models, laid out as the Hub's own cache is."""

_POINTER, _POINTER_BYTES = b"version https://git-lfs.github.com/", 1024
_OTHER_FORMATS = ["onnx/*", "openvino/*"]
_CACHED = re.compile(r"models--(?P<id>[^/]+)(/snapshots/(?P<commit>[^/]+))?$")


@dataclass(frozen=True)
class Located:
    """A repository's files."""

    folder: Path
    name: str
    """Id on the Hub, or the folder's name."""
    revision: str | None = None
    """The commit; None for a folder that is none of the Hub's."""
    is_complete: bool = True
    """Whether all files are there, not those alone that were asked for."""


def locate(model: str, revision: str | None, patterns: Sequence[str], option: str = "--revision") -> Located:
    """Find `model`, a folder or an id, with the files that fit `patterns`. Raises Refused or Unavailable."""
    folder = file_path(model)
    if folder.is_dir():
        return _local(folder, model, revision, option)
    if folder.is_file():
        raise Refused(f"no model: {model} is a file; give the folder that holds config.json and the weights")
    if folder.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1:
        raise Refused(f"no model: the folder {model} does not exist; check the path, or give a Hub id")
    cached = RUNPOD_CACHE / f"models--{model.replace('/', '--')}"
    snapshot = _snapshot(cached, revision or "main")
    if snapshot is not None:
        return Located(snapshot, model, snapshot.name)
    snapshot = download(model, revision, patterns)
    return Located(snapshot, model, snapshot.name, is_complete=False)


def refuse_pointer(file: Path) -> None:
    """Raise Refused for what git without its LFS leaves in place of a large file."""
    if file.is_file() and file.stat().st_size < _POINTER_BYTES and file.read_bytes().startswith(_POINTER):
        raise Refused(f"{file} is what Git LFS has in place of the file; run git lfs pull in that folder")


def _local(folder: Path, model: str, revision: str | None, option: str) -> Located:
    cached = _CACHED.search(folder.absolute().as_posix())
    if cached is None:
        if revision is not None:
            raise Refused(f"{option} is for ids on the Hub, {model} is a folder; leave it out")
        return Located(folder, folder.resolve().name)
    name, commit = cached["id"].replace("--", "/"), cached["commit"]
    if commit is not None:
        if revision not in (None, commit):
            raise Refused(f"{model} is the snapshot of commit {commit}, not {revision}; leave {option} out")
        return Located(folder, name, commit)
    snapshot = _snapshot(folder, revision or "main")
    if snapshot is None:
        raise Refused(f"{model} has no snapshot of {revision or 'main'}; name one of the folders in its snapshots")
    return Located(snapshot, name, snapshot.name)


def _snapshot(repository: Path, revision: str) -> Path | None:
    """The folder of a branch, tag or commit in a cached repository; None when it is not there."""
    try:
        commit = (repository / "refs" / revision).read_text().strip()
    except OSError:
        commit = revision
    folder = repository / "snapshots" / commit
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def download(model: str, revision: str | None, patterns: Sequence[str]) -> Path:
    """The snapshot of a Hub repository; its folder is named after the commit. Raises Refused or Unavailable."""
    from huggingface_hub import constants, errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars
    from requests import RequestException

    disable_progress_bars()
    at = f" at revision {revision}" if revision else ""
    try:
        return Path(
            snapshot_download(model, revision=revision, allow_patterns=list(patterns), ignore_patterns=_OTHER_FORMATS)
        )
    except errors.HFValidationError:
        raise Refused(
            f"no model: {model!r} is neither a folder nor a valid Hub id (owner/name); check the spelling"
        ) from None
    except errors.GatedRepoError:
        raise Refused(f"{model} is gated; accept its terms on the Hub and set HF_TOKEN") from None
    except errors.RevisionNotFoundError:
        raise Refused(f"{model} has no revision {revision}; leave --revision out for main") from None
    except errors.RepositoryNotFoundError:
        raise Refused(
            f"no model: {model} is neither a folder here nor on the Hub; check the spelling, or set HF_TOKEN if private"
        ) from None
    except (
        errors.LocalEntryNotFoundError,
        errors.OfflineModeIsEnabled,
        errors.HfHubHTTPError,
        RequestException,
    ) as error:
        if getattr(getattr(error, "response", None), "status_code", None) == HTTPStatus.UNAUTHORIZED:
            raise Refused("the Hub does not take the token in HF_TOKEN; make a new one, or unset it") from None
        raise Unavailable(
            f"no model: there is no folder {model}, it is not in the local Hub cache{at}, and the Hub cannot be "
            "reached (or HF_HUB_OFFLINE is set); go online, or give the path of a folder"
        ) from None
    except Exception as error:  # what downloads for the Hub's library has errors of its own
        if not is_of_full_disk(error):
            raise
        raise CacheFull(
            f"the disk of the Hub's cache, {constants.HF_HUB_CACHE}, is full; free some space there, or set HF_HOME to "
            "a folder on another disk"
        ) from error
