"""Between a run and its files: checkpoints out, runs back in."""

import contextlib
import copy
import hashlib
import io
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dne_lab.core.config import Config, from_dict
from dne_lab.core.errors import LabError
from dne_lab.core.files import absolute, check_unpacked, shown, write_bytes, write_text
from dne_lab.data.stream import ClassStream, from_config
from dne_lab.measure import cost
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.training import run_folder
from dne_lab.training.distributed import Processes
from dne_lab.training.evaluation import BEFORE, key, record_of
from dne_lab.training.position import Cursor, Position
from dne_lab.training.run_folder import (
    CONFIG,
    CURVES,
    LAST,
    PREDICTIONS,
    RECORD,
    RunFolder,
    differences,
    finished,
    read_config,
    task_file,
)
from dne_lab.training.state import RunState
from dne_lab.training.step import Optimisation

# A finished model in one safetensors file: weights, and in its header the configuration and the record.

SUFFIX, KIND = ".safetensors", "model"


def target(file: str | Path, force: bool = False) -> Path:
    """Where an export goes, or why it does not: what is there stays, unless it is an export too.

    Args:
        force: a file that is none may be replaced.

    Raises:
        LabError: a folder or device, a place in a run's folder, a file that no export wrote.
    """
    path = absolute(file).resolve()  # what a link leads to
    told = shown(path)
    if path.exists() and not path.is_file():
        raise LabError(f"{told} is {'a folder' if path.is_dir() else 'no regular file'}: name a file, such as dne.zip.")
    for folder in path.parents:
        if (folder / CONFIG).is_file() and any((folder / name).exists() for name in (RECORD, LAST, task_file(1))):
            raise LabError(f"{told} lies in a run's folder, {shown(folder)}, whose files stay. Name another.")
    if path.exists() and not force and not _exported(path):
        raise LabError(f"{told} exists and is no export. It is untouched: give another name, or --force to replace it.")
    return path


def _exported(file: Path) -> bool:
    """Whether a file is what `export` or `export_model` writes."""
    try:
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as packed:
                return {CONFIG, RECORD} <= set(packed.namelist()) and not _strange(packed)
        return run_folder.load(file)[1].get("kind") == KIND
    except (LabError, OSError, ValueError, zipfile.BadZipFile):
        return False


def _strange(packed: zipfile.ZipFile) -> list[str]:
    """The files of an archive that no run has."""
    allowed = {CONFIG, RECORD, CURVES, PREDICTIONS, LAST, *(task_file(number) for number in range(1, 1000))}
    return [name for name in packed.namelist() if name not in allowed]


def export_model(folder: Path, file: Path, half: bool = False, force: bool = False) -> Path:
    """Writes the finished model of a run folder, without predictions, curves and the models of earlier tasks.

    Args:
        half: keep weights as float16, for half the size; they are computed with in float32 all the same.
        force: see `target`.

    Raises:
        LabError: no run folder, a run that is not finished; ``file`` cannot be written, or is not ours to replace.
    """
    folder, goes = absolute(folder), target(file, force)
    read_config(folder)  # whether it is a run folder
    record = Record.from_json(folder / RECORD) if (folder / RECORD).exists() else None
    if record is None or not record.finished:
        raise LabError(
            f"{folder} is not finished: only a finished run has a model to export. Train on, or write a .zip."
        )
    tensors: dict[str, Tensor] = {}
    for number in range(1, len(record.seen_accuracy) + 1):
        tensors |= run_folder.load(folder / task_file(number))[0]
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    run_folder.save(goes, tensors, {"kind": KIND, "record": record.to_dict()})  # which holds the configuration
    return file


def read_model(file: Path) -> tuple[dict[str, Tensor], Config, Record]:
    """Weights in float32, configuration and record of what `export_model` wrote.

    Raises:
        LabError: missing, damaged, or another kind of safetensors file.
    """
    if not file.exists():
        raise LabError(
            f"{file} does not exist. The repository has finished models in figures/checkpoints; "
            f"`dne-lab export RUN {file.name}` writes one of a run of your own."
        )
    tensors, info = run_folder.load(file)
    if info.get("kind") != KIND:
        raise LabError(f"{file} is a part of a run, not a model: open its folder, {file.parent}.")
    full = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
    record = Record.from_tree(info["record"], file)
    return full, from_dict(record.config), record


# One portable file that stands for a run folder.

MOMENT = (1980, 1, 1, 0, 0, 0)  # a zip wants a time; the same one makes the same bytes


