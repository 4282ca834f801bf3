"""Several runs at a time: the records of one after the other, whatever happens to one of them."""

import importlib
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_runs as tiny
import torch
from followed import told_to_tensorboard
from shell import snapshot

from dne_lab.commands.track import makers
from dne_lab.core.errors import LabError
from dne_lab.core.folder_lock import alone_in
from dne_lab.methods import base
from dne_lab.training import distributed, grid, parallel_runs, progress
from dne_lab.training.graph import Job
from dne_lab.training.machine import Taken
from dne_lab.training.parallel_runs import RunsFailed
from dne_lab.training.progress import Terminated

SETTINGS: dict[str, Any] = {"stream": tiny.stream(), "device": "cpu"}
WAIT = r"waiting for memory: 0\.2 GB are free, and a run takes up to \d\.\d GB; 1 of 3 run\."
METHODS = ("tiny", "tiny-other", "tiny-alone")


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(progress, "_has_bars", lambda: False)  # as in a log file


@pytest.fixture
def alive(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many runs were trained at each look at the memory, of which there is enough."""
    seen: list[int] = []

    def free() -> int:
        seen.append(len(multiprocessing.active_children()))
        return 2**50

    monkeypatch.setattr(parallel_runs, "available_memory", free)
    return seen


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a grid, trained one after the other."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole")
    grid.execute(planned(folder), progress=False, **SETTINGS)
    return folder


def planned(folder: Path, methods: tuple[str, ...] = METHODS, **changes: Any) -> grid.Plan:
    plan = grid.plan(methods, tiny.settings(**changes), [0, 1], folder)
    return [(config, folder / f"{config.method}-s{config.seed}") for config, _ in plan]


def contents(folder: Path) -> dict[str, Any]:
    return {run.name: tiny.content(run) for run in sorted(folder.iterdir())}


def test_two_at_a_time_make_what_one_after_the_other_makes(
    whole: Path, tmp_path: Path, alive: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    plan = planned(tmp_path)
    records = grid.execute(plan, jobs=2, **SETTINGS)
    assert [(r.method, r.seed, r.finished) for r in records] == [(c.method, c.seed, True) for c, _ in plan]
    assert contents(tmp_path) == contents(whole)
    assert max(alive) == 1  # seen before another one starts: never more than two
    told = capfd.readouterr().err.splitlines()
    assert told[0] == "6 runs, at most 2 at a time, 1 thread each."
    results = [line.split(":")[0] for line in told[1:]]
    assert len(results) == 2 * 3 * 3  # a line per task of each run
    assert {"tiny s0 task 1/3", "tiny-other s0 task 2/3", "tiny-alone s1 task 3/3"} <= {*results}
    before = [line.split(":")[0] for line in told[1:] if line.endswith("(learned before)")]
    assert sorted(before) == ["tiny-other s0 task 1/3", "tiny-other s1 task 1/3"]  # the first of two methods trains it
    for record in records:
        assert ("shared task 1" in record.timing["by_purpose"]) == (record.method == "tiny-other")

    before = snapshot(tmp_path)
    again = grid.execute(plan, jobs=2, device="cpu")  # nothing is left, so no images are needed
    assert again == records and snapshot(tmp_path) == before and capfd.readouterr().err == ""


def test_runs_of_one_method_and_seed_are_told_apart_and_each_is_followed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorboard")
    settings = [tiny.settings(**{"learn.epochs": number}) for number in (1, 2)]
    plan = [(config, tmp_path / f"epochs{config.learn.epochs}") for config in settings]
    records = grid.execute(plan, jobs=2, viewers=makers("tensorboard"), **SETTINGS)
    told = capfd.readouterr().err
    for (_, folder), record in zip(plan, records, strict=True):
        assert f"tiny s{settings[0].seed} ({folder}) task 3/3" in told
        scalars, epochs = (
            told_to_tensorboard(folder / "track"),
            len((folder / "curves.csv").read_text().splitlines()) - 1,
        )
        assert [step for step, _ in scalars["loss/total"]] == list(range(1, epochs + 1))
        assert [value for _, value in scalars["accuracy/seen"]] == pytest.approx(record.seen_accuracy, rel=1e-6)
    assert f"tiny s{settings[0].seed} task" not in told


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_stops_no_other_and_is_named(
    jobs: int, whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def settings(method: str) -> Any:
        return tiny.settings(**({"options.poison": 30} if method == "tiny-alone" else {}))

    plan = grid.plan(("tiny-alone", "tiny", "tiny-other"), settings, [0], tmp_path)
    with pytest.raises(RunsFailed, match=r"(?s)^1 of 3 runs failed:.* is nan in task 2") as caught:
        grid.execute(plan, jobs=jobs, **SETTINGS)
    assert caught.value.folders == (plan[0][1],)
    places = {config.method: folder for config, folder in plan}
    assert f"tiny-alone s0 ({places['tiny-alone']}): " in str(caught.value)
    assert "tiny-alone s0 failed: " in capfd.readouterr().err
    assert [r.method for r in caught.value.records if r.finished] == ["tiny", "tiny-other"]
    for name in ("tiny", "tiny-other"):
        assert tiny.content(places[name]) == tiny.content(whole / f"{name}-s0")
    before = snapshot(places["tiny"]) | snapshot(places["tiny-other"])
    with pytest.raises(RunsFailed, match="1 of 3 runs failed"):
        grid.execute(plan, jobs=jobs, progress=False, **SETTINGS)
    assert snapshot(places["tiny"]) | snapshot(places["tiny-other"]) == before


def test_a_run_whose_process_is_killed_stops_no_other_and_is_gone_on_with(tmp_path: Path) -> None:
    plan = grid.plan(METHODS, lambda m: tiny.settings(**{"learn.epochs": 4 if m != "tiny" else 40}), [0], tmp_path)
    (victim,) = (folder for config, folder in plan if config.method == "tiny")

    def kill() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = [p for p in multiprocessing.active_children() if p.name == "tiny s0"]
            if found and (victim / "task_01.safetensors").exists():
                os.kill(found[0].pid or 0, signal.SIGKILL)
                return
            time.sleep(0.002)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(RunsFailed, match=r"1 of 3 runs failed(?s:.*)killed by signal 9") as caught:
        grid.execute(plan, jobs=2, checkpoint_seconds=0.01, progress=False, **SETTINGS)
    killer.join()
    assert sorted(r.method for r in caught.value.records if r.finished) == ["tiny-alone", "tiny-other"]
    records = grid.execute(plan, jobs=2, progress=False, **SETTINGS)
    assert all(record.finished for record in records) and records[0].timing["resumed"] == 1
    grid.execute([(plan[0][0], tmp_path / "alone")], progress=False, **SETTINGS)
    assert tiny.content(victim) == tiny.content(tmp_path / "alone")


@pytest.mark.parametrize(("sent", "kind"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Terminated)])
def test_a_signal_stops_all_runs_with_a_checkpoint(
    whole: Path, tmp_path: Path, sent: signal.Signals, kind: type[BaseException]
) -> None:
    def send() -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end and not (tmp_path / "tiny-alone-s0" / "task_01.safetensors").exists():
            time.sleep(0.002)
        os.kill(os.getpid(), sent)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(kind) as caught:
        grid.execute(planned(tmp_path), jobs=2, progress=False, **SETTINGS)
    sender.join()
    assert caught.type is kind and not multiprocessing.active_children()
    assert not (tmp_path / "tiny-alone-s1").exists()
    grid.execute(planned(tmp_path), jobs=2, progress=False, **SETTINGS)
    assert {run: made["record.json"] for run, made in contents(tmp_path).items()} == {
        run: made["record.json"] for run, made in contents(whole).items()
    }


def test_a_folder_in_use_by_another_process_is_left_and_named(whole: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    with alone_in(tmp_path / "tiny-s1"), pytest.raises(RunsFailed, match="1 of 6 runs failed") as caught:
        grid.execute(plan, jobs=2, progress=False, **SETTINGS)
    assert "tiny-s1 is in use by another process" in str(caught.value)
    assert not list((tmp_path / "tiny-s1").iterdir()) and sum(r.finished for r in caught.value.records) == 5
    with alone_in(tmp_path / "tiny-s1"), pytest.raises(LabError, match="in use by another process"):
        grid.execute(plan, progress=False, **SETTINGS)
    assert len(grid.execute(plan, jobs=2, progress=False, **SETTINGS)) == 6
    for name in ("tiny-alone-s1", "tiny-other-s1"):
        assert tiny.content(tmp_path / name) == tiny.content(whole / name)


def test_without_memory_runs_go_one_at_a_time(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    most = 0

    def free() -> int:
        nonlocal most
        most = max(most, len(multiprocessing.active_children()))
        return 2**28

    monkeypatch.setattr(parallel_runs, "available_memory", free)
    original = parallel_runs._Pool._measure

    def measure(self: Any) -> None:
        assert len(self.running) <= 1
        original(self)

    monkeypatch.setattr(parallel_runs._Pool, "_measure", measure)
    grid.execute(planned(tmp_path), jobs=3, **SETTINGS)
    assert most == 1 and contents(tmp_path) == contents(whole)
    waits = [line for line in capfd.readouterr().err.splitlines() if "memory" in line]
    assert len(waits) == 1 and re.fullmatch(WAIT, waits[0])  # not at every look


def test_memory_that_running_runs_will_still_take_is_not_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    some = parallel_runs._Pool([Job(*planned(tmp_path)[0])], 3, None, None, False, (), {})
    some.running = [SimpleNamespace(process=SimpleNamespace(pid=1))]  # type: ignore[list-item]
    gigabyte = 2**30
    monkeypatch.setattr(parallel_runs, "memory_of", lambda pid: Taken(gigabyte, 4 * gigabyte))
    some._measure()
    monkeypatch.setattr(parallel_runs, "available_memory", lambda: 2**50)
    assert not some._fits()  # the first has not learned an epoch: it may still grow to anything
    some.known = True
    for free, fits in ((7.3, False), (7.5, True)):  # 1.1 x 4 for the new one, and 3 that the other may still take
        monkeypatch.setattr(parallel_runs, "available_memory", lambda free=free: int(free * gigabyte))
        assert some._fits() is fits
    monkeypatch.setattr(parallel_runs, "available_memory", lambda: None)  # a system that does not say
    assert some._fits()


def test_the_time_given_ends_all_runs_with_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    plan = planned(tmp_path)
    begun = grid.execute(plan, seconds=0, jobs=2, progress=False, **SETTINGS)
    assert [r.method for r in begun] == ["tiny"] and not any(r.finished for r in begun)
    records = grid.execute(plan, jobs=2, progress=False, **SETTINGS)
    assert all(record.finished for record in records)
    assert {name: c["record.json"] for name, c in contents(tmp_path).items()} == {
        name: c["record.json"] for name, c in contents(whole).items()
    }


def test_a_clock_that_is_set_meanwhile_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = planned(tmp_path, ("tiny-alone",)) + planned(tmp_path / "more", ("tiny-alone",))[:1]
    real, asked = time.time, []

    def day_ahead() -> float:
        asked.append(1)
        return real() + 86_400 * (len(asked) > 1)

    monkeypatch.setattr(parallel_runs.time, "time", day_ahead)
    records = grid.execute(plan, seconds=1000, jobs=2, progress=False, **SETTINGS)
    assert len(records) == 3 and all(record.finished for record in records)


@pytest.fixture
def in_a_notebook() -> Iterator[str]:
    """A method that other processes cannot import; its first task is that of tiny."""
    body = {"name": "tiny-cell", "__module__": "__main__"}
    yield type("Cell", (tiny.Tiny,), body).name
    del base.Method.registry["tiny-cell"]


def test_a_method_that_other_processes_do_not_have_is_said(tmp_path: Path, in_a_notebook: str) -> None:
    with pytest.raises(RunsFailed, match=r"method tiny-cell is defined in a notebook or script.*jobs=1"):
        grid.execute(planned(tmp_path, (in_a_notebook,)), jobs=2, progress=False, **SETTINGS)
    assert len(grid.execute(planned(tmp_path, (in_a_notebook,)), progress=False, **SETTINGS)) == 2


def test_the_first_task_of_such_a_method_is_not_started_from(whole: Path, tmp_path: Path, in_a_notebook: str) -> None:
    plan = planned(tmp_path, (in_a_notebook, "tiny"))[:2]
    grid.execute(plan[:1], progress=False, **SETTINGS)
    records = grid.execute(plan, jobs=2, progress=False, **SETTINGS)
    assert records[1].finished and "shared task 1" not in records[1].timing["by_purpose"]
    assert tiny.content(tmp_path / "tiny-s0") == tiny.content(whole / "tiny-s0")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A method of a module of its own; its first task is that of tiny."""
    lines = ("import tiny_runs", "class Elsewhere(tiny_runs.Tiny):", "    name, gain = 'tiny-elsewhere', 3.0")
    (tmp_path / "tiny_elsewhere.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("tiny_elsewhere").Elsewhere.name
    del base.Method.registry["tiny-elsewhere"], sys.modules["tiny_elsewhere"]


def test_a_run_starts_behind_one_whose_method_is_defined_in_another_module(
    whole: Path, tmp_path: Path, elsewhere: str
) -> None:
    plan = planned(tmp_path / "runs", (elsewhere, "tiny"))[:2]
    records = grid.execute(plan, jobs=2, progress=False, **SETTINGS)
    assert ["shared task 1" in record.timing["by_purpose"] for record in records] == [False, True]
    assert tiny.content(tmp_path / "runs" / "tiny-s0") == tiny.content(whole / "tiny-s0")


def test_what_is_wrong_with_one_run_is_found_before_any_is_trained(tmp_path: Path) -> None:
    def settings(method: str) -> Any:
        return tiny.settings(**({"memory.budget": 3} if method == "tiny-other" else {}))

    plan = grid.plan(("tiny", "tiny-other"), settings, [0], tmp_path / "runs")
    for jobs in (1, 2):
        with pytest.raises(LabError, match=r"memory\.budget = 3 is smaller"):
            grid.execute(plan, jobs=jobs, progress=False, **SETTINGS)
    assert not (tmp_path / "runs").exists()


def test_how_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel_runs, "cores", lambda: 8)
    assert [parallel_runs.number(jobs, 6, "cpu") for jobs in (1, 2, 6, 99, "auto")] == [1, 2, 6, 6, 6]
    assert parallel_runs.number("auto", 20, "cpu") == 8 and parallel_runs.number("auto", 20, "cuda") == 1
    assert parallel_runs.number(4, 20, "cuda") == 4 and parallel_runs.number("auto", 1, "cpu") == 1
    for wrong in (0, -1, "x", 1.5):
        with pytest.raises(LabError, match="give a number of runs at a time, from 1, or auto"):
            parallel_runs.number(wrong, 6, "cpu")  # type: ignore[arg-type]
    monkeypatch.setattr(distributed, "Processes", lambda: SimpleNamespace(world=2))
    assert parallel_runs.number(1, 6, "cpu") == parallel_runs.number("auto", 6, "cpu") == 1
    with pytest.raises(LabError, match="under torchrun"):
        parallel_runs.number(2, 6, "cpu")
