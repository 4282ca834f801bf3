"""Widths of equal cost: the nearest of all, for a residual network and a transformer, one network or one a task."""

import functools

import pytest

from dne_lab.core.config import Config, from_dict
from dne_lab.core.errors import LabError
from dne_lab.measure import cost
from dne_lab.measure.matching import MATCHED, field_of, match, match_method, matched_width, text, widened

TASKS, SHAPE = [5, 2, 2], (3, 8, 8)


def config(method: str) -> Config:
    tree = {"method": method, "network": {"patch": 4, "depth": 2, "head_width": 8, "heads": [1, 1]}}
    return from_dict(tree | ({} if method == "dytox" else {"options": {"width": 1}}))


@functools.cache
def counted(method: str) -> dict[int, dict[str, int]]:
    """The costs after the last task, all of them, by width."""
    stream = cost.blank_stream(TASKS, SHAPE)
    return {width: cost.of_last_task(widened(config(method), width), stream) for width in range(1, 6)}


@pytest.mark.parametrize("method", ["der", "foster", "icarl"])
def test_the_last_task_alone_costs_what_it_costs_after_the_others(method: str) -> None:
    stream = cost.blank_stream(TASKS, SHAPE)
    assert counted(method)[2] == cost.of_tasks(widened(config(method), 2), stream)[-1]


WANTED = [("flops_literal", 0.95), ("flops_spent", 1.0), ("params_total", 1.02)]


@pytest.mark.parametrize(
    ("method", "by", "factor"),
    [
        *((method, *wanted) for method in ("der", "foster", "dytox") for wanted in WANTED),
        ("icarl", "flops_literal", 1.02),
        ("podnet", "params_total", 0.95),
    ],
)
def test_the_matched_width_is_the_nearest(method: str, by: str, factor: float) -> None:
    stream = cost.blank_stream(TASKS, SHAPE)
    costs = {width: row[by] for width, row in counted(method).items()}
    wanted = costs[3] * factor
    assert matched_width(config(method), stream, wanted, by) == min(costs, key=lambda w: abs(costs[w] - wanted)) == 3


@pytest.mark.parametrize("method", ["podnet", "dytox"])
def test_no_network_is_narrower_than_one_channel_or_head(method: str) -> None:
    assert matched_width(config(method), cost.blank_stream(TASKS, SHAPE), 1.0) == 1


def test_what_is_widened() -> None:
    assert field_of("icarl") == "options.width" and field_of("dytox") == field_of("dne") == "network.heads"
    assert widened(config("der"), 7).options == {"width": 7}
    assert widened(config("dytox"), 7).network.heads == (7, 1)


@pytest.mark.parametrize(
    ("wanted", "by"),
    [(0, "flops_literal"), (float("nan"), "flops_spent"), (float("inf"), "params_total"), (1.0, "flops")],
)
def test_what_is_refused(wanted: float, by: str) -> None:
    with pytest.raises(LabError, match=f"give one of {', '.join(MATCHED)} and a number above 0"):
        matched_width(config("der"), cost.blank_stream(TASKS, SHAPE), wanted, by)


# Later heads and head width of the methods that grow ------------------------------------------------------------------


def growing(method: str, **options: object) -> Config:
    tree = {"method": method, "network": {"patch": 4, "depth": 2, "head_width": 8, "heads": [3, 1]}}
    return from_dict(tree | {"options": options})


@pytest.mark.parametrize("by", ["params_total", "flops_spent"])
@pytest.mark.parametrize("method", ["ia", "sta", "progressive"])
def test_a_variant_is_widened_to_dne(method: str, by: str) -> None:
    stream = cost.blank_stream(TASKS, SHAPE)
    (found,) = match_method(growing(method), growing("dne"), stream, [by])
    rows = cost.of_tasks(growing(method).with_changes(found.settings), stream)
    assert found.wanted == cost.of_tasks(growing("dne"), stream)[-1][by] and found.cost == rows[-1][by]
    near = {
        (k, width): cost.of_tasks(
            growing(method).with_changes({"network.heads": [3, k], "network.head_width": width}), stream
        )
        for k in range(1, 5)
        for width in range(4, 15)
    }
    closest = min(abs(costs[-1][by] / found.wanted - 1) for costs in near.values())
    assert abs(found.difference) <= max(2.0, 100 * closest) + 1e-9
    assert f"({found.difference:+.1f}%)" in text([found], "dne")


def test_a_network_that_costs_as_much_stays() -> None:
    stream, own = cost.blank_stream(TASKS, SHAPE), growing("dne", weights="uniform")
    found = match(own, stream, cost.of_tasks(own, stream)[-1]["params_total"], "params_total")
    assert found.settings == {} and found.difference == 0
    wider = match(own, stream, cost.of_tasks(own.with_changes({"k": 3}), stream)[-1]["params_total"], "params_total")
    assert wider.settings == {"network.heads": "3,3"}  # the head width stays where it can


def test_what_cannot_be_widened() -> None:
    with pytest.raises(LabError, match="no later experts"):
        match(growing("replay"), cost.blank_stream(TASKS, SHAPE), 1000, "params_total")
