"""Code that a model brings, as far as it lies in another repository on the Hub: many models share one.

transformers then looks for it in the Hub's cache alone, for the model itself is a folder by now.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import Refused, Unavailable
from export.model_files.hub import download
from export.model_files.json_files import read_json, read_processor

CODE = ["*.py"]
_FILES = ("config.json", "tokenizer_config.json")
_ELSEWHERE = "--"
"""Between the repository and the class, as in `nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel`."""


def fetch_code(folder: Path, model: str) -> dict[str, str]:
    """Bring the code that the files in `folder` name in other repositories into the cache; the commit of each.

    Raises Refused or Unavailable.
    """
    files = [*(read_json(folder / name) for name in _FILES), read_processor(folder)]
    maps = [one.get("auto_map") for one in files]
    repositories = {one.partition(_ELSEWHERE)[0] for one in _texts(maps) if _ELSEWHERE in one}
    commits = {}
    for repository in sorted(repositories):
        try:
            commits[repository] = download(repository, None, CODE).name
        except Unavailable as error:
            raise Unavailable(
                f"{model} takes its code from {repository}, which is not in the local Hub cache, and the Hub cannot be "
                "reached (or HF_HUB_OFFLINE is set); go online, or download that repository into the cache"
            ) from error
        except Refused as error:
            raise Refused(f"{model} takes its code from {repository}: {error}") from error
    return commits


def refuse_fast_paths(config: Any, model: str) -> None:
    """Raise Refused for what gte's code, as in snowflake-arctic-embed-m-v2.0, does with xformers on a GPU alone."""
    asked = [name for name in ("unpad_inputs", "use_memory_efficient_attention") if getattr(config, name, False)]
    if asked:
        raise Refused(
            f"{model}'s own code asks for xformers ({' and '.join(asked)} in its config.json), which no graph holds; "
            "set that to false in a copy of the model, which changes nothing but its speed"
        )


def _texts(values: Any) -> Iterator[str]:
    """All texts in lists and objects, however deep."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict | list):
        for value in values.values() if isinstance(values, dict) else values:
            yield from _texts(value)
