"""A finished model in one safetensors file: weights, and in its header the configuration and the record."""

from pathlib import Path

import torch
from torch import Tensor

from dne_lab import config as configuration
from dne_lab.config import Config
from dne_lab.errors import LabError
from dne_lab.measure.record import Record
from dne_lab.training import checkpoint
from dne_lab.training.folder import RECORD, read_config, task_file

SUFFIX, KIND = ".safetensors", "model"


def export_model(folder: Path, file: Path, half: bool = False) -> Path:
    """Writes the finished model of a run folder, without predictions, curves and the models of earlier tasks.

    Args:
        half: keep weights as float16, for half the size; they are computed with in float32 all the same.

    Raises:
        LabError: no run folder, a run that is not finished; ``file`` cannot be written.
    """
    read_config(folder)  # whether it is a run folder
    record = Record.from_json(folder / RECORD) if (folder / RECORD).exists() else None
    if record is None or not record.finished:
        raise LabError(
            f"{folder} is not finished: only a finished run has a model to export. Train on, or write a .zip."
        )
    tensors: dict[str, Tensor] = {}
    for number in range(1, len(record.seen_accuracy) + 1):
        tensors |= checkpoint.load(folder / task_file(number))[0]
    if half:
        tensors = {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()}
    checkpoint.save(file, tensors, {"kind": KIND, "record": record.to_dict()})  # which holds the configuration
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
    tensors, info = checkpoint.load(file)
    if info.get("kind") != KIND:
        raise LabError(f"{file} is a part of a run, not a model: open its folder, {file.parent}.")
    full = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items()}
    record = Record.from_tree(info["record"], file)
    return full, configuration.from_dict(record.config), record
