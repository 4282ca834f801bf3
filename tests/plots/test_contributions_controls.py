"""The figure of controls: a row for each, with its interval, and the records that it came from."""

import numpy as np
from invented import runs

from dne_lab.measure.trained_controls import controls
from dne_lab.plots.contributions import DIFFERENCE, controls_figure


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
