"""Controls beside the method that they change: who is paired with whom, against differences by hand."""

from typing import Any

import numpy as np
import pytest
from invented import record, runs

from dne_lab.measure.beside import differences
from dne_lab.measure.record import Record
from dne_lab.measure.trained_controls import NUMBERED, WORDS, controls, headed, sizes, table, words_of
from dne_lab.models.controls import COLUMNS


def controlled(method: str, values: tuple[float, ...], **options: Any) -> list[Record]:
    hashed = str(options).encode().hex()[:64].ljust(64, "0")
    return runs(method, values, config={"options": options}, config_sha256=hashed, settings_sha256=hashed)


def test_a_control_is_paired_with_its_method_by_seed() -> None:
    records = [
        *runs("dne", (80, 82, 84)),
        *controlled("dne", (85, 88, 88), weights="uniform"),
        *controlled("dne", (79, 81, 84), experts="first"),
        *runs("sta", (70, 70, 70)),
        *controlled("sta", (60, 62), masked="DPDH"),
        *controlled("ia", (60, 62), entropy=0.98),  # there is no IA beside it
    ]
    found = controls(records)
    assert set(found) == {"dne", "sta"}
    rows = table(found["dne"]).set_index("control")
    assert rows.loc["A = 1/H", "difference"] == pytest.approx(5) and rows.loc["A = 1/H", "LA"] == pytest.approx(87)
    assert rows.loc["A = 1/H", "+-"] == pytest.approx(4.3026527 * 1 / 3**0.5)  # 5, 6, 4
    assert rows.loc["reading expert 1 alone", "difference"] == pytest.approx(-2 / 3)
    first, second = rows["p (Holm)"]["A = 1/H"], rows["p (Holm)"]["reading expert 1 alone"]
    assert first == pytest.approx(2 * 0.0130725, rel=1e-4) and second == pytest.approx(0.1835, rel=1e-3)
    assert rows.loc["A = 1/H", "told apart"] == "yes" and rows.loc["reading expert 1 alone", "told apart"] == "no"
    (one,) = found["sta"]
    assert one.words == "without DPDH" and one.pair.values() == [-10.0, -8.0]
    assert [heading.split(" under")[0] for heading, _ in headed(records)] == ["LA of STA", "LA of DNE"]


def test_one_seed_has_no_interval_and_another_network_is_no_pair() -> None:
    wide = {"patch": 2, "heads": [4, 2]}
    records = [*runs("dne", (80, 82)), *controlled("dne", (81,), most=2)]
    (row,) = table(controls(records)["dne"]).to_dict("records")
    assert row["control"] == "reading the 2 heads read most" and np.isnan(row["+-"]) and row["told apart"] == ""
    assert controls([*runs("dne", (80, 82), network=wide), *records[2:]]) == {}


def test_predictions_before_stage_2_are_means_over_tasks_and_seeds() -> None:
    before = {"new": [80.0, 90.0, 70.0], "old": [60.0, 50.0, 40.0], "old_called_new": [1.0, 2.0, 3.0]}
    ours = runs("dne", (80, 82), config={"options": {"mixes": "task1"}}, before_tuning=before, settings_sha256="1" * 64)
    (row,) = table(controls([*runs("dne", (80, 82)), *ours])["dne"]).to_dict("records")
    assert row["new before stage 2"] == pytest.approx(80) and row["old before stage 2"] == pytest.approx(50)


def test_sizes_beside_one_method() -> None:
    wide = {"patch": 2, "heads": [4, 3], "head_width": 29}
    other = runs("ia", (75, 76), heads=[4, 3, 3, 3], network=wide, settings_sha256="2" * 64)
    found = sizes([*runs("dne", (80, 82)), *runs("ia", (70, 70)), *other, record("joint")])
    assert [control.pair.values() for control in found] == [[10.0, 12.0], [5.0, 6.0]]
    assert found[1].words == "IA: k = 3, heads of 29, 0.30 M parameters"


def test_every_column_of_the_controls_has_words() -> None:
    assert {name for name, _ in WORDS} | NUMBERED.keys() == COLUMNS
    assert words_of({"masked": "both", "temperature": 2.0}) == "without SPDH and DPDH, at temperature 2.0"


def test_a_named_default_is_the_method_itself_and_stands_in_no_other_comparison() -> None:
    named = controlled("dne", (80, 82), weights="learned")
    records = [*named, *controlled("dne", (85, 88), weights="uniform"), *runs("ia", (70, 70))]
    (one,) = controls(records)["dne"]
    assert one.words == "A = 1/H" and one.pair.values() == [5.0, 6.0]
    assert differences(records).empty
    assert differences([*records, *runs("dne", (81, 81))])["difference"].tolist() == [11.0]
