"""What an explorer shows, as numbers: the attention of one head of one expert, for one image."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dne_lab.analysis.hosts import Entry, ExpandableHost, find_network
from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.maps import AttentionMap
from dne_lab.analysis.probe import evaluating, probe
from dne_lab.core.errors import LabError
from dne_lab.models.attention import JOINT, SPATIAL, TASK1, TASK2, Axes
from dne_lab.models.expandable import ExpandableViT

if TYPE_CHECKING:
    import pandas as pd

Values = NDArray[np.float64]
PATCHWISE = (SPATIAL, JOINT)
TASKWISE = (TASK1, TASK2)


def entries(network: ExpandableViT) -> list[tuple[str, int, int, int]]:
    """Every (kind, layer, expert, head) for which it computes attention."""
    return ExpandableHost(network).entries


def points(model: nn.Module, kinds: tuple[str, ...]) -> dict[str, dict[int, list[int]]]:
    """Where patches attend: {kind: {expert: [layers]}}; kinds without any are left out.

    Behind class attention the last block has no patches, only the class token: it is left out too.

    Raises:
        LabError: see `dne_lab.analysis.probe.probe`.
    """
    found: dict[str, dict[int, list[int]]] = {}
    network = find_network(model)
    layers = network.network.depth - (network.network.readout == "class_attention")
    for kind, layer, expert, head in entries(network):
        if kind in kinds and head == 0 and layer < layers:
            found.setdefault(kind, {}).setdefault(expert, []).append(layer)
    return found


def of_experts(model: nn.Module) -> dict[int, tuple[str, list[int]]]:
    """Kind and layers of each expert's attention over patches."""
    found = points(model, PATCHWISE)
    return {expert: (kind, layers) for kind, experts in found.items() for expert, layers in experts.items()}


def read(model: nn.Module, image: Tensor, kind: str, layer: int, expert: int) -> AttentionMap:
    """The map of one point for one image, (C, H, W) uint8."""
    network = find_network(model)
    with evaluating(network) as device, probe(network, kind, layer, expert) as maps:
        network(image[None].to(device))
    return maps.get()


def structure(model: nn.Module, image: Tensor, kinds: tuple[str, ...]) -> dict[Entry, Values]:
    """How far the attention of every patch of one image is from uniform, by (kind, layer, expert, head).

    Args:
        model: a network that `find_network` finds.
        image: (C, H, W) uint8.
        kinds: of `PATCHWISE` or of `TASKWISE`.

    Returns:
        (N,) 1 - entropy / log(number of keys) of each patch's row: 0 is uniform, 1 is a single key.
    """
    network = find_network(model)
    layers = {layer for experts in points(network, kinds).values() for found in experts.values() for layer in found}
    found: dict[Entry, Values] = {}

    def keep(values: Tensor, axes: Axes) -> None:
        rows = values[0].double()
        rows = rows if axes.layout.startswith("b h p") else rows.transpose(0, 1)  # (h, p, ...)
        rows = rows.flatten(2)[:, axes.classes :]  # (h, n, keys)
        entropy = -torch.special.xlogy(rows, rows).sum(-1)
        far = 1 - entropy.cpu().numpy() / np.log(max(rows.shape[-1], 2))
        for place, (expert, head) in enumerate(zip(axes.query_expert, axes.query_head, strict=True)):
            found[axes.kind, axes.layer, expert, head] = far[place]

    there = [kind for kind in kinds if any(entry[0] == kind for entry in entries(network))]
    if layers and there:
        with evaluating(network) as device, probe(network, there, layers, keep=False, read=keep):
            network(image[None].to(device))
    return found


def most_structured(found: Mapping[Any, Values]) -> tuple[Any, int]:
    """The head whose patches are furthest from uniform on average, and its patch that is furthest."""
    head = max(found, key=lambda name: float(found[name].mean()))
    return head, int(found[head].argmax())


def head_names(experts: tuple[int, ...], heads: tuple[int, ...]) -> list[str]:
    """ "expert 2" for an expert's only head, "expert 1 head 3" (from 0) where it has several."""
    return [f"expert {e}" + (f" head {h}" if experts.count(e) > 1 else "") for e, h in zip(experts, heads, strict=True)]


