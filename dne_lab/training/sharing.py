"""Task 1, trained once: which runs may share it, and how one starts behind another's."""

import dataclasses
import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dne_lab.config import Config
from dne_lab.data.stream import ClassStream, from_config
from dne_lab.errors import LabError
from dne_lab.measure import cost
from dne_lab.methods import base
from dne_lab.training import saving
from dne_lab.training.folder import differences
from dne_lab.training.recording import key
from dne_lab.training.state import Cursor, State
from dne_lab.training.taskend import total_parameters

if TYPE_CHECKING:
    from dne_lab.training.handle import Handle

H = TypeVar("H", bound="Handle")


def identity(config: Config, stream: ClassStream) -> dict[str, Any]:
    """Everything that the first task of a run depends on, JSON-able. Runs with equal ones have the same task 1."""
    cls = base.find(config.method)
    tree = config.identity()
    task = stream.task(1)
    network = tree["network"] | {"heads": config.network.heads_of(1)}
    stages = [dataclasses.asdict(stage) for stage in base.create(config, stream).stages(task)]
    # The policy "fixed" divides by all classes of the stream; the others see no more of it than task 1.
    memory = tree["memory"] | ({"classes": stream.classes} if config.memory.policy == "fixed" else {})
    return {
        "method": _teacher(cls).__qualname__ if cls.shares_first_task else config.method,
        "options": tree["options"],
        "seed": config.seed,
        "precision": config.precision,
        "data": tree["data"] | {"tasks": stream.tasks[0], "order": list(stream.order[: len(task.new)])},
        "network": network,
        "loss": tree["loss"],
        "stages": {str(number): stage for number, stage in enumerate(stages, start=1)},
        "memory": memory if cls.uses_memory else {},
    }


def first_task(config: Config, stream: ClassStream) -> str:
    """What runs with the same first task have in common; "" where it is not shared."""
    shared = base.find(config.method).shares_first_task and len(stream) > 1
    return json.dumps(identity(config, stream), sort_keys=True) if shared else ""


def _teacher(cls: type[base.Method]) -> type:
    """The class that says how task 1 is learned: the first ancestor that defines more than names and a variant."""
    return next(c for c in cls.__mro__ if any(inspect.isfunction(value) for value in vars(c).values()))


def fork(source: H, config: Config, folder: str | Path | None) -> H:
    """A run of ``config`` that starts behind task 1 of ``source``, as if it had trained it itself.

    Raises:
        LabError: task 1 is not finished or would not be the same (lists what differs), or the folder has its own.
    """
    if source.cursor.task < 2:
        raise LabError("only a finished task 1 can be shared: call next_task() first.")
    stream = source.whole_stream if config.data == source.config.data else from_config(config.data)
    unlike = differences(identity(config, stream), identity(source.config, source.whole_stream))
    if unlike:
        raise LabError(f"task 1 of {source.files} cannot be shared, it would not be the same: {'; '.join(unlike)}.")
    run = type(source)(config, stream, folder, source.device, source.checkpoint_seconds, source.progress)
    if run.cursor != Cursor():
        raise LabError(f"{run.files} is a run that has begun: open it and go on, or fork into another folder.")
    tensors, info = source.files.read_task(1)
    saving.check(source, info, "task 1")
    run.method = saving.rebuild(run, [tensors])
    run.memory.load(info["memory"] | {"total_classes": run.stream.classes})
    theirs = source.state
    run.state = State(
        cursor=Cursor(2), chosen=1, closed=1,
        curves=[dict(row) for row in theirs.curves if row["task"] == 1],
        stored=theirs.stored[:1], trainable=theirs.trainable[:1], predicted=[list(theirs.predicted[0])],
        params_total=total_parameters(run.method),
        cost=cost.of_tasks(config, run.stream), timing=_timing(theirs.timing),
    )  # fmt: skip
    names = ["labels", *run.state.predicted[0]]
    run.predictions = {key(1, name): source.predictions[key(1, name)] for name in names}
    run.unwritten = 1
    if run.processes.first:
        run.files.claim(config)
    run.save()
    return run


def _timing(timing: dict[str, Any]) -> dict[str, Any]:
    """The seconds of task 1: part of what the forked run costs, but spent by another."""
    first = timing.get("by_task", [0.0])[:1]
    return {"seconds": sum(first), "by_task": list(first), "by_purpose": {"shared task 1": sum(first)}}
