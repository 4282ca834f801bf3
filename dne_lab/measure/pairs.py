"""Two methods compared: groups of runs on the same stream, and their difference seed by seed with its interval."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dne_lab import presets
from dne_lab.measure.groups import Group, memory_of, order_of, seedless, start_of, tasks_text
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.measure.significance import Deviation, residual


@dataclass(frozen=True)
class Pair:
    """Two groups on one stream under one memory; ``strict``: their settings differ in method and heads alone.

    ``deviation``: of LA, pooled over all methods of their experiment (`significance.residual`), where it is known.
    """

    one: Group
    other: Group
    strict: bool
    deviation: Deviation | None = None

    @property
    def seeds(self) -> list[int]:
        """The seeds that both have."""
        mine = {record.seed for record in self.other.records}
        return [record.seed for record in self.one.records if record.seed in mine]

    @property
    def setting(self) -> str:
        """Data set, tasks and schedule, e.g. ``digits100, 50 + 10 x 5, 15 epochs``."""
        epochs = " and ".join(map(str, dict.fromkeys((self.one.first.epochs, self.other.first.epochs))))
        return f"{self.one.first.dataset}, {tasks_text(self.one.first.tasks)}, {epochs} epochs"

    def difference(self, value: Callable[[Record], float] = lambda record: record.seen_accuracy[-1]) -> Any:
        """Mean of ``value`` (default: LA) of one minus the other, seed by seed, and the half width of its 95% interval.

        (None, None) without a common seed; the half width of a single seed is None.
        """
        values = self.values(value)
        return interval(values) if values else (None, None)

    def values(self, value: Callable[[Record], float] = lambda record: record.seen_accuracy[-1]) -> list[float]:
        """``value`` of one minus the other, by seed."""
        ours, theirs = ({r.seed: value(r) for r in group.records} for group in (self.one, self.other))
        return [ours[seed] - theirs[seed] for seed in self.seeds]

    @property
    def pooled(self) -> float | None:
        """The half width of the interval of the difference in LA from the pooled standard deviation."""
        return None if self.deviation is None else self.deviation.half_width(len(self.seeds), means=2)


def pairs(
    groups: Sequence[Group], one: Callable[[Record], bool], other: Callable[[Record], bool], same_heads: bool = False
) -> list[Pair]:
    """Every group that ``one`` accepts with every group of the same experiment that ``other`` accepts: images, tasks,
    classes, memory, the schedule of the presets that describe it, and as many epochs, unless both have those of their
    presets (a published recipe has its own, which belongs to the method).

    Where some of them differ in method and heads alone, only those are paired: methods with recipes of their own are
    compared as they are, variants of one network under equal settings. Runs on validation images are left out, and so
    are pairs without a common seed. ``same_heads`` asks for equal heads of all experts.

    A run counts once: of pairs that differ in precision alone, one is taken (strict, of most seeds, not of bf16).
    """
    usable = [group for group in groups if not group.first.validation and not group.first.joint]
    found: list[Pair] = []
    for mine in (group for group in usable if one(group.first)):
        fits = [g for g in usable if g is not mine and other(g.first) and _same_experiment(g.first, mine.first)]
        if same_heads:
            fits = [group for group in fits if group.first.heads == mine.first.heads]
        alike = [group for group in fits if _rest(group.first) == _rest(mine.first)]
        deviation = (
            residual(
                {group.label: group.last_by_seed() for group in usable if _same_experiment(group.first, mine.first)}
            )
            if fits
            else None
        )
        made = [Pair(mine, group, bool(alike), deviation) for group in alike or fits]
        found += [pair for pair in made if pair.seeds]
    found = _one_precision(found)
    strictly = {id(g) for pair in found if pair.strict for g in (pair.one, pair.other)}
    return [pair for pair in found if pair.strict or not {id(pair.one), id(pair.other)} & strictly]


def _one_precision(found: Sequence[Pair]) -> list[Pair]:
    """Of pairs whose groups are the same but for precision, the strict one, of most seeds, not of bf16."""
    best: dict[tuple[str, str], Pair] = {}
    for pair in found:
        key = (_but_for_precision(pair.one.first), _but_for_precision(pair.other.first))
        best[key] = max(best.get(key, pair), pair, key=_worth)  # the first of equal ones
    return [pair for pair in found if pair in best.values()]


def _worth(pair: Pair) -> tuple[bool, int, int]:
    reduced = [group.first.config.get("precision") == "bf16" for group in (pair.one, pair.other)]
    return pair.strict, len(pair.seeds), -sum(reduced)


def _but_for_precision(record: Record) -> str:
    config = {name: value for name, value in seedless(record).items() if name != "precision"}
    known = config or record.settings_sha256  # the oldest records do not hold their configuration
    rest = [record.method, record.heads, record.network, record.epochs, record.preset, stream_of(record), known]
    return json.dumps(rest, sort_keys=True)


def stream_of(record: Record) -> str:
    """What two methods must learn from: images, tasks, classes, memory, and where they start."""
    return json.dumps([record.dataset, record.tasks, order_of(record), memory_of(record), start_of(record)])


def _same_experiment(one: Record, other: Record) -> bool:
    if stream_of(one) != stream_of(other) or presets.schedule(one.preset) != presets.schedule(other.preset):
        return False
    return one.epochs == other.epochs or all(r.epochs == presets.epochs_of(r.preset) for r in (one, other))


def is_method(*names: str) -> Callable[[Record], bool]:
    """A test for records of these methods."""
    return lambda record: record.method in names


def _rest(record: Record) -> str:
    """The configuration but for method, seed and heads."""
    network = {name: value for name, value in record.network.items() if name != "heads"}
    rest: dict[str, Any] = {n: v for n, v in seedless(record).items() if n not in ("method", "network", "preset")}
    return json.dumps([network, rest, record.heads[:1], record.epochs], sort_keys=True)
