"""`dne-lab run` with several runs at a time, in real processes that are stopped and killed."""

import functools
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shell import Here, Nursery, content, run_folder, sets, snapshot

from dne_lab.commands import run_command
from dne_lab.core.errors import LabError
from dne_lab.core.folder_lock import alone_in
from dne_lab.measure.record import Record
from dne_lab.training import grid
from dne_lab.training.run_folder import finished


def left(folder: Path) -> bool:
    """Whether no process holds a run folder."""
    try:
        with alone_in(folder):
            return True
    except LabError:
        return False


def when(condition: Callable[[], bool]) -> None:
    """Waits for it."""
    end = time.monotonic() + 300  # on busy cores
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_runs_killed_and_stopped_end_as_if_they_had_not_been(tmp_path: Path, here: Here) -> None:
    words = ["run", "ia,dne,finetune", *sets(data__tasks="4,2,2,2", learn__epochs=2, learn__batch=16)]
    words += ["--device", "cpu"]

    # Killed, the parent cannot stop its children: they see that it is gone, and stop with a checkpoint.
    said = tmp_path.parent / f"{tmp_path.name}.err"
    with Nursery() as nursery:
        number = nursery.start(*words, "--jobs", 2, folder=tmp_path)
        when(lambda: said.exists() and "dne s0 task 2/4" in said.read_text())
        os.kill(number, signal.SIGKILL)
        assert nursery.ended(number, tmp_path).code == -signal.SIGKILL
    last = said.stat().st_mtime
    runs = {name: run_folder(tmp_path / "runs", name) for name in ("ia", "dne", "finetune")}
    for folder in runs.values():
        when(functools.partial(left, folder))
    assert (runs["dne"] / "last.safetensors").stat().st_mtime > last and not finished(runs["dne"])

    def tasks() -> int:
        return len(list(tmp_path.glob("runs/*/task_*.safetensors")))

    known = tasks()

    def interrupt() -> None:
        when(lambda: tasks() > known)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=interrupt)
    sender.start()
    done = here(*words, "--jobs", 2)
    sender.join()
    assert done.code == 130, done.err
    lines = done.err.splitlines()
    assert "stopping: every run writes a checkpoint." in lines
    assert re.fullmatch("[0-2] of 3 runs are finished.", lines[-2])
    assert lines[-1] == "stopped; the same command goes on from here."

    done = here(*words, "--jobs", 2)
    assert done.code == 0 and "not finished" not in done.out, done.err
    assert all(name in done.out for name in ("IA (k = 1)", "DNE (k = 1)", "Fine"))
    before = snapshot(tmp_path / "runs")
    again = here(*words, "--jobs", "auto")
    assert (again.code, again.out, again.err) == (0, done.out, "") and snapshot(tmp_path / "runs") == before
    assert here(*words, "--out", "whole").code == 0
    for folder in runs.values():
        assert content(folder) == content(tmp_path / "whole" / folder.name)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_is_named_below_the_table_of_the_others(jobs: int, here: Here, tmp_path: Path) -> None:
    words = ["run", "finetune,joint", *sets(), "--device", "cpu", "--jobs", jobs]
    assert here("run", "joint", *sets(), "--stop-after", 0).code == 0
    folder = run_folder(Path("runs"), "joint")
    with alone_in(folder):
        done = here(*words)
    assert done.code == 2 and "Fine" in done.out and "Joint" not in done.out
    assert "1 of 2 runs are not finished; the same command goes on with them." in done.out
    last = done.err.splitlines()
    assert last[-2] == "dne-lab: 1 of 2 runs failed:"
    assert last[-1].startswith(f"joint s0 ({folder}): {folder} is in use by another process")
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
    done = here("run", "icarl,joint", "--preset", "digits,small", *sets())
    assert done.code == 0 and "icarl does not use tune.epochs, tune.batch, network.depth" in done.err
    assert "joint does not use" not in done.err and "learn.epochs = 1 (stage 1)" in done.err
    before = snapshot(tmp_path / "runs")  # the same run by its own preset's name
    own = sets(network__depth=None, network__head_width=None, network__heads=None, tune__epochs=None, tune__batch=None)
    done = here("run", "icarl", "--preset", "digits,icarl-small", *own)
    assert done.code == 0 and "task" not in done.err and snapshot(tmp_path / "runs") == before
    assert run_folder(tmp_path / "runs", "icarl-digits+icarl-small") and run_folder(tmp_path / "runs", "joint-digits")
    assert "width 16" in here("cost", "podnet", "--tasks", "5,5", "--preset", "digits,small").out


