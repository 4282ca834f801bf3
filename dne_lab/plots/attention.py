"""Attention sorted into groups as figures: shares (paper, figure 4 left), fragmentation by layer, training, flow."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab import paper
from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED, Decomposition
from dne_lab.analysis.labelling import GROUPS as LABELS
from dne_lab.analysis.shares import FIRST, LATER, frame_of
from dne_lab.errors import LabError
from dne_lab.measure.groups import EXPANSION, TITLES
from dne_lab.measure.metrics import interval
from dne_lab.plots import attention_drawings as drawn
from dne_lab.plots.attention_drawings import DIFFERENT_PATCH, PAPER, SAME_PATCH
from dne_lab.plots.figure import Figure
from dne_lab.plots.series import PAPER_DATASETS, PAPER_EPOCHS

if TYPE_CHECKING:
    pass

MEANS = ("share %", "uniform %", "effective keys", "keys", "mass per connection %", "uniform mass %")
COLUMNS = ["series", "method", "preset", "group", "share %", "low", "high", *MEANS[1:], "seeds", "images"]
SAME = ("SPSH", "SPDH")
PARTS = {"content": f"{INITIAL}, content", "position": f"{INITIAL}, position", "attention": INITIAL}


def attention_groups(found: Iterable[Decomposition]) -> Figure:
    """Shares of the four groups in the later experts' attention to patches, beside the paper's (figure 4 left).

    One bar a run setting: mean over seeds with the 95% interval over seeds of the same-patch share, or for one seed the
    interval over images; beside it the shares under uniform attention. The paper prints same and different patch only.

    Raises:
        LabError: no decomposition of a trained run with two experts or more.
    """
    import pandas as pd

    rows: list[dict[Any, Any]] = [row for row in paper.attention_shares().to_dict("records") for row in _printed(row)]
    made = _settings(found, TRAINED)
    for (preset, method), members in made.items():
        tables = [member.patches() for member in members]
        first: dict[str, Any] = {
            "series": f"{TITLES.get(method, method)}, {preset}",
            "method": method,
            "preset": preset,
        }
        last: dict[Any, Any] = {"seeds": len(members), "images": members[0].images}
        for label in LABELS:
            chosen = [t[t["group"] == label].iloc[0] for t in tables]
            means = {name: float(np.mean([row[name] for row in chosen])) for name in MEANS}
            rows.append(first | {"group": label} | means | last)
        uniform = sum(row["uniform %"] for row in rows[-4:-2])
        rows.append(first | {"group": SAME_PATCH, "uniform %": uniform} | _same_patch(members) | last)
    frame = pd.DataFrame(rows, columns=COLUMNS).astype({"seeds": "Int64", "images": "Int64"})
    heading = "Attention of experts 2, 3, ... by kind of key; pale half of a bar: uniform attention\n"
    heading += _scale([member for members in made.values() for member in members])
    size = (2.4 + 1.1 * frame["series"].nunique(), 4.0)
    ids = [member.run for members in made.values() for member in members]
    return Figure("attention_groups", heading, frame, ids, drawn.groups_axes, drawn.groups_plotly, size)


def fragmentation(found: Iterable[Decomposition]) -> Figure:
    """Effective keys of a row, exp(entropy), in percent of the keys it could use, layer by layer (100 = uniform).

    Raises LabError as `attention_groups` does.
    """
    import pandas as pd

    made = _settings(found, TRAINED)
    rows: list[dict[str, Any]] = []
    for (preset, method), members in made.items():
        tables = [member.patches(name="rows_by_layer") for member in members]
        for layer in tables[0]["layer"]:
            chosen = [t[t["layer"] == layer].iloc[0] for t in tables]
            used = [100 * float(row["effective keys"] / row["keys"]) for row in chosen]
            mean, width = interval(used)
            rows.append(
                {"series": f"{TITLES.get(method, method)}, {preset}", "method": method, "preset": preset}
                | {"layer": int(layer), "effective keys": float(np.mean([row["effective keys"] for row in chosen]))}
                | {"keys": float(chosen[0]["keys"]), "used %": mean, "+-": width}
                | {"largest %": float(np.mean([row["largest %"] for row in chosen]))}
                | {"uniform largest %": float(chosen[0]["uniform largest %"]), "seeds": len(members)}
            )
    members = [member for several in made.values() for member in several]
    heading = f"Keys in effective use, of those that a query sees, by layer: {_scale(members)}\nexperts 2, 3, ..."
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure(
        "fragmentation", heading, frame, [m.run for m in members], drawn.layers_axes, drawn.layers_plotly, (7.2, 3.6)
    )


def along_training(found: Iterable[Decomposition]) -> Figure:
    """Same-patch attention in multiples of its uniform value: untrained, trained, and under the shuffled null model.

    1 is what uniform attention gives. If experts found each other's tokens of a patch by what these say of the picture,
    the share would fall to that of the position embeddings when the others look at another picture ("shuffled").

    Raises LabError as `attention_groups` does.
    """
    import pandas as pd

    made = _settings(found, TRAINED)
    rows: list[dict[str, Any]] = []
    for (preset, method), members in made.items():
        for moment in (INITIAL, TRAINED, SHUFFLED):
            there = [member for member in members if moment in member.moments]
            tables = [t for member in there for t in [member.patches(moment)] if len(t)]
            if not tables:  # experts that do not read each other's patches have nothing to shuffle
                continue
            same = [t[t["group"].isin(SAME)][["share %", "uniform %"]].sum() for t in tables]
            mean, width = interval([float(s["share %"] / s["uniform %"]) for s in same])
            rows.append(
                {"series": f"{TITLES.get(method, method)}, {preset}", "method": method, "preset": preset}
                | {"moment": moment, "times uniform": mean, "+-": width}
                | {"same patch %": float(np.mean([s["share %"] for s in same]))}
                | {"uniform %": float(same[0]["uniform %"]), "seeds": len(tables)}
            )
    members = [member for several in made.values() for member in several]
    heading = f"Attention on the query's own patch, times its uniform share; experts 2, 3, ...\n{_scale(members)}"
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure(
        "attention_along_training", heading, frame, [m.run for m in members], drawn.moments_axes, drawn.moments_plotly
    )


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
    for (preset, method), several in _settings(members, INITIAL).items():
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
    return Figure(
        "attention_at_start", heading, frame, [m.run for m in members], drawn.start_axes, drawn.start_plotly, size
    )


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
    blocks = len(table[["kind", "layer"]].drop_duplicates())
    side = len(names)
    heading = f"Who reads whom: {TITLES.get(member.method, member.method)}, {_scale([member])}, seed {member.seed}\n"
    heading += "share of the attention of the expert of a row, percent"
    size = (min(14.0, 1.6 + 0.34 * blocks * (side + 1)), 1.3 + 0.34 * side)
    return Figure(f"expert_flow_{member.run}", heading, table, [member.run], drawn.flow_axes, drawn.flow_plotly, size)


def drawings(found: Sequence[Decomposition]) -> dict[str, Figure]:
    """The figures that these decompositions can fill, by name; one flow a method and preset, of its first seed."""
    gated = [member for member in found if len(member.heads) > 1 and f"{INITIAL}, position" in member.moments]
    made = {"attention_at_start": attention_at_start(gated)} if gated else {}
    later = [member for member in found if len(member.heads) > 1 and TRAINED in member.moments]
    if not later:
        return made
    makers: tuple[Callable[[list[Decomposition]], Figure], ...] = (attention_groups, fragmentation, along_training)
    made |= {figure.name: figure for figure in (maker(later) for maker in makers)}
    for (preset, method), members in _settings(later, TRAINED).items():
        if members[0].flow:
            made[f"expert_flow_{method}_{preset.replace(',', '+')}"] = expert_flow(members[0])
    return made


# What the tables share ----------------------------------------------------------------------------------------------


def _settings(found: Iterable[Decomposition], moment: str) -> dict[tuple[str, str], list[Decomposition]]:
    """Decompositions by preset and method, ordered by seed.

    Raises:
        LabError: none of several experts with that moment; two of one seed.
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
    for (preset, method), members in made.items():
        seeds = [m.seed for m in members]
        if len(set(seeds)) < len(seeds):
            raise LabError(
                f"two attention records of {method}, {preset}, of one seed ({seeds}): they cannot be averaged. "
                "Remove one of them."
            )
    return made


def _printed(row: dict[Any, Any]) -> list[dict[Any, Any]]:
    """The printed shares; the paper tells same and different patches, not heads."""
    method = row["model"]
    first: dict[Any, Any] = {"series": f"{TITLES[method]}, {PAPER}", "method": method, "preset": PAPER}
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


def _scale(members: Sequence[Decomposition]) -> str:
    """Data sets, scale and seeds, for a title."""
    names = ", ".join(dict.fromkeys(m.dataset for m in members))
    full = all(m.dataset in PAPER_DATASETS and m.epochs >= PAPER_EPOCHS for m in members)
    return names if full else f"{names}, small scale"
