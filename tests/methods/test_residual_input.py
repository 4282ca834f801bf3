"""What methods on a residual network refuse, in a sentence, before anything is trained."""

from typing import Any

import pytest
import torch

from dne_lab.core.errors import LabError
from dne_lab.measure import cost
from dne_lab.methods import base
from dne_lab.methods.foster import class_weights

METHODS = ("finetune-resnet", "replay-resnet", "icarl", "podnet", "der", "foster")


def created(method: str, tasks: tuple[int, ...] = (2, 1), **changes: Any) -> base.Method:
    given = {name.replace("__", "."): value for name, value in changes.items()}
    config = base.configure(method, "", {"options.width": 2, "memory.budget": 10, **given})
    return base.create(config, cost.blank_stream(tasks, (3, 8, 8)))


@pytest.mark.parametrize("method", METHODS)
def test_of_every_one(method: str) -> None:
    with pytest.raises(LabError, match=rf"data\.tasks = \(1, 2\): {method} tells classes from each other"):
        created(method, (1, 2))
    for stage in ("learn", "tune"):
        with pytest.raises(LabError, match=rf"{stage}\.batch = 1: batch norm needs at least 2 images"):
            created(method, **{f"{stage}__batch": 1})
    if method != "der":  # whose networks come with their tasks
        with pytest.raises(LabError, match=r"does not fit into memory: take a smaller one"):
            created(method, options__width=10**6)
    with pytest.raises(LabError, match=r"milestones\[1\] = .*-1.*: must be at least 0"):
        created(method, learn__milestones="3,-1")
    assert created(method) is not None


@pytest.mark.parametrize(
    ("method", "field", "value"),
    [
        *[("icarl", "options__later__batch", 1), ("foster", "options__later__batch", 1)],
        *[("foster", "options__compress__batch", 1), ("der", "options__temperature", "inf")],
        *[("podnet", f"options__{name}", "inf") for name in ("margin", "spatial", "flat")],
    ],
)
def test_of_one(method: str, field: str, value: Any) -> None:
    with pytest.raises(LabError, match=field.replace("__", r"\.")):
        created(method, **{field: value})


def test_class_weights_are_numbers_for_every_base() -> None:
    for beta in (1e-9, 0.94, 1 - 1e-8):
        weights = class_weights(torch.tensor([1.0, 8.0, 500.0]), beta)
        assert weights.isfinite().all() and weights.mean().item() == pytest.approx(1)
        assert weights[0] >= weights[1] >= weights[2]
