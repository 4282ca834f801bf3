"""What this machine has: cores, free memory, what a process takes of it, and whether a file fits."""

import errno
import os
from pathlib import Path
from typing import NamedTuple

from dne_lab.core.errors import LabError
from dne_lab.core.files import short_path

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


def memory_of(process: int | str = "self") -> Taken | None:
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


EXTENTS = 10_000  # parts of a file between holes that are looked at
SMALL, HOLES = 2**26, 20  # bytes that any file may have, and how many times what was ever written of it


def refuse_unreadable(path: Path) -> None:
    """Refuses a file of tensors before it is read, where it would only fill the memory.

    Raises:
        LabError: it is larger than the memory that is free; or hardly any of it is on the disk, so that it is no file
            of numbers (a few bytes can claim a terabyte). Nothing is raised where there is no such file.
    """
    try:
        found = path.stat()
    except (OSError, ValueError):  # whoever opens it says so
        return
    if found.st_size <= SMALL:
        return
    enough = found.st_size // HOLES
    written = _written(path, enough)
    if written < enough:
        raise LabError(
            f"{short_path(path)} is damaged: of its {found.st_size:,} bytes {written:,} are on the disk. The file is "
            "untouched. Bring back a copy of it."
        )
    free = available_memory()
    if free is not None and found.st_size > free:
        raise LabError(
            f"{short_path(path)} has {found.st_size:,} bytes, and {free:,} bytes of memory are free: it cannot be read "
            "here. End other programs, or take a machine with more memory."
        )


def _written(path: Path, enough: int) -> int:
    """The bytes of a file that are no holes; ``enough`` as soon as there are so many, or the system does not tell."""
    if not hasattr(os, "SEEK_DATA"):  # Windows
        return enough
    total, at = 0, 0
    try:
        with path.open("rb", buffering=0) as file:
            for _ in range(EXTENTS):
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
                at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
                total += at - start
                if total >= enough:
                    break
            else:
                return enough
    except OSError as error:
        return total if error.errno == errno.ENXIO else enough  # ENXIO: holes up to the end
    return total