def export(run: str | Path, file: str | Path, force: bool = False) -> Path:
    """Packs a run folder into one zip file: configuration, record, curves, predictions, the tasks' states, and the
    checkpoint of a run that is not finished. The same run gives the same bytes.

    Raises:
        LabError: no run folder, nothing in it yet; ``file`` cannot be written, or is not ours to replace (see `target`,
            also for ``force``).
    """
    folder, file = absolute(run), Path(file)
    goes = target(file, force)
    config = read_config(folder)
    if not (folder / RECORD).exists():
        raise LabError(f"{folder} holds no record yet: train it for a while first (`dne-lab run {config.method} ...`).")
    record = Record.from_json(folder / RECORD)
    names = [CONFIG, RECORD, CURVES, PREDICTIONS]
    names += [task_file(number) for number in range(1, len(record.seen_accuracy) + 1)]
    names += [] if record.finished else [LAST]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise LabError(f"{folder} is incomplete: {', '.join(missing)} missing. Run the same command again first.")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name in names:
            packed.writestr(zipfile.ZipInfo(name, MOMENT), (folder / name).read_bytes())
    write_bytes(goes, buffer.getvalue())
    return file


def unpack(file: Path) -> tempfile.TemporaryDirectory[str]:
    """Unpacks an archive into a folder that lives as long as what is returned.

    Raises:
        LabError: no such file, damaged, or no archive of a run (also when it holds anything but a run's files).
    """
    if not file.exists():
        raise LabError(f"{file} does not exist. Name a run folder, or a file that `dne-lab export` wrote.")
    folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="dne-lab-")
    try:
        if file.suffix == SUFFIX:
            _, config, record = read_model(file)
            write_text(Path(folder.name) / CONFIG, json.dumps(config.to_dict(), indent=1) + "\n")
            record.write(Path(folder.name) / RECORD)
            return folder
        with zipfile.ZipFile(file) as packed:
            strange = _strange(packed)
            if strange or CONFIG not in packed.namelist():
                what = f"it holds {strange[0]!r}" if strange else f"it has no {CONFIG}"
                raise LabError(f"{file} is no archive of a run, or damaged: {what}.")
            check_unpacked(file, (part.file_size for part in packed.infolist()))
            packed.extractall(folder.name)
    except zipfile.BadZipFile as error:
        folder.cleanup()
        raise LabError(f"{file} is no archive of a run, or damaged ({error}). Export the run again.") from error
    except BaseException:
        folder.cleanup()
        raise
    return folder


@contextlib.contextmanager
def unpacked(path: str | Path) -> Iterator[Path]:
    """The run folder itself, or the archive's content in a temporary folder: every command takes either."""
    path = Path(path)
    if path.is_dir():
        yield path
        return
    with unpack(path) as folder:
        yield Path(folder)


# From a run folder to a state, and back.

METHOD, OPTIMIZER, PREDICTED = "method/", "optimizer/", "predictions/"


def save(files: RunFolder, state: RunState) -> None:
    """Writes the checkpoint, and the outputs that follow from it; nothing for a run in memory.

    Raises:
        LabError: a trained weight is NaN or Inf; a file cannot be written. The old checkpoint is untouched.
    """
    if files.path is None or not Processes().first:
        return
    tensors = {METHOD + name: value for name, value in state.method.state_dict().items()}
    if state.optimisation is not None and state.position.optimizer_of is not None:
        state.check_weights()
        tensors |= {OPTIMIZER + name: value for name, value in state.optimisation.state().items()}
    tensors |= {PREDICTED + name: torch.from_numpy(array) for name, array in state.predictions.items()}
    shared = identity(state.config, state.stream)
    files.write_last(tensors, {**shared, "state": state.position.to_dict(), "memory": state.memory.state()})
    files.write_outputs(record_of(state), state.position.curves, state.predictions)


def save_task(files: RunFolder, state: RunState, number: int) -> None:
    """Writes what a task has learned, while the method still is as that task left it."""
    if Processes().first:
        learned = state.method.task_state(state.stream.task(number))
        shared = identity(state.config, state.stream)
        files.write_task(number, learned, {**shared, "task": number, "memory": state.memory.state()})


def identity(config: Config, stream: ClassStream) -> dict[str, Any]:
    """What a file must share with the run that reads it."""
    return {"config": config.identity(), "config_sha256": config.sha256, "stream": fingerprint(stream)}


def fingerprint(stream: ClassStream) -> dict[str, Any]:
    """Tells streams apart: names, sizes, and a hash of all labels."""
    found: dict[str, Any] = {"name": stream.name, "tasks": list(stream.tasks), "shape": list(stream.shape)}
    for split in ("train", "test"):
        index = stream.index(split, range(stream.classes))
        labels = torch.stack([index, stream.labels(split, index)]).numpy().astype("<i8").tobytes()
        found |= {split: len(index), f"{split}_labels": hashlib.sha256(labels).hexdigest()[:16]}
    return found


