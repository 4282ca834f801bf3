"""The one figure object: equal tables give equal bytes, and one bundle shows text, picture and interactive form."""

import base64
import builtins
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from dne_lab.errors import LabError
from dne_lab.plots.figure import PLOTLY_MIME, Figure

PNG = b"\x89PNG\r\n\x1a\n"


def made(**changes: Any) -> Figure:
    table = pd.DataFrame(
        {"x": [1, 2, 3], "y": [1 / 3, 2 / 3, float("nan")], "record": ["5 seeds", "5 seeds", "no record"]}
    )

    def on_axes(axes: Any, table: pd.DataFrame) -> None:
        axes.plot(table["x"], table["y"])

    def on_plotly(figure: Any, table: pd.DataFrame) -> None:
        figure.add_scatter(x=table["x"], y=np.array([1 / 3, 2 / 3]))  # arrays: plotly would write them as base64
        figure.add_heatmap(z=np.arange(6, dtype=np.float32).reshape(2, 3) / 3)

    return Figure(
        "small", "Two lines\nof a title", table, ["dne-digits-s0-01234567"], on_axes, changes.get("plotly", on_plotly)
    )


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
    assert list(tmp_path.iterdir()) == []


def test_nothing_global_is_left_behind() -> None:
    before = dict(matplotlib.rcParams)
    first = made().image()
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 30}):  # a user's own style
        assert made().image() == first
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == []


def test_the_text_of_a_long_table_is_cut_and_says_so() -> None:
    long = Figure("long", "Long", pd.DataFrame({"x": range(1000)}), [], lambda axes, table: None)
    assert len(repr(long).splitlines()) < 70 and repr(long).endswith("60 of 1000 rows: all are in .table")
    assert "rows" not in repr(made())


def test_bundle_holds_text_picture_and_plain_plotly_json() -> None:
    pytest.importorskip("plotly")
    bundle = made()._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "image/png", PLOTLY_MIME}
    png, whole = base64.b64decode(bundle["image/png"]), made().image()
    assert png.startswith(PNG) and len(png) < 0.7 * len(whole)  # of few colours
    shown, meant = (np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=int) for data in (png, whole))
    assert shown.shape == meant.shape and abs(shown - meant).max() < 16  # of 255
    assert bundle["text/plain"].startswith("Two lines\nof a title\n\n")
    assert "0.67" in bundle["text/plain"]
    assert "0.666" not in bundle["text/plain"]
    assert "no record" in bundle["text/plain"]
    scatter, heat = bundle[PLOTLY_MIME]["data"]
    assert (scatter["x"], scatter["y"]) == ([1, 2, 3], [0.3333, 0.6667])
    assert heat["z"] == [[0.0, 0.3333, 0.6667], [1.0, 1.3333, 1.6667]]
    text = json.dumps(bundle[PLOTLY_MIME], allow_nan=False)
    assert "bdata" not in text
    assert '"uid"' not in text
    assert len(text) < 3000  # no embedded template
    assert bundle == made()._repr_mimebundle_()


def test_without_plotly_the_bundle_leaves_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.split(".")[0] == "plotly":
            raise ImportError("No module named 'plotly'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    assert set(made()._repr_mimebundle_()) == {"text/plain", "image/png"}
    with pytest.raises(ImportError):
        made().interactive()


def test_a_figure_without_interactive_form() -> None:
    figure = made(plotly=None)
    assert set(figure._repr_mimebundle_()) == {"text/plain", "image/png"}


def test_an_error_in_a_drawing_is_not_taken_for_missing_plotly() -> None:
    pytest.importorskip("plotly")

    def broken(figure: Any, table: pd.DataFrame) -> None:
        raise KeyError("column")

    with pytest.raises(KeyError):
        made(plotly=broken)._repr_mimebundle_()


def test_ipython_shows_the_bundle() -> None:
    formatter = pytest.importorskip("IPython.core.formatters").DisplayFormatter()
    data, _ = formatter.format(made())
    assert data["text/plain"] == repr(made())
    assert base64.b64decode(data["image/png"]).startswith(PNG)


def test_draws_on_axes_of_your_own() -> None:
    from matplotlib.figure import Figure as Canvas

    axes = Canvas().add_subplot()
    made().draw(axes)
    assert len(axes.lines) == 1
