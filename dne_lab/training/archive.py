"""One portable file that stands for a run: the whole of it as a zip, or its finished model alone."""

import contextlib
import errno
import io
import json
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from dne_lab.core import chance, errors
from dne_lab.core.config import Config, from_dict
from dne_lab.core.errors import LabError, reason
from dne_lab.core.files import (
    absolute,
    check_parts,
    check_regular,
    remove_leftovers,
    resolved,
    short_path,
    write_bytes,
    write_text,
)
from dne_lab.core.schema import parse
from dne_lab.data.datasets import open_source
from dne_lab.data.identity import Images, unlike
from dne_lab.measure import cost
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.models import backbone
from dne_lab.training import run_folder
from dne_lab.training.run_folder import (
    CONFIG,
    CURVES,
    DATA,
    LAST,
    PREDICTIONS,
    RECORD,
    read_config,
    read_output,
    task_file,
)

# A finished model in one safetensors file: weights, and in its header the configuration and the record.

SUFFIX, KIND = ".safetensors", "model"


def target(file: str | Path, force: bool = False) -> Path:
    """Where an export goes, or why it does not: what is there stays, unless it is an export too.

    Args:
        force: a file that is none may be replaced.

    Raises:
        LabError: a folder or device, a place in a run's folder, a file that no export wrote.
    """
    path = resolved(file)  # what a link leads to
    name = short_path(path)
    check_regular(path, "a file, such as dne.zip")
    for folder in path.parents:
        if (folder / CONFIG).is_file() and any((folder / name).exists() for name in (RECORD, LAST, task_file(1))):
            raise LabError(f"{name} lies in a run's folder, {short_path(folder)}, whose files stay. Name another.")
    if path.exists() and not force and not _exported(path):
        raise LabError(f"{name} exists and is no export. It is untouched: give another name, or --force to replace it.")
    remove_leftovers(path.parent, path.name)
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
    allowed = {CONFIG, RECORD, CURVES, PREDICTIONS, LAST, DATA, *(task_file(number) for number in range(1, 1000))}
    return [name for name in packed.namelist() if name not in allowed]


def models_in(folder: Path) -> list[Path]:
    """The models in a folder, in order; what else is called so is passed over, with a warning. A damaged one stays
    among them, and whoever reads it says so."""
    found = []
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        if other := _no_model(file):
            warnings.warn(f"{short_path(file)} {other}: it is passed over.", stacklevel=2)
        else:
            found.append(file)
    return found


def _no_model(file: Path) -> str:
    """What a file is that is no model of ours, read from its first bytes alone; "" for a model and a damaged one."""
    if file.exists() and not file.is_file():  # a pipe would be waited for without an end
        return "is no regular file"
    try:
        with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
            header = (opened.metadata() or {}).get(run_folder.FORMAT, "")
        if not header:
            return "was not written by this program"
        info = parse(header.encode())
    except (safetensors.SafetensorError, OSError, UnicodeError, ValueError):
        return ""
    return "is a part of a run, not a model" if isinstance(info, dict) and info.get("kind") != KIND else ""


def export_model(folder: Path, file: Path, half: bool = False, force: bool = False, every_task: bool = False) -> Path:
    """Writes the finished model of a run folder, without predictions, curves and exemplars.

    Args:
        half: keep weights as float16, for half the size; they are computed with in float32 all the same.
        force: see `target`.
        every_task: keep the models after every task (`Run.model_at`), not the last one alone.

    Raises:
        LabError: no run folder, a run that is not finished; ``file`` cannot be written, or is not ours to replace.
    """
    folder, goes = absolute(folder), target(file, force)
    config = read_config(folder)  # whether it is a run folder
    record = Record.from_json(folder / RECORD) if (folder / RECORD).exists() else None
    if record is None or not record.finished:
        raise LabError(
            f"{folder} is not finished: only a finished run has a model to export. Train on, or write a .zip."
        )
    _check_tasks(folder, config, record)
    _tell_other_data(folder, config, record)
    tensors: dict[str, Tensor] = {}
    tasks = len(record.seen_accuracy)
    for number in range(1, tasks + 1):
        learned = run_folder.load(folder / task_file(number))[0]
        tensors |= {f"{_prefix(number)}{name}": t for name, t in learned.items()} if every_task else learned
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    info: dict[str, Any] = {"kind": KIND, "record": record.to_dict()}  # which holds the configuration
    info["shape"] = run_folder.load(folder / task_file(tasks))[1].get("stream", {}).get("shape")
    images = run_folder.RunFolder(folder).read_images()
    if images is not None and max(record.class_order) < len(images.classes):
        info["class_names"] = [images.classes[number] for number in record.class_order]  # by rank
    run_folder.save(goes, tensors, info | ({"tasks": tasks} if every_task else {}))
    return file


def _prefix(number: int) -> str:
    """Before the names of what task ``number`` has learned, where the file holds the models after every task."""
    return f"task_{number:02d}/"


