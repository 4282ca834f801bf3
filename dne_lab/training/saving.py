"""Between a run and its files: checkpoints out, runs back in."""

import copy
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from dne_lab.data.stream import ClassStream, from_config
from dne_lab.errors import LabError
from dne_lab.measure import cost
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.training import archive, portable
from dne_lab.training.folder import LAST, RECORD, differences, read_config
from dne_lab.training.optimise import Optimisation
from dne_lab.training.recording import BEFORE, key
from dne_lab.training.state import Cursor, State

if TYPE_CHECKING:
    from dne_lab.training.handle import Handle

H = TypeVar("H", bound="Handle")
METHOD, OPTIMIZER, PREDICTIONS = "method/", "optimizer/", "predictions/"


def save(run: "Handle") -> None:
    """Writes the checkpoint, and the outputs that follow from it."""
    if run.folder is None or not run.processes.first:
        return
    tensors = {METHOD + name: value for name, value in run.method.state_dict().items()}
    if run.optimisation is not None and run.state.optimizer_of is not None:
        check_weights(run)
        tensors |= {OPTIMIZER + name: value for name, value in run.optimisation.state().items()}
    tensors |= {PREDICTIONS + name: torch.from_numpy(array) for name, array in run.predictions.items()}
    run.files.write_last(tensors, {**identity(run), "state": run.state.to_dict(), "memory": run.memory.state()})
    run.files.write_outputs(run.record, run.curves, run.predictions)


def check_weights(run: "Handle") -> None:
    """Raises a `LabError` if a trained weight is NaN or Inf: the loss that would show it comes a step later."""
    if run.optimisation is not None and not run.optimisation.finite():
        raise LabError(
            f"weights hold NaN or Inf at {place(run)}. The last good checkpoint, if there is one, is kept. Lower the "
            "learning rate (learn.lr) or set learn.clip, and give another folder (--out)."
        )


def save_task(run: "Handle", number: int) -> None:
    """Writes what a task has learned, while the method still is as that task left it."""
    if run.processes.first:
        state = run.method.task_state(run.stream.task(number))
        run.files.write_task(number, state, {**identity(run), "task": number, "memory": run.memory.state()})


def identity(run: "Handle") -> dict[str, Any]:
    """What a file must share with the run that reads it."""
    return {
        "config": run.config.identity(),
        "config_sha256": run.config.sha256,
        "stream": fingerprint(run.stream),
    }


def fingerprint(stream: ClassStream) -> dict[str, Any]:
    """Tells streams apart: names, sizes, and a hash of all labels."""
    found: dict[str, Any] = {"name": stream.name, "tasks": list(stream.tasks), "shape": list(stream.shape)}
    for split in ("train", "test"):
        index = stream.index(split, range(stream.classes))
        labels = torch.stack([index, stream.labels(split, index)]).numpy().astype("<i8").tobytes()
        found |= {split: len(index), f"{split}_labels": hashlib.sha256(labels).hexdigest()[:16]}
    return found


def place(run: "Handle") -> str:
    """The cursor in words."""
    task, stage, epoch, step = run.cursor
    stages = run.method.stages(run.stream.task(task)) if not run.finished else []
    name = stages[stage].name if stage < len(stages) else "end"
    return f"task {task}, stage {name}, epoch {epoch + 1}, step {step + 1}"


def restore(run: "Handle") -> None:
    """Brings a run to where its folder says it was: checkpoint, else the files of a finished run, else the start."""
    run.reset()
    if run.files.has(LAST):
        tensors, info = run.files.read_last()
        check(run, info, LAST)
        _restore_checkpoint(run, tensors, info)
        if run.finished and run.files.has(RECORD):
            record = Record.from_json(run.files.path / RECORD)  # type: ignore[operator]
            run.stored_record = record if record.finished else None
    elif run.files.has(RECORD):
        _restore_finished(run)
    run.method.to(run.device).eval()


def check(run: "Handle", info: dict[str, Any], name: str) -> None:
    """Raises a `LabError` for a file of another configuration or of other data; lists what differs."""
    mine = identity(run)
    unlike = differences(mine["config"], info.get("config", {}))
    unlike += differences(mine["stream"], info.get("stream", {}), "data: ")
    if unlike:
        raise LabError(
            f"{run.files}: {name} belongs to another configuration or other data: {'; '.join(unlike)}. "
            "It is untouched. Give another folder."
        )


