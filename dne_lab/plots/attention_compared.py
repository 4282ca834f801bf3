"""Attention of several networks beside each other: how spread out it is layer by layer, and how much of it stays on the
query's own patch before, during and after training."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED, Decomposition
from dne_lab.analysis.group_tables import FIRST, LATER, PATCHES, frame_of
from dne_lab.core.errors import LabError
from dne_lab.measure import paper
from dne_lab.measure.comparison import place_of
from dne_lab.measure.measurement import by_setting
from dne_lab.measure.metrics import interval
from dne_lab.methods.base import title_of
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Level, Mark, Panel, Points, around, one
from dne_lab.plots.series import scale
from dne_lab.plots.style import DASHES, INK, Style, style

if TYPE_CHECKING:
    import pandas as pd


SAME = ("SPSH", "SPDH")


def settings(found: Iterable[Decomposition], moment: str) -> dict[tuple[str, str], list[Decomposition]]:
    """Decompositions by preset and method, ordered by seed; runs of other settings apart, with these in the preset.

    Raises:
        LabError: none of several experts with that moment; two of one setting and seed.
    """
    there = [m for m in found if moment in m.moments and len(m.heads) > 1]
    if not there:
        raise LabError(
            "no attention record of a trained run with two experts or more. Make one first: "
            "dne-lab report RUN --attention 500."
        )
    there.sort(key=lambda m: (m.preset, place_of(m.method), m.seed))

    def setting(member: Decomposition) -> tuple[str, str]:
        k = member.heads[-1]
        return member.preset if k == 1 else f"{member.preset}, k = {k}", member.method

    return {(preset, method): members for (preset, method), members in by_setting(there, setting).items()}


def ids(made: dict[tuple[str, str], list[Decomposition]]) -> dict[str, list[str]]:
    """The ids of the runs of each setting, by the name of its series."""
    return {f"{title_of(method)}, {preset}": [m.run for m in some] for (preset, method), some in made.items()}


def estimate(rows: Sequence[Any], name: str) -> tuple[float, float, float]:
    """Mean, low and high of a value in rows of attention tables, one per seed: the 95% interval over seeds, or for one
    seed that over its images; NaN where a row has none (a group without keys)."""
    values = [float(row[name]) for row in rows]
    if not all(math.isfinite(value) for value in values):
        return math.nan, math.nan, math.nan
    mean, width = interval(values)
    if width is None:
        bare = name.removesuffix(" %")
        return mean, float(rows[0][f"{bare} low"]), float(rows[0][f"{bare} high"])
    return mean, mean - width, mean + width


USED, ENTROPY = "effective keys / keys (%)", "entropy of a row (nats)"


def fragmentation(found: Iterable[Decomposition]) -> Figure:
    """Entropy of a row in nats, and its exponential, the effective keys, in percent of the keys that the row could use.

    Layer by layer, with the values of uniform attention: log of the number of keys, and 100.

    Raises LabError as `attention.group_shares` does.
    """
    import pandas as pd

    made = settings(found, TRAINED)
    rows: list[dict[str, Any]] = []
    for (preset, method), members in made.items():
        tables = [member.patches(name="rows_by_layer") for member in members]
        if len({tuple(table["layer"]) for table in tables}) > 1:
            raise LabError(f"attention records of {', '.join(m.run for m in members)} are about different layers.")
        for layer in tables[0]["layer"]:
            chosen = [t[t["layer"] == layer].iloc[0] for t in tables]
            mean, width = interval([100 * float(row["effective keys"] / row["keys"]) for row in chosen])
            keys, low, high = estimate(chosen, "effective keys")
            if width is None:  # one seed: over its images
                width = 50 * (high - low) / float(chosen[0]["keys"])
            entropy, least, most = estimate(chosen, "entropy")
            rows.append(
                {"series": f"{title_of(method)}, {preset}", "method": method, "preset": preset}
                | {"layer": int(layer), "entropy": entropy, "entropy low": least, "entropy high": most}
                | {"uniform entropy": float(chosen[0]["uniform entropy"])}
                | {"effective keys": keys, "keys": float(chosen[0]["keys"]), "used %": mean, "+-": width}
                | {"largest %": float(np.mean([row["largest %"] for row in chosen]))}
                | {"uniform largest %": float(chosen[0]["uniform largest %"]), "seeds": len(members)}
            )
    members = [member for several in made.values() for member in several]
    heading = "Entropy of attention, and keys in effective use of those that a query sees, by layer\n"
    heading += f"experts 2, 3, ...; {scale(members)}"
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure("fragmentation", heading, frame, ids(made), _fragmentation, (8.4, 3.8))


PARTS = {"content": f"{INITIAL}, content", "position": f"{INITIAL}, position", "attention": INITIAL}


def along_training(found: Iterable[Decomposition]) -> Figure:
    """Same-patch attention in multiples of its uniform value: untrained, trained, and under the shuffled null model.

    1 is what uniform attention gives. If experts found each other's tokens of a patch by what these say of the picture,
    the share would fall to that of the position embeddings when the others look at another picture ("shuffled").

    Raises LabError as `attention.group_shares` does.
    """
    import pandas as pd

    made = settings(found, TRAINED)
    rows: list[dict[str, Any]] = []
    for (preset, method), members in made.items():
        for moment in (INITIAL, TRAINED, SHUFFLED):
            there = [member for member in members if moment in member.moments]
            tables = [t for member in there for t in [member.patches(moment)] if len(t)]
            if not tables:  # experts that do not read each other's patches have nothing to shuffle
                continue
            same = [t[t["group"].isin(SAME)][["share %", "uniform %"]].sum() for t in tables]
            mean, width = interval([float(s["share %"] / s["uniform %"]) for s in same])
            if width is None:  # one seed: over its images
                only = next(member.same_patch(moment) for member in there if len(member.patches(moment)))
                width = (only.high - only.low) / 2 / float(same[0]["uniform %"])
            rows.append(
                {"series": f"{title_of(method)}, {preset}", "method": method, "preset": preset}
                | {"moment": moment, "times uniform": mean, "+-": width}
                | {"same patch %": float(np.mean([s["share %"] for s in same]))}
                | {"uniform %": float(same[0]["uniform %"]), "seeds": len(tables)}
            )
    members = [member for several in made.values() for member in several]
    heading = f"Attention on the query's own patch, times its uniform share; experts 2, 3, ...\n{scale(members)}"
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure("attention_along_training", heading, frame, ids(made), _moments, (7.2, 3.8))


def attention_by_task(found: Iterable[Decomposition]) -> Figure:
    """Same-patch attention of every later expert, times its uniform share: before and after it learned its task.

    Experts are frozen after their task, so the share after task t is that of expert t ever after. Before: untrained, on
    its trained predecessors.

    Raises LabError as `attention.group_shares` does.
    """
    import pandas as pd

    made = settings(found, TRAINED)
    rows: list[dict[str, Any]] = []
    for (preset, method), members in made.items():
        after = [member.patches(name="table_by_expert") for member in members]
        before = [frame_of(member.before) for member in members if member.before]
        for moment, tables in (("before its task", before), ("after its task", after)):
            for expert in range(2, len(members[0].heads) + 1):
                ratios = [_times_uniform(table, expert) for table in tables]
                if not ratios:
                    continue
                mean, width = interval(ratios)
                rows.append(
                    {"series": f"{title_of(method)}, {preset}", "method": method, "preset": preset}
                    | {"moment": moment, "task": expert, "times uniform": mean, "+-": width, "seeds": len(ratios)}
                )
    members = [member for several in made.values() for member in several]
    heading = f"Own-patch attention of each expert, times its uniform share:\n{scale(members)}; hollow: before its task"
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure("attention_by_task", heading, frame, ids(made), _by_task, (7.2, 3.8))


def _times_uniform(table: "pd.DataFrame", expert: int) -> float:
    same = table[table["kind"].isin(PATCHES) & (table["expert"] == expert) & table["group"].isin(SAME)]
    return float(same["share %"].sum() / same["uniform %"].sum())


def attention_at_start(found: Iterable[Decomposition]) -> Figure:
    """Same-patch share of untrained networks, part by part: what the gate mixes, and the mixture (gpsa).

    Expert 1 starts on a 3 x 3 neighbourhood, later experts do not: the positional start alone gives expert 1 a
    same-patch share far above the uniform one. The paper's share of trained IA stands beside it.

    Raises:
        LabError: no decomposition of a gated network.
    """
    import pandas as pd

    printed = paper.attention_shares().set_index("model")["same_patch_percent"]
    rows: list[dict[str, Any]] = []
    members = [member for member in found if f"{INITIAL}, position" in member.moments]
    made = settings(members, INITIAL)
    for (preset, method), several in made.items():
        for scope in (FIRST, LATER):
            for part, moment in PARTS.items():
                mean, width = interval([member.same_patch(moment, scope).value for member in several])
                table = several[0].patches(moment, scope)
                rows.append(
                    {"series": f"{title_of(method)}, {preset}", "method": method, "preset": preset}
                    | {"scope": scope, "part": part, "same patch %": mean, "+-": width}
                    | {"uniform %": float(table[table["group"].isin(SAME)]["uniform %"].sum())}
                    | {"paper, trained %": printed.get(method), "seeds": len(several), "images": several[0].images}
                )
    frame = pd.DataFrame(rows).astype({"+-": float, "paper, trained %": float})
    heading = "Same-patch attention of untrained networks,\nby part of the gated attention"
    size = (7.4, 1.2 + 0.3 * frame[["series", "scope"]].drop_duplicates().shape[0])
    return Figure("attention_at_start", heading, frame, ids(made), _at_start, size)


# The drawings -----------------------------------------------------------------------------------------------------

START = {
    "content": Style("#56b4e9", "o", "circle"),
    "position": Style("#e69f00", "s", "square"),
    "attention": Style("#0072b2", "D", "diamond"),
}
UNIFORM, PRINTED = Style(INK, "|", "line-ns"), Style("#d55e00", "x", "x-thin")
MOMENTS = {INITIAL: "untrained", TRAINED: "trained", SHUFFLED: "trained, other experts\nsee another picture"}
RATIO = "same-patch share / uniform share"


def _fragmentation(table: "pd.DataFrame") -> Drawing:
    """Two panels: entropy of a row, and effective keys in percent."""
    left: list[Mark] = []
    right: list[Mark] = [Level("uniform attention", 100.0)]
    for name, rows, look, dash in _lines(table):
        layers, used, width = rows["layer"].astype(float).tolist(), rows["used %"], rows["+-"]
        notes = ["one seed" if seeds == 1 else f"{seeds} seeds" for seeds in rows["seeds"]]
        left.append(
            Points(f"{name}, uniform attention", layers, rows["uniform entropy"].tolist(), UNIFORM, "--", area=0.0,
                   width=0.8, listed=False)
        )  # fmt: skip
        for marks, values, low, high in (
            (left, rows["entropy"], rows["entropy low"], rows["entropy high"]),
            (right, used, used - width, used + width),
        ):
            ends: dict[str, Any] = {"low": low.tolist(), "high": high.tolist(), "notes": notes}
            marks.append(Points(name, layers, values.tolist(), look, dash, band=True, **ends))
    x = Axis("layer", ticks=tuple(sorted(map(float, table["layer"].unique()))))
    both = Panel(left, x, Axis(ENTROPY, low=0.0)), Panel(right, x, Axis(USED, low=0.0, high=105.0))
    return Drawing([both])


def sources(row: Any) -> str:
    """How many seeds, or images, are behind a row."""
    seeds = int(row["seeds"])
    images = f", {int(row['images']):,} images" if "images" in row and row["images"] == row["images"] else ""
    return ("one seed" if seeds == 1 else f"{seeds} seeds") + images


def _moments(table: "pd.DataFrame") -> Drawing:
    """Same-patch share in multiples of its uniform value at three moments."""
    shown = _lines(table)
    marks: list[Mark] = [Level("uniform attention", 1.0)]
    for number, (name, rows, look, dash) in enumerate(shown):
        at = [[*MOMENTS].index(m) + 0.06 * (number - (len(shown) - 1) / 2) for m in rows["moment"]]
        marks.append(_ratios(name, at, rows, look, dash))
    x = Axis("", "category", tuple(MOMENTS.values()))
    return one(marks, x, Axis(RATIO, low=0.0))


def _ratios(name: str, x: list[float], rows: "pd.DataFrame", look: Style, dash: str, **more: Any) -> Points:
    y, notes = rows["times uniform"].tolist(), [sources(row) for _, row in rows.iterrows()]
    return Points(name, x, y, look, dash, notes=notes, **around(y, rows["+-"]), **more)


def _lines(table: "pd.DataFrame") -> list[tuple[str, "pd.DataFrame", Any, str]]:
    """Series, rows, style and dash: a method has its colour everywhere, a preset its dash."""
    dashes = {preset: DASHES[i % len(DASHES)][0] for i, preset in enumerate(table["preset"].unique())}
    return [
        (str(name), rows, style(str(rows["method"].iloc[0])), dashes[rows["preset"].iloc[0]])
        for name, rows in table.groupby("series", sort=False)
    ]


def _by_task(table: "pd.DataFrame") -> Drawing:
    """A line per series after each task, hollow marks before it."""
    marks: list[Mark] = [Level("uniform attention", 1.0)]
    for name, rows, look, dash in _lines(table):
        for moment, part in rows.groupby("moment", sort=False):
            after = moment == "after its task"
            label, x = name if after else f"{name}, before its task", part["task"].astype(float).tolist()
            marks.append(_ratios(label, x, part, look, dash if after else "", filled=after, listed=after))
    ticks = tuple(sorted(map(float, table["task"].unique())))
    return one(marks, Axis("task of the expert", ticks=ticks), Axis(RATIO, low=0.0))


def _at_start(table: "pd.DataFrame") -> Drawing:
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
        notes = [sources(row) for _, row in rows.iterrows()]
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
