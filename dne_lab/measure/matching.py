"""Networks of equal cost: the width, and the heads of later experts, with which a method costs what another one does.

Figure 6 a and b compare methods at equal F. A claim that a variant is better needs the same: is it better than another
one that has its parameters, or its F?
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from dne_lab.core.config import Config
from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream
from dne_lab.measure.cost import of_last_task
from dne_lab.methods import base

MATCHED = ("flops_literal", "flops_spent", "params_total")


def field_of(method: str) -> str:
    """The field that widens a method's network: channels of a residual network, heads of a transformer's first expert.

    A transformer's heads have a fixed width, so more heads are a wider network.
    """
    cls = base.find(method)
    return "options.width" if "width" in {f.name for f in fields(cls.Options)} else "network.heads"


def widened(config: Config, width: int) -> Config:
    """The configuration with that many channels, or heads in the first expert (later experts keep theirs)."""
    field = field_of(config.method)
    if field != "options.width" and config.network.backbone is not None:
        raise LabError(
            f"the width of {config.method} follows from network.backbone = {config.network.backbone}: it cannot be "
            "matched to another network's."
        )
    if field == "options.width":
        return config.with_changes({field: width})
    return config.with_changes({field: [width, *config.network.heads[1:]]})


def matched_width(config: Config, stream: ClassStream, wanted: float, by: str = "flops_literal") -> int:
    """The width whose cost after the last task is nearest to ``wanted``, at least 1 (`field_of` says of what).

    Args:
        config: the method and everything but its width.
        stream: its tasks; no image is read.
        wanted: F of one image (2 x multiply-accumulate) or a number of parameters.
        by: one of `MATCHED`.

    Raises:
        LabError: an unknown cost, a wanted one that is not above 0.
    """
    _check(by, wanted)

    @functools.cache
    def at(width: int) -> int:
        with torch.device("meta"):  # counted, not computed: the search may pass by networks of any size
            return int(of_last_task(widened(config, width), stream)[by])

    return _nearest(at, wanted)


def _check(by: str, wanted: float) -> None:
    if by not in MATCHED or not 0 < wanted < math.inf:
        raise LabError(f"by = {by!r}, wanted = {wanted}: give one of {', '.join(MATCHED)} and a number above 0.")


def _nearest(at: Callable[[int], int], wanted: float) -> int:
    """The whole number from 1 at which a growing function is nearest to ``wanted``."""
    high = 1
    while at(high) < wanted:
        high *= 2
    low = high // 2 or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if at(middle) < wanted else (low, middle)
    return min((low, high), key=lambda width: abs(at(width) - wanted))


# Of a method that grows: the heads of its later experts and the width of a head.

MOST_HEADS = 8  # of a later expert
NEAR = 0.02  # a difference that counts as none: then the network that is least unlike the method's own is taken


@dataclass(frozen=True)
class Match:
    """A network of (nearly) a wanted cost.

    Attributes:
        by: which cost, one of `MATCHED`.
        wanted, cost: after the last task.
        settings: what to set for it, dotted fields; empty if the network as it is comes closest.
    """

    method: str
    by: str
    wanted: int
    cost: int
    settings: dict[str, Any]

    @property
    def difference(self) -> float:
        """How far the cost is from the wanted one, in percent of that."""
        return 100 * (self.cost / self.wanted - 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "method": self.method, "by": self.by, "wanted": self.wanted, "cost": self.cost,
            "difference_percent": round(self.difference, 3), "settings": self.settings,
        }  # fmt: skip


def match(config: Config, stream: ClassStream, wanted: int, by: str) -> Match:
    """`matches` of one cost.

    Raises:
        LabError: as `matched_width`; a method without experts of its own width.
    """
    return matches(config, stream, {by: wanted})[0]


def matches(config: Config, stream: ClassStream, wanted: Mapping[str, int]) -> list[Match]:
    """Widens a method that grows until its cost after the last task is the wanted one, for each of some costs.

    Of all numbers of heads of later experts, 1 to `MOST_HEADS`, each with the head width that comes nearest, it takes
    the network within `NEAR` of the wanted cost whose head width differs least from the method's own (at the same one,
    expert 1 stays as it is and is shared); the nearest of all where none is so near. On a backbone all heads have its
    width.

    Raises:
        LabError: as `matched_width`; a method without experts of its own width.
    """
    for by, cost in wanted.items():
        _check(by, cost)
    if "k" in base.find(config.method).ignores or field_of(config.method) != "network.heads":
        raise LabError(f"method = {config.method}: has no later experts to widen. Take ia, sta, dne or progressive.")

    @functools.cache
    def rows(later: int, width: int) -> dict[str, Any]:
        heads = [config.network.heads[0], later]
        return of_last_task(config.with_changes({"network.heads": heads, "network.head_width": width}), stream)

    return [_match(config, by, cost, lambda *sizes, by=by: int(rows(*sizes)[by])) for by, cost in wanted.items()]


def _match(config: Config, by: str, wanted: int, at: Callable[[int, int], int]) -> Match:
    """One of `matches`; ``at``: the cost with so many heads of later experts, of that width."""
    network = config.network
    found = [(later, network.head_width) for later in range(1, MOST_HEADS + 1)]
    if network.backbone is None:  # whose heads have a width, which is that of all heads
        found += [(later, _nearest(functools.partial(at, later), wanted)) for later in range(1, MOST_HEADS + 1)]

    def off(sizes: tuple[int, int]) -> float:
        return abs(at(*sizes) / wanted - 1)

    near = [sizes for sizes in found if off(sizes) <= NEAR]
    best = (
        min(near, key=lambda sizes: (abs(sizes[1] - network.head_width), off(sizes))) if near else min(found, key=off)
    )
    settings: dict[str, Any] = {}
    if best[0] != network.heads_of(2) or len(network.heads) > 2:
        settings["network.heads"] = f"{network.heads[0]},{best[0]}"
    if best[1] != network.head_width:
        settings["network.head_width"] = best[1]
    return Match(config.method, by, wanted, at(*best), settings)


def match_method(config: Config, other: Config, stream: ClassStream, costs: Sequence[str] = MATCHED) -> list[Match]:
    """`match` of a method with what another one costs after the last task of a stream, by each of ``costs``."""
    row = of_last_task(other, stream)
    return matches(config, stream, {by: int(row[by]) for by in costs})


def text(found: Sequence[Match], other: str) -> str:
    """A line for each cost: what to set, and how close it comes."""
    names = {"flops_literal": "F literal", "flops_spent": "F spent", "params_total": "parameters"}
    lines = []
    for one in found:
        changes = " ".join(f"--set {name}={value}" for name, value in one.settings.items()) or "as it is"
        lines.append(
            f"{names[one.by]:<10} {one.cost:>14,} beside {one.wanted:,} of {other} ({one.difference:+.1f}%): {changes}"
        )
    return "\n".join(lines)
