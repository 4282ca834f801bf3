"""The accuracy matrices: one a method, the mean over its seeds, and nothing drawn without a record."""

import io

import numpy as np
import pytest
from invented import record
from PIL import Image

from dne_lab.core.errors import LabError
from dne_lab.plots.matrices import accuracy_matrices
from dne_lab.plots.series import NO_RECORD


def runs() -> list:
    return [
        record("ia", 0, 70.0),
        record("ia", 1, 74.0),
        record("dne", 0, 80.0),
        record("joint"),
        record("sta", done=2),
    ]


def test_in_a_narrow_drawing_matrices_stand_below_each_other_and_can_be_read() -> None:
    figure = accuracy_matrices(runs())
    drawing = figure.marks()
    assert drawing is not None and drawing.within(figure.size[0]).rows == drawing.rows
    narrow = drawing.within(3)
    assert [panel.marks for panel in narrow.panels] == [panel.marks for panel in drawing.panels]
    assert max(map(len, narrow.rows)) == 1 < max(map(len, drawing.rows))
    assert [row[0].x.title for row in narrow.rows] == [""] * (len(narrow.rows) - 1) + [drawing.rows[-1][0].x.title]
    assert all(row[0].y.title == drawing.rows[0][0].y.title for row in narrow.rows)
    with Image.open(io.BytesIO(figure.image(width=3))) as picture:  # room for a square of 1.2 inches each
        assert picture.width == 450 and picture.height > 150 * 1.2 * len(narrow.rows)


def test_means_over_seeds_are_drawn_where_they_belong() -> None:
    figure = accuracy_matrices(runs(), ["der"])
    table = figure.table
    assert table["method"].unique().tolist() == ["ia", "dne", "der"] and len(figure.records) == 3
    one = table[(table["method"] == "ia") & (table["after task"] == 4) & (table["task"] == 2)].iloc[0]
    both = [r.accuracy[3][1] for r in runs()[:2]]
    assert one["accuracy %"] == pytest.approx(np.mean(both)) and one["record"] == "2 seeds"
    assert one["+-"] == pytest.approx(12.7062 * np.std(both, ddof=1) / 2**0.5, rel=1e-4)
    assert table[table["method"] == "dne"]["+-"].isna().all()
    missing = table[table["record"] == NO_RECORD]
    assert missing["series"].tolist() == ["DER"] and missing["accuracy %"].isna().all()
    first, other = figure.marks().panels
    assert (first.title, other.title) == ("IA (k = 1)", "DNE (k = 1)")
    (cells,) = first.marks
    assert np.isfinite(cells.values).sum() == 10 and (cells.low, cells.high) == (0, 100) and cells.digits == 0
    assert cells.values[3, 1] == pytest.approx(np.mean(both)) and np.isnan(cells.values[0, 1])
    assert cells.notes[3][1].startswith("IA (k = 1)<br>task 2 after task 4<br>2 seeds<br>95% interval")
    assert "mean over 1-2 seeds" in figure.title and "small scale" in figure.title


def test_many_tasks_carry_no_numbers() -> None:
    many = accuracy_matrices([record(method, tasks=(50, *[2] * 25), dataset="digits100") for method in ("ia", "dne")])
    for panel in many.marks().panels:
        (cells,) = panel.marks
        assert cells.digits is None and np.isfinite(cells.values).sum() == 26 * 27 / 2
        assert panel.y.texts() == [*map(str, range(1, 27, 5))]
    assert many.csv() == accuracy_matrices([record(m, tasks=(50, *[2] * 25), dataset="digits100")
                                            for m in ("dne", "ia")]).csv()  # fmt: skip


def test_what_cannot_be_drawn_together() -> None:
    with pytest.raises(LabError, match=r"several streams \(5 \+ 5, 4 \+ 2 x 3\)"):
        accuracy_matrices([record(), record(tasks=(5, 5), heads=[4, 1])])
    with pytest.raises(LabError, match="no finished run of several tasks"):
        accuracy_matrices([record("joint")])
