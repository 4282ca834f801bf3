"""Images as figures: the classes of a stream, task by task, and any batch with captions."""

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dne_lab.data.stream import ClassStream
from dne_lab.errors import LabError
from dne_lab.plots.figure import Figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MOST = 12  # pictures in a row
SIDE = 0.52  # inches of a picture with its gap


def classes_by_task(stream: ClassStream) -> Figure:
    """One training image of each class, a row a task; of a task with more than 12 classes the first 12 are drawn."""
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
