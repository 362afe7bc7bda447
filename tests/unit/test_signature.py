"""Signed bundles: keygen, sign and verify on the command line, and what the worker makes of them at boot."""

import base64
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.bundle import MANIFEST, SIGNATURE, open_bundle, write_manifest
from engine.config import Settings
from engine.errors import BundleError, ConfigError
from export.__main__ import main
from handler.boot import boot
from handler.startup.timeline import Timeline


def new_key(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """Make a key pair; the public key."""
    assert main(["keygen", "--key", str(path)]) == 0
    return capsys.readouterr().out.strip().removeprefix("BUNDLE_PUBLIC_KEY=")


@pytest.fixture
def key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    return new_key(tmp_path / "key.pem", capsys)


@pytest.fixture
def signed(small_bundle: Path, key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    assert main(["sign", str(small_bundle), "--key", str(tmp_path / "key.pem")]) == 0
    assert f"BUNDLE_PUBLIC_KEY={key}" in capsys.readouterr().out
    return small_bundle


def flip(path: Path, position: int = -20) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_private_key_is_for_its_owner_only_and_never_replaced(tmp_path: Path, key: str, capsys):
    assert len(base64.b64decode(key)) == 32
    path = tmp_path / "key.pem"
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert main(["keygen", "--key", str(path)]) == 2
    assert f"{path} exists" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_key_is_new_where_a_file_system_has_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    def link(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    path = tmp_path / "key.pem"
    new_key(path, capsys)
    assert [one.name for one in tmp_path.iterdir()] == ["key.pem"]
    before = path.read_bytes()
    assert main(["keygen", "--key", str(path)]) == 2
    assert path.read_bytes() == before


def test_what_cannot_be_written_is_not_there(small_bundle: Path, key: str, tmp_path: Path, capsys):
    """On a full disk, which a limit on files stands for; neither a key that the next run would not replace."""
    code = """
import resource, sys
from export.__main__ import main

resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
sys.exit(main(sys.argv[1:]))
"""
    other, recipe = tmp_path / "other.pem", tmp_path / "recipe.toml"
    before = sorted(tmp_path.rglob("*"))
    for argv in (
        ["keygen", "--key", str(other)],
        ["sign", str(small_bundle), "--key", str(tmp_path / "key.pem")],
        ["a/model", "--write-recipe", str(recipe)],
    ):
        done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True)
        assert (done.returncode, done.stderr[:24]) == (3, "error: the disk is full;")
    assert sorted(tmp_path.rglob("*")) == before
    new_key(other, capsys)


def test_a_signed_bundle_is_opened_with_its_key_and_without_any(signed: Path, key: str):
    assert open_bundle(signed, public_key=key).manifest.model == "toy"
    open_bundle(signed).verify()


def test_the_worker_boots_a_signed_bundle(signed: Path, key: str):
    worker = boot(Settings.from_environ({"BUNDLE": str(signed), "BUNDLE_PUBLIC_KEY": key}), Timeline())
    worker.batcher.close()


def test_the_worker_refuses_an_unsigned_bundle(small_bundle: Path, key: str):
    with pytest.raises(BundleError, match="is not signed; sign it with"):
        boot(Settings.from_environ({"BUNDLE": str(small_bundle), "BUNDLE_PUBLIC_KEY": key}), Timeline())


def test_another_key_is_refused(signed: Path, tmp_path: Path, capsys):
    other = new_key(tmp_path / "other.pem", capsys)
    with pytest.raises(BundleError, match="another key signed it"):
        open_bundle(signed, public_key=other)


def test_a_flipped_byte_of_the_signature_is_refused(signed: Path, key: str):
    flip(signed / SIGNATURE)
    with pytest.raises(BundleError, match="is not a signature of this bundle"):
        open_bundle(signed, public_key=key)


def test_a_manifest_that_was_written_again_is_refused(signed: Path, key: str):
    """Its own checksum fits; only the signature tells."""
    (signed / "extra.txt").write_text("not signed")
    write_manifest(signed, open_bundle(signed).manifest)
    assert SIGNATURE not in open_bundle(signed).manifest.files
    with pytest.raises(BundleError, match="the bundle was changed"):
        open_bundle(signed, public_key=key)


@pytest.mark.parametrize("name", ["tokenizer.json", "graphs/model/fp32.onnx", MANIFEST])
def test_a_flipped_byte_of_any_file_is_refused(signed: Path, key: str, name: str, capsys):
    assert main(["verify", str(signed), "--public-key", key]) == 0
    assert f"signed by {key}" in capsys.readouterr().out
    flip(signed / name)
    assert main(["verify", str(signed), "--public-key", key]) == 2
    assert name in capsys.readouterr().err


def test_verify_blames_what_gave_the_key(small_bundle: Path, key: str, monkeypatch: pytest.MonkeyPatch, capsys):
    for given, argv in ((key, []), ("short", []), ("", ["--public-key", key]), (key, ["--public-key", "short"])):
        monkeypatch.setenv("BUNDLE_PUBLIC_KEY", given)
        assert main(["verify", str(small_bundle), *argv]) == 2
        said = capsys.readouterr().err
        assert ("--public-key" in said, "BUNDLE_PUBLIC_KEY" in said) == (bool(argv), not argv)


def test_verify_without_a_key_says_that_nobody_vouches(signed: Path, monkeypatch, capsys):
    monkeypatch.delenv("BUNDLE_PUBLIC_KEY", raising=False)
    assert main(["verify", str(signed)]) == 0
    output = capsys.readouterr().out
    assert "signature not checked" in output
    assert (signed / "manifest.sha256").read_text()[:64] in output


def test_openssl_can_check_the_signature(signed: Path, tmp_path: Path):
    raw = tmp_path / "raw.sig"
    raw.write_bytes(base64.b64decode((signed / SIGNATURE).read_text()))
    command = f"openssl pkeyutl -verify -inkey {tmp_path}/key.pem -rawin -in {signed}/{MANIFEST} -sigfile {raw}"
    done = subprocess.run(command.split(), capture_output=True, text=True)
    assert "Signature Verified Successfully" in done.stdout, done.stderr


@pytest.mark.parametrize(
    "content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_private_key_is_refused_in_one_sentence(small_bundle: Path, tmp_path: Path, content: bytes, capsys):
    path = tmp_path / "bad.pem"
    path.write_bytes(content)
    assert main(["sign", str(small_bundle), "--key", str(path)]) == 2
    assert f"{path} is not a private key without a password; make one with `python" in capsys.readouterr().err


def test_keys_and_bundles_that_are_not_there_or_of_another_kind(small_bundle: Path, tmp_path: Path, capsys):
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    other, none = tmp_path / "other.pem", tmp_path / "none" / "key.pem"
    other.write_bytes(X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for argv, sentence in (
        (["keygen", "--key", str(none)], "none is not a folder; make it first, or name another file with --key"),
        (["keygen", "--key", str(tmp_path)], "is a folder; name a new file in it with --key"),
        (["keygen"], "the following arguments are required: --key; see python -m export keygen --help"),
        (
            ["sign", str(small_bundle), "--key", str(none)],
            "cannot be read (No such file or directory); make one with",
        ),
        (["sign", str(small_bundle), "--key", str(other)], "other.pem is not an Ed25519 key; make one with `python -m"),
        (["sign", str(tmp_path), "--key", str(other)], "is not an Ed25519 key"),
        (["verify", str(tmp_path)], "is not a bundle (no manifest.json); make one with `python -m export MODEL"),
        (
            ["verify", str(small_bundle), "--public-key", "short"],
            "error: --public-key='short' is not allowed; set it to what `python -m export keygen` printed, or leave it",
        ),
        (["verify", str(small_bundle), "--json"], "unrecognized arguments: --json; see python -m export verify --help"),
    ):
        assert main(argv) == 2
        said = capsys.readouterr()
        assert sentence in said.err
        assert said.err.startswith("error: ")
        assert "--json" in argv or said.err.count("\n") == 1
    assert not (small_bundle / SIGNATURE).exists()


def test_a_damaged_bundle_is_not_signed(small_bundle: Path, key: str, tmp_path: Path):
    flip(small_bundle / "tokenizer.json")
    assert main(["sign", str(small_bundle), "--key", str(tmp_path / "key.pem")]) == 2
    assert not (small_bundle / SIGNATURE).exists()


@pytest.mark.parametrize("value", ["short", "A" * 44, "-----BEGIN"])
def test_a_public_key_that_is_none_is_named(small_bundle: Path, value: str):
    with pytest.raises(ConfigError, match="BUNDLE_PUBLIC_KEY="):
        Settings.from_environ({"BUNDLE_PUBLIC_KEY": value})
        open_bundle(small_bundle, public_key=value)


def test_without_the_setting_the_library_is_not_loaded(small_bundle: Path):
    code = """
import sys
from engine.config import Settings
from handler.boot import boot
from handler.startup.timeline import Timeline

boot(Settings.from_environ({"BUNDLE": sys.argv[1]}), Timeline()).batcher.close()
seldom = {"cryptography", "engine.files.signature", "handler.startup.bundle_source", "handler.startup.fetch_bundle"}
print(seldom & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code, str(small_bundle)], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1:] == ["set()"], done.stderr
