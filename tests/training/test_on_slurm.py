"""Runs as jobs of SLURM: the runs that are made here, whatever happens to a job or to the command that waits for it."""

import json
import os
import pickle
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch
from shell import Nursery
from stand_in_slurm import Cluster, wait_for

from dne_lab.core.errors import LabError
from dne_lab.core.folder_lock import LOCK
from dne_lab.measure.record import Record
from dne_lab.training import engines, graph, grid, on_slurm
from dne_lab.training.engines import Needs
from dne_lab.training.on_slurm import Slurm, Ticket, Turn
from dne_lab.training.parallel_runs import RunsFailed
from dne_lab.training.run_folder import record_in

SETTINGS: dict[str, Any] = {"stream": tiny.stream(), "device": "cpu"}
METHODS = ("tiny", "tiny-other", "tiny-alone")

submitit = pytest.importorskip("submitit", reason='needs submitit: pip install "dne-lab[slurm]"')


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks often, on one thread."""
    torch.set_num_threads(1)
    monkeypatch.setattr(engines, "LOOK", 0.05)
    monkeypatch.setattr(on_slurm, "ASK", 0.1)
    monkeypatch.setattr(on_slurm, "SLOW", 0.5)


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery(modules=("submitit.core.submission", "dne_lab.training.on_slurm", "torch._dynamo")) as made:
        yield made


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nursery: Nursery) -> Cluster:
    """One that runs nothing until it is entered."""
    made = Cluster(tmp_path / "cluster", nursery)
    for name, value in made.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    return made


def planned(folder: Path, methods: tuple[str, ...] = METHODS, **changes: Any) -> grid.Plan:
    plan = grid.plan(methods, tiny.settings(**changes), [0], folder)
    return [(config, folder / config.method) for config, _ in plan]


def made_here(folder: Path, **changes: Any) -> dict[str, Any]:
    """What the runs are, trained one after the other in this process."""
    grid.execute(planned(folder, **changes), progress=False, **SETTINGS)
    return contents(folder)


def contents(folder: Path) -> dict[str, Any]:
    return {run.name: tiny.content(run) for run in sorted(folder.iterdir()) if (run / "record.json").exists()}


def submit(plan: grid.Plan, needs: Needs | None = None, **settings: Any) -> list[Record]:
    how = SETTINGS | settings
    return grid.execute(plan, engine=lambda: Slurm(plan[0][1].parent, needs or Needs()), **how)


class Interrupted:
    """Ctrl-C for this process as soon as a function gives something true."""

    def __init__(self, when: Any) -> None:
        def send() -> None:
            wait_for(when)
            os.kill(os.getpid(), signal.SIGINT)

        self.thread = threading.Thread(target=send)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *error: object) -> None:
        self.thread.join()


def test_a_plan_is_submitted_as_a_graph(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def ctrl_c(self: Slurm, ticket: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Slurm, "outcome", ctrl_c)
    plan = planned(tmp_path / "runs")
    needs = Needs(cpus=2, gpus=1, minutes=30, more=(("partition", "short"), ("exclusive", "")))
    for _ in range(2):  # the second command follows what the first has submitted
        with pytest.raises(KeyboardInterrupt):
            submit(plan, needs)
        assert "the jobs go on; the same command follows them again" in (told := capfd.readouterr().err)
        assert "4 jobs for 3 runs: SLURM 1, 2, 3, 4;" in told and "scancel 1 2 3 4" in told
    asked = {number: cluster.asked(number) for number in cluster.states()}
    assert {number: (job["job-name"], job.get("dependency")) for number, job in asked.items()} == {
        "1": ("tiny-task1", None),
        "2": ("tiny", "afterok:1"),
        "3": ("tiny-other", "afterok:1"),
        "4": ("tiny-alone", None),
    }
    for job in asked.values():
        assert (job["time"], job["cpus-per-task"], job["gpus-per-node"], job["partition"]) == ("30", "2", "1", "short")
        assert job["exclusive"] == job["requeue"] == "" and job["signal"] == "USR2@120"
        assert on_slurm.options(needs).items() <= job.items()  # what --dry-run shows
    assert asked["2"]["kill-on-invalid-dep"] == "yes"
    script = (cluster.place / "1" / "script").read_text()
    assert "export OMP_NUM_THREADS=2" in script and "--cpus-per-task=2" in script


def test_a_grid_on_slurm_is_the_grid_here_also_when_a_job_is_requeued(cluster: Cluster, tmp_path: Path) -> None:
    changes = {"learn.epochs": 40}
    here = made_here(tmp_path / "here", **changes)
    plan = planned(tmp_path / "runs", **changes)
    alone = tmp_path / "runs" / "tiny-alone"

    def near_its_end() -> None:
        wait_for((alone / "task_01.safetensors").exists)
        cluster.send("4", signal.SIGUSR2)

    warning = threading.Thread(target=near_its_end)
    warning.start()
    with cluster:
        records = submit(plan, checkpoint_seconds=0.1, progress=False)
        wait_for(lambda: set(cluster.states().values()) == {"COMPLETED"})
    warning.join()
    assert cluster.starts.count("4") == 2 and cluster.starts.index("1") < cluster.starts.index("2")
    assert contents(tmp_path / "runs") == here
    assert [record.timing.get("resumed", 0) for record in records] == [1, 0, 1]
    assert ["shared task 1" in record.timing["by_purpose"] for record in records] == [False, True, False]

    def no_engine() -> Slurm:
        raise AssertionError("a finished grid needs no engine")

    assert grid.execute(plan, engine=no_engine, **SETTINGS) == records


def test_what_is_killed_is_said_and_gone_on_with(cluster: Cluster, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"methods": ("tiny-alone",), "learn.epochs": 100}
    here = made_here(tmp_path / "here", **changes)
    plan = planned(tmp_path / "runs", **changes)
    run = plan[0][1]
    with cluster:
        with Interrupted((run / "task_01.safetensors").exists), pytest.raises(KeyboardInterrupt):
            submit(plan, checkpoint_seconds=0.1, progress=False)
        cluster.send("1", signal.SIGKILL)  # a job without anybody who waits for it
        wait_for(lambda: cluster.states()["1"] == "FAILED")
        assert (run / ".lock").exists() and not (record_in(run) or {"finished": 0}).finished  # type: ignore[union-attr]

        def node_dies() -> None:  # and SLURM puts its job back
            wait_for(lambda: "2" in cluster.states())
            wait_for((run / "task_02.safetensors").exists)
            (cluster.place / "2" / "requeue").touch()
            cluster.send("2", signal.SIGKILL)

        death = threading.Thread(target=node_dies)
        death.start()
        submit(plan, checkpoint_seconds=0.1, progress=False)
        death.join()
    assert cluster.starts == ["1", "2", "2"] and contents(tmp_path / "runs") == here
    assert not (run / ".lock").exists()


class Local:
    """submitit's own executor without a cluster, which starts a job again that asks for it, as SLURM does."""

    def __init__(self, folder: Path) -> None:
        self.executor, self.needs = submitit.LocalExecutor(folder=folder), Needs()
        self.executor.update_parameters(timeout_min=10)
        self.folder, self.jobs = folder, list[Any]()

    def submit(self, part: graph.Part, work: engines.Work, after: Path | None) -> Path:
        says = self.folder / f"{len(self.jobs)}.ended"
        self.jobs.append(self.executor.submit(Turn(work, says)))
        return says

    def outcome(self, says: Path) -> str | None:
        return str(json.loads(says.read_text())["failed"]) if says.exists() else None

    def describe(self, handles: Any) -> str:
        return "here"

    def stop(self, handles: Any) -> str:
        return "stopped"


