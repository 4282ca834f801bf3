"""Between a run and its files: checkpoints out, runs back in."""

import copy
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.core.config import Config, differences
from dne_lab.core.errors import LabError, brief, reason
from dne_lab.data.identity import YOUNGER, Images, data_sha256, fingerprint, in_order, numbers_now, unlike
from dne_lab.data.source import SPLITS
from dne_lab.data.stream import ClassStream, from_config
from dne_lab.measure import cost
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.models.backbone import WeightsError, check_weights
from dne_lab.training import archive, run_folder
from dne_lab.training.distributed import Processes
from dne_lab.training.evaluation import BEFORE, key, record_of
from dne_lab.training.position import Cursor, Position
from dne_lab.training.run_data import place_of, what_changed
from dne_lab.training.run_folder import LAST, PREDICTIONS, RECORD, RunFolder, finished, task_file
from dne_lab.training.state import RunState
from dne_lab.training.step import Optimisation

# From a run folder to a state, and back.

METHOD, OPTIMIZER, PREDICTED = "method/", "optimizer/", "predictions/"
POSITION = "state"  # the entry of a checkpoint's JSON that holds a `Position`; a `RunState` is more than that


def save(files: RunFolder, state: RunState) -> None:
    """Writes the checkpoint, and the outputs that follow from it; nothing for a run in memory.

    Raises:
        LabError: a trained weight is NaN or Inf; a file cannot be written. The old checkpoint is untouched.
    """
    if files.path is None or not Processes().first:
        return
    if state.optimisation is not None and state.position.optimizer_of is not None:
        state.check_weights()
    files.write_last(_tensors(state), identity(state.config, state.stream) | _position(state))
    files.write_outputs(record_of(state), state.position.curves, state.predictions)


def _tensors(state: RunState) -> dict[str, Tensor]:
    """What a checkpoint holds in tensors: method, optimiser, predictions."""
    tensors = {METHOD + name: value for name, value in state.method.state_dict().items()}
    if state.optimisation is not None and state.position.optimizer_of is not None:
        tensors |= {OPTIMIZER + name: value for name, value in state.optimisation.state().items()}
    return tensors | {PREDICTED + name: torch.from_numpy(array) for name, array in state.predictions.items()}


def _position(state: RunState) -> dict[str, Any]:
    """What it holds in JSON, beside what the file must share with the run that reads it."""
    return {POSITION: state.position.to_dict(), "memory": state.memory.state()}


def save_task(files: RunFolder, state: RunState, number: int) -> None:
    """Writes what a task has learned, while the method still is as that task left it."""
    if Processes().first:
        learned = state.method.task_state(state.stream.task(number))
        shared = identity(state.config, state.stream)
        own = files.write_task(number, learned, {**shared, "task": number, "memory": state.memory.state()})
        known = state.position.task_sha256 + [""] * (number - len(state.position.task_sha256))
        state.position.task_sha256 = [*known[: number - 1], own, *known[number:]]


def identity(config: Config, stream: ClassStream) -> dict[str, Any]:
    """What a file must share with the run that reads it."""
    return {"config": config.identity(), "config_sha256": config.sha256, "stream": fingerprint(stream)}


def load(files: RunFolder, config: Config, stream: ClassStream, device: torch.device, accept: bool = False) -> RunState:
    """The state that a folder holds of a run: its checkpoint, else the files of a finished run, else the start.

    Args:
        accept: other images or names of classes than the run has learned from are gone on with, and recorded.

    Raises:
        LabError: files of another configuration or other data, damaged ones, or those of another version.
    """
    files.look()
    known = files.read_images()
    if known is not None:
        known.remember(stream.source)
    state = RunState.fresh(config, stream, device)
    if files.path is not None:
        as_first(files, state, lambda: _load(files, state, accept))
    check_weights(config.network)  # now, not when task 1 begins
    state.method.to(device).eval()
    return state


