"""The user's own rows for the gate: the file, and its lines."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from engine.bundle import open_bundle
from export.errors import Refused
from export.gate.data import check_payload_file, read_payloads
from export.model_files.json_files import read_json
from export.recipe import command_from_argv
from export.signing import sign


def test_a_file_that_cannot_be_read(small_bundle: Path, tmp_path: Path):
    bundle = open_bundle(small_bundle)
    (tmp_path / "latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    for name, sentence in (
        ("none.jsonl", "none.jsonl cannot be read (No such file or directory); name a file of JSON lines"),
        ("latin.jsonl", "latin.jsonl is not UTF-8; save it as UTF-8"),
    ):
        with pytest.raises(Refused) as refused:
            read_payloads(tmp_path / name, bundle)
        assert str(refused.value) == f"--parity-data {tmp_path / sentence}"


@pytest.mark.timeout(20)
def test_a_file_without_an_end_is_not_read(tmp_path: Path):
    """Nor one that nobody writes to, or that would not fit into memory."""
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(10**9 + 1)
    pipe = "it is a pipe or a device; write its content to a file"
    for name, why in ((Path("/dev/zero"), pipe), ("pipe", pipe), ("large", "it has more than 1000 MB")):
        with pytest.raises(Refused, match=f"--parity-data .* cannot be read .{why}"):
            check_payload_file(tmp_path / name)
    for arguments in (["--recipe", "/dev/zero"], ["--recipe", str(tmp_path / "pipe")]):
        with pytest.raises(Refused, match=pipe):
            command_from_argv(arguments)
    with pytest.raises(Refused, match=pipe):
        sign(["bundle", "--key", "/dev/zero"])
    (tmp_path / "config.json").symlink_to("/dev/zero")
    with pytest.raises(Refused, match=pipe):
        read_json(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"text": "fine"}\n{"text": 1}\n', "mine.jsonl, line 2: "),
        ('{"text": "fine"\n', "mine.jsonl, line 1: not JSON"),
        ("[]\n", "mine.jsonl, line 1: an object is needed, got list"),
        ("\n", "holds no line"),
    ],
)
def test_a_bad_line_is_named(small_bundle: Path, tmp_path: Path, content: str, said: str):
    (tmp_path / "mine.jsonl").write_text(content)
    with pytest.raises(Refused) as refused:
        read_payloads(tmp_path / "mine.jsonl", open_bundle(small_bundle))
    assert said in str(refused.value)
    assert "write a job's input" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("line", [r'{"text": "a\ud83d b"}', r'{"text": "ok", "\udc00": 1}'])
def test_half_a_surrogate_pair_is_refused_as_a_worker_does(small_bundle: Path, tmp_path: Path, line: str):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": "ok"}}\n{line}\n')
    with pytest.raises(Refused, match=r"line 2: a string in `input` holds half a surrogate pair \(\\ud.*write a job's"):
        read_payloads(tmp_path / "rows.jsonl", open_bundle(small_bundle))


def test_a_line_ends_where_json_lines_do(small_bundle: Path, tmp_path: Path):
    """And not at U+2028, U+0085 and the like, which JSON may hold as they are."""
    payloads = [{"text": "a\u2028b"}, {"text": "a\x85b"}]
    lines = "\r\n".join(json.dumps(payload, ensure_ascii=False) for payload in payloads)
    (tmp_path / "rows.jsonl").write_bytes(f"{lines}\r\n\r\n".encode())
    found = read_payloads(tmp_path / "rows.jsonl", open_bundle(small_bundle))
    assert found == [("rows.jsonl:1", payloads[0]), ("rows.jsonl:2", payloads[1])]


def test_options_of_every_job_are_taken_out_as_a_worker_does(small_bundle: Path, tmp_path: Path):
    """And a mark of the encoding, which some editors put in front, is none of the first line."""
    options = {"stream": True, "timings": True, "progress": False}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": "a", **options}), encoding="utf-8-sig")
    assert read_payloads(tmp_path / "rows.jsonl", open_bundle(small_bundle)) == [("rows.jsonl:1", {"text": "a"})]
