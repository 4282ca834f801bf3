"""A figure is a table first: the numbers, the records they came from, and two ways of drawing them."""

import base64
import contextlib
import csv
import functools
import io
import itertools
import math
import numbers
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dne_lab.core.errors import LabError, unknown
from dne_lab.core.files import absolute, file_name, short_path, write_bytes, write_text
from dne_lab.measure.tables import brief
from dne_lab.plots import static
from dne_lab.plots.marks import Bars, Cells, Drawing, Level, Mark, Panel, Points
from dne_lab.plots.style import MATPLOTLIB, PRINT
from dne_lab.training.run_folder import CONFIG, CURVES, DATA, LAST, PREDICTIONS, RECORD

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

PLOTLY_MIME = "application/vnd.plotly.v1+json"
FORM, STATIC = "DNE_LAB_FIGURES", "static"  # an environment variable, and its one value that counts
PIXELS = 100  # that an inch of the drawing takes on the page
WIDEST = 8.4  # inches: a cell of JupyterLab in a window of 1280 pixels has 848
NARROWEST, MOST_INCHES = 1, 40  # inches that a drawing may be asked for: up to a large poster, in some seconds
HIGHEST = 60  # inches that it may get by that
LETTERS = 12.5  # of a title in an inch
LEAST = 1.5  # inches that a row of panels has at least, whatever title, legend and names take
MOST_IDS = 3  # of the records of a mark that are named under the mouse
MOST_ROWS = 60  # of the table in the text that stands for a figure
MOST_COLOURS = 4096  # of a drawing: lines and areas, and the shades of their edges
SUFFIXES = (".png", ".pdf", ".svg", ".csv")
# What the file formats would otherwise stamp with the date or the version of a library.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}


