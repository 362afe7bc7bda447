"""Variables that were meant for settings and are none: a letter off, or another worker's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields

from engine.config import Settings

_OF_OTHER_WORKERS = {
    # Of RunPod's and others' workers, and of the image's build: what is served would go on being another model.
    **dict.fromkeys(("MODEL", "MODEL_ID", "MODEL_NAME", "MODEL_NAMES"), "BUNDLE"),
    # Of RunPod's infinity worker.
    "BACKEND": "ENGINE",
    "BATCH_SIZES": "MAX_BATCH_ROWS",
    "DTYPES": "PRECISION",
    "INFINITY_QUEUE_SIZE": "MAX_QUEUED_ROWS",
    "RUNPOD_MAX_CONCURRENCY": "MAX_CONCURRENCY",
}


def misspelt(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Variables that are no setting, each with the one that is meant.

    That is the one in capitals, or a letter away: wrong, left out or too much; or what takes the place of another
    worker's.
    """
    names = [item.metadata["env"] for item in fields(Settings)]
    near = {variant: name for name in names for variant in _without_a_letter(name)}
    near |= _OF_OTHER_WORKERS
    unknown = environ.keys() - set(names)
    found = (
        (name, next((near[v] for v in (name.upper(), *_without_a_letter(name)) if v in near), ""))
        for name in sorted(unknown)
    )
    return [(name, meant) for name, meant in found if meant]


def _without_a_letter(name: str) -> set[str]:
    """`name`, and what is left of it without any one letter."""
    return {name, *(name[:at] + name[at + 1 :] for at in range(len(name)))}
