"""Task 1, trained once: a forked run is the run that would have trained it itself."""

import re
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch

from dne_lab.core import presets
from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream
from dne_lab.measure.comparison import groups
from dne_lab.methods import base
from dne_lab.training import archive, grid, sharing
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
    names = [f"{method}-.*p\\+q-.*-s{seed}" for seed in (0, 1) for method in ("tiny", "tiny-other", "tiny-alone")]
    assert all(re.fullmatch(name, folder.name) for name, (_, folder) in zip(names, plan, strict=True))
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
    plan = grid.plan(["tiny", "tiny-other"], tiny.settings(), [3], tmp_path / "runs")
    run(plan[1][1], "tiny-other", **{"learn.lr": 0.5}).train(seconds=0)
    with pytest.raises(LabError, match=r"learn\.lr"):
        grid.execute(plan, stream=tiny.stream(), device="cpu", progress=False)
    assert not plan[0][1].exists()
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


# Behind any task -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "after", "changes"), [
    ("tiny", 1, {}), ("tiny", 2, {}), ("tiny-alone", 2, {}), ("dne", 2, SMALL), ("dytox", 2, SMALL),
])  # fmt: skip
def test_behind_task_t_with_the_same_settings_a_run_learns_what_its_source_learned(
    method: str, after: int, changes: dict[str, Any], tmp_path: Path
) -> None:
    source = run(tmp_path / "source", method, **changes)
    source.train()
    forked = Run.open(tmp_path / "source", tiny.stream(), device="cpu", progress=False).fork(
        tmp_path / "forked", after=after
    )
    assert forked.cursor.task == after + 1 and not forked.finished
    forked.train(seconds=0)
    again = Run.open(tmp_path / "forked", tiny.stream(), device="cpu", progress=False)  # also across a restart
    again.train()
    assert again.curves == source.curves and again.record.accuracy == source.record.accuracy
    for name, weight in source.method.state_dict().items():
        assert torch.equal(again.method.state_dict()[name], weight), name
    assert again.memory.state() == source.memory.state()
    mine, theirs = again.record.without_timing(), source.record.without_timing()
    assert {name for name in mine if mine[name] != theirs[name]} == {
        "config", "config_sha256", "settings_sha256", "forked_from", "flops_training", "task_sha256",
    }  # fmt: skip


def test_behind_task_t_what_follows_is_learned_with_other_settings(tmp_path: Path) -> None:
    source = run(tmp_path / "source", **SMALL | {"learn.epochs": 2})
    source.train()
    forked = source.fork(tmp_path / "forked", after=2, **{"learn.epochs": 3, "learn.lr": 0.01, "loss.expertise": 0.5})
    forked.train()
    record = forked.record
    assert record.accuracy[:2] == source.record.accuracy[:2] and record.accuracy[2] != source.record.accuracy[2]
    assert record.forked_from == {
        "run": source.record.id, "task": 2,
        "config_sha256": source.config.sha256, "settings_sha256": source.record.settings_sha256,
    }  # fmt: skip
    epochs = [(row["task"], row["epoch"]) for row in forked.curves if row["stage"] == "learn"]
    assert epochs == [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (3, 2), (3, 3)]
    assert record.timing["by_task"][:2] == source.record.timing["by_task"][:2]
    assert torch.equal(forked.model_at(2).classifier.weight, source.model_at(2).classifier.weight)
    copy = archive.export(tmp_path / "forked", tmp_path / "forked.zip")
    opened = Run.open(copy, tiny.stream(), device="cpu", progress=False)
    assert opened.record == record and opened.state.position.forked_from == record.forked_from

    # No run that learned all its tasks itself: it is neither averaged with them nor with those of another start.
    own = run(tmp_path / "own", **SMALL | {"learn.epochs": 3, "learn.lr": 0.01, "loss.expertise": 0.5})
    own.train()
    earlier = source.fork(after=1, **{"learn.epochs": 3, "learn.lr": 0.01, "loss.expertise": 0.5})
    earlier.train()
    other = run(seed=4, **SMALL | {"learn.epochs": 2})
    other.train()
    beside = other.fork(after=2, **{"learn.epochs": 3, "learn.lr": 0.01, "loss.expertise": 0.5})
    beside.train()
    made = groups([record, own.record, earlier.record, beside.record])
    assert sorted([r.seed for r in group.records] for group in made) == [[3], [3], [3, 4]]
    assert len({group.label for group in made}) == 3


@pytest.mark.parametrize(("after", "change", "named"), [
    (0, {}, "after = 0: .* has 3 tasks, must be one of its tasks 1 to 2"),
    (3, {}, "after = 3: .* has 3 tasks, must be one of its tasks 1 to 2"),
    (2, {}, r"after = 2: .* has finished 1 of its 3 tasks\. Train it further"),
    (1, {"method": "tiny-other"}, "method"),
    (1, {"network.head_width": 8}, r"network\.head_width"),
    (1, {"data.tasks": "2,3,2"}, r"data\.tasks"),
    (1, {"data.order": "2,4,6,0,1,5,3"}, r"data\.order"),
    (1, {"data.validation": 0.5}, r"data\.validation"),
    (1, {"memory.budget": 30}, r"memory\.budget"),
    (1, {"options.batch_norm": False}, "do not fit"),
    (1, {"data.tasks": "7"}, "nothing is left to learn"),
])  # fmt: skip
def test_where_no_run_can_start(
    after: int, change: dict[str, Any], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def from_config(data: Any) -> Any:
        source = tiny.stream().source
        return ClassStream(source, data.tasks, [int(c) for c in data.order.split(",")], data.validation)

    monkeypatch.setattr(sharing, "from_config", from_config)
    first = run()
    first.next_task()
    with pytest.raises(LabError, match=named):
        first.fork(tmp_path / "forked", after=after, **change)
    assert not (tmp_path / "forked").exists()


def test_a_run_behind_another_does_not_begin_by_itself(tmp_path: Path) -> None:
    first = run(tmp_path / "first")
    first.next_task()
    forked = first.fork(tmp_path / "forked", after=1, **{"learn.epochs": 1})
    with pytest.raises(LabError, match="goes on after another run"):
        Run(forked.config, tiny.stream(), tmp_path / "empty", device="cpu", progress=False).train()
    with pytest.raises(LabError, match="is another run's"):
        forked.fork(method="tiny-other")
    with pytest.raises(LabError, match="is not set by hand"):
        tiny.settings(start="behind the other")
    with pytest.raises(LabError, match="has begun"):
        first.fork(tmp_path / "forked", after=1, **{"learn.epochs": 1})
