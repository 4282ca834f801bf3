"""The figure of controls: a row for each, with its interval, and the records that it came from."""

import numpy as np
import pytest
from invented import runs

from dne_lab.core.errors import LabError
from dne_lab.measure.trained_controls import LADDER, controls, ladder
from dne_lab.plots.contributions import DIFFERENCE, controls_figure, ladder_figure


def test_a_row_for_each_control_with_interval_and_records() -> None:
    records = [
        *runs("dne", (80, 82, 84)),
        *runs("dne", (85, 88, 88), config={"options": {"weights": "uniform"}}, settings_sha256="1" * 64),
        *runs("dne", (70,), config={"options": {"weights": "means"}}, settings_sha256="2" * 64),
    ]
    figure = controls_figure(controls(records))
    assert figure.table["control"].tolist() == ["the same A for all images", "A = 1/H"]
    np.testing.assert_allclose(figure.table[DIFFERENCE], [-10, 5])
    assert "1 to 3 seeds" in figure.title
    drawn = figure.interactive()
    assert any("DNE A = 1/H" in str(axis.ticktext) for axis in drawn.select_yaxes())
    assert figure.image("png").startswith(b"\x89PNG")


def test_steps_begin_where_the_last_one_ended() -> None:
    ends = ((60, 61), (63, 65), (74, 75), (72, 73), (70, 70))
    records = [
        record
        for number, ((_, method, options), values) in enumerate(zip(LADDER, ends, strict=True))
        for record in runs(method, values, config={"options": options}, settings_sha256=f"{number}" * 64)
    ]
    figure = ladder_figure(ladder(records))
    drawing = figure.marks()
    assert drawing is not None
    bars = {mark.name: mark for mark in drawing.panels[0].marks if hasattr(mark, "lengths")}
    assert bars["gained"].bases() == [60.5, 64.0] and bars["gained"].ends() == [64.0, 74.5]
    assert bars["lost"].bases() == [74.5, 72.5] and bars["lost"].ends() == [72.5, 70.0]
    assert figure.image("png").startswith(b"\x89PNG") and "DNE" in str(figure.interactive().layout.yaxis.ticktext)
    with pytest.raises(LabError, match="common seeds"):
        ladder_figure([])


def test_the_same_control_of_two_methods_keeps_the_records_of_both() -> None:
    changed = {"config": {"options": {"experts": "first"}}, "settings_sha256": "1" * 64}
    made = [run for method in ("dne", "progressive") for run in (*runs(method, (80,)), *runs(method, (70,), **changed))]
    figure = controls_figure(controls(made))
    assert figure.records == [made[1].id, made[3].id]
