"""Checks of payload fields that tasks share. Every failure is an InvalidInput that says what is allowed."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from string import Formatter
from typing import Any

import orjson

from engine.errors import AnswerTooLarge, InvalidInput
from engine.sizes import LARGEST_REPLY, readable

OF_EVERY_JOB = ", and in every job `progress`, `stream`, `timings`"
"""For `refuse_unknown`: the options that the worker takes out of a job's payload before its task sees it."""
OF_ROUTES = ("openai_route", "openai_input")
"""What holds the request of another server's client."""
_OF_EVERY_MODEL = {"query": "", "document": ""}
"""Names of prompts, which a model's files may give a text to."""
_WITHOUT_TEXT = frozenset((int, float, bool, type(None)))
"""A payload may hold millions of these, before anybody looks at its size."""

_SHOWN = 5  # unknown fields, the first ones: a payload may hold millions
_FEW = 1_000
"""Steps of a walk, after which what is left is written as JSON: a hundred times faster, but for long strings."""


class _Brief(reprlib.Repr):
    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Of the first keys, and not of those that come first once all of them are sorted."""
        return super().repr_dict(dict(islice(x.items(), self.maxdict + 1)), level)


_BRIEF = _Brief()


def kind(value: Any) -> str:
    """A JSON value's type in words that a caller knows."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), type(value).__name__)


def shown(value: Any) -> str:
    """The beginning of a value that is refused, for a sentence; at no cost, however large or deep it is."""
    return (_BRIEF.repr(value) if isinstance(value, list | dict) else str(value))[:40]


def _quoted(value: Any) -> str:
    """As `shown`, a string in quotes: "3" is no number."""
    return f'"{value[:40]}"' if isinstance(value, str) else shown(value)


def refuse_lone_surrogates(payload: Any) -> None:
    """Refuse strings with half a surrogate pair, which JSON can write, and which is no character of any text."""
    pending, steps = [payload], 0
    while pending:
        steps += 1
        if steps == _FEW:
            with suppress(TypeError):  # for half a pair, or what it cannot write at all
                orjson.dumps(pending)
                return
        value = pending.pop()
        if isinstance(value, str):
            try:
                value.isascii() or value.encode()
            except UnicodeEncodeError as error:
                half = f"\\u{ord(value[error.start]):04x}"
                raise InvalidInput(
                    f"a string in `input` holds half a surrogate pair ({half}); cut strings between whole characters"
                ) from None
        elif isinstance(value, dict):
            pending += (*value, *value.values())
        elif isinstance(value, list) and not _WITHOUT_TEXT.issuperset(map(type, value)):
            pending += [one for one in value if type(one) not in _WITHOUT_TEXT]


def refuse_large_answer(size: int, ways: str) -> None:
    """Refuse what makes an answer of `size` bytes, where RunPod does not take as much: before there is all of it."""
    if size > LARGEST_REPLY:
        raise AnswerTooLarge(
            f"the answer would hold more than the {readable(LARGEST_REPLY)} that RunPod takes; {ways}", size
        )


def require_object(payload: Any, name: str = "`input`") -> dict[str, Any]:
    """`payload` when it is a JSON object."""
    if not isinstance(payload, dict):
        raise InvalidInput(f"{name} must be an object, got {kind(payload)}")
    return payload


