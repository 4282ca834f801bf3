"""Figures of what is lost without attention: what the table holds, what is drawn, what is refused."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from dne_lab.analysis.sweep import Sweep
from dne_lab.errors import LabError
from dne_lab.plots.ablation import ablation_groups, ablation_matrix, drawings, sweep_figure
from dne_lab.plots.figure import PLOTLY_MIME, Figure
from dne_lab.plots.style import style

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from test_ablation_record import invented


def drawn(figure: Figure) -> Any:
    axes = Canvas().add_subplot()
    figure.draw(axes)
    return axes


def test_groups_are_a_mark_each() -> None:
    found = [invented("dne", seed, loss) for seed, loss in enumerate((1.0, 2.0, 6.0))] + [invented("sta")]
    figure = ablation_groups(found)
    axes = drawn(figure)
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 4 + 2 and names[2] == "DNE, task1: SPSH (40% of the attention)"
    marks = [line for line in axes.lines if line.get_marker() in ("D", "s")]
    assert [float(line.get_xdata()[0]) for line in marks] == pytest.approx([2.0] * 2 + [3.0] * 4)
    assert [line.get_color() for line in marks] == [style("sta").colour] * 2 + [style("dne").colour] * 4
    assert "(mask)" in figure.title and "small scale, 100 test images" in figure.title and "3 seeds" in figure.title
    assert len(figure.records) == 4 and "loss task 3" in figure.table
    assert "one seed, 95% interval over images" in ablation_groups([invented()]).title


def test_a_matrix_a_kind_and_layer_with_zero_in_the_middle() -> None:
    record = invented("dne")
    rows = [row | {"loss": {(2, 1): -4.0, (3, 3): 1.5}.get((row["expert"], row["reads"]), 0.0)} for row in record.sweep]
    figure = ablation_matrix([dataclasses.replace(record, sweep=rows)])
    axes = drawn(figure)
    (image,) = axes.images
    assert image.get_clim() == (-4.0, 4.0)  # diverging, the same on both sides
    values = np.ma.filled(image.get_array().astype(float), np.nan)
    assert (values == -4.0).sum() == 5 and (values == 1.5).sum() == 5 and np.isfinite(values).sum() == 25
    told = [text.get_text() for text in axes.texts]
    assert {"task1, layer 0", "task2, layer 1", "all kinds and layers"} <= {*told} and told.count("-4.0") == 5
    assert values[0, 0] == -4.0 and values[1, 2] == 1.5 and np.isnan(values[0, 2])
    assert "removed, the rest renormalised (mask)" in figure.title
    still = ablation_matrix([dataclasses.replace(record, sweep=[row | {"loss": 0.0} for row in rows])])
    assert drawn(still).images[0].get_clim() == (-1.0, 1.0)


def test_a_sweep_of_ones_own_is_drawn_as_the_records_are() -> None:
    record = invented("dne")
    mine, theirs = sweep_figure(Sweep("mask", 100, record.sweep)), ablation_matrix([record])
    one, other = (drawn(figure).images[0].get_array() for figure in (mine, theirs))
    assert np.ma.filled(one.astype(float), np.nan) == pytest.approx(
        np.ma.filled(other.astype(float), np.nan), nan_ok=True
    )
    assert "(mask), 100 images" in mine.title and mine.table.equals(Sweep("mask", 100, record.sweep).table())
    assert mine._repr_mimebundle_()[PLOTLY_MIME]["data"] and mine.image() == mine.image() and mine.size == theirs.size


def test_both_ways_of_drawing_show_the_same(tmp_path: Path) -> None:
    for figure in drawings([invented("dne"), invented("sta", loss=-1.0)]).values():
        bundle = figure._repr_mimebundle_()
        assert bundle["image/png"] and bundle[PLOTLY_MIME]["data"]
        assert figure.image() == figure.image()
        assert [path.suffix for path in figure.save(tmp_path)] == [".csv", ".png"]


def test_drawings_by_preset_how_and_method() -> None:
    found = [invented("dne"), invented("sta"), invented("dne", how="mean"), invented("ia", sweep=[])]
    assert [*drawings(found)] == [
        *("ablation_digits_groups", "ablation_digits_dne", "ablation_digits_sta"),
        *("ablation_digits_mean_groups", "ablation_digits_mean_dne"),
    ]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "no ablation record: make one with"),
        ([invented(), invented(how="zero")], "several .how: mask, zero. in one figure"),
        ([invented(), invented(preset="other")], "several .preset: digits, other. in one figure"),
        ([invented(), invented("sta")], "records of several methods in one figure"),
        ([invented("ia", sweep=[])], "hold no connection between experts"),
    ],
)
def test_what_cannot_be_drawn_together(found: list[Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        ablation_matrix(found)
