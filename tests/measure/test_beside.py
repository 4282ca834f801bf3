"""Tables beside that of accuracies: differences, costs, areas over budgets of bytes."""

from typing import Any

import pandas as pd
import pytest
from invented import record, runs

from dne_lab.commands.report import text
from dne_lab.measure.beside import areas, by_budget, costs, differences
from dne_lab.measure.record import Record


def test_differences_are_paired_corrected_and_set_beside_two_points() -> None:
    made = [*runs("dne", (80, 82, 84)), *runs("ia", (70, 71.5, 74.5)), *runs("sta", (80.2, 82.1, 84.1))]
    made += [*runs("replay", (60.0,)), *runs("joint", (90, 91, 92))]
    frame = differences(made).set_index("minus")
    assert list(frame.index) == ["IA (k = 1)", "STA (k = 1)"]  # one seed is no difference, joint no method of tasks
    ia, sta = frame.loc["IA (k = 1)"], frame.loc["STA (k = 1)"]
    assert ia["difference"] == pytest.approx(10.0) and ia["seeds"] == 3
    assert ia["p (Holm)"] == pytest.approx(2 * ia["p"]) and ia["told apart"] == "yes"
    assert sta["p (Holm)"] == pytest.approx(max(sta["p"], ia["p (Holm)"]))
    assert (ia["beside 2 points"], sta["beside 2 points"]) == ("above", "below")
    assert 0 < ia["+- pooled"] == sta["+- pooled"]
    one = differences(made, "replay", fewest=1)
    assert len(one) == 3 and one["p"].isna().all() and set(one["told apart"]) == {""}
    assert differences([]).empty


def test_what_each_method_costs() -> None:
    made = [*runs("dne", (80, 82), flops_training=3 * 10**12), *runs("replay", (60, 61), params={"total": 200_000})]
    frame = costs([*made, record("ia", dataset="folder")]).set_index("method")
    dne = frame.loc["DNE (k = 1)"]
    assert (dne["training (TFLOP)"], dne["seconds"], dne["params (M)"]) == (3.0, 10.5, 0.3)
    assert (dne["model (MB)"], dne["exemplars (MB)"]) == pytest.approx((1.2, 100 * 64 / 1e6))
    assert dne["together (MB)"] == pytest.approx(1.2064)
    assert dne["extra parameters in exemplars"] == 4 * 100_000 // 64
    assert frame.loc["Replay"]["extra parameters in exemplars"] == 0
    assert pd.isna(frame.loc["Replay"]["training (TFLOP)"]) and pd.isna(frame.loc["IA (k = 1)"]["model (MB)"])


def at(method: str, total: float, last: float, **changes: Any) -> Record:
    memory = {"budget": int(total), "policy": "shared", "stored": 10, "bytes": int(total * 1e6)}
    return record(method, 0, last, memory=memory, **changes)


def test_the_area_over_budgets_is_a_mean_accuracy_over_the_range_that_all_methods_cover() -> None:
    dne = [at("dne", total, last) for total, last in ((2, 50.0), (4, 70.0))]
    ia = [at("ia", total, last) for total, last in ((1, 40.0), (3, 60.0), (5, 60.0))]
    frame = areas([*dne, *ia, at("sta", 3, 99.0)]).set_index("method")
    assert list(frame.index) == ["DNE (k = 1)", "IA (k = 1)"]  # one budget has no area
    assert set(frame["from (MB)"]) == {2.0} and set(frame["to (MB)"]) == {4.0}
    assert frame.loc["DNE (k = 1)", "area under LA"] == pytest.approx(60.0)
    assert frame.loc["IA (k = 1)", "area under LA"] == pytest.approx(55 / 2 + 60 / 2)  # 50 at 2, 60 from 3 on
    assert frame.loc["IA (k = 1)", "budgets"] == 3
    assert areas([*dne, *[at("ia", total, 50.0) for total in (5, 6)]]).empty  # no range in common
    assert areas([]).empty and len(by_budget([*dne, *ia])) == 5


def test_other_settings_are_another_curve() -> None:
    curves = []
    for rate, total in ((1, 2), (1, 4), (2, 2), (2, 4)):
        config = {"learn": {"lr": rate}, "memory": {"bytes": total}}
        curves.append(at("dne", total, 50.0, config=config, settings_sha256=f"{rate}{total}"))
    assert sorted(set(by_budget(curves)["method"])) == ["DNE (k = 1), settings 1", "DNE (k = 1), settings 2"]
    own = by_budget([record("dne")])  # without a given total: what model and exemplars take
    assert own["total (MB)"].tolist() == pytest.approx([1.2064])


def test_a_report_has_them() -> None:
    made = [*runs("dne", (80, 82, 84)), *runs("ia", (70, 71.5, 74.5))]
    told = text([*made, *[at(m, t, 60.0) for m in ("dne", "ia") for t in (2, 4)]])
    for column in ("p (Holm)", "extra parameters in exemplars", "area under LA"):
        assert column in told
    assert "p (Holm)" not in text(runs("dne", (80, 81)))