def without_nulls(payload: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """`payload` without those of `names`, the fields of its forms, that are null, as typed clients send all of them.

    One that stands alone stays: what is wrong is that it is null.
    """
    present = [name for name in names if name in payload]
    nulls = {name for name in present if payload[name] is None}
    if not nulls or len(present) == 1:
        return payload
    return {name: value for name, value in payload.items() if name not in nulls}


def openai_body(payload: dict[str, Any], route: str) -> dict[str, Any] | None:
    """What an OpenAI client sent to `route`, below the endpoint's /openai; None for a payload of ours."""
    if "openai_route" not in payload and "openai_input" not in payload:
        return None
    refuse_unknown(payload, OF_ROUTES)
    if payload.get("openai_route") != route:
        raise InvalidInput(
            f"the path, or `openai_route`, must be {route} or /v1/models, got {shown(payload.get('openai_route'))}"
        )
    return require_object(payload.get("openai_input"), "`openai_input`")


def model_name(payload: dict[str, Any]) -> str | None:
    """The field `model`, which other servers' clients send: repeated, and not looked at. None when it is absent."""
    name = payload.get("model")
    if name is not None and not isinstance(name, str):
        raise InvalidInput(f"`model` must be a string, got {kind(name)}")
    return name


def refuse_unknown(payload: dict[str, Any], known: Iterable[str], told: str = "") -> None:
    """Refuse fields that are not in `known`: ignoring a misspelt option would be wrong. `told` ends the sentence."""
    known = tuple(known)
    unknown = [*islice((str(name) for name in payload if name not in known), _SHOWN)]
    if unknown:
        fields = ", ".join(f"`{name[:40]}`" for name in sorted(unknown))
        all_known = ", ".join(f"`{name}`" for name in sorted(known))
        if "openai_route" in payload and "openai_route" not in known:
            route = shown(payload["openai_route"])
            raise InvalidInput(
                f"this worker's task has no answer to {route}, and of such routes to /v1/models alone; "
                f"send a job, to /runsync, whose `input` has fields of {all_known}"
            )
        raise InvalidInput(f"unknown field {fields}; known are {all_known}{told}")


def given(payload: dict[str, Any], name: str, default: Any) -> Any:
    """The field `name`, or `default` where it is absent or null, as clients send what they leave open."""
    value = payload.get(name)
    return default if value is None else value


def boolean(payload: dict[str, Any], name: str, default: bool) -> bool:
    """The field `name` as a boolean."""
    value = given(payload, name, default)
    if not isinstance(value, bool):
        raise InvalidInput(f"`{name}` must be true or false, got {kind(value)}")
    return value


def whole_number(payload: dict[str, Any], name: str, low: int, high: int | None = None) -> int | None:
    """The field `name` as an integer from `low` to `high`, if there is one; None when it is absent or null."""
    value = payload.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
        to = "up" if high is None else f"to {high}"
        raise InvalidInput(f"`{name}` must be a whole number from {low} {to}, got {_quoted(value)}")
    return value


def choice(payload: dict[str, Any], name: str, allowed: Sequence[str]) -> str:
    """The field `name` as one of `allowed`; the first when it is absent or null."""
    value = given(payload, name, allowed[0])
    if value not in allowed:
        raise InvalidInput(f"`{name}` must be one of {', '.join(allowed)}, got {shown(value)}")
    return str(value)


def prompt(payload: dict[str, Any], config: Mapping[str, Any]) -> str:
    """What is to stand before a text: the prompt that `prompt_name` names, the model's default, or "".

    `config` is a task_config with `prompts` (name -> prefix) and `default_prompt` (a name, or null). As in
    sentence-transformers 5 every model knows the names `query` and `document`, which are empty where its files have
    none; not here where they have others, such as `passage`, which may be what is meant.
    """
    prompts: Mapping[str, str] = config.get("prompts", {})
    name = payload.get("prompt_name")
    if name is None:
        return prompts.get(config.get("default_prompt") or "", "")
    if not any(prefix for other, prefix in prompts.items() if other not in _OF_EVERY_MODEL):
        prompts = {**_OF_EVERY_MODEL, **prompts}
    if not isinstance(name, str) or name not in prompts:
        raise InvalidInput(f"`prompt_name` must be one of: {', '.join(sorted(prompts))}; got {shown(name)}")
    return prompts[name]


def texts(value: Any, name: str, max_items: int, max_chars: int) -> list[str]:
    """A list of 1 to `max_items` strings of at most `max_chars` characters each."""
    if not isinstance(value, list):
        raise InvalidInput(f"`{name}` must be a list of strings, got {kind(value)}")
    if not 1 <= len(value) <= max_items:
        raise InvalidInput(f"`{name}` must hold 1 to {max_items} strings, got {len(value)}")
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InvalidInput(f"`{name}[{index}]` must be a string, got {kind(item)}")
        if len(item) > max_chars:
            raise InvalidInput(f"`{name}[{index}]` has {len(item)} characters, allowed are {max_chars}")
    return value


def string(value: Any, name: str, max_chars: int) -> str:
    """A string of at most `max_chars` characters; `name` is its field."""
    if not isinstance(value, str):
        raise InvalidInput(f"`{name}` must be a string, got {kind(value)}")
    if len(value) > max_chars:
        raise InvalidInput(f"`{name}` has {len(value)} characters, allowed are {max_chars}")
    return value


def template(payload: dict[str, Any], name: str, default: str, max_chars: int) -> list[str]:
    """What stands around each {} of a format string, as the pipelines' are; not formatted, for what else may be asked.

    Joined by a label they are its text.
    """
    value = string(given(payload, name, default), name, max_chars)
    pieces: list[list[str]] = [[]]
    try:
        for literal, field, spec, conversion in Formatter().parse(value):
            pieces[-1].append(literal)
            if field or spec or conversion:
                raise ValueError(field)
            if field is not None:
                pieces.append([])
    except ValueError:
        raise InvalidInput(
            f"`{name}` must hold {{}} where the label goes, and any other brace twice, as {{{{ or }}}}"
        ) from None
    return ["".join(one) for one in pieces]


def number(payload: dict[str, Any], name: str, low: float, high: float, default: float) -> float:
    """The field `name` as a number from `low` to `high`."""
    value = given(payload, name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise InvalidInput(f"`{name}` must be a number from {low:g} to {high:g}, got {_quoted(value)}")
    return float(value)