def _restore_checkpoint(run: "Handle", tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    try:
        run.state = State.from_dict(info["state"])
        run.memory.load(info["memory"])
        replay(run, run.method, run.cursor, run.state.begun)
        run.method.load_state_dict(_part(tensors, METHOD))
        run.method.to(run.device)
        run.predictions = {
            key(number, name): tensors[PREDICTIONS + key(number, name)].numpy()
            for number, names in enumerate(run.state.predicted, start=1)
            for name in ("labels", *names)
        }
        early = key(run.state.untuned, BEFORE)
        if run.state.untuned > len(run.state.predicted):
            run.predictions[early] = tensors[PREDICTIONS + early].numpy()
        if run.state.optimizer_of is not None:
            task, stage = run.state.optimizer_of
            recipe = run.method.stages(run.stream.task(task))[stage].recipe
            run.optimisation = Optimisation(recipe, run.method.parameters_to_train())
            run.optimisation.load(_part(tensors, OPTIMIZER))
        if not run.finished:
            run.state.timing["resumed"] = run.state.timing.get("resumed", 0) + 1
    except (KeyError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        raise LabError(
            f"{run.files}: {LAST} does not fit this version of method {run.config.method} ({error}). It is untouched. "
            "Use the version that wrote it, or give another folder."
        ) from error


def _restore_finished(run: "Handle") -> None:
    """A finished run whose checkpoint is not there (an archive): from the states of its tasks and its outputs."""
    record, curves, predictions = run.files.read_outputs()
    if not record.finished:
        return
    tasks = len(run.stream)
    names: list[list[str]] = [[] for _ in range(tasks)]
    for full in predictions:
        task, name = full.removeprefix("task_").split("/", 1)
        if name != "labels":
            names[int(task) - 1].append(name)
    run.method = _from_tasks(run, tasks)
    _, info = run.files.read_task(tasks)
    run.memory.load(info["memory"])
    run.predictions = predictions
    run.state = State(
        cursor=Cursor(tasks + 1), chosen=tasks, closed=tasks, curves=curves, predicted=names,
        stored=list(record.memory["stored_by_task"]), trainable=list(record.params["trainable_by_task"]),
        params_total=record.params["total"], timing=record.timing, products=record.products,
        forked_from=record.forked_from, flops_training=record.flops_training,
    )  # fmt: skip
    run.stored_record = record


def replay(run: "Handle", method: base.Method, cursor: Cursor, begun: bool) -> None:
    """Calls `enter` of a new method for every stage up to the cursor (the cursor's own if it was begun)."""
    for task in run.stream:
        for number, stage in enumerate(method.stages(task)):
            if (task.number, number) < cursor[:2] or (begun and (task.number, number) == cursor[:2]):
                run.enter(method, task, stage)


def method_at(run: "Handle", task: int) -> base.Method:
    """The method as it was after a finished task, from the files of the tasks up to it."""
    if not 1 <= task < run.cursor.task:
        done = run.cursor.task - 1
        raise LabError(f"task {task} is not finished: this run has finished {done} of {len(run.stream)}.")
    if run.model_file is not None:
        if task < len(run.stream):
            raise LabError(f"{run.model_file} holds the finished model alone, not that of task {task}.")
        return copy.deepcopy(run.method)
    return _from_tasks(run, task)


def _from_tasks(run: "Handle", task: int) -> base.Method:
    states = []
    for number in range(1, task + 1):
        tensors, info = run.files.read_task(number)
        check(run, info, f"task {number}")
        states.append(tensors)
    return rebuild(run, states)


def rebuild(run: "Handle", states: list[dict[str, Tensor]]) -> base.Method:
    """A method with the states of tasks 1, 2, ..., in evaluation mode."""
    method = base.create(run.config, run.stream)
    replay(run, method, Cursor(len(states) + 1), begun=False)
    try:
        method.to("cpu").load_task_states(states)
    except (KeyError, RuntimeError) as error:
        raise LabError(f"{run.files}: the tasks do not fit method {run.config.method} ({error}).") from error
    return method.to(run.device).eval()


def open_run(cls: type[H], path: Path, stream: ClassStream | None, settings: dict[str, Any]) -> H:
    """The run in a folder or an archive."""
    if path.is_dir():
        return cls(read_config(path), stream, path, **settings)
    if path.suffix == portable.SUFFIX:
        return _open_model(cls, path, stream, settings)
    unpacked = archive.unpack(path)
    folder = Path(unpacked.name)
    run = cls(read_config(folder), stream, folder, **settings)
    run.unpacked = unpacked  # the folder lives as long as the run
    return run


def _open_model(cls: type[H], file: Path, stream: ClassStream | None, settings: dict[str, Any]) -> H:
    """A finished run that has its last model and its record; the data set need not be there."""
    tensors, config, record = portable.read_model(file)
    if stream is None:
        try:
            stream = from_config(config.data)
        except LabError:  # without its images, a model can still be looked at with others
            stream = cost.blank_stream(config.data.tasks, cost.shape_of(config.data))
    run = cls(config, stream, None, **settings)
    tasks = len(run.stream)
    run.method = rebuild(run, [{}] * (tasks - 1) + [tensors])
    run.state = State(
        cursor=Cursor(tasks + 1), chosen=tasks, closed=tasks, predicted=[[] for _ in range(tasks)],
        stored=list(record.memory["stored_by_task"]), trainable=list(record.params["trainable_by_task"]),
        params_total=record.params["total"], timing=record.timing, products=record.products,
        forked_from=record.forked_from, flops_training=record.flops_training,
    )  # fmt: skip
    run.stored_record, run.model_file = record, file
    return run


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
