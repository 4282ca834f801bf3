"""Fragmentation: how spread out a row of attention is, layer by layer, as its entropy and as effective keys."""

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED, Decomposition
from dne_lab.analysis.group_tables import FIRST, LATER, PATCHES, frame_of
from dne_lab.core.errors import LabError
from dne_lab.measure import paper
from dne_lab.measure.comparison import EXPANSION, apart
from dne_lab.measure.metrics import interval
from dne_lab.methods.base import title_of
from dne_lab.plots import attention_drawings
from dne_lab.plots.attention_drawings import UNIFORM, lines
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Level, Mark, Panel, Points
from dne_lab.plots.series import PAPER_DATASETS, PAPER_EPOCHS

if TYPE_CHECKING:
    import pandas as pd


# What the figures of attention share: decompositions by setting, and how their scale is told.

SAME = ("SPSH", "SPDH")


def settings(found: Iterable[Decomposition], moment: str) -> dict[tuple[str, str], list[Decomposition]]:
    """Decompositions by preset and method, ordered by seed; runs of other settings apart, with these in the preset.

    Raises:
        LabError: none of several experts with that moment; two of one setting and seed.
    """
    order = list(EXPANSION)
    there = [m for m in found if moment in m.moments and len(m.heads) > 1]
    if not there:
        raise LabError(
            "no attention record of a trained run with two experts or more. Make one first: "
            "dne-lab report RUN --attention 500."
        )
    there.sort(key=lambda m: (m.preset, order.index(m.method) if m.method in order else len(order), m.method, m.seed))
    made: dict[tuple[str, str], list[Decomposition]] = {}
    for member in there:
        k = member.heads[-1]
        label = member.preset if k == 1 else f"{member.preset}, k = {k}"
        made.setdefault((label, member.method), []).append(member)
    return {
        (f"{preset}{more}", method): alike
        for (preset, method), members in made.items()
        for more, alike in apart(members).items()
    }


def ids(made: dict[tuple[str, str], list[Decomposition]]) -> dict[str, list[str]]:
    """The ids of the runs of each setting, by the name of its series."""
    return {f"{title_of(method)}, {preset}": [m.run for m in some] for (preset, method), some in made.items()}


def scale_of(members: Sequence[Decomposition]) -> str:
    """Data sets, scale and seeds, for a title."""
    names = ", ".join(dict.fromkeys(m.dataset for m in members))
    full = all(m.dataset in PAPER_DATASETS and m.epochs >= PAPER_EPOCHS for m in members)
    return names if full else f"{names}, small scale"


def estimate(rows: Sequence[Any], name: str) -> tuple[float, float, float]:
    """Mean, low and high of a value in rows of attention tables, one a seed: the 95% interval over seeds, or for one
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

    Raises LabError as `attention.attention_groups` does.
    """
    import pandas as pd

    made = settings(found, TRAINED)
    rows: list[dict[str, Any]] = []
    for (preset, method), members in made.items():
        tables = [member.patches(name="rows_by_layer") for member in members]
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
    heading += f"experts 2, 3, ...; {scale_of(members)}"
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure("fragmentation", heading, frame, ids(made), _marks, (8.4, 3.8))


# The drawings -----------------------------------------------------------------------------------------------------


def _marks(table: "pd.DataFrame") -> Drawing:
    """Two panels: entropy of a row, and effective keys in percent."""
    left: list[Mark] = []
    right: list[Mark] = [Level("uniform attention", 100.0)]
    for name, rows, look, dash in lines(table):
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


# Attention along training as figures: untrained, before and after each task, and under the null model.

PARTS = {"content": f"{INITIAL}, content", "position": f"{INITIAL}, position", "attention": INITIAL}


def along_training(found: Iterable[Decomposition]) -> Figure:
    """Same-patch attention in multiples of its uniform value: untrained, trained, and under the shuffled null model.

    1 is what uniform attention gives. If experts found each other's tokens of a patch by what these say of the picture,
    the share would fall to that of the position embeddings when the others look at another picture ("shuffled").

    Raises LabError as `attention_groups` does.
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
    heading = f"Attention on the query's own patch, times its uniform share; experts 2, 3, ...\n{scale_of(members)}"
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure("attention_along_training", heading, frame, ids(made), attention_drawings.moments, (7.2, 3.8))


def attention_by_task(found: Iterable[Decomposition]) -> Figure:
    """Same-patch attention of every later expert, times its uniform share: before and after it learned its task.

    Experts are frozen after their task, so the share after task t is that of expert t ever after. Before: untrained, on
    its trained predecessors.

    Raises LabError as `attention_groups` does.
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
    heading = (
        f"Own-patch attention of each expert, times its uniform share:\n{scale_of(members)}; hollow: before its task"
    )
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure("attention_by_task", heading, frame, ids(made), attention_drawings.by_task, (7.2, 3.8))


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
    return Figure("attention_at_start", heading, frame, ids(made), attention_drawings.at_start, size)