@dataclass(frozen=True)
class ModelFile:
    """What `export_model` wrote.

    Attributes:
        states: weights in float32 as each task left them, for `Method.load_task_states`; one state, that of the
            finished model, where the file holds no other.
        config, record: of the run.
        class_names: by rank; empty where the file has none.
        shape: (C, H, W) of the images; None where the file does not say.
    """

    states: list[dict[str, Tensor]]
    config: Config
    record: Record
    class_names: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None


def read_model(file: Path) -> ModelFile:
    """Weights, configuration and record of what `export_model` wrote.

    Raises:
        LabError: missing, damaged, or another kind of safetensors file.
    """
    if not file.exists():
        raise LabError(
            f"{short_path(file)} does not exist. The repository has finished models in figures/checkpoints; "
            f"`dne-lab export RUN {file.name}` writes one of a run of your own."
        )
    tensors, info = run_folder.load(file, lambda info: _check_size(file, info))
    full = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
    record = Record.from_tree(info.get("record"), file)
    states = [full]
    if "tasks" in info:
        if info["tasks"] != len(record.seen_accuracy):
            raise LabError(f"{file} is damaged: {info['tasks']!r} tasks, and its record {len(record.seen_accuracy)}.")
        prefixes = [_prefix(number) for number in range(1, info["tasks"] + 1)]
        states = [{name.removeprefix(p): t for name, t in full.items() if name.startswith(p)} for p in prefixes]
    try:
        names, shape = _class_names(info, record, file), _shape(info, file)
        return ModelFile(states, from_dict(record.config), record, names, shape)
    except LabError as error:
        raise LabError(f"{file} is damaged: {error}") from error


LOOSE, SPARE = 3, 2**26  # times the bytes that a model's parameters take, and bytes beside them


def _check_size(file: Path, info: dict[str, Any]) -> None:
    """Raises a `LabError` for a file that is no model, or far larger than its record says that the model is."""
    if info.get("kind") != KIND:
        raise LabError(f"{file} is a part of a run, not a model: open its folder, {file.parent}.")
    record = Record.from_tree(info.get("record"), file)
    count, models = record.params.get("total"), len(record.tasks) if "tasks" in info else 1
    size = file.stat().st_size
    if isinstance(count, int) and size > most_bytes(record, models):
        raise LabError(f"{file} is damaged: {size:,} bytes for {models} models of {count:,} parameters at most.")


def most_bytes(record: Record, models: int = 1) -> int:
    """The bytes of the largest file that holds ``models`` models of a record."""
    return SPARE + LOOSE * 4 * models * int(record.params.get("total") or 0)


def _shape(info: dict[str, Any], file: Path) -> tuple[int, int, int] | None:
    """That in the header of a model's file; older ones have none."""
    given = info.get("shape")
    if given is None:
        return None
    if not (isinstance(given, list) and len(given) == 3 and all(isinstance(n, int) and 0 < n <= 10_000 for n in given)):
        raise LabError(f"{file} is damaged: shape = {errors.brief(given)}.")
    return given[0], given[1], given[2]


