"""The formula is the count: literal and spent FLOPs and parameters, to the last operation."""

import time
from typing import Any

import controlled
import pytest
import tiny

from dne_lab.core import presets
from dne_lab.measure import cost
from dne_lab.methods.base import Method, Stage, create, find
from dne_lab.methods.expansion import Expansion

SHAPE = (3, 8, 12)


@pytest.fixture(params=tiny.VARIANTS, ids=tiny.names)
def method(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """An expansion method of every variant that there can be."""
    monkeypatch.setattr(Method, "registry", dict(Method.registry))
    made = type("Mine", (Expansion,), {"name": "mine", "variant": request.param, "__module__": "notebook"})
    return str(made.name)  # type: ignore[attr-defined]


def config(method: str, tasks: int, shape: tuple[int, int, int] = SHAPE, **changes: Any) -> Any:
    tree = {
        "network": {"patch": 4, "depth": 2, "head_width": 4, "heads": [3, 1, 2, 1], "ratio": 2},
        "data": {"tasks": [3] + [2] * (tasks - 1)},
    }
    made = presets.resolve("", tree, method=method).with_changes(changes)
    return made, cost.blank_stream(made.data.tasks, shape)


STYLES = [*tiny.STYLES, {"spatial": "gpsa", "readout": "cls_token"}]
EVEN, UNEVEN = [3, 1], [1, 2, 1, 1, 3, 1]  # of later experts: none is padded, some are
CASES = [*((style, UNEVEN, (2, 6, 11)) for style in STYLES), (tiny.AUTHORS, EVEN, (6,))]


@pytest.mark.parametrize(("style", "heads", "at"), CASES, ids=tiny.names)
def test_every_variant_and_read_out(method: str, style: dict[str, Any], heads: list[int], at: tuple[int, ...]) -> None:
    changes = {f"network.{name}": value for name, value in style.items()} | {"network.heads": heads}
    config_, stream = config(method, max(at), **changes)
    formula, made = cost.of_tasks(config_, stream), create(config_, stream)
    for task, row in zip(stream, formula, strict=True):
        made.enter(task, Stage("learn", config_.learn))
        if task.number in at:
            counted = cost.of_task(made)
            assert {name: row[name] for name in counted} == counted


@pytest.mark.parametrize("name", ["dne", "ia", "sta", "progressive", "joint", "finetune", "replay"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_every_method_of_the_transformer(name: str, stem: str) -> None:
    config_, stream = config(name, 4, (3, 32, 32), **{"network.stem": stem, "stem.epochs": 1})
    if find(name).joint:
        stream = stream.joint()
    rows = cost.of_tasks(config_, stream)
    assert rows == cost.count_tasks(config_, stream)
    assert cost.of_last_task(config_, stream) == rows[-1]


def test_a_method_that_computes_otherwise_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "registry", dict(Method.registry))

    class Twice(find("ia")):  # type: ignore[misc]
        name = "twice"

        def compute(self, images: Any) -> Any:
            return super().compute(images) + super().compute(images)

    plain, twice = (cost.of_tasks(*config(name, 2)) for name in ("ia", "twice"))
    assert [row["flops_spent"] for row in twice] == [2 * row["flops_spent"] for row in plain]
    assert [row["flops_literal"] for row in twice] == [row["flops_literal"] for row in plain]


def test_a_thousand_tasks_take_two_seconds() -> None:
    tree = {"data": {"tasks": [50] + [1] * 999}}
    made = presets.resolve("authors-code", tree, method="dne")
    stream = cost.blank_stream(made.data.tasks)
    start = time.process_time()
    rows = cost.of_tasks(made, stream)
    assert time.process_time() - start < 2
    assert len(rows) == 1000 and rows[-1]["flops_spent"] < rows[-1]["flops_literal"]


@pytest.mark.parametrize("style", STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [*controlled.CONTROLS, *controlled.RESTRICTING], ids=tiny.names)
def test_every_control(variant: tiny.Variant, style: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "registry", dict(Method.registry))
    type("Mine", (Expansion,), {"name": "mine", "variant": variant, "__module__": "notebook"})
    changes = {f"network.{name}": value for name, value in style.items()} | {"network.heads": [3, 1, 2]}
    config_, stream = config("mine", 3, **changes)
    rows = cost.of_tasks(config_, stream)
    assert rows == cost.count_tasks(config_, stream)
    assert cost.of_last_task(config_, stream) == rows[-1]
