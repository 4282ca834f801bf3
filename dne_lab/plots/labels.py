"""Names beside marks, placed where they cover neither each other nor the marks, nor, if it can be, the lines."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dne_lab.plots.marks import Points
from dne_lab.plots.style import INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = 6.5  # points
WIDE, HIGH = 0.6, 1.3  # of a letter, in font sizes: DejaVu Sans, with a little air
RINGS = (3.0, 8.0, 15.0, 24.0, 35.0)  # points between the rim of a mark and its name
MOST = 28  # letters of a name: a longer one has no place in a narrow panel, and stands whole under the mouse
LEADER = 12.0  # from that distance on a thin line leads back to the mark
SIDES = 32
ROUNDS = 3  # every name is placed again, now that the later ones are there
# What a place costs: a covered square point of a name or mark, one outside the axes, a crossed piece of line; and 1 for
# each point of distance.
COVERED, OUTSIDE, CROSSED = 20.0, 10.0, 8.0
NEARER, AIR = 200.0, 2.0  # a place nearer to another mark than to its own, or hardly farther from it, in points

Boxes = NDArray[np.float64]  # (n, 4): left, bottom, right, top, in points


class Tag(NamedTuple):
    """A name (empty: none is written) at a mark in data coordinates, the mark's colour, and its area in points².

    Names are written in `INK`: letters need more contrast with the page than marks do.
    """

    text: str
    x: float
    y: float
    colour: str
    area: float


class Placed(NamedTuple):
    """Where a name goes: from its mark, right and up, in points; ``far``: a thin line leads back, as it is far away or
    another mark is as near."""

    tag: Tag
    right: float
    up: float
    far: bool


def tags(mark: Points) -> list[Tag]:
    """The names of a mark's points, shortened; a point without one is kept free too."""
    names, colour = map(short, mark.tags or [""] * len(mark.x)), mark.look.colour
    return [Tag(name, x, y, colour, area) for name, x, y, area in zip(names, mark.x, mark.y, mark.areas(), strict=True)]


def short(name: str) -> str:
    """A name of at most `MOST` letters; of settings, ``preset a, options.b c``, the last ones, which tell it apart."""
    while len(name) > MOST and ", " in name:
        name = f"… {name.removeprefix('… ').split(', ', 1)[1]}"
    return name if len(name) <= MOST else f"{name[: MOST - 1]}…"


def lines(mark: Points) -> list[list[tuple[float, float]]]:
    """The lines and intervals of a mark, that names keep off."""
    found = [list(zip(mark.x, mark.y, strict=True))] if mark.dash else []
    for x, y, low, high in zip(mark.x, mark.y, mark.low, mark.high, strict=False):
        if math.isfinite(low):
            found.append([(low, y), (high, y)] if mark.across else [(x, low), (x, high)])
    return found


def place(
    axes: "Axes", tags: Sequence[Tag], lines: Sequence[Sequence[tuple[float, float]]] = (), size: float = SIZE
) -> None:
    """Writes the names beside their marks; call it when everything else is drawn.

    Args:
        axes: with its marks; its limits are fixed here, so that names stay where they fit.
        tags: one per mark; every mark is kept free, with a name or without.
        lines: polylines in data coordinates that names keep off where there is room.
        size: of the letters, in points.
    """
    figure = axes.get_figure(root=True)
    if figure is None or not tags:
        return
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    figure.draw_without_rendering()  # the layout is then final
    left, bottom, right, top = np.array(axes.bbox.extents) * 72 / figure.dpi
    found = offsets(tags, lambda at: _points(axes, at), (left, bottom, right, top), lines, size)
    for tag, right, up, far in found:
        leader = {"arrowstyle": "-", "linewidth": 0.4, "color": tag.colour, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            tag.text, (tag.x, tag.y), (right, up), textcoords="offset points", fontsize=size,
            color=INK, ha="center", va="center", zorder=4, arrowprops=leader if far else None,
        )  # fmt: skip


