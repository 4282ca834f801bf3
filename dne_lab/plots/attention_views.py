"""One head's attention as a figure: the static form of what the explorers show."""

import functools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.analysis.ablation import WhatIf
from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.token_views import TokenView
from dne_lab.analysis.views import LookView, TaskView, difference
from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream
from dne_lab.plots.attention_colours import (
    ABSOLUTE,
    RELATIVE,
    Pixels,
    Scale,
    heat,
    laid_over,
    look_scales,
    most_read,
    picture,
    ramp,
    scale_ends,
    scale_of,
    scale_top,
    signed,
    task_scale,
    tinted,
)
from dne_lab.plots.figure import Figure
from dne_lab.plots.style import GROUP_COLOURS, INK

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


SIZE = (8.4, 4.2)  # inches
AXES = (8.2, 3.8)  # what is left of it below the title


def task_title(view: TaskView) -> str:
    """Whose attention it is, in words."""
    block = {"task1": "first", "task2": "second"}[view.kind]
    read = f"Expert {view.expert} reads the heads of experts {view.experts[0]} to {view.experts[-1]}"
    return f"{read}: {block} task attention block, layer {view.layer}, head {view.head}"


def look_title(view: LookView) -> str:
    """Whose attention it is, in words."""
    look = f"where expert {view.expert} looks: {view.kind} attention, layer {view.layer}, head {view.head}"
    return f"{look}, {place_name(view.patch, view.grid)}"


def place_name(patch: int, grid: tuple[int, int]) -> str:
    """A patch in words; everything counts from 0, as in `lab.probe`."""
    row, column = divmod(patch, grid[1])
    return f"patch {patch} (row {row}, column {column})"


def task_figure(view: TaskView, image: Any, patch: int, scale: str = ABSOLUTE) -> Figure:
    """Task attention of one head: the picture, the expert read most at each patch, each key head's map, one patch.

    Args:
        view: see `dne_lab.analysis.views.task_view`.
        image: (C, H, W) uint8.
        patch: whose weights are drawn as bars, from 0 row by row.
        scale: one of `attention_colours.SCALES`.
    """
    pixels = picture(image)

    def on_axes(axes: "Axes", table: "pd.DataFrame") -> None:
        _draw_task(axes, view, pixels, patch, task_scale(view, scale))

    return Figure("task_attention", task_title(view), view.summary(patch), [], picture=on_axes, size=SIZE)


def look_figure(views: Mapping[str, LookView], image: Any, scale: str = RELATIVE) -> Figure:
    """Where one patch looks, for one or more models side by side: maps of every key head, coloured by group, shares.

    Args:
        views: by the name of the model, see `dne_lab.analysis.views.look_view`.
        image: (C, H, W) uint8.
        scale: one of `attention_colours.SCALES`.
    """
    import pandas as pd

    pixels = picture(image)
    table = pd.concat([view.frame().assign(model=name) for name, view in views.items()], ignore_index=True)
    table = table[["model", *table.columns[:-1]]]

    def on_axes(axes: "Axes", _: "pd.DataFrame") -> None:
        _draw_look(axes, views, pixels, look_scales(views, scale))

    title = "\n".join(f"{name}: {look_title(view)}" for name, view in views.items())
    return Figure("looking", title, table, [], picture=on_axes, size=SIZE)


