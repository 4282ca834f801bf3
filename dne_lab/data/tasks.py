"""How many classes each task brings: task sizes, or a base and a step."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from dne_lab.errors import LabError

DEFAULTS = {"digits": (4, 2, 2, 2), "digits100": (50, *[10] * 5), "cifar100": (50, *[10] * 5)}


def sizes(tasks: Sequence[int] | str) -> tuple[int, ...]:
    """Task sizes from a sequence or from text such as "50,10,10"; a `LabError` for anything else."""
    try:
        parts = [int(part) for part in tasks.split(",")] if isinstance(tasks, str) else list(map(operator.index, tasks))
    except (TypeError, ValueError) as error:
        raise LabError(f"tasks = {tasks!r}: give the number of classes of each task, e.g. 50,10,10.") from error
    if not parts or min(parts) < 1:
        raise LabError(f"tasks = {tasks!r}: needs at least one task, each of at least one class, e.g. 50,10,10.")
    return tuple(parts)


def check_sum(tasks: Sequence[int], classes: int, name: str) -> None:
    """Tasks add up to the classes of the source called ``name``, or a `LabError` that says both sums."""
    if sum(tasks) != classes:
        raise LabError(
            f"tasks {'+'.join(map(str, tasks))} = {sum(tasks)} classes, but {name} has {classes}. "
            f"Give task sizes that add up to {classes}."
        )


def from_base_and_step(base: int | None, step: int | None, classes: int, name: str) -> tuple[int, ...]:
    """``base`` classes first (default: ``step``), then ``step`` in each task, e.g. 50 and 10 -> 50+10+10+10+10+10."""
    first = step if base is None else base
    if first is None:
        if name in DEFAULTS:
            return DEFAULTS[name]
        raise LabError(f"{name} with {classes} classes has no default tasks. Give base and step, or tasks.")
    if first < 1 or (step is not None and step < 1):
        raise LabError(f"base = {base}, step = {step}: both must be at least 1.")
    later = classes - first
    if later == 0:
        return (first,)
    if step is None:
        raise LabError(f"base = {first} is not all {classes} classes of {name}. Give a step for the other {later} too.")
    if later < 0 or later % step:
        count = max(0, later // step)
        raise LabError(
            f"base and step do not add up to the {classes} classes of {name}: {first} + {count} x {step} = "
            f"{first + count * step}. Give a step that divides {classes} - base, or the tasks one by one."
        )
    return (first, *[step] * (later // step))
