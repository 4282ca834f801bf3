"""What the templates of the pages may ask: numbers, tables and pictures from the committed records, as text.

Every function reads ``figures/records`` alone. A number that is not there is an error, so that no page says what no
record holds.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dne_lab.core import presets
from dne_lab.core.errors import LabError
from dne_lab.measure import beside, record, tables
from dne_lab.measure.comparison import Group, groups
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.measure.significance import LEVEL, holm, p_value, residual
from dne_lab.measure.tables import fixed
from dne_lab.methods.base import title_of
from dne_lab.training import run_list as runs_listed

FIGURES = Path(__file__).parent
RECORDS = FIGURES / "records"
NOTEBOOKS = FIGURES.parent / "notebooks"
sys.path.append(str(NOTEBOOKS))
import execute  # noqa: E402


@dataclass(frozen=True)
class Difference:
    """A mean difference in points with the half width of its 95% interval over seeds (None: one seed)."""

    mean: float
    width: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval excludes zero."""
        return self.width is not None and abs(self.mean) > self.width

    def __str__(self) -> str:
        """``+10.8 ± 7.1``."""
        return fixed(self.mean, 1, "+") + ("" if self.width is None else f" ± {self.width:.1f}")


def n(value: float, places: int = 1) -> str:
    """A number with fixed decimals, never -0."""
    return fixed(value, places)


def within(value: float) -> str:
    """A bound with one decimal, rounded up, for sentences that say "within"."""
    return n(math.ceil(round(10 * value, 6)) / 10)


def span(pair: tuple[float, float], places: int = 0) -> str:
    """``79 to 95``."""
    return f"{n(pair[0], places)} to {n(pair[1], places)}"


