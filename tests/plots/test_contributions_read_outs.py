"""The figure of linear probes: what the table holds, what is drawn, what is refused."""

from typing import Any

import pytest

from dne_lab.analysis.read_outs import ProbeRecord, probe_table
from dne_lab.core.errors import LabError
from dne_lab.measure.metrics import interval
from dne_lab.plots.contributions import read_out_drawings, read_outs
from dne_lab.plots.style import style


def invented(method: str = "dne", seed: int = 0, accuracy: float = 60.0, **changes: Any) -> ProbeRecord:
    """A record in form alone."""
    sets = (
        ["all", "expert 1", "later", "the run's classifier"] if method != "joint" else ["all", "the run's classifier"]
    )
    rows = [
        {"read-outs": name, "width": 8, "accuracy": accuracy - 5 * place, "+-": 2.0, "by task": [accuracy, 40.0]}
        | {"told": 90.0 - place, "told by task": [90.0, 80.0], "train": 99.0, "iterations": 30}
        for place, name in enumerate(sets)
    ]
    base: dict[str, Any] = {
        "run": f"{method}-digits-s{seed}", "method": method, "preset": "digits", "dataset": "digits", "seed": seed,
        "tasks": [6, 4], "heads": [2, 1], "LA": 55.0, "train_images": 1000, "test_images": 400, "widths": [4, 4],
        "fit": {}, "rows": rows, "config_sha256": "", "code_version": "0.1.0", "torch": "2.15.0", "device": "cpu",
    }  # fmt: skip
    return ProbeRecord(**{**base, **changes})


def test_seeds_are_put_together() -> None:
    found = [invented("dne", seed, value) for seed, value in enumerate((60.0, 62.0, 70.0))] + [invented("ia")]
    table = probe_table(found)
    assert table["method"].tolist() == ["ia"] * 4 + ["dne"] * 4  # in the order of the methods
    row = table.iloc[5]
    assert (row["read-outs"], row["seeds"], row["interval"]) == ("expert 1", 3, "seeds")
    assert (row["accuracy %"], row["accuracy +-"]) == pytest.approx(interval([55.0, 57.0, 65.0]))
    assert row["task 1 %"] == pytest.approx(64.0) and row["told task 2 %"] == 80.0
    one = table.iloc[0]
    assert one["interval"] == "images" and one["accuracy +-"] == pytest.approx(196 * (0.6 * 0.4 / 400) ** 0.5)
    with pytest.raises(LabError, match="cannot be averaged"):
        probe_table([invented(), invented()])


def test_a_mark_for_each_set_over_all_classes_and_with_the_task_told() -> None:
    figure = read_outs([invented("dne"), invented("joint")])
    (panel,) = figure.marks().panels
    assert len(panel.y.names) == 6 and panel.y.names[-1] == "DNE (2, 1 heads): the run's classifier"
    marks = [(mark.look.marker, mark.look.colour, x) for mark in panel.marks for x in mark.x]
    assert ("o", style("dne").colour, 60.0) in marks and ("s", style("dne").colour, 90.0) in marks
    assert len(marks) == 12 and "one seed, 95% interval over images" in figure.title
    assert figure.image() == figure.image()


def test_drawings_by_preset_and_what_is_refused() -> None:
    assert [*read_out_drawings([invented(), invented(preset="cifar100-small")])] == [
        "read_outs_digits",
        "read_outs_cifar100_small",
    ]
    with pytest.raises(LabError, match="no probe record"):
        read_outs([])
    with pytest.raises(LabError, match="several presets, a, b"):
        read_outs([invented(preset="a"), invented(preset="b")])
