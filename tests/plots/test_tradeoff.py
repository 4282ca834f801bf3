"""Accuracy against bytes: a line per method through its networks and budgets."""

from invented import record

from dne_lab.plots.accuracy import accuracy_against_cost
from dne_lab.plots.marks import MOST_LISTED, Points
from dne_lab.plots.tradeoff import accuracy_over_bytes, figure_6ab


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


def test_a_control_is_no_method() -> None:
    control = record("dne", 0, 99.0, config={"options": {"weights": "uniform"}}, settings_sha256="control")
    named = record("dne", 1, 60.0, config={"options": {"weights": "learned"}}, settings_sha256="named")
    for figure in (figure_6ab([control, named], named.dataset), accuracy_over_bytes([control, named])):
        assert figure.records == [named.id]


def test_without_runs_there_is_an_empty_figure_that_says_so() -> None:
    figure = accuracy_over_bytes([record("joint", 0, 90.0)])
    assert figure.table.empty and "no record" in figure.title


def test_every_point_names_its_records_under_the_mouse() -> None:
    wide = {"params": {"total": 900_000, "trainable_by_task": [900_000]}, "settings_sha256": "large"}
    made = [
        record("der", 0, 70.0, **wide),
        record("der", 0, 60.0, settings_sha256="small"),
        record("dne", 0, 50.0),
        record("joint", 0, 90.0),
    ]
    for figure in (accuracy_over_bytes(made), accuracy_against_cost(made)):
        drawing = figure.marks()
        assert drawing is not None
        points = [mark for panel in drawing.panels for mark in panel.marks if isinstance(mark, Points)]
        assert all(mark.name for mark in points)
        notes = [note for mark in points for note in mark.notes]
        assert len(notes) == sum(len(mark.x) for mark in points) > 0
        assert all(any(one in note for one in figure.records) for note in notes)


def test_groups_of_one_method_are_told_apart_and_listed_in_one_order() -> None:
    made = [
        record(method, 0, 70.0, heads=heads) for method in ("ia", "dne") for heads in ([3, 1], [3, 2], [2, 2], [4, 4])
    ]
    drawing = accuracy_against_cost(made).marks()
    assert drawing is not None
    keys = [(name, mark) for name, mark in drawing.listed() if isinstance(mark, Points)]
    assert len({(mark.look, mark.filled) for _, mark in keys}) == len(keys) == 8
    behind = [name.split(" ", 1)[1] for name, _ in keys]
    assert behind[:4] == behind[4:]


def test_of_hundreds_of_groups_the_legend_says_how_many_more_there_are() -> None:
    made = [record("dne", 0, 70.0, heads=[3, k]) for k in range(1, 101)]
    figure = accuracy_against_cost(made)
    drawing = figure.marks()
    assert drawing is not None and figure.size[1] < 8
    names = [name for name, _ in drawing.listed()]
    assert len(names) == MOST_LISTED and names[-1] == f"and {101 - MOST_LISTED} more"
    shown = [trace.name for trace in figure.interactive().data if trace.showlegend is not False]
    assert sorted(shown) == sorted(names)
