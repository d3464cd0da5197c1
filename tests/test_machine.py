"""Cores and memory that a container or a batch system leaves to the process."""

import os
import pathlib

import pytest

from tqa_jax import machine

ROOT = pathlib.Path(__file__).resolve().parent.parent


def groups(root, line, files):
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(line)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_the_smallest_limit_of_the_control_groups_counts(tmp_path):
    files = {"job/memory.max": "5000", "job/step/memory.max": "max"}
    root = groups(tmp_path, "0::/job/step\n", files | {"other/memory.max": "1"})
    assert machine.memory(root) == 5000


def test_limits_of_the_older_control_groups_are_read(tmp_path):
    files = {"memory/job/memory.limit_in_bytes": "7000", "memory.max": "1"}
    root = groups(tmp_path, "4:cpu,memory:/job\n3:pids:/job\n", files)
    assert machine.memory(root) == 7000


def test_without_control_groups_the_machine_is_the_limit(tmp_path):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert machine.memory(tmp_path) == pages
    root = groups(tmp_path, "0::/\n", {"memory.max": "max"})
    assert machine.memory(root) == pages


def test_free_memory_is_the_least_of_machine_and_groups(tmp_path):
    assert machine.free_memory(tmp_path) is None
    files = {
        "job/memory.max": "9000000",
        "job/memory.current": "8000000",
        "job/memory.stat": "anon 7000000\ninactive_file 500000\n",
        "job/step/memory.max": "max",
        "job/step/memory.current": "7000000",
    }
    root = groups(tmp_path, "0::/job/step\n", files)
    assert machine.free_memory(root) == 1_500_000
    (root / "proc/meminfo").write_text("MemFree: 1 kB\nMemAvailable:    1000 kB\n")
    assert machine.free_memory(root) == 1_024_000


@pytest.mark.parametrize(
    ("line", "files", "cores"),
    [
        ("0::/job/step\n", {"job/cpu.max": "200000 100000"}, 2),
        ("0::/job/step\n", {"job/step/cpu.max": "250000 100000"}, 3),
        ("0::/job\n", {"job/cpu.max": "max 100000", "cpu.max": "100000 100000"}, 1),
        ("0::/\n", {"cpu.max": "1000 100000"}, 1),
        ("0::/job\n", {"other/cpu.max": "100000 100000"}, 8),
        ("", {}, 8),
        (
            "4:cpu,cpuacct:/docker/a\n",
            {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"},
            4,
        ),
        (
            "4:cpu,cpuacct:/job\n",
            {
                "cpu,cpuacct/job/cpu.cfs_quota_us": "300000",
                "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            3,
        ),
        (
            "4:cpu:/\n",
            {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            8,
        ),
    ],
)
def test_cores_are_those_of_affinity_and_quota(
    tmp_path, monkeypatch, line, files, cores
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(8), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert machine.cores(groups(tmp_path, line, files)) == cores


def test_without_affinity_the_machine_is_counted(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert machine.cores(tmp_path) == 64
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert machine.cores(tmp_path) == 1


def test_cores_are_counted_in_one_place():
    for folder in ("tqa_jax", "extract", "experiments"):
        for file in (ROOT / folder).rglob("*.py"):
            if file.name != "machine.py":
                assert "cpu_count" not in file.read_text(encoding="utf-8"), file