class Figure:
    """A table with its drawing, as marks that have a static and an interactive form, or as a picture that has one form.

    In a notebook that runs, marks show themselves as an interactive plotly figure and as text. With the environment
    variable ``DNE_LAB_FIGURES=static``, as when the committed notebooks are made, and without plotly, it is a PNG and
    text: what GitHub, nbconvert and files show. Both are drawn from the same marks.

    Args:
        name: file name without suffix.
        title: one or two lines; says which data set, and "small scale" where it is.
        table: what is drawn, one row per mark; a series without a record is a row that says so and is not drawn.
        records: ids of the records behind the table (`Record.id`), or these by series, as the marks name it; then each
            mark says under the mouse which records it comes from. Of a figure of one series ("") the matrices do.
        marks: the marks of a table.
        size: width and height of the static drawing in inches; one wider than a cell of JupyterLab is made smaller.
        picture: in place of marks: draws the table on matplotlib axes.
    """

    def __init__(
        self,
        name: str,
        title: str,
        table: "pd.DataFrame",
        records: Sequence[str] | Mapping[str, Sequence[str]],
        marks: "Callable[[pd.DataFrame], Drawing] | None" = None,
        size: tuple[float, float] = (6.4, 3.6),
        *,
        picture: Callable[["Axes", "pd.DataFrame"], None] | None = None,
    ) -> None:
        self.name, self.title, self.table = name, title, table
        self._by_series = records if isinstance(records, Mapping) else {}
        self.records = list(dict.fromkeys(itertools.chain(*self._by_series.values()) if self._by_series else records))
        self.size = (min(size[0], WIDEST), size[1])
        self._marks, self._picture = marks, picture

    def marks(self) -> Drawing | None:
        """What is drawn, as data; None for a picture."""
        return None if self._marks is None else with_records(self._marks(self.table), self._by_series)

    def draw(self, axes: "Axes", width: float | None = None) -> None:
        """Draws on matplotlib axes of your own; with ``width`` matrices stand in rows no wider than so many inches."""
        if self._picture is not None:
            self._picture(axes, self.table)
        drawing = self.marks()
        if drawing is not None:
            static.draw(axes, drawing if width is None else drawing.within(width))

    def image(self, suffix: str = "png", width: float | None = None) -> bytes:
        """The static drawing as the bytes of a png, pdf or svg file; equal tables give equal bytes.

        Args:
            suffix: pdf has black text for print, the others a grey that can be read on white and on black.
            width: in inches, in place of the figure's own. The height follows, but letters keep their size, and what
                is drawn keeps room beside title, legend and names.

        Raises:
            LabError: another suffix, a width that no drawing can have, or one too wide for this figure's shape.
        """
        from matplotlib import style

        _check_width(width)
        suffix, width = _picture_format(suffix), None if width is None else float(width)
        # The styles are matplotlib's own and ours: a user's matplotlibrc changes nothing.
        styles: list[Any] = ["default", MATPLOTLIB, PRINT if suffix == "pdf" else {}]
        with style.context(styles), io.BytesIO() as file, warnings.catch_warnings():
            # matplotlib's own layout stays where there is no room; a warning about its inside helps nobody
            warnings.filterwarnings("ignore", "constrained_layout not applied")
            canvas = self._canvas(*self._inches(width), width)
            canvas.savefig(file, format=suffix, metadata=_METADATA[suffix])
            return file.getvalue()

    def _canvas(self, wide: float, high: float, asked: float | None = None) -> "Canvas":
        """The drawing, not yet rendered, on a canvas of this size in inches; ``asked``: if the width is not its own."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        # A figure object of its own, not pyplot: nothing global is left behind, and no display is needed.
        title = wrapped(self.title, round(wide * LETTERS))
        canvas = Canvas(figsize=(wide, high + _more(title)), layout="constrained")
        FigureCanvasAgg(canvas)
        axes = canvas.add_subplot()
        canvas.suptitle(title, x=0.01, ha="left", fontsize=10)
        self.draw(axes, asked)
        return canvas

    def _inches(self, width: float | None) -> tuple[float, float]:
        """Size for this width: the figure's own shape, and higher where title, legend and names would leave nothing."""
        if width is None:
            return self.size
        high = max(2.2, self.size[1] * width / self.size[0])
        roomy = self.size[1] + 20
        canvas = self._canvas(width, roomy, width)
        canvas.draw_without_rendering()
        rows = static.rows(canvas)
        beside = roomy - canvas.get_figheight() * sum(top - bottom for bottom, top in rows)
        squares = static.squares(canvas)
        high = max(2.2, beside + squares * len(rows)) if squares else max(high, beside + LEAST * len(rows))
        if high > HIGHEST:
            raise LabError(
                f"width = {width:g}: {self.name} would be {high:.0f} inches high, {HIGHEST} are allowed. "
                f"Give at most {width * HIGHEST / high:.0f}."
            )
        return width, high

    def interactive(self) -> Any:
        """The plotly figure of the marks.

        Raises:
            ImportError: plotly is not installed.
            LabError: a picture has no interactive form.
        """
        import plotly.graph_objects as go

        return go.Figure(self._tree())

    def plotly(self) -> dict[str, Any]:
        """What `interactive` gives as JSON of plain rounded numbers, for a display of the type `PLOTLY_MIME`."""
        tree: dict[str, Any] = _rounded(self._tree())
        return {**tree, "config": {"displaylogo": False}}

    def _tree(self) -> dict[str, Any]:
        from dne_lab.plots import interactive

        drawing = self.marks()
        if drawing is None:
            raise LabError(f"{self.name} is a picture: it has no interactive form. Save it, or draw it on axes.")
        title = wrapped(self.title, interactive.WRAP)
        return interactive.build(drawing, title, self.size[1] + _more(title))

    def csv(self) -> str:
        """The table as CSV with fixed decimals; read it with ``pandas.read_csv``."""
        return self.table.to_csv(index=False, float_format="%.4f", lineterminator="\n")

    def save(self, path: str | Path, width: float | None = None) -> list[Path]:
        """Writes one file by its suffix (.png .pdf .svg .csv), or NAME.csv and NAME.png into a folder; gives the paths.

        A path without suffix is a folder, made where it is missing. ``width``: of the drawing, in inches. Raises
        LabError for another suffix, a name that is nothing but a suffix, a file of a run, a width that is no number of
        inches.
        """
        _check_width(width)
        refuse_run_file(absolute(path))
        path = Path(path).expanduser()
        if path.name.lower() in SUFFIXES and not path.is_dir():  # to pathlib a name that begins with a dot
            named = path.with_name(file_name(self.name) + path.name.lower())
            raise LabError(f"{path}: a file needs a name before its suffix, e.g. {named}.")
        if path.name.endswith(".") and not path.is_dir():
            raise unknown("figure format", ".", SUFFIXES)
        if path.is_dir() or not path.suffix:
            name = file_name(self.name)
            return [*self.save(path / f"{name}.csv"), *self.save(path / f"{name}.png", width)]
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise unknown("figure format", suffix, SUFFIXES)
        if suffix == ".csv":
            write_text(path, self.csv())
        else:
            write_bytes(path, self.image(suffix[1:], width))
        return [path]

    def __repr__(self) -> str:
        text = brief(self.table, MOST_ROWS)
        more = f"\n\n{MOST_ROWS} of {len(self.table)} rows: all are in .table" if len(self.table) > MOST_ROWS else ""
        return f"{self.title}\n\n{text}{more}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Text and one drawing, the same for every execution: plotly's JSON as plain rounded lists, or a PNG."""
        bundle: dict[str, Any] = {"text/plain": repr(self)}
        if self._marks is not None and os.environ.get(FORM) != STATIC:
            with contextlib.suppress(ImportError):  # a machine without plotly shows the picture
                return bundle | {PLOTLY_MIME: self.plotly()}, {}
        bundle["image/png"] = base64.b64encode(_few_colours(self.image())).decode("ascii")
        return bundle, {"image/png": {"width": round(self.size[0] * PIXELS)}}


