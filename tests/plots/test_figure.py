"""The one figure object: equal tables give equal bytes, and one bundle shows text, picture and interactive form."""

import base64
import builtins
import io
import itertools
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dne_lab.core.errors import LabError
from dne_lab.plots.figure import PLOTLY_MIME, Figure
from dne_lab.plots.marks import Axis, Bars, Cells, Drawing, Panel, Points, one
from dne_lab.plots.style import Style

PNG = b"\x89PNG\r\n\x1a\n"


LOOK = Style("#0072b2", "o", "circle")


def curve(table: pd.DataFrame) -> Drawing:
    there = table.dropna()
    points = Points("one", there["x"].tolist(), there["y"].tolist(), LOOK, "-", notes=there["record"].tolist())
    cells = Cells(np.arange(6, dtype=np.float32).reshape(2, 3) / 3, "share (%)", 0, 2, digits=1)
    return Drawing([[Panel([points], Axis("x"), Axis("y (%)")), Panel([cells], Axis("", "category", ("a", "b", "c")))]])


def made(marks: Any = curve, **changes: Any) -> Figure:
    table = pd.DataFrame(
        {"x": [1, 2, 3], "y": [1 / 3, 2 / 3, float("nan")], "record": ["5 seeds", "5 seeds", "no record"]}
    )
    return Figure("small", "Two lines\nof a title", table, ["dne-digits-s0-01234567"], marks, **changes)


def bundle(figure: Figure) -> dict[str, Any]:
    return figure._repr_mimebundle_()[0]


@pytest.fixture
def static(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DNE_LAB_FIGURES", "static")


def test_saves_by_suffix_the_same_bytes_every_time(tmp_path: Path) -> None:
    starts = {"png": PNG, "pdf": b"%PDF", "svg": b"<?xml", "csv": b"x,y,record\n"}
    for suffix, start in starts.items():
        first, second = (made().save(tmp_path / folder / f"f.{suffix}")[0].read_bytes() for folder in ("a", "b"))
        assert first == second, suffix
        assert first.startswith(start)
        assert b"CreationDate" not in first
        assert b"dc:date" not in first


def test_csv_has_fixed_decimals(tmp_path: Path) -> None:
    (path,) = made().save(tmp_path / "f.CSV")
    assert path.read_bytes() == b"x,y,record\n1,0.3333,5 seeds\n2,0.6667,5 seeds\n3,,no record\n"
    assert pd.read_csv(path)["y"].tolist()[:2] == [0.3333, 0.6667]


def test_a_folder_gets_table_and_picture(tmp_path: Path) -> None:
    (tmp_path / "v1.5").mkdir()
    for folder in (
        tmp_path / "new" / "figures",
        tmp_path / "v1.5",
    ):  # made where missing; a dot is no suffix of a folder
        assert made().save(folder) == [folder / "small.csv", folder / "small.png"]
        assert sorted(file.name for file in folder.iterdir()) == ["small.csv", "small.png"]


def test_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"unknown figure format '.jpg'.*\.png"):
        made().save(tmp_path / "f.jpg")
    with pytest.raises(LabError, match=r"unknown figure format 'jpg'.*png"):
        made().image("jpg")
    for wrong in (".png", "new/.PDF", "x.", "new/x."):
        with pytest.raises(LabError, match=r"name before its suffix|unknown figure format"):
            made().save(tmp_path / "empty" / wrong)
    assert not (tmp_path / "empty").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_run_keeps_its_files_and_a_name_that_no_file_can_have_is_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "curves.csv").write_text("losses")
    with pytest.raises(LabError, match="a file of the run"):
        made().save(tmp_path / "curves.csv")
    assert (tmp_path / "curves.csv").read_text() == "losses"
    for wrong in ("a\0b.png", "~nobody-here/x.png", "a" * 300 + ".png", "a" * 300):
        with pytest.raises(LabError):
            made().save(wrong)


def test_nothing_global_is_left_behind() -> None:
    before = dict(matplotlib.rcParams)
    first = made().image()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):  # a user's own style
        assert made().image() == first
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_the_text_of_a_long_table_is_cut_and_says_so() -> None:
    long = Figure("long", "Long", pd.DataFrame({"x": range(1000)}), [], picture=lambda axes, table: None)
    assert len(repr(long).splitlines()) < 70 and repr(long).endswith("60 of 1000 rows: all are in .table")
    assert "rows" not in repr(made())


def test_a_running_notebook_gets_text_and_plain_plotly_json() -> None:
    pytest.importorskip("plotly")
    data, metadata = made()._repr_mimebundle_()
    assert set(data) == {"text/plain", PLOTLY_MIME} and metadata == {}
    assert data["text/plain"].startswith("Two lines\nof a title\n\n")
    assert "0.67" in data["text/plain"] and "0.666" not in data["text/plain"] and "no record" in data["text/plain"]
    scatter, heat = data[PLOTLY_MIME]["data"]
    assert (scatter["x"], scatter["y"]) == ([1, 2], [0.3333, 0.6667])
    assert heat["z"] == [[0.0, 0.3333, 0.6667], [1.0, 1.3333, 1.6667]]
    text = json.dumps(data[PLOTLY_MIME], allow_nan=False)
    assert "bdata" not in text and '"uid"' not in text and len(text) < 5000  # no embedded template
    assert data == bundle(made())


