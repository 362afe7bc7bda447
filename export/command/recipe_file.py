"""recipe.toml: the options of the command line as a file, so that CI can keep them in git.

    model = "sentence-transformers/all-MiniLM-L6-v2"
    revision = "c9745ed1d9f207416be6d2e6f8de32d1f16199bf"
    task = "feature-extraction"
    precision = {cpu = "int8", tensorrt = "fp16"}
    parity-data = "texts.jsonl"

    [plan]
    batches = [1, 8, 32]

A key is an option without its dashes, a key of [plan] one of those for TensorRT plans. Paths are relative to the file.
The file becomes arguments in front of the command's own, so that both are checked by the same code and the command's
win. Rule: no import that --help does not need.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from export.command.arguments import file_path, read_file
from export.command.whole_file import write_whole
from export.errors import Refused

if TYPE_CHECKING:
    from export.recipe import Recipe
    from export.source import Source

RECIPE = "recipe.toml"
"""In a bundle: what it was made from."""
HEAD = f"""What this bundle was made from. Made again, with the same versions of the packages in manifest.json:
python -m export --recipe {RECIPE} --out FOLDER
A model, an adapter or a file that was local is here by its name alone; give its path."""
PLAN = "plan"
MODEL = "--model"
"""The option that a file's model becomes: an option may be given twice, the argument MODEL may not."""
_MOST_MB = 10
NOT_IN_FILES = frozenset("help list-tasks recipe write-recipe json plan".split())
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")  # what a comment may not hold
_FOLDERS_OR_IDS = frozenset(("model", "adapter"))
_KEYS = {
    "adapters": "adapter",
    "compute_capabilities": "compute-capability",
    "library_tactics": "no-library-tactics",
    "parity_thresholds": "parity-threshold",
}
"""Attributes of recipes whose key has another name."""


def arguments_of(path: Path, parser: argparse.ArgumentParser, given: Sequence[str]) -> list[str]:
    """The recipe at `path` as arguments of `parser`, without those that `given` replaces.

    Raises Refused, with the line where it can be told, for what is no TOML, no key, or no value for its key.
    """
    try:
        text = read_file(path, _MOST_MB).removeprefix("\ufeff")  # which some editors put in front
        content = tomllib.loads(text)
    except FileNotFoundError:
        raise Refused(f"there is no recipe {path}; check the path, or write one with --write-recipe") from None
    except OSError as error:
        raise Refused(f"the recipe {path} cannot be read ({error.strerror}); name a file with --recipe") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError says the line; or it is not UTF-8
        raise Refused(f"{path} is not valid TOML: {error}") from None
    options = options_of(parser)
    found: list[str] = []
    for table, key, value in _entries(content):
        place = _Place(path, text, table, key)
        option = _find(options[table], place)
        if isinstance(option, argparse._AppendAction) and any(_names(option, argument) for argument in given):
            continue  # the others are replaced by what comes later, these would be added to
        tokens = [token for one in _values(option, value, place) for token in _argument(option, one, place)]
        _check(parser, tokens, place)
        found += tokens
    if PLAN in content:
        found.append("--plan")
    return found


@dataclass(frozen=True)
class _Place:
    """A key of a file, for errors."""

    path: Path
    text: str
    table: str
    key: str

    def __str__(self) -> str:
        line = _line(self.text, self.table, self.key)
        return f"{self.path}, line {line}" if line else str(self.path)