@dataclass(frozen=True, eq=False)
class TaskView:
    """Task attention of one query head at every patch.

    Attributes:
        kind, layer, expert, head: whose queries; ``head`` from 0 within the expert.
        grid: (rows, columns) of patches.
        weights: (N, H) attention to each key head at each patch; rows sum to 1.
        key_expert, key_head: of each key head.
    """

    kind: str
    layer: int
    expert: int
    head: int
    grid: tuple[int, int]
    weights: Values
    key_expert: tuple[int, ...]
    key_head: tuple[int, ...]

    @property
    def uniform(self) -> float:
        """What each key head would get if all were read alike: 1 / H."""
        return 1 / self.weights.shape[1]

    @property
    def names(self) -> list[str]:
        """The key heads in words."""
        return head_names(self.key_expert, self.key_head)

    @property
    def experts(self) -> list[int]:
        """The experts that are read, in order."""
        return list(dict.fromkeys(self.key_expert))

    @property
    def by_expert(self) -> Values:
        """(N, experts) attention to all heads of each expert."""
        owner = np.asarray(self.key_expert)
        return np.stack([self.weights[:, owner == expert].sum(1) for expert in self.experts], axis=1)

    @property
    def most_read(self) -> NDArray[np.int64]:
        """(N,) the expert that gets most attention for each of its heads at each patch: more heads alone do not win."""
        heads = [self.key_expert.count(expert) for expert in self.experts]
        return np.asarray(self.experts)[(self.by_expert / heads).argmax(1)]

    @property
    def margin(self) -> Values:
        """(N,) by how much the expert read most is ahead of the next one, for each of its heads: 1 is twice as much."""
        heads = [self.key_expert.count(expert) for expert in self.experts]
        second, first = np.sort(self.by_expert / heads, axis=1)[:, -2:].T
        return first / np.maximum(second, np.finfo(float).tiny) - 1

    def summary(self, patch: int) -> "pd.DataFrame":
        """A row for each key head: attention at one patch, its mean and its range over all patches, uniform."""
        import pandas as pd

        return pd.DataFrame(
            {
                "key expert": self.key_expert,
                "key head": self.key_head,
                "at the patch": self.weights[patch],
                "mean": self.weights.mean(0),
                "smallest": self.weights.min(0),
                "largest": self.weights.max(0),
                "uniform": self.uniform,
            }
        )

    def frame(self) -> "pd.DataFrame":
        """A row for each patch and key head: row, column, key expert, key head, attention, uniform."""
        import pandas as pd

        patches, heads = self.weights.shape
        place = np.arange(patches).repeat(heads)
        return pd.DataFrame(
            {
                "row": place // self.grid[1],
                "column": place % self.grid[1],
                "key expert": np.tile(self.key_expert, patches),
                "key head": np.tile(self.key_head, patches),
                "attention": self.weights.ravel(),
                "uniform": self.uniform,
            }
        )


def task_view(found: AttentionMap, head: int = 0, image: int = 0) -> TaskView:
    """The view of one query head in a map of kind task1 or task2."""
    _check(found, TASKWISE, head, image)
    weights = found.numpy()[image, found.axes.classes :, head].astype(np.float64)
    axes = found.axes
    return TaskView(found.kind, found.layer, found.expert, head, axes.grid, weights, axes.key_expert, axes.key_head)


