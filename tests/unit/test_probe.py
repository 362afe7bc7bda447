import os
from pathlib import Path

import pytest

from engine.probe import cpu_quota

HERE = len(os.sched_getaffinity(0))


def write(root: Path, name: str, text: str) -> None:
    path = root / "sys/fs/cgroup" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("100000 100000", 1), ("150000 100000", 2), ("1 100000", 1), ("max 100000", HERE), ("", HERE), ("x y", HERE)],
)
def test_cgroup_v2(tmp_path: Path, text: str, expected: int):
    write(tmp_path, "cpu.max", text)
    assert cpu_quota(tmp_path) == min(HERE, expected)


@pytest.mark.parametrize(("quota", "expected"), [("100000", 1), ("-1", HERE)])
def test_cgroup_v1(tmp_path: Path, quota: str, expected: int):
    write(tmp_path, "cpu/cpu.cfs_quota_us", quota)
    write(tmp_path, "cpu/cpu.cfs_period_us", "100000")
    assert cpu_quota(tmp_path) == expected


def test_without_cgroup_the_affinity_counts(tmp_path: Path):
    assert cpu_quota(tmp_path) == HERE
