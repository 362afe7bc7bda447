"""Which names of TensorRT our sources use, found in their syntax trees.

`trt`, or an attribute `_trt`, is the module wherever it is used. Its objects are known by the names of the variables or
attributes that hold them: a file that calls an execution context by another name is not covered, and a test says so.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

MODULE = "trt"
OBJECTS = {
    "builder": "Builder",
    "config": "IBuilderConfig",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "parser_error": "ParserError",
    "layer": "ILayer",
    "output": "ITensor",
    "profile": "IOptimizationProfile",
    "runtime": "Runtime",
    "cuda_engine": "ICudaEngine",
    "engine": "ICudaEngine",
    "execution_context": "IExecutionContext",
    "handle": "IExecutionContext",
    "modes": "TensorIOMode",
    "severities": "ILogger.Severity",
    "strategies": "ExecutionContextAllocationStrategy",
}


@dataclass(frozen=True)
class Use:
    """One use of a name. `call` is None, or what it is called with: positional arguments and names of keywords."""

    name: str
    """Dotted, below the module."""
    where: str
    call: tuple[int, tuple[str, ...]] | None = None
    optional: bool = False
    """Asked for by getattr or hasattr, so that some version may lack it."""


def sources(root: Path) -> list[Path]:
    """Files of ours that touch TensorRT: they import it or are handed the module."""
    files = (file for folder in ("engine", "export", "benchmarks") for file in sorted((root / folder).rglob("*.py")))
    return [file for file in files if re.search(rf"\b{MODULE}: Any|\b_{MODULE}\b", file.read_text())]


def uses(file: Path) -> list[Use]:
    """Every use of a name of TensorRT in `file`."""
    return list(_uses(ast.parse(file.read_text()), file.name))


def _uses(tree: ast.AST, file: str) -> Iterator[Use]:
    calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        where = f"{file}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Attribute) and (name := _name(node)):
            yield Use(name, where, _arguments(calls.get(id(node))))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr"):
            owner, text = node.args[0], node.args[1]
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                if _is_module(owner):
                    yield Use(text.value, where, optional=True)
                elif isinstance(owner, ast.Attribute | ast.Name) and (name := _name(owner) or _owner(owner)):
                    yield Use(f"{name}.{text.value}", where, optional=True)


def _name(node: ast.Attribute | ast.Name) -> str | None:
    """The dotted name below the module, of `trt.A.B` or of `execution_context.b`."""
    if not isinstance(node, ast.Attribute):
        return None
    value = node.value
    if _is_module(value):
        return node.attr
    if isinstance(value, ast.Attribute) and (above := _name(value)) and not _is_instance(value):
        return None if node.attr.startswith("__") else f"{above}.{node.attr}"
    owner = _owner(value)
    return f"{owner}.{node.attr}" if owner else None


def _is_module(node: ast.expr) -> bool:
    if isinstance(node, ast.Attribute):
        return node.attr == f"_{MODULE}"
    return isinstance(node, ast.Name) and node.id == MODULE


def _owner(node: ast.expr) -> str | None:
    """The class of an object, by the name of the variable or attribute that holds it."""
    held = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return OBJECTS.get(held.lstrip("_"))


def _is_instance(node: ast.Attribute) -> bool:
    return _owner(node) is not None


def _arguments(call: ast.Call | None) -> tuple[int, tuple[str, ...]] | None:
    """None as well when the number of arguments is not in the source."""
    if call is None or any(isinstance(one, ast.Starred) for one in call.args):
        return None
    if any(one.arg is None for one in call.keywords):
        return None
    return len(call.args), tuple(one.arg for one in call.keywords if one.arg)


def takes(docstring: str, name: str, call: tuple[int, Sequence[str]]) -> bool:
    """Whether one of the signatures in a binding's docstring accepts `call`."""
    count, keywords = call
    for line in re.findall(rf"^(?:\d+\. )?{name}\((.*)\) -> ", docstring, re.MULTILINE):
        parameters = [one.strip() for one in _split(line)]
        parameters = [one for one in parameters if one and not one.startswith("self:")]
        names = [one.partition(":")[0] for one in parameters]
        required = [one.partition(":")[0] for one in parameters if "=" not in one]
        given = {*names[:count], *keywords}
        if count + len(keywords) <= len(names) and set(keywords) <= set(names) and set(required) <= given:
            return True
    return False


def _split(line: str) -> Iterator[str]:
    """At the commas that are in no bracket."""
    depth, start = 0, 0
    for index, sign in enumerate(line):
        depth += (sign in "[(") - (sign in "])")
        if sign == "," and depth == 0:
            yield line[start:index]
            start = index + 1
    yield line[start:]
