"""One attention map as sums over its rows: masses by label, entropies, effective keys, the largest entry, distance."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dne_lab.analysis.labelling import Labelling
from dne_lab.analysis.maps import pairs_of
from dne_lab.core import chance
from dne_lab.core.errors import LabError
from dne_lab.models.attention import Axes

# Bytes of a part of a map that is brought to float64 at a time.
LARGEST = 16 * 2**20
# Sums over the rows of a head, one per image: the columns of `Sums`, in this order.
BY_LABEL = ("mass", "entropy", "keys", "keys_there", "with_mass", "uniform", "connections")
BY_ROW = ("class_mass", "rows", "weight", "row_entropy", "row_keys", "largest", "log_connections", "row_connections",
          "uniform_entry", "distance", "uniform_distance")  # fmt: skip


def columns(labels: int) -> int:
    """Length of a statistics vector."""
    return len(BY_LABEL) * labels + len(BY_ROW)


class Sums(NamedTuple):
    """Sums over the rows (query patches) of a head; the last axis of every tensor is as long as there are labels.

    With m_l the mass of a row in label l (class-token keys apart), w = 1 - class mass, n_l the connections of label l
    and n all patch connections of that row, K all keys:

    ``mass`` m_l; ``entropy`` -sum p log p of p = a / m_l within the label, ``keys`` its exponential and ``keys_there``
    n_l, all three over the rows with mass there, whose number is ``with_mass``; ``uniform`` w n_l / n; ``connections``
    w n_l; and for a whole row ``class_mass``, ``rows`` 1, ``weight`` w, ``row_entropy`` over all keys, ``row_keys`` its
    exponential, ``largest`` entry, ``log_connections`` log K, ``row_connections`` K, ``uniform_entry`` 1 / K,
    ``distance`` sum of a times patches of distance, ``uniform_distance`` w times the mean distance (both NaN for class
    tokens, which are nowhere).
    """

    by_label: dict[str, Tensor]
    by_row: dict[str, Tensor]

    @staticmethod
    def of(vector: Tensor) -> "Sums":
        """Names for the parts of (..., columns)."""
        labels = (vector.shape[-1] - len(BY_ROW)) // len(BY_LABEL)
        parts = vector.split([labels] * len(BY_LABEL) + [1] * len(BY_ROW), -1)
        named = dict(zip((*BY_LABEL, *BY_ROW), parts, strict=True))
        return Sums({n: named[n] for n in BY_LABEL}, {n: named[n].squeeze(-1) for n in BY_ROW})


class Plan(NamedTuple):
    """What the axes alone say of a map: everything but its values. Q = query heads x query patches, K keys."""

    counted: Tensor  # (p,) bool: the rows that count
    weights: Tensor  # (Q, K, L + 2) float64: one-hot labels, the class-token keys, distance in patches
    connections: Tensor  # (Q, L): connections of a row by label
    mean_distance: Tensor  # (Q,)
    keys: Tensor  # (Q, 1): connections of a row, class tokens too
    labels: int

    @property
    def bytes(self) -> int:
        """Memory of the tensors."""
        return sum(t.nbytes for t in self if isinstance(t, Tensor))


def plan(axes: Axes, shape: tuple[int, ...], labelling: Labelling) -> Plan | None:
    """The plan of a map of ``shape``, or None if no row of it counts (class tokens only)."""
    names = axes.layout.split()
    pairs = pairs_of(axes, shape)
    inner = tuple(shape[1:])
    places = labelling.places(pairs, inner)
    rows, columns_off = pairs.offsets()
    distance = np.where(pairs.key_patch < 0, 0.0, np.hypot(rows, columns_off))
    distance = np.where(pairs.query_patch < 0, np.nan, distance)
    query_patch = np.broadcast_to(pairs.query_patch, inner)
    # every map as (h, p, keys)
    order = [names.index(n) - 1 for n in ("h", "p") if n in names]
    order += [i for i in range(len(inner)) if i not in order]
    heads, patches = shape[names.index("h")], shape[names.index("p")] if "p" in names else 1

    def flat(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, inner).transpose(order).reshape(heads, patches, -1)  # (h, p, keys)

    token_rows = flat(query_patch)[0, :, 0] < 0
    counted = token_rows if labelling.class_queries else ~token_rows
    if not counted.any():
        return None
    labels = len(labelling.labels)
    place = torch.from_numpy(flat(places)[:, counted].copy()).flatten(0, 1)  # (h x kept rows, keys)
    one_hot = torch.zeros((*place.shape, labels + 2), dtype=torch.float64)
    one_hot.scatter_(-1, place.unsqueeze(-1), 1.0)
    one_hot[..., -1] = torch.from_numpy(flat(distance)[:, counted].copy()).flatten(0, 1)  # (h x kept rows, keys)
    there = torch.from_numpy(flat(~pairs.masked(axes.masked))[:, counted].copy()).flatten(0, 1)  # (h x kept rows, keys)
    one_hot[~there] = 0.0
    count = one_hot[..., :labels].sum(1)
    mean_distance = one_hot[..., -1].sum(1) / count.sum(1).clamp(min=1)
    keys = there.sum(1, keepdim=True).to(torch.float64)
    return Plan(torch.from_numpy(counted.copy()), one_hot, count, mean_distance, keys, labels)


def sums_of(attention: Tensor, axes: Axes, plan: Plan) -> Iterator[Tensor]:
    """The statistics of a map, some images at a time: (b, h, columns) float64 on the CPU, summed over rows.

    Args:
        attention: (b, ...) as ``axes.layout`` says, on any device.
    """
    names = axes.layout.split()
    front = [names.index("b"), names.index("h"), *([names.index("p")] if "p" in names else [])]
    order = [*front, *(i for i in range(len(names)) if i not in front)]
    step = max(1, LARGEST // (8 * attention[0].numel()))
    for few in attention.split(step):
        a = few.permute(order)  # (b, h[, p], ...)
        a = a.flatten(3) if "p" in names else a.flatten(2).unsqueeze(2)  # (b, h, p, keys)
        if not bool(plan.counted.all()):
            a = a[:, :, plan.counted.to(a.device)]
        yield _reduce(a.to("cpu", torch.float64), plan)


def per_patch(attention: Tensor, axes: Axes, plan: Plan) -> Tensor:
    """Masses by label summed over images but not over rows: (h, kept rows, L) float64."""
    names = axes.layout.split()
    front = [names.index("h"), *([names.index("p")] if "p" in names else [])]
    total = attention.to("cpu", torch.float64).sum(0)
    inner = [i - 1 for i in front]
    a = total.permute([*inner, *(i for i in range(total.dim()) if i not in inner)])  # (h[, p], ...)
    a = a.flatten(2) if "p" in names else a.flatten(1).unsqueeze(1)  # (h, p, keys)
    a = a[:, plan.counted]
    # (h x p, 1, keys) times (h x p, keys, L) -> (h, p, L)
    return torch.bmm(a.flatten(0, 1).unsqueeze(1), plan.weights[..., : plan.labels]).view(*a.shape[:2], plan.labels)


def _reduce(a: Tensor, plan: Plan) -> Tensor:
    """(b, h, p, K) float64 -> (b, h, columns)."""
    images, heads, patches, keys = a.shape
    rows = a.reshape(images, heads * patches, keys).transpose(0, 1)  # (Q, b, K): one product per row over all images
    found = torch.bmm(rows, plan.weights)
    mass, class_mass, distance = found[..., : plan.labels], found[..., -2], found[..., -1]
    inside = -torch.bmm(torch.xlogy(rows, rows), plan.weights[..., : plan.labels + 1])  # sum of -a log a by label
    there = mass > 0
    entropy = torch.where(there, mass.log() + inside[..., :-1] / mass, 0.0)
    weight = 1 - class_mass
    share = weight.unsqueeze(-1)
    whole = inside.sum(-1)
    count = plan.connections.unsqueeze(1)
    every = plan.keys.expand_as(weight)
    by_label = [
        mass,
        entropy,
        torch.where(there, entropy.exp(), 0.0),
        torch.where(there, count, 0.0),
        there.to(torch.float64),
        share * count / count.sum(-1, keepdim=True).clamp(min=1),
        share * count,
    ]
    by_row = [
        class_mass,
        torch.ones_like(weight),
        weight,
        whole,
        whole.exp(),
        rows.amax(-1),
        every.log(),
        every,
        1 / every,
        distance,
        weight * plan.mean_distance.unsqueeze(1),
    ]
    vector = torch.cat([*by_label, torch.stack(by_row, -1)], -1)  # (Q, b, columns)
    return vector.view(heads, patches, images, -1).sum(1).transpose(0, 1)


# Streaming sums of attention statistics over images, with bootstrap replicates, in memory that does not grow.

REPLICATES = 200
PLANS = 64 * 2**20  # bytes of plans that are kept between batches
SPREAD = ("row_entropy", "log_connections", "row_keys", "row_connections")
Head = tuple[str, int, int, int]  # kind, layer, expert, head
Expert = tuple[str, int, int]


class Accumulator:
    """Sums over images of the statistics of `sums_of`, and Poisson-bootstrap replicates of them for every expert.

    Memory depends on the network and the labelling, not on the number of images, unless ``by_image``. All sums are
    float64.

    Args:
        labelling: what keys are called.
        replicates: bootstrap replicates; an image's weight in each is Poisson(1), a function of its number alone.
        by_patch: also keep masses by label for each query patch.
        by_image: also keep for each image how spread out its rows are: 32 bytes per image, layer and expert.

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

    def add(self, attention: Tensor, axes: Axes) -> None:
        """Takes the map of one expert for the images of `begin`."""
        made = self.plan_of(axes, tuple(attention.shape))
        if made is None:
            return
        expert = axes.query_expert[0]
        where: Expert = (axes.kind, axes.layer, expert)
        self.grid = axes.grid
        start = 0
        for vectors in sums_of(attention, axes, made):  # (b, h, columns)
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
            for head, total in zip(axes.query_head, per_patch(attention, axes, made), strict=True):
                _into(self.patches, (*where, head), total)

    def plan_of(self, axes: Axes, shape: tuple[int, ...]) -> Plan | None:
        """`plan` of these maps under this labelling; those used last are remembered."""
        key = (axes.layout, axes.query_expert, axes.query_head, axes.key_expert, axes.key_head, axes.grid, axes.classes)
        key = (*key, axes.masked, *shape[1:])  # type: ignore[assignment]
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
