"""The colours of attention: scales that say what they are, the palette of the experts, tints of the four groups."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.head_table import Head
from dne_lab.analysis.views import PATCHWISE, LookView, TaskView
from dne_lab.plots.style import EXPERT_COLOURS, GROUP_COLOURS

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]


def heat(values: NDArray[Any], top: float) -> Pixels:
    """(...) -> (..., 3): the scale cividis from 0 to ``top``, which colour-blind readers see as others do."""
    place = np.clip(np.nan_to_num(values) / top, 0, 1)
    return _cividis()[np.rint(place * 255).astype(int)]


@functools.cache
def _cividis() -> Pixels:
    from matplotlib import colormaps

    return np.rint(colormaps["cividis"](np.linspace(0, 1, 256))[:, :3] * 255).astype(np.uint8)


@functools.cache
def _diverging() -> Pixels:
    from matplotlib import colormaps

    return np.rint(colormaps["PuOr_r"](np.linspace(0, 1, 257))[:, :3] * 255).astype(np.uint8)


# What the colours of attention can stand for.
ABSOLUTE, RELATIVE, STRETCHED = SCALES = ("absolute", "times uniform", "stretched to this view")
WIDEST = 8.0  # times uniform, up and down, that a logarithmic scale reaches at most


@dataclass(frozen=True)
class Scale:
    """How attention becomes a colour.

    Attributes:
        kind: one of `SCALES`.
        low, high: its ends, in multiples of ``unit``.
        unit: attention is divided by it first.
        uniform: the uniform weight, in multiples of ``unit``; None where views of different uniform weights share it.
        diverging: logarithmic, with 1 in the middle.
    """

    kind: str
    low: float
    high: float
    unit: float = 1.0
    uniform: float | None = None
    diverging: bool = False

    def place(self, values: NDArray[Any]) -> Values:
        """(...) attention -> (...) from 0 at the low end to 1 at the high one."""
        multiples = np.nan_to_num(np.asarray(values, dtype=float)) / self.unit
        low, high = self.low, self.high
        if self.diverging:
            multiples = np.log2(np.maximum(multiples, low))
            low, high = np.log2(low), np.log2(high)
        return np.clip((multiples - low) / max(high - low, 1e-12), 0, 1)

    def colours(self, values: NDArray[Any]) -> Pixels:
        """(...) attention -> (..., 3): cividis, or from violet below the uniform weight to orange above it."""
        table = _diverging() if self.diverging else _cividis()
        return table[np.rint(self.place(values) * (len(table) - 1)).astype(int)]

    @property
    def words(self) -> str:
        """Which scale it is, and its ends."""
        how = ", logarithmic" if self.diverging else ""
        return f"{self.kind}: {self.low:.3g} to {self.high:.3g}{how}"


def task_scale(view: TaskView, kind: str = ABSOLUTE) -> Scale:
    """The colours of a task view, see `scale_of`."""
    return scale_of(view.weights, view.uniform, kind)


def scale_of(weights: NDArray[Any], uniform: float, kind: str) -> Scale:
    """From 0 to a round number, around the ``uniform`` weight, or between the smallest and the largest weight."""
    low, high = float(weights.min()), float(weights.max())
    if kind == ABSOLUTE:
        return Scale(kind, 0.0, scale_top(high, uniform), uniform=uniform)
    if kind == STRETCHED:
        return Scale(kind, low, high, uniform=uniform if low <= uniform <= high else None)
    furthest = max(high / uniform, uniform / max(low, 1e-12))
    end = min(max(2.0, float(np.ceil(furthest))), WIDEST)
    return Scale(kind, 1 / end, end, uniform, 1.0, diverging=True)


def signed(values: NDArray[Any], end: float) -> Pixels:
    """(...) differences -> (..., 3): violet for -``end``, white for 0, orange for ``end``."""
    table = _diverging()
    place = np.clip(0.5 + 0.5 * np.nan_to_num(values) / end, 0, 1)
    return table[np.rint(place * (len(table) - 1)).astype(int)]


def total_scale(views: Sequence[LookView], kind: str) -> Scale:
    """The scale that the attention to patches, all key heads together, of several images shares."""
    return scale_of(np.stack([view.total for view in views]), 1 / views[0].weights.shape[1], kind)


def look_scales(views: Mapping[str, LookView], kind: str = RELATIVE) -> dict[str, Scale]:
    """The colours of views side by side: one scale for all, or for each its own ends."""
    if kind == RELATIVE:
        return {name: Scale(kind, 0.0, look_top(views), view.uniform, 1.0) for name, view in views.items()}
    if kind == STRETCHED:
        ends = {name: (float(view.weights.min()), float(view.weights.max())) for name, view in views.items()}
        return {name: Scale(kind, *ends[name], uniform=view.uniform) for name, view in views.items()}
    uniform = [view.uniform for view in views.values()]
    top = scale_top(max(float(view.weights.max()) for view in views.values()), max(uniform))
    return {name: Scale(kind, 0.0, top, uniform=uniform[0] if len(set(uniform)) == 1 else None) for name in views}


def most_read(view: TaskView) -> Pixels:
    """(rows, columns, 3): the colour of the expert read most, white without a margin over the next one, full where it
    is read twice as much or more."""
    colours = expert_pixels(view.most_read, (-1,))
    share = np.clip(view.margin, 0, 1)[:, None]
    return np.rint(255 * (1 - share) + share * colours).astype(np.uint8).reshape(*view.grid, 3)


def expert_pixels(experts: NDArray[np.int64], shape: tuple[int, ...]) -> Pixels:
    """(N,) numbers of experts as the colours of their palette, (*shape, 3)."""
    return _rgb(EXPERT_COLOURS)[(experts - 1) % len(EXPERT_COLOURS)].astype(np.uint8).reshape(*shape, 3)


def tinted(values: NDArray[Any], groups: NDArray[np.int64], top: float) -> Pixels:
    """(...) -> (..., 3): white for 0, the colour of the key's group for ``top`` and above."""
    share = np.clip(values / top, 0, 1)[..., None]
    return np.rint(255 * (1 - share) + share * group_colours()[groups]).astype(np.uint8)


