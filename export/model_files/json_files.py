"""Reading a model's JSON files, each checked where it is read: who asks for a key gets what the key may hold.

Keys that only transformers or PEFT read are theirs to check. null stands for a key that is not there.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.command.arguments import read_file
from export.errors import Refused

_MOST_MB = 500
_SURROGATES = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Kind:
    """What a key may hold."""

    words: str
    """As a sentence says it."""
    fits: Callable[[Any], bool]


def _are_texts(values: Any, *others: None) -> bool:
    return all(isinstance(value, str) or value in others for value in values)


def _is_whole(value: Any) -> bool:
    """Whether it is a whole number, written as 512, as 512.0 or, for no limit, as 1e30 or a larger one."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_number and (value == math.inf or value % 1 == 0)


TEXT = Kind("a text", lambda value: isinstance(value, str))
TEXTS = Kind("a list of texts", lambda value: isinstance(value, list) and _are_texts(value))
TEXT_OR_TEXTS = Kind("a text or a list of texts", lambda value: TEXT.fits(value) or TEXTS.fits(value))
NAMED_TEXTS = Kind("an object of texts", lambda value: isinstance(value, dict) and _are_texts(value.values(), None))
NUMBERS = Kind(
    "an object of whole numbers",
    lambda value: isinstance(value, dict) and all(str(one).isdecimal() for one in value.values()),
)
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LABELS = Kind(
    "an object of texts or numbers",
    lambda value: (
        isinstance(value, dict)
        and all(isinstance(one, (str, int, float)) and not isinstance(one, bool) for one in value.values())
    ),
)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
WHOLE = Kind("a whole number", _is_whole)
NUMBER = Kind("a number", lambda value: type(value) in (int, float) and math.isfinite(value))
RATE = Kind("a whole number from 1000 to 768000", lambda value: type(value) is int and 1000 <= value <= 768_000)
SIZE = Kind("a whole number from 1 up", lambda value: type(value) is int and value >= 1)
COUNT = Kind("a whole number from 1 up", lambda value: _is_whole(value) and value >= 1)

_KEYS: Mapping[str, Mapping[str, Kind]] = {
    "adapter_config.json": {
        "alpha_pattern": OBJECT,
        "base_model_name_or_path": TEXT,
        "modules_to_save": TEXTS,
        "peft_type": TEXT,
        "rank_pattern": OBJECT,
        "task_type": TEXT,
    },
    "config.json": {
        "architectures": TEXTS,
        "id2label": LABELS,
        "is_causal": FLAG,
        "label2id": NUMBERS,
        "model_type": TEXT,
        "sbert_ce_default_activation_function": TEXT,
        "sentence_transformers": OBJECT,
    },
    "config_sentence_transformers.json": {
        "activation_fn": TEXT,
        "default_prompt_name": TEXT,
        "model_type": TEXT,
        "prompts": NAMED_TEXTS,
    },
    "preprocessor_config.json": {
        "feature_extractor_type": TEXT,
        "image_processor_type": TEXT,
        **dict.fromkeys(
            ("do_center_crop", "do_convert_rgb", "do_normalize", "do_pad", "do_rescale", "do_resize"), FLAG
        ),
    },
    "processor_config.json": {"feature_extractor": OBJECT, "image_processor": OBJECT},
    "tokenizer_config.json": {
        "clean_up_tokenization_spaces": FLAG,
        "do_lower_case": FLAG,
        "model_max_length": WHOLE,
        "replace_word_delimiter_char": TEXT,
    },
}
"""By the names of files that lie beside the weights."""


def one_of(*texts: str) -> Kind:
    """One of `texts`."""
    return Kind(f"one of {', '.join(texts)}", lambda value: isinstance(value, str) and value in texts)


def read_json(
    path: Path, kind: type[dict[str, Any]] | type[list[Any]] = dict, keys: Mapping[str, Kind] | None = None
) -> Any:
    """The object in a JSON file, or the list where `kind` says so; an empty one without the file.

    `keys` are what some of its keys may hold, beside what every file of that name has. Raises Refused when the file
    cannot be read, is not JSON, or holds something else.
    """
    try:
        text = read_file(path, _MOST_MB)
        found = json.loads(text)
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not os.path.lexists(path):
            return kind()
        why = "a link to a file that is not there" if isinstance(error, FileNotFoundError) else error.strerror
        raise Refused(f"{path} cannot be read ({why}); download the model again") from None
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path} is not valid JSON ({error}); download the model again") from None
    if not isinstance(found, kind):
        raise Refused(f"{path} holds no {'list' if kind is list else 'object'} in JSON; download the model again")
    _refuse_half_pairs(path, text, found)
    if isinstance(found, dict):
        check_keys(path, found, {**_KEYS.get(path.name, {}), **(keys or {})})
    return found


def _refuse_half_pairs(path: Path, text: str, found: Any) -> None:
    """Raise Refused where a text of `found` cannot be written again, as prompts and labels are in a manifest.

    An escape alone makes such a text, which no UTF-8 holds.
    """
    if _SURROGATES.search(text) is None:
        return
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        raise Refused(
            f"{path} holds {half}, half a surrogate pair, which no text has; correct it, or download the model again"
        ) from None


def processor_file(folder: Path) -> Path:
    """Where the settings of an image processor or feature extractor are; transformers 5 writes one file for several."""
    alone = folder / "preprocessor_config.json"
    return alone if os.path.lexists(alone) else folder / "processor_config.json"


def read_processor(folder: Path) -> dict[str, Any]:
    """The settings of the image processor or feature extractor of a model; empty without one. Raises Refused."""
    path = processor_file(folder)
    found: dict[str, Any] = read_json(path)
    if path.name == "preprocessor_config.json":
        return found
    part = found.get("image_processor") or found.get("feature_extractor") or {}
    check_keys(path, part, _KEYS["preprocessor_config.json"])
    return part


def read_module(folder: Path, keys: Mapping[str, Kind]) -> Mapping[str, Any]:
    """The settings of a module that has to have some. Raises Refused."""
    settings: dict[str, Any] = read_json(folder / "config.json", keys=keys)
    if not settings:
        raise Refused(
            f"{folder / 'config.json'} is missing or empty, though modules.json names its folder; download the model "
            "again, with all of its folders"
        )
    return settings


def check_keys(path: Path, found: Mapping[str, Any], keys: Mapping[str, Kind], *, all_needed: bool = False) -> None:
    """Raise Refused for the first key of an object in `path` that holds what it may not, or lacks what is needed."""
    for key, kind in keys.items():
        value = found.get(key)
        if (value is not None or all_needed) and not kind.fits(value):
            raise Refused(
                f"{path} has {key} = {json.dumps(value)[:80]}, which must be {kind.words}; correct it, or download the "
                "model again"
            )
