"""Attention along training as figures: untrained, before and after each task, and under the null model."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab import paper
from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED, Decomposition
from dne_lab.analysis.shares import FIRST, LATER, PATCHES, frame_of
from dne_lab.measure.groups import TITLES
from dne_lab.measure.metrics import interval
from dne_lab.plots import attention_drawings as drawn
from dne_lab.plots.attention_settings import SAME, scale_of, settings
from dne_lab.plots.figure import Figure

if TYPE_CHECKING:
    import pandas as pd

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
                {"series": f"{TITLES.get(method, method)}, {preset}", "method": method, "preset": preset}
                | {"moment": moment, "times uniform": mean, "+-": width}
                | {"same patch %": float(np.mean([s["share %"] for s in same]))}
                | {"uniform %": float(same[0]["uniform %"]), "seeds": len(tables)}
            )
    members = [member for several in made.values() for member in several]
    heading = f"Attention on the query's own patch, times its uniform share; experts 2, 3, ...\n{scale_of(members)}"
    frame = pd.DataFrame(rows).astype({"+-": float})
    ids = [member.run for member in members]
    return Figure("attention_along_training", heading, frame, ids, drawn.moments, (7.2, 3.8))


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
                    {"series": f"{TITLES.get(method, method)}, {preset}", "method": method, "preset": preset}
                    | {"moment": moment, "task": expert, "times uniform": mean, "+-": width, "seeds": len(ratios)}
                )
    members = [member for several in made.values() for member in several]
    heading = (
        f"Own-patch attention of each expert, times its uniform share:\n{scale_of(members)}; hollow: before its task"
    )
    frame = pd.DataFrame(rows).astype({"+-": float})
    ids = [member.run for member in members]
    return Figure("attention_by_task", heading, frame, ids, drawn.by_task, (7.2, 3.8))


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
    for (preset, method), several in settings(members, INITIAL).items():
        for scope in (FIRST, LATER):
            for part, moment in PARTS.items():
                mean, width = interval([member.same_patch(moment, scope).value for member in several])
                table = several[0].patches(moment, scope)
                rows.append(
                    {"series": f"{TITLES.get(method, method)}, {preset}", "method": method, "preset": preset}
                    | {"scope": scope, "part": part, "same patch %": mean, "+-": width}
                    | {"uniform %": float(table[table["group"].isin(SAME)]["uniform %"].sum())}
                    | {"paper, trained %": printed.get(method), "seeds": len(several), "images": several[0].images}
                )
    frame = pd.DataFrame(rows).astype({"+-": float, "paper, trained %": float})
    heading = "Same-patch attention of untrained networks,\nby part of the gated attention"
    size = (7.4, 1.2 + 0.3 * frame[["series", "scope"]].drop_duplicates().shape[0])
    return Figure("attention_at_start", heading, frame, [m.run for m in members], drawn.at_start, size)
