"""Runs followed in TensorBoard, Weights & Biases or trackio: one viewer of a run, three places that its numbers go to.

Nothing leaves this machine unless that is asked for: wandb is offline unless ``WANDB_MODE`` says otherwise, trackio is
local unless its own variables (``TRACKIO_SPACE_ID``) name another place.
"""

import functools
import io
import json
import os
import secrets
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.labelling import GROUPS
from dne_lab.core.errors import LabError, brief, unknown
from dne_lab.core.files import make_folder, write_text
from dne_lab.core.schema import read_json
from dne_lab.models.expandable import ExpandableViT
from dne_lab.training.run import Run

if TYPE_CHECKING:
    from PIL.Image import Image

PROJECT = "dne-lab"  # of wandb and trackio; WANDB_PROJECT and TRACKIO_PROJECT name another one
IMAGES = 64  # test images whose attention is sorted after each task
FOLDER = "track"  # of a run folder

# Where numbers go -----------------------------------------------------------------------------------------------------


class Place(Protocol):
    """One run in a program that shows it. ``name`` tells it from others there, also when it is gone on with."""

    name: str

    def numbers(self, step: int, values: dict[str, float]) -> None:
        """Values by name at a step."""

    def picture(self, step: int, name: str, image: "Image") -> None:
        """An image at a step."""

    def flush(self) -> None:
        """What was given is kept, whatever becomes of this process."""

    def close(self) -> None:
        """No more is to come."""


