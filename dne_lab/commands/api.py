"""The verbs of a notebook: `start` a run, `train` one to its end, `open` one that exists."""

from pathlib import Path
from typing import Any

import torch

import dne_lab.methods  # noqa: F401  (registers the methods)
from dne_lab.commands import hub
from dne_lab.core import presets
from dne_lab.core.errors import LabError, brief
from dne_lab.core.files import file_errors_said
from dne_lab.data.stream import ClassStream
from dne_lab.methods import base
from dne_lab.training.run import Run


def usable(device: str | None) -> str | None:
    """``device`` itself if this machine has it (None: the GPU if there is one, else the CPU), or a `LabError`."""
    try:
        torch.zeros(1, device=device or "cpu").item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LabError(f"device {device!r} cannot be used ({why}). This machine has: {', '.join(found)}.") from error
    return device


def start(
    method: str,
    stream: ClassStream | None = None,
    preset: str = "",
    *,
    folder: str | Path | None = None,
    seed: int = 0,
    device: str | None = None,
    progress: bool = True,
    accept_changed_data: bool = False,
    **changes: Any,
) -> Run:
    """An untrained run; `Run.next_task` and `Run.train` train it.

    Args:
        method: ia, sta, dne, progressive, dytox, joint, finetune, replay, linear-probe, ncm, ranpac, icarl, podnet,
            der, foster, joint-resnet, finetune-resnet, replay-resnet, or one of your own.
        stream: the classes to learn; default: those that the preset names.
        preset: names separated by commas; default: the preset called as the stream's data, if there is one, and
            "digits" without a stream.
        folder: where everything is kept and from where it is resumed; default: in memory only.
        seed: of initialisation, order and augmentation.
        accept_changed_data: go on with ``folder`` where images or names of classes are others than before; the record
            says so.
        changes: configuration fields, with ``__`` for the dot: ``learn__epochs=5, network__heads=(4, 2)``.

    Raises:
        LabError: unknown names, wrong values, a preset for other data than the stream.
    """
    for what, given in (("method", method), ("preset", preset)):
        if not isinstance(given, str):
            raise LabError(f"{what} = {brief(given)}: must be text.")
    _check(stream, accept_changed_data)
    name = "digits" if stream is None else stream.name
    if not preset and name in presets.PRESETS:
        preset = name
    dotted = {name.replace("__", "."): value for name, value in changes.items()}
    base.refuse_ignored(method, dotted)
    if stream is None:
        config = base.configure(method, preset, dotted, seed=seed)
    else:
        config = base.configure(method, preset, seed=seed)
        config = base.with_changes(presets.for_stream(config, stream.config()), dotted)
    with file_errors_said():
        return Run(config, stream, folder, usable(device), progress=progress, accept_changed_data=accept_changed_data)


def train(method: str, stream: ClassStream | None = None, preset: str = "", **settings: Any) -> Run:
    """`start` and train to the end."""
    run = start(method, stream, preset, **settings)
    run.train()
    return run


def open(
    path: str | Path, stream: ClassStream | None = None, *, progress: bool = True, accept_changed_data: bool = False
) -> Run:
    """The run in a folder, in an exported archive, or the model ``hf://user/name`` on the Hub (`hub.fetch`).

    Args:
        stream: the one that it was trained with; needed for arrays in memory and for a `Source` of one's own, which no
            configuration can name, and where the images have moved.
        accept_changed_data: open it also where images or names of classes are others than those that it has learned
            from; a run that goes on says so in its record.
    """
    _check(stream, accept_changed_data)
    if isinstance(path, str) and path.startswith(hub.PREFIX):
        path = hub.fetch(path)
    with file_errors_said():
        return Run.open(path, stream, progress=progress, accept_changed_data=accept_changed_data)


def _check(stream: object, accept_changed_data: object) -> None:
    if stream is not None and not isinstance(stream, ClassStream):
        raise LabError(f"stream = {brief(stream)}: must be a stream, such as dne_lab.stream('digits') makes.")
    if not isinstance(accept_changed_data, bool):
        raise LabError(f"accept_changed_data = {brief(accept_changed_data)}: must be True or False.")