def laid_over(pixels: Pixels, values: NDArray[Any], scale: "Scale | None" = None) -> Pixels:
    """(H, W, 3) a picture in grey with (rows, columns) values over it in the colours of a scale; None: the heat from 0
    to the largest."""
    rows, columns = values.shape
    high, wide = pixels.shape[:2]
    warm = heat(values, max(float(values.max()), 1e-12)) if scale is None else scale.colours(values)
    warm = warm[np.arange(high) * rows // high][:, np.arange(wide) * columns // wide]
    return np.rint(0.45 * pixels.mean(-1, keepdims=True) + 0.55 * warm).astype(np.uint8)


def group_colours() -> NDArray[np.float64]:
    """(4, 3) the colours of the groups, 0 to 255, in the order SPSH, SPDH, DPSH, DPDH."""
    return _rgb(tuple(GROUP_COLOURS.values()))


def _rgb(colours: Sequence[str]) -> NDArray[np.float64]:
    return np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in colours], dtype=float)


def scale_top(largest: float, uniform: float) -> float:
    """The end of a colour scale: the largest value, rounded up to two digits, and never below twice the uniform one."""
    largest = max(largest, 2 * uniform)
    step = 10.0 ** (np.floor(np.log10(largest)) - 1)
    return float(np.ceil(largest / step - 1e-9) * step)


def look_top(views: Mapping[str, LookView]) -> float:
    """The end of the colour scale that several views share, in multiples of the uniform weight."""
    return scale_top(max(float(view.times_uniform.max()) for view in views.values()), 1.0)


def picture(image: Any) -> Pixels:
    """A (C, H, W) uint8 image, grey or in colour, as (H, W, 3)."""
    pixels = np.asarray(image).transpose(1, 2, 0)
    return np.ascontiguousarray(np.repeat(pixels[..., :1], 3, 2) if pixels.shape[2] != 3 else pixels)


def ramp(scale: Scale, steps: int = 128) -> Pixels:
    """(steps, 3) the colours from one end of a scale to the other."""
    ends = np.log2([scale.low, scale.high]) if scale.diverging else np.array([scale.low, scale.high])
    line = np.linspace(ends[0], ends[1], steps)
    return scale.colours((2**line if scale.diverging else line) * scale.unit)


def scale_ends(scales: Sequence[Scale]) -> tuple[str, str, float | None]:
    """What stands at the ends of a scale that several views share, and where on it (0 to 1) the uniform weight is."""
    first, *others = scales
    if any((other.low, other.high) != (first.low, first.high) for other in others):
        return "smallest", "largest", None
    place = None if first.uniform is None else float(first.place(np.array(first.uniform * first.unit)))
    return f"{first.low:.2g}", f"{first.high:.2g}", place


# Small maps of many heads, which share a scale.


def rows_at(heads: Sequence[Head], patch: int) -> list[Any]:
    """What each head does at a patch: (N,) attention to each patch, or of task attention (N,) the expert read most."""
    return [one.maps[patch] if one.kind in PATCHWISE else one.most_read for one in heads]


def scale_at(heads: Sequence[Head], patch: int, kind: str) -> Scale | None:
    """The scale that the maps of a patch share; None where they are experts, which have a palette."""
    there = [one for one in heads if one.kind in PATCHWISE]
    if not there:
        return None
    return scale_of(np.stack([one.maps[patch] for one in there]), there[0].uniform, kind)


def colours_at(heads: Sequence[Head], patch: int, scale: Scale | None) -> list[Pixels]:
    """(rows, columns, 3) for each head."""
    found = []
    for one, row in zip(heads, rows_at(heads, patch), strict=True):
        if scale is None or one.kind not in PATCHWISE:
            found.append(expert_pixels(row, one.grid))
        else:
            found.append(scale.colours(row).reshape(*one.grid, 3))
    return found
