"""Which records may be averaged: runs that differ in nothing but their seed, under a label of their own."""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import dne_lab.methods  # noqa: F401  (registers the methods, which have the titles)
from dne_lab.core import presets
from dne_lab.core.errors import LabError
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record, by_images
from dne_lab.measure.significance import Deviation, residual
from dne_lab.methods.base import title_of
from dne_lab.models.controls import COLUMNS

# Methods in the order in which tables and figures name them; those of a user's own come last.
ORDER = (
    *("joint", "joint-resnet", "ia", "sta", "dne", "progressive"),
    *("finetune", "replay", "finetune-resnet", "replay-resnet"),
    *("icarl", "podnet", "der", "foster", "dytox"),
    *("linear-probe", "ncm", "ranpac"),
)
EXPANSION = ("ia", "sta", "dne", "progressive")

# What tells two groups of the same title apart, in the order in which a label names it.
SETTINGS = (
    *("dataset", "tasks", "epochs", "preset", "memory", "network"),
    *("class order", "validation", "behind", "images", "settings"),
)


@dataclass(frozen=True)
class Group:
    """Finished runs of one setting, ordered by seed; ``label`` is unique among the groups made together."""

    label: str
    records: tuple[Record, ...]
    unfinished: int = 0

    @property
    def first(self) -> Record:
        """A record to read the setting from."""
        return self.records[0]

    def last_by_seed(self) -> dict[int, float]:
        """LA in percent by seed."""
        return {record.seed: float(record.seen_accuracy[-1]) for record in self.records}


def later_heads(record: Record) -> int | None:
    """k: the heads of every expert after the first; None if they differ, or the network has no experts."""
    later = record.heads[1:] or record.heads
    return later[0] if later and len(set(later)) == 1 else None


def even_heads(record: Record) -> bool:
    """Whether several experts have the same number of heads, the first too (figure 1)."""
    return len(record.heads) > 1 and len(set(record.heads)) == 1


def depth(record: Record) -> int | None:
    """Layers of a residual network, e.g. 18; None for others."""
    found = re.search(r"resnet\D{0,3}(\d+)", str(record.network).lower())
    return int(found[1]) if found else None


def heads_text(record: Record) -> str:
    """Heads of the experts, e.g. ``12, 1``; the last number repeats. Empty for other networks."""
    heads = list(record.heads)
    while len(heads) > 2 and heads[-1] == heads[-2]:
        heads.pop()
    return ", ".join(map(str, heads))


def tasks_text(tasks: Sequence[int]) -> str:
    """Task sizes as the field writes them: ``50 + 10 x 5`` (ten classes, five times), ``100``."""
    parts = [str(tasks[0])]
    for size, run in itertools.groupby(tasks[1:]):
        count = len(list(run))
        parts.append(f"{size} x {count}" if count > 1 else str(size))
    return " + ".join(parts)


def order_of(record: Record) -> Any:
    """The class order, or the rule by which it follows from the seed: what runs of several seeds have in common."""
    return record.config.get("data", {}).get("order_rule") or record.class_order


def seedless(record: Record) -> dict[str, Any]:
    """The configuration without the seed and what follows from it: a class order, the run that it started after."""
    tree = {name: value for name, value in record.config.items() if name not in ("seed", "start")}
    if tree.get("data", {}).get("order_rule"):
        tree["data"] = {name: value for name, value in tree["data"].items() if name != "order"}
    return tree


def memory_of(record: Record) -> str:
    """The exemplar budget, or the bytes that model and exemplars share, and the policy: ``2000 shared``."""
    total = record.memory.get("bytes")
    given = record.memory.get("budget") if total is None else f"{total / 1e6:g} MB"
    return f"{given} {record.memory.get('policy')}"


def start_of(record: Record) -> str:
    """Behind which task of a run of which settings a run started; "" where it has learned all its tasks itself."""
    from_ = record.forked_from
    return f"task {from_['task']} of {from_['settings_sha256'][:8]}" if from_ else ""


