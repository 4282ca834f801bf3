"""A figure is a table first: the numbers, the records they came from, and two ways of drawing them."""

import base64
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dne_lab.errors import unknown
from dne_lab.files import write_bytes, write_text
from dne_lab.plots.style import MATPLOTLIB

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

PLOTLY_MIME = "application/vnd.plotly.v1+json"
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
    """A table with its drawings; in a notebook it shows itself as text, interactive plotly figure and PNG in one.

    Args:
        name: file name without suffix.
        title: one or two lines; says which data set, and "small scale" where it is.
        table: what is drawn, one row a mark; a series without a record is a row that says so and is not drawn.
        records: ids of the records behind the table (`Record.id`).
        on_axes: draws the table on matplotlib axes.
        on_plotly: adds the table to an empty plotly figure; None if there is no interactive form.
        size: width and height of the static drawing in inches.
    """

    def __init__(
        self,
        name: str,
        title: str,
        table: "pd.DataFrame",
        records: Sequence[str],
        on_axes: Callable[["Axes", "pd.DataFrame"], None],
        on_plotly: Callable[[Any, "pd.DataFrame"], None] | None = None,
        size: tuple[float, float] = (6.4, 3.6),
    ) -> None:
        self.name, self.title, self.table, self.records, self.size = name, title, table, list(records), size
        self._on_axes, self._on_plotly = on_axes, on_plotly

    def draw(self, axes: "Axes") -> None:
        """Draws on matplotlib axes of your own."""
        self._on_axes(axes, self.table)

    def image(self, suffix: str = "png") -> bytes:
        """The static drawing as the bytes of a png, pdf or svg file; equal tables give equal bytes."""
        from matplotlib import style
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure as Canvas

        # A figure object of its own, not pyplot: nothing global is left behind, and no display is needed.
        with style.context(["default", MATPLOTLIB]), io.BytesIO() as file:
            canvas = Canvas(figsize=self.size, layout="constrained")
            FigureCanvasAgg(canvas)
            axes = canvas.add_subplot()
            self.draw(axes)
            axes.set_title(self.title)
            canvas.savefig(file, format=suffix, metadata=_METADATA[suffix])
            return file.getvalue()

    def interactive(self) -> Any:
        """The plotly figure; raises ImportError where plotly is not installed."""
        import plotly.graph_objects as go

        figure = go.Figure()
        if self._on_plotly is not None:
            self._on_plotly(figure, self.table)
        figure.update_layout(template="none", title={"text": self.title.replace("\n", "<br>"), "font": {"size": 15}})
        return figure

    def csv(self) -> str:
        """The table as CSV with fixed decimals; read it with ``pandas.read_csv``."""
        return self.table.to_csv(index=False, float_format="%.4f", lineterminator="\n")

    def save(self, path: str | Path) -> list[Path]:
        """Writes one file by its suffix (.png .pdf .svg .csv), or NAME.csv and NAME.png into a folder; gives the paths.

        A path without suffix is a folder, made where it is missing. Raises LabError for another suffix.
        """
        path = Path(path)
        if path.is_dir() or not path.suffix:
            return [*self.save(path / f"{self.name}.csv"), *self.save(path / f"{self.name}.png")]
        suffix = path.suffix.lower()
        if suffix not in SUFFIXES:
            raise unknown("figure format", suffix, SUFFIXES)
        if suffix == ".csv":
            write_text(path, self.csv())
        else:
            write_bytes(path, self.image(suffix[1:]))
        return [path]

    def __repr__(self) -> str:
        text = self.table.round(2).to_string(index=False, na_rep="", max_rows=MOST_ROWS)
        more = f"\n\n{MOST_ROWS} of {len(self.table)} rows: all are in .table" if len(self.table) > MOST_ROWS else ""
        return f"{self.title}\n\n{text}{more}"

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, Any]:
        """Text, PNG and, where plotly is installed, its JSON as plain rounded lists: the same for every execution."""
        picture = base64.b64encode(_few_colours(self.image())).decode("ascii")
        bundle: dict[str, Any] = {"text/plain": repr(self), "image/png": picture}
        if self._on_plotly is not None:
            try:
                tree = json.loads(self.interactive().to_json())
            except ImportError:  # a machine without plotly still shows the text and the picture
                return bundle
            bundle[PLOTLY_MIME] = {**_rounded(tree), "config": {"displaylogo": False}}
        return bundle


def _few_colours(png: bytes) -> bytes:
    """The same picture in 256 colours, a third of the bytes; one of many more, as of photographs, keeps them."""
    from PIL import Image  # maximum coverage: rare colours count too, so that a colour bar stays one

    with Image.open(io.BytesIO(png)) as picture, io.BytesIO() as file:
        if picture.getcolors(MOST_COLOURS) is None:
            return png
        few = picture.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
        few.save(file, "png", optimize=True)
        return file.getvalue()


def _rounded(value: Any) -> Any:
    """JSON with floats of four decimals and plotly's base64 arrays as lists."""
    if isinstance(value, dict):
        if "bdata" in value:
            import numpy as np

            array = np.frombuffer(base64.b64decode(value["bdata"]), dtype=value["dtype"])
            shape = [int(n) for n in str(value.get("shape", array.size)).split(",")]
            return _rounded(array.reshape(shape).tolist())
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return round(value, 4) + 0.0 if isinstance(value, float) else value