def test_the_one_form_of_a_cell_has_no_width_of_its_own_and_no_background() -> None:
    layout = bundle(made())[PLOTLY_MIME]["layout"]
    assert layout["autosize"] and "width" not in layout and layout["height"] > 300
    assert layout["paper_bgcolor"] == layout["plot_bgcolor"] == "rgba(0,0,0,0)"
    with Image.open(io.BytesIO(made().image())) as picture:
        assert picture.mode == "RGBA" and picture.getpixel((0, 0))[3] == 0


def test_a_committed_notebook_gets_text_and_a_picture_that_fits(static: None) -> None:
    data, metadata = made(size=(14.0, 3.6))._repr_mimebundle_()
    assert set(data) == {"text/plain", "image/png"} and metadata["image/png"] == {"width": 840}
    png, whole = base64.b64decode(data["image/png"]), made(size=(14.0, 3.6)).image()
    assert png.startswith(PNG) and len(png) < 0.7 * len(whole)  # of few colours
    shown, meant = (np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"), dtype=int) for data in (png, whole))
    assert shown.shape == meant.shape
    seen = [image[..., :3] * (image[..., 3:] / 255) for image in (shown, meant)]  # as on black
    assert np.quantile(abs(seen[0] - seen[1]), 0.995) < 24 and abs(seen[0] - seen[1]).mean() < 1  # of 255


def test_without_plotly_it_is_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "plotly":
            raise ImportError("No module named 'plotly'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert set(bundle(made())) == {"text/plain", "image/png"}
    with pytest.raises(ImportError):
        made().interactive()


def test_a_picture_has_one_form() -> None:
    def draw(axes: Any, table: pd.DataFrame) -> None:
        axes.plot(table["x"], table["y"])

    figure = made(None, picture=draw)
    assert set(bundle(figure)) == {"text/plain", "image/png"} and figure.marks() is None
    with pytest.raises(LabError, match="small is a picture"):
        figure.interactive()


def test_an_error_in_a_drawing_is_not_taken_for_missing_plotly() -> None:
    pytest.importorskip("plotly")

    def broken(table: pd.DataFrame) -> Drawing:
        raise KeyError("column")

    with pytest.raises(KeyError):
        made(broken)._repr_mimebundle_()


def test_ipython_shows_the_bundle(static: None) -> None:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, metadata = formatter.format(made())
    assert data["text/plain"] == repr(made()) and metadata["image/png"]["width"] == 640
    assert base64.b64decode(data["image/png"]).startswith(PNG)


def test_a_width_of_ones_own_for_a_paper(tmp_path: Path) -> None:
    (path,) = made().save(tmp_path / "f.png", width=3.3)
    with Image.open(path) as picture:
        assert picture.width == round(3.3 * 150) and picture.height >= 2.2 * 150
    assert made().save(tmp_path / "f.pdf", width=3.3)[0].read_bytes().startswith(b"%PDF")
    assert made().image(width=np.int64(3)) == made().image(width=3)  # type: ignore[arg-type]
    assert len(made().image(width=np.float32(3.3))) > 1000  # type: ignore[arg-type]


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf"), "3", True, 41, 1e9, np.nan])
def test_a_width_that_is_none_is_refused_before_anything_is_written(width: Any, tmp_path: Path) -> None:
    for place in (tmp_path / "f.png", tmp_path / "f.csv", tmp_path / "folder"):
        with pytest.raises(LabError, match=r"width = .*number of inches"):
            made().save(place, width=width)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("width", [3, 5, 8, 12])
def test_at_any_width_there_is_room_beside_legend_title_and_names(width: int) -> None:
    """Of a figure with eight names under its bars, six in the legend and a long title."""

    def shares(table: pd.DataFrame) -> Drawing:
        places = list(map(float, range(8)))
        names = tuple(f"method {place}\nof a data-\nset" for place in range(8))
        marks = [Bars(f"group {n} with a long name of its own", places, [20.0] * 8, "#0072b2") for n in range(6)]
        return one(marks, Axis("numbers", "category", names), Axis("share of the attention (%)"))

    figure = Figure("f", "A long title of many words " * 4, pd.DataFrame({"x": [1]}), [], shares, (8.4, 4.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns where axes collapse
        canvas = figure._canvas(*figure._inches(width))
        canvas.draw_without_rendering()
    assert canvas.get_figwidth() == width
    (axes,), (legend,), heading = canvas.axes, canvas.legends, canvas.texts[0]
    names = [label.get_window_extent() for label in axes.get_xticklabels()]
    inside = axes.get_window_extent()
    assert inside.height >= 1.2 * canvas.dpi and inside.height <= canvas.bbox.height
    assert not any(one.overlaps(other) for one, other in itertools.pairwise(names))
    boxes = [inside, legend.get_window_extent(), heading.get_window_extent()]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(box.overlaps(name) for box in boxes[1:] for name in names)
    for box in (*boxes, *names):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= canvas.bbox.x1 and box.y1 <= canvas.bbox.y1


def test_draws_on_axes_of_your_own() -> None:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas()
    axes = canvas.add_subplot()
    made().draw(axes)
    left, right = canvas.axes[1:3]
    assert len(left.lines) == 1 and len(right.collections) == 1 and not axes.axison
