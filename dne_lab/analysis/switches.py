"""What if: connections of attention switched off, and what becomes of the logits and of every expert's output."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.analysis.probe import probe
from dne_lab.analysis.views import GROUP_NAMES, entries, find_network
from dne_lab.errors import LabError, unknown
from dne_lab.models.attention import JOINT, SPATIAL, TASK1, TASK2, Axes
from dne_lab.models.expandable import ExpandableViT, Output

if TYPE_CHECKING:
    import pandas as pd

HOW = ("zero", "mask")
KINDS = (SPATIAL, JOINT, TASK1, TASK2)


@dataclass(frozen=True)
class Switch:
    """Connections that are off.

    Attributes:
        experts: whose heads are not read by *later* experts (by itself too where ``readers`` names the expert alone).
        groups: of (query, key) pairs that are off: SPSH, SPDH, DPSH, DPDH.
        kinds, layers, readers: where; None is everywhere.
        how: "zero" makes the entries 0; "mask" also divides the row by what is left of it (a row of which nothing is
            left stays 0).

    Raises:
        LabError: an unknown name.
    """

    experts: tuple[int, ...] = ()
    groups: tuple[str, ...] = ()
    kinds: tuple[str, ...] | None = None
    layers: tuple[int, ...] | None = None
    readers: tuple[int, ...] | None = None
    how: str = "mask"

    def __post_init__(self) -> None:
        for name, values, allowed in (("group", self.groups, GROUP_NAMES), ("kind", self.kinds or (), KINDS)):
            for value in values:
                if value not in allowed:
                    raise unknown(name, value, allowed)
        if self.how not in HOW:
            raise unknown("way to switch off", self.how, HOW)

    def off(self, axes: Axes, tokens: int) -> Tensor:
        """Bool, of a shape that broadcasts to a map with these axes: the entries that are off.

        ``tokens``: the queries of a head, class tokens and patches.
        """
        queries = _labels(axes.query_expert, axes.query_head)
        own_keys = axes.layout == "b h p kp"
        keys = queries if own_keys else _labels(axes.key_expert, axes.key_head)
        same_head = torch.eye(len(queries), dtype=torch.bool) if own_keys else (queries[:, None] == keys[None]).all(-1)
        reader, source = queries[:, None, 0], keys[None, :, 0]
        alone = self.readers is not None and len(self.readers) == 1
        by_expert = torch.isin(source, torch.tensor(self.experts, dtype=torch.int64)) & ((source < reader) | alone)
        same_patch = torch.eye(tokens, dtype=torch.bool)
        real = torch.arange(tokens) >= axes.classes
        pairs = real[:, None] & real[None]  # class tokens belong to no group
        if axes.layout == "b p h kh":
            grouped = torch.zeros_like(same_head)
            grouped |= same_head if "SPSH" in self.groups else False
            grouped |= ~same_head if "SPDH" in self.groups else False
            return (by_expert | (grouped & real[:, None, None]))[None]
        head, patch = same_head[:, None, :, None], same_patch[None, :, None, :]
        off = torch.zeros(len(queries), tokens, len(keys), tokens, dtype=torch.bool)
        for name, member in zip(GROUP_NAMES, (head & patch, ~head & patch, head & ~patch, ~head & ~patch), strict=True):
            if name in self.groups:
                off |= member & pairs[None, :, None, :]
        off |= by_expert[:, None, :, None]
        return off.diagonal(dim1=0, dim2=2).permute(2, 0, 1)[None] if own_keys else off[None]

    def apply(self, part: Tensor, axes: Axes) -> Tensor:
        """A map with the entries off, for ``probe(..., replace=switch.apply)``."""
        off = self.off(axes, part.shape[axes.layout.split().index("p")]).to(part.device)
        left = part.masked_fill(off, 0.0)
        if self.how == "zero":
            return left
        dims = (-1, -2) if axes.layout == "b h p kh kp" else (-1,)
        mass = left.sum(dims, keepdim=True)
        return torch.where(off.any(dims, keepdim=True) & (mass > 0), left / mass.clamp_min(1e-30), left)


def _labels(experts: Sequence[int], heads: Sequence[int]) -> Tensor:
    return torch.tensor(list(zip(experts, heads, strict=True)), dtype=torch.int64)


@dataclass(frozen=True, eq=False)
class WhatIf:
    """Outputs with everything on (``before``) and with a switch (``after``), on the same path of computation.

    ``labels`` (B,) are ranks, None where they are not known.
    """

    switch: Switch
    before: Output
    after: Output
    labels: Tensor | None = None
    where: str = field(default="", kw_only=True)  # in words

    @property
    def moved(self) -> list[float]:
        """For each expert the largest change of any of its outputs; exactly 0.0 means bit for bit the same."""
        pairs = zip(self.before.readouts, self.after.readouts, strict=True)
        return [float((new - old).abs().max()) for old, new in pairs]

    def classes(self, image: int = 0, count: int = 5) -> "pd.DataFrame":
        """The ``count`` best classes before and after: class, logit before, logit after, change, softmax of both."""
        import pandas as pd

        old, new = self.before.logits[image].double().cpu(), self.after.logits[image].double().cpu()
        best = {rank for logits in (old, new) for rank in logits.argsort(descending=True)[:count].tolist()}
        ranks = sorted(best, key=lambda rank: -float(old[rank]))
        rows: dict[str, Any] = {"class": ranks, "logit before": old[ranks], "logit after": new[ranks]}
        rows["change"] = rows["logit after"] - rows["logit before"]
        rows |= {"softmax before": old.softmax(0)[ranks], "softmax after": new.softmax(0)[ranks]}
        return pd.DataFrame({name: np.asarray(values) for name, values in rows.items()})

    def accuracy(self, tasks: Sequence[int] = ()) -> "pd.DataFrame":
        """Accuracy in percent before and after, by task and over all; images without labels give no row.

        Args:
            tasks: classes of each task; without them there is the row "all" alone.
        """
        import pandas as pd

        rows: list[dict[str, Any]] = []
        if self.labels is not None:
            right = [(out.logits.argmax(1).cpu() == self.labels).double() for out in (self.before, self.after)]
            ends = np.cumsum([0, *tasks])
            parts = {f"task {i + 1}": range(ends[i], ends[i + 1]) for i in range(len(tasks))}
            chosen = {name: torch.isin(self.labels, torch.tensor([*ranks])) for name, ranks in parts.items()}
            chosen["all"] = torch.ones(len(self.labels), dtype=torch.bool)
            for name, rows_of in chosen.items():
                if rows_of.any():
                    old, new = (100 * float(r[rows_of].mean()) for r in right)
                    row = {"classes of": name, "images": int(rows_of.sum()), "before %": old, "after %": new}
                    rows.append(row | {"change": new - old})
        return pd.DataFrame(rows, columns=["classes of", "images", "before %", "after %", "change"])


def what_if(model: Any, images: Tensor, switch: Switch, labels: Tensor | None = None) -> WhatIf:
    """Runs images with everything on and with a switch.

    Both runs compute the same attention in the open, so experts that the switch does not reach give the same bits.

    Args:
        images: (B, C, H, W) uint8; all at once.

    Raises:
        LabError: the switch reaches no attention of this network; see also `dne_lab.analysis.probe.probe`.
    """
    network = find_network(model)
    if not (switch.experts or switch.groups):
        output = _run(network, images, None, None)
        return WhatIf(switch, output, output, labels)
    place = reached(network, switch)
    return WhatIf(switch, _run(network, images, place, None), _run(network, images, place, switch), labels)


def reached(network: ExpandableViT, switch: Switch) -> dict[str, Any]:
    """The choice of kinds, layers and experts that `probe` takes; a `LabError` if there is none."""
    asked = {"kind": switch.kinds or KINDS, "layer": switch.layers, "expert": switch.readers}
    found = [
        entry[:3]
        for entry in entries(network)
        if entry[0] in asked["kind"]  # type: ignore[operator]
        and (asked["layer"] is None or entry[1] in asked["layer"])
        and (asked["expert"] is None or entry[2] in asked["expert"])
    ]
    if not found:
        told = ", ".join(f"{name} {value}" for name, value in asked.items() if value)
        raise LabError(f"{network.variant.name} has no attention at {told}: choose another place.")
    return {
        "kind": sorted({kind for kind, _, _ in found}),
        "layer": sorted({layer for _, layer, _ in found}),
        "expert": sorted({expert for _, _, expert in found}),
    }


@torch.no_grad()
def _run(network: ExpandableViT, images: Tensor, place: dict[str, Any] | None, switch: Switch | None) -> Output:
    images = images.to(network.mean.device)
    if place is None:
        return network(images)
    replace = None if switch is None else switch.apply
    with warnings.catch_warnings(), probe(network, **place, replace=replace, keep=False):
        warnings.filterwarnings("ignore", "probe: rows of the replaced map")  # that is what was asked for
        return network(images)
