"""What stands beside the table of accuracies: differences and whether they are told apart, costs, budgets of bytes."""

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.measure import budget
from dne_lab.measure.comparison import Group, Pair, groups, is_method, pairs, seedless, tasks_text, title
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.measure.significance import LEVEL, SMALLEST, beside_smallest, holm, p_value

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("seeds", "difference", "+-", "+- pooled", "p", "p (Holm)")
COSTS = ("seeds", "F spent (G)", "training (TFLOP)", "seconds", "params (M)", "model (MB)", "exemplars (MB)",
         "together (MB)", "extra parameters in exemplars")  # fmt: skip
AREAS = ("budgets", "from (MB)", "to (MB)", "area under LA", "area under AA")


def differences(records: Iterable[Record], method: str = "dne", fewest: int = 2) -> "pd.DataFrame":
    """LA of a method's runs minus that of every other method of their experiment, in points.

    Paired by seed: half width of the 95% interval (Student's t), the one from the deviation pooled over the methods of
    the experiment, p, and p after Holm's correction in the family of all differences of one group on one stream.
    ``told apart`` goes by the last; the column beside it says whether the difference is above or below the smallest one
    of interest.

    Args:
        fewest: common seeds that a difference needs.
    """
    rows: list[dict[str, Any]] = []
    made = groups(records)
    others = [name for name in dict.fromkeys(group.first.method for group in made) if name != method]
    families: dict[str, list[Pair]] = {}
    for pair in (pair for other in others for pair in pairs(made, is_method(method), is_method(other))):
        if len(pair.seeds) >= fewest:
            families.setdefault(pair.one.label, []).append(pair)
    for family in families.values():
        tested = [p_value(pair.values()) for pair in family]
        known = iter(holm([p for p in tested if p is not None]))
        for pair, p in zip(family, tested, strict=True):
            (mean, width), adjusted = pair.difference(), None if p is None else next(known)
            apart = "" if adjusted is None else "yes" if adjusted < 1 - LEVEL else "no"
            rows.append({
                "method": pair.one.label, "minus": pair.other.label, "on": pair.setting, "seeds": len(pair.seeds),
                "difference": mean, "+-": width, "+- pooled": pair.pooled, "p": p, "p (Holm)": adjusted,
                "told apart": apart, f"beside {SMALLEST:g} points": beside_smallest(mean, width),
            })  # fmt: skip
    columns = ["method", "minus", "on", *NUMBERS, "told apart", f"beside {SMALLEST:g} points"]
    return _frame(rows, columns, NUMBERS)


def costs(records: Iterable[Record]) -> "pd.DataFrame":
    """What each method costs: F of one image, FLOPs and seconds of learning all tasks, bytes of the finished model and
    of its exemplars, and how many exemplars the parameters beyond those of the smallest method of its data set would
    buy. Means over seeds; 1 MB is 10^6 bytes. Blank where records do not say."""
    made = groups(records)
    smallest: dict[str, int] = {}
    for group in made:
        if size := int(group.first.params.get("total") or 0):
            smallest[group.first.dataset] = min(size, smallest.get(group.first.dataset, size))
    return _frame([_cost_row(group, smallest) for group in made], ["method", "dataset", *COSTS], COSTS)


def _cost_row(group: Group, smallest: dict[str, int]) -> dict[str, Any]:
    first, size, shape = group.first, group.first.params.get("total"), budget.shape_of(group.first)
    both = budget.bytes_of(first)
    extra = budget.bought(size, smallest[first.dataset], shape) if size and shape else None
    return {
        "method": group.label,
        "dataset": first.dataset,
        "seeds": len(group.records),
        "F spent (G)": None if first.flops_spent is None else first.flops_spent / 1e9,
        "training (TFLOP)": None if first.flops_training is None else first.flops_training / 1e12,
        "seconds": _mean([record.seconds for record in group.records]),
        "params (M)": size / 1e6 if size else None,
        "model (MB)": None if both is None else both[0] / budget.MB,
        "exemplars (MB)": None if both is None else both[1] / budget.MB,
        "together (MB)": None if both is None else sum(both) / budget.MB,
        "extra parameters in exemplars": extra,
    }


