"""Whatever the export refuses with, some test looks for: the sentences of its sources against the strings of the tests.

A sentence counts as tested when four words of it in a row (or all of a shorter piece between two values) are in a
string of the tests. A sentence that is put together elsewhere than in the call, such as a builder's, is not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
RAISED = {"ArgumentTypeError", "BundleError", "ConfigError", "EngineError", "ParityFailed", "Refused", "Unavailable"}
WORDS = 4


def plain(text: str) -> str:
    """Without the backslashes of patterns, and with single spaces."""
    return " ".join(text.replace("\\", "").split())


def strings(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield plain(node.value)


def sentences() -> Iterator[tuple[str, list[str]]]:
    """Where one is raised, and its pieces between the values that it names."""
    for file in sorted((ROOT / "export").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in RAISED and (pieces := [piece for piece in strings(node.args[0]) if " " in piece]):
                yield f"{file.relative_to(ROOT)}:{node.lineno}", pieces


def windows(piece: str) -> Iterator[str]:
    words = piece.split()
    for start in range(max(1, len(words) - WORDS + 1)):
        yield " ".join(words[start : start + WORDS])


def test_every_sentence_of_a_refusal_is_in_a_test():
    files = [file for file in (ROOT / "tests").rglob("*.py") if file != Path(__file__)]
    texts = [text for file in files for text in strings(ast.parse(file.read_text()))]
    known, whole = {window for text in texts for window in windows(text)}, "\n".join(texts)
    found = list(sentences())
    assert len(found) > 150
    untested = {}
    for place, pieces in found:
        looked_for = [window for piece in pieces for window in windows(piece)]
        # A string of a test may begin and end within a word, which takes longer to find out.
        if known.isdisjoint(looked_for) and not any(window in whole for window in looked_for):
            untested[place] = pieces
    listed = "\n".join(f"{place}: {' ... '.join(pieces)}" for place, pieces in untested.items())
    assert not untested, f"no test meets these refusals; write one below tests/ that looks for the words:\n{listed}"
