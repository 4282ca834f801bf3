"""A run folder: which file holds what, and whose folder it is."""

import csv
import dataclasses
import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from dne_lab.core.config import Config, differences, from_dict
from dne_lab.core.errors import LabError, brief, reason
from dne_lab.core.files import absolute, check_parts, check_regular, resolved, short_path, write_bytes, write_text
from dne_lab.core.schema import LARGEST, parse, read_json
from dne_lab.core.sealing import sha256
from dne_lab.data.identity import Images
from dne_lab.data.stream import ClassStream
from dne_lab.measure.record import Record
from dne_lab.training.machine import refuse_unreadable

# A checkpoint is one safetensors file whose header carries the rest as JSON. Nothing is unpickled.

FORMAT, VERSION = "dne-lab", 1
# Last in the header's JSON: the digest of all else; files of older versions have none. JSON files: `core.sealing`.
DIGEST = "sha256"
SEALED = re.compile(r', "sha256": "([0-9a-f]{64})"\}$')


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 of a text, and of the names, types, shapes and values of tensors on the CPU."""
    found = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # a buffer
    return found.hexdigest()


def _text(info: dict[str, Any]) -> str:
    return json.dumps({"version": VERSION} | {k: v for k, v in info.items() if k != DIGEST}, allow_nan=False)


def save(path: Path, tensors: dict[str, Tensor], info: dict[str, Any]) -> str:
    """Writes tensors and JSON-able ``info`` as one file, by one rename; gives their digest, which is in it too.

    Raises:
        WriteError: the file cannot be written; an older one is untouched.
    """
    # Copies: safetensors refuses tensors that share memory.
    form = torch.contiguous_format
    whole = {name: t.detach().to("cpu", copy=True, memory_format=form) for name, t in tensors.items()}
    text = _text(info)
    own = digest(text, whole)
    sealed = f'{text[:-1]}, "{DIGEST}": "{own}"}}'  # in one text: safetensors writes several in any order
    write_bytes(path, safetensors.torch.save(whole, metadata={FORMAT: sealed}))
    return own


def load(
    path: Path, first: Callable[[dict[str, Any]], None] = lambda info: None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `save` wrote, on the CPU; the digest is in the second part, as "sha256" ("" in older files).

    Args:
        first: given the second part before anything of the first is read, which may be large; raises what is wrong.

    Raises:
        LabError: missing, truncated, damaged, foreign, or from another version. The file is untouched.
    """
    advice = _advice(path)
    check_regular(path, "a checkpoint")
    refuse_unreadable(path)
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            info = parse(metadata[FORMAT].encode()) if FORMAT in metadata else None
            if not isinstance(info, dict):
                raise LabError(f"{path} was not written by this program. {advice}")
            if info.get("version") != VERSION:
                raise LabError(
                    f"{path} has version {brief(info.get('version'))}, this program reads version {VERSION}. "
                    "The file is untouched. Use the program that wrote it, or give another folder."
                )
            first(info)
            # Copies: the tensors of an open file are a mapping of it, and would change when it does.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        seal = SEALED.search(metadata[FORMAT])
        text = metadata[FORMAT][: seal.start()] + "}" if seal else ""
        if DIGEST in info and (not seal or digest(text, tensors) != seal[1]):
            raise LabError(f"{path} is damaged: its content is not what was written (SHA-256). {advice}")
        return tensors, {DIGEST: ""} | info
    except LabError:
        raise
    except FileNotFoundError:  # safetensors says so too of what may not be read
        why = "cannot be read: permission denied. Make it readable" if path.exists() else "does not exist"
        raise LabError(f"{path} {why}.") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (safetensors.SafetensorError, UnicodeError, ValueError) as error:
        raise LabError(f"{path} is truncated or damaged, or no checkpoint ({reason(error)}). {advice}") from error


def _advice(path: Path) -> str:
    """What to do where a file that `save` wrote is damaged."""
    again = ", or train the run again in another folder (--out)"
    if path.name == LAST:
        again = ", or move it away: a finished run is read from its other files, another one begins again"
    return f"The file is untouched. Bring back a copy of it{again if (path.parent / CONFIG).exists() else ''}."


