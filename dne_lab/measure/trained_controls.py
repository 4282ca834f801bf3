"""Controls that were trained beside the methods that they are of: what changes when a claim of the paper is made true,
or false, from the first step on."""

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from dne_lab.measure.comparison import EXPANSION, Group, Pair, groups, pairs, seedless, title
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.measure.significance import LEVEL, holm, p_value
from dne_lab.methods.base import Method, title_of
from dne_lab.models.controls import COLUMNS, PLAIN

if TYPE_CHECKING:
    import pandas as pd

# What a column of `dne_lab.models.controls.Controls` says, for each value that it may have in a run.
WORDS: dict[tuple[str, Any], str] = {
    ("experts", "first"): "reading expert 1 alone",
    ("experts", "previous"): "reading the previous expert alone",
    ("experts", "own"): "reading no other expert",
    ("weights", "uniform"): "A = 1/H",
    ("weights", "means"): "the same A for all images",
    ("masked", "SPDH"): "without SPDH",
    ("masked", "DPDH"): "without DPDH",
    ("masked", "both"): "without SPDH and DPDH",
    ("mass", "ia"): "with IA's mass on other positions",
    ("pictures", "own"): "with own keys of other pictures",
    ("pictures", "shuffled"): "with another picture for the other experts",
    ("projections", "each"): "with W_k, W_v for each expert read",
    ("reads", "own"): "reading own patches alone",
    ("reads", "all"): "reading the patches of all experts",
    ("mixes", "mlp"): "with an MLP",
    ("mixes", "linear"): "with linear cross connections",
    ("mixes", "task"): "with task attention",
    ("mixes", "task1"): "first TAB alone",
    ("mixes", "task2"): "second TAB alone",
}
# From IA to DNE, each step a network that was trained: what is added to the step before. With k = 1, a task attention
# block that reads no other expert has one weight, 1: it is a value map in the place of a linear layer.
LADDER: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("IA", "ia", {}),
    ("value maps of the own head", "dne", {"experts": "own"}),
    ("value maps of expert 1", "dne", {"weights": "uniform", "experts": "first"}),
    ("value maps of all experts", "dne", {"weights": "uniform"}),
    ("learned weights: DNE", "dne", {}),
)
NUMBERED = {
    "most": "reading the {} heads read most",
    "entropy": "at {:.0%} of the largest entropy",
    "temperature": "at temperature {}",
    "query_rate": "W_q and W_k at {:g} times the rate",
}


@dataclass(frozen=True)
class Control:
    """A control's runs beside those of the method that it changes, or one method beside another's size.

    Attributes:
        words: what was changed; where a method is there under several settings, also which of them.
        pair: its runs minus the others', by seed.
        adjusted: p of the difference after Holm's correction within the controls beside the same runs of a method;
            None for one seed.
    """

    words: str
    pair: Pair
    adjusted: float | None = None


@dataclass(frozen=True)
class Step:
    """A network on the way from one method to another.

    Attributes:
        words: what it adds to the step before.
        records: its runs, one of each seed that all steps have, in order.
        added: LA in points minus that of the step before, by seed; empty for the first step.
        adjusted: p of the difference after Holm's correction over the steps; None for one seed, and the first step.
    """

    words: str
    records: tuple[Record, ...]
    added: tuple[float, ...] = ()
    adjusted: float | None = None


def options_of(record: Record) -> dict[str, Any]:
    """The controls of a run, by column; empty for a method as it is, also where it was named."""
    given = record.config.get("options", {})
    variant = getattr(Method.registry.get(record.method), "variant", None)
    return {
        name: value
        for name, value in given.items()
        if name in COLUMNS and value not in (None, getattr(variant, name, PLAIN.get(name)))
    }


def words_of(options: dict[str, Any]) -> str:
    """Controls in words."""
    said = []
    for name, value in options.items():
        said.append(NUMBERED[name].format(value) if name in NUMBERED else WORDS.get((name, value), f"{name} {value}"))
    return ", ".join(said)


