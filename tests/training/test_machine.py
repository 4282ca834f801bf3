"""What the machine is said to have, against made files and against this process."""

import mmap
import os
from pathlib import Path

import pytest

from dne_lab.training import parallel_runs


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the container's limits, and 4 GB that the system has free."""
    (tmp_path / "meminfo").write_text("MemTotal:  8388608 kB\nMemAvailable:    4194304 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(parallel_runs, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(parallel_runs, "GROUP", tmp_path)
    return tmp_path


def test_memory_is_what_the_system_has_or_the_container_leaves(group: Path) -> None:
    assert parallel_runs.available_memory() == 4 * 2**30
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text(f"{2**30}\n")
    assert parallel_runs.available_memory() == 4 * 2**30
    (group / "memory.max").write_text(f"{3 * 2**30}\n")
    assert parallel_runs.available_memory() == 2 * 2**30
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {2**29}\n")
    assert parallel_runs.available_memory() == 2 * 2**30 + 2**29
    (group / "meminfo").unlink()
    (group / "memory.max").unlink()
    assert parallel_runs.available_memory() is None


def test_cores_are_those_that_are_left(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert parallel_runs.cores() == 6
    for limit, cores in (("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6)):
        (group / "cpu.max").write_text(limit)
        assert parallel_runs.cores() == cores


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say")
def test_a_process_knows_what_it_takes() -> None:
    before = parallel_runs.memory_of()
    with mmap.mmap(-1, 2**26) as block:  # pages of its own: what earlier tests have freed cannot serve it
        block.write(b"\1" * 2**26)
        after = parallel_runs.memory_of(os.getpid())
    assert before is not None and after is not None
    assert after.now > before.now + 2**25 and after.peak >= after.now
    assert parallel_runs.memory_of(2**30) is None  # no such process
