"""Figure 5: one block of a model at hand, part by part with the shapes of its parameters, and the inside of its TAB."""

import functools
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from dne_lab.analysis.connections import parts
from dne_lab.errors import LabError
from dne_lab.measure.groups import TITLES
from dne_lab.models.expandable import ExpandableViT
from dne_lab.plots.architecture import COLOURS, NAMES, heads_text
from dne_lab.plots.figure import Figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

SHOWN = 3  # experts drawn: the first ones and the newest
WIDE, HIGH = 2.35, 0.66  # of a box
INSIDE = {  # of a task attention block: parameter, equation, what it does
    "w_q": "query  q = z W_q",
    "w_k": "keys  k_j = z_j W_k",
    "w_v": "values  v_j = z_j W_v^j",
    "b_v": "+ b^j",
    "scale": "λ Σ_j softmax_j(q·k_j/√D) v_j",
}


class Box(NamedTuple):
    """A part in the drawing."""

    x: float
    y: float
    text: str
    colour: str
    trains: bool


class Arrow(NamedTuple):
    """A line of the connection's colour; ``head``: it ends in an arrow head."""

    start: tuple[float, float]
    end: tuple[float, float]
    colour: str
    head: bool = True


def figure_5(network: ExpandableViT, layer: int = 0) -> Figure:
    """One block of this network: what each expert computes from the bottom up, whom it reads, what trains.

    To the right, the inside of the newest expert's first task attention block, if it has one. Of more than three
    experts the first two and the newest are drawn; the table has all, of all blocks.

    Raises:
        LabError: no expert yet, or no such block.
    """
    import pandas as pd

    table = pd.DataFrame(parts(network))
    depth = network.network.depth
    if not 0 <= layer < depth:
        raise LabError(f"layer {layer}: this network has blocks 0 to {depth - 1}.")
    name = TITLES.get(network.variant.name, network.variant.name)
    experts = _shown(table)
    title = (
        f"{name}: inside block {layer + 1} of {depth}, {heads_text(network.heads)} of {network.network.head_width}\n"
    )
    count = len(network.experts)
    title += f"{len(experts)} of {count} experts drawn; " if len(experts) < count else ""
    trains = (table["state"] == "trains").any()
    title += "bold frame: trains, thin: frozen" if trains else "finished: all experts are frozen"
    boxes, _ = layout(table, layer)
    width = max(box.x for box in boxes) + WIDE
    high = 1 + max(box.y for box in boxes)
    size = (max(5.6, 0.78 * width + 0.3), 1.2 + 0.62 * high)
    draw = functools.partial(_draw, layer=layer)
    return Figure(f"figure_5_{network.variant.name}", title, table, [], picture=draw, size=size)


def _shown(table: "pd.DataFrame") -> list[int]:
    experts = sorted(table["expert"].unique().tolist())
    return experts if len(experts) <= SHOWN else [*experts[: SHOWN - 1], experts[-1]]


def layout(table: "pd.DataFrame", layer: int) -> tuple[list[Box], list[Arrow]]:
    """Boxes and arrows for the rows of `connections.parts` of one block."""
    rows = table[table["layer"] == layer]
    order = ["lateral", "norm1", "attention", "norm2", "mix1", "norm_hidden", "mix2"]
    levels = {part: float(i) for i, part in enumerate(p for p in order if (rows["part"] == p).any())}
    columns = {expert: i * (WIDE + 0.55) for i, expert in enumerate(_shown(table))}
    boxes, arrows = [], []
    for row in rows.to_dict("records"):
        if row["expert"] not in columns:
            continue
        x, y = columns[row["expert"]], levels[row["part"]]
        colour = COLOURS.get(row["what"], "#8c8c8c")
        boxes.append(Box(x, y, _text(row), colour, row["state"] == "trains"))
        if y > 0:
            arrows.append(Arrow((x, y - 1 + HIGH / 2), (x, y - HIGH / 2), "#606060"))
        first, _, last = row["reads"].partition("-")
        for other in range(int(first), int(last or first) + 1):
            if other != row["expert"] and other in columns:
                # The reader's own norm of joint attention is applied to the tokens of all.
                at = levels["norm1"] if row["what"] == "joint" else y
                turn = (x - 0.4, at - 0.5)
                arrows += [Arrow((columns[other], at - 0.5), turn, colour, False)]
                arrows.append(Arrow(turn, (x - 0.4, at - HIGH / 2), colour))
    newest = rows[(rows["expert"] == max(columns)) & rows["what"].isin(("task1", "task2"))]
    if len(newest):
        boxes += _inside(newest.iloc[0].to_dict(), max(columns.values()) + WIDE + 0.9)
    for expert, x in columns.items():
        boxes.append(Box(x, -1.0, f"expert {expert}: tokens", "#ffffff", False))
        arrows.append(Arrow((x, -1 + HIGH / 2), (x, -HIGH / 2), "#606060"))
    return boxes, arrows


