"""Runs chosen by words, averaged over seeds, and two configurations compared seed by seed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.run_views import RunView, accuracies, short
from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import (
    Group,
    Pair,
    groups,
    is_method,
    later_heads,
    other_images,
    pairs,
    stream_of,
    title,
)
from dne_lab.measure.metrics import intervals, with_half_width
from dne_lab.measure.record import Record, unique

if TYPE_CHECKING:
    import pandas as pd

NUMBERS = ("LA %", "AA %", "forgetting", "MFLOPs spent", "parameters (M)", "same patch %")
MEANT = NUMBERS[:3]  # with intervals over seeds; the others do not depend on the seed, or are measured of few


# Which runs ----------------------------------------------------------------------------------------------------------


def matching(runs: Sequence[RunView], text: str) -> list[RunView]:
    """The runs that every word of a text fits, whatever its case.

    A word fits the beginning of a word of a run's place, method, preset, data set or of a setting's value (``dne``,
    ``uniform``), ``seed 0`` and ``seed=0`` the seed, ``finished`` and ``unfinished`` how far it is,
    ``learn.epochs=30`` or ``epochs=30`` a setting of this value; with ``-`` before it (``-joint``) a word must not fit.
    """
    words = re.sub(r"\bseed\s+(\d+)", r"seed=\1", text.lower()).split()
    asked = [(word.removeprefix("-"), not word.startswith("-")) for word in words if word != "-"]
    return [run for run in runs if all(_fits(run, word) == wanted for word, wanted in asked)]


def _fits(run: RunView, word: str) -> bool:
    """A setting's name, or the end of it, with its whole value; else the beginning of a word, or a whole number."""
    text = run.asked if "=" in word else run.words
    if word not in text:  # quickly said of most
        return False
    end = "$" if "=" in word else r"(?!\d)" * word[-1].isdigit()
    return re.search(rf"(?<![^\W_]){re.escape(word)}{end}", text, re.MULTILINE) is not None


# Several seeds of one configuration ---------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class GroupView:
    """The finished runs of one configuration, which differ in nothing but their seed.

    Attributes:
        group: as `comparison.groups` made it.
        runs: its runs, in the order of their seeds.
    """

    group: Group
    runs: tuple[RunView, ...]

    @property
    def name(self) -> str:
        """The label, which no other group has."""
        return self.group.label

    @property
    def seeds(self) -> str:
        """``one seed, no interval`` or ``3 seeds``."""
        return "one seed, no interval" if len(self.runs) == 1 else f"{len(self.runs)} seeds"

    @property
    def label(self) -> str:
        """Method, what tells its settings from others, and how many seeds."""
        return f"{short(self.name)}: {self.seeds}"

    def accuracy(self) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
        """Classes seen after each task, mean over seeds of the accuracy over them, and the half widths of the 95%
        intervals (NaN for one seed)."""
        classes, _ = accuracies(self.runs[0])
        return classes, *intervals([run.record.seen_accuracy for run in self.runs])

    def total_loss(self) -> NDArray[np.float64]:
        """(epochs,): mean over seeds of the sum of all losses, of the epochs that all runs with curves have."""
        curves = [run.total_loss for run in self.runs if len(run.total_loss)]
        epochs = min(map(len, curves), default=0)
        return np.mean([curve[:epochs] for curve in curves], axis=0) if epochs else np.zeros(0)


def grouped(runs: Sequence[RunView]) -> list[GroupView]:
    """The finished runs by configuration; copies of one record count once.

    Raises:
        LabError: two different records of one setting and seed.
    """
    views = {id(run.record): run for run in reversed(runs)}
    alike: dict[tuple[Any, ...], list[Record]] = {}
    for run in runs:
        if (r := run.record).finished:
            alike.setdefault((r.id, r.config_sha256, *r.seen_accuracy), []).append(r)
    # `unique` looks at the whole content, which takes a second for five hundred
    made = groups(one for some in alike.values() for one in (unique(some) if len(some) > 1 else some))
    return [GroupView(group, tuple(views[id(record)] for record in group.records)) for group in made]


def group_table(made: Sequence[GroupView]) -> "pd.DataFrame":
    """A row per group: means over seeds, and of accuracies the half widths of their 95% intervals (``+-``)."""
    import pandas as pd

    rows = []
    for view in made:
        r = view.group.first
        values: dict[str, list[Any]] = {
            "LA %": [run.record.LA for run in view.runs],
            "AA %": [run.record.AA for run in view.runs],
            "forgetting": [run.record.forgetting for run in view.runs],
            "MFLOPs spent": [None if x.flops_spent is None else x.flops_spent / 1e6 for x in view.group.records],
            "parameters (M)": [(x.params.get("total") or np.nan) / 1e6 for x in view.group.records],
            "same patch %": [run.same_patch for run in view.runs],
        }
        row: dict[str, Any] = {"configuration": view.name, "method": title(r), "k": later_heads(r)}
        row |= {"seeds": len(view.runs)}
        for name in NUMBERS:
            there = [[float(v)] for v in values[name] if v is not None and v == v]
            mean, half = intervals(there) if there else (np.array([np.nan]), np.array([np.nan]))
            row |= {name: float(mean[0])} | ({f"{name} +-": float(half[0])} if name in MEANT else {})
        rows.append(row)
    words = ("configuration", "method")
    return pd.DataFrame(rows).astype({name: float for name in rows[0] if name not in words})


