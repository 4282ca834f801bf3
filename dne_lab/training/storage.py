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
from typing import TYPE_CHECKING, Any, TypeVar

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
from dne_lab.training.evaluation import BEFORE, key
from dne_lab.training.run_folder import CONFIG, CURVES, LAST, PREDICTIONS, RECORD, differences, read_config, task_file
from dne_lab.training.state import Cursor, State
from dne_lab.training.step import Optimisation

if TYPE_CHECKING:
    from dne_lab.training.run import Handle


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


H = TypeVar("H", bound="Handle")
METHOD, OPTIMIZER, PREDICTED = "method/", "optimizer/", "predictions/"


def save(run: "Handle") -> None:
    """Writes the checkpoint, and the outputs that follow from it."""
    if run.folder is None or not run.processes.first:
        return
    tensors = {METHOD + name: value for name, value in run.method.state_dict().items()}
    if run.optimisation is not None and run.state.optimizer_of is not None:
        check_weights(run)
        tensors |= {OPTIMIZER + name: value for name, value in run.optimisation.state().items()}
    tensors |= {PREDICTED + name: torch.from_numpy(array) for name, array in run.predictions.items()}
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
            key(number, name): tensors[PREDICTED + key(number, name)].numpy()
            for number, names in enumerate(run.state.predicted, start=1)
            for name in ("labels", *names)
        }
        early = key(run.state.untuned, BEFORE)
        if run.state.untuned > len(run.state.predicted):
            run.predictions[early] = tensors[PREDICTED + early].numpy()
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
    if path.suffix == SUFFIX:
        return _open_model(cls, path, stream, settings)
    unpacked = unpack(path)
    folder = Path(unpacked.name)
    run = cls(read_config(folder), stream, folder, **settings)
    run.unpacked = unpacked  # the folder lives as long as the run
    return run


def _open_model(cls: type[H], file: Path, stream: ClassStream | None, settings: dict[str, Any]) -> H:
    """A finished run that has its last model and its record; the data set need not be there."""
    tensors, config, record = read_model(file)
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