def token_figure(
    view: TokenView, pixels: Pixels, layer: int, query: int | str, model: str = "", scale: str = ABSOLUTE
) -> Figure:
    """What one patch or named token attends to: the picture, the mean of the heads, rollout, and each head.

    Args:
        view: see `dne_lab.analysis.token_views.read_tokens`.
        pixels: (H, W, 3) uint8.
        layer: from 0; rollout is that of the layers up to it.
        query: a patch, from 0 row by row, or the name of a token.
        model: its name in the title.
        scale: one of `dne_lab.plots.attention_colours.SCALES`, of the heads and their mean.
    """
    first, uniform = len(view.prefix), 1 / view.weights[layer].shape[-1]
    rows = view.rows(layer, query)[:, first:]
    rollout = view.rollout(layer)[view.token(query)][first:]
    where = query if isinstance(query, str) else place_name(query, view.grid)
    patch = None if isinstance(query, str) else query

    def on_axes(axes: "Axes", table: "pd.DataFrame") -> None:
        axes.set_axis_off()
        colours = scale_of(rows, uniform, scale)
        mean = rows.mean(0).reshape(view.grid)
        drawn = {
            "picture": pixels,
            "mean, over it": laid_over(pixels, mean, colours),
            "mean of the heads": colours.colours(mean),
            f"rollout, layers 0 to {layer}:\nfrom 0 to its largest": heat(
                rollout.reshape(view.grid), max(float(rollout.max()), 1e-12)
            ),
        }
        for place, (title, shown) in enumerate(drawn.items()):
            _image(axes.inset_axes((0.25 * place, 0.54, 0.22, 0.4)), shown, view.grid, patch, title)
        for number, cell in enumerate(_cells(axes, len(rows), (0, 0, 0.8, 0.46), AXES)):
            _image(cell, colours.colours(rows[number].reshape(view.grid)), view.grid, patch, f"head {number}")
        _scale(axes.inset_axes((0.82, 0.2, 0.16, 0.035)), colours)

    title = f"{model}: what {where} attends to, layer {layer}" if model else f"what {where} attends to, layer {layer}"
    return Figure("attention_by_head", title, view.summary(layer, query), [], picture=on_axes, size=SIZE)


# Drawings -------------------------------------------------------------------------------------------------------------


def _blank(axes: "Axes") -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)


def _mark(axes: "Axes", grid: tuple[int, int], patch: int, pixels: tuple[int, int]) -> None:
    from matplotlib.patches import Rectangle

    row, column = divmod(patch, grid[1])
    high, wide = pixels[0] / grid[0], pixels[1] / grid[1]
    for colour, width in (("black", 2.4), ("white", 1.0)):
        corner = (column * wide - 0.5, row * high - 0.5)
        axes.add_patch(Rectangle(corner, wide, high, fill=False, edgecolor=colour, linewidth=width))


def _image(axes: "Axes", pixels: Pixels, grid: tuple[int, int], patch: int | None, title: str) -> None:
    """Pixels with a title, and a frame around a patch."""
    axes.imshow(pixels, interpolation="nearest")
    if patch is not None:
        _mark(axes, grid, patch, pixels.shape[:2])
    _blank(axes)
    axes.set_title(title, fontsize=8, loc="center", pad=3)


def _scale(axes: "Axes", scale: Scale) -> None:
    """A colour scale with its ends and the uniform value marked."""
    axes.imshow(ramp(scale)[None], aspect="auto", extent=(0, 1, 0, 1))
    ticks = {0.0: f"{scale.low:.2g}", 1.0: f"{scale.high:.2g}"}
    if scale.uniform is not None:
        place = float(scale.place(np.array(scale.uniform * scale.unit)))
        ticks[place] = f"\nuniform {scale.uniform:.2g}"
        axes.axvline(place, color="black", linewidth=2.4)
        axes.axvline(place, color="white", linewidth=1)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=7)
    axes.set_title(f"attention to a head,\n{scale.kind}", fontsize=8, loc="center", pad=3)


