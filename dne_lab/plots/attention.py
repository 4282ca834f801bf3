"""Attention sorted into groups as figures: shares (paper, figure 4 left), fragmentation by layer, training, flow."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab import paper
from dne_lab.analysis.decomposition import INITIAL, TRAINED, Decomposition
from dne_lab.analysis.labelling import GROUPS as LABELS
from dne_lab.analysis.shares import frame_of
from dne_lab.errors import LabError
from dne_lab.measure.groups import TITLES
from dne_lab.measure.metrics import interval
from dne_lab.plots import attention_drawings as drawn
from dne_lab.plots.attention_drawings import DIFFERENT_PATCH, PAPER, SAME_PATCH
from dne_lab.plots.attention_settings import scale_of, settings
from dne_lab.plots.attention_training import along_training, attention_at_start, attention_by_task
from dne_lab.plots.figure import Figure

if TYPE_CHECKING:
    pass

MEANS = ("share %", "uniform %", "effective keys", "keys", "mass per connection %", "uniform mass %")
COLUMNS = ["series", "method", "preset", "group", "share %", "low", "high", *MEANS[1:], "seeds", "images"]


def attention_groups(found: Iterable[Decomposition]) -> Figure:
    """Shares of the four groups in the later experts' attention to patches, beside the paper's (figure 4 left).

    One bar a run setting: mean over seeds with the 95% interval over seeds of the same-patch share, or for one seed the
    interval over images; beside it the shares under uniform attention. The paper prints same and different patch only.

    Raises:
        LabError: no decomposition of a trained run with two experts or more.
    """
    import pandas as pd

    rows: list[dict[Any, Any]] = [row for row in paper.attention_shares().to_dict("records") for row in _printed(row)]
    made = settings(found, TRAINED)
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
    heading += scale_of([member for members in made.values() for member in members])
    size = (2.4 + 1.1 * frame["series"].nunique(), 4.0)
    ids = [member.run for members in made.values() for member in members]
    return Figure("attention_groups", heading, frame, ids, drawn.groups_axes, drawn.groups_plotly, size)


def fragmentation(found: Iterable[Decomposition]) -> Figure:
    """Effective keys of a row, exp(entropy), in percent of the keys it could use, layer by layer (100 = uniform).

    Raises LabError as `attention_groups` does.
    """
    import pandas as pd

    made = settings(found, TRAINED)
    rows: list[dict[str, Any]] = []
    for (preset, method), members in made.items():
        tables = [member.patches(name="rows_by_layer") for member in members]
        for layer in tables[0]["layer"]:
            chosen = [t[t["layer"] == layer].iloc[0] for t in tables]
            used = [100 * float(row["effective keys"] / row["keys"]) for row in chosen]
            mean, width = interval(used)
            if width is None:  # one seed: over its images
                width = 50 * float(
                    (chosen[0]["effective keys high"] - chosen[0]["effective keys low"]) / chosen[0]["keys"]
                )
            rows.append(
                {"series": f"{TITLES.get(method, method)}, {preset}", "method": method, "preset": preset}
                | {"layer": int(layer), "effective keys": float(np.mean([row["effective keys"] for row in chosen]))}
                | {"keys": float(chosen[0]["keys"]), "used %": mean, "+-": width}
                | {"largest %": float(np.mean([row["largest %"] for row in chosen]))}
                | {"uniform largest %": float(chosen[0]["uniform largest %"]), "seeds": len(members)}
            )
    members = [member for several in made.values() for member in several]
    heading = f"Keys in effective use, of those that a query sees, by layer: {scale_of(members)}\nexperts 2, 3, ..."
    frame = pd.DataFrame(rows).astype({"+-": float})
    return Figure(
        "fragmentation", heading, frame, [m.run for m in members], drawn.layers_axes, drawn.layers_plotly, (7.2, 3.6)
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
    heading = f"Who reads whom: {TITLES.get(member.method, member.method)}, {scale_of([member])}, seed {member.seed}\n"
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
    makers: tuple[Callable[[list[Decomposition]], Figure], ...] = (
        attention_groups,
        fragmentation,
        along_training,
        attention_by_task,
    )
    made |= {figure.name: figure for figure in (maker(later) for maker in makers)}
    for (preset, method), members in settings(later, TRAINED).items():
        if members[0].flow:
            made[f"expert_flow_{method}_{preset.replace(',', '+')}"] = expert_flow(members[0])
    return made


# What the tables share ----------------------------------------------------------------------------------------------


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