def with_intervals(frame: "pd.DataFrame") -> "pd.DataFrame":
    """The table of `group_table` for reading: ``73.33 ± 5.40``; of one seed the number alone."""
    shown = frame.copy()
    for name in MEANT:
        pairs = zip(frame[name], shown.pop(f"{name} +-"), strict=True)
        shown[name] = [with_half_width(a, b) for a, b in pairs]
    return shown


def curve_rows(runs: Sequence[RunView], made: Sequence[GroupView] = ()) -> "pd.DataFrame":
    """A row per run and finished task: accuracy over the classes seen; of groups also to which a run belongs."""
    import pandas as pd

    group_of = {id(run): view.name for view in made for run in view.runs}
    rows = [
        ({"configuration": group_of[id(run)]} if made else {})
        | {"run": run.name, "method": run.record.method, "preset": run.record.preset, "seed": run.record.seed}
        | {"finished": run.record.finished, "task": task, "classes": classes, "seen accuracy %": seen}
        for run in runs
        for task, (classes, seen) in enumerate(zip(*accuracies(run), strict=True), start=1)
    ]
    columns = ["run", "method", "preset", "seed", "finished", "task", "classes", "seen accuracy %"]
    return pd.DataFrame(rows, columns=["configuration", *columns] if made else columns)


# Two configurations ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Difference:
    """One configuration minus another, seed by seed.

    Attributes:
        said: sentences: how many seeds are paired, the difference in last accuracy, what else differs.
        frame: a row for each seed and their mean: last accuracy of either and the difference; empty without a pair.
    """

    said: tuple[str, ...]
    frame: "pd.DataFrame"


QUESTIONS = (("dne", "ia"), ("dne", "sta"), ("sta", "ia"))  # what a folder with these methods is asked first


def opening_pair(made: Sequence[GroupView]) -> tuple[GroupView, GroupView] | None:
    """Two configurations worth comparing first: DNE and IA under equal settings with as many heads and seeds as can be,
    or what comes next to them; else the first two, and None where there are less."""
    views = {view.name: view for view in made}
    for one, other in QUESTIONS:
        found = pairs([view.group for view in made], is_method(one), is_method(other))
        if found:
            best = max(
                found, key=lambda pair: (pair.strict, pair.one.first.heads == pair.other.first.heads, len(pair.seeds))
            )
            return views[best.one.label], views[best.other.label]
    return (made[0], made[1]) if len(made) > 1 else None


def difference(one: GroupView, other: GroupView) -> Difference:
    """Last accuracy of ``one`` minus ``other``, paired by seed, with the 95% interval of the mean (Student's t).

    Raises:
        LabError: one group with itself.
    """
    import pandas as pd

    if one.name == other.name:
        raise LabError("These are the same configuration twice: choose two.")
    pair = Pair(one.group, other.group, strict=False)
    seeds = pair.seeds
    if not seeds:
        mine, theirs = (", ".join(str(run.record.seed) for run in view.runs) for view in (one, other))
        none = f"No pair: no seed is in both ({short(one.name)} has {mine}; {short(other.name)} has {theirs})."
        return Difference((none, *_warnings(one, other)), pd.DataFrame())
    mean, half = pair.difference()
    differences = pair.values()
    rows: list[dict[str, Any]] = [
        {"seed": str(seed), short(one.name): one.group.last_by_seed()[seed]}
        | {short(other.name): other.group.last_by_seed()[seed], "difference": value}
        for seed, value in zip(seeds, differences, strict=True)
    ]
    if half is None:
        last = f"{mean:+.2f} points of last accuracy; one pair of seeds, so there is no interval"
    else:
        last = f"{mean:+.2f} ± {half:.2f} points of last accuracy (95% interval over {len(seeds)} paired seeds)"
    left = {len(view.runs) - len(seeds) for view in (one, other)} - {0}
    alone = [f"{len(view.runs) - len(seeds)} of {len(view.runs)} seeds of {short(view.name)}" for view in (one, other)
             if len(view.runs) > len(seeds)]  # fmt: skip
    said = [f"{short(one.name)} minus {short(other.name)}: {last}."]
    said += [f"Without a partner, left out: {' and '.join(alone)}."] if left else []
    return Difference((*said, *_warnings(one, other)), pd.DataFrame(rows))


def _warnings(one: GroupView, other: GroupView) -> list[str]:
    """What makes a difference between two configurations one of something else than their methods."""
    mine, theirs = one.group.first, other.group.first
    said = []
    if stream_of(mine) != stream_of(theirs) or other_images(mine, theirs):
        said.append("They learned different things (images, tasks, memory or start): this is no comparison of methods.")
    here, there = one.runs[0].settings, other.runs[0].settings
    unlike = [
        f"{name} ({short(here.get(name, 'none'), 24)}, {short(there.get(name, 'none'), 24)})"
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name)
    ]
    if unlike:
        more = f" and {len(unlike) - MOST} more" if len(unlike) > MOST else ""
        said.append(f"They differ in {', '.join(unlike[:MOST])}{more}.")
    return said


MOST = 8  # settings that are named
