"""Task 1, trained once: which runs may share it, and how one starts after another's."""

import dataclasses
import inspect
import json
from typing import Any

from dne_lab.core.config import Config, differences
from dne_lab.core.errors import LabError
from dne_lab.data.identity import fingerprint
from dne_lab.data.stream import ClassStream, from_config
from dne_lab.measure import budget, cost
from dne_lab.methods import base
from dne_lab.methods.expansion import Expansion
from dne_lab.training import storage
from dne_lab.training.evaluation import key, record_of, total_parameters
from dne_lab.training.position import Cursor, Position
from dne_lab.training.run_folder import RunFolder
from dne_lab.training.state import RunState


def identity(config: Config, stream: ClassStream) -> dict[str, Any]:
    """Everything that the first task of a run depends on, JSON-able. Runs with equal ones have the same task 1."""
    cls = base.find(config.method)
    tree = config.identity()
    task = stream.task(1)
    network = tree["network"] | {"heads": config.network.heads_of(1)}
    stages = [dataclasses.asdict(stage) for stage in base.create(config, stream).stages(task)]
    # The policy "fixed" divides by all classes of the stream; the others see no more of it than task 1.
    memory = {"budget": budget.exemplars(config, stream), "policy": config.memory.policy}
    memory |= {"classes": stream.classes} if config.memory.policy == "fixed" else {}
    return {
        "method": _teacher(cls).__qualname__ if cls.shares_first_task else config.method,
        "options": cls.options_of_task_1(tree["options"]),
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
    shared = base.find(config.method).shares_first_task and len(stream) > 1 and config.start is None
    return json.dumps(identity(config, stream), sort_keys=True) if shared else ""


def _teacher(cls: type[base.Method]) -> type:
    """The class that says how task 1 is learned: the first ancestor that defines more than names and a variant."""
    return next(c for c in cls.__mro__ if any(inspect.isfunction(value) for value in vars(c).values()))


def settings(
    source: RunState, files: RunFolder, whole: ClassStream, config: Config, after: int | None
) -> tuple[Config, ClassStream]:
    """The configuration and the stream of a run of ``config`` that starts after task 1 of ``source``, as if it had
    trained it itself; with ``after`` after that task, whatever ``source`` has learned the tasks up to there with.

    Args:
        files: those of ``source``.
        whole: its classes task by task, also where its method sees all at once.

    Raises:
        LabError: the task is not finished; task 1 would not be the same, or with ``after`` what both must have in
            common is not (lists what differs).
    """
    _check_task(source, files, after)
    stream = whole if config.data == source.config.data else from_config(config.data)
    if after is None:
        config = dataclasses.replace(config, start=None)
        unlike = differences(identity(config, stream), identity(source.config, whole))
        what = f"task 1 of {files} cannot be shared, it would not be the same"
    else:
        if len(stream) <= after:
            raise LabError(f"data.tasks = {stream.tasks}: nothing is left to learn after task {after}.")
        config = behind(config, source.config, after)
        unlike = differences(structure(config, stream, after), structure(source.config, whole, after))
        what = f"task {after} of {files} cannot be gone on from, up to it this must be the same"
    if unlike:
        raise LabError(f"{what}: {'; '.join(unlike)}.")
    return config, stream


def begin(
    source: RunState, files: RunFolder, state: RunState, own: RunFolder, config: Config, after: int | None
) -> None:
    """Brings a fresh state (its files: ``own``) to the end of task 1, or task ``after``, of ``source`` (its files:
    ``files``); ``config`` is what `settings` gave. The last of these tasks is left to be written."""
    storage.as_first(own, state, lambda: _begin(source, files, state, own, config, after))


def _begin(
    source: RunState, files: RunFolder, state: RunState, own: RunFolder, config: Config, after: int | None
) -> None:
    """`begin`, in the process that reads and writes the folders."""
    last = 1 if after is None else after
    states, infos = [], []
    for number in range(1, last + 1):
        tensors, info = files.read_task(number)
        storage.check(files, source, info, f"task {number}")
        storage.check_task(files, source.position.task_sha256, number, info)
        states.append(tensors)
        infos.append(info)
    state.method = storage.rebuild(own, state, states)
    state.memory.load(infos[-1]["memory"] | {"total_classes": state.stream.classes})
    theirs = source.position
    state.position = Position(
        cursor=Cursor(last + 1), chosen=last, closed=last,
        curves=[dict(row) for row in theirs.curves if row["task"] <= last],
        stored=theirs.stored[:last], trainable=theirs.trainable[:last],
        predicted=[list(names) for names in theirs.predicted[:last]],
        params_total=total_parameters(state.method),
        cost=cost.of_tasks(config, state.stream), timing=_timing(theirs.timing, last, after),
        forked_from=_origin(source, after), products=theirs.products,
    )  # fmt: skip
    for number, names in enumerate(state.position.predicted, start=1):
        state.predictions |= {key(number, name): source.predictions[key(number, name)] for name in ("labels", *names)}
    state.unwritten = last
    storage.begin(own, state)
    for number in range(1, last):  # the last one is written with the checkpoint
        shared = storage.identity(state.config, state.stream)
        written = own.write_task(number, states[number - 1], infos[number - 1] | shared)
        state.position.task_sha256.append(written)


def behind(config: Config, source: Config, after: int) -> Config:
    """The configuration of a run that starts after task ``after`` of a run of ``source``."""
    if after < 1:
        raise LabError(f"after = {after}: give the number of a finished task, 1 or more.")
    return dataclasses.replace(config, start=f"{source.sha256[:12]}@{after}")


def structure(config: Config, stream: ClassStream, tasks: int) -> dict[str, Any]:
    """What a run must have in common with one after whose task ``tasks`` it starts: method, network, data, memory."""
    network = dataclasses.asdict(config.network) | {"heads": [config.network.heads_of(t + 1) for t in range(tasks)]}
    network["backbone_weights"] = config.identity()["network"].get("backbone_weights")  # its file may have moved
    del network["drop_path"]  # changes how experts are trained, not what they are
    classes = sum(stream.tasks[:tasks])
    data = {name: getattr(config.data, name) for name in ("name", "size", "validation")}
    data |= {"tasks": list(stream.tasks[:tasks]), "order": list(stream.order[:classes])}
    data |= {"images": fingerprint(stream[:tasks])}
    memory = {"budget": budget.exemplars(config, stream), "policy": config.memory.policy}
    cls = base.find(config.method)
    memory = memory if cls.uses_memory else {}
    found = {"method": config.method, "network": network, "data": data, "memory": memory}
    controls = cls.variant_of(config).controls if issubclass(cls, Expansion) else {}
    return found | ({"controls": controls} if controls else {})


def _check_task(source: RunState, files: RunFolder, after: int | None) -> None:
    """Raises a `LabError` if a run cannot start after this task."""
    if source.model_file is not None:
        raise LabError(f"{source.model_file} holds models without exemplars: name the run's folder or archive.")
    if after is None:
        if source.cursor.task < 2:
            raise LabError("only a finished task 1 can be shared: call next_task() first.")
        if source.config.start is not None:
            raise LabError(f"task 1 of {files} is another run's: fork that one, or give after=1.")
        return
    tasks, done = len(source.stream), source.cursor.task - 1
    if isinstance(after, bool) or not isinstance(after, int) or not 1 <= after < tasks:
        allowed = f"must be one of its tasks 1 to {tasks - 1}" if tasks > 1 else "it has no task before its last one"
        raise LabError(f"after = {after}: {files} has {tasks} tasks, {allowed}.")
    if after > done:
        raise LabError(f"after = {after}: {files} has finished {done} of its {tasks} tasks. Train it further.")


def _origin(source: RunState, after: int | None) -> dict[str, Any]:
    """``forked_from`` of a record; nothing where task 1 is the same as the run's own would have been."""
    if after is None:
        return {}
    record = record_of(source)
    hashes = {"config_sha256": record.config_sha256, "settings_sha256": record.settings_sha256}
    return {"run": record.id, "task": after, **hashes}


def _timing(timing: dict[str, Any], tasks: int, after: int | None) -> dict[str, Any]:
    """The seconds of the first tasks: part of what the forked run costs, but spent by another."""
    first = timing.get("by_task", [0.0])[:tasks]
    purpose = "shared task 1" if after is None else "tasks of the run it started behind"
    return {"seconds": sum(first), "by_task": list(first), "by_purpose": {purpose: sum(first)}}
