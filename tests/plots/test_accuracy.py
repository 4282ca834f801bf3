"""Accuracy figures: what is in the table, what is drawn, and that nothing without a record ever is."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from invented import record
from matplotlib.figure import Figure as Canvas

from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import ORDER
from dne_lab.methods.base import Method, title_of
from dne_lab.methods.expansion import DenseNetworkExpansion
from dne_lab.plots.accuracy import accuracy_against_cost, accuracy_by_task, accuracy_matrix
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Level, Points
from dne_lab.plots.series import NO_RECORD, scale
from dne_lab.plots.style import STYLES, line_of, style


def runs() -> list:
    made = [record(name, seed, last + seed) for name, last in (("dne", 78.0), ("ia", 70.0)) for seed in range(3)]
    return [*made, record("joint", 0, 95.0), record("sta", 0, done=2)]


def drawn(figure: Figure) -> Any:
    axes = Canvas().add_subplot()
    figure.draw(axes)
    return axes


def labels(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_accuracy_by_task() -> None:
    figure = accuracy_by_task(runs(), methods=("dne", "sta", "der"))
    table = figure.table
    dne = table[table["series"] == "DNE (k = 1)"]
    assert dne["classes"].tolist() == [4, 6, 8, 10]
    assert dne["seen accuracy %"].tolist() == pytest.approx([98, (92 - 2 / 3) + 1 / 3, 85 + 1 / 3, 79])
    assert dne["+-"].iloc[-1] == pytest.approx(4.3026527 / 3**0.5)  # 78, 79, 80
    assert table[table["method"] == "joint"]["classes"].tolist() == [10]
    missing = table[table["record"] == NO_RECORD]
    assert missing["series"].tolist() == ["STA", "DER"]  # STA has only an unfinished run
    assert missing[["task", "classes", "seen accuracy %", "+-"]].isna().all(axis=None)
    axes = drawn(figure)
    assert labels(axes) == ["Joint", "IA (k = 1)", "DNE (k = 1)"]
    (joint,) = (mark for mark in figure.marks().panels[0].marks if isinstance(mark, Level))
    assert (joint.name, joint.at) == ("Joint", 95.0)
    assert len(figure.records) == 7
    assert "digits, small scale" in figure.title
    assert "1-3 seeds" in figure.title


def test_cost_draws_spent_filled_and_literal_hollow() -> None:
    costless = record("finetune", flops_spent=None, flops_literal=None, params={})
    small = record("ia", params={"total": 75_000})
    figure = accuracy_against_cost([record("dne"), small, costless], methods=("dne", "der"))
    table = figure.table.set_index("series")
    assert table.loc["DNE (k = 1)", ["LA %", "F spent (G)", "F literal (G)", "params (M)"]].tolist() == [
        *(80.0, 0.0025, 0.004, 0.3)
    ]
    assert table.loc["DER", "record"] == NO_RECORD
    assert labels(drawn(figure)) == ["IA (k = 1)", "DNE (k = 1)"]  # no mark without a cost
    (panel,) = figure.marks().panels
    assert panel.x.title.startswith("MFLOPs")
    points = [mark for mark in panel.marks if isinstance(mark, Points) and mark.marked]
    assert [(m.x[0], m.y[0]) for m in points if not m.filled] == [(pytest.approx(4.0), pytest.approx(80.0))] * 2
    assert [(m.x[0], m.y[0]) for m in points if m.filled] == [(pytest.approx(2.5), pytest.approx(80.0))] * 2
    small, large = sorted(mark.areas()[0] for mark in points if mark.filled)
    assert large / small == pytest.approx(4.0)  # 300 k against 75 k parameters


def test_cost_axis_is_logarithmic_only_for_wide_ranges() -> None:
    wide = [
        record("dne", flops_spent=50_000_000_000, flops_literal=60_000_000_000),
        record("ia", flops_spent=1_000_000_000),
    ]
    assert drawn(accuracy_against_cost(wide)).get_xscale() == "log"
    assert drawn(accuracy_against_cost([record("dne"), record("ia")])).get_xscale() == "linear"
    assert "GFLOPs" in drawn(accuracy_against_cost(wide)).get_xlabel()


def test_accuracy_matrix() -> None:
    figure = accuracy_matrix(record(last=80.0))
    assert figure.table["accuracy %"].tolist() == pytest.approx([98, 91, 92, 84, 85, 86, 77, 78, 79, 80])
    assert figure.table[["after task", "task"]].iloc[-1].tolist() == [4, 4]
    assert [text.get_text() for text in drawn(figure).texts] == [
        "98",
        "91",
        "92",
        "84",
        "85",
        "86",
        "77",
        "78",
        "79",
        "80",
    ]
    assert figure.name.startswith("accuracy_matrix_dne-digits-s0")
    assert len(accuracy_matrix(record(done=2)).table) == 3  # a run in progress
    with pytest.raises(LabError, match="no task is finished"):
        accuracy_matrix(record(done=0))


@pytest.mark.parametrize("make", [accuracy_by_task, accuracy_against_cost])
def test_files_are_stable_and_independent_of_the_order_of_records(make: Any, tmp_path: Path) -> None:
    one = [path.read_bytes() for path in make(runs()).save(tmp_path / "one")]
    two = [path.read_bytes() for path in make(runs()[::-1]).save(tmp_path / "two")]
    assert one == two
    assert NO_RECORD.encode() not in one[0]


@pytest.mark.parametrize("make", [accuracy_by_task, accuracy_against_cost])
def test_needs_finished_runs_on_one_data_set(make: Any) -> None:
    with pytest.raises(LabError, match="no finished run"):
        make([record(done=2)])
    with pytest.raises(LabError, match=r"several data sets \(digits, digits100\)"):
        make([record(), record(dataset="digits100")])


def test_only_the_papers_schedule_is_not_small_scale() -> None:
    stream = {"tasks": (50, 50), "heads": [12, 1]}
    paper = record(dataset="cifar100", epochs=500, **stream)
    assert scale([paper]) == "cifar100"
    assert scale([paper, record(dataset="cifar100", epochs=10, **stream)]) == "cifar100, small scale"
    assert scale([record(epochs=500)]) == "digits, small scale"


def test_series_of_one_method_differ_in_their_line() -> None:
    both = [record("dne"), record("dne", heads=[4, 2, 2, 2])]
    lines = accuracy_by_task(both).marks().panels[0].marks
    assert len({line.dash for line in lines}) == 2 and {line.look for line in lines} == {STYLES["dne"]}
    assert [line.filled for line in lines] == [True, False]
    assert len(drawn(accuracy_against_cost(both)).texts) == 2  # marks of one colour carry their name


def test_many_tasks_keep_readable_ticks() -> None:
    ticks = drawn(accuracy_by_task([record(tasks=(50, *[2] * 25), dataset="digits100")])).get_xticks()
    assert len(ticks) <= 13
    assert max(ticks) == 100


def test_styles_are_distinct_and_fixed() -> None:
    assert set(STYLES) == set(ORDER)
    assert len({s.colour for s in STYLES.values()}) == len({s.marker for s in STYLES.values()}) == len(STYLES)


def test_methods_of_ones_own_are_told_apart_in_one_figure() -> None:
    names = [f"variant-{number}" for number in range(20)]
    looks = [style(name) for name in names]
    assert len({*looks} | {*STYLES.values()}) == len(names) + len(STYLES)
    assert len({look.colour for look in looks[:5]} | {s.colour for s in STYLES.values()}) == 5 + len(STYLES)
    assert [style(name) for name in reversed(names)] == looks[::-1]  # and keep their look
    assert len({line_of(name, 0).dash for name in names[:4]}) == 4 and line_of("dne", 0) == (STYLES["dne"], "-", True)


def test_a_method_of_ones_own_has_its_title_in_tables_and_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "registry", dict(Method.registry))

    class Mine(DenseNetworkExpansion):
        name = "mine-in-figures"

    class Titled(DenseNetworkExpansion):
        name = "mine-titled"
        title = "DNE, longer"

    titles = {cls.name: title_of(cls.name) for cls in (DenseNetworkExpansion, Mine, Titled)}
    assert titles == {"dne": "DNE", "mine-in-figures": "mine-in-figures", "mine-titled": "DNE, longer"}
    shown = accuracy_by_task([record(name) for name in titles])
    assert [*dict.fromkeys(shown.table["series"])][1:] == ["mine-in-figures", "DNE, longer"]
    marks = shown.marks().panels[0].marks
    assert len({mark.look for mark in marks if isinstance(mark, Points)}) == 3


def test_tables_are_numbers() -> None:
    for figure in (accuracy_by_task([record()], ["der"]), accuracy_against_cost([record()], ["der"])):
        text = [name for name in figure.table if not pd.api.types.is_numeric_dtype(figure.table[name])]
        assert text == ["series", "method", "record"]
