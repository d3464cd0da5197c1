"""What this machine lets the process use: processor cores and memory.

A container or a batch system gives a share of the machine, by affinity or by control
groups of version 1 or 2; `os.cpu_count` knows of neither.
"""

import math
import os
import pathlib
import re
from collections.abc import Iterator

_ROOT = pathlib.Path("/")


def cores(root: pathlib.Path = _ROOT) -> int:
    """Counts the processor cores that this process may keep busy, at least 1.

    Args:
        root: where the system's files are.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Not on macOS and Windows.
    count = len(affinity(0)) if affinity else os.cpu_count() or 1
    for folder, version in _control_groups(root, "cpu"):
        if version == 2:
            quota, period = (_read(folder / "cpu.max") or "max 1").split()
        else:
            quota = _read(folder / "cpu.cfs_quota_us")
            period = _read(folder / "cpu.cfs_period_us")
        if quota.isdecimal():  # Else "max", or -1: no limit.
            count = min(count, math.ceil(int(quota) / int(period)))
    return max(count, 1)


def memory(root: pathlib.Path = _ROOT) -> int | None:
    """The least of the machine's memory and the limits of all our control groups.

    Args:
        root: where the system's files are.

    Returns:
        Bytes; None where nothing tells.
    """
    limits = []
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for folder, version in _control_groups(root, "memory"):
        text = _read(
            folder / ("memory.max" if version == 2 else "memory.limit_in_bytes")
        )
        if text.isdecimal():
            limits.append(int(text))
    return min(limits, default=None)


def free_memory(root: pathlib.Path = _ROOT) -> int | None:
    """What processes may still take, of the machine and of all our control groups.

    Args:
        root: where the system's files are.

    Returns:
        Bytes; None where nothing tells.
    """
    free = []
    words = re.search(r"MemAvailable:\s*(\d+) kB", _read(root / "proc/meminfo"))
    if words:
        free.append(1024 * int(words[1]))
    for folder, version in _control_groups(root, "memory"):
        names = ("memory.max", "memory.current")
        if version == 1:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        limit, used = (_read(folder / name) for name in names)
        if limit.isdecimal() and used.isdecimal():
            # Files that were read stay in memory until it is needed.
            words = re.search(r"inactive_file (\d+)", _read(folder / "memory.stat"))
            kept = int(words[1]) if words else 0
            free.append(max(0, int(limit) - int(used) + kept))
    return min(free, default=None)


def _control_groups(
    root: pathlib.Path, controller: str
) -> Iterator[tuple[pathlib.Path, int]]:
    """Yields our group's folder and those around it, each with its version."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and controller not in kinds.split(","):
            continue
        top = root / "sys/fs/cgroup"
        if kinds:
            top /= kinds if (top / kinds).is_dir() else controller
        group = pathlib.PurePosixPath(path.lstrip("/"))
        for folder in (group, *group.parents):
            yield top / folder, 1 if kinds else 2


def _read(file: pathlib.Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""
