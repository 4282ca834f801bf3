"""Figures of what is lost without attention: what the table holds, what is drawn, what is refused."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dne_lab.analysis.sweep import Sweep
from dne_lab.core.errors import LabError
from dne_lab.plots.contributions import ablation_drawings, ablation_groups, ablation_matrix, sweep_figure
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Cells, Points
from dne_lab.plots.style import style

sys.path.insert(0, str(Path(__file__).parents[1] / "analysis"))
from test_ablation_study import invented


def cells(figure: Figure) -> dict[str, Cells]:
    """The matrices of a figure by their titles."""
    drawing = figure.marks()
    assert drawing is not None
    return {panel.title: mark for panel in drawing.panels for mark in panel.marks if isinstance(mark, Cells)}


def test_groups_are_a_mark_for_each_way_of_removing() -> None:
    found = [invented("dne", seed, loss) for seed, loss in enumerate((1.0, 2.0, 6.0))] + [invented("sta")]
    found += [invented("dne", seed, loss, how="mean") for seed, loss in enumerate((0.0, 0.5, 1.0))]
    figure = ablation_groups(found)
    drawing = figure.marks()
    assert drawing is not None
    (panel,) = drawing.panels
    assert len(panel.y.names) == 2 + 4 and panel.y.names[2] == "DNE, task1: SPSH\n(40% of the attention)"
    found_marks = [mark for mark in panel.marks if isinstance(mark, Points) and mark.x]
    marks = {(mark.look.marker, mark.look.colour): mark for mark in found_marks}
    dne, sta = style("dne").colour, style("sta").colour
    assert marks["o", dne].x == pytest.approx([0.5] * 4)  # mean
    assert marks["x", dne].x == pytest.approx([3.0] * 4)  # mask
    assert marks["x", sta].x == pytest.approx([2.0] * 2) and ("o", sta) not in marks
    assert [round(y) for y in marks["x", dne].y] == [2, 3, 4, 5]
    assert marks["o", dne].y[0] < marks["x", dne].y[0]  # side by side
    half = figure.table.query("method == 'dne' and experts == 'later' and how == 'mask'")["+-"].to_numpy()
    assert np.subtract(marks["x", dne].high, marks["x", dne].x) == pytest.approx(half)
    assert marks["x", dne].notes[0].startswith("3 seeds, 100 images<br>records dne-digits-s0<br>")
    told = [name for name, _ in drawing.listed()]
    assert told == ["mean: replaced by its mean", "mask: removed, the rest renormalised"]
    assert "small scale, 100 test images" in figure.title and "3 seeds" in figure.title
    assert len(figure.records) == 4 and "loss task 3" in figure.table
    assert "one seed, 95% interval over images" in ablation_groups([invented()]).title


def test_ways_of_removing_are_matrices_side_by_side() -> None:
    found = [invented("dne", loss=loss, how=how) for how, loss in {"mask": 4.0, "mean": 1.0, "zero": 2.0}.items()]
    figure = ablation_matrix(found)
    matrices = cells(figure)
    assert [*matrices] == ["mean", "zero", "mask"] and len(figure.marks().rows) == 1
    assert {matrix.values.shape for matrix in matrices.values()} == {(2, 3)}  # experts 2 and 3 read 1 to 3
    assert [matrix.values[1, 0] for matrix in matrices.values()] == [1.0, 2.0, 4.0]
    assert "zero: set to zero\nmask: removed, the rest renormalised\n" in figure.title
    assert len(figure.table) == 3 * 25  # every kind and layer


def test_a_matrix_a_kind_and_layer_with_zero_in_the_middle() -> None:
    record = invented("dne")
    rows = [row | {"loss": {(2, 1): -4.0, (3, 3): 1.5}.get((row["expert"], row["reads"]), 0.0)} for row in record.sweep]
    figure = ablation_matrix([dataclasses.replace(record, sweep=rows)])
    found = cells(figure)
    assert {"task1, layer 0", "task2, layer 1", "all kinds and layers"} <= set(found) and len(found) == 5
    for matrix in found.values():
        assert (matrix.low, matrix.high) == (-4.0, 4.0)  # diverging, the same on both sides
        assert np.isfinite(matrix.values).sum() == 5 and matrix.digits == 1
        assert matrix.values[0, 0] == -4.0 and matrix.values[1, 2] == 1.5 and np.isnan(matrix.values[0, 2])
    assert found["task1, layer 0"].notes[1][2] == "task1, layer 0: expert 3 reads expert 3<br>record dne-digits-s0"
    assert "mask: removed, the rest renormalised" in figure.title
    still = ablation_matrix([dataclasses.replace(record, sweep=[row | {"loss": 0.0} for row in rows])])
    assert all((matrix.low, matrix.high) == (-1.0, 1.0) for matrix in cells(still).values())


def test_a_sweep_of_ones_own_is_drawn_as_the_records_are() -> None:
    record = invented("dne")
    mine, theirs = sweep_figure(Sweep("mask", 100, record.sweep)), ablation_matrix([record])
    for one, other in zip(cells(mine).values(), cells(theirs).values(), strict=True):
        assert one.values == pytest.approx(other.values, nan_ok=True)
    assert "(mask), 100 images" in mine.title and mine.table.equals(Sweep("mask", 100, record.sweep).table())
    assert mine.image() == mine.image() and mine.size == theirs.size


def test_saved_as_table_and_picture(tmp_path: Path) -> None:
    for figure in ablation_drawings([invented("dne"), invented("sta", loss=-1.0)]).values():
        assert figure.image() == figure.image()
        assert [path.suffix for path in figure.save(tmp_path)] == [".csv", ".png"]


def test_drawings_by_preset_and_method() -> None:
    found = [invented("dne"), invented("sta"), invented("dne", how="mean"), invented("ia", sweep=[])]
    assert [*ablation_drawings(found)] == ["ablation_digits_groups", "ablation_digits_dne", "ablation_digits_sta"]


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
