"""One image as figures: along the stream of a run (its classes, the four groups, effective keys, who reads whom), and
under all heads of a network; one head over many images."""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from dne_lab.analysis import head_table
from dne_lab.analysis.head_table import Head
from dne_lab.analysis.image_table import DISTANCE, EXPERT, Parts
from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.moments import Glance
from dne_lab.analysis.views import LookView
from dne_lab.measure.metrics import interval
from dne_lab.plots.attention_colours import Pixels, colours_at, laid_over, scale_at, total_scale
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Cells, Drawing, Level, Mark, Panel, Points, Spread, around
from dne_lab.plots.style import EXPERT_COLOURS, GROUP_COLOURS, GROUP_WORDS, INK, KIND_WORDS, Style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

KEYS = "#6a5acd"
FOLLOWED = 6  # classes at most whose softmax is drawn


def classes_along(
    found: Sequence[Glance], names: Sequence[str], words: Sequence[str], truth: int | None, at: int
) -> "pd.DataFrame":
    """Softmax of the classes that matter, a row for each moment and class: moment, class, softmax, predicted, true.

    Args:
        found: what the image gives at each moment.
        names: of the moments.
        words: of the classes, by rank.
        truth: rank of the true class, or None.
        at: place of a moment whose prediction is among the classes.
    """
    import pandas as pd

    best = [int(glance.logits.argmax()) for glance in found]
    ranks = list(dict.fromkeys([*([] if truth is None else [truth]), *best]))
    if len(ranks) > FOLLOWED:  # those at both ends, and that of the moment
        ranks = list(dict.fromkeys([*ranks[: FOLLOWED - 2], best[at], best[-1]]))
    rows = []
    for name, glance, first in zip(names, found, best, strict=True):
        shares = np.exp(glance.logits - glance.logits.max())
        shares /= shares.sum()
        for rank in ranks:
            softmax = float(shares[rank]) if rank < len(shares) else np.nan  # not learned yet
            row = {"moment": name, "class": words[rank], "softmax": softmax, "predicted": rank == first}
            rows.append(row | {"true": rank == truth})
    return pd.DataFrame(rows)


