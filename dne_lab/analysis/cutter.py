"""The three ways of taking entries out of attention maps as they pass."""

import torch
from torch import Tensor

from dne_lab.analysis.maps import Key
from dne_lab.analysis.removal import Removal
from dne_lab.errors import unknown
from dne_lab.models.attention import Axes

ZERO, MASK, MEAN = HOW = ("zero", "mask", "mean")


class Cutter:
    """Takes a `Removal` out of maps as they pass, and counts what went: the ``replace`` of a `probe`.

    Args:
        how: "zero": the entries; "mask": zero, then the row is divided by what is left of it (a row with nothing left
            stays zero); "mean": what `learn` has seen of each entry, averaged over images.

    Attributes: ``on``; while it is False maps pass as they are, by the same way. ``empty``: rows with nothing left.
    """

    def __init__(self, removal: Removal, how: str) -> None:
        if how not in HOW:
            raise unknown("how", how, HOW)
        self.removal, self.how, self.on, self.empty = removal, how, True, 0
        self._mass, self._rows, self._images = 0.0, 0, 0
        self._sums: dict[Key, Tensor] = {}
        self._masks = dict(removal.masks)

    @property
    def mass(self) -> float:
        """Percent of a touched row's attention that was on the removed entries, averaged over rows and images."""
        return 100 * self._mass / self._rows if self._rows else float("nan")

    def learn(self, part: Tensor, axes: Axes) -> None:
        """A map of the intact network, for "mean"; the ``read`` of a `probe`."""
        key = axes.kind, axes.layer, axes.query_expert[0]
        if key in self._masks:
            seen = part[:, self._mask(key, part)].sum(0, dtype=torch.float64)
            self._sums[key] = self._sums[key] + seen if key in self._sums else seen

    def learned(self, images: int) -> None:
        """How many images the maps given to `learn` were of."""
        self._images += images

    def __call__(self, part: Tensor, axes: Axes) -> Tensor | None:
        key = axes.kind, axes.layer, axes.query_expert[0]
        if key not in self._masks:
            return None
        if not self.on:
            return part
        mask = self._mask(key, part)
        keys = (-2, -1) if axes.layout.endswith("kh kp") else (-1,)
        touched = mask.any(-1) if len(keys) == 1 else mask.flatten(-2).any(-1)
        self._mass += float(part[:, mask].sum(dtype=torch.float64))
        self._rows += int(touched.sum()) * len(part)
        if self.how == MEAN:
            new = part.clone()
            new[:, mask] = (self._sums[key] / self._images).to(part)
            return new
        left = part.masked_fill(mask, 0)
        if self.how == ZERO:
            return left
        total = left.sum(keys, keepdim=True)
        self.empty += int(((total <= 0).view(len(part), *touched.shape) & touched).sum())
        # an untouched row stays as it is, to the last bit
        row = touched.view(touched.shape + (1,) * len(keys))
        return torch.where(row, left / total.masked_fill(total <= 0, 1), part)

    def _mask(self, key: Key, part: Tensor) -> Tensor:
        self._masks[key] = self._masks[key].to(part.device)
        return self._masks[key]
