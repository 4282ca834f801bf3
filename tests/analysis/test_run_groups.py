"""Runs chosen by words, their means over seeds and paired differences, against values computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from invented import record, runs

from dne_lab.analysis import run_groups, run_views
from dne_lab.analysis.run_groups import matching
from dne_lab.analysis.run_views import RunView
from dne_lab.core.errors import LabError
from dne_lab.measure.record import Record

T = {1: 12.706204736, 2: 4.302652730, 3: 3.182446305}  # of 95%, by degrees of freedom, from printed tables


def views(*records: Record) -> list[RunView]:
    return [RunView(f"{r.method}-s{r.seed}-{number}", r) for number, r in enumerate(records)]


CONFIG = {"method": "dne", "seed": 1, "learn": {"epochs": 30}, "options": {"weights": "uniform"}}
SOME = views(
    record("dne", 1, config=CONFIG),
    record("dne", 10),
    record("ia", 1, done=2),
    record("joint", 0, preset="cifar100-small", dataset="cifar100"),
)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", [0, 1, 2, 3]),
        ("dne", [0, 1]),
        ("DNE", [0, 1]),
        ("n", []),  # inside a word
        ("seed 1", [0, 2]),
        ("seed=1 dne", [0]),
        ("s1", [0, 2]),  # s10 is another seed
        ("finished", [0, 1, 3]),
        ("unfinished", [2]),
        ("-finished", [2]),
        ("cifar100", [3]),
        ("cifar", [3]),
        ("-joint -ia", [0, 1]),
        ("uniform", [0]),
        ("weights=uniform", [0]),
        ("options.weights=uniform", [0]),
        ("weights=uni", []),  # a setting's value is named whole
        ("learn.epochs=30", [0]),
        ("preset=digits", [0, 1, 2]),
        ("options", []),  # the name of a setting alone is in every run
        ("no.such", []),
        ("(k", [0, 1, 2]),
        ("-", [0, 1, 2, 3]),
    ],
)
def test_every_word_must_fit(text: str, found: list[int]) -> None:
    assert matching(SOME, text) == [SOME[i] for i in found]


def test_a_group_is_the_mean_over_seeds_with_students_interval() -> None:
    last = [80.0, 83.0, 89.0]
    (group,) = run_groups.grouped(views(*runs("dne", last)))
    classes, mean, half = group.accuracy()
    assert classes == [4, 6, 8, 10] and group.label == "DNE (k = 1): 3 seeds"
    assert mean[-1] == pytest.approx(84.0) and half[-1] == pytest.approx(T[2] * math.sqrt(21 / 3), rel=1e-8)
    assert mean[0] == 98.0 and half[0] == pytest.approx(0.0, abs=1e-12)
    table = run_groups.group_table([group])
    assert table["LA %"][0] == pytest.approx(84.0) and table["LA % +-"][0] == pytest.approx(half[-1])
    assert run_groups.with_intervals(table)["LA %"][0] == f"84.00 ± {half[-1]:.2f}"


def test_one_seed_has_no_interval_and_says_so() -> None:
    (group,) = run_groups.grouped(views(record("ia", 3)))
    _, mean, half = group.accuracy()
    assert mean[-1] == 80.0 and np.isnan(half).all() and group.label.endswith("one seed, no interval")
    table = run_groups.with_intervals(run_groups.group_table([group]))
    assert table["LA %"][0] == "80.00" and "LA % +-" not in table


def test_groups_hold_finished_runs_and_copies_once() -> None:
    one, two = runs("dne", [80.0, 82.0])
    found = run_groups.grouped([*views(one, two, record("dne", 2, done=2)), RunView("copy", one)])
    assert [[run.name for run in group.runs] for group in found] == [["dne-s0-0", "dne-s1-1"]]
    with pytest.raises(LabError, match="two different records of DNE"):
        run_groups.grouped(views(one, record("dne", 0, 70.0)))


def test_losses_are_averaged_over_the_epochs_that_all_have() -> None:
    curves = [[{"task": 1, "lr": 9.0, "ce": 2.0, "kl": 1.0}, {"task": 1, "ce": 4.0}], [{"task": 1, "ce": 5.0}], []]
    made = [RunView(str(i), r, tuple(rows)) for i, (r, rows) in enumerate(zip(runs("dne", [80, 81, 82]), curves))]  # noqa: B905
    assert made[0].total_loss.tolist() == [3.0, 4.0]
    (group,) = run_groups.grouped(made)
    assert group.total_loss().tolist() == [4.0]
    assert RunView("x", record(), ({"task": 1, "ce": "damaged", "kl": 1.5},)).total_loss.tolist() == [1.5]


def test_a_difference_is_paired_by_seed() -> None:
    dne, ia = run_groups.grouped(
        views(*(record("dne", s, v) for s, v in ((0, 80), (1, 84), (2, 90))), *runs("ia", [79, 80]))
    )[::-1]
    found = run_groups.difference(dne, ia)
    assert found.frame["seed"].tolist() == ["0", "1"] and found.frame["difference"].tolist() == [1.0, 4.0]
    half = T[1] * math.sqrt(4.5 / 2)  # mean 2.5, variance 4.5
    assert found.said[0].endswith(f"+2.50 ± {half:.2f} points of last accuracy (95% interval over 2 paired seeds).")
    assert "1 of 3 seeds of DNE (k = 1)" in found.said[1] and "method (dne, ia)" in found.said[-1]
    back = run_groups.difference(ia, dne)
    assert back.frame["difference"].tolist() == [-1.0, -4.0]


def test_what_cannot_be_paired_is_said() -> None:
    ia, dne = run_groups.grouped(views(record("dne", 0), record("ia", 1)))
    found = run_groups.difference(dne, ia)
    assert found.frame.empty and found.said[0].startswith("No pair: no seed is in both (DNE (k = 1) has 0; IA (k = 1)")
    ia, dne = run_groups.grouped(views(record("dne", 0, 81.0), record("ia", 0)))
    assert (
        "+1.00 points of last accuracy; one pair of seeds, so there is no interval"
        in run_groups.difference(dne, ia).said[0]
    )
    with pytest.raises(LabError, match="choose two"):
        run_groups.difference(ia, ia)


def test_what_learned_other_images_is_no_comparison_of_methods() -> None:
    ia, dne = run_groups.grouped(views(record("dne", 0), record("ia", 0, dataset="digits100")))
    assert any("no comparison of methods" in text for text in run_groups.difference(dne, ia).said)
    ia, dne = run_groups.grouped(views(record("dne", 0), record("ia", 0)))
    assert not any("no comparison of methods" in text for text in run_groups.difference(dne, ia).said)


def test_curves_have_a_row_for_each_run_and_task() -> None:
    some = views(record("dne", 1), record("ia", 0, done=2))
    frame = run_groups.curve_rows(some)
    assert frame["run"].tolist() == ["dne-s1-0"] * 4 + ["ia-s0-1"] * 2
    assert frame["classes"].tolist() == [4, 6, 8, 10, 4, 6] and frame["task"].tolist() == [1, 2, 3, 4, 1, 2]
    assert frame["seen accuracy %"].tolist() == [*some[0].record.seen_accuracy, *some[1].record.seen_accuracy]
    (group,) = run_groups.grouped(some[:1])
    assert run_groups.curve_rows(group.runs, [group])["configuration"].tolist() == ["DNE (k = 1)"] * 4


def test_names_are_told_apart_and_sorted_by_their_numbers() -> None:
    same = [RunView(name, record()) for name in ("a/s10", "a/s2", "b/s1")]
    assert run_views.names(same)[1].endswith("(a/s2)") and len(set(run_views.names(same))) == 3
    assert run_views.names([same[0]]) == ["DNE (k = 1), seed 0"]
    assert sorted(["s10", "s2", "10", "2", "s"], key=run_views.natural) == ["2", "10", "s", "s2", "s10"]
    assert len(RunView("x", record("m" * 400)).label) < 100


def test_only_what_has_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for seed in range(3):
        file = tmp_path / f"s{seed}" / "record.json"
        record(seed=seed).write(file)
        (file.parent / "curves.csv").write_text("task,ce\n1,2.5\n")
        for old in (file, file.parent / "curves.csv"):
            os.utime(old, (1.0, 1.0))
    monkeypatch.setattr("dne_lab.core.files._YOUNG", -1e18)  # the time of a change of a file's place cannot be set
    made: list[Path] = []
    right, curves = Record.from_tree, run_views._curves
    monkeypatch.setattr(Record, "from_tree", lambda tree, path: made.append(path) or right(tree, path))
    monkeypatch.setattr(run_views, "_curves", lambda file, data: made.append(file) or curves(file, data))
    first = run_views.find(tmp_path)
    assert len(made) == 6
    made.clear()
    again = run_views.find(tmp_path)
    assert made == [] and [a.record is b.record for a, b in zip(first, again, strict=True)] == [True] * 3
    record(seed=1, last=70.0).write(tmp_path / "s1" / "record.json")
    assert run_views.find(tmp_path)[1].record.LA == 70.0 and made == [tmp_path / "s1" / "record.json"]


def test_damage_is_told_and_the_others_are_found(tmp_path: Path) -> None:
    for seed in range(3):
        record(seed=seed).write(tmp_path / f"s{seed}" / "record.json")
    (tmp_path / "s0" / "record.json").write_text("{")
    (tmp_path / "s1" / "curves.csv").write_text("task,ce\n1,2,3\n")
    wrong: list[LabError] = []
    found = run_views.find(tmp_path, wrong=wrong)
    assert [run.name for run in found] == ["s1", "s2"] and found[0].curves == ()
    assert "s0/record.json" in str(wrong[0]) and "curves.csv" in str(wrong[1]) and len(wrong) == 2
    with pytest.raises(LabError, match=r"s0/record\.json"):
        run_views.find(tmp_path)


def test_a_name_that_is_no_text_can_be_shown_and_saved(tmp_path: Path) -> None:
    import os

    place = os.fsencode(tmp_path) + b"/run\xff"
    try:
        Path(os.fsdecode(place)).mkdir()
    except OSError:
        pytest.skip("this file system takes no such names")
    record().write(Path(os.fsdecode(place)) / "record.json")
    (found,) = run_views.find(tmp_path)
    assert found.name == "run?" and found.name.encode()


def test_the_first_pair_is_dne_against_ia_under_equal_settings() -> None:
    many = [*runs("ia", [70.0, 71.0]), *runs("sta", [72.0, 73.0]), *runs("dne", [80.0, 84.0])]
    made = run_groups.grouped(views(*many))
    assert [view.name for view in run_groups.opening_pair(made) or ()] == ["DNE (k = 1)", "IA (k = 1)"]
    left = [view for view in made if view.name != "IA (k = 1)"]
    assert [view.name for view in run_groups.opening_pair(left) or ()] == ["DNE (k = 1)", "STA (k = 1)"]
    assert run_groups.opening_pair(made[:1]) is None
