"""Figures of what is lost without attention: what the table holds, what is drawn, what is refused."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

from dne_lab.analysis.cutter import HOW
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


def test_groups_are_a_mark_for_each_way_of_removing() -> None:
    found = [invented("dne", seed, loss) for seed, loss in enumerate((1.0, 2.0, 6.0))] + [invented("sta")]
    found += [invented("dne", seed, loss, how="mean") for seed, loss in enumerate((0.0, 0.5, 1.0))]
    figure = ablation_groups(found)
    axes = drawn(figure)
    names = [text.get_text() for text in axes.get_yticklabels()]
    assert len(names) == 2 + 4 and names[2] == "DNE, task1: SPSH (40% of the attention)"
    marks = {(line.get_marker(), line.get_color()): line for line in axes.lines if len(line.get_xdata()) > 1}
    dne, sta = style("dne").colour, style("sta").colour
    assert marks["o", dne].get_xdata() == pytest.approx([0.5] * 4)  # mean
    assert marks["x", dne].get_xdata() == pytest.approx([3.0] * 4)  # mask
    assert marks["x", sta].get_xdata() == pytest.approx([2.0] * 2) and ("o", sta) not in marks
    assert [round(y) for y in marks["x", dne].get_ydata()] == [2, 3, 4, 5]
    assert marks["o", dne].get_ydata()[0] < marks["x", dne].get_ydata()[0]  # side by side
    told = [text.get_text() for text in axes.get_legend().get_texts()]
    assert told == ["mean: replaced by its mean", "mask: removed, the rest renormalised"]
    assert "small scale, 100 test images" in figure.title and "3 seeds" in figure.title
    assert len(figure.records) == 7 and "loss task 3" in figure.table
    assert "one seed, 95% interval over images" in ablation_groups([invented()]).title


def test_ways_of_removing_are_matrices_side_by_side() -> None:
    found = [invented("dne", loss=loss, how=how) for how, loss in {"mask": 4.0, "mean": 1.0, "zero": 2.0}.items()]
    figure = ablation_matrix(found)
    axes = drawn(figure)
    values = np.ma.filled(axes.images[0].get_array().astype(float), np.nan)
    assert values.shape == (2, 3 * 4 - 1)  # experts 2 and 3 read 1 to 3
    assert [values[1, 4 * place] for place in range(3)] == [1.0, 2.0, 4.0] and np.isnan(values[:, 3]).all()
    names = [text.get_text() for text in axes.texts]
    assert [name for name in names if name in HOW] == ["mean", "zero", "mask"]
    assert "zero: set to zero\nmask: removed, the rest renormalised\n" in figure.title
    assert len(figure.table) == 3 * 25  # every kind and layer


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
    assert "mask: removed, the rest renormalised" in figure.title
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


def test_drawings_by_preset_and_method() -> None:
    found = [invented("dne"), invented("sta"), invented("dne", how="mean"), invented("ia", sweep=[])]
    assert [*drawings(found)] == ["ablation_digits_groups", "ablation_digits_dne", "ablation_digits_sta"]


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([], "no ablation record: make one with"),
        ([invented(), invented(preset="other")], "several .preset: digits, other. in one figure"),
        ([invented(), invented("sta")], "records of several methods in one figure"),
        ([invented("ia", sweep=[])], "hold no connection between experts"),
    ],
)
def test_what_cannot_be_drawn_together(found: list[Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        ablation_matrix(found)
