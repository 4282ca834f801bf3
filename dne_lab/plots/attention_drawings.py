"""What the figures of `attention` draw: marks."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED
from dne_lab.analysis.labelling import GROUPS
from dne_lab.plots.marks import Axis, Bars, Drawing, Level, Mark, Points, around, one
from dne_lab.plots.matrices import grid
from dne_lab.plots.style import DASHES, GROUP_COLOURS, GROUP_WORDS, INK, Style, style

if TYPE_CHECKING:
    import pandas as pd

PAPER, SAME_PATCH, DIFFERENT_PATCH = "paper", "same patch", "different patch"
START = {
    "content": Style("#56b4e9", "o", "circle"),
    "position": Style("#e69f00", "s", "square"),
    "attention": Style("#0072b2", "D", "diamond"),
}
UNIFORM, PRINTED = Style(INK, "|", "line-ns"), Style("#d55e00", "x", "x-thin")
MOMENTS = {INITIAL: "untrained", TRAINED: "trained", SHUFFLED: "trained, other experts\nsee another picture"}
RATIO = "same-patch share / uniform share"


def group_bars(table: "pd.DataFrame") -> Drawing:
    """Stacked bars of the four groups, a pale one of uniform attention beside each; hatched: as the paper prints."""
    names = list(table["series"].unique())
    marks: list[Mark] = []
    for group in (*GROUPS, SAME_PATCH, DIFFERENT_PATCH):
        rows = table[(table["group"] == group) & ((table["preset"] == PAPER) == (group not in GROUPS))]
        key = {SAME_PATCH: "SPSH", DIFFERENT_PATCH: "DPSH"}.get(group, group)
        places = np.array([names.index(name) for name in rows["series"]], float)
        printed = group not in GROUPS
        below = [_below(table, name, group) for name in rows["series"]]
        label = f"{group}, as printed" if printed else f"{group}: {GROUP_WORDS[group]}"
        uniform = rows["uniform %"].astype(float)
        notes = (
            [SOURCE] * len(rows)
            if printed
            else [
                f"uniform attention: {u:.2f}%<br>{_over(row)}"
                for u, (_, row) in zip(uniform, rows.iterrows(), strict=True)
            ]
        )
        marks.append(
            Bars(label, list(places - 0.12 * (not printed)), rows["share %"].tolist(), GROUP_COLOURS[key],
                 [share for share, _ in below], 0.5, printed, notes=notes)
        )  # fmt: skip
        if not printed:
            marks.append(
                Bars(f"{group}, uniform attention", list(places + 0.3), uniform.tolist(), GROUP_COLOURS[key],
                     [share for _, share in below], 0.24, opacity=0.45, listed=False)
            )  # fmt: skip
    same = table[table["group"] == SAME_PATCH]
    places = np.array([names.index(name) for name in same["series"]]) - 0.12 * (same["preset"] != PAPER).to_numpy()
    notes = [SOURCE if row["preset"] == PAPER else _over(row) for _, row in same.iterrows()]
    shares = same["share %"].tolist()
    ends: dict[str, Any] = {"low": same["low"].tolist(), "high": same["high"].tolist()}
    dots = Style("#ffffff", "o", "circle")
    marks.append(Points("same patch", list(places), shares, dots, area=6.0, notes=notes, listed=False, **ends))
    numbers = dict(zip(same["series"], shares, strict=True))
    x = Axis("numbers: share of the same patch", "category", tuple(_tick(name, numbers[name]) for name in names))
    return one(marks, x, Axis("share of the attention (%)", low=0.0, high=100.0))


def _tick(name: str, share: float) -> str:
    method, preset = name.split(", ", 1)
    return "\n".join([method, *textwrap.wrap(preset, 9), f"{share:.1f}%"])


SOURCE = "printed in the paper, figure 4"


def _below(table: "pd.DataFrame", name: str, group: str) -> tuple[float, float]:
    """Share and uniform share of the groups that a bar stands on."""
    stack = (SAME_PATCH, DIFFERENT_PATCH) if group not in GROUPS else GROUPS
    rows = table[(table["series"] == name) & table["group"].isin(stack[: stack.index(group)])]
    return float(rows["share %"].sum()), float(rows["uniform %"].sum())


def _over(row: Any) -> str:
    """How many seeds, or images, are behind a row."""
    seeds = int(row["seeds"])
    images = f", {int(row['images']):,} images" if "images" in row and row["images"] == row["images"] else ""
    return ("one seed" if seeds == 1 else f"{seeds} seeds") + images


def moments(table: "pd.DataFrame") -> Drawing:
    """Same-patch share in multiples of its uniform value at three moments."""
    shown = lines(table)
    marks: list[Mark] = [Level("uniform attention", 1.0)]
    for number, (name, rows, look, dash) in enumerate(shown):
        at = [[*MOMENTS].index(m) + 0.06 * (number - (len(shown) - 1) / 2) for m in rows["moment"]]
        marks.append(_ratios(name, at, rows, look, dash))
    x = Axis("", "category", tuple(MOMENTS.values()))
    return one(marks, x, Axis(RATIO, low=0.0))


def _ratios(name: str, x: list[float], rows: "pd.DataFrame", look: Style, dash: str, **more: Any) -> Points:
    y, notes = rows["times uniform"].tolist(), [_over(row) for _, row in rows.iterrows()]
    return Points(name, x, y, look, dash, notes=notes, **around(y, rows["+-"]), **more)


def lines(table: "pd.DataFrame") -> list[tuple[str, "pd.DataFrame", Any, str]]:
    """Series, rows, style and dash: a method has its colour everywhere, a preset its dash."""
    dashes = {preset: DASHES[i % len(DASHES)][0] for i, preset in enumerate(table["preset"].unique())}
    return [
        (str(name), rows, style(str(rows["method"].iloc[0])), dashes[rows["preset"].iloc[0]])
        for name, rows in table.groupby("series", sort=False)
    ]


def by_task(table: "pd.DataFrame") -> Drawing:
    """A line per series after each task, hollow marks before it."""
    marks: list[Mark] = [Level("uniform attention", 1.0)]
    for name, rows, look, dash in lines(table):
        for moment, part in rows.groupby("moment", sort=False):
            after = moment == "after its task"
            label, x = name if after else f"{name}, before its task", part["task"].astype(float).tolist()
            marks.append(_ratios(label, x, part, look, dash if after else "", filled=after, listed=after))
    ticks = tuple(sorted(map(float, table["task"].unique())))
    return one(marks, Axis("task of the expert", ticks=ticks), Axis(RATIO, low=0.0))


def at_start(table: "pd.DataFrame") -> Drawing:
    """Same-patch shares of each part as dots on one line per series and scope."""
    places = table[["series", "scope"]].drop_duplicates()
    names = [f"{name}: {scope}" for name, scope in places.itertuples(index=False)]
    at = [float(names.index(f"{row['series']}: {row['scope']}")) for _, row in table.iterrows()]
    table = table.assign(place=at)
    grey = Style("#b0b0b0", "o", "circle")
    marks: list[Mark] = [
        Points("", rows["same patch %"].tolist(), rows["place"].tolist(), grey, "-", area=0.0, width=1.0, listed=False)
        for _, rows in table.groupby("place", sort=False)
    ]
    for part, look in START.items():
        rows = table[table["part"] == part]
        x = rows["same patch %"].tolist()
        notes = [_over(row) for _, row in rows.iterrows()]
        marks.append(
            Points(part, x, rows["place"].tolist(), look, across=True, notes=notes, **around(x, rows["+-"]))
        )  # fmt: skip
    first = table.drop_duplicates("place")
    printed = first.dropna(subset="paper, trained %")
    marks += [
        Points("uniform attention", first["uniform %"].tolist(), first["place"].tolist(), UNIFORM, area=90.0),
        Points("the paper, trained", printed["paper, trained %"].tolist(), printed["place"].tolist(), PRINTED),
    ]
    y = Axis("", "category", tuple(names), reverse=True)
    return one(marks, Axis("same-patch share of the attention (%)", low=0.0), y)


def flow(table: "pd.DataFrame") -> Drawing:
    """A matrix of readers and read, one per kind and layer."""
    size = int(table["expert"].max())
    panels = []
    for (kind, layer), rows in table.groupby(["kind", "layer"], sort=False):
        square = np.full((size, size), np.nan)
        reader, read = rows["expert"].to_numpy(int), rows["reads"].to_numpy(int)
        square[reader - 1, read - 1] = rows["share %"].to_numpy(float)
        name = f"{kind}, layer {layer}"
        notes = {
            (i - 2, j - 1): f"{name}: expert {i} reads expert {j}<br>uniform attention: {uniform:.1f}%"
            for i, j, uniform in zip(reader, read, rows["uniform %"], strict=True)
        }
        panels.append((name, square[1:], notes))
    across = int(table[["kind", "layer"]].drop_duplicates()["kind"].value_counts().max())
    names = [str(number) for number in range(1, size + 1)]
    titles = ("expert that is read", "expert that reads")
    return grid(panels, names[1:], names, titles, "share of the attention (%)", (0, 100), across=across)