def _entries(content: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """Table, key and value of everything in a file, [plan] after the rest."""
    for key, value in content.items():
        if not (key == PLAN and isinstance(value, dict)):
            yield "", key, value
    if isinstance(content.get(PLAN), dict):
        for key, value in content[PLAN].items():
            yield PLAN, key, value


def options_of(parser: argparse.ArgumentParser) -> dict[str, dict[str, argparse.Action]]:
    """The options by key, those of files and those of [plan]."""
    found: dict[str, dict[str, argparse.Action]] = {"": {}, PLAN: {}}
    of_plans = next(group for group in parser._action_groups if group.title == "TensorRT plans")._group_actions
    for action in parser._actions:
        name = next((name.removeprefix("--") for name in action.option_strings if name.startswith("--")), "")
        if name and name not in NOT_IN_FILES:
            is_plan = action in of_plans
            found[PLAN if is_plan else ""][name.removeprefix("plan-") if is_plan else name] = action
    return found


def _find(options: Mapping[str, argparse.Action], place: _Place) -> argparse.Action:
    if place.key in options:
        return options[place.key]
    if place.key == PLAN:
        raise Refused(f"{place}: plan is a table; write [{PLAN}], and the options of TensorRT plans below it")
    near = difflib.get_close_matches(place.key.replace("_", "-"), options, n=1, cutoff=0.5)
    what = f"key {place.key!r}" + (f" in [{place.table}]" if place.table else "")
    fix = f"did you mean {near[0]!r}?" if near else f"known are: {', '.join(sorted(options))}"
    raise Refused(f"{place}: there is no {what}; {fix}")


def _values(option: argparse.Action, value: Any, place: _Place) -> list[Any]:
    """One value an argument: several for an option that may be given several times."""
    several = isinstance(option, argparse._AppendAction)
    if isinstance(value, dict):
        pairs = [f"{name}={_plain(one, place)}" for name, one in value.items()]
        return pairs if several else [",".join(pairs)]
    if isinstance(value, list):
        return value if several else [",".join(_plain(one, place) for one in value)]
    return [value]


def _argument(option: argparse.Action, value: Any, place: _Place) -> list[str]:
    name = option.option_strings[0]
    if option.nargs == 0:
        if not isinstance(value, bool):
            raise Refused(f"{place}: {place.key} is true or false, got {json.dumps(value, default=str)}")
        off = [one for one in option.option_strings if one.startswith("--no-")]
        return [name] if value else off if isinstance(option, argparse.BooleanOptionalAction) else []
    text = _plain(value, place)
    is_text = option.type is None and not isinstance(option, argparse._AppendAction)
    if is_text and not isinstance(value, str):
        raise Refused(f"{place}: {place.key} is a text, got {text}; put it in quotes")
    if option.type is file_path or place.key in _FOLDERS_OR_IDS:
        text = _path(text, place)
    return [f"{name}={text}"]


def _plain(value: Any, place: _Place) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise Refused(f"{place}: {place.key} cannot be {json.dumps(value, default=str)}; see docs/export.md")
    if "\0" in (text := str(value)):
        raise Refused(f"{place}: {place.key} holds the character NUL, which no name and no path does; take it out")
    return text


def _path(text: str, place: _Place) -> str:
    """A path seen from the file's folder. What may also be an id on the Hub is a path when there is such a folder."""
    path = file_path(text)
    if path.is_absolute():
        return str(path)
    there = place.path.parent / path
    if place.key not in _FOLDERS_OR_IDS:
        return os.path.normpath(there)
    return _dotted(there) if text.startswith(".") or there.exists() else text


def _dotted(path: Path) -> str:
    """A relative path that still looks like one, so that it is not looked up on the Hub."""
    text = os.path.normpath(path)
    return text if os.path.isabs(text) or text.startswith(".") else os.path.join(".", text)


def _check(parser: argparse.ArgumentParser, tokens: Sequence[str], place: _Place) -> None:
    """Let the parser judge one option by itself, so that the error can say the line."""
    try:
        parser.parse_args([*tokens, "--out=-"])
    except Refused as error:
        said = re.sub(r"^argument [^:]+: ", "", str(error)).removesuffix("; see python -m export --help")
        raise Refused(f"{place}: {place.key}: {said}") from None


def _names(option: argparse.Action, argument: str) -> bool:
    return argument.partition("=")[0] in option.option_strings


def _line(text: str, table: str, key: str) -> int | None:
    """The line that gives `key` its value; None when it is written in a way that is not looked for."""
    wanted = f"{table}.{key}" if table else key
    now = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := re.match(r"\s*\[+\s*([^\]]+?)\s*\]", line):
            now = name = header[1].strip("\"'")
        elif found := re.match(r"""\s*["']?([^"'=\s]+)["']?\s*=""", line):
            name = f"{now}.{found[1]}" if now else found[1]
        else:
            continue
        if name == wanted or name.startswith(f"{wanted}."):
            return number
    return None


def text_of(recipe: Recipe, head: str = "", beside: Path | None = None) -> str:
    """`recipe` as the content of a file, opened by the comment `head`.

    With `beside`, the folder that the file is for, paths are written as seen from there; else they are left out, but
    for the names of files, so that nothing tells where the recipe was used.
    """
    lines = [f"# {_CONTROL.sub('?', line)}".rstrip() for line in head.splitlines()]
    entries = dict(_named(recipe))
    plan = entries.pop(PLAN, None)
    if beside is None or recipe.out == Path():
        del entries["out"]
    lines += [f"{key} = {_toml(_seen_from(key, value, beside))}" for key, value in entries.items()]
    if plan is not None:
        lines += ["", f"[{PLAN}]", *(f"{key} = {_toml(value)}" for key, value in _named(plan))]
    return "\n".join(lines) + "\n"


def key_of(attribute: str) -> str:
    """The key, which is the option without its dashes, of an attribute of a recipe."""
    return _KEYS.get(attribute, attribute.replace("_", "-"))


def _named(recipe: Any) -> Iterator[tuple[str, Any]]:
    """Key and value of what a recipe says; nothing for what it leaves open."""
    for field in fields(recipe):
        key, value = key_of(field.name), getattr(recipe, field.name)
        if key.startswith("no-"):
            value = not value
        if value is None or value is False or value in ("", (), {}):
            continue
        yield key, _readable(key, value)


def _readable(key: str, value: Any) -> Any:
    """A value as a person would write it; the reverse of what the options' types do."""
    if key == "image-size":
        return "x".join(str(edge) for edge in value)
    if key == "lengths":
        return [*(length for length in value if length), *("max" for length in value if not length)]
    if key == "compute-capability":
        return [f"{major}.{minor}" for major, minor in value]
    if key == "precision" and "=" in value:
        return dict(part.strip().split("=", 1) for part in value.split(","))
    if key == "parity-threshold" and "" in value:
        return value[""] if len(value) == 1 else [f"{name}={limit}".lstrip("=") for name, limit in value.items()]
    return value


def _seen_from(key: str, value: Any, folder: Path | None) -> Any:
    if isinstance(value, Path):
        return value.name if folder is None else os.path.relpath(value, folder)
    if folder is None or key not in _FOLDERS_OR_IDS:
        return value
    if isinstance(value, (list, tuple)):
        return [_seen_from(key, one, folder) for one in value]
    path = file_path(value)
    if path.is_absolute() or not path.is_dir():
        return value
    return _dotted(Path(os.path.relpath(path, folder)))


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(key)} = {_toml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(one) for one in value) + "]"
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON allows, TOML does not


def _key(name: str) -> str:
    return name if re.fullmatch(r"[\w-]+", name, re.ASCII) else _toml(name)


def resolved(recipe: Recipe, source: Source) -> Recipe:
    """`recipe` with what the model's files and the Hub said in place of what it left open."""
    options = {name: getattr(source, name) for name in ("model", "revision", "exporter")}
    options["task"] = source.task.tag
    options["adapters"] = tuple(adapter.pinned for adapter in source.adapters)
    if "max_length" in source.task.options:
        options["max_length"] = source.task.asked_length(recipe, source)
    if "pooling" in source.task.options and "pooling" in source.settings:
        options["pooling"] = source.settings["pooling"]
    return replace(recipe, **options)


def command_of(path: str | Path, recipe: Recipe) -> str:
    """The command that exports by `recipe`, which is at `path`; it names the folder where the recipe does not."""
    return f"python -m export --recipe {quote(str(path))}{'' if recipe.out != Path() else ' --out FOLDER'}"


def write_recipe(path: Path, recipe: Recipe) -> None:
    """Write `recipe` to `path`, with paths as seen from there."""
    text = text_of(recipe, command_of(path.name, recipe), path.absolute().parent)
    write_whole(path, text.encode())
