"""Controls beside the method that they change: who is paired with whom, against differences by hand."""

import hashlib
from typing import Any

import numpy as np
import pytest
from invented import record, runs

from dne_lab.measure.beside import differences
from dne_lab.measure.record import Record
from dne_lab.measure.trained_controls import (
    LADDER,
    NUMBERED,
    WORDS,
    controls,
    headed,
    ladder,
    ladder_table,
    rates,
    sizes,
    table,
    words_of,
)
from dne_lab.models.controls import COLUMNS


def controlled(
    method: str, values: tuple[float, ...], others: dict[str, Any] | None = None, **options: Any
) -> list[Record]:
    """Runs under these options; ``others``: fields of the record, or ``lr`` of the configuration."""
    fields = dict(others or {})
    config = {"options": options} | ({"learn": {"lr": fields.pop("lr")}} if "lr" in fields else {})
    hashed = hashlib.sha256(str([method, config, fields]).encode()).hexdigest()
    return runs(method, values, config=config, config_sha256=hashed, settings_sha256=hashed, **fields)


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


def test_runs_that_name_a_column_go_before_others_of_the_same_network() -> None:
    """Older runs of the method itself, of another schedule, stand in the same folder: they are not what was changed."""
    older = runs("dne", (60, 62), config={"options": {}, "schedule": {"epochs": 5}}, settings_sha256="7" * 64)
    records = [*older, *controlled("dne", (80, 82), weights="learned"), *controlled("dne", (85, 88), weights="uniform")]
    (one,) = controls(records)["dne"]
    assert one.pair.values() == [5.0, 6.0]
    ia = [*runs("ia", (50, 51), settings_sha256="8" * 64), *controlled("ia", (70, 70), experts="all")]
    (size,) = sizes([*records, *ia])
    assert size.pair.values() == [10.0, 12.0]


def steps_from_ia_to_dne(seeds: int = 3) -> list[Record]:
    ends = ((60, 61, 62), (63, 65, 64), (74, 75, 79), (74, 73, 79), (70, 72, 74))
    return [
        record
        for (_, method, options), values in zip(LADDER, ends, strict=True)
        for record in controlled(method, values[:seeds], **(options or {"experts": "all"}))
    ]


def test_the_steps_from_ia_to_dne_add_up() -> None:
    records = [*steps_from_ia_to_dne(), *controlled("dne", (90,), weights="means")]
    steps = ladder(records)
    assert [step.words for step in steps] == [words for words, _, _ in LADDER]
    assert steps[0].added == () and steps[1].added == (3, 4, 2) and steps[3].added == (0, -2, 0)
    rows = ladder_table(steps)
    assert rows["adds"].sum() == pytest.approx(rows["LA"].iloc[-1] - rows["LA"].iloc[0])
    assert rows["+-"][1] == pytest.approx(4.3026527 * 1 / 3**0.5) and np.isnan(rows["+-"][0])
    alone = [0.0369, 0.0154, 0.4226, 0.1044]  # Student's t with two degrees of freedom
    assert rows["p (Holm)"][2] == pytest.approx(4 * alone[1], rel=0.05)
    assert rows["parameters (M)"].tolist() == [0.3] * 5


def test_steps_without_a_common_seed_are_none() -> None:
    records = steps_from_ia_to_dne()
    assert len(ladder([r for r in records if r.seed == 0 or r.method == "ia"])[0].records) == 1
    assert ladder([r for r in records if (r.method == "ia") == (r.seed == 0)]) == []
    assert ladder([r for r in records if r.config["options"] != {"experts": "own"}]) == []
    (row, *_) = ladder_table(ladder(steps_from_ia_to_dne(1))).to_dict("records")
    assert row["seeds"] == 1 and np.isnan(row["+-"])


def test_controls_on_two_streams_are_two_families_and_say_which_they_are_of() -> None:
    records = []
    for tasks, values in (((4, 2, 2, 2), (85, 88, 88)), ((2, 2, 2, 2, 2), (75, 78, 78))):
        records += controlled("dne", (80, 82, 84), {"tasks": tasks})
        records += controlled("dne", values, {"tasks": tasks}, weights="uniform")
    first, second = controls(records)["dne"]
    assert (first.words, second.words) == ("A = 1/H (4 + 2 x 3)", "A = 1/H (2 + 2 x 4)")
    wide = {"heads": [4, 2, 2, 2], "network": {"patch": 2, "heads": [4, 2]}}
    more = controls([*records, *controlled("dne", (90,), wide), *controlled("dne", (91,), wide, weights="uniform")])
    assert "A = 1/H (DNE (k = 2))" in [control.words for control in more["dne"]]
    alone = controls([r for r in records if len(r.tasks) == 4])["dne"][0]
    assert first.adjusted == alone.adjusted and alone.words == "A = 1/H"


def test_a_control_is_beside_runs_of_its_own_settings_alone() -> None:
    records = [
        *controlled("dne", (60, 62), {"lr": 0.01}),
        *controlled("dne", (80, 82), {"lr": 0.001}),
        *controlled("dne", (85, 88), {"lr": 0.001}, weights="uniform"),
        *controlled("dne", (85, 88), {"lr": 0.1}, experts="first"),  # no DNE has learned at this rate
    ]
    (one,) = controls(records)["dne"]
    assert one.words == "A = 1/H" and one.pair.values() == [5.0, 6.0]


def test_other_keys_are_a_control_and_no_method_as_it_is() -> None:
    records = [*runs("ia", (80, 82)), *controlled("ia", (60, 63), reads="all"), *runs("dne", (85, 88))]
    (one,) = controls(records)["ia"]
    assert one.words == "reading the patches of all experts" and one.pair.values() == [-20.0, -19.0]
    assert differences(records)["difference"].tolist() == [5.5]
    assert differences(records[2:]).empty


def test_what_the_variant_has_anyway_or_is_left_open_is_no_control() -> None:
    for named in ({"mixes": "task"}, {"reads": "own"}, {"weights": None}, {"temperature": 1.0}):
        records = [*controlled("dne", (80, 82), **named), *controlled("dne", (85, 88), weights="uniform")]
        (one,) = controls(records)["dne"]
        assert one.words == "A = 1/H" and one.pair.values() == [5.0, 6.0]


def test_rates_are_means_over_seeds_by_network_and_rate() -> None:
    records = [
        *controlled("dne", (60, 64), {"lr": 0.001}),
        *controlled("dne", (70, 71, 75), {"lr": 0.002}),
        *controlled("dne", (66,), {"lr": 0.002}, weights="uniform"),
        *runs("joint", (90,)),
    ]
    found = rates(records)
    assert found.columns.tolist() == ["seeds", 0.001, 0.002]
    assert found.loc["DNE"].tolist() == [2, 62.0, 72.0]
    assert found.loc["DNE, A = 1/H", "seeds"] == 1 and found.loc["DNE, A = 1/H", 0.002] == 66.0
    assert np.isnan(found.loc["DNE, A = 1/H", 0.001])
