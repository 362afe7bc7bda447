"""The image, built once from the real Dockerfile for all tests here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.bundle import open_bundle
from tests.bundles import write_small_bundle
from tests.checkouts import copy_checkout
from tests.image.buildah import Buildah, Image, missing

REVISION = "r" * 40
MARKER_SECRET = "hf_this-is-the-token-that-must-not-be-inside"


@pytest.fixture(scope="session")
def buildah() -> Iterator[Buildah]:
    """IMAGE_TEST_FOLDER holds images (removed at the end) and the stand-in's files (kept, for the next run)."""
    if reason := missing():
        pytest.skip(reason)
    buildah = Buildah(Path(os.environ.get("IMAGE_TEST_FOLDER", "/tmp/worker-tensorrt-image")))
    buildah.remove()  # what a run that was killed has left
    try:
        buildah.make_base()
        yield buildah
    finally:
        buildah.remove()


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with a bundle, and with what people have lying about in theirs."""
    context = copy_checkout(tmp_path_factory.mktemp("context"))
    write_small_bundle(context / "bundle", revision=REVISION)
    for name in (
        ".env",
        "key.pem",
        ".git/config",
        "requirements/.netrc",
        ".venv/pip.conf",
        "handler/__pycache__/x.pyc",
    ):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        (context / name).write_text(MARKER_SECRET)
    return context


@pytest.fixture(scope="session")
def image(buildah: Buildah, context: Path, tmp_path_factory: pytest.TempPathFactory) -> Image:
    """Built with a token at hand, and with the arguments that `make image` gives."""
    token = tmp_path_factory.mktemp("secret") / "HF_TOKEN"
    token.write_text(MARKER_SECRET)
    bundle = open_bundle(context / "bundle")
    arguments = [f"MODEL={bundle.manifest.model}", f"REVISION={REVISION}", f"BUNDLE_SHA256={bundle.sha256}"]
    return buildah.build(context, "localhost/worker:test", f"--secret=id=HF_TOKEN,src={token}", arguments=arguments)
