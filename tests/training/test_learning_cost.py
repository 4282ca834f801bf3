"""What learning costs, as derived from configuration and stream, against the operations that a real run makes."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dne_lab.measure import cost, learning_cost
from dne_lab.measure.record import Record
from dne_lab.training import evaluation
from dne_lab.training.run import Run

SMALL: dict[str, Any] = {
    "network.patch": 2, "network.depth": 2, "network.head_width": 4, "network.heads": "2,1", "learn.epochs": 1,
    "tune.epochs": 1, "learn.augment": "", "tune.augment": "",
}  # fmt: skip
RESNET = {
    "options": {"network": "resnet32", "width": 2, "proxies": 2}, "learn.epochs": 1, "tune.epochs": 1,
    "learn.batch": 32, "tune.batch": 32,
}  # fmt: skip


def counter() -> FlopCounterMode:
    """Torch's own counter, which before 2.15 does not know the fused attention of a CPU."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu

    def attention(query: Any, key: Any, value: Any, *rest: Any, **named: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    return FlopCounterMode(display=False, custom_mapping={fused: attention})


@pytest.mark.parametrize(("method", "changes"), [
    ("dne", SMALL),
    ("joint", SMALL | {"network.drop_path": 0.3}),
    ("tiny", {}),
    ("dytox", SMALL),
    ("podnet", RESNET),
])  # fmt: skip
def test_all_steps_of_a_run_cost_what_was_derived(
    method: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    spent: dict[tuple[int, str], int] = {}
    herded: dict[int, int] = {}
    step, choose = Run._step, evaluation.choose_exemplars

    def counted_step(self: Run, task: Any, stage: Any, *rest: Any) -> None:
        with counter() as mode:
            step(self, task, stage, *rest)
        place = (task.number, stage.name)
        spent[place] = spent.get(place, 0) + mode.get_total_flops()

    def counted_choice(state: Any, task: Any, check: Any) -> None:
        with counter() as mode:
            choose(state, task, check)
        herded[task.number] = herded.get(task.number, 0) + mode.get_total_flops()

    monkeypatch.setattr(Run, "_step", counted_step)
    monkeypatch.setattr(evaluation, "choose_exemplars", counted_choice)
    run = Run(tiny.settings(method, **changes), tiny.stream(), device="cpu", progress=False)
    run.train()
    rows = learning_cost.of_tasks(run.config, run.whole_stream)
    derived = {(row["task"], name): flops for row in rows for name, flops in row["stages"].items()}
    assert derived.keys() == spent.keys()
    for place, flops in spent.items():
        assert derived[place] == pytest.approx(flops, rel=5e-3), (
            place
        )  # products of frozen weights are prepared once a task
    for row in rows:
        if row["herding"]:  # beside the features, herding multiplies a few vectors
            assert row["herding"] <= herded[row["task"]] <= 1.5 * row["herding"] + 200_000
    assert run.record.flops_training == sum(row["total"] for row in rows)


def test_it_does_not_depend_on_the_images_and_leaves_chance_alone() -> None:
    config = tiny.settings("dne", **SMALL)
    one = tiny.stream()
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    assert learning_cost.total(config, one) == learning_cost.total(config, cost.blank_stream(tiny.TASKS, one.shape, 11))
    assert torch.equal(torch.random.get_rng_state(), before)
    twice = learning_cost.of_tasks(config.with_changes({"learn.epochs": 2}), one)
    once = learning_cost.of_tasks(config, one)
    for a, b in zip(twice, once, strict=True):
        assert a["stages"]["learn"] == pytest.approx(2 * b["stages"]["learn"], rel=0.01)  # frozen products come once
        assert a["herding"] == b["herding"]


def test_a_method_that_cannot_be_counted_is_trained_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_cost, "total", lambda *a: 1 // 0)
    monkeypatch.setattr(evaluation, "_counted", {})
    run = Run(tiny.settings(), tiny.stream(), device="cpu", progress=False)
    with pytest.warns(UserWarning, match="what learning tiny cost was not counted"):
        run.train()
    assert run.finished and run.record.flops_training is None


def test_a_run_of_the_same_cost_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_counted", {})
    count, asked = learning_cost.total, []
    monkeypatch.setattr(learning_cost, "total", lambda *given: asked.append(given) or count(*given))

    def flops(shift: int = 0, **changes: Any) -> int | None:
        run = Run(tiny.settings(**changes), tiny.stream(shift), device="cpu", progress=False)
        run.train()
        return run.record.flops_training

    first = flops()
    assert flops() == first and len(asked) == 1
    others = [flops(shift=1), flops(**{"learn.epochs": 2}), flops(method="tiny-other")]  # more images, fewer, as many
    assert len(asked) == 4 and others[1] < first < others[0] and others[2] == first


def test_older_records_are_completed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    changes = {"data.tasks": "6,4", "learn.epochs": 1, "tune.epochs": 1, "learn.batch": 128, "memory.budget": 20}
    from dne_lab.core import presets

    config = presets.resolve("digits", changes | {"network.depth": 2, "network.head_width": 4, "network.heads": "2,1"},
                             method="ia")  # fmt: skip
    run = Run(config, None, folder, device="cpu", progress=False)
    run.train()
    wanted = run.record.flops_training
    tree = json.loads((folder / "record.json").read_text())
    del tree["flops_training"], tree["sha256"]
    (folder / "record.json").write_text(json.dumps(tree))
    assert Record.from_json(folder / "record.json").flops_training is None
    assert learning_cost.complete([folder]) == [folder / "record.json"]
    assert Record.from_json(folder / "record.json") == run.record and wanted
    assert learning_cost.complete([folder]) == []
