"""One budget for model and exemplars: an expert takes bytes that could hold images of old classes (MEMO, ICLR 2023).

A parameter takes 4 bytes (float32), an exemplar one byte a pixel and channel.
"""

import dataclasses
from collections.abc import Sequence

from dne_lab.core.config import Config, Data
from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream
from dne_lab.measure import cost
from dne_lab.measure.record import Record
from dne_lab.methods import base

PARAMETER = 4  # bytes
MB = 1e6


def image_bytes(shape: Sequence[int]) -> int:
    """Bytes of an exemplar of (C, H, W) pixels, uint8."""
    channels, height, width = shape
    return channels * height * width


def bought(parameters: float, smallest: float, shape: Sequence[int]) -> int:
    """How many exemplars the parameters beyond those of the smallest method would buy."""
    return int(PARAMETER * (parameters - smallest) // image_bytes(shape))


def exemplars(config: Config, stream: ClassStream) -> int:
    """The exemplar budget of a run: ``memory.budget``, or what ``memory.bytes`` leaves beside the finished model.

    Raises:
        LabError: ``memory.bytes`` is smaller than the model, or leaves less than one exemplar per class.
    """
    cls, total = base.find(config.method), config.memory.bytes
    if total is None or cls.joint or not cls.uses_memory:
        return config.memory.budget
    model = PARAMETER * _parameters(config, stream)
    each = image_bytes(stream.shape)
    if total < model + each * stream.classes:
        less = "is smaller than" if total < model else "leaves less than one exemplar per class beside"
        raise LabError(
            f"memory.bytes = {total:,} {less} the finished model of {config.method}, {model:,} bytes at 4 a parameter: "
            f"give at least {model + each * stream.classes:,} (an exemplar of each of {stream.classes} classes takes "
            f"{each:,})."
        )
    return (total - model) // each


def resolved(config: Config, stream: ClassStream) -> Config:
    """The configuration with the exemplar budget that its ``memory.bytes`` leaves."""
    if config.memory.bytes is None:
        return config
    return dataclasses.replace(config, memory=dataclasses.replace(config.memory, budget=exemplars(config, stream)))


def shape_of(record: Record) -> tuple[int, int, int] | None:
    """(C, H, W) of a record's images, None where it does not say."""
    try:
        return cost.shape_of(Data(name=record.dataset, size=record.config.get("data", {}).get("size")))
    except LabError:
        return None


def bytes_of(record: Record) -> tuple[int, int] | None:
    """Bytes of the finished model and of its exemplars; None where the record does not know them."""
    shape, parameters = shape_of(record), record.params.get("total")
    if shape is None or not parameters:
        return None
    stored = 0 if record.joint else int(record.memory.get("stored") or 0)
    return PARAMETER * int(parameters), stored * image_bytes(shape)


_COUNTED: dict[tuple[str, tuple[int, ...], tuple[int, int, int]], int] = {}


def _parameters(config: Config, stream: ClassStream) -> int:
    """Parameters of the finished model, counted once for each configuration."""
    plain = dataclasses.replace(config, memory=dataclasses.replace(config.memory, bytes=None))
    key = (plain.sha256, stream.tasks, stream.shape)
    if key not in _COUNTED:
        _COUNTED[key] = cost.final_parameters(plain, cost.blank_stream(stream.tasks, stream.shape))
    return _COUNTED[key]
