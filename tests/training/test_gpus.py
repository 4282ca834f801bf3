"""Where runs go on a machine with GPUs, with a program in place of nvidia-smi."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from dne_lab.training import gpus, grid, parallel_runs, progress
from dne_lab.training.gpus import Gpu, Placed, best, visible

GB = 2**30
ROWS = "GPU-aa11, H200, {0}\nGPU-aa22, H200, {1}\nGPU-bb33, H200, {2}\n"


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the program prints."""
    told, program = tmp_path / "told", tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\ncat {told}\n")
    program.chmod(0o755)
    told.write_text(ROWS.format(1000, 3000, 2000))
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    for name in ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"):
        monkeypatch.delenv(name, raising=False)
    return told


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (None, ["GPU-aa11", "GPU-aa22", "GPU-bb33"]), ("", []), ("1", ["GPU-aa22"]), ("2,0", ["GPU-bb33", "GPU-aa11"]),
        ("0,-1,1", ["GPU-aa11"]), ("0,7,1", ["GPU-aa11"]), ("GPU-bb", ["GPU-bb33"]), ("GPU-aa", []),
        ("MIG-1", []), ("GPU-bb33, 0", ["GPU-bb33", "GPU-aa11"]),
    ],
)  # fmt: skip
def test_the_gpus_are_those_that_cuda_would_see(
    smi: Path, monkeypatch: pytest.MonkeyPatch, allowed: str | None, expected: list[str]
) -> None:
    if allowed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", allowed)
    assert [gpu.uuid for gpu in visible()] == expected
    for number in range(3):
        assert [gpu.uuid for gpu in visible(number)] == expected[number : number + 1]


def test_free_memory_is_in_bytes_and_what_is_not_known_is_not_guessed(
    smi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert visible()[1] == Gpu("GPU-aa22", 3000 * 2**20)
    smi.write_text("GPU-aa11, H200, 10\nGPU-aa22, A100, 20\n")  # of two kinds: which is 0?
    assert visible() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible() == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-aa22")
    assert visible() == [Gpu("GPU-aa22", 20 * 2**20)]
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert visible() == [Gpu("GPU-aa22", 20 * 2**20)]
    for strange in ("", "No devices were found\n", "GPU-aa11, H200, [N/A]\n", "a, b\n"):
        smi.write_text(strange)
        assert visible() == []
    (smi.parent / "bin" / "nvidia-smi").write_text("#!/bin/sh\nexit 9\n")
    assert visible() == []


def test_a_run_goes_where_most_is_free_once_it_is_known_what_it_takes() -> None:
    there = [Gpu("a", 10 * GB), Gpu("b", 30 * GB)]
    assert best(there, [], 0) == there[1]
    assert best(there, [Placed("b")], 0) == there[0]  # one on each until one has told
    assert best(there, [Placed("b"), Placed("a")], 0) is None
    # 4 GB at most: b has what is free now, less what its run may still take
    assert best(there, [Placed("b", 4 * GB), Placed("a", 4 * GB)], 4 * GB) == there[1]
    assert best([Gpu("a", 4 * GB)], [Placed("a", 4 * GB)], 4 * GB) is None  # 4.4 are needed
    assert best([Gpu("a", 5 * GB)], [Placed("a", 4 * GB)], 4 * GB) == Gpu("a", 5 * GB)
    assert best([Gpu("a", 5 * GB)], [Placed("a", 3 * GB)], 4 * GB) is None  # and one that the other may still take
    assert best([Gpu("a", GB)], [], 4 * GB) == Gpu("a", GB)  # nobody else runs there: it is tried
    assert best([], [], 0) is None


@given(
    st.lists(st.integers(0, 80), min_size=1, max_size=4),
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=6),
    st.integers(1, 20),
)
def test_no_gpu_is_given_more_than_it_has(free: list[int], placed: list[tuple[int, int]], largest: int) -> None:
    there = [Gpu(str(number), one * GB) for number, one in enumerate(free)]
    running = [Placed(str(number), min(peak, largest) * GB) for number, peak in placed if number < len(free)]
    found = best(there, running, largest * GB)
    mine = [] if found is None else [one for one in running if one.uuid == found.uuid]
    if mine and found is not None:
        to_come = sum(largest * GB - one.peak for one in mine) + gpus.MARGIN * largest * GB
        assert to_come <= found.free
    if found is None:
        assert {one.uuid for one in running} == {gpu.uuid for gpu in there}


class Seen:
    """A viewer that writes down which GPU its process sees."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, run: Any) -> None:
        place = self.folder / f"{run.config.method}-s{run.config.seed}.json"
        place.write_text(json.dumps(os.environ.get("CUDA_VISIBLE_DEVICES")))


class Making:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self) -> Seen:
        return Seen(self.folder)


def test_runs_side_by_side_see_one_gpu_each(
    smi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The runs compute on the CPU: nothing but where they are placed is that of GPUs."""
    torch.set_num_threads(1)
    monkeypatch.setattr(progress, "_has_bars", lambda: False)
    monkeypatch.setattr(parallel_runs, "PLACED", "cpu")
    monkeypatch.setattr(parallel_runs, "ASK", 0.0)
    kind = torch.device("cuda")
    monkeypatch.setattr(parallel_runs, "_kind", lambda device: kind)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    (tmp_path / "seen").mkdir()
    plan = grid.plan(("tiny-alone",), tiny.settings(**{"learn.epochs": 3}), [0, 1, 2], tmp_path / "runs")
    found = grid.execute(plan, tiny.stream(), jobs="auto", viewers=[Making(tmp_path / "seen")])
    assert [record.finished for record in found] == [True] * 3
    seen = [json.loads((tmp_path / "seen" / f"tiny-alone-s{seed}.json").read_text()) for seed in range(3)]
    assert seen[:2] == ["GPU-aa22", "GPU-bb33"] and seen[2] in seen[:2]
    assert "3 runs, at most 2 at a time" in capfd.readouterr().err
