"""What a switched-off connection does, as a figure: classes, outputs of the experts, accuracy."""

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dne_lab.analysis.what_if import WhatIf
from dne_lab.plots.attention_views import picture
from dne_lab.plots.figure import Figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

BEFORE, AFTER = "#999999", "#0072b2"


def moved_words(moved: Sequence[float]) -> list[str]:
    """The change of each expert's output in words: exactly nothing, or its largest."""
    return ["bit for bit the same" if value == 0 else f"moves by up to {value:.3g}" for value in moved]


def what_if_figure(
    result: WhatIf,
    image: Any,
    names: Sequence[str] = (),
    accuracy: "pd.DataFrame | None" = None,
    place: int = 0,
) -> Figure:
    """One image's best classes with everything on and with a switch, what moved, and the accuracy on a subset.

    Args:
        result: of `dne_lab.analysis.what_if.what_if`.
        image: (C, H, W) uint8, number ``place`` of the result.
        names: of the classes by rank.
        accuracy: of `dne_lab.analysis.what_if.accuracy`, perhaps on other images; None or empty: not drawn.
    """
    table = result.classes(place)
    labels = [names[rank] if rank < len(names) else f"class {rank}" for rank in table["class"]]
    table.insert(1, "name", labels)
    pixels = picture(image)

    def on_axes(axes: "Axes", drawn: "pd.DataFrame") -> None:
        axes.set_axis_off()
        shown = axes.inset_axes((0, 0.3, 0.17, 0.6))
        shown.imshow(pixels, interpolation="nearest")
        shown.set_xticks([])
        shown.set_yticks([])
        shown.grid(visible=False)
        shown.set_title("picture", fontsize=8, loc="center", pad=3)
        _pairs(
            axes.inset_axes((0.3, 0.08, 0.24, 0.82)),
            list(drawn["name"]),
            drawn["softmax before"].to_numpy(float),
            drawn["softmax after"].to_numpy(float),
            "softmax",
        )
        _moved(axes.inset_axes((0.63, 0.08, 0.14, 0.82)), result.moved)
        if accuracy is not None and len(accuracy):
            _pairs(
                axes.inset_axes((0.86, 0.08, 0.14, 0.82)),
                [name if name == "all" else f"task {name}" for name in accuracy["task"].astype(str)],
                accuracy["before %"].to_numpy(float),
                accuracy["after %"].to_numpy(float),
                f"accuracy (%), {int(accuracy['images'].iloc[0])} images",
            )

    title = "\n".join(textwrap.wrap(result.what, 130))
    return Figure("what_if", title, table, [], picture=on_axes, size=(8.4, 3.2))


def _pairs(axes: "Axes", names: list[str], before: Any, after: Any, title: str) -> None:
    place = np.arange(len(names))
    axes.barh(place - 0.2, before, 0.38, color=BEFORE, label="everything on")
    axes.barh(place + 0.2, after, 0.38, color=AFTER, label="switched off")
    axes.set_yticks(place, names, fontsize=7)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title(title, fontsize=8, loc="center", pad=3)
    axes.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=1)


def _moved(axes: "Axes", moved: list[float]) -> None:
    place = list(range(len(moved)))
    axes.barh(place, moved, color=AFTER)
    for row, value in zip(place, moved, strict=True):
        if value == 0:
            axes.text(0, row, " the same bits", va="center", fontsize=7)
    axes.set_yticks(place, [f"expert {number + 1}" for number in place], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, max([*moved, 1e-9]) * 1.1 if max(moved) > 0 else 1)
    axes.tick_params(axis="x", labelsize=7)
    axes.set_title("largest change\nof an expert's output", fontsize=8, loc="center", pad=3)