def _class_names(info: dict[str, Any], record: Record, file: Path) -> tuple[str, ...]:
    """Those in the header of a model's file; older ones have none."""
    names = info.get("class_names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise LabError(f"{file} is damaged: its class names are no list of texts.")
    if names and len(names) != len(record.class_order):
        raise LabError(f"{file} is damaged: {len(names)} class names, and its record {len(record.class_order)}.")
    return tuple(names)


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
    names = [CONFIG, RECORD, CURVES, PREDICTIONS] + ([DATA] if (folder / DATA).is_file() else [])
    names += [task_file(number) for number in range(1, len(record.seen_accuracy) + 1)]
    names += [] if record.finished else [LAST]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        advice = run_folder.mending(folder / missing[-1], record)  # a task's file, where one is missing too
        raise LabError(f"{short_path(folder)} is incomplete: {', '.join(missing)} missing. {advice}")
    _check_tasks(folder, config, record)
    for name in {DATA, LAST} & set(names):
        run_folder.load(folder / name)  # damage does not travel
    _tell_other_data(folder, config, record)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name in names:
            output = name in (CURVES, PREDICTIONS)
            content = read_output(folder / name, record) if output else (folder / name).read_bytes()
            if name == CONFIG and config.data.path is not None:  # an archive may lie anywhere
                content = (json.dumps(config.to_dict(), indent=1) + "\n").encode()
            packed.writestr(zipfile.ZipInfo(name, MOMENT), content)
    write_bytes(goes, buffer.getvalue())
    return file


def lacks(run: str | Path) -> str:
    """What an export of a run folder does not hold though it is needed: the weights of a backbone; "" for nothing."""
    folder = absolute(run)
    sha256 = Record.from_json(folder / RECORD).network.get("backbone_sha256")
    return backbone.beside(read_config(folder).network, sha256)


def _check_tasks(folder: Path, config: Config, record: Record) -> None:
    """Raises a `LabError` where a task's file is damaged, another task's, of another run, or not what was written."""
    shapes: list[Shapes] | None = None
    for number in range(1, len(record.seen_accuracy) + 1):
        file = folder / task_file(number)
        if not file.is_file():
            raise LabError(f"{short_path(folder)} is incomplete: {file.name} missing. Bring back a copy of it.")
        tensors, info = run_folder.load(file)
        known = record.task_sha256[number - 1] if number <= len(record.task_sha256) else ""
        if not known and shapes is None:
            shapes = _shapes(config, record, info)
        other = "" if known or not shapes else _other_shape(tensors, shapes[number - 1])
        wrong = [
            what
            for what, is_so in (
                (f"it holds task {errors.brief(info.get('task'))}", info.get("task", number) != number),
                ("it is of another configuration", info.get("config_sha256", config.sha256) != config.sha256),
                (f"its weights are not those of {config.method}: {other}", bool(other)),
                ("it is not the file that the run wrote", bool(known) and info[run_folder.DIGEST] != known),
            )
            if is_so
        ]
        if wrong:
            why = ", ".join(wrong)
            raise LabError(f"{short_path(file)} is not exported: {why}. It is untouched: bring back a copy.")


def _tell_other_data(folder: Path, config: Config, record: Record) -> None:
    """A warning where the images of a run have changed since it learned; nothing where they are not here."""
    known = run_folder.RunFolder(folder).read_images()
    try:
        source = open_source(config.data.name, path=config.data.path, size=config.data.size)
        changed = [] if known is None or not record.data_sha256 else unlike(known, Images.of(source, known))
    except LabError:
        return
    if changed:
        text = f"{short_path(folder)} has learned from other data than there is now: {'; '.join(changed)}. "
        warnings.warn(text + "It is exported as it was, and knows its own images.", stacklevel=3)


Shapes = dict[str, str]  # shape and type of a tensor, in words


def _shapes(config: Config, record: Record, info: dict[str, Any]) -> list[Shapes]:
    """What the state of each task holds; nothing for a method or images that are not known here.

    Only runs of before there were digests need it.
    """
    try:
        stream = cost.blank_stream(tuple(record.tasks), tuple(info["stream"]["shape"]))
        method = base.create(config, stream)
    except (LabError, KeyError, TypeError, ValueError):
        return []
    found = []
    with chance.seeded(0, "shapes"):
        for task in stream:
            for stage in method.stages(task):
                method.enter(task, stage)
            found.append({name: _form(tensor) for name, tensor in method.task_state(task).items()})
    return found


def _other_shape(tensors: dict[str, Tensor], wanted: Shapes) -> str:
    """The first tensor that is missing or has another shape, in words; "" where all fit."""
    for name, form in wanted.items():
        if name not in tensors:
            return f"{name} is missing"
        if (there := _form(tensors[name])) != form:
            return f"{name} is {there}, not {form}"
    return ""


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {tensor.dtype}"


def unpack(file: Path) -> tempfile.TemporaryDirectory[str]:
    """Unpacks an archive into a folder that lives as long as what is returned.

    Raises:
        LabError: no such file, damaged, or no archive of a run (also when it holds anything but a run's files).
    """
    if not file.is_file():
        what = "is no regular file" if file.exists() else "does not exist"
        raise LabError(f"{short_path(file)} {what}. Name a run folder, or a file that `dne-lab export` wrote.")
    try:
        folder: tempfile.TemporaryDirectory[str] = tempfile.TemporaryDirectory(prefix="dne-lab-")
    except OSError as error:
        advice = f"{error.strerror or error}. Set TMPDIR to a folder with room."
        raise LabError(f"{file} cannot be unpacked, there is no folder for temporary files: {advice}") from error
    try:
        if file.suffix == SUFFIX:
            model = read_model(file)
            write_text(Path(folder.name) / CONFIG, json.dumps(model.config.to_dict(), indent=1) + "\n")
            model.record.write(Path(folder.name) / RECORD)
            return folder
        with zipfile.ZipFile(file) as packed:
            strange = _strange(packed)
            if strange or CONFIG not in packed.namelist():
                what = f"it holds {strange[0]!r}" if strange else f"it has no {CONFIG}"
                raise LabError(f"{file} is no archive of a run, or damaged: {what}.")
            check_parts(file, packed.infolist())
            packed.extractall(folder.name)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError, ValueError) as error:
        folder.cleanup()  # RuntimeError: encrypted; NotImplementedError: packed in a way that zipfile does not know
        if isinstance(error, LabError):
            raise
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise LabError(
                f"{file} cannot be unpacked below {tempfile.gettempdir()}: {error.strerror}. Set TMPDIR to a folder "
                "with room."
            ) from error
        raise LabError(f"{file} is no archive of a run, or damaged ({reason(error)}). Export the run again.") from error
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
    with unpack(path) as folder, within(path, folder):
        yield Path(folder)


@contextlib.contextmanager
def within(file: Path, folder: str) -> Iterator[None]:
    """What is wrong with a file of the folder that an archive was unpacked into is said of the archive."""
    try:
        yield
    except LabError as error:
        said = str(error)
        for place in {folder, str(resolved(folder))}:
            said = said.replace(f"{place}/", f"{short_path(file)}: ").replace(place, short_path(file))
        if said == str(error):
            raise
        raise LabError(said) from error