class _TensorBoard:
    """An event file in ``folder``, which TensorBoard finds below any folder that it is pointed at."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.name, self.writer = name, SummaryWriter(str(folder))
        self.writer.add_text("configuration", f"```json\n{json.dumps(settings, indent=1)}\n```")

    def numbers(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, image: "Image") -> None:
        self.writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """A run of wandb; offline it lies in ``folder``, from where ``wandb sync`` sends it."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        import wandb

        make_folder(folder)
        self.name, self.image = name, wandb.Image
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), id=name, name=name, resume="allow", config=settings,
            dir=str(folder.parent), mode=os.environ.get("WANDB_MODE", "offline"), reinit="create_new",
            settings=wandb.Settings(console="off", quiet=True),
        )  # fmt: skip
        self.run.define_metric("*", step_metric="epoch")  # wandb's own steps cannot go back where a run does

    def numbers(self, step: int, values: dict[str, float]) -> None:
        self.run.log({"epoch": step, **values})

    def picture(self, step: int, name: str, image: "Image") -> None:
        self.run.log({"epoch": step, name: self.image(image)})

    def flush(self) -> None:
        """wandb's own process writes what it was given."""

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    """A run of trackio's database, which ``trackio show`` serves."""

    def __init__(self, folder: Path, name: str, settings: dict[str, Any]) -> None:
        import trackio

        self.name, self.image = name, trackio.Image
        self.run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", PROJECT), name=name, resume="allow", config=settings, embed=False
        )

    def numbers(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def picture(self, step: int, name: str, image: "Image") -> None:
        self.run.log({name: self.image(image)}, step=step)

    def flush(self) -> None:
        """trackio's own thread writes what it was given."""

    def close(self) -> None:
        self.run.finish()


PLACES: dict[str, Callable[[Path, str, dict[str, Any]], Place]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}

# What is told ---------------------------------------------------------------------------------------------------------


def of_epoch(row: dict[str, Any]) -> dict[str, float]:
    """What a row of `Run.curves` tells: every loss, their sum, the learning rate, the task."""
    losses = {n: float(v) for n, v in row.items() if n not in ("task", "stage", "epoch", "lr") and v is not None}
    told = {f"loss/{name}": value for name, value in losses.items()} | {"loss/total": sum(losses.values())}
    return told | {"learning rate": float(row["lr"]), "task": float(row["task"])}


def of_task(run: Run, task: int) -> dict[str, float]:
    """Accuracies in percent after a task: over the classes seen, on those of each task, of further predictions."""
    record = run.record
    told = {"accuracy/seen": record.seen_accuracy[task - 1]}
    told |= {f"accuracy/task {number}": value for number, value in enumerate(record.accuracy[task - 1], start=1)}
    told |= {f"accuracy/seen, {name}": o["seen_accuracy"][task - 1] for name, o in record.other_predictions.items()}
    told["accuracy/average over tasks so far"] = sum(record.seen_accuracy[:task]) / task
    return told


def gates(run: Run) -> dict[str, float]:
    """How much position there is in each layer's spatial attention of the newest expert: the gate of GPSA, mean over
    heads, from 0 (content alone) to 1. Empty without such gates."""
    if not isinstance(run.model, ExpandableViT) or not run.model.experts:
        return {}
    newest, number = run.model.experts[-1], len(run.model.experts)
    found = {layer: block.attention.gate for layer, block in enumerate(newest.blocks)}
    return {
        f"gate/expert {number}, layer {layer}": float(torch.sigmoid(gate.detach()).mean())
        for layer, gate in found.items()
        if gate is not None
    }


def attention(run: Run, images: int = IMAGES) -> dict[str, float]:
    """Shares in percent of the later experts' attention by group (`attention_groups`); empty before there are two."""
    if not isinstance(run.model, ExpandableViT) or len(run.model.experts) < 2:
        return {}
    found = attention_groups(run.model, run.stream.test_images(images), replicates=0, progress=False)
    shares = {label: found.share(label).value for label in GROUPS}
    return {f"attention/{label} %": float(value) for label, value in shares.items() if np.isfinite(value)}


def picture(run: Run) -> "Image | None":
    """The accuracy on each task after each task; None without matplotlib."""
    if find_spec("matplotlib") is None:
        return None
    from PIL import Image

    from dne_lab.plots.accuracy import accuracy_matrix

    with Image.open(io.BytesIO(accuracy_matrix(run.record).image("png"))) as drawn:
        return drawn.convert("RGB")


# The viewer -----------------------------------------------------------------------------------------------------------


class Tracker:
    """A viewer of a run (`Run.viewers`) that tells tensorboard, wandb or trackio how it goes.

    After every epoch: losses, learning rate, gates. After every task: accuracies, attention shares, a figure. The step
    is the epoch of the whole run. What was told is kept in ``<folder>/NAME.json``, so that a run that is gone on with
    tells nothing twice. When the program fails (a full disk, no connection) the run goes on without it, with a warning.

    Args:
        name: one of `PLACES`.
        folder: where files go; default: ``track`` in the run's folder.

    Raises:
        LabError: another name; the program is not installed here.
    """

    def __init__(self, name: str, folder: str | Path | None = None) -> None:
        check(name)
        self.name, self.folder = name, None if folder is None else Path(folder)
        self.place: Place | None = None
        self.rows = self.tasks = 0  # what was told: rows of the curves, tasks
        self.ended = False

    def __call__(self, run: Run) -> None:
        """Tells what is new."""
        if self.ended or not run.processes.first:
            return
        try:
            self._tell(run)
            if run.finished:
                self.close()
        except Exception as error:  # of another program: the run that it shows goes on
            self.ended = True
            warnings.warn(f"{self.name} has failed, and follows this run no more: {_first_line(error)}", stacklevel=2)

    def close(self) -> None:
        """Ends the run there; the next process that trains it goes on with it."""
        place, self.place, self.ended = self.place, None, True
        if place is not None:
            place.close()

    def _tell(self, run: Run) -> None:
        home = self.folder or (None if run.folder is None else run.folder / FOLDER)
        if home is None:
            raise LabError("this run is kept in memory only: give the tracker a folder.")
        done, rows = len(run.record.seen_accuracy), run.curves
        if self.place is None:
            self.place = self._open(home, run)
        if len(rows) <= self.rows and done <= self.tasks:
            return
        for number, row in enumerate(rows[self.rows :], start=self.rows + 1):
            told = of_epoch(row) | (gates(run) if number == len(rows) else {})
            self.place.numbers(number, told)
        for task in range(self.tasks + 1, done + 1):
            step, last = sum(row["task"] <= task for row in rows), task == done
            self.place.numbers(step, of_task(run, task) | (attention(run) if last else {}))
            if last and (image := picture(run)) is not None:
                self.place.picture(step, "accuracy on each task", image)
        self.rows, self.tasks = max(self.rows, len(rows)), max(self.tasks, done)
        self.place.flush()
        self._keep(home)

    def _open(self, home: Path, run: Run) -> Place:
        file = home / f"{self.name}.json"
        known: dict[str, Any] = {}
        if file.is_file():
            tree = read_json(file)
            known = tree if isinstance(tree, dict) else {}
        told = [known.get(name, 0) for name in ("rows", "tasks")]
        if not all(isinstance(one, int) and one >= 0 for one in told):
            raise LabError(f"{file} is damaged: rows and tasks are {brief(told)}. Move it away to tell all again.")
        self.rows, self.tasks = told
        for place in (home, home / self.name):
            if place.is_symlink():
                raise LabError(f"{place} is a link: nothing is written where it leads. Move it away.")
        make_folder(home)
        title = run.record.id if run.folder is None else run.folder.name
        name = str(known.get("name") or f"{title[:100]}-{secrets.token_hex(2)}")
        return PLACES[self.name](home / self.name, name, run.config.identity())

    def _keep(self, home: Path) -> None:
        assert self.place is not None
        told = {"name": self.place.name, "rows": self.rows, "tasks": self.tasks}
        write_text(home / f"{self.name}.json", json.dumps(told) + "\n")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__


def check(name: str) -> None:
    """Raises a `LabError` for a program that is not known, or not installed here."""
    if name not in PLACES:
        raise unknown("tracker", name, PLACES)
    spec = find_spec(name)
    if spec is None or spec.origin is None:  # a folder of that name, such as wandb makes, is no program
        raise LabError(f"{name} is not installed here: pip install {name}, or all three: pip install 'dne-lab[track]'.")


def makers(names: str | None) -> Sequence[Callable[[], Tracker]]:
    """What makes the viewers of a run, of ``--track tensorboard,wandb``; one for each run, in whatever process."""
    chosen = list(dict.fromkeys(name.strip() for name in (names or "").split(",") if name.strip()))
    if names is not None and not chosen:
        raise LabError(f"--track {names!r} names nothing: give one or more of {', '.join(PLACES)}.")
    for name in chosen:
        check(name)
    return [functools.partial(Tracker, name) for name in chosen]


def track(run: Run, name: str = "tensorboard", folder: str | Path | None = None) -> Tracker:
    """Follows a run in tensorboard, wandb or trackio from here on: ``lab.track(run, "tensorboard")`` before training.

    Args:
        folder: where files go; default: ``track`` in the run's folder.

    Returns:
        The viewer, for ``close()`` where a run is not trained to its end.

    Raises:
        LabError: an unknown name; the program is not installed; a run in memory without a folder.
    """
    if folder is None and run.folder is None:
        raise LabError("this run is kept in memory only: say where files go, e.g. lab.track(run, folder='runs/track').")
    tracker = Tracker(name, folder)
    run.viewers.append(tracker)
    tracker(run)
    return tracker
