"""What `attention_groups` found of a network, as a figure: the share of each group beside its uniform share."""

from typing import TYPE_CHECKING

from dne_lab.analysis.group_tables import AttentionGroups
from dne_lab.core.errors import unknown
from dne_lab.plots.entropy import entropy_over_images
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Bars, Drawing, Mark, Points, one
from dne_lab.plots.style import GROUP_WORDS, GROUPS, INK, OTHERS, Style

if TYPE_CHECKING:
    import pandas as pd

UNIFORM = Style(INK, "|", "line-ns")


def drawn(groups: AttentionGroups, what: str) -> Figure:
    """What `AttentionGroups.plot` shows: "groups" or "images"."""
    figures = {"groups": groups_figure, "images": entropy_over_images}
    if what not in figures:
        raise unknown("plot of attention groups", what, figures)
    return figures[what](groups)


def groups_figure(groups: AttentionGroups) -> Figure:
    """A bar for each group of attention that there is, with its interval over images, and a tick at its share under
    uniform attention. The table is `AttentionGroups.table`."""
    table = groups.table()
    part = "" if groups.part == "attention" else f", {groups.part} part"
    shuffled = ", other experts see another picture" if groups.shuffled else ""
    heading = f"Attention by {groups.labelling}{part}{shuffled}: {groups.images:,} images\n"
    heading += "bars: share; ticks: share under uniform attention"
    return Figure("attention_by_group", heading, table, [], _marks, (8.0, 1.3 + 0.36 * len(table)))


def _marks(table: "pd.DataFrame") -> Drawing:
    alone = table.groupby("scope")["kind"].nunique().max() == 1
    kinds = [""] * len(table) if alone else [f", {kind}" for kind in table["kind"]]
    names = [f"{scope}{kind}: {g}" for scope, kind, g in zip(table["scope"], kinds, table["group"], strict=True)]
    marks: list[Mark] = []
    for number, group in enumerate(dict.fromkeys(table["group"])):
        rows = table[table["group"] == group]
        colour = GROUPS.get(str(group), OTHERS[number % len(OTHERS)].colour)
        words = f"{group}: {GROUP_WORDS[str(group)]}" if group in GROUP_WORDS else str(group)
        places = [float(place) for place in rows.index]
        ends = {"low": rows["share low"].tolist(), "high": rows["share high"].tolist()}
        notes = [f"effective keys: {keys:.1f}" for keys in rows["effective keys"]]
        marks.append(Bars(words, places, rows["share %"].tolist(), colour, notes=notes, across=True, **ends))
    uniform = table["uniform %"].tolist()
    marks.append(Points("uniform attention", uniform, [float(place) for place in table.index], UNIFORM, area=90.0))
    return one(
        marks,
        Axis("share of the attention (%)", low=0.0),
        Axis("", "category", tuple(names), reverse=True),
        legend=False,
    )
