"""What this machine has for several processes: cores, free memory, and what a process takes of it."""

import os
from pathlib import Path
from typing import NamedTuple

MEMORY, GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


class Taken(NamedTuple):
    """Bytes that a process holds now, and held at its peak."""

    now: int
    peak: int


def cores() -> int:
    """Cores that this process may use: what the system, or a container's limit, leaves it."""
    try:
        mine = len(os.sched_getaffinity(0))
    except AttributeError:  # macOS, Windows
        mine = os.cpu_count() or 1
    try:
        quota, period = (GROUP / "cpu.max").read_text().split()
        return max(1, min(mine, int(quota) // int(period)))
    except (OSError, ValueError):  # no container, or "max": no limit
        return mine


def available_memory() -> int | None:
    """Bytes that new processes can take without pushing others out; None where the system does not say (not Linux)."""
    known = [free for free in (_fields(MEMORY, 1024).get("MemAvailable"), _left_in_group()) if free is not None]
    return min(known, default=None)


def taken(process: int | str = "self") -> Taken | None:
    """The memory of a process, by its number; None where the system does not say, or when it has ended."""
    found = _fields(Path(f"/proc/{process}/status"), 1024)
    return Taken(found["VmRSS"], found["VmHWM"]) if {"VmRSS", "VmHWM"} <= found.keys() else None


def _left_in_group() -> int | None:
    """What a container's limit leaves; file pages that the system can drop at once count as free."""
    try:
        limit = int((GROUP / "memory.max").read_text())
        used = int((GROUP / "memory.current").read_text())
    except (OSError, ValueError):
        return None
    return limit - used + _fields(GROUP / "memory.stat", 1).get("inactive_file", 0)


def _fields(file: Path, unit: int) -> dict[str, int]:
    """Lines such as ``MemAvailable: 8 kB`` or ``inactive_file 8192``, in bytes."""
    try:
        lines = [line.replace(":", " ").split() for line in file.read_text().splitlines()]
    except OSError:
        return {}
    return {words[0]: int(words[1]) * unit for words in lines if len(words) > 1 and words[1].isdigit()}
