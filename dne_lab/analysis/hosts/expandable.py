"""How `probe` listens to an `ExpandableViT`: every attention there is a point made to be listened to."""

import contextlib
from collections.abc import Mapping, Set
from typing import Any

from torch import Tensor

from dne_lab.analysis.hosts.base import ATTENTION, CONTENT, POSITION, Entry, Hear, Place
from dne_lab.errors import LabError
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, AttentionWeights, Axes
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.points import AttentionPoint


class ExpandableHost:
    """An `ExpandableViT`, as `dne_lab.analysis.hosts.base.Host` has it.

    Raises:
        LabError: if it has no expert yet.
    """

    def __init__(self, network: ExpandableViT) -> None:
        if not len(network.experts):
            raise LabError("this network has no expert yet, so it computes no attention: call expand, or next_task.")
        self.network, self.title, self.grid = network, network.variant.name, network.grid
        points = {name: part for name, part in network.named_modules() if isinstance(part, AttentionPoint)}
        self.names: dict[Place, str] = {(point.kind, point.layer): name for name, point in points.items()}
        self.entries = [entry for point in points.values() for entry in _entries(network, point)]
        self._points = {(point.kind, point.layer): point for point in points.values()}

    def refuse(self, part: str, replacing: bool) -> None:
        """Nothing: which parts are there shows in a pass, and what multiplies V can be replaced."""

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, hear: Hear, hooks: contextlib.ExitStack) -> None:
        """Hooks on the `AttentionWeights` of the points; each fires once for every bank of experts."""

        def heard(module: AttentionWeights, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return hear(output if part == ATTENTION else self._part(part, module, *inputs), inputs[1])

        for place, experts in wanted.items():
            weights = self._points[place].weights
            handle = weights.register_forward_hook(heard)
            hooks.callback(handle.remove)
            everyone = {expert for kind, layer, expert, _ in self.entries if (kind, layer) == place}
            # Task and class attention are computed in the open anyway; and naming every expert would undo all batches.
            # But a joint map holds every patch of every head: there one expert at a time keeps the memory small.
            if place[0] == JOINT or (place[0] == SPATIAL and experts < everyone):
                weights.only[handle.id] = frozenset(experts)
                hooks.callback(weights.only.pop, handle.id, None)

    def _part(
        self,
        part: str,
        module: AttentionWeights,
        scores: Tensor,
        axes: Axes,
        position: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> Tensor:
        """One of the two distributions that a gate mixes; without a gate all is content."""
        if part == CONTENT:
            return module.content(scores, axes)
        if position is None:
            raise LabError(
                f"part = {POSITION!r}: {self.names[axes.kind, axes.layer]} has no positional part. Select layers of "
                "kind spatial or joint of a network with network.spatial = gpsa (behind the last block of a cls_token "
                "read-out there is none)."
            )
        return module.placed(scores, axes, position).expand_as(scores)


def _entries(network: ExpandableViT, point: AttentionPoint) -> list[Entry]:
    """Those of one point, in the order of the experts.

    Expert 1 is a plain transformer in every variant; behind class attention the last block has no patches that look.
    """
    found: list[Entry] = []
    kind, layer = point.kind, point.layer
    for expert, heads in enumerate(network.heads, start=1):
        own = kind == SPATIAL and (expert == 1 or not network.variant.joint)
        if own or kind == CLASS or (kind != SPATIAL and expert > 1):
            found += [(kind, layer, expert, head) for head in range(heads)]
    return found