def _text(row: Mapping[Any, Any]) -> str:
    """Two lines: what it is and its shape."""
    shapes = dict(re.findall(r"([\w.]+) ((?:\d+ x )*\d+)", row["shapes"]))
    what = row["what"]
    if what == "LayerNorm":
        return f"LayerNorm\n{shapes['weight']}"
    if what in ("task1", "task2"):
        heads, inputs, outputs = shapes["w_v"].split(" x ")
        added = "; + input" if what == "task2" else ""
        return f"task attention block{'' if added else ', GELU'}\n{heads} heads read, {inputs} → {outputs}{added}"
    if what in ("linear1", "linear2"):
        after, added = ("", "; + input") if what == "linear2" else (", GELU", "")
        return f"linear layer{after}\n{' → '.join(reversed(shapes['weight'].split(' x ')))}{added}"
    if what == "lateral":
        return f"lateral linear map\n{shapes['lateral'].replace(' x ', ' → ')}"
    gated = "gated " if "gate" in shapes else ""
    return f"{gated}{NAMES[what]}\nq, k, v: {shapes['qkv'].split(' x ', 1)[1]}; + input"


def _inside(row: Mapping[Any, Any], x: float) -> list[Box]:
    shapes = dict(re.findall(r"([\w.]+) ((?:\d+ x )*\d+)", row["shapes"]))
    boxes = [
        Box(x, float(level), f"{text}\n{shapes[name]}", COLOURS[row["what"]], row["state"] == "trains")
        for level, (name, text) in enumerate(INSIDE.items())
    ]
    return [*boxes, Box(x, -1.0, f"inside expert {row['expert']}'s\nfirst task attention", "#ffffff", False)]


# The drawings -----------------------------------------------------------------------------------------------------


def _draw(axes: "Axes", table: "pd.DataFrame", layer: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    boxes, arrows = layout(table, layer)
    for arrow in arrows:
        axes.annotate(
            "", arrow.end, arrow.start, zorder=2,
            arrowprops={"arrowstyle": "->" if arrow.head else "-", "color": arrow.colour, "linewidth": 1.1,
                        "shrinkA": 0, "shrinkB": 0},
        )  # fmt: skip
    for box in boxes:
        empty = box.colour == "#ffffff"
        axes.add_patch(
            FancyBboxPatch(
                (box.x - WIDE / 2, box.y - HIGH / 2), WIDE, HIGH, boxstyle="round,pad=0,rounding_size=0.08", zorder=3,
                facecolor="none", edgecolor="none" if empty else box.colour, linewidth=2.4 if box.trains else 0.8,
            )
        )  # fmt: skip
        wide = len(max(box.text.split("\n"), key=len)) > 27
        axes.text(box.x, box.y, box.text, ha="center", va="center", fontsize=6.2 if wide else 7, zorder=4,
                  fontweight="bold" if empty else "normal")  # fmt: skip
    axes.set_xlim(-WIDE / 2 - 0.15, max(box.x for box in boxes) + WIDE / 2 + 0.15)
    axes.set_ylim(-1.5, max(box.y for box in boxes) + 0.5)
    axes.set_axis_off()