GRAPH = [
    "job 1  task 1 of ia-digits-s0                        at once",
    "job 2  the rest of ia-digits-s0                      after job 1 has ended well",
    "job 3  dne-digits-s0, from task 1 of ia-digits-s0 on after job 1 has ended well",
    "job 4  joint-digits-s0                               at once",
]


@pytest.mark.parametrize(
    ("words", "each", "said"),
    [
        (
            ["slurm", "--cpus", "2", "--gpus", "1", "--minutes", "30", "--resource", "partition=gpu"],
            "sbatch --time=30 --cpus-per-task=2 --gpus-per-node=1 --signal=USR2@120 --requeue --partition=gpu",
            "Memory: what the cluster gives by default",
        ),
        (
            ["slurm", "--resource", "mem=8G", "--resource", "exclusive"],
            "sbatch --time=240 --cpus-per-task=1 --signal=USR2@120 --requeue --mem=8G --exclusive",
            "120 s before its time is over",
        ),
        (["ray", "--gpus", "0.25", "--resource", "big=1"], "CPU 1, GPU 0.25, big 1", "at most 5 times"),
    ],
    ids=["slurm", "slurm with memory", "ray"],
)
def test_the_jobs_of_a_cluster_are_shown_where_there_is_none(
    words: list[str], each: str, said: str, here: Here, tmp_path: Path
) -> None:
    done = here("run", "ia,dne,joint", "--on", *words, "--dry-run")
    lines = done.out.splitlines()
    assert (done.code, done.err) == (0, "") and not (tmp_path / "runs").exists()
    assert lines[:2] == ["4 jobs for 3 of 3 runs. Each asks for:", f"  {each}"]
    assert [re.sub(" +", " ", line) for line in lines[2:6]] == [re.sub(" +", " ", line) for line in GRAPH]
    assert said in done.out and ("Memory" in done.out) == (said.startswith("Memory"))


def test_of_begun_runs_the_jobs_are_those_that_are_left(here: Here) -> None:
    grid_of = ["run", "ia,dne,joint", *sets(), "--device", "cpu"]
    assert here("run", "joint", *sets(), "--device", "cpu").code == 0
    assert here("run", "ia", *sets(), "--device", "cpu", "--last-task", 1).code == 0
    done = here(*grid_of, "--on", "slurm", "--dry-run")
    assert done.out.startswith("2 jobs for 2 of 3 runs.") and done.err == "1 of 3 runs are finished.\n"
    ia, dne = (line for line in done.out.splitlines() if line.startswith("job"))
    assert ia.endswith(" at once") and re.search(r"dne-\S+, from task 1 of ia-\S+ on +at once$", dne)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["slurm", "--gpus", "0.25"], "SLURM gives whole GPUs"),
        (["slurm", "--resource", "time=10"], "use --minutes"),
        (["ray", "--minutes", "30"], "--minutes limits a job of SLURM"),
        (["ray", "--resource", "partition=gpu"], "give amounts"),
        (["ray", "--gpus", "1.5"], "--gpus 1.5: Ray gives a part of one"),
        (["ray", "--resource", "big_nodes=-1"], "--resource big_nodes -1: Ray gives"),
        (["ray", "--resource", "big_nodes=nan"], "--resource big_nodes nan: Ray gives"),
        (["pbs"], "pbs"),
    ],
)
def test_what_a_cluster_would_refuse_is_refused_when_its_jobs_are_shown(
    words: list[str], said: str, here: Here
) -> None:
    done = here("run", "dne", "--on", *words, "--dry-run")
    assert done.code == 2 and said in done.err and not done.out


