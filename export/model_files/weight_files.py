"""Which files hold a model's weights: those that transformers loads, and none that lie beside them."""

from __future__ import annotations

from pathlib import Path

from export.model_files.json_files import read_json

WHOLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


def parts_of(folder: Path) -> list[str]:
    """The files that the index of weights in several names."""
    index = read_json(folder / _INDEX).get("weight_map")
    return sorted({str(part) for part in index.values()}) if isinstance(index, dict) else []


def weight_files(folder: Path) -> list[Path]:
    """The whole file before the parts that an index names, which a model saved again may have left behind.

    Every *.safetensors where there is neither.
    """
    if (folder / WHOLE).is_file():
        return [folder / WHOLE]
    if parts := parts_of(folder):
        return [folder / part for part in parts]
    return sorted(folder.glob("*.safetensors"))