CONFIG, RECORD, CURVES = "config.json", "record.json", "curves.csv"
PREDICTIONS, LAST, DATA = "predictions.npz", "last.safetensors", "data.safetensors"
Tensors = dict[str, Tensor]
Arrays = dict[str, np.ndarray]
COLUMNS = ("task", "stage", "epoch", "lr")


def task_file(number: int) -> str:
    """The name of a task's file: task_01.safetensors."""
    return f"task_{number:02d}.safetensors"


def read_config(folder: Path) -> Config:
    """The configuration that a run folder belongs to; `LabError` where there is none or it is damaged."""
    path = folder / CONFIG
    try:
        if not folder.is_dir():
            raise FileNotFoundError
        tree = read_json(path)
    except FileNotFoundError:
        what = f"is no run folder: it has no {CONFIG}" if folder.exists() else "does not exist"
        beside = absolute(folder).parent
        there = sorted(file.parent.name for file in beside.glob(f"*/{CONFIG}"))[:6] if beside.is_dir() else []
        advice = f"In {short_path(beside)} there are {', '.join(there)}" if there else "Name the folder of a run"
        raise LabError(f"{short_path(folder)} {what}. {advice}.") from None
    try:
        config = from_dict(tree)
    except LabError as error:
        raise LabError(f"{path} is damaged or of another version: {error} The folder is untouched.") from error
    if config.data.path is None:
        return config
    # A relative place begins at the run folder, so that both can be moved; older runs meant the working directory.
    given = Path(config.data.path).expanduser()
    places = [resolved(absolute(folder) / given), absolute(given)]
    found = next((place for place in places if place.exists()), places[0])
    return dataclasses.replace(config, data=dataclasses.replace(config.data, path=str(found)))


def _placed(config: Config, stream: ClassStream | None, folder: Path) -> dict[str, Any]:
    """What config.json says: the place of the data as seen from the folder, if it was given as a relative one."""
    tree = config.to_dict()
    source = None if stream is None else stream.source
    if source is not None and source.path is not None and source.given is not None:
        relative = not Path(source.given).expanduser().is_absolute()
        tree["data"]["path"] = os.path.relpath(source.path, resolved(folder)) if relative else source.path
    return tree


def record_in(folder: Path) -> Record | None:
    """What a run has written so far, if it has written anything."""
    return Record.from_json(folder / RECORD) if (folder / RECORD).exists() else None


def finished(folder: Path) -> Record | None:
    """The record of a finished run."""
    record = record_in(folder)
    return record if record is not None and record.finished else None