def controls(records: Iterable[Record]) -> dict[str, list[Control]]:
    """The controls among these records by the method that they change, each beside that method with the same network,
    settings and seeds; those without such a run beside them are left out."""
    made = [group for group in groups(records) if group.first.method in EXPANSION]
    plain = [group for group in made if not options_of(group.first)]
    found: dict[str, dict[str, list[Control]]] = {}
    for group in (group for group in made if options_of(group.first)):
        for pair in _beside(group, plain, group.first.method):
            families = found.setdefault(group.first.method, {})
            families.setdefault(pair.other.label, []).append(Control(words_of(options_of(group.first)), pair))
    return {method: _with_settings(families) for method, families in found.items()}


def _with_settings(families: dict[str, list[Control]]) -> list[Control]:
    """The controls of one method, corrected within those beside the same runs, whose setting is named if several."""
    named = []
    for label, mine in families.items():
        called = title(mine[0].pair.other.first)
        setting = label.removeprefix(called).strip(", ") or called
        where = f" ({setting})" if len(families) > 1 else ""
        named += [replace(control, words=f"{control.words}{where}") for control in _corrected(mine)]
    return named


def headed(records: Iterable[Record]) -> "list[tuple[str, pd.DataFrame]]":
    """A heading and a `table` for each method that has controls."""
    return [
        (f"LA of {title_of(method)} under a control minus that of {title_of(method)}, paired by seed:", table(mine))
        for method, mine in controls(records).items()
    ]


def sizes(records: Iterable[Record], method: str = "dne") -> list[Control]:
    """A method as it is beside the other growing methods in every size that there is: LA of it minus theirs."""
    made = [g for g in groups(records) if g.first.method in EXPANSION and not options_of(g.first)]
    made = [group for group in made if _named(group)] or made
    own = [group for group in made if group.first.method == method]
    found = []
    for group in (group for group in made if group.first.method != method):
        for mine in own[:1]:
            pair = Pair(mine, group, False)
            if pair.seeds and mine.first.tasks == group.first.tasks:
                found.append(Control(size_words(group.first), pair))
    return _corrected(found)


def size_words(record: Record) -> str:
    """A method with what its network has: ``IA (k = 3), heads of 29, 1.72 M parameters``."""
    heads = f"k = {record.heads[-1]}, heads of {record.network.get('head_width')}"
    return f"{title_of(record.method)}: {heads}, {record.params['total'] / 1e6:.2f} M parameters"


def ladder(records: Iterable[Record], steps: Iterable[tuple[str, str, dict[str, Any]]] = LADDER) -> list[Step]:
    """What each step from IA to DNE adds, on the seeds that all steps have, so that the steps add up.

    Args:
        records: runs of one protocol, among them those of the steps with k = 1.
        steps: words, method, and controls of each (`LADDER`).

    Returns:
        The steps; empty where one of them, or a common seed, is missing.
    """
    steps = list(steps)
    made = [group for group in groups(records) if group.first.method in EXPANSION and group.first.heads[-1] == 1]
    there: list[Group] = []
    for _, method, options in steps:
        fits = [g for g in made if g.first.method == method and options_of(g.first) == options]
        fits = [g for g in fits if _named(g)] or fits
        fits = [g for g in fits if not there or g.first.network == there[0].first.network]
        there += fits[:1]
    if len(there) < len(steps):
        return []
    common = set.intersection(*({record.seed for record in group.records} for group in there))
    runs = [tuple(record for record in group.records if record.seed in common) for group in there]
    if not common:
        return []
    last = [[float(record.LA or 0) for record in mine] for mine in runs]
    added = [
        (),
        *(tuple(b - a for a, b in zip(one, two, strict=True)) for one, two in itertools.pairwise(last)),
    ]
    tested = [p_value(values) if values else None for values in added]
    adjusted = iter(holm([p for p in tested if p is not None]))
    return [
        Step(words, mine, values, None if p is None else next(adjusted))
        for (words, _, _), mine, values, p in zip(steps, runs, added, tested, strict=True)
    ]


