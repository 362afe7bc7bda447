"""The user's own rows for the gate, where the file itself is at fault; bad lines are in tests/e2e/test_ladder.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.bundle import open_bundle
from export.errors import Refused
from export.parity_data import read_payloads


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


def test_a_line_ends_where_json_lines_do(small_bundle: Path, tmp_path: Path):
    """And not at U+2028, U+0085 and the like, which JSON may hold as they are."""
    payloads = [{"text": "a\u2028b"}, {"text": "a\x85b"}]
    lines = "\r\n".join(json.dumps(payload, ensure_ascii=False) for payload in payloads)
    (tmp_path / "rows.jsonl").write_bytes(f"{lines}\r\n\r\n".encode())
    found = read_payloads(tmp_path / "rows.jsonl", open_bundle(small_bundle))
    assert found == [("rows.jsonl:1", payloads[0]), ("rows.jsonl:2", payloads[1])]