class Runs:
    """Finished runs, by the label that tables give them: ``runs["DNE (k = 1)"]``."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)

    @cached_property
    def groups(self) -> dict[str, Group]:
        return {group.label: group for group in groups(self.records)}

    def __getitem__(self, label: str) -> Group:
        if label not in self.groups:
            raise LabError(f"no runs of {label!r}: there are {', '.join(self.groups)}.")
        return self.groups[label]

    def where(self, **wanted: Any) -> "Runs":
        """The runs whose fields have these values, e.g. ``seed=0``; a tuple: one of them."""
        chosen = self.records
        for name, value in wanted.items():
            among = value if isinstance(value, tuple) else (value,)
            chosen = [one for one in chosen if getattr(one, name) in among]
        return Runs(chosen)

    def stream(self, *tasks: int) -> "Runs":
        """The runs of one stream, and joint models, which know no tasks."""
        return Runs([one for one in self.records if one.joint or one.tasks == list(tasks)])

    def __add__(self, other: "Runs") -> "Runs":
        return Runs([*self.records, *other.records])

    def mean(self, label: str, name: str = "LA") -> float:
        """Mean over seeds of a field of the record."""
        return interval([float(getattr(one, name)) for one in self[label].records])[0]

    def spread(self, label: str) -> float:
        """Half width of the 95% interval of LA over seeds."""
        width = interval([float(one.LA or 0) for one in self[label].records])[1]
        if width is None:
            raise LabError(f"{label}: one seed has no interval.")
        return width

    def gap(self, one: str, other: str) -> Difference:
        """LA of one minus the other, paired by seed."""
        return Difference(*interval(self._by_seed(one, other)))

    def _by_seed(self, one: str, other: str) -> list[float]:
        mine, theirs = (self[label].last_by_seed() for label in (one, other))
        return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]

    def gaps(self, *pairs: tuple[str, str]) -> str:
        """A table of `gap` for one family of comparisons of several seeds: p corrected by Holm within it, and beside
        each interval the one from the standard deviation pooled over all methods here."""
        pooled = residual(
            {label: group.last_by_seed() for label, group in self.groups.items() if not group.first.joint}
        )
        corrected = self.adjusted(*pairs)
        rows = [
            {"difference in LA, paired by seed": f"{one} - {other}", "points": str(self.gap(one, other))}
            | {"± pooled": n(pooled.half_width(len(self._by_seed(one, other)), means=2)), "p (Holm)": f"{p:.2g}"}
            | {"told apart": "yes" if p < 1 - LEVEL else "no"}
            for (one, other), p in corrected.items()
        ]
        return tables.to_markdown(pd.DataFrame(rows))

    def adjusted(self, *pairs: tuple[str, str]) -> dict[tuple[str, str], float]:
        """p of every pair's difference in LA, corrected by Holm within these pairs."""
        values = [p_value(self._by_seed(one, other)) for one, other in pairs]
        return dict(zip(pairs, holm(values), strict=True))

    def ratio(self, one: str, other: str, name: str = "flops_literal") -> float:
        """How many times ``name`` (flops_literal, flops_spent, params) of the other one has."""
        values = [
            first.params["total"] if name == "params" else getattr(first, name)
            for first in (self[one].first, self[other].first)
        ]
        return float(values[0] / values[1])

    def newest(self, label: str, first: int = 2) -> tuple[float, float]:
        """Smallest and largest accuracy on the newest classes after task ``first`` and later, over all seeds."""
        values = [row[-1] for one in self[label].records for row in one.accuracy[first - 1 :]]
        return min(values), max(values)

    def newest_means(self, label: str) -> tuple[float, float]:
        """Smallest and largest mean over seeds of the accuracy on the newest classes, after task 2 and later."""
        records = self[label].records
        means = [interval([one.accuracy[task][-1] for one in records])[0] for task in range(1, len(records[0].tasks))]
        return min(means), max(means)

    def first_task(self, label: str) -> tuple[float, float]:
        """Smallest and largest accuracy after task 1, over seeds."""
        values = [one.accuracy[0][0] for one in self[label].records]
        return min(values), max(values)

    def other(self, label: str, prediction: str) -> tuple[float, float]:
        """Smallest and largest LA over seeds of a method's other prediction, such as FOSTER's teacher."""
        values = [one.other_predictions[prediction]["LA"] for one in self[label].records]
        return min(values), max(values)

    def best(self, *labels: str) -> list[str]:
        """The labels from the highest mean LA to the lowest."""
        return sorted(labels or self.groups, key=lambda label: -self.mean(label))

    def table(self, *columns: str, sort: str | None = None) -> str:
        """The summary in these columns, those of the paper's row beside it too."""
        both = tables.compare(self.records).merge(
            tables.summary(self.records), how="left", on=["method", "tasks"], suffixes=("", "_")
        )
        if sort:
            both = both.sort_values(sort, kind="stable")
        return tables.to_markdown(both[list(columns)])

    def costs(self) -> str:
        """What learning costs and what model and exemplars weigh, one row a method."""
        return tables.to_markdown(beside.costs(self.records).drop(columns=["dataset", "seconds", "F spent (G)"]))

    def by_stream(self) -> str:
        """LA of every method (row) on every stream (column)."""
        return tables.to_markdown(tables.by_stream(self.records))


def runs(*folders: str) -> Runs:
    """The runs in these folders of ``figures/records``."""
    return Runs([one for name in folders for one in record.find(RECORDS / name)])


# The comparisons of the variants, one family: on the front page as on the page of digits100.
VARIANTS = (
    ("DNE (k = 1)", "IA (k = 1)"),
    ("STA (k = 1)", "IA (k = 1)"),
    ("Progressive (k = 1)", "IA (k = 1)"),
    ("DNE (k = 1)", "STA (k = 1)"),
    ("DNE (k = 1)", "Progressive (k = 1)"),
)


def results(networks: Mapping[str, Sequence[str]], **protocols: Runs) -> str:
    """LA with its interval: a row per method, a column per protocol. ``networks``: methods by the network they use."""
    rows = []
    for network, label in ((name, label) for name, labels in networks.items() for label in labels):
        row = {"LA, %": label.removesuffix(" (ResNet)"), "network": network}
        for name, found in protocols.items():
            there = label in found.groups
            width = f" ± {n(found.spread(label))}" if there and len(found[label].records) > 1 else ""
            row[name] = f"{n(found.mean(label))}{width}" if there else ""
        rows.append(row)
    return tables.to_markdown(pd.DataFrame(rows))


def there(found: Runs, *labels: str) -> list[str]:
    """Those of the labels of which there are runs."""
    return [label for label in labels if label in found.groups]


def seeds_of(found: Runs, *labels: str) -> str:
    """``one seed``, or ``2 to 3 seeds``: how many each of these methods has."""
    counts = sorted({len(found[label].records) for label in labels})
    if counts == [1]:
        return "one seed"
    return f"{counts[0]} seeds" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} seeds"