def title(record: Record) -> str:
    """The method's name in tables and figures; expansion methods with their heads, e.g. ``DNE (k = 1)``.

    Several experts of as many heads, the first too, as in figure 1, are ``IA (4 heads each)``.
    """
    name = title_of(record.method)
    if program := record.imported.get("from"):  # Mammoth's der is another method than DER
        return f"{record.method if program == 'Mammoth' else name} ({program})"
    if record.method not in EXPANSION:
        return name
    if not record.finished and len(record.heads) < 2:
        return name  # the first expert has other heads than those that are still to come
    if even_heads(record):
        return f"{name} ({record.heads[0]} head{'s' * (record.heads[0] > 1)} each)"
    k = later_heads(record)
    return f"{name} (k = {k})" if k is not None else f"{name} (heads {heads_text(record)})"


def groups(records: Iterable[Record]) -> list[Group]:
    """Finished records by setting, in the order of `ORDER`; unfinished ones are only counted.

    Raises:
        LabError: two different records of the same setting and seed (they are no independent repetitions).
    """
    by_key: dict[str, list[Record]] = {}
    for record in records:
        setting = _settings(record) | {"images": None}
        by_key.setdefault(json.dumps([record.method, record.heads, setting]), []).append(record)
    alike = [members for found in by_key.values() for members in by_images(found).values()]
    sets = [sorted(members, key=lambda r: r.seed) for members in alike]
    sets = [members for members in sets if any(record.finished for record in members)]
    sets.sort(key=lambda m: (place_of(m[0].method), m[0].imported.get("from", ""), m[0].heads))
    made = []
    for members, label in zip(sets, _labels([members[0] for members in sets]), strict=True):
        done = tuple(record for record in members if record.finished)
        for first, second in itertools.pairwise(done):
            if first.seed == second.seed:
                raise LabError(
                    f"two different records of {label}, seed {first.seed} ({_differing(first, second)}): they cannot "
                    "be averaged. Name folders that hold one of them: your own runs, or figures/records, not both."
                )
        made.append(Group(label, done, len(members) - len(done)))
    return made


def joint_of(group: Group, others: Sequence[Group], same_network: bool = True) -> Group | None:
    """The joint model of a group's data set and preset, with the group's network or with another one.

    A method may have a recipe of its own (`learn`), which its joint model need not share. Among several joint models
    the one of equal recipe is taken, else the one of as many epochs; None if there is none, or no single one.
    """
    fits = [
        other
        for other in others
        if other.first.joint
        and _data(other.first) == _data(group.first)
        and not other_images(other.first, group.first)
        and (_network(other.first) == _network(group.first)) == same_network
    ]
    for alike in (_recipe, lambda record: record.epochs):
        if len(fits) > 1:
            fits = [other for other in fits if alike(other.first) == alike(group.first)] or fits
    return fits[0] if len(fits) == 1 else None


def _data(record: Record) -> list[Any]:
    """Images, classes, split and objective; not how the classes are cut into tasks, which Joint ignores."""
    how = record.config.get("loss") if record.config else record.preset
    return [record.dataset, sorted(record.class_order), record.validation, how]


def other_images(one: Record, other: Record) -> bool:
    """Whether two records are known to be of different images."""
    return len(by_images([one, other])) > 1


def _recipe(record: Record) -> Any:
    """How the first stage is optimised, where the record says so."""
    return record.config.get("learn")


def _network(record: Record) -> dict[str, Any]:
    """The network without the heads of later experts, which a joint model (one expert) does not have."""
    network = {name: value for name, value in record.network.items() if name != "heads"}
    return network | {"first heads": record.heads[:1]}


