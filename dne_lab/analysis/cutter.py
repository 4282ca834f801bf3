"""The three ways of taking entries out of attention maps as they pass."""

from collections.abc import Iterable

import torch
from torch import Tensor

from dne_lab.analysis.maps import Key
from dne_lab.analysis.removal import Removal
from dne_lab.errors import unknown
from dne_lab.models.attention import TASK1, TASK2, Axes

MEAN, ZERO, MASK = HOW = ("mean", "zero", "mask")
QUESTIONS = {
    MEAN: "does the attention matter? what depends on the image goes, the connection stays",
    ZERO: "does the connection matter? its entries become 0",
    MASK: "does the rest do? the entries go, and what is left of each row is scaled up to 1",
}


def warning(how: str, kinds: Iterable[str]) -> str:
    """What to beware of in a way of removing from these kinds of attention; "" if nothing."""
    if how != MASK or not {TASK1, TASK2} & {*kinds}:
        return ""
    return (
        "mask multiplies what is left of task attention: its rows are scaled by lambda, about the number of heads, and "
        "dividing a row by a small rest makes activations that the network never saw. mean asks whether the attention "
        "matters, zero whether the connection does."
    )


class Means:
    """The mean of attention maps over images, in the intact network: what "mean" puts in place of entries.

    Args:
        keys: (kind, layer, expert) of the maps.
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = frozenset(keys)
        self._sums: dict[Key, Tensor] = {}
        self._images = 0

    @property
    def place(self) -> tuple[list[str], list[int], list[int]]:
        """Kinds, layers and experts to listen to."""
        kinds, layers, experts = (sorted({*column}) for column in zip(*self.keys, strict=True))
        return list(map(str, kinds)), list(map(int, layers)), list(map(int, experts))

    def read(self, part: Tensor, axes: Axes) -> None:
        """Adds a map; the ``read`` of a `probe`."""
        key = axes.kind, axes.layer, axes.query_expert[0]
        if key in self.keys:
            seen = part.sum(0, dtype=torch.float64)
            self._sums[key] = self._sums[key] + seen if key in self._sums else seen

    def counted(self, images: int) -> None:
        """How many images the maps given to `read` were of."""
        self._images += images

    def of(self, key: Key) -> Tensor:
        """The mean map, without the image axis."""
        return self._sums[key] / self._images


class Cutter:
    """Takes a `Removal` out of maps as they pass, and counts what went: the ``replace`` of a `probe`.

    Args:
        how: "mean": each entry becomes its mean over images; "zero": 0; "mask": zero, then the row is divided by what
            is left of it (a row with nothing left stays zero).
        means: of the maps touched, for "mean".

    Attributes: ``on``; while it is False maps pass as they are, by the same way. ``empty``: rows with nothing left.
    """

    def __init__(self, removal: Removal, how: str, means: Means | None = None) -> None:
        if how not in HOW:
            raise unknown("how", how, HOW)
        self.removal, self.how, self.means, self.on, self.empty = removal, how, means, True, 0
        self._mass, self._rows = 0.0, 0
        self._masks = dict(removal.masks)

    @property
    def mass(self) -> float:
        """Percent of a touched row's attention that was on the removed entries, averaged over rows and images."""
        return 100 * self._mass / self._rows if self._rows else float("nan")

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
            assert self.means is not None
            return torch.where(mask, self.means.of(key).to(part), part)
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
