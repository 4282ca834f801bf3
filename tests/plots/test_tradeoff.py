"""Accuracy against bytes: a line per method through its networks and budgets."""

from invented import record

from dne_lab.plots.marks import Points
from dne_lab.plots.tradeoff import accuracy_over_bytes


def test_a_method_is_a_line_from_small_to_large() -> None:
    large = {"params": {"total": 900_000, "trainable_by_task": [900_000]}, "settings_sha256": "large"}
    made = [record("dne", 0, 70.0, **large), record("dne", 0, 60.0), record("ia", 0, 50.0), record("joint", 0, 90.0)]
    figure = accuracy_over_bytes(made)
    assert len(figure.table) == 3 and set(figure.table["method"]) == {"dne", "ia"}  # a joint model keeps no exemplars
    drawing = figure.marks()
    assert drawing is not None
    (panel,) = drawing.rows[0]
    dne, ia = (mark for mark in panel.marks if isinstance(mark, Points))
    assert list(dne.y) == [60.0, 70.0] and list(dne.x) == sorted(dne.x) and len(ia.x) == 1
    assert dne.look.colour != ia.look.colour


def test_without_runs_there_is_an_empty_figure_that_says_so() -> None:
    figure = accuracy_over_bytes([record("joint", 0, 90.0)])
    assert figure.table.empty and "no record" in figure.title