@dataclass(frozen=True, eq=False)
class LookView:
    """Where one query patch of one head looks.

    Attributes:
        kind, layer, expert, head, patch: the query; ``head`` and ``patch`` from 0.
        grid: (rows, columns) of patches.
        weights: (H, N) attention to each patch of each key head; with ``class_mass`` it sums to 1.
        class_mass: attention to class tokens (0 where the network has none among the keys).
        key_expert, key_head: of each key head.
    """

    kind: str
    layer: int
    expert: int
    head: int
    patch: int
    grid: tuple[int, int]
    weights: Values
    class_mass: float
    key_expert: tuple[int, ...]
    key_head: tuple[int, ...]

    @property
    def uniform(self) -> float:
        """What each patch key would get if all were read alike: 1 / (H N)."""
        return 1 / self.weights.size

    @property
    def total(self) -> Values:
        """(N,) attention to each patch, all key heads together."""
        return np.asarray(self.weights.sum(0), dtype=np.float64)

    @property
    def times_uniform(self) -> Values:
        """(H, N) the weights as multiples of `uniform`, which models with more or fewer keys share."""
        return self.weights / self.uniform

    @property
    def names(self) -> list[str]:
        """The key heads in words."""
        return head_names(self.key_expert, self.key_head)

    @property
    def own(self) -> int:
        """The place of the query's own head among the key heads."""
        return next(
            place
            for place, (expert, head) in enumerate(zip(self.key_expert, self.key_head, strict=True))
            if expert == self.expert and head == self.head
        )

    @property
    def groups(self) -> NDArray[np.int64]:
        """(H, N) the group of each key: 0 SPSH, 1 SPDH, 2 DPSH, 3 DPDH."""
        heads, patches = self.weights.shape
        other_head = (np.arange(heads) != self.own)[:, None]
        other_patch = (np.arange(patches) != self.patch)[None]
        return other_head + 2 * other_patch

    @property
    def shares(self) -> Values:
        """(4,) the groups' shares of the attention to patches."""
        mass = np.bincount(self.groups.ravel(), self.weights.ravel(), len(GROUPS))
        return mass / mass.sum()

    @property
    def uniform_shares(self) -> Values:
        """(4,) what they would be if all keys were read alike."""
        return np.bincount(self.groups.ravel(), minlength=len(GROUPS)) / self.groups.size

    @property
    def effective(self) -> float:
        """exp(entropy) of the attention to patches."""
        return _summary(self.weights.ravel(), float(self.weights.sum()), self.weights.size)["effective keys"]

    def frame(self) -> "pd.DataFrame":
        """The four groups and the whole row: share, uniform share, effective keys, number of keys.

        Shares are of the attention to patches; effective keys = exp(entropy) within the group. A group without
        attention has no effective number, one without keys (other heads in independent attention) has no uniform.
        """
        import pandas as pd

        total = self.weights.sum()
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(GROUPS):
            keys = self.weights[self.groups == number]
            rows.append({"group": name, **_summary(keys, total, self.weights.size)})
        rows.append({"group": "all", **_summary(self.weights.ravel(), total, self.weights.size)})
        return pd.DataFrame(rows)

    def keys(self) -> "pd.DataFrame":
        """A row for each key: key expert, key head, row, column, group, attention, uniform."""
        import pandas as pd

        heads, patches = self.weights.shape
        place = np.tile(np.arange(patches), heads)
        return pd.DataFrame(
            {
                "key expert": np.repeat(self.key_expert, patches),
                "key head": np.repeat(self.key_head, patches),
                "row": place // self.grid[1],
                "column": place % self.grid[1],
                "group": np.asarray(GROUPS)[self.groups.ravel()],
                "attention": self.weights.ravel(),
                "uniform": self.uniform,
            }
        )


def difference(first: LookView, second: LookView) -> Values:
    """(N,) attention to each patch, all key heads together, of the first minus that of the second."""
    return first.total - second.total


def look_view(found: AttentionMap, patch: int, head: int = 0, image: int = 0) -> LookView:
    """The view of one query patch and head in a map of kind spatial or joint."""
    _check(found, PATCHWISE, head, image)
    axes = found.axes
    if not 0 <= patch < axes.grid[0] * axes.grid[1]:
        raise LabError(f"patch {patch}: this image has patches 0 to {axes.grid[0] * axes.grid[1] - 1}.")
    row = found.numpy()[image, head, patch + axes.classes].astype(np.float64)
    owners = axes.query_expert[head : head + 1], axes.query_head[head : head + 1]
    if found.kind == JOINT:
        owners = axes.key_expert, axes.key_head
    row = row.reshape(len(owners[0]), -1)  # (key heads, n)
    place = found.kind, found.layer, found.expert, axes.query_head[head], patch, axes.grid
    return LookView(*place, row[:, axes.classes :], float(row[:, : axes.classes].sum()), *owners)


def shares_of_patches(found: AttentionMap, head: int = 0, image: int = 0) -> Values:
    """(N, 4) `LookView.shares` of every query patch of one head in a map of kind spatial or joint."""
    patches = found.axes.grid[0] * found.axes.grid[1]
    return np.stack([look_view(found, patch, head, image).shares for patch in range(patches)])


def _summary(keys: Values, total: float, everything: int) -> dict[str, float]:
    mass = keys.sum()
    effective = np.nan
    if mass > 0:
        p = keys[keys > 0] / mass
        effective = float(np.exp(-(p * np.log(p)).sum()))
    share = 100 * mass / total if total > 0 else np.nan
    return {"share %": share, "uniform %": 100 * keys.size / everything, "effective keys": effective, "keys": keys.size}


def _check(found: AttentionMap, kinds: tuple[str, ...], head: int, image: int) -> None:
    if found.kind not in kinds:
        raise LabError(f"this view is of {' or '.join(kinds)} attention, not of {found.kind}: read another map.")
    heads = len(found.axes.query_head)
    for name, value, count in (("head", head, heads), ("image", image, len(found.values))):
        if not 0 <= value < count:
            raise LabError(f"{name} {value}: the map of expert {found.expert} has {name}s 0 to {count - 1}.")
