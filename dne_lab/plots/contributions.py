"""What experts and their attention contribute, as figures: what is lost without a group of attention or a connection,
what linear probes find in the read-outs, and what controls change that were trained."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.ablation_study import EVERYTHING, FIRST, AblationRecord, group_table, settings, sweep_table
from dne_lab.analysis.read_outs import OWN, ProbeRecord, probe_table
from dne_lab.analysis.removal import BETWEEN, HOW, OTHERS
from dne_lab.analysis.sweep import Sweep
from dne_lab.core.errors import LabError
from dne_lab.measure import trained_controls
from dne_lab.measure.comparison import ORDER
from dne_lab.measure.trained_controls import Control, Step
from dne_lab.methods.base import title_of
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Bars, Drawing, Level, Mark, Points, Words, around, one
from dne_lab.plots.matrices import Colours, grid, inches
from dne_lab.plots.series import PAPER_DATASETS, scale
from dne_lab.plots.style import INK, Style, style

if TYPE_CHECKING:
    import pandas as pd

HOW_WORDS = {"mean": "replaced by its mean", "zero": "set to zero", "mask": "removed, the rest renormalised"}
HOW_LOOKS = {  # the mark of each way of removing, and whether it is filled
    "mean": (Style(INK, "o", "circle"), True),
    "zero": (Style(INK, "s", "square"), False),
    "mask": (Style(INK, "x", "x-thin"), True),
}
READS_WORDS = {
    OTHERS: "all that is read of other experts",
    FIRST: "what is read of expert 1",
    BETWEEN: "what is read of experts 2 to t - 1",
    EVERYTHING: "all of it",
}
ANNOTATED = 8  # experts up to which matrices carry their numbers


def ablation_drawings(found: Iterable[AblationRecord]) -> dict[str, Figure]:
    """All figures that the records can fill, by file name."""
    found = list(found)
    made: dict[str, Figure] = {}
    for preset in dict.fromkeys(record.preset for record in found):
        mine = [record for record in found if record.preset == preset]
        stem = f"ablation_{preset.replace('-', '_').replace(',', '_')}"
        made[f"{stem}_groups"] = ablation_groups(mine)
        for method in dict.fromkeys(record.method for record in mine if record.sweep):
            made[f"{stem}_{method}"] = ablation_matrix(record for record in mine if record.method == method)
    return made


def ablation_groups(found: Iterable[AblationRecord]) -> Figure:
    """Accuracy lost without each group of the later experts' attention, the ways of removing it side by side; the table
    has every expert on its own too.

    Raises:
        LabError: no record, or records of several presets.
    """
    members = _one(found)
    table = group_table(members)
    heading = f"Attention of experts 2, 3, ... removed\n{_scale(members, True)}"
    size = (8.4, 1.9 + 0.36 * len(_places(table)))
    runs: dict[str, list[str]] = {}
    for member in members:
        mine = runs.setdefault(title_of(member.method), [])
        mine += [] if member.run in mine else [member.run]
    return Figure("ablation_groups", heading, table, runs, _groups, size)


def ablation_matrix(found: Iterable[AblationRecord]) -> Figure:
    """Accuracy lost without each connection: a matrix (expert that reads, expert that is read) per kind and layer; of
    several ways of removing, each one's matrix over all kinds and layers, and all others in the table.

    Raises:
        LabError: no record with connections, or records of several methods or presets.
    """
    members = _one(found)
    if len({member.method for member in members}) > 1:
        raise LabError("ablation_matrix: records of several methods in one figure: draw one figure for each.")
    table = sweep_table(members)
    title = title_of(members[0].method)
    heading = f"{title}: accuracy lost (points) without a connection\n{_ways(members)}{_scale(members, False)}"
    runs = list(dict.fromkeys(m.run for m in members))  # several ways of removing of each
    return Figure("ablation_matrix", heading, table, {"": runs}, _matrix, _size(table))


def sweep_figure(sweep: Sweep) -> Figure:
    """Accuracy lost without each connection of a sweep of your own (`lab.ablation_sweep`), drawn as `ablation_matrix`.

    The table is `Sweep.table`.
    """
    table = sweep.table()
    heading = "Accuracy lost (points) without a connection\n"
    heading += f"{HOW_WORDS[sweep.how]} ({sweep.how}), {sweep.images:,} images"
    return Figure("ablation_sweep", heading, table, [], _matrix, _size(table))


def _one(found: Iterable[AblationRecord]) -> list[AblationRecord]:
    members = list(found)
    if not members:
        raise LabError("no ablation record: make one with dne-lab report RUN --ablation N.")
    values = sorted({member.preset for member in members})
    if len(values) > 1:
        raise LabError(f"ablation records of several (preset: {', '.join(values)}) in one figure: draw one each.")
    return [member for several in settings(members).values() for member in several]


def _ways(members: list[AblationRecord]) -> str:
    """What the ways of removing are, for a title: in a line each."""
    hows = [how for how in HOW if any(member.how == how for member in members)]
    return "".join(f"{how}: {HOW_WORDS[how]}\n" for how in hows)


def _scale(members: list[AblationRecord], intervals: bool) -> str:
    seeds = max(len(several) for several in settings(members).values())
    small = "" if members[0].dataset in PAPER_DATASETS and not members[0].preset.endswith("small") else ", small scale"
    over = "one seed" if seeds == 1 else f"mean over {seeds} seeds"
    if intervals:
        over = "one seed, 95% interval over images" if seeds == 1 else f"mean and 95% interval over {seeds} seeds"
    return f"{members[0].preset}{small}, {members[0].images:,} test images\n{over}"


# Groups ------------------------------------------------------------------------------------------------------------


def _places(table: "pd.DataFrame") -> list[tuple[str, str, str]]:
    """Method, kind and what was removed, of all later experts at once: a row of the drawing each."""
    later = table[table["experts"] == "later"]
    found = dict.fromkeys(zip(later["method"], later["kind"], later["removed"], strict=True))
    known = [*ORDER, *later["method"]]
    return sorted(found, key=lambda place: known.index(place[0]))


def _name(table: "pd.DataFrame", place: tuple[str, str, str]) -> str:
    method, kind, removed = place
    rows = table[(table["method"] == method) & (table["kind"] == kind) & (table["removed"] == removed)]
    what = READS_WORDS.get(removed, removed)
    return f"{title_of(method)}, {kind}: {what}\n({rows['mass %'].iloc[0]:.0f}% of the attention)"


def _groups(table: "pd.DataFrame") -> Drawing:
    """A row per group of attention, the ways of removing it side by side."""
    places, later = _places(table), table[table["experts"] == "later"]
    hows = [how for how in HOW if how in set(table["how"])]
    marks: list[Mark] = [Level("nothing lost", 0.0, dash="-", upright=True, listed=False)]
    for number, how in enumerate(hows):
        look, filled = HOW_LOOKS[how]
        marks.append(Points(f"{how}: {HOW_WORDS[how]}", [], [], look, filled=filled))
        for method in dict.fromkeys(place[0] for place in places):
            rows = later[(later["how"] == how) & (later["method"] == method)]
            where = zip(rows["method"], rows["kind"], rows["removed"], strict=True)
            y = [places.index(place) + 0.22 * (number - (len(hows) - 1) / 2) for place in where]
            notes = [f"{'one seed' if seeds == 1 else f'{seeds} seeds'}, {images:,} images"
                     for seeds, images in zip(rows["seeds"], rows["images"], strict=True)]  # fmt: skip
            name, colour = f"{title_of(method)}, {how}: {HOW_WORDS[how]}", style(method).colour
            loss = rows["loss"].tolist()
            more = {"filled": filled, "notes": notes, "listed": False, **around(loss, rows["+-"])}
            marks.append(Points(name, loss, y, look._replace(colour=colour), across=True, **more))
    y_axis = Axis("", "category", tuple(_name(table, place) for place in places), reverse=True)
    return one(marks, Axis("accuracy lost (percentage points)"), y_axis)


# Connections -------------------------------------------------------------------------------------------------------


def _parts(table: "pd.DataFrame") -> tuple[list[tuple[str, "pd.DataFrame"]], int]:
    """The matrices with their rows, and how many stand side by side: one per kind and layer, or of several ways of
    removing one each over all kinds and layers."""
    hows = [how for how in HOW if "how" in table and how in set(table["how"])]
    places = list(dict.fromkeys(zip(table["kind"], table["layer"], strict=True)))
    if len(hows) > 1:
        last = (table["kind"] == places[-1][0]) & (table["layer"] == places[-1][1])
        return [(how, table[last & (table["how"] == how)]) for how in hows], len(hows)
    kinds = [kind for kind, _ in places]
    found = []
    for kind, layer in places:
        name = "all kinds and layers" if kind == "all" else f"{kind}, layer {layer}"
        found.append((name, table[(table["kind"] == kind) & (table["layer"] == layer)]))
    return found, max(kinds.count(kind) for kind in kinds)


def _size(table: "pd.DataFrame") -> tuple[float, float]:
    parts, across = _parts(table)
    return inches(len(parts), table["expert"].nunique(), table["reads"].nunique(), across)


def _matrix(table: "pd.DataFrame") -> Drawing:
    """Blue gains, white nothing, red losses: told apart under every common colour blindness."""
    readers, sources = sorted(table["expert"].unique().tolist()), sorted(table["reads"].unique().tolist())
    parts, across = _parts(table)
    panels = []
    for name, rows in parts:
        values = np.full((len(readers), len(sources)), np.nan)
        notes = {}
        for reader, source, loss in zip(rows["expert"], rows["reads"], rows["loss"], strict=True):
            at = readers.index(reader), sources.index(source)
            values[at] = loss
            notes[at] = f"{name}: expert {reader} reads expert {source}"
        panels.append((name, values, notes))
    largest = max(float(np.nanmax(np.abs(values))) for _, values, _ in panels) or 1.0
    down, along = ("expert that reads", [*map(str, readers)]), ("expert that is read", [*map(str, sources)])
    colours = Colours("accuracy lost (points)", -largest, largest, "rdbu_r")
    return grid(panels, down, along, colours, across=across, digits=1, annotated=ANNOTATED)


# What read-outs hold: linear probes of all experts, expert 1, the later ones, and each.

READ_OUT_WORDS = {"all": "all read-outs", "later": "the later experts"}
READ_OUT_LOOKS = {  # what is measured, its columns, its mark, and whether that is filled
    "over all classes": ("accuracy", Style(INK, "o", "circle"), True),
    "task told": ("told", Style(INK, "s", "square"), False),
}


def read_out_drawings(found: Iterable[ProbeRecord]) -> dict[str, Figure]:
    """A figure per preset, by file name."""
    found = list(found)
    presets = dict.fromkeys(record.preset for record in found)
    return {
        f"read_outs_{preset.replace('-', '_').replace(',', '_')}": read_outs(r for r in found if r.preset == preset)
        for preset in presets
    }


def read_outs(found: Iterable[ProbeRecord]) -> Figure:
    """Accuracy of linear probes by method and set of read-outs: over all classes, and within the task when it is told.

    Raises:
        LabError: no record, or records of several presets.
    """
    members = list(found)
    presets = sorted({member.preset for member in members})
    if len(presets) != 1:
        what = f"probe records of several presets, {', '.join(presets)}" if presets else "no probe record"
        raise LabError(f"{what}: give those of one preset, made with dne-lab report RUN --probe.")
    table = probe_table(members)
    small = "" if members[0].dataset in PAPER_DATASETS and not presets[0].endswith("small") else ", small scale"
    seeds = int(table["seeds"].max())
    over = "one seed, 95% interval over images" if seeds == 1 else f"mean and 95% interval over {seeds} seeds"
    title = f"Linear probes of frozen read-outs\n{presets[0]}{small}; {over}"
    runs: dict[str, list[str]] = {}
    for member in members:
        heads = f" ({', '.join(map(str, member.heads))} heads)" if member.heads else ""
        runs.setdefault(f"{title_of(member.method)}{heads}", []).append(member.run)
    return Figure("read_outs", title, table, runs, _accuracies, (8.0, 1.8 + 0.26 * len(table)))


def _read_out(row: Any) -> str:
    heads = f" ({row['heads']} heads)" if row["heads"] else ""
    what = row["read-outs"]
    return f"{title_of(row['method'])}{heads}: {what if what == OWN else READ_OUT_WORDS.get(what, what)}"


def _accuracies(table: "pd.DataFrame") -> Drawing:
    """A row a set of read-outs, both accuracies on it; a method has its colour."""
    table = table.assign(place=range(len(table)))
    marks: list[Mark] = []
    for what, (column, look, filled) in READ_OUT_LOOKS.items():
        marks.append(Points(what, [], [], look, filled=filled))
        for method, rows in table.groupby("method", sort=False):
            name, x = f"{title_of(str(method))}, {what}", rows[f"{column} %"].tolist()
            notes = ["one seed" if seeds == 1 else f"{seeds} seeds" for seeds in rows["seeds"]]
            more = {"filled": filled, "notes": notes, "listed": False, **around(x, rows[f"{column} +-"])}
            own = look._replace(colour=style(str(method)).colour)
            marks.append(Points(name, x, rows["place"].tolist(), own, across=True, **more))
    y = Axis("", "category", tuple(_read_out(row) for _, row in table.iterrows()), reverse=True)
    return one(marks, Axis("accuracy (%)"), y)


# Controls that were trained: what was left out, or made true, from the first step on.

DIFFERENCE = "LA minus the method itself"


def controls_figure(found: Mapping[str, Sequence[Control]]) -> Figure:
    """A row for each control, below the method that it changes; bars: 95% intervals, paired by seed.

    Args:
        found: of `dne_lab.measure.trained_controls.controls`, not empty.
    """
    import pandas as pd

    tables = [
        trained_controls.table(mine, DIFFERENCE).assign(method=method).sort_values(DIFFERENCE, kind="stable")
        for method, mine in found.items()
    ]
    table = pd.concat(tables, ignore_index=True)
    table.insert(0, "method", table.pop("method"))
    members = [record for mine in found.values() for control in mine for record in control.pair.one.records]
    seeds = sorted({len(control.pair.seeds) for mine in found.values() for control in mine})
    counted = f"{seeds[0]} to {seeds[-1]} seeds" if len(seeds) > 1 else f"{seeds[0]} seed{'s' * (seeds[0] > 1)}"
    heading = f"Controls that were trained: {scale(members)}, {counted}\n"
    heading += "points of LA that a control is above (right) or below the method itself, paired by seed"
    heading += "; hollow: not told apart after Holm's correction"
    heading += "; without a bar: one seed" if seeds[0] == 1 else ""
    ids = {
        f"{title_of(method)} {control.words}": [record.id for record in control.pair.one.records]
        for method, mine in found.items()
        for control in mine
    }
    return Figure("controls", heading, table, ids, _control_marks, (8.4, 1.4 + 0.27 * len(table)))


def _control_marks(table: "pd.DataFrame") -> Drawing:
    names = tuple(f"{title_of(m)} {words}" for m, words in zip(table["method"], table["control"], strict=True))
    marks: list[Mark] = [Level("the method itself", 0.0, upright=True, listed=False)]
    for (method, told), rows in table.groupby(["method", "told apart"], sort=False):
        values, half = rows[DIFFERENCE], rows["+-"]
        notes = [
            f"LA {last:.1f}, {seeds} seed{'s' * (seeds > 1)}" + (f", p (Holm) {p:.2g}" if p == p else "")
            for last, seeds, p in zip(rows["LA"], rows["seeds"], rows["p (Holm)"], strict=True)
        ]
        places = [float(place) for place in rows.index]
        ends = around(values, half)
        look = style(str(method))
        name, filled = title_of(str(method)), told == "yes"
        name += "" if filled else ", not told apart"
        marks.append(Points(name, values.tolist(), places, look, "", across=True, filled=filled, notes=notes, **ends))
    return one(marks, Axis("points of LA"), Axis("", "category", names, reverse=True))


# From IA to DNE, step by step.

GAINED, LOST = "#0072b2", "#d55e00"  # told apart under every common colour blindness


def ladder_figure(steps: Sequence[Step]) -> Figure:
    """What each step adds to the LA of the one before, as bars that begin where the last one ended; bars: 95% intervals
    of what is added, paired by seed.

    Args:
        steps: of `dne_lab.measure.trained_controls.ladder`.

    Raises:
        LabError: no steps.
    """
    if not steps:
        raise LabError(
            "no steps: ladder() needs runs of IA, of DNE and of the controls between them with common seeds."
        )
    table = trained_controls.ladder_table(steps)
    ends = f"{title_of(steps[0].records[0].method)} to {title_of(steps[-1].records[0].method)}"
    seeds = len(steps[0].records)
    members = [record for step in steps for record in step.records]
    heading = f"From {ends}, step by step: {scale(members)}, {seeds} seed{'s' * (seeds > 1)}\n"
    heading += "LA (%), and what each step adds to the one before; lines: 95% intervals of that, paired by seed"
    return Figure(
        "ladder", heading, table, {step.words: [r.id for r in step.records] for step in steps}, _rungs, (8.4, 3.2)
    )


def _rungs(table: "pd.DataFrame") -> Drawing:
    """A floating bar for each step, a point where it ends."""
    last, added = table["LA"].tolist(), table["adds"].tolist()
    marks: list[Mark] = [Level(str(table["step"].iloc[0]), last[0], upright=True, listed=False)]
    for name, colour, sign in (("gained", GAINED, 1), ("lost", LOST, -1)):
        rows = table[table["adds"] * sign > 0]
        base = [last[i - 1] for i in rows.index]
        notes = [f"adds {value:+.1f} points" for value in rows["adds"]]
        ends = around(rows["LA"], rows["+-"])
        marks.append(
            Bars(
                name,
                rows.index.astype(float).tolist(),
                rows["adds"].tolist(),
                colour,
                base,
                notes=notes,
                across=True,
                **ends,
            )
        )
    marks.append(Points("LA", last, [float(i) for i in table.index], Style(INK, "o", "circle")))
    texts = [
        f"{at:.1f}" if change != change else f"{at:.1f} ({change:+.1f})" for at, change in zip(last, added, strict=True)
    ]
    places = enumerate(zip(texts, last, strict=True))
    # the first stands right of the line through its point
    marks += [
        Words(text, at, float(i), shift=(0.0, 14.0) if i else (4.0, 10.0), beside="center" if i else "left")
        for i, (text, at) in places
    ]
    names = [str(table["step"].iloc[0]), *(f"+ {step}" for step in table["step"].iloc[1:])]
    return one(marks, Axis("LA (%)"), Axis("", "category", tuple(names), reverse=True, low=-0.6))