def _cells(
    axes: "Axes", count: int, box: tuple[float, float, float, float], inches: tuple[float, float]
) -> "list[Axes]":
    """Square cells, as large as possible, from the top left of ``box`` (left, bottom, width, height), in parts of
    ``axes``, which are ``inches`` large."""
    left, bottom, width, height = box
    wide, high = width * inches[0], height * inches[1]
    sides = {columns: min(wide / columns, high / -(-count // columns) - 0.22) for columns in range(1, count + 1)}
    columns = max(sides, key=lambda number: sides[number])
    side = min(sides[columns], 1.6)
    x, y, step = side / inches[0], side / inches[1], (side + 0.22) / inches[1]
    return [
        axes.inset_axes((left + (i % columns) * x, bottom + height - (i // columns + 1) * step, 0.92 * x, 0.92 * y))
        for i in range(count)
    ]


def _draw_task(axes: "Axes", view: TaskView, pixels: Pixels, patch: int, scale: Scale) -> None:
    axes.set_axis_off()
    names = view.names
    _image(axes.inset_axes((0, 0.52, 0.22, 0.42)), pixels, view.grid, patch, "picture")
    read = axes.inset_axes((0.24, 0.52, 0.22, 0.42))
    most, colours = view.most_read.reshape(view.grid), most_read(view)
    _image(read, colours, view.grid, patch, "expert read most, for each head")
    for (row, column), number in np.ndenumerate(most):
        ink = "white" if colours[row, column].mean() < 128 else "black"
        read.text(column, row, str(number), ha="center", va="center", fontsize=6, color=ink)
    bars = axes.inset_axes((0.62, 0.54, 0.37, 0.4))
    values = view.weights[patch]
    bars.barh(range(len(names)), values, color=scale.colours(values) / 255, edgecolor="#555555", linewidth=0.5)
    bars.axvline(view.uniform, color=INK, linestyle="--", linewidth=1)
    bars.set_yticks(range(len(names)), names, fontsize=7 if len(names) < 14 else 4)
    bars.invert_yaxis()
    bars.set_xlim(0, scale_top(float(view.weights.max()), view.uniform))
    bars.tick_params(axis="x", labelsize=7)
    bars.set_title(f"{place_name(patch, view.grid)} reads (dashed: uniform)", fontsize=8, loc="center", pad=3)
    places = _cells(axes, len(names), (0, 0, 0.8, 0.44), AXES)
    for cell, name, column in zip(places, names, view.weights.T, strict=True):
        _image(cell, scale.colours(column.reshape(view.grid)), view.grid, patch, name.replace(" head", "\nhead"))
    _scale(axes.inset_axes((0.82, 0.2, 0.16, 0.035)), scale)


def _draw_look(axes: "Axes", views: Mapping[str, LookView], pixels: Pixels, scales: Mapping[str, Scale]) -> None:
    axes.set_axis_off()
    wide = 0.84 / len(views)
    first = next(iter(views.values()))
    if len(views) == 2:
        (one, _), (other, second) = views.items()
        found = difference(first, second)
        end = max(float(np.abs(found).max()), 1e-12)
        title = f"{one} minus {other}\n(violet to orange: ±{end:.2g})"
        shown = signed(found, end).reshape(*first.grid, 3)
        _image(axes.inset_axes((0, 0.66, 0.14, 0.3)), pixels, first.grid, first.patch, "picture")
        _image(axes.inset_axes((0, 0.38, 0.14, 0.2)), shown, first.grid, first.patch, title)
    else:
        _image(axes.inset_axes((0, 0.5, 0.14, 0.42)), pixels, first.grid, first.patch, "picture")
    _group_scale(axes.inset_axes((0.03, 0.08, 0.1, 0.2)), list(scales.values()))
    for place, (name, view) in enumerate(views.items()):
        left = 0.17 + place * wide
        places = _cells(axes, len(view.names), (left, 0.36, wide * 0.95, 0.6), AXES)
        for number, (cell, head) in enumerate(zip(places, view.names, strict=True)):
            colours = tinted(scales[name].place(view.weights[number]), view.groups[number], 1).reshape(*view.grid, 3)
            _image(cell, colours, view.grid, view.patch, head.replace(" head", "\nhead"))
        _shares(axes.inset_axes((left + 0.05, 0.06, wide * 0.95 - 0.05, 0.2)), view, name)


def _group_scale(axes: "Axes", scales: Sequence[Scale]) -> None:
    rows = [tinted(np.linspace(0, 1, 64), np.full(64, number), 1) for number in range(4)]
    axes.imshow(np.stack(rows), aspect="auto", extent=(0, 1, 3.5, -0.5), interpolation="nearest")
    axes.set_yticks(range(4), GROUPS, fontsize=7)
    low, high, uniform = scale_ends(scales)
    ticks = {0.0: low, 1.0: high} | ({} if uniform is None else {uniform: f"{scales[0].uniform:.2g}"})
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=7)
    if uniform is not None:
        axes.axvline(uniform, color="black", linewidth=1.5)
    axes.grid(visible=False)
    axes.set_title(f"attention,\n{scales[0].kind}", fontsize=8, loc="center", pad=3)


def _shares(axes: "Axes", view: LookView, name: str) -> None:
    table = view.frame()
    for row, column in enumerate(("share %", "uniform %")):
        left = 0.0
        for colour, value in zip(GROUP_COLOURS.values(), table[column][:4], strict=True):
            axes.barh(row, value, left=left, color=colour, edgecolor=INK, linewidth=0.6, alpha=1 - 0.4 * row)
            if value > 9:
                axes.text(left + value / 2, row, f"{value:.1f}", ha="center", va="center", fontsize=7, color="black")
            left += value
    axes.set_yticks([0, 1], ["here", "uniform"], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.tick_params(axis="x", labelsize=7)
    axes.grid(visible=False)
    keys = table.set_index("group").loc["all"]
    title = f"{name}: shares of the groups (%); {keys['effective keys']:.1f} effective keys of {keys['keys']:.0f}"
    axes.set_title(title, fontsize=8, loc="center", pad=3)


# What a switched-off connection does, as a figure: classes, outputs of the experts, accuracy.

BEFORE, AFTER = "#949494", "#0072b2"


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
        result: of `dne_lab.analysis.ablation.what_if`.
        image: (C, H, W) uint8, number ``place`` of the result.
        names: of the classes by rank.
        accuracy: of `dne_lab.analysis.ablation.accuracy`, perhaps on other images; None or empty: not drawn.
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


# Images as figures: the classes of a stream, task by task, and any batch with captions.

MOST = 12  # pictures in a row
SIDE = 0.52  # inches of a picture with its gap


def classes_by_task(stream: ClassStream) -> Figure:
    """One training image of each class, a row per task; of a task with more than 12 classes the first 12 are drawn."""
    import pandas as pd

    rows, first = [], []
    for task in stream:
        for place, rank in enumerate(task.new):
            train, test = (stream.index(split, range(rank, rank + 1)) for split in ("train", "test"))
            rows.append(
                {"task": task.number, "class": stream.class_names[rank]}
                | {"training images": len(train), "test images": len(test), "drawn": place < MOST}
            )
            first.append(train[:1])
    images = stream.images("train", torch.cat(first))
    cut = f", the first {MOST} of each task" if max(stream.tasks) > MOST else ""
    heading = f"{stream.name}: one training image of each class{cut}"
    table = pd.DataFrame(rows)
    return _figure(f"{stream.name}_classes", heading, table, images, "task", "class")


def pictures(
    images: Tensor, captions: Sequence[object], title: str, name: str = "pictures", columns: int = MOST
) -> Figure:
    """(B, C, H, W) uint8 images with a caption each, ``columns`` in a row.

    Raises:
        LabError: not as many captions as images, or no image.
    """
    import pandas as pd

    if len(images) != len(captions) or not len(images):
        raise LabError(f"pictures: {len(images)} images and {len(captions)} captions. Give one caption an image.")
    rows = [{"row": at // columns + 1, "caption": str(text), "drawn": True} for at, text in enumerate(captions)]
    return _figure(name, title, pd.DataFrame(rows), images, "row", "caption")


def _figure(name: str, title: str, table: "pd.DataFrame", images: Tensor, row: str, caption: str) -> Figure:
    rows = table[table["drawn"]].groupby(row, sort=False).size()
    size = SIDE * max(8, int(rows.max()) + 1), SIDE * 1.25 * len(rows) + 0.5
    if table["drawn"].all():
        table = table.drop(columns="drawn")
    draw = functools.partial(_draw, images=images, row=row, caption=caption)
    return Figure(name, title, table, [], picture=draw, size=size)


def _draw(axes: "Axes", table: "pd.DataFrame", images: Tensor, row: str, caption: str) -> None:
    counts: dict[int, int] = {}
    ticks: dict[float, str] = {}
    for image, (_, mark) in zip(images, table.iterrows(), strict=True):
        if not mark.get("drawn", True):
            continue
        line = int(mark[row])
        column = counts.get(line, 0)
        counts[line] = column + 1
        top = 1.25 * (list(counts).index(line))
        pixels = image.permute(1, 2, 0).numpy()
        where = (column, column + 0.9, top + 0.9, top)
        if pixels.shape[2] == 1:
            axes.imshow(pixels[:, :, 0], cmap="gray", vmin=0, vmax=255, extent=where)
        else:
            axes.imshow(pixels, extent=where)
        axes.text(column + 0.45, top + 0.93, str(mark[caption]), ha="center", va="top", fontsize=7)
        ticks[top + 0.45] = f"{row} {line}"
    axes.set_xlim(0, max(counts.values()))
    axes.set_ylim(1.25 * len(counts), 0)
    axes.set_yticks(list(ticks), list(ticks.values()) if row == "task" else [""] * len(ticks))
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