def test_each_of_several_methods_is_given_what_it_uses(here: Here) -> None:
    done = here("run", "dne,icarl,joint", "--set", "k=2", "--set", "learn.epochs=3", "--dry-run")
    given = {line.split()[2]: re.findall(r"--set (\S+)", line) for line in done.out.splitlines()}
    assert given == {"dne": ["k=2", "learn.epochs=3"], "icarl": ["learn.epochs=3"], "joint": ["learn.epochs=3"]}


def test_the_first_line_says_how_long_both_stages_are(here: Here) -> None:
    done = here("run", "dne,finetune", *sets(learn__epochs=2, tune__epochs=1))
    assert "dne: learn.epochs = 2 (stage 1), then tune.epochs = 1 (stage 2" in done.err
    assert "finetune: learn.epochs = 2 (stage 1), no stage 2" in done.err


def test_what_is_asked_for_reaches_the_runs(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    told: dict[str, object] = {}

    def execute(runs: grid.Plan, **how: object) -> list[Record]:
        told.update(how)
        return []

    monkeypatch.setattr(grid, "execute", execute)
    options = ["--jobs", "auto", "--stop-after", 9, "--checkpoint-every", 7, "--device", "cpu"]
    assert here("run", "ia", *options).code == 0
    assert str(told.pop("first")).startswith("1 of 1 runs")
    assert told == {
        "seconds": 9,
        "jobs": "auto",
        "device": "cpu",
        "checkpoint_seconds": 7,
        "accept_changed_data": False,
        "capture": False,
        "viewers": [],
    }
    assert here("run", "ia").code == 0 and told["jobs"] == 1 and told["checkpoint_seconds"] == 60


def test_what_follows_a_task_is_learned_in_several_ways(here: Here, tmp_path: Path) -> None:
    assert here("run", "dne", *sets(data__tasks="4,3,3"), "--device", "cpu", "--out", "first").code == 0
    (first,) = (tmp_path / "first").iterdir()
    words = ["run", "--from", first, "--after", 2, "--set", "learn.epochs=2", "--device", "cpu"]
    stopped = here(*words, "--stop-after", 0)
    assert stopped.code == 0 and "1 of 1 runs are not finished" in stopped.out
    done = here(*words)
    assert done.code == 0 and "task 3/3" in done.err and "task 2/3" not in done.err, done.err
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name == f"{first.name}-after2-learn.epochs=2"
    record, source = Record.from_json(folder / "record.json"), Record.from_json(first / "record.json")
    assert record.forked_from["run"] == source.id and record.seen_accuracy[:2] == source.seen_accuracy[:2]
    before = snapshot(tmp_path / "runs")
    again = here(*words)
    assert (again.code, again.out, again.err) == (0, done.out, "") and snapshot(tmp_path / "runs") == before
    assert here(*words, "--seeds", "1,2").out.count("run folder") == 2
    together = here("report", "first", "runs", "--json")
    assert len(json.loads(together.out)) == 4


@pytest.mark.parametrize(("words", "said"), [
    (["--from", "nowhere", "--after", "1"], "nowhere"),
    (["--from", "x"], "belong together"),
    (["--after", "2"], "belong together"),
    (["dne", "--from", "x", "--after", "2"], "says which run"),
    (["--from", "x", "--after", "2", "--preset", "digits"], "says which run"),
    (["--from", "x", "--after", "2", "--capture"], "says which run"),
    (["dne", "--set", "start=abc"], "use --from RUN --after T"),
])  # fmt: skip
def test_a_run_behind_another_says_which_one_and_after_which_task(words: list[str], said: str, here: Here) -> None:
    done = here("run", *words)
    assert done.code == 2 and said in done.err


MEDIUM = Path(__file__).parents[2] / "figures" / "records" / "cifar100-medium" / "replay-s0.json"


def test_a_record_says_which_run_it_was(here: Here, tmp_path: Path) -> None:
    record = Record.from_json(MEDIUM)
    ((config, folder),) = run_command.plan_of_file(MEDIUM, [], None, tmp_path)
    assert config.sha256 == record.config_sha256 and folder.parent == tmp_path
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    several = run_command.plan_of_file(tmp_path / "config.json", ["learn.epochs=3"], [0, 2], tmp_path)
    assert [(one.seed, one.data.order, one.learn.epochs) for one, _ in several] == [
        (0, "podnet_1", 3),
        (2, "podnet_3", 3),
    ]
    found = here("run", "--config", MEDIUM, "--set", "learn.epochs=3", "--seeds", "0,2", "--dry-run")
    lines = found.out.splitlines()
    assert found.code == 0 and len(lines) == 2
    assert [
        f"run --config {MEDIUM} --set learn.epochs=3 --seeds {seed} --out runs" in line
        for seed, line in zip((0, 2), lines, strict=True)
    ]


def test_a_run_again_is_the_same_run(here: Here, tmp_path: Path) -> None:
    words = sets(data__tasks="4,2,2,2", learn__epochs=1, tune__epochs=1)
    assert here("run", "ia", *words, "--device", "cpu").code == 0
    first = run_folder(tmp_path / "runs", "ia")
    assert here("run", "--config", first / "record.json", "--device", "cpu", "--out", "twice").code == 0
    second = run_folder(tmp_path / "twice", "ia")
    ours, theirs = (Record.from_json(folder / "record.json") for folder in (first, second))
    assert (ours.config_sha256, ours.accuracy) == (theirs.config_sha256, theirs.accuracy)


def test_a_record_of_ones_own_images_asks_where_they_are(here: Here, tmp_path: Path) -> None:
    record = json.loads(MEDIUM.read_text())
    record["config"]["data"] |= {"name": "folder", "path": None}
    record.pop("sha256", None)
    (tmp_path / "own.json").write_text(json.dumps(record))
    found = here("run", "--config", "own.json")
    assert found.code == 2 and "own.json does not say where its images are: add --set data.path" in found.err
    assert here("run", "--config", "own.json", "--set", "data.path=images", "--dry-run").code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nowhere.json"], "no such file"),
        (["list.json"], "is neither a run's config.json nor its record.json"),
        ([str(MEDIUM), "--preset", "digits"], "leave out METHOD and --preset"),
        ([str(MEDIUM), "--set", "learn.epoch=2"], "learn.epoch"),
        ([str(MEDIUM), "--grid", "list.json"], "leave out METHOD, --preset, --config"),
    ],
    ids=["missing", "no run", "preset too", "unknown field", "grid too"],
)
def test_what_is_no_run_to_do_again_is_named(here: Here, tmp_path: Path, words: list[str], says: str) -> None:
    (tmp_path / "list.json").write_text("[1, 2]")
    found = here("run", "--config", *words)
    assert found.code == 2 and says in found.err and not (tmp_path / "runs").exists()