def as_first(files: RunFolder, state: RunState, load: Callable[[], None]) -> None:
    """Loads a fresh state in the first process, which alone looks into folders, and gives it to the others.

    Raises:
        LabError: what ``load`` raises, in all processes; of one whose images or program are others.
    """
    processes = Processes()
    if processes.world == 1:
        load()
        return

    def loaded() -> dict[str, Any] | None:
        load()
        if state.cursor == Cursor() and not state.position.begun:
            return None
        tensors = {name: value.detach().to("cpu", copy=True) for name, value in _tensors(state).items()}
        info = json.dumps(_position(state) | {"stream": fingerprint(state.stream)})
        return {"tensors": tensors, "info": info, "record": state.record, "unwritten": state.unwritten}

    given = processes.from_first(loaded)

    def follow() -> None:
        if given is not None and not processes.first:
            info = json.loads(given["info"])
            check_data(state.stream, info["stream"])
            _load_checkpoint(files, state, given["tensors"], info)
            state.record, state.unwritten = given["record"], given["unwritten"]

    processes.each(follow)


def check_data(stream: ClassStream, first: dict[str, Any]) -> None:
    """Raises a `LabError` where this process has other images than the ``first``, of which this is the fingerprint."""
    here = json.loads(json.dumps(fingerprint(stream)))
    if unlike_here := differences(here, first):
        raise LabError(
            f"{place_of(stream)} holds other data here than in process 0: {'; '.join(unlike_here)}. All processes need "
            "the same images: copy them, or name a folder that all of them see (--set data.path=DIR)."
        )


def _load(files: RunFolder, state: RunState, accept: bool) -> None:
    """`load` into a fresh state, by the process that looks into the folder."""
    if files.has(LAST):
        tensors, info = files.read_last()
        changes = _other_data(state, info)
        if not accept or not changes:
            check(files, state, info, LAST)
        _load_checkpoint(files, state, tensors, info)
        if changes and accept:
            _accept(files, state, info)
        if state.finished and files.path is not None:
            state.record = finished(files.path)
    elif files.has(RECORD):
        _load_finished(files, state)


def check(files: RunFolder, state: RunState, info: dict[str, Any], name: str) -> None:
    """Raises a `LabError` for a file of another configuration or of other data; lists what differs."""
    wrong = differences(state.config.identity(), _part_of(info, "config"))
    changes = _other_data(state, info)
    if wrong or {"name", "tasks", "shape"} & changes.keys():
        wrong += [f"data: {field} ({there} there, {here} here)" for field, (there, here) in changes.items()]
        raise LabError(
            f"{files}: {name} belongs to another configuration or other data: {'; '.join(wrong)}. "
            "It is untouched. Give another folder."
        )
    if changes:
        known, here = files.read_images(), Images.of(state.stream.source)
        mixed = known is not None and (len(known.classes) != len(here.classes) or not in_order(known, here))
        advice = MIXED if mixed else FINISHED if _at_its_end(info, state) else GOES_ON
        raise LabError(
            f"{files}: {name} belongs to other data than {place_of(state.stream)} holds: "
            f"{'; '.join(what_changed(files, state.stream, changes))}. It is untouched. {advice}"
        )


GOES_ON = (
    "Give another folder (--out), bring back the images, or go on with what is there, which is recorded: the same "
    "command with --accept-changed-data, or accept_changed_data=True for dne_lab.start and dne_lab.open."
)
FINISHED = (
    "Bring back the images, or look at its results alone: dne-lab report RUN. Its model sees the images that are there "
    "with dne_lab.open(RUN, accept_changed_data=True)."
)
MIXED = (
    "Bring back the classes, by their names: their numbers follow from these, and the run would take one class for "
    "another. Or give another folder (--out) for a run on these."
)


def _at_its_end(info: dict[str, Any], state: RunState) -> bool:
    """Whether a checkpoint is that of a finished run."""
    return str(_part_of(info, POSITION).get("cursor")).startswith(f"[{len(state.stream) + 1},")


def _part_of(info: dict[str, Any], name: str) -> dict[str, Any]:
    """A dictionary of a file's JSON; nothing where the file has none."""
    found = info.get(name)
    return found if isinstance(found, dict) else {}


def placed(config: Config, stream: ClassStream) -> Config:
    """The configuration with the place where the images are, whatever the working directory becomes."""
    place = stream.source.path
    return config if place is None else dataclasses.replace(config, data=dataclasses.replace(config.data, path=place))