def several(found: Runs, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of which both methods have at least two seeds in common."""
    there = [pair for pair in pairs if set(pair) <= found.groups.keys()]
    return [(one, other) for one, other in there if len(found._by_seed(one, other)) > 1]


def pictures(name: str) -> bool:
    """Whether a figure has been drawn."""
    return (FIGURES / f"{name}.png").exists()


def run_list(folder: str) -> str:
    """How far the list of runs of a folder of records is, in a sentence."""
    listed = runs_listed.read(RECORDS / folder / "grid.json", RECORDS / folder)  # what is committed alone
    missing = [one.entry.name for one in listed if one.state != runs_listed.FINISHED]
    said = f"{len(listed) - len(missing)} of the {len(listed)} runs of `records/{folder}/grid.json` are in"
    return f"{said}; next: {', '.join(missing[:4])}." if missing else f"{said}."


CIFAR_TRAINING_IMAGES = 50_000


def trials(folder: str) -> str:
    """What a search of rates has found on validation images: a table, or that it has not been made."""
    found = record.find(RECORDS / folder) if any((RECORDS / folder).glob("*-*.json")) else []
    if not found:
        return "those of the preset, the same for all methods; the search per method has not been made yet."
    kept = presets.resolve(found[0].preset).learn.lr
    rates: dict[str, dict[float, float]] = {}
    for one in (one for one in found if one.finished):
        rates.setdefault(title_of(one.method), {})[one.config["learn"]["lr"]] = float(one.LA or 0)
    better = []
    for method, tried in rates.items():
        best = max(tried, key=lambda rate: tried[rate])
        share = tried[best] / 100
        half = 196 * math.sqrt(share * (1 - share) / (found[0].validation * CIFAR_TRAINING_IMAGES))  # binomial, 95%
        if kept not in tried or tried[best] - tried[kept] > half:
            better.append(f"{method} at {best:g}")
    table = pd.DataFrame(
        [
            {"method": method} | {f"lr {rate:g}": n(last) for rate, last in tried.items()}
            for method, tried in rates.items()
        ]
    )
    head = (
        f"{kept:g} for all, from {len(found)} trials: LA on a fifth of the training images, one seed, 50 + 25 x 2 "
        "classes, 8 epochs of the stem and 4 per task. A method would take another rate if that were better by more "
        "than the 95% interval that so many images leave (about one point); "
    )
    said = f"so it is: {', '.join(better)}." if better else "none is."
    return f"{head}{said}\n\n{tables.to_markdown(table)}"


def spread_of(protocols: Sequence[Runs], one: str, other: str) -> str:
    """``14 to 16``: points of LA by which one method lies above another, least and most over protocols."""
    gaps = [found.gap(one, other).mean for found in protocols]
    return span((min(gaps), max(gaps)))


def all_below(best: str, *protocols: Runs) -> bool:
    """Whether one method has the highest mean LA among the transformers with exemplars, in every protocol."""
    rivals = ("IA (k = 1)", "STA (k = 1)", "DNE (k = 1)", "Progressive (k = 1)", "DyTox")
    return all(found.best(best, *rivals)[0] == best for found in protocols)


def longer_finetuning() -> tuple[float, float]:
    """Accuracies on the newest classes of fine-tuning (ResNet, digits100) with 60 epochs, on a validation split."""
    (one,) = (found for found in record.find(RECORDS / "digits100-finetune-check") if found.epochs == 60)
    values = [row[-1] for row in one.accuracy[1:]]
    return min(values), max(values)


def narrow_rate() -> Record:
    """DyTox of 12 heads with a quarter of the learning rate, on a validation split."""
    (one,) = record.find(RECORDS / "digits100-widths-check")
    return one


@dataclass(frozen=True)
class Notebook:
    """What the front page says of a notebook, from its first cell."""

    file: Path
    title: str
    question: str

    @property
    def number(self) -> str:
        return self.file.name[:2]


def notebooks() -> list[Notebook]:
    """The notebooks in order.

    Raises:
        ValueError: a first cell that does not say what the table in notebooks/README.md shows.
    """
    return [Notebook(NOTEBOOKS / row["file"], row["title"], row["question"]) for row in execute.contents()]