class RunFolder:
    """The files of one run. Without a path nothing is written, and the states of tasks are kept in memory."""

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else absolute(path)
        self._tasks: dict[int, tuple[Tensors, dict[str, Any]]] = {}
        self._place: tuple[int, int] | None = None  # of the folder that was claimed or read: device and number
        self._seen = self._stamp()

    def __str__(self) -> str:
        return "memory" if self.path is None else short_path(self.path)

    # Whether it still is what it was ---------------------------------------------------------------------------------

    def _stamp(self) -> list[tuple[int, int, int]]:
        """Tells two states of checkpoint and record apart without reading them."""
        files = [] if self.path is None else [self.path / LAST, self.path / RECORD]
        return [(s.st_ino, s.st_mtime_ns, s.st_size) for s in (file.stat() for file in files if file.exists())]

    def look(self) -> None:
        """What is there now is known."""
        self._seen = self._stamp()
        if self._place is None and self.path is not None and (self.path / CONFIG).exists():
            self._claimed()

    @property
    def behind(self) -> bool:
        """Whether somebody else has written checkpoint or record since this object last read or wrote them."""
        return self._stamp() != self._seen

    def check_not_behind(self) -> None:
        """Raises a `LabError` where somebody else has gone on with the run."""
        if self.behind:
            raise LabError(
                f"{self} has gone on elsewhere since this run read it. Nothing was written: open it again with "
                "dne_lab.open."
            )

    def check_still_there(self) -> None:
        """Raises a `LabError` where the folder that was claimed or read is gone, or another one is in its place."""
        if self.path is None or self._place is None:
            return
        try:
            found = self.path.stat()
        except OSError:
            found = None
        if found is None or (found.st_dev, found.st_ino) != self._place:
            raise LabError(
                f"{self} is not there any more: it was renamed, moved or removed since this run was read from it. "
                "Nothing was written. Bring it back and go on here, or open it where it is now: it goes on from its "
                "last checkpoint."
            )

    def check(self, config: Config) -> None:
        """Raises a `LabError` if the folder holds another run, or files that are no run's. Writes nothing."""
        if self.path is None or not self.path.exists():
            return
        if not self.path.is_dir():
            raise LabError(f"{self} is a file; a run needs a folder. Give another one.")
        if (self.path / CONFIG).exists():
            there = read_config(self.path)
            if there.sha256 != config.sha256:
                raise LabError(
                    f"{self} belongs to another configuration: {'; '.join(_unlike(config, there))}. "
                    "It is untouched. Give another folder, or the configuration of this one."
                )
            return
        ours = [name for name in (RECORD, CURVES, PREDICTIONS, LAST, task_file(1)) if (self.path / name).exists()]
        if ours:
            raise LabError(
                f"{self} holds {ours[0]} but no {CONFIG}, so it is not known which run it belongs to. "
                "It is untouched. Give another folder."
            )

    def claim(self, config: Config, stream: ClassStream | None = None) -> None:
        """Makes the folder this configuration's; ``stream`` says how the place of the data was given, also of data that
        have moved since.

        Raises:
            LabError: it is another one's; the place of the data is a name that JSON cannot hold.
        """
        self.check(config)
        if self.path is None:
            return
        if not (self.path / CONFIG).exists() or (stream is not None and self._data_moved(stream)):
            tree = _placed(config, stream, self.path)
            try:
                str(tree["data"]["path"]).encode()
            except UnicodeError:
                place = brief(tree["data"]["path"])
                raise LabError(
                    f"data.path = {place}: is no UTF-8, so that the run could not be opened again. Rename that folder, "
                    "or give a link to it (ln -s)."
                ) from None
            write_text(self.path / CONFIG, json.dumps(tree, indent=1) + "\n")
        self._claimed()

    def _data_moved(self, stream: ClassStream) -> bool:
        """Whether there is nothing where the folder says that its images are, and the stream has them from a place."""
        assert self.path is not None
        there = read_config(self.path).data.path
        return there is not None and not Path(there).exists() and stream.source.path is not None

    def _claimed(self) -> None:
        """From now on this folder is the run's, and no other one in its place."""
        assert self.path is not None
        there = self.path.stat()
        self._place = (there.st_dev, there.st_ino)

    # Checkpoint and tasks ------------------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """Whether the file exists."""
        return self.path is not None and (self.path / name).exists()

    def write_last(self, tensors: Tensors, info: dict[str, Any]) -> None:
        """Replaces the checkpoint."""
        if self.path is not None:
            self.check_still_there()
            save(self.path / LAST, tensors, info)
            self.look()

    def read_last(self) -> tuple[Tensors, dict[str, Any]]:
        """The checkpoint."""
        assert self.path is not None
        return load(self.path / LAST)

    def write_task(self, number: int, tensors: Tensors, info: dict[str, Any]) -> str:
        """Keeps what a finished task has learned; gives its digest."""
        if self.path is not None:
            self.check_still_there()
            return save(self.path / task_file(number), tensors, info)
        copies = {name: t.detach().cpu().clone() for name, t in tensors.items()}
        own = digest(_text(info), copies)
        self._tasks[number] = (copies, info | {DIGEST: own})
        return own

    def read_task(self, number: int) -> tuple[Tensors, dict[str, Any]]:
        """What a finished task had learned, and its exemplars."""
        if self.path is not None:
            tensors, info = load(self.path / task_file(number))
            if info.get("task", number) != number:
                other = brief(info["task"])
                raise LabError(f"{self.path / task_file(number)} holds task {other}, not {number}.")
            return tensors, info
        if number not in self._tasks:
            raise LabError(f"task {number} has not been finished in this session.")
        return self._tasks[number]

    # What others read ----------------------------------------------------------------------------------------------

    def write_outputs(self, record: Record, curves: list[dict[str, Any]], predictions: Arrays) -> None:
        """Predictions, curves and, last, the record; all follow from the checkpoint. Files that are right are left."""
        if self.path is None:
            return
        self.check_still_there()
        for name, data in ((PREDICTIONS, predictions_file(predictions)), (CURVES, curves_file(curves))):
            path = self.path / name
            if not path.is_file() or path.read_bytes() != data:
                write_bytes(path, data)
        record.write(self.path / RECORD)
        self.look()

    def write_images(self, images: Images) -> None:
        """Keeps by what the run's images are known."""
        if self.path is not None:
            self.check_still_there()
            save(self.path / DATA, *images.parts())

    def read_images(self) -> Images | None:
        """What `write_images` wrote; None where there is nothing (older runs), or it is damaged."""
        if self.path is None or not (self.path / DATA).is_file():
            return None
        try:
            return Images.from_parts(*load(self.path / DATA))
        except (LabError, KeyError, TypeError, AttributeError, ValueError):
            return None  # it only saves reading images again, and says which ones are others

    def read_outputs(self) -> tuple[Record, list[dict[str, Any]], Arrays]:
        """What `write_outputs` wrote."""
        assert self.path is not None
        record = Record.from_json(self.path / RECORD)
        arrays = read_predictions(self.path / PREDICTIONS, record)
        lines = read_output(self.path / CURVES, record)
        try:
            rows = [_typed(row) for row in csv.DictReader(io.StringIO(lines.decode("utf-8-sig"), newline=""))]
        except (ValueError, KeyError, TypeError, csv.Error) as error:
            raise LabError(f"{self.path / CURVES} is damaged ({reason(error)}).") from error
        return record, rows, arrays


