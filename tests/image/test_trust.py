"""Whom the image's worker trusts over TLS: the base's authorities, as its own Python finds them, or certifi's."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest

from benchmarks.emulator import EmulatorThread
from benchmarks.emulator.far import TlsFront
from tests.image.buildah import Buildah, Image
from tests.image.container import Container
from tests.image.test_image import SITE
from tests.tls_server import certificate, searchable

pytestmark = [pytest.mark.image, pytest.mark.timeout(1500)]


def knowing(image: Image, pem: Path, way: str) -> None:
    """Add the authority in `pem` to those of the image; certifi's count where the base has none at all."""
    root = image.root
    if way == "folder":
        searchable(root / "etc/ssl/certs", pem)
        return
    file = root / "etc/ssl/certs/ca-certificates.crt"
    if way == "certifi":
        file = root / SITE / "certifi/cacert.pem"
        for folder in ("etc/ssl", "usr/lib/ssl", "usr/share/ca-certificates"):
            shutil.rmtree(root / folder)
    if way == "certifi, links that lead nowhere":
        file = root / SITE / "certifi/cacert.pem"
        (root / "etc/ssl/certs/ca-certificates.crt").unlink()
        shutil.rmtree(root / "usr/share/ca-certificates")
    file.write_bytes(file.read_bytes() + pem.read_bytes())


@pytest.mark.parametrize("way", ["folder", "file", "certifi", "certifi, links that lead nowhere"])
def test_a_worker_answers_over_tls(image: Image, buildah: Buildah, tmp_path: Path, way: str):
    changed = buildah.copy(image)
    (changed.root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    with EmulatorThread() as emulator, TlsFront(tmp_path, int(emulator.url.rpartition(":")[2])) as front:
        knowing(changed, front.pem, way)
        env = {name: value.replace(emulator.url, front.url) for name, value in emulator.worker_env().items()}
        with Container(changed, env, tmp_path / "log") as container:
            record = emulator.wait(emulator.submit({"text": "a"}), 30)
    assert record.status == "COMPLETED", container.output


def test_a_worker_does_not_answer_whom_nobody_vouches_for(image: Image, buildah: Buildah, tmp_path: Path):
    """So that the test above means something."""
    changed = buildah.copy(image)
    (changed.root / "etc/hosts").write_text("127.0.0.1 localhost\n")
    with EmulatorThread() as emulator, TlsFront(tmp_path, int(emulator.url.rpartition(":")[2])) as front:
        knowing(changed, certificate(tmp_path, "another"), "folder")
        env = {name: value.replace(emulator.url, front.url) for name, value in emulator.worker_env().items()}
        env["RUNPOD_LOG_LEVEL"] = "WARN"
        with Container(changed, env, tmp_path / "log") as container:
            job = emulator.submit({"text": "a"})
            deadline = time.monotonic() + 30
            while container.output.count("CERTIFICATE_VERIFY_FAILED") < 2:  # again with all that the base has
                assert time.monotonic() < deadline, container.output
                time.sleep(0.05)
            with pytest.raises(TimeoutError):
                emulator.wait(job, 0.5)
