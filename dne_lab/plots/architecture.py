"""Figures 2 and 5: the architecture of a model at hand, drawn from its own modules (`analysis.connections`)."""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dne_lab.analysis.connections import STEPS, connections, parts
from dne_lab.core.errors import LabError
from dne_lab.methods.base import title_of
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import Variant
from dne_lab.plots.figure import Figure
from dne_lab.plots.style import INK, STYLES

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


MOST_HEADS = 24  # with more of them, a column is an expert
PATCHES = 3  # drawn of each head
# A kind of connection has the colour of the variant whose idea it is.
COLOURS = {
    "spatial": STYLES["ia"].colour,
    "class": STYLES["ia"].colour,
    "joint": STYLES["sta"].colour,
    "task1": STYLES["dne"].colour,
    "task2": STYLES["dne"].colour,
    "lateral": STYLES["progressive"].colour,
    "linear1": "#8c8c8c",
    "linear2": "#8c8c8c",
}
NAMES = {
    "spatial": "spatial attention",
    "class": "class attention",
    "joint": "joint attention",
    "task1": "task attention",
    "task2": "task attention",
    "lateral": "lateral linear map",
    "linear1": "linear layer",
    "linear2": "linear layer",
}
STAGES = ("tokens", "after the lateral map", "after attention", "hidden", "out")


class Node(NamedTuple):
    """A token of a head in the drawing."""

    x: float
    y: float
    expert: int
    trains: bool


class Link(NamedTuple):
    """A connection in the drawing: from the token read to the token that reads."""

    x: tuple[float, float]
    y: tuple[float, float]
    kind: str
    strong: bool  # of the expert that trains; in a finished model of the newest


class Layout(NamedTuple):
    """All that is drawn."""

    nodes: list[Node]
    links: list[Link]
    experts: dict[int, tuple[float, str]]  # number: middle, caption
    levels: list[str]
    width: float


def figure_2(network: ExpandableViT, layer: int = 0) -> Figure:
    """Who reads whom in one block of this network, for one output patch: three patches of each head stand for all.

    From the bottom up: the tokens of every head, attention, the two layers of the mixing. Dark: what trains.

    Args:
        network: with at least one expert; its table holds the connections of all blocks.
        layer: the block that is drawn, from 0.

    Raises:
        LabError: no expert yet, or no such block.
    """
    import pandas as pd

    table = pd.DataFrame(connections(network))
    depth = network.network.depth
    if not 0 <= layer < depth:
        raise LabError(f"layer {layer}: this network has blocks 0 to {depth - 1}.")
    name = named(network.variant)
    title = f"{name}: who reads whom in block {layer + 1} of {depth}\n{heads_text(network.heads)}; {PATCHES} of "
    title += f"{network.grid[0] * network.grid[1]} patches drawn; "
    title += "dark: trains, light: frozen" if (table["state"] == "trains").any() else "finished: all experts are frozen"
    plan = layout(table, layer)
    size = (max(6.4, 1.6 + 0.26 * plan.width), 1.6 + 0.85 * len(plan.levels))
    draw = functools.partial(_draw, layer=layer)
    return Figure(f"figure_2_{network.variant.name}", title, table, [], picture=draw, size=size)


def named(variant: Variant) -> str:
    """The variant's title, and the columns of controls that it sets: ``DNE (weights uniform)``."""
    controls = ", ".join(f"{name} {value}" for name, value in variant.controls.items())
    return f"{title_of(variant.name)} ({controls})" if controls else title_of(variant.name)


def heads_text(heads: Sequence[int]) -> str:
    """``12, 1, 1 heads``; runs of more than three alike are shortened: ``12, 1 x 25 heads``."""
    runs = [(count, len(list(run))) for count, run in itertools.groupby(heads)]
    parts = [f"{count} x {times}" if times > 3 else ", ".join([str(count)] * times) for count, times in runs]
    return f"{', '.join(parts)} heads" if sum(heads) > 1 else "1 head"


def layout(table: "pd.DataFrame", layer: int) -> Layout:
    """Places for the rows of `connections` of one block; links are the rows, head by head."""
    rows = table[table["layer"] == layer]
    heads = {int(r): int(h) for r, h in zip(rows["reader"], rows["heads"], strict=True)}
    merged = sum(heads.values()) > MOST_HEADS
    steps = [kinds for kinds in STEPS if rows["kind"].isin(kinds).any()]
    lateral = bool(rows["kind"].eq("lateral").any())
    levels = [STAGES[0], *(STAGES[1:2] if lateral else ()), *STAGES[2:]]
    column: dict[tuple[int, int], float] = {}
    experts: dict[int, tuple[float, str]] = {}
    x = 0.0
    for expert, count in heads.items():
        start = x
        for head in range(1 if merged else count):
            column[expert, head] = x + (PATCHES - 1) / 2
            x += PATCHES + 0.7
        caption = f"expert {expert}" if len(heads) <= 12 else str(expert)
        caption += f"\n{count} heads" if merged and count > 1 else ""
        experts[expert] = ((start + x - 0.7 - 1) / 2, caption)
        x += 1.6
    training = {int(r): s == "trains" for r, s in zip(rows["reader"], rows["state"], strict=True)}
    strong = training if any(training.values()) else {expert: expert == max(heads) for expert in heads}
    nodes, links = [], []
    for level in range(len(levels)):
        for (expert, _), middle in column.items():
            spread = _spread(middle, level, lateral)
            nodes += [Node(at, float(level), expert, training[expert]) for at in spread]
    for level, kinds in enumerate(steps):
        for kind, reader, read, patches in rows.loc[
            rows["kind"].isin(kinds), ["kind", "reader", "read", "patches"]
        ].itertuples(index=False):
            for (expert, head), middle in column.items():
                if expert != reader:
                    continue
                sources = [at for (other, h), at in column.items() if other == read]
                if kind in ("spatial", "class") and read == reader and not _reads_others(rows, kind, reader):
                    sources = [column[expert, head]]  # head by head
                for at in sources:
                    links += _links(kind, patches, at, middle, level, lateral, strong[expert])
    return Layout(nodes, links, experts, levels, x)