def with_records(drawing: Drawing, by_series: Mapping[str, Sequence[str]]) -> Drawing:
    """The drawing with the ids of the records of each series in what its marks say under the mouse.

    A mark belongs to the series with which its name, what it says, its place's name or its panel's title begins.
    """
    if not by_series:
        return drawing
    rows = [
        [replace(panel, marks=[_with_records(mark, panel, by_series) for mark in panel.marks]) for panel in row]
        for row in drawing.rows
    ]
    return replace(drawing, rows=rows)


def _with_records(mark: Mark, panel: Panel, by_series: Mapping[str, Sequence[str]]) -> Mark:
    def said(note: str, *names: str) -> str:
        found = [s for s in by_series if any(_begins(name, s) for name in (note, *names))]
        ids = by_series[max(found, key=len)] if found else by_series.get("", ()) if isinstance(mark, Cells) else ()
        if seed := re.match(r"seed (\d+)$", note):
            ids = [one for one in ids if f"-s{seed[1]}-" in one]
        lines = [f"record{'s' * (len(ids) > 1)} {'<br>'.join(ids[:MOST_IDS])}"] if ids else []
        lines += [f"and {len(ids) - MOST_IDS} more"] if len(ids) > MOST_IDS else []
        return "<br>".join(filter(None, [note, *lines]))

    if isinstance(mark, Cells):
        shape = range(mark.values.shape[0]), range(mark.values.shape[1])
        notes = mark.notes or [[""] * len(shape[1]) for _ in shape[0]]
        return replace(mark, notes=[[note and said(note, panel.title) for note in row] for row in notes])
    if not isinstance(mark, Points | Bars | Level) or "printed" in mark.name:
        return mark
    if isinstance(mark, Level):
        return replace(mark, note=said(mark.note, mark.name))
    along = mark.x if isinstance(mark, Points) else [] if mark.across else mark.places
    up = mark.y if isinstance(mark, Points) else mark.places if mark.across else []
    names = [[panel.x.name_at(x)] for x in along] or [[""] for _ in up]
    for lines, y in zip(names, up, strict=bool(up)):
        lines.append(panel.y.name_at(y))
    return replace(mark, notes=[said(mark.note(i), mark.name, *lines) for i, lines in enumerate(names)])