def test_a_printed_command_is_read_by_a_shell_and_steers_no_terminal(here: Here, tmp_path: Path) -> None:
    place = "out\x1b[31m'\\\n$HOME"
    done = here("run", "dne", "--preset", "digits", "--out", place, "--dry-run")
    assert done.code == 0 and "\x1b" not in done.out and done.out.count("\n") == 1
    told = subprocess.run(["bash", "-c", f"printf '%s\\0' {done.out}"], capture_output=True, text=True, check=True)
    assert place in told.stdout.split("\0")


@pytest.mark.parametrize("words", [[], ["--on", "slurm"], ["--grid", "list.json"]], ids=["plain", "cluster", "list"])
def test_a_dry_run_says_where_its_folders_could_not_be_used(here: Here, tmp_path: Path, words: list[str]) -> None:
    (tmp_path / "list.json").write_text('[{"name": "ia", "method": "ia", "preset": "digits"}]')
    (tmp_path / "taken").touch()
    runs = words if words[:1] == ["--grid"] else ["ia", *words]
    for place, said in (("taken", "taken is a file, which stays as it is. Name another place."), ("free", "")):
        done = here("run", *runs, "--out", place, "--dry-run")
        assert done.code == 0 and "ia" in done.out  # it may be meant for another machine
        assert said in done.err and ("Here this would end before it begins" in done.err) == bool(said)
