"""Code that a model brings, or names: refused unless it is trusted, else fetched where it lies in another repository.

Many models share one such repository. transformers looks for it in the Hub's cache alone, for the model itself is a
folder by now.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.errors import CacheFull, Refused, Unavailable
from export.model_files.hub import download
from export.model_files.json_files import read_json, read_processor

CODE = ["*.py"]
_FILES = ("config.json", "tokenizer_config.json")
_ELSEWHERE = "--"
"""Between the repository and the class, as in `nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel`."""
_ATTENTION = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal")
"""Where a text as `owner/name` is a repository of kernels, which transformers imports where it can (CVE-2026-4372)."""


def refuse_code(folder: Path, model: str) -> None:
    """Raise Refused for files that make transformers run code that nobody has allowed.

    It asks before it runs what `auto_map` names, but takes the word of a config.json that code is trusted, at any depth
    (CVE-2026-5241).
    """
    if custom := [name for name in _FILES if "auto_map" in read_json(folder / name)]:
        raise Refused(
            f"{model} brings its own Python code ({custom[0]} has auto_map); read it, then allow it with "
            "--trust-remote-code"
        )
    config = read_json(folder / "config.json")
    if "configuration_files" in config:  # one of which transformers reads, and nobody here
        raise Refused(
            f"{model}'s config.json names others to read in its place (configuration_files); make a copy of the model "
            "with the one of them that transformers 4 takes as its config.json"
        )
    for keys, value in _entries(config):
        is_kernel = isinstance(value, str) and "/" in value and not set(keys).isdisjoint(_ATTENTION)
        if is_kernel or (value and keys[-1] in ("auto_map", "trust_remote_code")):
            raise Refused(
                f"{model}'s config.json asks for code from elsewhere ({'.'.join(keys)}); read that, then allow it with "
                "--trust-remote-code, or take this key out of a copy of the model"
            )


def fetch_code(folder: Path, model: str) -> dict[str, str]:
    """Bring the code that the files in `folder` name in other repositories into the cache; the commit of each.

    Raises Refused or Unavailable.
    """
    files = [*(read_json(folder / name) for name in _FILES), read_processor(folder)]
    maps = [one.get("auto_map") for one in files]
    repositories = {
        one.partition(_ELSEWHERE)[0] for _, one in _entries(maps) if isinstance(one, str) and _ELSEWHERE in one
    }
    commits = {}
    for repository in sorted(repositories):
        try:
            commits[repository] = download(repository, None, CODE).name
        except CacheFull:
            raise
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


def _entries(value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All that lists and objects hold, however deep, each with the keys that lead to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), value)]
    while waiting:
        keys, value = waiting.pop()
        if keys:
            yield keys, value
        if isinstance(value, dict | list):
            inner = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [((*keys, str(key)), one) for key, one in inner]
