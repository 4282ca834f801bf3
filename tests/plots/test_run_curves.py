"""Runs and configurations side by side: what is drawn, in which look, and what is said."""

import json
from typing import Any

import numpy as np
import pytest
from invented import record, runs

from dne_lab.analysis.run_groups import grouped
from dne_lab.analysis.run_views import RunView
from dne_lab.core.errors import LabError
from dne_lab.plots import run_curves
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Points
from dne_lab.plots.run_curves import COST, MOST_LINES, MOST_POINTS, runs_compared

CURVES = tuple({"task": 1, "ce": 3.0 / epoch} for epoch in range(1, 1001))


def panels(figure: Figure) -> list[Any]:
    drawing = figure.marks()
    assert drawing is not None
    return list(drawing.panels)


def test_a_run_has_one_look_in_both_charts() -> None:
    figure = runs_compared([RunView("a", record("dne"), CURVES), RunView("b", record("ia"))])
    accuracy, losses = panels(figure)
    assert [line.name for line in accuracy.marks] == ["DNE (k = 1), seed 0", "IA (k = 1), seed 0"]
    (line,) = losses.marks
    assert (line.look, line.dash, line.name) == (accuracy.marks[0].look, accuracy.marks[0].dash, "DNE (k = 1), seed 0")
    assert len(line.x) == MOST_POINTS and line.x[-1] == 1000 and line.y[-1] == pytest.approx(0.003)
    assert np.diff(line.x).tolist() == [5.0] * (MOST_POINTS - 1)
    names = [trace["name"] for trace in figure.plotly()["data"] if trace.get("showlegend")]
    assert names == ["DNE (k = 1), seed 0", "IA (k = 1), seed 0"]
    assert figure.image().startswith(b"\x89PNG")


def test_a_configuration_has_its_interval_as_a_band() -> None:
    made = grouped([RunView(str(r.seed), r) for r in (*runs("dne", [80.0, 84.0]), record("ia", 0))])
    ia, dne = panels(runs_compared(made))[0].marks
    assert isinstance(dne, Points) and dne.band and dne.y[-1] == 82.0 and dne.notes == ["2 seeds"] * 4
    assert dne.high[-1] - dne.y[-1] == pytest.approx(12.7062047 * 2)  # Student's t of one degree, sd 2.83 over 2 seeds
    assert np.isnan(ia.low).all() and ia.notes == ["one seed, no interval"] * 4
    figure = runs_compared(made, COST)
    assert len(panels(figure)) == 3 and figure.table["seeds"].tolist() == [1.0, 2.0]
    assert figure.image().startswith(b"\x89PNG")


def test_of_very_many_runs_the_first_are_drawn_and_it_says_so() -> None:
    many = [RunView(str(seed), record(seed=seed)) for seed in range(MOST_LINES + 3)]
    for beside in (run_curves.LOSSES, COST):
        figure = runs_compared(many, beside)
        assert len(panels(figure)[0].marks) == MOST_LINES and len(figure.table) == MOST_LINES + 3
        assert f"the first {MOST_LINES} of {MOST_LINES + 3} are drawn" in figure.title
        assert figure.plotly()["data"]
    with pytest.raises(LabError, match="no run is chosen"):
        runs_compared([])


def test_records_without_curves_say_so_in_place_of_losses() -> None:
    figure = runs_compared([RunView("a", record())])
    assert len(panels(figure)) == 1 and "no curves.csv beside these records" in figure.title


def test_names_from_files_are_no_markup() -> None:
    """Plotly makes links and bold text of tags in what it is given."""
    hostile = RunView("a", record("<a href='https://x.org'>m</a><b>"))
    told = json.dumps(runs_compared([hostile]).plotly())
    assert "<a" not in told and "<b>" not in told and "&lt;a href" in told and "<br>" in told
