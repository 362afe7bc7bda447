"""What a boot may leave for later, or for another engine: files under graphs/ alone, whatever others are called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from engine.bundle import open_bundle, write_manifest
from engine.errors import BundleError
from handler.verification import Verification


@pytest.mark.parametrize("name", ["vocabulary.bin", "more.plan", "more.cache"])
def test_a_file_outside_graphs_is_compared_before_anything_is_read(small_bundle: Path, name: str):
    (small_bundle / name).write_bytes(b"w" * 100)
    write_manifest(small_bundle, open_bundle(small_bundle).manifest)
    bundle = open_bundle(small_bundle)
    bundle.verify_common()
    (small_bundle / name).write_bytes(b"x" * 100)
    with pytest.raises(BundleError, match=f"{name} does not match the SHA-256 in the manifest"):
        bundle.verify_common()


def test_damage_ends_the_other_process(small_bundle: Path):
    bundle = open_bundle(small_bundle)
    (small_bundle / "tokenizer.json").write_bytes(b"x" * bundle.manifest.files["tokenizer.json"][0])
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(BundleError, match=r"tokenizer\.json does not match"):
        Verification(bundle).wait()
    assert set(os.listdir("/proc/self/fd")) <= before  # whose end of the socket is closed was waited for
