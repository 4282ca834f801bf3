"""Names beside marks, placed where they cover neither each other nor the marks, nor, if it can be, the lines."""

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDE, HIGH = 0.6, 1.2  # of a letter, in font sizes: DejaVu Sans, with a little air
RINGS = (3.0, 8.0, 15.0, 24.0, 35.0)  # points between the rim of a mark and its name
LEADER = 12.0  # from that distance on a thin line leads back to the mark
SIDES = 16
ROUNDS = 3  # every name is placed again, now that the later ones are there
# What a place costs: a covered square point of a name or mark, one outside the axes, a crossed piece of line; and 1 for
# each point of distance.
COVERED, OUTSIDE, CROSSED = 20.0, 10.0, 4.0

Boxes = NDArray[np.float64]  # (n, 4): left, bottom, right, top, in points


class Tag(NamedTuple):
    """A name (empty: none is written) at a mark in data coordinates, its colour, and the mark's area in points²."""

    text: str
    x: float
    y: float
    colour: str
    area: float


def place(
    axes: "Axes", tags: Sequence[Tag], lines: Sequence[Sequence[tuple[float, float]]] = (), size: float = 6.5
) -> None:
    """Writes the names beside their marks; call it when everything else is drawn.

    Args:
        axes: with its marks; its limits are fixed here, so that names stay where they fit.
        tags: one a mark; every mark is kept free, with a name or without.
        lines: polylines in data coordinates that names keep off where there is room.
        size: of the letters, in points.
    """
    figure = axes.get_figure(root=True)
    if figure is None or not tags:
        return
    axes.set_xlim(axes.get_xlim())
    axes.set_ylim(axes.get_ylim())
    figure.draw_without_rendering()  # the layout settles
    at = _points(axes, [(tag.x, tag.y) for tag in tags])
    radius = np.array([math.sqrt(tag.area) / 2 for tag in tags])[:, None]
    marks = np.hstack([at - radius, at + radius])
    crossed = np.vstack([np.zeros((0, 4)), *(_along(_points(axes, line)) for line in lines)])
    inside = np.array([axes.bbox.extents]) * 72 / figure.dpi
    options = [_options(at[i], radius[i, 0], tag.text, size) for i, tag in enumerate(tags)]
    still = [_apart(boxes) + OUTSIDE * (_area(boxes) - _shared(boxes, inside).sum(1)) for boxes in options]
    still = [cost + CROSSED * (_shared(boxes, crossed) > 0).sum(1) for cost, boxes in zip(still, options, strict=True)]
    chosen: dict[int, NDArray[np.float64]] = {}
    for _, i in itertools.product(range(ROUNDS), [i for i, tag in enumerate(tags) if tag.text]):
        taken = np.vstack([marks, *(box for j, box in chosen.items() if j != i)])
        cost = still[i] + COVERED * _shared(options[i], taken).sum(1)
        chosen[i] = options[i][int(cost.argmin())]
    for i, box in chosen.items():
        tag, centre = tags[i], (box[:2] + box[2:]) / 2 - at[i]
        away = np.hypot(*np.maximum(0, np.maximum(box[:2] - at[i], at[i] - box[2:]))) - radius[i, 0]
        leader = {"arrowstyle": "-", "linewidth": 0.4, "color": tag.colour, "shrinkA": 0, "shrinkB": 2}
        axes.annotate(
            tag.text, (tag.x, tag.y), (float(centre[0]), float(centre[1])), textcoords="offset points", fontsize=size,
            color=tag.colour, ha="center", va="center", zorder=4, arrowprops=leader if away > LEADER else None,
        )  # fmt: skip


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
