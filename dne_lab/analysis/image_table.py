"""One head at one patch over many images: where each image makes it look, and what that comes to by class."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from dne_lab.analysis import views
from dne_lab.analysis.hosts import find_network
from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.probe import evaluating, probe
from dne_lab.analysis.views import LookView, Values
from dne_lab.measure.metrics import interval

if TYPE_CHECKING:
    import pandas as pd

IN_ORDER = "in order"
ORDERS: dict[str, Callable[[LookView], float]] = {
    IN_ORDER: lambda view: 0.0,
    "fewest effective keys": lambda view: view.effective,
    "most same-patch": lambda view: -float(view.shares[[0, 1]].sum()),
    "largest attention": lambda view: -float(view.weights.max()),
}


GROUP, DISTANCE, EXPERT = WAYS = ("group", "distance", "expert")  # of sorting keys


@dataclass(frozen=True, eq=False)
class Parts:
    """The keys of one query sorted into parts.

    Attributes:
        way: one of `WAYS`.
        names: of the parts: the four groups, ``distance 0`` (rings around the query's patch), ``expert 1`` ...
        labels: (H, N) the part of each key.
    """

    way: str
    names: tuple[str, ...]
    labels: NDArray[np.int64]

    @property
    def uniform(self) -> Values:
        """The parts' shares of the keys: what they get where all keys are read alike."""
        return np.bincount(self.labels.ravel(), minlength=len(self.names)) / self.labels.size

    def shares(self, view: LookView) -> Values:
        """The parts' shares of the attention to patches."""
        mass = np.bincount(self.labels.ravel(), view.weights.ravel(), len(self.names))
        return mass / mass.sum()


def parts_of(view: LookView, way: str = GROUP) -> Parts:
    """The keys that a patch looks at, by one of `WAYS`."""
    if way == EXPERT:
        experts = list(dict.fromkeys(view.key_expert))
        owner = np.array([experts.index(expert) for expert in view.key_expert])
        return Parts(
            way, tuple(f"expert {number}" for number in experts), owner[:, None].repeat(view.weights.shape[1], 1)
        )
    if way == DISTANCE:
        rows, columns = np.divmod(np.arange(view.weights.shape[1]), view.grid[1])
        row, column = divmod(view.patch, view.grid[1])
        ring = np.maximum(abs(rows - row), abs(columns - column))
        names = tuple(f"distance {number}" for number in range(int(ring.max()) + 1))
        return Parts(way, names, ring[None].repeat(len(view.weights), 0))
    return Parts(GROUP, GROUPS, view.groups)


@dataclass(frozen=True)
class Chosen:
    """Which attention is looked at: of one expert at one point; ``head`` and ``patch`` from 0."""

    kind: str
    layer: int
    expert: int
    head: int
    patch: int


def over_images(model: nn.Module, images: Tensor, chosen: Chosen) -> list[LookView]:
    """Where a patch looks in each image, (B, C, H, W) uint8; one pass for all.

    Raises:
        LabError: see `dne_lab.analysis.probe.probe` and `dne_lab.analysis.views.look_view`.
    """
    network = find_network(model)
    with evaluating(network) as device, probe(network, chosen.kind, chosen.layer, chosen.expert) as maps:
        network(images.to(device))
    found = maps.get()
    return [views.look_view(found, chosen.patch, chosen.head, image) for image in range(len(images))]


def sorted_images(found: Sequence[LookView], order: str) -> list[int]:
    """Places of the images, the first ones first, by one of `ORDERS`."""
    return sorted(range(len(found)), key=lambda place: ORDERS[order](found[place]))


def image_table(found: Sequence[LookView], labels: Sequence[str], way: str = GROUP) -> "pd.DataFrame":
    """A row for each image: image, label, % of attention to each part of the keys, effective keys, largest weight."""
    import pandas as pd

    rows = [
        {"image": place, "label": label}
        | {f"{name} %": share for name, share in zip(parts.names, 100 * parts.shares(view), strict=True)}
        | {"effective keys": view.effective, "largest": float(view.weights.max())}
        for place, (view, label) in enumerate(zip(found, labels, strict=True))
        for parts in [parts_of(view, way)]
    ]
    return pd.DataFrame(rows)


def by_label(table: "pd.DataFrame") -> "pd.DataFrame":
    """A row for each label of an `image_table`: images, mean and half width of the 95% interval over them (NaN for one
    image)."""
    import pandas as pd

    columns = [str(name) for name in table if name not in ("image", "label", "largest")]
    rows = []
    for label, mine in table.groupby("label", sort=False):
        row: dict[str, Any] = {"label": label, "images": len(mine)}
        for name in columns:
            values = mine[name].dropna().tolist()
            mean, half = interval(values) if values else (np.nan, None)
            row |= {name: mean, f"{name} +-": np.nan if half is None else half}
        rows.append(row)
    return pd.DataFrame(rows)