def _spread(middle: float, level: int, lateral: bool) -> list[float]:
    """All patches where attention still reads them, one output patch above."""
    below = level <= (1 if lateral else 0)
    return [middle + i - (PATCHES - 1) / 2 for i in range(PATCHES)] if below else [middle]


def _links(
    kind: str, patches: str, source: float, target: float, level: int, lateral: bool, strong: bool
) -> list[Link]:
    below, above = _spread(source, level, lateral), _spread(target, level + 1, lateral)
    ends = [(a, b) for a in below for b in above]
    if patches.startswith("same"):
        ends = (
            list(zip(below, above, strict=True)) if len(below) == len(above) else [(below[len(below) // 2], above[0])]
        )
    elif patches.startswith("others"):
        ends = [(a, b) for i, a in enumerate(below) for b in above if i != len(below) // 2]
    return [Link((a, b), (float(level), float(level + 1)), kind, strong) for a, b in ends]


def _reads_others(rows: "pd.DataFrame", kind: str, reader: int) -> bool:
    mine = rows[(rows["kind"] == kind) & (rows["reader"] == reader)]
    return bool((mine["read"] != reader).any())


# The drawings -----------------------------------------------------------------------------------------------------


def _draw(axes: "Axes", table: "pd.DataFrame", layer: int) -> None:
    from matplotlib.lines import Line2D

    plan = layout(table, layer)
    for strong in (False, True):  # on top
        for link in (one for one in plan.links if one.strong == strong):
            between = link.kind in ("task1", "task2", "joint", "lateral")
            axes.plot(link.x, link.y, color=COLOURS[link.kind], linewidth=0.9 if strong else 0.6,
                      alpha=(0.85 if between else 0.6) if strong else 0.32, zorder=2 + strong,
                      solid_capstyle="round")  # fmt: skip
    for trains, face in ((False, "#d0d0d0"), (True, INK)):
        dots = [n for n in plan.nodes if n.trains == trains]
        axes.scatter([n.x for n in dots], [n.y for n in dots], s=26, marker="s", facecolor=face, edgecolor=INK,
                     linewidth=0.6, zorder=5)  # fmt: skip
    for middle, caption in plan.experts.values():
        axes.text(middle, -0.28, caption, ha="center", va="top", fontsize=8)
    if len(plan.experts) > 12:
        axes.set_xlabel("expert")
    axes.set_yticks(range(len(plan.levels)), plan.levels)
    axes.set_xticks([])
    axes.set_xlim(-1.2, plan.width - 0.9)
    axes.set_ylim(-0.75, len(plan.levels) - 0.7)
    axes.grid(visible=False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.tick_params(length=0)
    named = {NAMES[link.kind]: COLOURS[link.kind] for link in plan.links}
    keys = [Line2D([], [], color=colour, label=name) for name, colour in named.items()]
    axes.legend(handles=keys, loc="center left", bbox_to_anchor=(1.0, 0.5))


# Figure 5: one block of a model at hand, part by part with the shapes of its parameters, and the inside of its TAB.

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
    name = named(network.variant)
    experts = _shown(table)
    title = (
        f"{name}: inside block {layer + 1} of {depth}, {heads_text(network.heads)} of {network.network.head_width}\n"
    )
    count = len(network.experts)
    title += f"{len(experts)} of {count} experts drawn; " if len(experts) < count else ""
    trains = (table["state"] == "trains").any()
    title += "bold frame: trains, thin: frozen" if trains else "finished: all experts are frozen"
    boxes, _ = block_layout(table, layer)
    width = max(box.x for box in boxes) + WIDE
    high = 1 + max(box.y for box in boxes)
    size = (max(5.6, 0.78 * width + 0.3), 1.2 + 0.62 * high)
    draw = functools.partial(_draw_blocks, layer=layer)
    return Figure(f"figure_5_{network.variant.name}", title, table, [], picture=draw, size=size)


def _shown(table: "pd.DataFrame") -> list[int]:
    experts = sorted(table["expert"].unique().tolist())
    return experts if len(experts) <= SHOWN else [*experts[: SHOWN - 1], experts[-1]]


def block_layout(table: "pd.DataFrame", layer: int) -> tuple[list[Box], list[Arrow]]:
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
        for other in _numbers(row["reads"]):
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


def _numbers(listed: str) -> list[int]:
    """``1-3`` -> 1, 2, 3; ``1, 3`` -> 1, 3."""
    first, _, last = listed.partition("-")
    return list(range(int(first), int(last) + 1)) if last else [int(one) for one in listed.split(",")]


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


def _draw_blocks(axes: "Axes", table: "pd.DataFrame", layer: int) -> None:
    from matplotlib.patches import FancyBboxPatch

    boxes, arrows = block_layout(table, layer)
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
