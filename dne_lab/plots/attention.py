"""Attention sorted into groups as figures: shares (paper, figure 4 left), fragmentation by layer, training, flow."""

import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.decomposition import INITIAL, TRAINED, Decomposition
from dne_lab.analysis.group_tables import frame_of
from dne_lab.analysis.labelling import GROUPS
from dne_lab.core.errors import LabError
from dne_lab.core.files import file_name
from dne_lab.measure import paper
from dne_lab.measure.metrics import interval
from dne_lab.methods.base import title_of
from dne_lab.plots.attention_compared import (
    along_training,
    attention_at_start,
    attention_by_task,
    estimate,
    fragmentation,
    ids,
    settings,
    sources,
)
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Bars, Drawing, Mark, Points, one
from dne_lab.plots.matrices import Colours, grid, inches
from dne_lab.plots.series import scale
from dne_lab.plots.style import GROUP_COLOURS, GROUP_WORDS, Style

if TYPE_CHECKING:
    import pandas as pd

PAPER, SAME_PATCH, DIFFERENT_PATCH = "paper", "same patch", "different patch"
PRINTED = "printed in the paper, figure 4"
REFERENCES = ("uniform %", "keys", "uniform mass %")
KEYS, MASS = "effective keys", "mass per connection"
COLUMNS = [
    *("series", "method", "preset", "group", "share %", "low", "high", "uniform %"),
    *(KEYS, f"{KEYS} low", f"{KEYS} high", "keys"),
    *(f"{MASS} %", f"{MASS} low", f"{MASS} high", "uniform mass %", "seeds", "images"),
]


def group_shares(found: Iterable[Decomposition]) -> Figure:
    """Shares of the four groups in the later experts' attention to patches, beside the paper's (figure 4 left).

    One bar per run setting: mean over seeds; beside it the shares under uniform attention. Shares, effective keys and
    mass per connection have their 95% interval over seeds, or for one seed that over images. The paper prints same and
    different patch only.

    Raises:
        LabError: no decomposition of a trained run with two experts or more.
    """
    import pandas as pd

    rows: list[dict[Any, Any]] = [row for row in paper.attention_shares().to_dict("records") for row in _printed(row)]
    made = settings(found, TRAINED)
    for (preset, method), members in made.items():
        tables = [member.patches() for member in members]
        first: dict[str, Any] = {
            "series": f"{title_of(method)}, {preset}",
            "method": method,
            "preset": preset,
        }
        last: dict[Any, Any] = {"seeds": len(members), "images": members[0].images}
        for label in GROUPS:
            chosen = [t[t["group"] == label].iloc[0] for t in tables]
            row = first | {"group": label} | {name: float(np.mean([r[name] for r in chosen])) for name in REFERENCES}
            for name, value in (("share", "share %"), (KEYS, KEYS), (MASS, f"{MASS} %")):
                mean, low, high = estimate(chosen, value)
                ends = ("low", "high") if name == "share" else (f"{name} low", f"{name} high")
                row |= {value: mean} | dict(zip(ends, (low, high), strict=True))
            rows.append(row | last)
        uniform = sum(row["uniform %"] for row in rows[-4:-2])
        rows.append(first | {"group": SAME_PATCH, "uniform %": uniform} | _same_patch(members) | last)
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"seeds": "Int64", "images": "Int64"})
    heading = "Attention of experts 2, 3, ... by kind of key; pale half of a bar: uniform attention\n"
    heading += scale([member for members in made.values() for member in members])
    size = (2.4 + 1.1 * frame["series"].nunique(), 4.0)
    return Figure("attention_groups", heading, frame, ids(made), _group_bars, size)