def offsets(
    tags: Sequence[Tag],
    on_page: Callable[[Sequence[tuple[float, float]]], NDArray[np.float64]],
    inside: tuple[float, float, float, float],
    lines: Sequence[Sequence[tuple[float, float]]] = (),
    size: float = SIZE,
) -> list[Placed]:
    """Where the names go, of those that have one.

    Args:
        tags: one per mark.
        on_page: data coordinates to points on the page, (n, 2), y up.
        inside: left, bottom, right and top of the axes in points.
        lines: polylines in data coordinates.
        size: of the letters, in points.
    """
    at = on_page([(tag.x, tag.y) for tag in tags])
    radius = np.array([math.sqrt(tag.area) / 2 for tag in tags])[:, None]
    marks = np.hstack([at - radius, at + radius])
    crossed = np.vstack([np.zeros((0, 4)), *(_along(on_page(line)) for line in lines)])
    options = {i: _options(at[i], radius[i, 0], tag.text, size) for i, tag in enumerate(tags) if tag.text}
    # a mark of the same colour without a name is another value of the same thing, as the hollow one of a cost
    others = {i: [j for j, t in enumerate(tags) if j != i and (t.text or t.colour != tags[i].colour)] for i in options}
    room, still = np.array([inside]), {}
    for i, boxes in options.items():
        outside = _area(boxes) - _shared(boxes, room).sum(1)
        still[i] = _apart(boxes) + OUTSIDE * outside + CROSSED * (_shared(boxes, crossed) > 0).sum(1)
        still[i] += NEARER * _nearer_another(boxes, at, radius[:, 0], others[i], i)
    chosen: dict[int, NDArray[np.float64]] = {}
    for _, i in itertools.product(range(ROUNDS), options):
        taken = np.vstack([marks, *(box for j, box in chosen.items() if j != i)])
        cost = still[i] + COVERED * _shared(options[i], taken).sum(1)
        chosen[i] = options[i][int(cost.argmin())]
    found = []
    for i, box in chosen.items():
        centre = (box[:2] + box[2:]) / 2 - at[i]
        away = np.hypot(*np.maximum(0, np.maximum(box[:2] - at[i], at[i] - box[2:]))) - radius[i, 0]
        found.append(
            Placed(
                tags[i],
                float(centre[0]),
                float(centre[1]),
                bool(away > LEADER or _nearer_another(box[None], at, radius[:, 0], others[i], i)[0]),
            )
        )
    return found


def _nearer_another(
    boxes: Boxes, at: NDArray[np.float64], radius: NDArray[np.float64], others: list[int], own: int
) -> NDArray[np.bool_]:
    """Whether a name in each of the boxes would seem to be that of another mark."""
    sides = np.maximum(boxes[:, None, :2] - at, at - boxes[:, None, 2:])
    gaps = np.hypot(*np.moveaxis(sides.clip(0), 2, 0)) - radius
    nearer: NDArray[np.bool_] = (gaps[:, others] < gaps[:, [own]] + AIR).any(1)
    return nearer


def _points(axes: "Axes", at: Sequence[tuple[float, float]]) -> NDArray[np.float64]:
    """Data coordinates -> points on the page, (n, 2)."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    return np.asarray(axes.transData.transform(np.reshape(at, (-1, 2))), dtype=float) * 72 / figure.dpi


def _options(at: NDArray[np.float64], radius: float, text: str, size: float) -> Boxes:
    """Boxes around a mark, the nearest first, from up and to the right against the clock."""
    angles = 2 * np.pi * (np.arange(SIDES) + SIDES / 8) / SIDES
    half = np.array([WIDE * size * len(text) / 2, HIGH * size / 2])
    rings = radius + np.array(RINGS)[:, None, None] + half
    centres = (at + rings * np.stack([np.cos(angles), np.sin(angles)], 1)).reshape(-1, 2)
    return np.hstack([centres - half, centres + half])


def _apart(boxes: Boxes) -> NDArray[np.float64]:
    """The distances of `_options`."""
    return np.repeat(np.array(RINGS), len(boxes) // len(RINGS))


def _area(boxes: Boxes) -> NDArray[np.float64]:
    return (boxes[:, 2:] - boxes[:, :2]).prod(1)


def _shared(some: Boxes, others: Boxes) -> NDArray[np.float64]:
    """The areas that boxes share with others, (n, m)."""
    sides = np.minimum(some[:, None, 2:], others[None, :, 2:]) - np.maximum(some[:, None, :2], others[None, :, :2])
    return sides.clip(0).prod(2)


def _along(line: NDArray[np.float64]) -> Boxes:
    """Small boxes along a polyline, at most 4 points apart."""
    pieces = [
        start + (stop - start) * np.linspace(0, 1, 2 + int(np.hypot(*(stop - start)) / 4))[:, None]
        for start, stop in itertools.pairwise(line)
    ]
    at = np.vstack([np.zeros((0, 2)), *pieces])
    return np.hstack([at - 0.5, at + 0.5])
