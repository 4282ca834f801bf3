"""Streaming sums of attention statistics over images, with bootstrap replicates, in memory that does not grow."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from dne_lab import chance
from dne_lab.analysis.labelling import Labelling
from dne_lab.analysis.rows import Plan, Sums, per_patch, plan, sums_of
from dne_lab.errors import LabError
from dne_lab.models.attention import Axes

REPLICATES = 200
PLANS = 64 * 2**20  # bytes of plans that are kept between batches
SPREAD = ("row_entropy", "log_connections", "row_keys", "row_connections")
Head = tuple[str, int, int, int]  # kind, layer, expert, head
Expert = tuple[str, int, int]


class Accumulator:
    """Sums over images of the statistics of `rows`, and Poisson-bootstrap replicates of them for every expert.

    Memory depends on the network and the labelling, not on the number of images, unless ``by_image``. All sums are
    float64.

    Args:
        labelling: what keys are called.
        replicates: bootstrap replicates; an image's weight in each is Poisson(1), a function of its number alone.
        by_patch: also keep masses by label for each query patch.
        by_image: also keep for each image how spread out its rows are: 32 bytes an image, layer and expert.

    Raises:
        LabError: a number of replicates that is none.
    """

    def __init__(
        self,
        labelling: Labelling,
        replicates: int = REPLICATES,
        by_patch: bool = False,
        by_image: bool = False,
    ) -> None:
        if isinstance(replicates, bool) or not hasattr(replicates, "__index__") or replicates < 0:
            raise LabError(f"replicates = {replicates!r}: must be a whole number, 0 for no intervals.")
        self.labelling, self.replicates, self.by_patch, self.by_image = labelling, replicates, by_patch, by_image
        self.sums: dict[Head, Tensor] = {}  # (columns,)
        self.drawn: dict[Expert, Tensor] = {}  # (replicates, columns)
        self.patches: dict[Head, Tensor] = {}  # (patches, labels)
        self.spread: dict[Expert, list[Tensor]] = {}  # (images of a batch, SPREAD): means over heads and rows
        self.grid = (0, 0)
        self.images = 0
        self._plans: OrderedDict[tuple[Any, ...], Plan | None] = OrderedDict()
        self._weights = torch.zeros(0, 0, dtype=torch.float64)

    def begin(self, index: Tensor) -> None:
        """The images that the next maps belong to, by number (B,)."""
        self.images += len(index)
        self._weights = poisson(index, self.replicates)

    def add(self, part: Tensor, axes: Axes) -> None:
        """Takes the map of one expert for the images of `begin`."""
        made = self._plan(axes, tuple(part.shape))
        if made is None:
            return
        expert = axes.query_expert[0]
        where: Expert = (axes.kind, axes.layer, expert)
        self.grid = axes.grid
        start = 0
        for vectors in sums_of(part, axes, made):  # (b, h, columns)
            weights = self._weights[start : start + len(vectors)]
            start += len(vectors)
            for head, total in zip(axes.query_head, vectors.sum(0), strict=True):
                _into(self.sums, (*where, head), total)
            together = vectors.sum(1)
            _into(self.drawn, where, weights.T @ together)
            if self.by_image:
                rows = Sums.of(together).by_row
                means = torch.stack([rows[name] / rows["rows"] for name in SPREAD], -1)
                self.spread.setdefault(where, []).append(means)
        if self.by_patch:
            for head, total in zip(axes.query_head, per_patch(part, axes, made), strict=True):
                _into(self.patches, (*where, head), total)

    def _plan(self, axes: Axes, shape: tuple[int, ...]) -> Plan | None:
        key = (axes.layout, axes.query_expert, axes.query_head, axes.key_expert, axes.key_head, axes.grid, axes.classes)
        key = (*key, *shape[1:])  # type: ignore[assignment]
        if key not in self._plans:
            self._plans[key] = plan(axes, shape, self.labelling)
            while len(self._plans) > 1 and sum(p.bytes for p in self._plans.values() if p is not None) > PLANS:
                self._plans.popitem(last=False)
        self._plans.move_to_end(key)
        return self._plans[key]


def _into(sums: dict[Any, Tensor], key: Any, new: Tensor) -> None:
    if key in sums:
        sums[key] += new
    else:
        sums[key] = new.clone()


def poisson(index: Tensor, replicates: int) -> Tensor:
    """(B, replicates) float64 Poisson(1) weights from a hash of the image numbers (B,)."""
    steps = torch.arange(1.0, 16.0, dtype=torch.float64).log().cumsum(0)  # log k!
    below = torch.cat([torch.zeros(1, dtype=torch.float64), -steps]).exp().cumsum(0) / torch.e  # P(X <= k)
    draws = chance.uniform(("bootstrap",), index.cpu(), replicates).to(torch.float64)
    return torch.searchsorted(below, draws, right=True).to(torch.float64)