def by_budget(records: Iterable[Record]) -> "pd.DataFrame":
    """LA and AA of every method at each total of bytes that its runs have, from small to large: a row per group.

    The total is ``memory.bytes`` where runs were given one, else what model and exemplars take. ``id``: the method's
    name as commands take it.
    """
    rows = []
    for name, total, group in at_budgets(records):
        la = interval(list(group.last_by_seed().values()))
        rows.append({
            "method": name, "on": _stream(group.first), "total (MB)": total, "seeds": len(group.records),
            "LA": la[0], "LA +-": la[1], "AA": _mean([record.AA for record in group.records]), "id": group.first.method,
        })  # fmt: skip
    columns = ["method", "on", "total (MB)", "seeds", "LA", "LA +-", "AA"]
    frame = _frame(rows, [*columns, "id"], columns[2:])
    return frame.sort_values(["on", "method", "total (MB)"], kind="stable", ignore_index=True)


def at_budgets(records: Iterable[Record]) -> list[tuple[str, float, Group]]:
    """The rows of `by_budget`: a name that is the same for all budgets of a method, the total in MB, and the runs."""
    found = []
    made = groups(records)
    for group, name in zip(made, _names([group.first for group in made]), strict=True):
        both, given = budget.bytes_of(group.first), group.first.memory.get("bytes")
        if (both is None and given is None) or group.first.joint or group.first.validation:
            continue
        found.append((name, (given if given is not None else sum(both or ())) / budget.MB, group))
    return found


def areas(records: Iterable[Record]) -> "pd.DataFrame":
    """Area under LA and AA over budgets of bytes (MEMO, ICLR 2023), divided by the range: a mean accuracy in percent.

    Of the methods that have runs at several totals on one stream, over the range of totals that all of them cover
    (trapezes between their runs); empty where there is no such range.
    """
    import numpy as np

    rows: list[dict[str, Any]] = []
    for on, there in by_budget(records).groupby("on", sort=False):
        curves = {
            name: curve for name, curve in there.groupby("method", sort=False) if curve["total (MB)"].nunique() > 1
        }
        if not curves:
            continue
        low = max(curve["total (MB)"].min() for curve in curves.values())
        high = min(curve["total (MB)"].max() for curve in curves.values())
        for name, curve in curves.items() if low < high else ():
            curve = curve.groupby("total (MB)", as_index=False)[["LA", "AA"]].mean()
            inner = curve["total (MB)"][(curve["total (MB)"] > low) & (curve["total (MB)"] < high)]
            at = np.array([low, *inner, high])
            means = {score: float(np.trapezoid(np.interp(at, curve["total (MB)"], curve[score]), at) / (high - low))
                     for score in ("LA", "AA")}  # fmt: skip
            rows.append({
                "method": name, "on": on, "budgets": len(curve), "from (MB)": low, "to (MB)": high,
                "area under LA": means["LA"], "area under AA": means["AA"],
            })  # fmt: skip
    return _frame(rows, ["method", "on", *AREAS], AREAS)


def _stream(record: Record) -> str:
    """What runs at every budget have in common: data set, tasks, epochs."""
    return f"{record.dataset}, {tasks_text(record.tasks)}, {record.epochs} epochs"


def _names(records: Sequence[Record]) -> list[str]:
    """A name for each record that is the same for all its budgets: the title, numbered where settings differ too."""
    keys = []
    for record in records:
        rest = {name: value for name, value in seedless(record).items() if name != "memory"}
        keys.append(
            (title(record), _stream(record), json.dumps([rest or record.preset, record.network], sort_keys=True))
        )
    names = []
    for label, on, settings in keys:
        alike = list(dict.fromkeys(key[2] for key in keys if key[:2] == (label, on)))
        names.append(label if len(alike) == 1 else f"{label}, settings {alike.index(settings) + 1}")
    return names


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _frame(rows: list[dict[str, Any]], columns: list[str], numbers: Sequence[str]) -> "pd.DataFrame":
    """A data frame whose numbers are numbers also where all of them are missing."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=columns)
    whole = {"seeds", "budgets"}
    return frame.astype({name: "int64" if name in whole else float for name in numbers})
