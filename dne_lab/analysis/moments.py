"""A run's network along its stream: untrained, after each task, as it learns; and what images give at each moment."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.analysis import labelling
from dne_lab.analysis.decomposition import untrained
from dne_lab.analysis.hosts import ExpandableHost
from dne_lab.analysis.probe import evaluating, probe
from dne_lab.analysis.row_statistics import Accumulator, Sums, sums_of
from dne_lab.analysis.views import Values
from dne_lab.models.attention import JOINT, SPATIAL, TASK1, TASK2, Axes
from dne_lab.models.expandable import ExpandableViT
from dne_lab.training.run import Run
from dne_lab.training.storage import tasks_held

if TYPE_CHECKING:
    import pandas as pd

UNTRAINED = 0  # the moment before all tasks
HELD = 12  # networks that are remembered: a model of several tasks is put together from their files
NEWEST = 0  # in place of an expert's number


class Moments:
    """The networks of a run by moment: 0 is untrained (with all experts that the run will have, at their start), t is
    after task t, and one more is now, while a task is being learned.

    Args:
        run: of a method built on `ExpandableViT`, in a folder, in memory or exported; it may go on training.

    Raises:
        LabError: the method has no experts.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._held: OrderedDict[int, ExpandableViT] = OrderedDict()
        self._held[UNTRAINED] = untrained(run)

    @property
    def learning(self) -> int | None:
        """The task that is being learned, or None."""
        task = self.run.cursor.task
        entered = not self.run.finished and len(getattr(self.run.model, "experts", ())) >= task
        return task if entered else None

    @property
    def places(self) -> list[int]:
        """The moments that there are, in order."""
        now = self.learning
        return [UNTRAINED, *tasks_held(self.run.state), *([] if now is None else [now])]

    def name(self, place: int) -> str:
        """A moment in words."""
        if place == UNTRAINED:
            return "untrained"
        return f"now, in task {place}" if place == self.learning else f"after task {place}"

    def network(self, place: int) -> ExpandableViT:
        """The network at a moment; now it is the one that learns, so look at it in evaluation mode."""
        if place == self.learning:
            return self.run.model
        if place not in self._held:
            while len(self._held) >= HELD:
                self._held.popitem(last=False)
            self._held[place] = self.run.model_at(place)
        self._held.move_to_end(place)
        return self._held[place]


def opened(given: object) -> object:
    """The run in a folder or file, of a path; anything else as it is."""
    return Run.open(given, progress=False) if isinstance(given, str | Path) else given


Point = tuple[str, int, int]  # kind, layer, expert


@dataclass(frozen=True, eq=False)
class Glance:
    """What a network gives for one image.

    Attributes:
        logits: (classes,).
        groups: (4, 2) share and uniform share of SPSH, SPDH, DPSH, DPDH, in percent of the attention to patches, by
            (kind, layer, expert) of spatial and joint attention; means over its heads and patches.
        keys: effective keys (exponential of a row's entropy, mean over rows) and the number of keys, by the same.
        reads: (experts, 2) share of attention that goes to each expert and its share of the heads, in percent, by
            (kind, layer, expert) of joint and task attention.
    """

    logits: Values
    groups: dict[Point, Values] = field(default_factory=dict)
    keys: dict[Point, tuple[float, float]] = field(default_factory=dict)
    reads: dict[Point, Values] = field(default_factory=dict)

    @property
    def experts(self) -> list[int]:
        """The experts whose attention over patches there is."""
        return sorted({expert for _, _, expert in self.groups})

    def share(self, expert: int, layer: int | None = None) -> tuple[Values, float, float] | None:
        """(4, 2) shares, effective keys and keys of an expert (`NEWEST`: the last one) in a layer, or over all layers;
        None where there are none."""
        expert = self.experts[-1] if expert == NEWEST and self.experts else expert
        there = [point for point in self.groups if point[2] == expert and layer in (None, point[1])]
        if not there:
            return None
        keys, of = np.mean([self.keys[point] for point in there], axis=0)
        return np.mean([self.groups[point] for point in there], axis=0), float(keys), float(of)

    def flow(self, layer: int | None = None) -> "pd.DataFrame":
        """A row for each pair of experts: kind, expert (that reads), reads (the expert that is read), share %,
        uniform %; means over layers where none is named. Empty where no expert reads another."""
        import pandas as pd

        found: dict[tuple[str, int], list[Values]] = {}
        for (kind, number, expert), shares in self.reads.items():
            if layer in (None, number):
                found.setdefault((kind, expert), []).append(shares)
        rows = [
            {"kind": kind, "expert": expert, "reads": number, "share %": share, "uniform %": uniform}
            for (kind, expert), parts in found.items()
            for number, (share, uniform) in enumerate(np.mean(parts, axis=0), start=1)
        ]
        return pd.DataFrame(rows, columns=["kind", "expert", "reads", "share %", "uniform %"])


def group_plans() -> Accumulator:
    """What sorting attention into the four groups needs to know of every shape of map, remembered."""
    return Accumulator(labelling.groups(), replicates=0)


def glances(network: ExpandableViT, images: Tensor, plans: Accumulator | None = None) -> list[Glance]:
    """What each of (B, C, H, W) uint8 images gives, by one forward pass.

    Args:
        plans: of `group_plans`, where several calls are to share what they have in common.

    Raises:
        LabError: a network without experts.
    """
    kinds = {entry[0] for entry in ExpandableHost(network).entries} & {SPATIAL, JOINT, TASK1, TASK2}
    layers = range(network.network.depth - (network.network.readout == "class_attention"))
    kept: list[tuple[Point, Any, Values | None]] = []
    known = plans or group_plans()

    def read(attention: Tensor, axes: Axes) -> None:
        point = (axes.kind, axes.layer, axes.query_expert[0])
        if axes.kind != SPATIAL:
            kept.append((point, *_by_expert(attention, axes)))
        if axes.kind in (SPATIAL, JOINT):
            made = known.plan_of(axes, tuple(attention.shape))
            if made is not None:
                kept.append((point, torch.cat(list(sums_of(attention, axes, made))).sum(1), None))

    with evaluating(network) as device, probe(network, kinds or None, layers, keep=False, read=read):
        logits = network(images.to(device)).logits.double().cpu().numpy()
    found = [Glance(row) for row in logits]
    for point, values, uniform in kept:
        for glance, row in zip(found, values, strict=True):
            if uniform is None:
                _add_groups(glance, point, row)
            else:
                glance.reads[point] = np.stack([row, uniform], axis=-1)
    return found


def _add_groups(glance: Glance, point: Point, sums: Tensor) -> None:
    by_label, by_row = Sums.of(sums)
    weight = by_row["weight"].clamp_min(1e-12)  # attention to patches, over all rows
    shares = torch.stack([by_label["mass"], by_label["uniform"]], -1) / weight  # (4, 2)
    glance.groups[point] = 100 * shares.numpy()
    rows = by_row["rows"]
    glance.keys[point] = float(by_row["row_keys"] / rows), float(by_row["row_connections"] / rows)


def _by_expert(attention: Tensor, axes: Axes) -> tuple[Values, Values]:
    """(B, experts) percent of the attention of patches that goes to each expert, and (experts,) of the heads."""
    names = axes.layout.split()
    patches = attention.shape[names.index("p")] - axes.classes
    rows = attention.narrow(names.index("p"), axes.classes, patches).double()
    if "kp" in names:
        rows = rows.sum(names.index("kp"))
        names.remove("kp")
    mean = rows.mean([place for place, name in enumerate(names) if name not in ("b", "kh")])  # (B, heads read)
    owners = np.asarray(axes.key_expert)
    numbers = range(1, int(owners.max()) + 1)
    shares = np.stack([mean.cpu().numpy()[:, owners == number].sum(1) for number in numbers], axis=1)
    uniform = np.array([(owners == number).mean() for number in numbers])
    return 100 * shares, 100 * uniform


def along(
    found: Sequence[Glance], names: Sequence[str], expert: int = NEWEST, layer: int | None = None
) -> "pd.DataFrame":
    """A row for each moment: moment, expert, shares of the four groups and their uniform shares, effective keys, keys.

    Args:
        found: what one image gives at each moment.
        names: of the moments.
        expert: its number; a moment before it has no numbers.
        layer: None: the mean over all.
    """
    import pandas as pd

    rows: list[dict[str, object]] = []
    for name, glance in zip(names, found, strict=True):
        there = glance.share(expert, layer)
        shares, keys, of = there if there is not None else (np.full((4, 2), np.nan), np.nan, np.nan)
        number = expert or (glance.experts[-1] if glance.experts else np.nan)
        rows.append(
            {"moment": name, "expert": number}
            | {f"{group} %": share for group, share in zip(labelling.GROUPS, shares[:, 0], strict=True)}
            | {f"{group} uniform %": share for group, share in zip(labelling.GROUPS, shares[:, 1], strict=True)}
            | {"effective keys": keys, "keys": of}
        )
    return pd.DataFrame(rows)
