"""Task 1, trained once: a forked run is the run that would have trained it itself."""

from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch

from dne_lab import presets
from dne_lab.errors import LabError
from dne_lab.methods import base
from dne_lab.training import grid
from dne_lab.training.run import Run
from dne_lab.training.sharing import identity


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def run(folder: Path | None = None, method: str = "tiny", **changes: Any) -> Run:
    return Run(tiny.settings(method, **changes), tiny.stream(), folder, device="cpu", progress=False)


# Two small transformers: their first experts are alike, what follows is not.
SMALL: dict[str, Any] = {
    "network.patch": 2, "network.depth": 2, "network.head_width": 4, "network.heads": "2,1", "learn.epochs": 1,
    "tune.epochs": 1,
}  # fmt: skip


@pytest.mark.parametrize(("source", "target", "changes"), [
    ("tiny", "tiny-other", {}),
    ("dne", "ia", SMALL),
    ("ia", "sta", SMALL),
])  # fmt: skip
def test_a_forked_run_ends_as_one_trained_alone(
    source: str, target: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    alone = run(tmp_path / "alone", target, **changes)
    alone.train()
    first = run(tmp_path / "first", source, **changes)
    first.next_task()
    forked = first.fork(tmp_path / "forked", method=target)
    assert forked.cursor.task == 2 and forked.record.seen_accuracy == alone.record.seen_accuracy[:1]
    forked.train(seconds=0)
    run(tmp_path / "forked", target, **changes).train()  # also across a restart
    expected, found = tiny.content(tmp_path / "alone"), tiny.content(tmp_path / "forked")
    assert found == expected
    first.train()
    assert tiny.content(tmp_path / "first")["task_03.safetensors"] != expected["task_03.safetensors"]


def test_a_fork_in_memory_of_a_finished_run_with_other_later_heads(tmp_path: Path) -> None:
    first = run(tmp_path / "first", "ia", **SMALL)
    first.train()
    opened = Run.open(tmp_path / "first", tiny.stream(), device="cpu", progress=False)
    forked = opened.fork(**{"network.heads": "2,2"})
    forked.train()
    alone = run(None, "ia", **SMALL | {"network.heads": "2,2"})
    alone.train()
    assert forked.record.without_timing() == alone.record.without_timing()
    assert forked.curves == alone.curves


@pytest.mark.parametrize(("change", "named"), [
    ({"seed": 4}, "seed"),
    ({"learn.lr": 0.5}, "stages.1.recipe.lr"),
    ({"memory.budget": 30}, "memory.budget"),
    ({"loss.classification": "ce"}, "loss.classification"),
    ({"network.depth": 3}, "network.depth"),
    ({"options.batch_norm": False}, "options"),
    ({"method": "tiny-alone"}, "method"),
])  # fmt: skip
def test_what_task_1_depends_on_must_be_equal(change: dict[str, Any], named: str, tmp_path: Path) -> None:
    first = run()
    first.next_task()
    with pytest.raises(LabError, match=named):
        first.fork(tmp_path / "forked", **change)
    assert not (tmp_path / "forked").exists()


def test_what_task_1_does_not_depend_on_may_differ() -> None:
    stream = tiny.stream()
    base = identity(tiny.settings(), stream)
    for change in ({"tune.lr": 9.0}, {"network.heads": "12,4"}, {"preset": "x"}):
        assert identity(tiny.settings(**change), stream) == base
    assert identity(tiny.settings("tiny-other"), stream) == base
    fixed = tiny.settings(**{"memory.policy": "fixed"})
    assert identity(fixed, stream)["memory"]["classes"] == 7  # the quota of task 1 depends on all classes


def test_only_a_finished_task_is_shared_and_only_with_a_new_run(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    with pytest.raises(LabError, match="next_task"):
        first.fork(tmp_path / "forked", method="tiny-other")
    first.next_task()
    first.fork(tmp_path / "forked", method="tiny-other")
    with pytest.raises(LabError, match="has begun"):
        first.fork(tmp_path / "forked", method="tiny-other")


def test_a_grid_trains_task_1_once_skips_what_is_finished_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[tuple[str, int, int]] = []
    original = Run._begin

    def begin(self: Run, task: Any, stage: Any) -> None:
        if stage.name == "warm":
            learned.append((self.config.method, self.config.seed, task.number))
        original(self, task, stage)

    monkeypatch.setattr(Run, "_begin", begin)
    plan = grid.plan(["tiny", "tiny-other", "tiny-alone"], tiny.settings(preset="p,q"), [0, 1], tmp_path / "runs")
    names = ["tiny-p+q-s0", "tiny-other-p+q-s0", "tiny-alone-p+q-s0", "tiny-p+q-s1", "tiny-other-p+q-s1"]
    assert [folder.name for _, folder in plan] == [*names, "tiny-alone-p+q-s1"]
    settings: dict[str, Any] = {"stream": tiny.stream(), "device": "cpu", "progress": False}
    assert grid.execute(plan, seconds=0, **settings)[0].finished is False
    records = grid.execute(plan, **settings)
    assert [(r.method, r.seed, r.finished) for r in records] == [(c.method, c.seed, True) for c, _ in plan]
    first = [(method, seed) for method, seed, task in learned if task == 1]
    assert sorted(first) == [("tiny", 0), ("tiny", 1), ("tiny-alone", 0), ("tiny-alone", 1)]
    assert len(learned) == 4 + 2 * 6
    before = len(learned)
    assert grid.execute(plan, **settings) == records and len(learned) == before
    alone = run(None, "tiny-other", seed=1, preset="p,q")
    alone.train()
    assert alone.record.without_timing() == records[4].without_timing()


def test_a_grid_of_other_later_tasks_trains_task_1_once(tmp_path: Path) -> None:
    made = presets.resolve("digits", SMALL | {"learn.warmup": 0, "memory.budget": 20}, method="ia")
    plan = [(made.with_changes({"data.tasks": tasks}), tmp_path / tasks) for tasks in ("4,6", "4,3,3")]
    records = grid.execute(plan, device="cpu", progress=False)
    assert [record.tasks for record in records] == [[4, 6], [4, 3, 3]]
    assert ["shared task 1" in record.timing["by_purpose"] for record in records] == [False, True]


def test_a_grid_finds_a_wrong_folder_before_it_trains(tmp_path: Path) -> None:
    run(tmp_path / "runs" / "tiny-other-s3", "tiny-other", **{"learn.lr": 0.5}).train(seconds=0)
    plan = grid.plan(["tiny", "tiny-other"], tiny.settings(), [3], tmp_path / "runs")
    with pytest.raises(LabError, match=r"learn\.lr"):
        grid.execute(plan, stream=tiny.stream(), device="cpu", progress=False)
    assert not (tmp_path / "runs" / "tiny-s3").exists()
    with pytest.raises(LabError, match="unknown method 'tinny'"):
        grid.plan(["tinny"], tiny.settings(), [0])


def test_the_commands_of_a_grid() -> None:
    plan = grid.plan(["tiny", "tiny-other"], tiny.settings(preset="p,q"), [3], "out dir")
    assert grid.commands(plan, ["learn.epochs=2"]) == [
        f"dne-lab run {name} --preset p,q --set learn.epochs=2 --seeds 3 --out 'out dir'"
        for name in ("tiny", "tiny-other")
    ]


def test_a_subclass_that_learns_otherwise_does_not_share() -> None:
    class Changed(tiny.Tiny):
        name = "tiny-changed"

        def losses(self, batch: Any, task: Any, stage: Any) -> dict[str, Any]:
            return {name: 2 * loss for name, loss in super().losses(batch, task, stage).items()}

    try:
        stream = tiny.stream()
        same, other = (identity(tiny.settings(name), stream) for name in ("tiny-other", "tiny-changed"))
        first = identity(tiny.settings("tiny"), stream)
        assert same == first and other != first
    finally:
        del base.Method.registry["tiny-changed"]
