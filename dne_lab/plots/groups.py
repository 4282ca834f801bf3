"""What `attention_groups` found of a network, as figures: the share of each group beside its uniform share, and,
image by image, how spread out attention is."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dne_lab.analysis.group_tables import PATCHES, AttentionGroups
from dne_lab.core.errors import unknown
from dne_lab.methods.base import title_of
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Bars, Drawing, Level, Mark, Panel, Points, Spread, one
from dne_lab.plots.style import GROUP_COLOURS, GROUP_WORDS, INK, Style, other, style

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
        colour = GROUP_COLOURS.get(str(group), other(number).colour)
        words = f"{group}: {GROUP_WORDS[str(group)]}" if group in GROUP_WORDS else str(group)
        places = [float(place) for place in rows.index]
        ends = {"low": rows["share low"].tolist(), "high": rows["share high"].tolist()}
        notes = [f"effective keys: {keys:.1f}" for keys in rows["effective keys"]]
        marks.append(Bars(words, places, rows["share %"].tolist(), colour, notes=notes, across=True, **ends))
    uniform = table["uniform %"].tolist()
    marks.append(Points(UNIFORM_NAME, uniform, [float(place) for place in table.index], UNIFORM, area=90.0))
    return one(
        marks,
        Axis("share of the attention (%)", low=0.0),
        Axis("", "category", tuple(names), reverse=True),
        legend=False,
    )


# How spread out attention is, image by image.

TOGETHER = 0.8  # of an expert's place on the axis, which its boxes share
UNIFORM_NAME = "uniform attention"
SHARE = "effective keys %"


def entropy_over_images(groups: AttentionGroups | Mapping[str, AttentionGroups]) -> Figure:
    """A box for each expert: its values over images, each the mean over layers, heads and query patches.

    Left the entropy of a row, right its effective keys in percent of the keys that it sees, in attention to patches;
    dashed: uniform attention.

    Args:
        groups: made with ``by_image=True``; or several networks by name ("ia", "sta", "dne" have their colours).

    Raises:
        LabError: no image was kept apart.
    """
    import pandas as pd

    several = {"": groups} if isinstance(groups, AttentionGroups) else dict(groups)
    frames = []
    for name, found in several.items():
        rows = found.by_image()
        patches = rows[rows["kind"].isin(PATCHES)]
        rows = rows if patches.empty else patches
        rows = rows.assign(**{SHARE: 100 * rows["effective keys"] / rows["keys"]})
        values = ["entropy", "uniform entropy", "effective keys", "keys", SHARE]
        frames.append(rows.groupby(["expert", "image"])[values].mean().reset_index().assign(series=name))
    table = pd.concat(frames, ignore_index=True)
    table.insert(0, "series", table.pop("series"))
    counts = sorted({found.images for found in several.values()})
    heading = "How spread out attention is: each box is of the means of " + " or ".join(f"{n:,}" for n in counts)
    heading += " images\nleft: entropy of a row; right: its effective keys in percent of the keys that it sees"
    return Figure("entropy_over_images", heading, table, [], _boxes, (8.4, 3.6))


def _boxes(table: "pd.DataFrame") -> Drawing:
    experts = sorted(table["expert"].unique())
    names = list(table["series"].unique())
    thick = TOGETHER / len(names)
    left: list[Mark] = []
    uniform: list[Mark] = []
    right: list[Mark] = [Level(UNIFORM_NAME, 100.0, listed=False)]
    for number, name in enumerate(names):
        mine = [(e, rows) for e, rows in table[table["series"] == name].groupby("expert")]
        places = [experts.index(e) + thick * (number - (len(names) - 1) / 2) for e, _ in mine]
        label, colour = title_of(name) or "images", style(name).colour if name else "#56b4e9"
        for marks, column in ((left, "entropy"), (right, SHARE)):
            marks.append(Spread(label, places, [rows[column].tolist() for _, rows in mine], colour, 0.85 * thick))
        for place, (_, rows) in zip(places, mine, strict=True):
            ends, level = [place - thick / 2, place + thick / 2], float(np.mean(rows["uniform entropy"]))
            uniform.append(Points(UNIFORM_NAME, ends, [level, level], UNIFORM, "--", area=0.0, width=1.0))
    x = Axis("expert", "category", tuple(str(e) for e in experts))
    entropy = Axis("entropy of a row (nats)")
    return Drawing([[Panel([*left, *uniform], x, entropy), Panel(right, x, Axis("effective keys / keys (%)"))]])
