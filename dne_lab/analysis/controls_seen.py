"""What the networks of trained controls look at, and what their read-outs hold: instruments beside accuracy.

A control that changes accuracy may do so by what it takes away or by what is learned in its place; the number of keys
that are used, and linear probes of the read-outs, tell which.
"""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from dne_lab.analysis.decomposition import TRAINED, Decomposition
from dne_lab.analysis.read_outs import ALL, FIRST, LATER, ProbeRecord
from dne_lab.measure.comparison import EXPANSION, Group, groups
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.measure.trained_controls import network_words, options_of, size_words

if TYPE_CHECKING:
    import pandas as pd

LATER_EXPERTS = "experts >= 2"  # the scope of an attention record's rows
KINDS = {"patches": ("spatial", "joint"), "first TAB": ("task1",), "second TAB": ("task2",)}
PROBES = {"probe: all": ALL, "probe: expert 1": FIRST, "probe: later": LATER}


def seen(
    records: Iterable[Record], attention: Iterable[Decomposition], probes: Iterable[ProbeRecord]
) -> "pd.DataFrame":
    """A row for each configuration of an expanding method that an instrument has measured.

    Args:
        records: of runs, those of controls among them.
        attention: what ``dne-lab report RUN --attention N`` wrote of some of them.
        probes: what ``dne-lab report RUN --probe`` wrote of some of them.

    Returns:
        ``network``; ``seeds`` that were measured; ``LA`` of the trainings that were; of what later experts look at, the
        effective number of keys in percent of those in sight (exp of the entropy): ``patches``, ``first TAB``,
        ``second TAB``; accuracies of linear probes of the trained network's read-outs, in percent: ``probe: all``,
        ``probe: expert 1``, ``probe: later``. Means over seeds; beside each "+-", half the width of its 95% interval
        over seeds. NaN where nothing was measured, or there is no such attention.
    """
    import pandas as pd

    looks, holds = {one.run: one for one in attention}, {one.run: one for one in probes}
    rows = []
    for group in groups(record for record in records if record.method in EXPANSION):
        mine = [record for record in group.records if record.id in looks or record.id in holds]
        if not mine:
            continue
        there = [looks[record.id] for record in mine if record.id in looks]
        held = [holds[record.id] for record in mine if record.id in holds]
        last = [looks.get(record.id, holds.get(record.id)) for record in mine]
        row = {"network": _words(group), "seeds": len(mine)}
        row |= _over_seeds("LA", [float(one.LA) for one in last if one is not None and one.LA is not None])
        for name, kinds in KINDS.items():
            row |= _over_seeds(name, [share for one in there for share in _used(one, kinds)])
        for name, read_outs in PROBES.items():
            row |= _over_seeds(name, [one.row(read_outs)["accuracy"] for one in held])
        rows.append(row)
    return pd.DataFrame(rows)


def _words(group: Group) -> str:
    wider = group.first.heads[-1] > 1 and not options_of(group.first)
    return size_words(group.first) if wider else network_words(group.first)


def _used(one: Decomposition, kinds: Sequence[str]) -> list[float]:
    """Effective keys of the later experts' attention of these kinds, in percent of the keys in sight."""
    if TRAINED not in one.moments:
        return []
    table = one.table(TRAINED, "rows")
    mine = table[table["kind"].isin(kinds) & (table["scope"] == LATER_EXPERTS)]
    return [100 * used / keys for used, keys in zip(mine["effective keys"], mine["keys"], strict=True)]


def _over_seeds(name: str, values: Sequence[float]) -> dict[str, float]:
    mean, half = interval(values) if values else (math.nan, None)
    return {name: mean, f"{name} +-": math.nan if half is None else half}
