"""All heads of a network for one image: how spread out each one's attention is, on what it lies, and its map."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dne_lab.analysis.hosts import find_network
from dne_lab.analysis.probe import evaluating, probe
from dne_lab.analysis.views import PATCHWISE, TASKWISE, points
from dne_lab.core.errors import unknown
from dne_lab.models.attention import SPATIAL, Axes
from dne_lab.models.expandable import ExpandableViT

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Head:
    """One head's attention for one image; means are over its patches.

    Attributes:
        kind, layer, expert, head: which one; ``head`` from 0 within the expert.
        grid: (rows, columns) of patches.
        maps: spatial and joint attention: (N, N) from patch to patch, all key heads together; task attention: (N, H)
            from patch to each head.
        key_expert: of each head that is read.
        spread: (N,) effective keys of each patch, the exponential of its row's entropy.
        keys: how many there are.
        groups: (N, 4) spatial and joint attention: shares of SPSH, SPDH, DPSH, DPDH in each patch's attention to
            patches; None in task attention.
        reads: share of the attention that goes to each expert.
    """

    kind: str
    layer: int
    expert: int
    head: int
    grid: tuple[int, int]
    maps: NDArray[np.float32]
    key_expert: tuple[int, ...]
    spread: NDArray[np.float64]
    keys: int
    groups: NDArray[np.float64] | None
    reads: Mapping[int, float]

    @property
    def effective(self) -> float:
        """Effective keys, the mean over patches."""
        return float(self.spread.mean())

    @property
    def same_patch(self) -> float | None:
        """Share of the attention on the query's own patch; None in task attention, which looks nowhere else."""
        return None if self.groups is None else float(self.groups[:, :2].sum(1).mean())

    @property
    def uniform(self) -> float:
        """What each entry of ``maps`` would be under uniform attention."""
        return 1 / self.maps.shape[1]

    def times_uniform(self, expert: int) -> float:
        """Attention to an expert in multiples of what its heads get by chance; 0 where it is not read."""
        chance = self.key_expert.count(expert) / len(self.key_expert)
        return self.reads.get(expert, 0.0) / chance if chance else 0.0

    @property
    def most_read(self) -> NDArray[np.int64]:
        """(N,) of task attention: the expert that gets most for each of its heads at each patch."""
        owners = np.asarray(self.key_expert)
        experts = list(dict.fromkeys(self.key_expert))
        means = np.stack([self.maps[:, owners == expert].mean(1) for expert in experts], axis=1)
        return np.asarray(experts)[means.argmax(1)]


def heads_of_image(model: ExpandableViT, image: Tensor) -> list[Head]:
    """Every head over patches and over experts for one image (C, H, W) uint8, by layer, expert and head, by one pass.

    Raises:
        LabError: see `dne_lab.analysis.probe.probe`.
    """
    network = find_network(model)
    kinds = points(network, (*PATCHWISE, *TASKWISE))
    layers = {layer for experts in kinds.values() for found in experts.values() for layer in found}
    found: list[Head] = []

    def read(attention: Tensor, axes: Axes) -> None:
        rows = attention[0].double()
        rows = rows if axes.layout.startswith("b h p") else rows.transpose(0, 1)  # (h, p, ...)
        rows = rows[:, axes.classes :].cpu()
        spread = torch.special.entr(rows.flatten(2)).sum(-1).exp().numpy()  # (h, n)
        keys = rows[0, 0].numel()
        for place, (expert, head) in enumerate(zip(axes.query_expert, axes.query_head, strict=True)):
            owners, one, groups = axes.key_expert, rows[place], None
            if axes.kind == SPATIAL:
                owners, one = (expert,), one.unsqueeze(1)  # (n, 1, keys)
            by_head = one if axes.kind in TASKWISE else one.sum(-1)  # (n, key heads)
            mean = by_head.mean(0).numpy()
            shares = {number: float(mean[np.asarray(owners) == number].sum()) for number in dict.fromkeys(owners)}
            if axes.kind in PATCHWISE:
                one = one[..., axes.classes :]  # (n, key heads, n)
                pairs = zip(axes.key_expert, axes.key_head, strict=True)
                own = 0 if axes.kind == SPATIAL else list(pairs).index((expert, head))
                groups = _groups(one.numpy(), own)
                one = one.sum(1)  # (n, n)
            maps = one.numpy().astype(np.float32)
            where = axes.kind, axes.layer, expert, head, axes.grid
            found.append(Head(*where, maps, owners, spread[place], keys, groups, shares))

    with evaluating(network) as device, probe(network, list(kinds), layers, keep=False, read=read):
        network(image[None].to(device))
    return sorted(found, key=lambda one: (one.layer, one.expert, one.head))


def _groups(rows: NDArray[np.float64], own: int) -> NDArray[np.float64]:
    """(n, 4) shares of the four groups in (n, key heads, n) attention to patches; ``own``: the query's head."""
    patch = np.arange(len(rows))
    same = rows[patch, :, patch]  # (n, key heads): attention to the query's own patch
    total = rows.sum(2)  # (n, key heads)
    both, one, other = same[:, own], total[:, own], same.sum(1) - same[:, own]
    parts = [both, other, one - both, total.sum(1) - one - other]
    return np.stack(parts, axis=1) / np.maximum(total.sum(1, keepdims=True), 1e-300)


IN_ORDER, ENTROPY, SAME_PATCH, OTHERS = "by layer and head", "lowest entropy", "most same patch", "reads others most"


def orders(heads: Sequence[Head]) -> dict[str, Callable[[Head], float]]:
    """By what heads can be sorted, the smallest first: names and keys. Only orders that tell these heads apart."""
    found: dict[str, Callable[[Head], float]] = {ENTROPY: lambda one: np.log(one.effective) / np.log(max(one.keys, 2))}
    if any(one.same_patch is not None for one in heads):
        found[SAME_PATCH] = lambda one: -(one.same_patch or 0.0)
    experts = sorted({expert for one in heads for expert in one.reads})
    if any(len(one.reads) > 1 for one in heads):
        found[OTHERS] = lambda one: one.times_uniform(one.expert)
        found |= {f"reads expert {number} most": _reading(number) for number in experts}
    return found


def _reading(expert: int) -> Callable[[Head], float]:
    return lambda one: -one.times_uniform(expert)


def ordered(heads: Sequence[Head], order: str) -> list[Head]:
    """The heads in an order of `orders`, or `IN_ORDER`.

    Raises:
        LabError: another name.
    """
    if order == IN_ORDER:
        return list(heads)
    known = orders(heads)
    if order not in known:
        raise unknown("order of heads", order, [IN_ORDER, *known])
    return sorted(heads, key=known[order])


def table(heads: Sequence[Head]) -> "pd.DataFrame":
    """A row for each head: kind, layer, expert, head, effective keys, keys, same patch % and what it is under uniform
    attention, and the share of each expert that is read, percent."""
    import pandas as pd

    experts = sorted({expert for one in heads for expert in one.reads})
    rows = []
    for one in heads:
        same = np.nan if one.same_patch is None else 100 * one.same_patch
        rows.append(
            {"kind": one.kind, "layer": one.layer, "expert": one.expert, "head": one.head}
            | {"effective keys": one.effective, "keys": one.keys, "same patch %": same}
            | {"uniform same patch %": np.nan if one.same_patch is None else 100 * one.uniform}
            | {f"reads expert {number} %": 100 * one.reads.get(number, 0.0) for number in experts}
        )
    return pd.DataFrame(rows)
