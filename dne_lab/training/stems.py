"""What a stage learned that many runs begin with, trained once: kept beside the run folders, found again by what it
depends on.

The convolutional stem is learned by joint training, replay and DyTox as by the methods that grow, from the same images
with the same chance; so the first run of a folder of runs trains it and the others read it, bit for bit what they would
have trained.
"""

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dne_lab.core.config import Config
from dne_lab.data.stream import ClassStream
from dne_lab.methods.base import Stage
from dne_lab.training import run_folder
from dne_lab.training.distributed import Processes
from dne_lab.training.state import RunState

FOLDER, KIND = "stems", "stem"


def identity(config: Config, stream: ClassStream, stage: Stage) -> dict[str, Any]:
    """Everything that the result of a stage on the base classes depends on, JSON-able."""
    base = range(config.data.tasks[0])
    index = stream.index("train", base)
    labels = torch.stack([index, stream.labels("train", index)]).numpy().astype("<i8").tobytes()
    return {
        "seed": config.seed,
        "precision": config.precision,
        "images": {
            "name": stream.name,
            "shape": list(stream.shape),
            "mean": list(stream.mean or ()),
            "std": list(stream.std or ()),
        },
        "classes": list(stream.order[: len(base)]),
        "labels": hashlib.sha256(labels).hexdigest()[:16],
        "recipe": json.loads(json.dumps(dataclasses.asdict(stage.recipe))),
        "threads": torch.get_num_threads(),
    }


def file_of(folder: Path | None, state: RunState, stage: Stage) -> tuple[Path, dict[str, Any]] | None:
    """The file that may hold what this stage of the run in ``folder`` learns, and what that depends on; None for a run
    in memory."""
    if folder is None:
        return None
    depends = identity(state.config, state.stream, stage)
    name = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()[:12]
    return folder.parent / FOLDER / f"{stage.shares.strip('.')}-{name}.safetensors", depends


def keep(folder: Path | None, state: RunState, stage: Stage) -> None:
    """Writes what a stage has just learned, with its curve and seconds."""
    place = file_of(folder, state, stage)
    if place is None or not Processes().first:
        return
    file, depends = place
    position = state.position
    tensors = {name: value for name, value in state.method.state_dict().items() if name.startswith(stage.shares)}
    curves = [row for row in position.curves if row["task"] == position.cursor.task and row["stage"] == stage.name]
    seconds = position.timing.get("by_purpose", {}).get("learning", 0.0)
    run_folder.save(file, tensors, {"kind": KIND, "depends": depends, "curves": curves, "seconds": seconds})


def take(folder: Path | None, state: RunState, stage: Stage) -> bool:
    """Gives a run, which has just entered the stage, what another one has learned in it; False if there is none."""
    found = Processes().from_first(lambda: _read(folder, state, stage))
    if found is None:
        return False
    tensors, info = found
    with state.changing():
        state.method.load_state_dict(tensors, strict=False)
        state.position.curves.extend(info["curves"])
        state.clock.share(state.position, stage.name, info["seconds"])
    return True


def _read(folder: Path | None, state: RunState, stage: Stage) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What another run has learned in the stage, and all else in its file."""
    place = file_of(folder, state, stage)
    if place is None or not place[0].exists():
        return None
    tensors, info = run_folder.load(place[0])
    wanted = {name for name in state.method.state_dict() if name.startswith(stage.shares)}
    if info.get("kind") != KIND or info.get("depends") != place[1] or set(tensors) != wanted:
        return None  # of another version: learned anew, and written over
    return tensors, info