def ladder_table(steps: Iterable[Step]) -> "pd.DataFrame":
    """A row for each step: seeds, LA, what it adds with the half width of its 95% interval, p after Holm, parameters in
    millions, and F of an image after the last task, spent, in MFLOPs."""
    import pandas as pd

    rows = []
    for step in steps:
        mean, half = interval(step.added) if step.added else (math.nan, None)
        first = step.records[0]
        rows.append(
            {"step": step.words, "seeds": len(step.records), "LA": _mean(float(r.LA or 0) for r in step.records)}
            | {"adds": mean, "+-": math.nan if half is None else half}
            | {"p (Holm)": math.nan if step.adjusted is None else step.adjusted}
            | {"parameters (M)": first.params["total"] / 1e6}
            | {"F spent (M)": math.nan if first.flops_spent is None else first.flops_spent / 1e6}
        )
    return pd.DataFrame(rows)


def network_words(record: Record) -> str:
    """A method with its controls: ``DNE, A = 1/H``."""
    return ", ".join(filter(None, (title_of(record.method), words_of(options_of(record)))))


def rates(records: Iterable[Record]) -> "pd.DataFrame":
    """LA of growing networks by learning rate, for a search of rates: a row for each network, in words, and a column
    for each value of ``learn.lr``; means over seeds, NaN where there is no run. ``seeds`` is the smallest number of
    them behind one of its means."""
    import pandas as pd

    found: dict[str, dict[Any, float]] = {}
    made = [group for group in groups(records) if group.first.method in EXPANSION]
    for group in sorted(made, key=lambda group: options_of(group.first).get("query_rate", 0)):  # else as they come
        row = found.setdefault(network_words(group.first), {})
        row["seeds"] = min(len(group.records), row.get("seeds", len(group.records)))
        row[float(group.first.config["learn"]["lr"])] = _mean(float(record.LA or 0) for record in group.records)
    columns = ["seeds", *sorted({name for row in found.values() for name in row if name != "seeds"})]
    return pd.DataFrame.from_dict(found, orient="index", columns=columns).rename_axis("network")


def _beside(group: Group, plain: list[Group], method: str) -> list[Pair]:
    def of(wanted: Group) -> Any:
        return lambda record: any(record is one for one in wanted.records)

    def alike(one: Record, other: Record) -> bool:
        known = one.config and other.config  # the oldest records do not hold their configuration
        return one.network == other.network and (not known or _but_for_controls(one) == _but_for_controls(other))

    same = [one for one in plain if one.first.method == method and alike(one.first, group.first)]
    # Runs that name a column, be it with its default, were trained for its controls: they go before all others.
    same = [one for one in same if _named(one)] or same
    return [pair for one in same for pair in pairs([group, one], of(group), of(one))]


def _named(group: Group) -> bool:
    return bool(COLUMNS & group.first.config.get("options", {}).keys())


def _but_for_controls(record: Record) -> dict[str, Any]:
    """The settings of a run without its controls, and without the names of the presets that they came from."""
    tree = {name: value for name, value in seedless(record).items() if name not in ("preset", "options")}
    options = record.config.get("options", {})
    return tree | {"options": {name: value for name, value in options.items() if name not in COLUMNS}}


def _corrected(found: list[Control]) -> list[Control]:
    tested = [p_value(control.pair.values()) for control in found]
    adjusted = iter(holm([p for p in tested if p is not None]))
    return [
        Control(control.words, control.pair, None if p is None else next(adjusted))
        for control, p in zip(found, tested, strict=True)
    ]


def table(found: Iterable[Control], minus: str = "difference") -> "pd.DataFrame":
    """A row for each control: seeds, LA, the difference with the half width of its 95% interval, p after Holm, and the
    accuracy before stage 2 on new and on old classes (means over tasks 2, 3, ... and seeds, percent)."""
    import pandas as pd

    rows = []
    for control in found:
        mean, half = control.pair.difference()
        p = control.adjusted
        there = [record for record in control.pair.one.records if record.seed in control.pair.seeds]
        rows.append(
            {"control": control.words, "seeds": len(control.pair.seeds), "LA": _mean(float(r.LA or 0) for r in there)}
            | {minus: mean, "+-": math.nan if half is None else half, "p (Holm)": math.nan if p is None else p}
            | {"told apart": "" if p is None else "yes" if p < 1 - LEVEL else "no"}
            | {f"{name} before stage 2": _mean(_before(there, name)) for name in ("new", "old")}
        )
    return pd.DataFrame(rows)


def _before(records: Iterable[Record], name: str) -> list[float]:
    return [value for record in records for value in record.before_tuning.get(name, []) if value is not None]


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan
