"""Whose data these are: the stream of a run, and what is other about it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from dne_lab.core.config import Config, Data
from dne_lab.core.errors import LabError
from dne_lab.core.files import short_path
from dne_lab.data.datasets import open_source
from dne_lab.data.identity import Images, data_sha256, other_classes, unlike
from dne_lab.data.stream import ClassStream, from_config
from dne_lab.measure.record import Record
from dne_lab.training import archive
from dne_lab.training.run_folder import RunFolder, read_config


class OtherClasses(LabError):
    """The classes in the place of a run's images are not those that it has learned from."""


def stream_for(config: Config, stream: ClassStream | None) -> ClassStream:
    """The given stream, else the one that a configuration describes; `LabError` where it is another one."""
    made = from_config(config.data) if stream is None else stream
    if made.tasks != config.data.tasks:
        raise LabError(f"data.tasks = {config.data.tasks}, but the stream has tasks {made.tasks}.")
    if made.validation != config.data.validation:
        raise LabError(f"data.validation = {config.data.validation}, but the stream has {made.validation}.")
    return made


def stream_of_run(config: Config, place: Path) -> ClassStream:
    """The stream of the run in ``place``, as its configuration describes it.

    Raises:
        OtherClasses: classes are gone or new, which are named.
        LabError: its images are gone (says what to give), or cannot be read.
    """
    try:
        return from_config(config.data)
    except LabError as error:
        if config.data.path is not None and not Path(config.data.path).exists():
            raise LabError(
                f"{error} {short_path(place)} has learned from images there. If they have moved, name where they are: "
                "--set data.path=DIR of dne-lab run, --data DIR of dne-lab report --attention, in Python "
                f"dne_lab.open(RUN, {_call(config.data)})."
            ) from error
        known = RunFolder(place).read_images() if place.is_dir() else None
        if known is None:
            raise
        here = open_source(config.data.name, path=config.data.path, size=config.data.size).classes
        changed = other_classes(known.classes, here)
        if not changed:
            raise
        raise OtherClasses(
            f"{short_path(place)} has learned from other classes than {_place(config.data)} holds: "
            f"{'; '.join(changed)}. It is untouched. Bring back the classes that it has learned from; or, for a run "
            f"on these, give --set data.tasks=... with sizes that add up to {len(here)}, in a folder of its own."
        ) from error


def config_of(path: Path) -> Config:
    """The configuration of the run in a folder, an archive or a model."""
    if path.suffix == archive.SUFFIX:
        return archive.read_model(path).config
    with archive.unpacked(path) as folder:
        return read_config(folder)


def stream_at(path: Path, data: str) -> ClassStream:
    """The stream of the run in a folder, an archive or a model, with its images from the place ``data``."""
    config = config_of(path)
    return stream_of_run(replace(config, data=replace(config.data, path=data)), path)


def _call(data: Data) -> str:
    """What makes the stream of data that have moved, in Python."""
    words = [f"{data.name!r}", "path=DIR"] if data.name not in ("folder", "npz") else ["DIR"]
    words += [f"tasks={data.tasks}"] + ([f"size={data.size}"] if data.size is not None else [])
    words += [f"order={data.order_rule or data.order!r}"] if data.order != "identity" else []
    words += [f"validation={data.validation}"] if data.validation else []
    return f"dne_lab.stream({', '.join(words)})"


def _place(data: Data) -> str:
    return data.name if data.path is None else short_path(Path(data.path))


def place_of(stream: ClassStream) -> str:
    """Where the images of a stream are, in words."""
    return stream.name if stream.source.path is None else short_path(Path(stream.source.path))


def what_changed(files: RunFolder, stream: ClassStream, changes: dict[str, tuple[Any, Any]]) -> list[str]:
    """What is other about the data, as precisely as the run's folder knows."""
    known = files.read_images()
    changed = [] if known is None else unlike(known, Images.of(stream.source))
    return changed or [f"{field} ({there} there, {here} here)" for field, (there, here) in changes.items()]


def check_finished(folder: Path, record: Record, stream: ClassStream) -> None:
    """Raises a `LabError` if a finished run has learned from other images or classes than a stream has."""
    files = RunFolder(folder)
    known = files.read_images()
    if known is not None:
        known.remember(stream.source)
    if record.data_sha256 and record.data_sha256 != data_sha256(stream):
        changed = what_changed(files, stream, {"data": (record.data_sha256[:8], data_sha256(stream)[:8])})
        raise LabError(
            f"{files} has learned from other data than {place_of(stream)} holds: {'; '.join(changed)}. It is "
            "untouched. Give another folder (--out) for a run on these, or look at it alone: dne-lab report."
        )
