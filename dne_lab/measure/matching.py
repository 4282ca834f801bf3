"""Networks of equal cost: the width with which a method costs what another one does (figure 6 a and b)."""

import functools
import math
from dataclasses import fields

import torch

from dne_lab.config import Config
from dne_lab.data.stream import ClassStream
from dne_lab.errors import LabError
from dne_lab.measure import cost
from dne_lab.methods import base

COSTS = ("flops_literal", "flops_spent", "params_total")


def field_of(method: str) -> str:
    """The field that widens a method's network: channels of a residual network, heads of a transformer's first expert.

    A transformer's heads have a fixed width, so more heads are a wider network.
    """
    cls = base.find(method)
    return "options.width" if "width" in {f.name for f in fields(cls.Options)} else "network.heads"


def widened(config: Config, width: int) -> Config:
    """The configuration with that many channels, or heads in the first expert (later experts keep theirs)."""
    field = field_of(config.method)
    if field == "options.width":
        return config.with_changes({field: width})
    return config.with_changes({field: [width, *config.network.heads[1:]]})


def matched_width(config: Config, stream: ClassStream, wanted: float, by: str = "flops_literal") -> int:
    """The width whose cost after the last task is nearest to ``wanted``, at least 1 (`field_of` says of what).

    Args:
        config: the method and everything but its width.
        stream: its tasks; no image is read.
        wanted: F of one image (2 x multiply-accumulate) or a number of parameters.
        by: one of `COSTS`.

    Raises:
        LabError: an unknown cost, a wanted one that is not above 0.
    """
    if by not in COSTS or not 0 < wanted < math.inf:
        raise LabError(f"by = {by!r}, wanted = {wanted}: give one of {', '.join(COSTS)} and a number above 0.")

    @functools.cache
    def at(width: int) -> int:
        with torch.device("meta"):  # counted, not computed: the search may pass by networks of any size
            return int(cost.of_tasks(widened(config, width), stream)[-1][by])

    high = 1
    while at(high) < wanted:
        high *= 2
    low = high // 2 or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < wanted else (low, middle)
    return min((low, high), key=lambda width: abs(at(width) - wanted))