def _settings(record: Record) -> dict[str, Any]:
    return {
        "dataset": record.dataset,
        "tasks": tasks_text(record.tasks),
        "epochs": record.epochs,
        "preset": record.preset,
        "memory": memory_of(record),
        "network": json.dumps(record.network, sort_keys=True),
        "class order": order_of(record),
        "validation": record.validation,
        "behind": start_of(record) or None,
        **flat(seedless(record)),
        "images": record.images_sha256[:8] or None,
        "settings": record.settings_sha256[:8],
        "imported": record.imported.get("from"),
    }


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested dictionary by dotted names."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def _labels(firsts: Sequence[Record]) -> list[str]:
    """Titles, with the first settings that tell equal titles apart."""
    labels = [title(record) for record in firsts]
    settings = [_settings(record) for record in firsts]
    named = {*SETTINGS, "method", "seed"}
    fields = [name for name in dict.fromkeys(n for r in firsts for n in flat(r.config)) if name not in named]
    for name in (*SETTINGS[:-2], *fields, *SETTINGS[-2:]):  # a digest last: it names what nothing else does
        for label in {label for label in labels if labels.count(label) > 1}:
            same = [i for i, other in enumerate(labels) if other == label]
            values = [settings[i].get(name) for i in same]
            if any(value != values[0] for value in values):
                for i, value in zip(same, values, strict=True):
                    if value is not None:  # a setting that only some of them give
                        labels[i] = f"{label}, {_short(name, value, values)}"
    return labels


def _short(name: str, value: Any, values: Sequence[Any]) -> str:
    if name == "network":
        return network_text(json.loads(value), [json.loads(other) for other in values])
    if name == "class order":  # too long to print: numbered as they come
        distinct = [v for i, v in enumerate(values) if v not in values[:i]]
        return f"{name} {distinct.index(value) + 1}"
    return f"{value} {name}" if name == "epochs" else f"{value}" if name in ("dataset", "tasks") else f"{name} {value}"


def network_text(network: dict[str, Any], others: Sequence[dict[str, Any]]) -> str:
    """What tells a network from the others: ``width 32``, ``resnet34, width 16``, ``heads 3, 1``."""
    texts = []
    for field, value in network.items():
        if any(other.get(field) != value for other in others):
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            texts.append(text if field == "name" else f"{field.replace('_', ' ')} {text}")
    return ", ".join(texts) or "another network"


def place_of(method: str) -> tuple[int, str]:
    """Sorts methods in the order of `ORDER`, those of a user's own by name after them."""
    return ORDER.index(method) if method in ORDER else len(ORDER), method


def _differing(first: Record, second: Record) -> str:
    a, b = first.without_timing(), second.without_timing()
    for name in ("config_sha256", "code_version", "torch", "device", "threads", "python", "numpy", "platform", "LA"):
        if name in a.keys() & b.keys() and a[name] != b[name]:  # older records do not say all
            return f"{name} {a[name]} and {b[name]}"
    return "their accuracies"


# Two methods compared: groups of runs on the same stream, and their difference seed by seed with its interval.


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
    classes, memory, the presets' schedule, and as many epochs, unless both have those of their own (published) recipe.

    Where some of them differ in method and heads alone, only those are paired: methods with recipes of their own are
    compared as they are, variants of one network under equal settings. Validation runs and pairs without a common seed
    are left out. ``same_heads`` asks for equal heads of all experts.

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
    if (one.dataset, one.tasks) != (other.dataset, other.tasks):  # most are told apart by these, without more work
        return False
    if stream_of(one) != stream_of(other) or presets.schedule(one.preset) != presets.schedule(other.preset):
        return False
    if other_images(one, other):
        return False
    return one.epochs == other.epochs or all(r.epochs == presets.epochs_of(r.preset) for r in (one, other))


def is_method(*names: str) -> Callable[[Record], bool]:
    """A test for records of these methods as they are: runs beside controls have a table of their own."""
    return lambda record: record.method in names and not COLUMNS & record.config.get("options", {}).keys()


def _rest(record: Record) -> str:
    """The configuration but for method, seed and heads."""
    network = {name: value for name, value in record.network.items() if name != "heads"}
    rest: dict[str, Any] = {n: v for n, v in seedless(record).items() if n not in ("method", "network", "preset")}
    return json.dumps([network, rest, record.heads[:1], record.epochs], sort_keys=True)
