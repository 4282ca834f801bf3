"""What the machine is said to have, against made files and against this process."""

import json
import mmap
import os
import struct
from pathlib import Path

import pytest
import torch

from dne_lab.core.errors import LabError
from dne_lab.training import machine, run_folder


@pytest.fixture
def group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in place of the container's limits, and 4 GB that the system has free."""
    (tmp_path / "meminfo").write_text("MemTotal:  8388608 kB\nMemAvailable:    4194304 kB\nHugePages_Total:       0\n")
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "GROUP", tmp_path)
    return tmp_path


def test_memory_is_what_the_system_has_or_the_container_leaves(group: Path) -> None:
    assert machine.available_memory() == 4 * 2**30
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text(f"{2**30}\n")
    assert machine.available_memory() == 4 * 2**30
    (group / "memory.max").write_text(f"{3 * 2**30}\n")
    assert machine.available_memory() == 2 * 2**30
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {2**29}\n")
    assert machine.available_memory() == 2 * 2**30 + 2**29
    (group / "meminfo").unlink()
    (group / "memory.max").unlink()
    assert machine.available_memory() is None


def test_cores_are_those_that_are_left(group: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)), raising=False)
    assert machine.cores() == 6
    for limit, cores in (("max 100000", 6), ("250000 100000", 2), ("50000 100000", 1), ("900000 100000", 6)):
        (group / "cpu.max").write_text(limit)
        assert machine.cores() == cores


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not say")
def test_a_process_knows_what_it_takes() -> None:
    before = machine.memory_of()
    with mmap.mmap(-1, 2**26) as block:  # pages of its own: what earlier tests have freed cannot serve it
        block.write(b"\1" * 2**26)
        after = machine.memory_of(os.getpid())
    assert before is not None and after is not None
    assert after.now > before.now + 2**25 and after.peak >= after.now
    assert machine.memory_of(2**30) is None  # no such process


def test_a_file_that_would_fill_the_memory_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "last.safetensors"
    run_folder.save(file, {"x": torch.zeros(8, dtype=torch.uint8)}, {})
    size = 10**12
    told = {"__metadata__": {"dne-lab": '{"version": 1}'}}
    told |= {"x": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}  # type: ignore[dict-item]
    header = json.dumps(told).encode()
    with file.open("wb") as opened:  # a hundred bytes on the disk
        opened.write(struct.pack("<Q", len(header)) + header)
        opened.truncate(8 + len(header) + size)
    with pytest.raises(LabError, match=r"last.safetensors is damaged: of its 1,000,000,000,\d+ bytes \d"):
        run_folder.load(file)
    with file.open("wb") as opened:
        opened.write(bytes(machine.SMALL + 1))
    monkeypatch.setattr(machine, "available_memory", lambda: machine.SMALL)
    with pytest.raises(LabError, match="67,108,865 bytes, and 67,108,864 bytes of memory are free"):
        run_folder.load(file)
    monkeypatch.setattr(machine, "available_memory", lambda: None)  # a system that does not say
    with pytest.raises(LabError, match="truncated or damaged"):
        run_folder.load(file)
