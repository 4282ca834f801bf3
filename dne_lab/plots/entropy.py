"""How spread out attention is, image by image: boxes of entropy and of effective keys, expert by expert."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from dne_lab.analysis.group_tables import PATCHES, AttentionGroups
from dne_lab.measure.comparison import TITLES
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Level, Mark, Panel, Points, Spread
from dne_lab.plots.style import INK, Style, style

if TYPE_CHECKING:
    import pandas as pd

TOGETHER = 0.8  # of an expert's place on the axis, which its boxes share
UNIFORM = "uniform attention"
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
    return Figure("entropy_over_images", heading, table, [], _marks, (8.4, 3.6))


def _marks(table: "pd.DataFrame") -> Drawing:
    experts = sorted(table["expert"].unique())
    names = list(table["series"].unique())
    thick = TOGETHER / len(names)
    left: list[Mark] = []
    uniform: list[Mark] = []
    right: list[Mark] = [Level(UNIFORM, 100.0, listed=False)]
    for number, name in enumerate(names):
        mine = [(e, rows) for e, rows in table[table["series"] == name].groupby("expert")]
        places = [experts.index(e) + thick * (number - (len(names) - 1) / 2) for e, _ in mine]
        label, colour = TITLES.get(name, name) or "images", style(name).colour if name else "#56b4e9"
        for marks, column in ((left, "entropy"), (right, SHARE)):
            marks.append(Spread(label, places, [rows[column].tolist() for _, rows in mine], colour, 0.85 * thick))
        for place, (_, rows) in zip(places, mine, strict=True):
            ends, level = [place - thick / 2, place + thick / 2], float(np.mean(rows["uniform entropy"]))
            look = Style(INK, "|", "line-ns")
            uniform.append(Points(UNIFORM, ends, [level, level], look, "--", area=0.0, width=1.0))
    x = Axis("expert", "category", tuple(str(e) for e in experts))
    entropy = Axis("entropy of a row (nats)")
    return Drawing([[Panel([*left, *uniform], x, entropy), Panel(right, x, Axis("effective keys / keys (%)"))]])