def expert_flow(member: Decomposition) -> Figure:
    """Who reads whom in one run: the share of expert t's attention (rows) that goes to each expert (columns).

    Raises:
        LabError: a run whose experts do not read each other.
    """
    if not member.flow:
        raise LabError(f"the experts of {member.run} do not read each other: there is no flow to draw.")
    wide = frame_of(member.flow)
    wide = wide[wide["kind"].isin(("joint", "task1", "task2"))]
    names = [name for name in wide if str(name).startswith("expert ")]
    table = wide.melt(["kind", "layer", "expert"], names, "reads", "share %").dropna()
    table["reads"] = [int(str(name).removeprefix("expert ")) for name in table["reads"]]
    table = table[table["reads"] <= table["expert"]]
    heads = np.asarray(member.heads)
    both = zip(table["reads"], table["expert"], strict=True)
    table["uniform %"] = [100 * heads[read - 1] / heads[:reader].sum() for read, reader in both]
    table = table.sort_values(["kind", "layer", "expert", "reads"]).reset_index(drop=True)
    heading = f"Who reads whom: {title_of(member.method)}, {scale([member])}, seed {member.seed}\n"
    heading += "share of the attention of the expert of a row, percent"
    places = table[["kind", "layer"]].drop_duplicates()
    size = inches(len(places), len(names) - 1, len(names), int(places["kind"].value_counts().max()))
    return Figure(f"expert_flow_{member.run}", heading, table, {"": [member.run]}, _flow, size)


def drawings(found: Sequence[Decomposition]) -> dict[str, Figure]:
    """The figures that these decompositions can fill, by name; one flow per method and preset, of its first seed."""
    gated = [member for member in found if len(member.heads) > 1 and f"{INITIAL}, position" in member.moments]
    made = {"attention_at_start": attention_at_start(gated)} if gated else {}
    later = [member for member in found if len(member.heads) > 1 and TRAINED in member.moments]
    if not later:
        return made
    makers: tuple[Callable[[list[Decomposition]], Figure], ...] = (
        group_shares,
        fragmentation,
        along_training,
        attention_by_task,
    )
    made |= {figure.name: figure for figure in (maker(later) for maker in makers)}
    for (preset, method), members in settings(later, TRAINED).items():
        if members[0].flow:
            own = file_name(preset.replace(", ", "-").replace(" ", "").replace(",", "+"))
            made[f"expert_flow_{method}_{own}"] = expert_flow(members[0])
    return made


def _printed(row: dict[Any, Any]) -> list[dict[Any, Any]]:
    """The printed shares; the paper tells same and different patches, not heads."""
    method = row["model"]
    first: dict[Any, Any] = {"series": f"{title_of(method)}, {PAPER}", "method": method, "preset": PAPER}
    shares = {SAME_PATCH: row["same_patch_percent"], DIFFERENT_PATCH: row["different_patch_percent"]}
    return [first | {"group": group, "share %": float(share)} for group, share in shares.items()]


def _same_patch(members: Sequence[Decomposition]) -> dict[str, float]:
    """Mean and 95% interval of the same-patch share: over seeds, or over images where there is one seed."""
    estimates = [member.same_patch() for member in members]
    mean, width = interval([e.value for e in estimates])
    low, high = estimates[0].low, estimates[0].high
    if width is not None:
        low, high = mean - width, mean + width
    return {"share %": mean, "low": low, "high": high}


# The drawings -----------------------------------------------------------------------------------------------------


def _group_bars(table: "pd.DataFrame") -> Drawing:
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
            [PRINTED] * len(rows)
            if printed
            else [
                f"uniform attention: {u:.2f}%<br>{sources(row)}"
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
    notes = [PRINTED if row["preset"] == PAPER else sources(row) for _, row in same.iterrows()]
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


def _below(table: "pd.DataFrame", name: str, group: str) -> tuple[float, float]:
    """Share and uniform share of the groups that a bar stands on."""
    stack = (SAME_PATCH, DIFFERENT_PATCH) if group not in GROUPS else GROUPS
    rows = table[(table["series"] == name) & table["group"].isin(stack[: stack.index(group)])]
    return float(rows["share %"].sum()), float(rows["uniform %"].sum())


def _flow(table: "pd.DataFrame") -> Drawing:
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
    columns = "expert that is read", names
    colours = Colours("share of the attention (%)", 0, 100)
    return grid(panels, ("expert that reads", names[1:]), columns, colours, across=across)