def _x(names: Sequence[str]) -> Axis:
    short = ["start" if name == "untrained" else name.removeprefix("after task ").split(",")[0] for name in names]
    every = max(1, -(-len(short) // 14))
    places = tuple(map(float, range(len(short))))[::-every][::-1]
    texts = tuple(short[int(place)] for place in places)
    return Axis("after task", names=texts, ticks=places, low=-0.3, high=len(short) - 0.7)


def _here(at: int) -> Level:
    return Level("", float(at), dash=":", upright=True, listed=False)


def _line(
    name: str, x: Sequence[float], y: Sequence[float], look: Style, dash: str, notes: Sequence[str] = ()
) -> list[Mark]:
    """A line through what is a number; references, which have no notes, have no markers."""
    there = [place for place, value in enumerate(y) if value == value]
    x, y = [x[place] for place in there], [y[place] for place in there]
    notes, area = [notes[place] for place in there] if notes else [], 25.0 if notes else 0.0
    return [Points(name, x, y, look, dash, area=area, notes=notes, listed=bool(name))] if there else []


def classes_panel(table: "pd.DataFrame", names: Sequence[str], at: int) -> Panel:
    """The table of `classes_along`: a line for each class, filled where it is predicted."""
    marks: list[Mark] = [_here(at)]
    for number, (name, rows) in enumerate(table.groupby("class", sort=False)):
        true = bool(rows["true"].any())
        look = Style(INK, "o", "circle") if true else Style(EXPERT_COLOURS[number % len(EXPERT_COLOURS)], "o", "circle")
        gaps = rows["softmax"].isna().to_numpy().nonzero()[0]
        rows = rows.iloc[gaps.max() + 1 if len(gaps) else 0 :]  # from the moment on when the class is learned
        notes = ["predicted" if best else "" for best in rows["predicted"]]
        places = [float(list(names).index(moment)) for moment in rows["moment"]]
        words = f"{name} (truth)" if true else str(name)
        marks += _line(words, places, rows["softmax"].tolist(), look, "--" if true else "-", notes)
    return Panel(marks, _x(names), Axis("softmax", low=0.0, high=1.0), "prediction of this image")


def groups_panel(table: "pd.DataFrame", at: int) -> Panel:
    """The table of `dne_lab.analysis.moments.along`: the share of each group in multiples of what uniform attention
    gives it."""
    marks: list[Mark] = [_here(at), Level("uniform attention", 1.0)]
    places = list(map(float, range(len(table))))
    for group in GROUPS:
        shares, uniform = table[f"{group} %"], table[f"{group} uniform %"]
        times = (shares / uniform.where(uniform > 0)).tolist()  # in independent attention there are no other heads
        notes = [
            f"expert {number}: {share:.3g}%, uniform {even:.3g}%"
            for number, share, even in zip(table["expert"], shares, uniform, strict=True)
        ]
        look = Style(GROUP_COLOURS[group], "o", "circle")
        marks += _line(f"{group} {GROUP_WORDS[group]}", places, times, look, "-", notes)
    return Panel(marks, _x(table["moment"].tolist()), Axis("times uniform", low=0.0), "attention to the four groups")


def keys_panel(table: "pd.DataFrame", at: int) -> Panel:
    """Effective keys beside the number of keys."""
    look, places = Style(KEYS, "o", "circle"), list(map(float, range(len(table))))
    notes = [f"of {of:.0f} keys" if of == of else "" for of in table["keys"]]
    marks: list[Mark] = [_here(at)]
    marks += _line("effective keys", places, table["effective keys"].tolist(), look, "-", notes)
    marks += _line("keys that there are", places, table["keys"].tolist(), Style(INK, "o", "circle"), ":")
    return Panel(marks, _x(table["moment"].tolist()), Axis("keys", low=0.0), "effective keys")


def flow_panels(flow: "pd.DataFrame", experts: int) -> list[Panel]:
    """The table of `Glance.flow` as matrices of readers (rows) and read (columns), one for each kind of attention;
    colours stand for the same everywhere, so that moments compare."""
    panels = []
    names = tuple(str(number) for number in range(1, experts + 1))
    for kind, rows in flow.groupby("kind", sort=False):
        square = np.full((experts - 1, experts), np.nan)
        notes = [[""] * experts for _ in range(experts - 1)]
        for reader, read, share, even in rows[["expert", "reads", "share %", "uniform %"]].itertuples(index=False):
            square[reader - 2, read - 1] = share
            notes[reader - 2][read - 1] = f"expert {reader} reads expert {read}, uniform {even:.1f}%"
        cells = Cells(square, "share of the attention (%)", 0.0, 100.0, digits=0, notes=notes)
        x, y = Axis("expert that is read", "category", names), Axis("expert that reads", "category", names[1:])
        panels.append(Panel([cells], x, y, f"{KIND_WORDS[str(kind)]}: % read"))
    return panels


def through_time_figure(
    classes: "pd.DataFrame", table: "pd.DataFrame", flow: "pd.DataFrame", title: str, at: int, experts: int
) -> Figure:
    """All panels as a figure; its table is that of `dne_lab.analysis.moments.along` with the softmax of each class."""
    names = table["moment"].tolist()
    wide = classes.assign(column="softmax " + classes["class"].astype(str))
    wide = wide.pivot_table("softmax", "moment", "column", sort=False, dropna=False).reset_index()
    whole = table.merge(wide, on="moment", how="left")

    def marks(frame: "pd.DataFrame") -> Drawing:
        rows = [[classes_panel(classes, names, at), groups_panel(frame, at), keys_panel(frame, at)]]
        matrices = flow_panels(flow, experts) if len(flow) else []
        return Drawing([*rows, *([matrices] if matrices else [])])

    return Figure("through_time", title, whole, [], marks, (8.4, 6.4 if len(flow) else 3.6))


# All heads at a glance.

ACROSS = 9  # maps in a row of the figure
INCHES = 0.93  # a map with its name


def thumbnails_figure(heads: Sequence[Head], patch: int, kind: str, title: str) -> Figure:
    """The maps of all heads, and their table."""
    pixels = colours_at(heads, patch, scale_at(heads, patch, kind))
    words = [f"L{one.layer} E{one.expert} H{one.head}\n{one.effective:.3g} of {one.keys}" for one in heads]
    return _thumbnails("all_heads", title, head_table.table(heads), pixels, words)


def _thumbnails(name: str, title: str, table: "pd.DataFrame", pixels: Sequence[Pixels], words: Sequence[str]) -> Figure:
    """Small pictures in rows, each with two lines of words below it."""
    lines = -(-len(pixels) // ACROSS)

    def draw(axes: "Axes", frame: "pd.DataFrame") -> None:
        for place, (picture, below) in enumerate(zip(pixels, words, strict=True)):
            x, y = place % ACROSS, 1.25 * (place // ACROSS)
            axes.imshow(picture, extent=(x, x + 0.92, y + 0.92, y), interpolation="nearest")
            axes.text(x + 0.46, y + 0.94, below, ha="center", va="top", fontsize=5.5)
        axes.set_xlim(0, ACROSS)
        axes.set_ylim(1.25 * lines, 0)
        axes.set_axis_off()

    size = (ACROSS * INCHES, 1.25 * lines * INCHES + 0.5)
    return Figure(name, title, table, [], picture=draw, size=size)


# One head over many images.


def gallery_figure(table: "pd.DataFrame", pictures: Sequence[tuple[LookView, Pixels]], kind: str, title: str) -> Figure:
    """Each image with the attention of one patch over it.

    Args:
        table: of `dne_lab.analysis.image_table.image_table`, in the order of the pictures.
        pictures: where the patch looks, and (H, W, 3) uint8.
        kind: of the scale that all share, one of `dne_lab.plots.attention_colours.SCALES`.
    """
    scale = total_scale([view for view, _ in pictures], kind)
    pixels = [laid_over(image, view.total.reshape(view.grid), scale) for view, image in pictures]
    both = zip(table["image"], table["label"], table["effective keys"], strict=True)
    words = [f"{image}: {str(label)[:16]}\n{effective:.3g} keys" for image, label, effective in both]
    return _thumbnails("all_images", title, table, pixels, words)


def spread_panel(table: "pd.DataFrame", parts: Parts) -> Panel:
    """The parts' shares in every image as multiples of what uniform attention would give, and their means with 95%
    intervals over the images.

    Args:
        table: of `dne_lab.analysis.image_table.image_table`.
        parts: of one of the images.
    """
    marks: list[Mark] = [Level("uniform", 1.0, listed=False)]
    for x, (name, colour, uniform) in enumerate(_there(parts)):
        rows = table.sort_values(f"{name} %")
        times = rows[f"{name} %"] / (100 * uniform)
        # side by side in the order of their values, so that none hides another
        spots = [x - 0.3 + 0.6 * (number + 0.5) / len(times) for number in range(len(times))]
        both = zip(rows["image"], rows["label"], rows[f"{name} %"], strict=True)
        notes = [f"image {image}, {label}: {share:.3g}%, uniform {100 * uniform:.3g}%" for image, label, share in both]
        look = Style(colour, "o", "circle")
        marks.append(Points(name, spots, times.tolist(), look, "", notes=notes, area=14.0, listed=False))
        marks.append(_mean(x, times.tolist(), listed=x == 0))
    title = f"attention by {parts.way} of the keys: a point for each of {len(table)} images"
    return Panel(marks, _parts_axis(parts), Axis("times uniform", low=0.0), title)


def spread_figure(table: "pd.DataFrame", parts: Parts, title: str) -> Figure:
    """The same as distributions over the images: a row for each part and image, quartiles drawn as boxes.

    Arguments are those of `spread_panel`; the first lines of the title say what is looked at.
    """
    import pandas as pd

    rows = [
        {"part": name, "image": image, "label": label, "share %": share, "uniform %": 100 * uniform}
        for name, _, uniform in _there(parts)
        for image, label, share in zip(table["image"], table["label"], table[f"{name} %"], strict=True)
    ]
    return Figure("attention_spread", title, pd.DataFrame(rows), [], partial(_boxes, parts=parts), (8.4, 3.6))


def _boxes(table: "pd.DataFrame", parts: Parts) -> Drawing:
    marks: list[Mark] = [Level("uniform", 1.0)]
    for x, (name, colour, _) in enumerate(_there(parts)):
        mine = table[table["part"] == name]
        times = (mine["share %"] / mine["uniform %"]).tolist()
        marks += [Spread(name, [x], [times], colour, listed=False), _mean(x, times, listed=x == 0)]
    return Drawing([[Panel(marks, _parts_axis(parts), Axis("times uniform", low=0.0))]])


def _there(parts: Parts) -> list[tuple[str, str, float]]:
    """Name, colour and uniform share of the parts that have keys."""
    colours = [GROUP_COLOURS.get(name, KEYS) for name in parts.names]
    if parts.way == EXPERT:
        colours = [EXPERT_COLOURS[place % len(EXPERT_COLOURS)] for place in range(len(parts.names))]
    return [each for each in zip(parts.names, colours, parts.uniform.tolist(), strict=True) if each[2] > 0]


def _parts_axis(parts: Parts) -> Axis:
    """The parts by name; distances and experts by their numbers."""
    names = tuple(name.removeprefix(f"{parts.way} ") for name, *_ in _there(parts))
    words = {DISTANCE: "distance from the patch that looks (rings of patches)", EXPERT: "expert that is read"}
    return Axis(words.get(parts.way, ""), "category", names)


def _mean(x: int, times: Sequence[float], listed: bool) -> Points:
    """A line at the mean of a part, with its interval where there are several images."""
    mean, half = interval(times)
    ends = around([np.nan, mean, np.nan], [np.nan, np.nan if half is None else half, np.nan])
    spots = [x - 0.36, float(x), x + 0.36]
    name = "mean" if half is None else "mean, 95% interval over images"
    return Points(name, spots, [mean] * 3, Style(INK, "o", "circle"), "-", area=0.0, listed=listed, **ends)
