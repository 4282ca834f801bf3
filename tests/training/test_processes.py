"""Processes that die and processes that share: the same weights and the same record."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch

from dne_lab.core.errors import LabError
from dne_lab.training import distributed, run_folder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folders, and told.json: what happened to them."""
    folder = tmp_path_factory.mktemp("processes")
    path = os.pathsep.join([str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, HERE / "zygote.py", folder],
        capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder / "told.json").write_text(done.stdout.splitlines()[-1])
    return folder


def told(folder: Path, what: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "told.json").read_text())[what]
    return found


def test_a_run_killed_at_any_moment_ends_as_if_it_had_not_been(folder: Path) -> None:
    killed = told(folder, "kills")
    assert killed["events"] >= 5 and killed["times"] >= 3
    expected = tiny.content(folder / "whole")
    assert tiny.content(folder / "events") == expected
    assert tiny.content(folder / "times") == expected


def test_sigterm_ends_with_a_checkpoint_and_status_143(folder: Path) -> None:
    ended = told(folder, "sigterm")
    assert ended["status"] == 143
    assert ended["cursor"][0] == 2 and ended["cursor"][1:] != [0, 0, 0]  # in the middle of task 2
    assert tiny.content(folder / "terminated") == tiny.content(folder / "whole")


def test_two_processes_learn_what_one_learns(folder: Path) -> None:
    assert told(folder, "processes")["status"] == [0, 0, 0]
    for number in (1, 2, 3):
        name = f"task_0{number}.safetensors"
        (one, info), (two, same) = run_folder.load(folder / "one" / name), run_folder.load(folder / "two" / name)
        assert info["memory"] == same["memory"]
        stored = [image for numbers in info["memory"]["exemplars"].values() for image in numbers]
        assert len(set(stored)) == len(stored) <= 20
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(one[key], two[key], rtol=0, atol=1e-5)
    records = [json.loads((folder / run / "record.json").read_text()) for run in ("one", "two")]
    assert records[0]["seen_accuracy"] == records[1]["seen_accuracy"]
    assert records[1]["memory"]["stored_by_task"] == [18, 20, 14] and records[1]["memory"]["scope"] == "run"


def test_two_processes_go_on_as_if_they_had_not_stopped_in_one_folder_and_in_a_folder_each(folder: Path) -> None:
    found = told(folder, "apart")
    assert found["stopped"] == [143, 143]
    assert found["cursor"][0] == 2 and found["cursor"][1:] != [0, 0, 0]  # in the middle of task 2
    assert found["together"] == found["apart"] == [0, 0]
    expected = tiny.content(folder / "two")
    assert tiny.content(folder / "together") == expected
    assert tiny.content(folder / "apart-0") == expected
    assert not found["second"]  # the first process alone has a folder


def test_a_lost_process_ends_the_other_with_a_sentence_and_both_go_on(folder: Path) -> None:
    found = told(folder, "failures")
    killed = found["killed"]
    assert killed["status"] == [2, -9] and killed["seconds"] < 60
    assert len(killed["said"]) == 1 and killed["said"][0].startswith("Lost: ")
    assert found["again"] == [0, 0]
    assert tiny.content(folder / "lost") == tiny.content(folder / "two")


def test_what_is_wrong_in_one_of_two_processes_ends_both_and_is_said_once(folder: Path) -> None:
    for name, word in (("others", "process 1"), ("damaged", "last.safetensors")):
        found = told(folder, "failures")[name]
        assert found["status"] == [2, 2] and found["seconds"] < 60
        first, second = found["said"]
        assert first.startswith("LabError: ") and word in first
        assert second.startswith("SaidElsewhere: ")
    assert not list((folder / "others").glob("*"))  # nothing was begun


def test_two_processes_with_a_folder_each_train_a_grid_and_the_first_one_alone_prints(folder: Path) -> None:
    found = told(folder, "grids")
    assert found["status"] == [0, 0, 0, 0]
    (first, second) = found["runs"]
    assert len(first) == 2 and second == []
    same = next(name for name in first if not name.startswith("tiny-other"))
    assert tiny.content(folder / "grid-0" / same) == tiny.content(folder / "two")
    assert found["stdout"][0].count("tiny-other") >= 2 and found["stderr"][0]
    assert found["stdout"][1] == "" and found["stderr"][1] == ""


def test_batch_normalisation_is_refused_where_batches_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    from dne_lab.core.errors import LabError
    from dne_lab.training.distributed import Processes

    processes = Processes()
    processes.world = 2
    with pytest.raises(LabError, match="batch normalisation trains in one process"):
        processes.same(torch.nn.BatchNorm1d(3))


def test_accelerate_that_starts_one_process_of_several_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")  # accelerate launch --cpu: one process is asked for
    assert distributed.start() is None
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # --cpu --num_processes 2
    with pytest.raises(LabError, match=r"accelerate launch --cpu starts one process.*torchrun --nproc-per-node 2"):
        distributed.start()
