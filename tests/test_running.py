"""`dne-lab run` with several runs at a time, in real processes that are stopped and killed."""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from shell import Done, Here, Nursery, content, sets, snapshot

from dne_lab import files
from dne_lab.errors import LabError
from dne_lab.measure.record import Record
from dne_lab.training import grid, progress


@pytest.fixture
def here(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Here:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(progress, "_has_bars", lambda: False)
    return Here(capsys, monkeypatch)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


def left_alone(folder: Path) -> None:
    """Waits until no process holds a run folder."""
    end = time.monotonic() + 60
    for run in folder.iterdir():
        while True:
            try:
                with files.alone_in(run):
                    break
            except LabError:
                assert time.monotonic() < end, run
                time.sleep(0.02)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_runs_stopped_in_every_way_end_as_if_they_had_not_been(nursery: Nursery, tmp_path: Path, here: Here) -> None:
    words = ["run", "ia,dne,finetune", *sets(data__tasks="4,2,2,2", learn__epochs=2, learn__batch=16)]
    words += ["--device", "cpu"]
    runs = {name: tmp_path / "runs" / f"{name}-digits-s0" for name in ("ia", "dne", "finetune")}
    errors = tmp_path.parent / f"{tmp_path.name}.err"

    def started(run: str, task: int) -> int:
        """The command in a process of its own, when it has begun and a run has finished a task."""
        errors.unlink(missing_ok=True)
        number = nursery.start(*words, "--jobs", 2, folder=tmp_path)
        end = time.monotonic() + 100
        while not (
            (runs[run] / f"task_{task:02d}.safetensors").exists()
            and errors.exists()
            and "at a time" in errors.read_text()
        ):
            assert time.monotonic() < end, errors.read_text()
            time.sleep(0.005)
        return number

    def stopped(number: int, sent: signal.Signals) -> Done:
        os.kill(number, sent)
        return nursery.ended(number, tmp_path)

    for run, task, sent, code in (("ia", 1, signal.SIGINT, 130), ("finetune", 2, signal.SIGTERM, 143)):
        done = stopped(started(run, task), sent)
        assert done.code == code, done.err
        said = done.err.splitlines()
        assert said[-1] == "stopped; the same command goes on from here."
        assert "stopping: every run writes a checkpoint." in said
        assert re.fullmatch("[0-2] of 3 runs are finished.", said[-2])
        left_alone(tmp_path / "runs")

    # Killed, the parent cannot stop its children: they see that it is gone, and stop with a checkpoint.
    assert stopped(started("dne", 2), signal.SIGKILL).code == -signal.SIGKILL
    left_alone(tmp_path / "runs")

    done = here(*words, "--jobs", 2)
    assert done.code == 0 and "not finished" not in done.out, done.err
    assert all(name in done.out for name in ("IA (k = 1)", "DNE (k = 1)", "Fine"))
    before = snapshot(tmp_path / "runs")
    again = here(*words, "--jobs", "auto")
    assert (again.code, again.out, again.err) == (0, done.out, "") and snapshot(tmp_path / "runs") == before
    assert here(*words, "--out", "whole").code == 0
    for folder in runs.values():
        assert content(folder) == content(tmp_path / "whole" / folder.name)


def test_a_run_that_fails_is_named_below_the_table_of_the_others(here: Here, tmp_path: Path) -> None:
    words = ["run", "finetune,joint", *sets(), "--device", "cpu", "--jobs", 2]
    with files.alone_in(tmp_path / "runs" / "joint-digits-s0"):
        done = here(*words)
    assert done.code == 2 and "Fine" in done.out and "Joint" not in done.out
    assert "1 of 2 runs are not finished; the same command goes on with them." in done.out
    last = done.err.splitlines()
    assert last[-2] == "dne-lab: 1 of 2 runs failed:"
    assert last[-1].startswith("joint s0 (runs/joint-digits-s0): runs/joint-digits-s0 is in use by another process.")
    done = here(*words)
    assert done.code == 0 and "Joint" in done.out and "finetune" not in done.err


def test_one_preset_stands_for_the_small_recipe_of_each_method(here: Here, tmp_path: Path) -> None:
    done = here("run", "ia,icarl,dytox,replay-resnet", "--preset", "digits100,small", "--dry-run")
    words = [line.split() for line in done.out.splitlines()]
    assert [(line[2], line[line.index("--preset") + 1]) for line in words] == [
        ("ia", "digits100"),
        ("icarl", "digits100,icarl-small"),
        ("dytox", "digits100,dytox-small"),
        ("replay-resnet", "digits100,resnet-small"),
    ]
    assert here("run", "icarl,joint", "--preset", "digits,small", *sets()).code == 0
    before = snapshot(tmp_path / "runs")  # the same run by its own preset's name
    done = here("run", "icarl", "--preset", "digits,icarl-small", *sets())
    assert done.code == 0 and "task" not in done.err and snapshot(tmp_path / "runs") == before
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {
        "icarl-digits+icarl-small-s0",
        "joint-digits-s0",
    }
    assert "width 16" in here("cost", "podnet", "--tasks", "5,5", "--preset", "digits,small").out


def test_what_is_asked_for_reaches_the_runs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}

    def execute(runs: grid.Plan, **how: object) -> list[Record]:
        told.update(how)
        return []

    monkeypatch.setattr(grid, "execute", execute)
    options = ["--jobs", "auto", "--stop-after", 9, "--checkpoint-every", 7, "--device", "cpu"]
    assert here("run", "ia", *options).code == 0
    assert told == {"seconds": 9, "jobs": "auto", "device": "cpu", "checkpoint_seconds": 7}
    assert here("run", "ia").code == 0 and told["jobs"] == 1 and told["checkpoint_seconds"] == 60
