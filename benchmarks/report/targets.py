"""What targets are called on the page, and their colours: one each, the same in every plot.

The colours are Okabe and Ito's (told apart by people who see red and green alike), darker or lighter where the
background asks for it: every one has a contrast of at least 3 to 1 on the page's background, light and dark. No plot
tells anything by colour alone: bars and lines carry their target's name.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.rounds import named_precision, plain

_NAMES = {
    "ours": "this worker",
    "ours-int8": "this worker, int8",
    "floor": "floor",
    "stock": "stock SDK + sentence-transformers",
    "fastembed": "stock SDK + fastembed",
    "infinity": "stock SDK + infinity",
    "infinity-http": "infinity's HTTP server",
    "litserve": "LitServe",
    "sentence-transformers": "sentence-transformers alone",
    "transformers-pipeline": "transformers.pipeline alone",
    "torch-eager": "PyTorch, eager",
    "torch-compile": "PyTorch, torch.compile",
    "ours-alone": "this worker's engine alone",
    "ours-handler": "this worker, through its handler",
    "ours-web": "this worker, load-balancing",
    "ours-http": "this worker, SDK's test server",
    "tei": "Text Embeddings Inference",
    "triton": "Triton",
    "bare": "bare worker",
}


@dataclass(frozen=True)
class Colour:
    """One colour on the light and on the dark background."""

    light: str
    dark: str

    @property
    def variable(self) -> str:
        """Its name in the page's style sheet."""
        return f"--c{self.light[1:].lower()}"


_COLOURS = {
    "ours": Colour("#0072b2", "#4ba3dd"),
    "ours-int8": Colour("#2f8fa8", "#6cc8df"),
    "ours-alone": Colour("#5b8bd6", "#8fb4ee"),
    "ours-handler": Colour("#0b3d66", "#bfe0f7"),
    "floor": Colour("#6b7280", "#9aa3b2"),
    "stock": Colour("#d55e00", "#f0883e"),
    "fastembed": Colour("#a0522d", "#d98c5f"),
    "infinity": Colour("#a8568a", "#d893ba"),
    "infinity-http": Colour("#7d5aa8", "#b69ae0"),
    "litserve": Colour("#00815f", "#2fbf95"),
    "sentence-transformers": Colour("#9a7200", "#d9b23c"),
    "transformers-pipeline": Colour("#8a6d3b", "#c9a86c"),
    "torch-eager": Colour("#b5403a", "#ec8079"),
    "torch-compile": Colour("#7a7a1f", "#bdbd4e"),
}
_OTHERS = (Colour("#5b6ee1", "#93a1f5"), Colour("#4d7c0f", "#8fc74a"), Colour("#be3f78", "#f07fb0"))

STAGES = (
    Colour("#4a3fa0", "#a79bf5"), Colour("#2a8f80", "#5fd0bf"), Colour("#8c2a5c", "#e07fae"),
    Colour("#7d7d22", "#c3c35a"), Colour("#3a86ab", "#8ccdee"), Colour("#b84f60", "#ee95a2"),
    Colour("#117733", "#55c07a"), Colour("#5a6472", "#a2abb8"), Colour("#8e3a88", "#d58ad0"),
    Colour("#94801a", "#ddcc77"),
)  # fmt: skip
"""For the stages of a start, which are no targets: after Tol's muted scheme."""

ALL = tuple(dict.fromkeys((*_COLOURS.values(), *_OTHERS)))


def name(target: str) -> str:
    """What a reader knows a target by."""
    if target in _NAMES:
        return _NAMES[target]
    if plain(target) in _NAMES:
        return f"{_NAMES[plain(target)]}, {named_precision(target)}"
    if target.startswith("ours-"):
        return f"this worker, {target.removeprefix('ours-').replace('-', ', ')}"
    return target


def colour(target: str) -> Colour:
    """The colour of a target; one that is not known gets one by its name, the same every time."""
    known = _COLOURS.get(target) or (_COLOURS.get(plain(target)) if plain(target) != "ours" else None)
    return known or _OTHERS[sum(target.encode()) % len(_OTHERS)]
