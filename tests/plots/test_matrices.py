"""The accuracy matrices: one a method, the mean over its seeds, and nothing drawn without a record."""

import numpy as np
import pytest
from invented import record
from matplotlib.figure import Figure as Canvas

from dne_lab.errors import LabError
from dne_lab.plots.figure import PLOTLY_MIME
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
    axes = Canvas().add_subplot()
    figure.draw(axes)
    (image,) = axes.images
    values = np.ma.filled(image.get_array().astype(float), np.nan)
    assert np.isfinite(values).sum() == 2 * 10 and image.get_clim() == (0, 100)
    assert values[3, 1] == pytest.approx(np.mean(both)) and np.isnan(values[0, 1])
    texts = [text.get_text() for text in axes.texts]
    assert [name for name in texts if "(k" in name] == ["IA (k = 1)", "DNE (k = 1)"]
    assert "mean over 1-2 seeds" in figure.title and "small scale" in figure.title


def test_many_tasks_carry_no_numbers_and_the_interactive_form_has_the_same_cells() -> None:
    pytest.importorskip("plotly")
    many = accuracy_matrices([record(method, tasks=(50, *[2] * 25), dataset="digits100") for method in ("ia", "dne")])
    axes = Canvas().add_subplot()
    many.draw(axes)
    assert {text.get_text() for text in axes.texts} == {"IA (k = 1)", "DNE (k = 1)", *map(str, range(1, 27, 5))}
    heat = many._repr_mimebundle_()[PLOTLY_MIME]["data"][0]
    assert sum(cell is not None for row in heat["z"] for cell in row) == 2 * 26 * 27 / 2
    assert heat["text"][1][0] == "IA (k = 1): task 1 after task 2"
    assert many.csv() == accuracy_matrices([record(m, tasks=(50, *[2] * 25), dataset="digits100")
                                            for m in ("dne", "ia")]).csv()  # fmt: skip


def test_what_cannot_be_drawn_together() -> None:
    with pytest.raises(LabError, match=r"several streams \(5 \+ 5, 4 \+ 2 x 3\)"):
        accuracy_matrices([record(), record(tasks=(5, 5), heads=[4, 1])])
    with pytest.raises(LabError, match="no finished run of several tasks"):
        accuracy_matrices([record("joint")])