def _other_data(state: RunState, info: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What a file says of its data and the stream does not: (there, here) by name. Younger fields may be missing, and
    data that were accepted before are no others."""
    here, there = fingerprint(state.stream), _part_of(info, "stream")
    if any(there == change.get("before") for change in state.position.data_changes):
        return {}
    names = [name for name in dict.fromkeys([*here, *there]) if name in there or name not in YOUNGER]
    pairs = {name: (there.get(name, "nothing"), here.get(name, "nothing")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def _accept(files: RunFolder, state: RunState, info: dict[str, Any]) -> None:
    """Goes on with other images: exemplars are found again, and what has changed is said in the record.

    Raises:
        LabError: another number of classes, or they have other numbers; an older run, which does not know its images
            one by one.
    """
    changes = _other_data(state, info)
    there, here = files.read_images(), Images.of(state.stream.source)
    if there is None or len(there.classes) != len(here.classes) or {"name", "shape", "tasks"} & changes.keys():
        why = "which images it had is not known" if there is None else "; ".join(unlike(there, here))
        raise LabError(f"{files} cannot go on with changed data: {why or changes}. Give another folder.")
    if not in_order(there, here):
        raise LabError(f"{files} cannot go on with changed data: {'; '.join(unlike(there, here))}. {MIXED}")
    gone = state.memory.renumber(numbers_now(there, here, "train"))
    state.position.data_changes.append(
        {"at": state.place(), "told": unlike(there, here), "exemplars_gone": gone, "before": info["stream"]}
    )
    state.accepted = True


def begin(files: RunFolder, state: RunState) -> None:
    """Before anything is trained: the folder is this run's, and knows its images.

    Raises:
        LabError: a folder of another run; an image that cannot be read.
    """
    files.claim(state.config, state.stream)
    if state.accepted and not state.finished:
        save(files, state)  # first, so that images and the numbers of exemplars belong together
        state.accepted = False
    known, now = files.read_images(), Images.of(state.stream.source)
    if known is None or unlike(known, now) or any((known.stamps[s].tolist() != now.stamps[s].tolist()) for s in SPLITS):
        files.write_images(now)


def _load_checkpoint(files: RunFolder, state: RunState, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    try:
        position = state.position = Position.from_dict(info[POSITION])
        if not 1 <= position.cursor.task <= len(state.stream) + 1:
            raise LabError(f"state.cursor = {list(position.cursor)}: there are {len(state.stream)} tasks.")
        state.memory.load(info["memory"])
        state.replay(state.method, position.cursor, position.begun)
        state.method.load_state_dict(_part(tensors, METHOD))
        state.method.to(state.device)
        state.predictions = {
            key(number, name): tensors[PREDICTED + key(number, name)].numpy()
            for number, names in enumerate(position.predicted, start=1)
            for name in ("labels", *names)
        }
        early = key(position.untuned, BEFORE)
        if position.untuned > len(position.predicted):
            state.predictions[early] = tensors[PREDICTED + early].numpy()
        if position.optimizer_of is not None:
            task, stage = position.optimizer_of
            recipe = state.method.stages(state.stream.task(task))[stage].recipe
            state.optimisation = Optimisation.of(state.method, recipe)
            state.optimisation.load(_part(tensors, OPTIMIZER))
        if not state.finished:
            position.timing["resumed"] = position.timing.get("resumed", 0) + 1
    except WeightsError as error:
        raise LabError(f"{files}: {error} It is untouched.") from error
    except (KeyError, TypeError, RuntimeError, IndexError, AttributeError, ValueError) as error:
        raise LabError(
            f"{files}: {LAST} does not fit this version of method {state.config.method} ({reason(error)}). It is "
            "untouched. Use the version that wrote it, or give another folder."
        ) from error


def _load_finished(files: RunFolder, state: RunState) -> None:
    """A finished run whose checkpoint is not there (an archive): from the states of its tasks and its outputs."""
    record, curves, predictions = files.read_outputs()
    if not record.finished:
        return
    tasks = len(state.stream)
    names: list[list[str]] = [[] for _ in range(tasks)]
    for full in predictions:
        found = re.fullmatch(r"task_(\d{1,6})/(.+)", full)
        if found is None or not 1 <= int(found[1]) <= tasks:
            raise LabError(f"{files}: {PREDICTIONS} holds {full!r}, which is no prediction of tasks 1 to {tasks}.")
        if found[2] != "labels":
            names[int(found[1]) - 1].append(found[2])
    state.position = _at_the_end(record, tasks)
    state.method = _from_tasks(files, state, tasks)
    _, info = files.read_task(tasks)
    state.memory.load(info["memory"])
    state.predictions, state.record = predictions, record
    state.position.curves, state.position.predicted = curves, names


def _at_the_end(record: Record, tasks: int) -> Position:
    """The position of a finished run, as its record has it."""
    return Position(
        cursor=Cursor(tasks + 1), chosen=tasks, closed=tasks, predicted=[[] for _ in range(tasks)],
        stored=list(record.memory["stored_by_task"]), trainable=list(record.params["trainable_by_task"]),
        params_total=record.params["total"], timing=record.timing, products=record.products,
        forked_from=record.forked_from, flops_training=record.flops_training,
        data_changes=record.data_changes, task_sha256=record.task_sha256,
    )  # fmt: skip


def tasks_held(state: RunState) -> list[int]:
    """The finished tasks whose models `method_at` gives: all, or of an exported finished model the last one."""
    done = list(range(1, state.cursor.task))
    alone = state.model_file is not None and len(state.task_states) < len(state.stream)
    return done[-1:] if alone else done


def method_at(files: RunFolder, state: RunState, task: int) -> base.Method:
    """The method as it was after a finished task, from the files of the tasks up to it."""
    done = state.cursor.task - 1
    if task is True or not isinstance(task, int | np.integer) or not 1 <= task <= done:
        raise LabError(f"task {brief(task)}: this run has finished {done} of {len(state.stream)}. Name one of them.")
    if state.model_file is not None:
        if task == len(state.stream):
            return copy.deepcopy(state.method)
        if len(state.task_states) < len(state.stream):
            raise LabError(
                f"{state.model_file} holds the finished model alone, not that of task {task}: name the run's folder, "
                "or a file that `dne-lab export RUN FILE.safetensors --every-task` wrote."
            )
        return rebuild(files, state, state.task_states[:task])
    return _from_tasks(files, state, task)


def _from_tasks(files: RunFolder, state: RunState, task: int) -> base.Method:
    states = []
    for number in range(1, task + 1):
        tensors, info = files.read_task(number)
        check(files, state, info, f"task {number}")
        check_task(files, state.position.task_sha256, number, info)
        states.append(tensors)
    return rebuild(files, state, states)


def check_task(files: RunFolder, known: list[str], number: int, info: dict[str, Any]) -> None:
    """Raises a `LabError` if a task's file is not the one that the run wrote; older runs do not know."""
    own = known[number - 1] if number <= len(known) else ""
    if own and info.get(run_folder.DIGEST) != own:
        raise LabError(
            f"{files}: {task_file(number)} is not the file that this run wrote. It is untouched: bring back a copy."
        )


def rebuild(files: RunFolder, state: RunState, states: list[dict[str, Tensor]]) -> base.Method:
    """A new method with what was learned in tasks 1, 2, ..., in evaluation mode."""
    method = base.create(state.config, state.stream)
    state.replay(method, Cursor(len(states) + 1), begun=False)
    try:
        method.to("cpu").load_task_states(states)
    except (KeyError, RuntimeError) as error:
        raise LabError(f"{files}: the tasks do not fit method {state.config.method} ({reason(error)}).") from error
    return method.to(state.device).eval()


def stream_of_model(model: archive.ModelFile) -> ClassStream:
    """The classes of a finished model; blank images where the data set is not there: it can be shown others.

    Raises:
        LabError: in the place of the data are others than it has learned from.
    """
    config, record = model.config, model.record
    try:
        stream = from_config(config.data)
    except LabError:
        try:
            shape = model.shape or cost.shape_of(config.data)
        except LabError as error:
            raise LabError("this older file does not say how large images are: dne_lab.open(FILE, stream).") from error
        return cost.blank_stream(config.data.tasks, shape, names=model.class_names)
    if record.data_sha256 and record.data_sha256 != data_sha256(stream):
        raise LabError(
            f"this model has learned from other classes or images than {place_of(stream)} holds. Give its own, or "
            "others to look at: dne_lab.open(FILE, stream)."
        )
    return stream


def load_model(file: Path, state: RunState) -> None:
    """Makes a fresh state that of the finished run whose model (or models) and record `export_model` wrote."""
    model = archive.read_model(file)
    tasks = len(state.stream)
    state.task_states = model.states
    state.method = rebuild(RunFolder(None), state, [{}] * (tasks - len(model.states)) + model.states)
    state.position, state.record, state.model_file = _at_the_end(model.record, tasks), model.record, file


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