def _unlike(here: Config, there: Config) -> list[str]:
    return differences(here.identity(), there.identity())


def predictions_file(predictions: Arrays) -> bytes:
    """The content of predictions.npz; the same arrays make the same bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **predictions)  # type: ignore[arg-type]
    return buffer.getvalue()


def read_output(path: Path, record: Record) -> bytes:
    """The content of predictions.npz or curves.csv beside a record.

    Raises:
        LabError: missing; of a finished run also: not what it wrote. One that goes on may have been stopped between
            these files and its record, and writes all of them again from its checkpoint.
    """
    check_regular(path)
    try:
        if (size := path.stat().st_size) > LARGEST:
            raise LabError(f"{short_path(path)} has {size:,} bytes: not what a run writes. {mending(path, record)}")
        data = path.read_bytes()
    except OSError as error:
        raise LabError(f"{short_path(path)} is missing or cannot be read: {error.strerror or error}.") from error
    known = record.curves_sha256 if path.name == CURVES else record.predictions_sha256
    if known and record.finished and sha256(data) != known:
        raise LabError(f"{short_path(path)} is damaged: not what the run wrote (SHA-256). {mending(path, record)}")
    return data


def mending(path: Path, record: Record) -> str:
    """What to do where a file of a run is missing or damaged."""
    if not record.finished:
        return "Run the same command again first."
    if path.name in (CURVES, PREDICTIONS) and path.with_name(LAST).is_file():
        return f"To mend it, move {RECORD} away and run the same command again: it writes both."
    return "Bring back a copy of it."


def read_predictions(path: Path, record: Record) -> Arrays:
    """The arrays of the predictions.npz beside a record, by their names (`evaluation.key`).

    Raises:
        LabError: missing or damaged.
    """
    packed = read_output(path, record)
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as parts:
            check_parts(path, parts.infolist())
        with np.load(io.BytesIO(packed), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except LabError:
        raise
    except Exception as error:  # whatever zipfile, zlib and numpy meet: headers are read by Python's own parser
        raise LabError(f"{short_path(path)} is damaged ({reason(error)}).") from error
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.ndim != 1 or array.dtype.kind not in "iu":
            raise LabError(f"{short_path(path)} is damaged: {brief(name)} is no list of class numbers.")
    return arrays


def curves_file(curves: list[dict[str, Any]]) -> bytes:
    """The content of curves.csv: a row per epoch; a loss that a stage has not is left blank."""
    names = list(COLUMNS) + list(dict.fromkeys(name for row in curves for name in row if name not in COLUMNS))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(curves)
    return text.getvalue().encode()


def _typed(row: dict[str, str]) -> dict[str, Any]:
    fixed: dict[str, Any] = {"task": int(row["task"]), "stage": row["stage"], "epoch": int(row["epoch"])}
    return fixed | {name: float(value) for name, value in row.items() if name not in fixed and value != ""}
