"""What a boot checks before the engine loads, and what it leaves for beside that: weights, of which only the size."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.bundle import Bundle, open_bundle, write_manifest
from engine.errors import BundleError


@pytest.fixture
def bundle(small_bundle: Path) -> Bundle:
    for name in ("graphs/model/weights.bin", "vocabulary.bin"):
        (small_bundle / name).write_bytes(b"w" * 100)
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    return open_bundle(small_bundle)


def test_weights_are_hashed_later(bundle: Bundle):
    (bundle.path / "graphs/model/weights.bin").write_bytes(b"x" * 100)
    bundle.verify_all_but_weights()
    with pytest.raises(BundleError, match=r"weights\.bin does not match the SHA-256 in the manifest"):
        bundle.verify_weights()


@pytest.mark.parametrize(("content", "said"), [(b"w" * 99, "has 99 bytes, the manifest says 100"), (None, "missing")])
def test_their_size_is_looked_at_before(bundle: Bundle, content: bytes | None, said: str):
    weights = bundle.path / "graphs/model/weights.bin"
    weights.unlink() if content is None else weights.write_bytes(content)
    with pytest.raises(BundleError, match=said):
        bundle.verify_all_but_weights()


@pytest.mark.parametrize("name", ["vocabulary.bin", "graphs/model/fp32.onnx"])
def test_nothing_else_is_left_for_later(bundle: Bundle, name: str):
    raw = bytearray((bundle.path / name).read_bytes())
    raw[-1] ^= 1
    (bundle.path / name).write_bytes(raw)
    bundle.verify_weights()
    with pytest.raises(BundleError, match="does not match the SHA-256 in the manifest"):
        bundle.verify_all_but_weights()
