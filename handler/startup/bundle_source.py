"""Where the bundle comes from when it is not a folder that BUNDLE names. Imported only then.

    BUNDLE_URL     a tar of a bundle, fetched once and kept in BUNDLE_CACHE for the workers that start later
    BUNDLE_REPO    a repository of the Hugging Face Hub that RunPod, or `hf download`, put into the Hub's cache

Both need BUNDLE_SHA256, the SHA-256 of manifest.json: what comes from elsewhere may have changed there. Nothing is
exported here, and nothing asks the Hub.
"""

from __future__ import annotations

import os
from pathlib import Path

from engine.bundle import MANIFEST, VOLUME
from engine.config import Settings
from engine.errors import BundleError, ConfigError
from handler.log import log

_ELSEWHERE = Path("/tmp/bundles")  # noqa: S108


def bundle_folder(settings: Settings, volume: Path = VOLUME) -> Path:
    """The folder of the bundle that `settings` name. Raises ConfigError or BundleError."""
    if settings.bundle_url and settings.bundle_repo:
        raise ConfigError("BUNDLE_URL and BUNDLE_REPO are both set; set the one that holds the bundle")
    if not settings.bundle_sha256:
        name = "BUNDLE_URL" if settings.bundle_url else "BUNDLE_REPO"
        raise ConfigError(
            f"{name} needs BUNDLE_SHA256; set it to the first word of the bundle's manifest.sha256, so that no other "
            "bundle is served"
        )
    if settings.bundle_repo:
        return _in_hub_cache(settings.bundle_repo, _hub_caches(volume))
    return _fetched(settings, volume)


def _hub_caches(volume: Path) -> list[Path]:
    """Where repositories may lie: RunPod's cached models first, then where the Hub's own library keeps them.

    By the variables that its constants.py reads; an empty one counts as none.
    """
    home = os.environ.get("HF_HOME") or f"{os.environ.get('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return [volume / "huggingface-cache" / "hub", Path(os.path.expandvars(os.path.expanduser(hub)))]


def _in_hub_cache(repo: str, caches: list[Path]) -> Path:
    name, _, revision = repo.partition("@")
    for cache in caches:
        folder = cache / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / _commit(folder, revision or "main")
        try:
            if (snapshot / MANIFEST).is_file():
                return snapshot
        except OSError as error:  # a volume of another user
            raise BundleError(
                f"BUNDLE_REPO={repo} cannot be looked up in {cache} ({error.strerror}); change its permissions or name "
                "another revision"
            ) from error
    raise BundleError(
        f"BUNDLE_REPO={repo} is not in the Hub's cache ({', '.join(map(str, caches))}); choose it as the endpoint's "
        "cached model, or download it onto the volume before"
    )


def _commit(folder: Path, revision: str) -> str:
    """What a branch or tag points to; a commit is its own name."""
    try:
        return (folder / "refs" / revision).read_text().strip()
    except (OSError, ValueError):  # none there, or one that is no text
        return revision


def _fetched(settings: Settings, volume: Path) -> Path:
    """BUNDLE_CACHE/SHA256, which holds the bundle already or does from now on."""
    from handler.startup.fetch_bundle import fetch, is_bundle, tidy

    sha256 = settings.bundle_sha256
    folder = (settings.bundle_cache or (volume / "bundles" if volume.is_dir() else _ELSEWHERE)) / sha256.lower()
    if is_bundle(folder, sha256):
        tidy(folder)
        return folder
    if settings.bundle_cache is None and not _is_writable(folder.parent):
        log("WARN", f"the volume cannot be written: the bundle goes into {_ELSEWHERE}, for this start alone")
        folder = _ELSEWHERE / folder.name
    if not is_bundle(folder, sha256):  # a damaged copy is replaced
        fetch(settings.bundle_url, sha256, folder)
    return folder


def _is_writable(folder: Path) -> bool:
    """Whether this user may write there, after making it where it is missing. A volume is often owned by root."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK, effective_ids=True)
