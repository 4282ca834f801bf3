"""What the templates of the pages may ask of attention: shares by group, ablations, linear probes of read-outs."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import facts
import pandas as pd
from facts import Difference, n

from dne_lab.analysis import ablation_study, decomposition, read_outs
from dne_lab.analysis.ablation_study import group_table, sweep_table
from dne_lab.commands import instruments
from dne_lab.core.errors import LabError
from dne_lab.measure import tables
from dne_lab.measure.metrics import interval
from dne_lab.methods.base import title_of


@cache
def _attention(records: Path) -> list[decomposition.Decomposition]:
    return decomposition.Decomposition.find(records / "attention")


def attention_table() -> str:
    """Same-patch shares and effective keys of every network, the paper's first."""
    return tables.to_markdown(instruments.summary(_attention(facts.RECORDS)))


def attention_of(preset: str, method: str, seed: int = 0) -> decomposition.Decomposition:
    """One attention record."""
    there = _attention(facts.RECORDS)
    (one,) = (found for found in there if (found.preset, found.method, found.seed) == (preset, method, seed))
    return one


def same_patch_gap(preset: str, one: str = "sta", other: str = "ia") -> Difference:
    """Same-patch share of one method minus another's in points, paired by seed."""
    there = [found for found in _attention(facts.RECORDS) if found.preset == preset]
    by: dict[tuple[str, int], float] = {(found.method, found.seed): found.same_patch().value for found in there}
    seeds = sorted({seed for method, seed in by if method == one} & {seed for method, seed in by if method == other})
    return Difference(*interval([by[one, seed] - by[other, seed] for seed in seeds]))


def used_keys(preset: str, method: str) -> float:
    """Effective keys in percent of those that a query of the later experts sees, mean over layers and seeds."""
    frame = instruments.summary(_attention(facts.RECORDS)).set_index("attention of")
    row = frame.loc[f"{title_of(method)}, {preset}"]
    return float(100 * row["effective keys"] / row["keys"])


def probe_tables() -> dict[str, str]:
    """By preset, what linear probes of frozen read-outs reach; empty without records."""
    folder = facts.RECORDS / "probe"
    found = read_outs.ProbeRecord.find(folder) if folder.is_dir() else []
    made = {}
    for preset in dict.fromkeys(one.preset for one in found):
        frame = instruments.probe_overview([one for one in found if one.preset == preset]).drop(columns="preset")
        for name in ("accuracy", "told"):
            pairs = zip(frame.pop(f"{name} %"), frame.pop(f"{name} +-"), strict=True)
            frame[f"{name} %"] = [f"{n(value)} ± {n(width)}" for value, width in pairs]
        made[preset] = tables.to_markdown(frame)
    return made


def held(preset: str, method: str, which: str) -> float:
    """Accuracy (%) over all classes of a linear probe on read-outs ("all", "expert 1", "later"): mean over seeds."""
    there = read_outs.ProbeRecord.find(facts.RECORDS / "probe")
    found = [one for one in there if (one.preset, one.method) == (preset, method)]
    frame = read_outs.probe_table(found)
    return float(frame[frame["read-outs"] == which]["accuracy %"].item())


HOWS = ("mean", "zero", "mask")  # in the order in which the pages show them


def reads_first(expert: int, read: int) -> bool:
    """Whether a connection is one to expert 1."""
    return read == 1


def reads_between(expert: int, read: int) -> bool:
    """Whether a connection is one to an expert between the first and the reader."""
    return 1 < read < expert


def reads_itself(expert: int, read: int) -> bool:
    """Whether a connection is an expert's own."""
    return read == expert


@cache
def _ablation(records: Path) -> list[ablation_study.AblationRecord]:
    return ablation_study.AblationRecord.find(records / "ablation")


class Ablations:
    """The committed ablation records of one preset: what is lost without a part of the later experts' attention."""

    def __init__(self, preset: str) -> None:
        self.records = [one for one in _ablation(facts.RECORDS) if one.preset == preset]
        self.table = group_table(self.records) if self.records else pd.DataFrame(columns=["how"])

    @property
    def hows(self) -> list[str]:
        """The ways of removing of which there are records."""
        return [how for how in HOWS if any(one.how == how for one in self.records)]

    def seeds(self, method: str, how: str) -> int:
        return sum(one.method == method and one.how == how for one in self.records)

    def has(self, method: str, how: str) -> bool:
        return self.seeds(method, how) > 0

    def _row(self, method: str, how: str, kind: str, removed: str, experts: str | int = "later") -> "pd.Series[Any]":
        t = self.table
        chosen = t[(t["method"] == method) & (t["how"] == how) & (t["kind"] == kind)]
        chosen = chosen[(chosen["removed"] == removed) & (chosen["experts"] == experts)]
        if len(chosen) != 1:
            raise LabError(f"{len(chosen)} ablation rows of {method}, {how}, {kind}, {removed}.")
        return chosen.iloc[0]

    def loss(self, method: str, how: str, kind: str, removed: str, experts: str | int = "later") -> str:
        """``7.1 ± 6.6``: points lost, with the 95% interval over seeds (of one seed over images)."""
        row = self._row(method, how, kind, removed, experts)
        return f"{n(row['loss'])} ± {n(row['+-'])}"

    def value(self, column: str, method: str, how: str, kind: str, removed: str, experts: str | int = "later") -> float:
        """A column of that row, e.g. ``mass %``."""
        return float(self._row(method, how, kind, removed, experts)[column])

    def above(self, method: str, how: str, kind: str, removed: str, points: float) -> bool:
        """Whether the whole interval of what later experts lose lies above so many points."""
        row = self._row(method, how, kind, removed)
        return float(row["loss"] - row["+-"]) > points

    def markdown(self) -> str:
        """One row a removal; columns: the attention removed in percent, then points lost by each way of removing."""
        whole = self.table[self.table["experts"] == "later"]
        rows = []
        for (method, kind, removed), some in whole.groupby(["method", "kind", "removed"], sort=False):
            row: dict[str, Any] = {"method": title_of(method), "attention": kind, "removed": removed}
            row["mass %"] = f"{some['mass %'].mean():.1f}"
            for how in self.hows:
                one = some[some["how"] == how]
                row[f"`{how}`"] = f"{n(one['loss'].iloc[0])} ± {n(one['+-'].iloc[0])}" if len(one) else ""
            rows.append(row)
        return tables.to_markdown(pd.DataFrame(rows))

    def readers(self, method: str, how: str, reads: Callable[[int, int], bool]) -> str:
        """Points that a later expert loses on its own classes without the connections that ``reads(expert, read)``
        accepts, all layers and kinds together: mean over the connections, ± over seeds."""
        values = []
        for one in (one for one in self.records if one.method == method and one.how == how):
            frame = sweep_table([one])
            frame = frame[(frame["kind"] == frame["kind"].iloc[-1]) & (frame["layer"] == frame["layer"].iloc[-1])]
            chosen = [
                reads(int(expert), int(read)) for expert, read in zip(frame["expert"], frame["reads"], strict=True)
            ]
            values.append(float(frame["own loss"][chosen].mean()))
        return str(Difference(*interval(values))).removeprefix("+")


def ablations(preset: str) -> Ablations:
    """The ablation records of a preset; ``hows`` is empty where there are none."""
    return Ablations(preset)