def _begins(text: str, name: str) -> bool:
    """Whether a text begins with the name of a series; commas and line breaks are left out on axes."""
    text, name = _in_a_line(text), _in_a_line(name)
    return bool(name) and text.startswith(name) and text[len(name) :][:1] in ("", " ", ":", "(")


@functools.lru_cache(4096)  # every mark is compared with every series
def _in_a_line(text: str) -> str:
    return re.sub(r"[,\s]+", " ", re.sub(r"-\s+", "-", text))


def _check_width(width: Any) -> None:
    """Raises a `LabError` for a width that no drawing can have."""
    if width is None or (
        isinstance(width, numbers.Real) and not isinstance(width, bool) and NARROWEST <= float(width) <= MOST_INCHES
    ):
        return
    raise LabError(f"width = {width!r}: must be a number of inches from {NARROWEST} to {MOST_INCHES}, e.g. 3.3.")


def _picture_format(suffix: str) -> str:
    """``"png"``, ``".PNG"`` -> ``"png"``; raises a `LabError` for a format that no drawing has."""
    found = str(suffix).lower().removeprefix(".")
    if found not in _METADATA:
        raise unknown("figure format", suffix, _METADATA)
    return found


def refuse_others(out: Path, tables: "Mapping[str, pd.DataFrame]", formats: Sequence[str]) -> None:
    """Raises a `LabError` where a file in ``out`` has the name of a table or figure that is about to be written, and is
    another one's: a CSV whose first column is not called as that of the table of its name, or most of whose columns
    that table lacks, or a picture without such a CSV beside it."""
    for stem, table in tables.items():
        whole = out / f"{stem}.csv"
        refuse_run_file(whole)
        ours = whole.is_file() and _like(_columns(whole), list(map(str, table.columns)))
        there = [whole, *(out / f"{stem}.{suffix}" for suffix in formats)]
        other = next((path for path in there if path.exists() and not ours), None)
        if other is not None:
            raise LabError(
                f"{short_path(other)} exists and is none of the tables and figures that are written here. It is "
                "untouched, and nothing was drawn: give another folder (--out), or move that file elsewhere."
            )


def _columns(path: Path) -> list[str]:
    """The names of the columns of a table in a file."""
    with path.open("rb") as file:
        line = file.readline(10_000).decode("utf-8", "replace")
    return [name.strip() for name in next(csv.reader([line], strict=False), [])]


def _like(there: list[str], here: list[str]) -> bool:
    """Whether a table is an older state of one with the columns ``here``, of which other records have some others."""
    return there[:1] == here[:1] and 2 * len(set(there) & set(here)) > len(set(there))


def wrapped(title: str, letters: int) -> str:
    """The title with lines of at most so many letters."""
    return "\n".join(textwrap.fill(line, letters, break_on_hyphens=False) for line in title.split("\n"))


def _more(title: str) -> float:
    """Inches for the lines of a title from the third on."""
    return 0.18 * max(0, title.count("\n") - 1)


def _few_colours(png: bytes) -> bytes:
    """The same picture in 256 colours, a third of the bytes; one of many more, as of photographs, keeps them."""
    from PIL import Image

    with Image.open(io.BytesIO(png)) as picture, io.BytesIO() as file:
        if picture.getcolors(MOST_COLOURS) is None:
            return png
        few = picture.convert("RGBA").quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
        few.save(file, "png", optimize=True)
        return file.getvalue()


def _rounded(value: Any) -> Any:
    """A tree as JSON has it, floats with four decimals; what is no finite number is nothing."""
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    if isinstance(value, bool | str) or value is None:
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return round(float(value), 4) + 0.0 if math.isfinite(value) else None


def refuse_run_file(path: Path) -> None:
    """Raises a `LabError` for a file that a run has written, which nothing else may replace."""
    own = {CONFIG, RECORD, CURVES, PREDICTIONS, LAST, DATA}
    if path.name in own and path.exists() and (path.parent / CONFIG).is_file():
        raise LabError(f"{short_path(path)} is a file of the run in that folder, and stays. Name another.")