def load(files: RunFolder, config: Config, stream: ClassStream, device: torch.device) -> RunState:
    """The state that a folder holds of a run: its checkpoint, else the files of a finished run, else the start.

    Raises:
        LabError: files of another configuration or other data, damaged ones, or those of another version.
    """
    state = RunState.fresh(config, stream, device)
    if files.has(LAST):
        tensors, info = files.read_last()
        check(files, state, info, LAST)
        _load_checkpoint(files, state, tensors, info)
        if state.finished and files.path is not None:
            state.record = finished(files.path)
    elif files.has(RECORD):
        _load_finished(files, state)
    state.method.to(device).eval()
    return state


def check(files: RunFolder, state: RunState, info: dict[str, Any], name: str) -> None:
    """Raises a `LabError` for a file of another configuration or of other data; lists what differs."""
    mine = identity(state.config, state.stream)
    unlike = differences(mine["config"], info.get("config", {}))
    unlike += differences(mine["stream"], info.get("stream", {}), "data: ")
    if unlike:
        raise LabError(
            f"{files}: {name} belongs to another configuration or other data: {'; '.join(unlike)}. "
            "It is untouched. Give another folder."
        )


def _load_checkpoint(files: RunFolder, state: RunState, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
    try:
        position = state.position = Position.from_dict(info["state"])
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
            state.optimisation = Optimisation(recipe, state.method.parameters_to_train())
            state.optimisation.load(_part(tensors, OPTIMIZER))
        if not state.finished:
            position.timing["resumed"] = position.timing.get("resumed", 0) + 1
    except (KeyError, TypeError, RuntimeError, IndexError, AttributeError) as error:
        raise LabError(
            f"{files}: {LAST} does not fit this version of method {state.config.method} ({error}). It is untouched. "
            "Use the version that wrote it, or give another folder."
        ) from error


def _load_finished(files: RunFolder, state: RunState) -> None:
    """A finished run whose checkpoint is not there (an archive): from the states of its tasks and its outputs."""
    record, curves, predictions = files.read_outputs()
    if not record.finished:
        return
    tasks = len(state.stream)
    names: list[list[str]] = [[] for _ in range(tasks)]
    for full in predictions:
        task, name = full.removeprefix("task_").split("/", 1)
        if name != "labels":
            names[int(task) - 1].append(name)
    state.method = _from_tasks(files, state, tasks)
    _, info = files.read_task(tasks)
    state.memory.load(info["memory"])
    state.predictions, state.record = predictions, record
    state.position = _at_the_end(record, tasks)
    state.position.curves, state.position.predicted = curves, names


def _at_the_end(record: Record, tasks: int) -> Position:
    """The position of a finished run, as its record has it."""
    return Position(
        cursor=Cursor(tasks + 1), chosen=tasks, closed=tasks, predicted=[[] for _ in range(tasks)],
        stored=list(record.memory["stored_by_task"]), trainable=list(record.params["trainable_by_task"]),
        params_total=record.params["total"], timing=record.timing, products=record.products,
        forked_from=record.forked_from, flops_training=record.flops_training,
    )  # fmt: skip


def method_at(files: RunFolder, state: RunState, task: int) -> base.Method:
    """The method as it was after a finished task, from the files of the tasks up to it."""
    if not 1 <= task < state.cursor.task:
        done = state.cursor.task - 1
        raise LabError(f"task {task} is not finished: this run has finished {done} of {len(state.stream)}.")
    if state.model_file is not None:
        if task < len(state.stream):
            raise LabError(f"{state.model_file} holds the finished model alone, not that of task {task}.")
        return copy.deepcopy(state.method)
    return _from_tasks(files, state, task)


def _from_tasks(files: RunFolder, state: RunState, task: int) -> base.Method:
    states = []
    for number in range(1, task + 1):
        tensors, info = files.read_task(number)
        check(files, state, info, f"task {number}")
        states.append(tensors)
    return rebuild(files, state, states)


def rebuild(files: RunFolder, state: RunState, states: list[dict[str, Tensor]]) -> base.Method:
    """A new method with what was learned in tasks 1, 2, ..., in evaluation mode."""
    method = base.create(state.config, state.stream)
    state.replay(method, Cursor(len(states) + 1), begun=False)
    try:
        method.to("cpu").load_task_states(states)
    except (KeyError, RuntimeError) as error:
        raise LabError(f"{files}: the tasks do not fit method {state.config.method} ({error}).") from error
    return method.to(state.device).eval()


def stream_of_model(config: Config) -> ClassStream:
    """The classes of a finished model; blank images where the data set is not there: it can be shown others."""
    try:
        return from_config(config.data)
    except LabError:
        return cost.blank_stream(config.data.tasks, cost.shape_of(config.data))


def load_model(file: Path, state: RunState) -> None:
    """Makes a fresh state that of the finished run whose last model and record `export_model` wrote."""
    tensors, _, record = read_model(file)
    tasks = len(state.stream)
    state.method = rebuild(RunFolder(None), state, [{}] * (tasks - 1) + [tensors])
    state.position, state.record, state.model_file = _at_the_end(record, tasks), record, file


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