def test_a_job_of_submitit_that_is_told_its_time_is_over_is_put_back_and_goes_on(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"methods": ("tiny-alone",), "learn.epochs": 100}
    here = made_here(tmp_path / "here", **changes)
    plan = planned(tmp_path / "runs", **changes)
    engine = Local(tmp_path / "jobs")

    def near_its_end() -> None:
        run = plan[0][1]
        wait_for((run / "task_01.safetensors").exists)
        os.kill(json.loads((run / LOCK).read_text())["process"], signal.SIGUSR2)

    warning = threading.Thread(target=near_its_end)
    warning.start()
    (record,) = grid.execute(plan, engine=lambda: engine, checkpoint_seconds=0.1, progress=False, **SETTINGS)
    warning.join()
    assert contents(tmp_path / "runs") == here and record.timing["resumed"] == 1
    logs = engine.jobs[0].paths
    assert "Requeued job" in logs.stderr.read_text() + logs.stdout.read_text()


class Evil:
    """Runs a command where it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.file}",)


def test_what_lies_in_the_folder_is_never_unpickled(cluster: Cluster, tmp_path: Path) -> None:
    here = made_here(tmp_path / "here")
    folder = tmp_path / "runs" / on_slurm.FOLDER
    folder.mkdir(parents=True)
    for number in range(1, 5):
        (folder / f"{number}_0_result.pkl").write_bytes(pickle.dumps(Evil(tmp_path / "executed")))
    with cluster:
        submit(planned(tmp_path / "runs"), progress=False)
    assert not (tmp_path / "executed").exists() and contents(tmp_path / "runs") == here


@pytest.mark.parametrize("text", ["", "[1]", '{"failed', '{"other": ""}', "\udcff"])
def test_a_damaged_word_of_a_job_is_said(cluster: Cluster, tmp_path: Path, text: str) -> None:
    says = tmp_path / "job.ended"
    says.write_bytes(text.encode(errors="surrogateescape"))
    told = Slurm(tmp_path / "runs", Needs()).outcome(Ticket("17", says, 0.0))
    assert told and "in which job 17 says how it ended, is damaged" in told


def test_a_run_that_fails_takes_those_that_wait_for_it_along(cluster: Cluster, tmp_path: Path) -> None:
    plan = planned(tmp_path / "runs", ("tiny", "tiny-other"), **{"options.poison": 3})
    with cluster, pytest.raises(RunsFailed, match=r"(?s)^2 of 2 runs failed:.* is nan in task 1") as caught:
        submit(plan, progress=False)
    assert "tiny-other s0" in str(caught.value) and "was to be learned by tiny s0, which failed" in str(caught.value)
    assert "Traceback" not in str(caught.value) and cluster.starts == ["1"]


def test_what_slurm_cannot_do_is_said(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for needs, message in (
        (Needs(gpus=0.25), r"SLURM gives whole GPUs"),
        (Needs(more=(("time", "10"),)), r"--resource time: use --minutes"),
        (Needs(more=(("dependency", "afterok:3"),)), r"the plan says it"),
    ):
        with pytest.raises(LabError, match=message):
            Slurm(tmp_path, needs)
    (cluster.place / "bin" / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n")
    with pytest.raises(LabError, match=r"SLURM does not take the job of tiny s0: .*invalid partition"):
        submit(planned(tmp_path / "runs"))
    (cluster.place / "bin" / "sbatch").unlink()
    with pytest.raises(LabError, match="sbatch, srun and squeue, which are not here"):
        Slurm(tmp_path, Needs())
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(LabError, match=r'submitit, which is not installed here: pip install "dne-lab\[slurm\]"'):
        Slurm(tmp_path, Needs())


@pytest.mark.parametrize("wrong", [{"cpus": 0}, {"gpus": -1.0}, {"gpus": float("inf")}, {"minutes": 1}])
def test_amounts_that_no_engine_gives(wrong: dict[str, Any]) -> None:
    with pytest.raises(LabError, match=f"--{next(iter(wrong))} "):
        Needs(**wrong)


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
