"""Tables over records: who is averaged with whom, D against the right joint model, the paper's rows beside ours."""

from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from invented import record

from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import groups, heads_text, is_method, joint_of, pairs, tasks_text, title
from dne_lab.measure.measurement import apart
from dne_lab.measure.tables import Sentences, compare, fixed, printed_as, summary, to_latex, to_markdown, to_text


def row(frame: pd.DataFrame, method: str) -> dict:
    (found,) = frame[frame["method"] == method].to_dict("records")
    return found


def test_summary_is_mean_and_interval_over_seeds() -> None:
    runs = [record("dne", seed, last) for seed, last in enumerate((78.0, 80.0, 82.0))]
    runs += [record("joint", seed, 95.0 + seed) for seed in range(3)]
    frame = summary(runs)
    assert frame["method"].tolist() == ["Joint", "DNE (k = 1)"]
    dne = row(frame, "DNE (k = 1)")
    assert (dne["seeds"], dne["LA"], dne["heads"], dne["tasks"]) == (3, 80.0, "4, 1", "4 + 2 x 3")
    assert dne["LA +-"] == pytest.approx(4.3026527 * 2 / 3**0.5)  # t(0.975, 2) x sd / sqrt(n)
    assert dne["AA"] == pytest.approx(89.0)
    assert dne["D"] == pytest.approx((17 + 16 + 15) / 3)
    assert dne["D +-"] == pytest.approx(4.3026527 * 1 / 3**0.5)  # seed by seed: narrower than from LA alone
    assert (dne["F literal (G)"], dne["F spent (G)"], dne["params (M)"]) == pytest.approx((0.004, 0.0025, 0.3))
    assert (dne["seconds"], dne["forgetting"], dne["memory"]) == (11.0, 6.0, "100 shared")
    assert row(frame, "Joint")["D"] == 0
    assert "unfinished" not in frame


def test_runs_on_other_images_of_the_same_names_have_rows_of_their_own() -> None:
    here, there = "a" * 16, "b" * 16
    runs = [record("dne", seed, 80.0, images_sha256=here) for seed in (0, 1)]
    runs += [record("dne", 2, 60.0, images_sha256=there), record("joint", 0, 95.0, images_sha256=there)]
    frame = summary(runs)
    assert frame["method"].tolist() == ["Joint", "DNE (k = 1), images aaaaaaaa", "DNE (k = 1), images bbbbbbbb"]
    assert frame["seeds"].tolist() == [1, 2, 1] and frame["LA"].tolist() == [95.0, 80.0, 60.0]
    assert pd.isna(row(frame, "DNE (k = 1), images aaaaaaaa")["D"])  # Joint has learned from other images
    older = [record("dne", 3, 80.0), *runs[:2]]  # of a time when records did not say it: taken for the others
    assert summary(older)["seeds"].tolist() == [3]
    assert not pairs(groups([record("ia", 0, images_sha256=there), *runs[:2]]), is_method("dne"), is_method("ia"))
    assert pairs(groups([record("ia", 0, images_sha256=here), *runs[:2]]), is_method("dne"), is_method("ia"))


def test_measurements_on_other_images_are_not_averaged() -> None:
    def measured(seed: int, digest: str) -> Any:
        return SimpleNamespace(seed=seed, run=f"dne-s{seed}", trained={"images_sha256": digest})

    assert list(apart([measured(0, "a" * 16), measured(1, "a" * 16)])) == [""]
    parts = apart([measured(0, "a" * 16), measured(1, "b" * 16), measured(2, "b" * 16)])
    assert {name: len(alike) for name, alike in parts.items()} == {", images aaaaaaaa": 1, ", images bbbbbbbb": 2}


def test_measurements_of_controls_are_not_averaged_with_the_method_itself() -> None:
    def measured(seed: int, **options: Any) -> Any:
        return SimpleNamespace(seed=seed, run=f"dne-s{seed}", options=options)

    plain, older = [measured(0), measured(1)], SimpleNamespace(seed=2, run="dne-s2")  # which does not say
    control = [measured(3, weights="uniform"), measured(4, weights="uniform"), measured(5, query_rate=0.1)]
    parts = apart([*plain, *control])  # no seed is there twice
    assert {name: len(alike) for name, alike in parts.items()} == {"": 2, ", weights uniform": 2, ", query_rate 0.1": 1}
    assert list(apart([*plain, older])) == [""]


def test_one_seed_has_no_interval_and_no_joint_no_difference() -> None:
    only = row(summary([record()]), "DNE (k = 1)")
    assert pd.isna(only["LA +-"])
    assert pd.isna(only["D"])


def test_difference_uses_common_seeds_and_the_same_network() -> None:
    resnet = {"kind": "resnet18"}
    runs = [record("dne", 0, 80.0), record("dne", 1, 70.0), record("joint", 1, 90.0), record("joint", 2, 10.0)]
    runs += [record("joint", seed, 99.0, network=resnet, heads=[]) for seed in (0, 1)]
    runs += [record("der", 0, 60.0, network=resnet, heads=[])]
    frame = summary(runs)
    dne = row(frame, "DNE (k = 1)")
    assert dne["D"] == 20.0  # seed 1 alone
    assert dne["D other network"] == pytest.approx((19 + 29) / 2)
    assert row(frame, "DER")["D"] == 39.0
    labels = [label for label in frame["method"] if label.startswith("Joint")]
    assert len(set(labels)) == 2
    # another preset, data set or number of classes has another joint model
    for change in ({"preset": "other"}, {"dataset": "digits100"}, {"tasks": (4, 2, 2)}, {"validation": 0.2}):
        assert pd.isna(row(summary([record(**change), record("joint", 0, 90.0)]), "DNE (k = 1)")["D"])


def test_of_several_joint_models_the_one_of_equal_schedule() -> None:
    made = groups([record(epochs=30), record("joint", epochs=30), record("joint", epochs=5)])
    (dne,) = [group for group in made if group.first.method == "dne"]
    joint = joint_of(dne, made)
    assert joint is not None
    assert joint.first.epochs == 30
    assert joint_of(groups([record(epochs=7)])[0], made) is None


def test_a_method_with_a_recipe_of_its_own_has_the_joint_model_of_its_network() -> None:
    def settings(lr: float, loss: str = "ce") -> dict:
        return {"config": {"learn": {"lr": lr}, "loss": {"classification": loss}}}

    made = groups([record("icarl", **settings(0.1)), record("joint", **settings(0.2), settings_sha256="a" * 64)])
    joint = joint_of(made[1], made)
    assert joint is not None and joint.first.config["learn"]["lr"] == 0.2
    # among several, the one with the method's own recipe; of another objective, none
    more = [record("joint", **settings(0.1), settings_sha256="b" * 64)]
    more += [record("joint", **settings(0.2), settings_sha256="a" * 64), record("icarl", **settings(0.1))]
    made = groups(more)
    joint = joint_of(made[-1], made)
    assert joint is not None and joint.first.config["learn"]["lr"] == 0.1
    other = groups([record("icarl", **settings(0.1)), record("joint", **settings(0.1, "bce"))])
    assert joint_of(other[1], other) is None


@pytest.mark.parametrize(
    "change",
    [
        {"heads": [4, 2, 2, 2]},
        {"epochs": 60},
        {"preset": "digits,paper-text"},
        {"memory": {"budget": 200, "policy": "shared", "stored": 200, "scope": "run"}},
        {"memory": {"budget": 100, "policy": "fixed", "stored": 100, "scope": "run"}},
        {"class_order": [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]},
        {"tasks": (4, 3, 3), "heads": [4, 1, 1]},
        {"validation": 0.2},
        {"network": {"patch": 1}},
        {"settings_sha256": "f" * 64},
    ],
)
def test_what_differs_is_not_averaged(change: dict) -> None:
    frame = summary([record(seed=0), record(seed=1, **change)])
    assert frame["seeds"].tolist() == [1, 1]
    assert frame["method"].nunique() == 2


def test_unfinished_runs_are_counted_not_averaged() -> None:
    frame = summary([record(seed=0), record(seed=1, done=2), record("ia", done=1)])
    assert (frame["seeds"].tolist(), frame["unfinished"].tolist()) == ([1], [1])
    assert summary([]).empty
    assert compare([]).empty


def test_two_runs_of_one_seed_are_no_repetition() -> None:
    with pytest.raises(LabError, match=r"two different records of DNE .*seed 0 .*LA 80.0 and 81.0"):
        summary([record(), record(last=81.0)])


def test_compare_with_the_paper() -> None:
    stream = {"tasks": (50, 10, 10, 10, 10, 10), "dataset": "cifar100", "epochs": 500}
    runs = [record("dne", 0, 67.0, **stream), record("joint", 0, 75.0, **stream), record("ia", 0, 60.0, **stream)]
    runs += [record("icarl", 0, 45.0, **stream, heads=[], network={"kind": "resnet18"})]
    frame = compare(runs)
    dne = row(frame, "DNE (k = 1)")
    assert (dne["our dataset"], dne["paper dataset"]) == ("cifar100", "cifar100")
    assert (dne["paper LA"], dne["paper AA"], dne["paper D"], dne["paper F"]) == (68.04, 73.68, 8.08, 2.68)
    assert dne["LA - paper"] == pytest.approx(67.0 - 68.04)
    assert dne["D - paper"] == pytest.approx(8.0 - 8.08)
    assert dne["F - paper"] == pytest.approx(0.004 - 2.68)
    assert row(frame, "Joint")["paper LA"] == 76.12
    assert row(frame, "iCaRL")["paper LA"] == 44.72
    assert "transformer joint" in row(frame, "iCaRL")["remark on the print"]
    assert frame["elsewhere with"].tolist() == [""] * 4
    der = row(compare([record("der", 0, 60.0, **stream, heads=[], network={"kind": "resnet18"})]), "DER")
    assert (der["LA elsewhere"], der["AA elsewhere"], der["elsewhere with"]) == (66.26, 73.21, "resnet18, 20 per class")
    ia = row(frame, "IA (k = 1)")  # the paper prints no table row for IA
    assert ia["paper dataset"] == ""
    assert pd.isna(ia["paper LA"])
    assert pd.isna(ia["LA - paper"])


def test_compare_says_that_digits_are_not_cifar() -> None:
    run = record("dne", tasks=(50, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5), dataset="digits100", heads=[12, *[2] * 10])
    beside = row(compare([run]), "DNE (k = 2)")
    assert (beside["our dataset"], beside["paper dataset"], beside["paper LA"]) == ("digits100", "cifar100", 69.72)
    assert pd.isna(row(compare([record()]), "DNE (k = 1)")["paper LA"])  # 4 + 2 x 3 is no stream of the paper's


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (record(tasks=(50, 25, 25), heads=[12, 4, 4]), ("cifar100", 25, "dne_4heads")),
        (record(tasks=(50, 10, 40)), ("cifar100", None, "dne_1head")),
        (record(tasks=(50, 50), heads=[12, 1], dataset="imagenet100"), ("imagenet100", 50, "dne_1head")),
        (record(heads=[4, 1, 2, 1]), ("cifar100", None, None)),
        (record("joint"), ("cifar100", 10, None)),
        (record("joint", tasks=(100,), network={"kind": "resnet18"}), ("cifar100", 10, "joint_resnet18")),
        (record("joint", tasks=(100,), network={}), ("cifar100", 10, None)),  # a network that says nothing of itself
    ],
)
def test_printed_as(run, expected: tuple) -> None:
    assert printed_as(run) == expected


def test_titles_and_texts() -> None:
    assert [title(record(name)) for name in ("joint", "sta", "podnet", "mine")] == [
        "Joint",
        "STA (k = 1)",
        "PODNet",
        "mine",
    ]
    assert title(record(heads=[4, 1, 2, 1])) == "DNE (heads 4, 1, 2, 1)"
    assert [tasks_text(t) for t in ([50, *[2] * 25], [4, 3, 3, 1], [100])] == ["50 + 2 x 25", "4 + 3 x 2 + 1", "100"]
    assert [heads_text(record(heads=h)) for h in ([12, 1, 1, 1], [7], [])] == ["12, 1", "7", ""]


def test_writers() -> None:
    frame = pd.DataFrame(
        {"method": ["a|b_c", "50%"], "LA": [1.25, float("nan")], "seeds": [1, 2], "F": [-0.00001, 2.5]}
    )
    assert to_markdown(frame) == (
        "| method | LA | seeds | F |\n| --- | ---: | ---: | ---: |\n"
        "| a\\|b_c | 1.25 | 1 | 0.0000 |\n| 50% |  | 2 | 2.5000 |\n"
    )
    assert to_latex(frame) == (
        "\\begin{tabular}{lrrr}\n\\toprule\nmethod & LA & seeds & F \\\\\n\\midrule\n"
        "a|b\\_c & 1.25 & 1 & 0.0000 \\\\\n50\\% &  & 2 & 2.5000 \\\\\n\\bottomrule\n\\end{tabular}\n"
    )
    runs = [record(seed=seed, last=80.0 + seed) for seed in range(3)]
    assert "| LA ± |" in to_markdown(summary(runs))
    assert r"LA $\pm$" in to_latex(summary(runs))


def test_a_table_of_sentences_wraps_in_a_notebook_and_is_text_elsewhere() -> None:
    from IPython.core.formatters import DisplayFormatter

    said = "a sentence of so many words that a cell of a table would cut it off before it has come to its end " * 3
    frame = pd.DataFrame({"claim": ["a|b", "c"], "found": [said, "nothing"], "LA": [1.0, float("nan")]})
    shown, _ = DisplayFormatter().format(Sentences(frame))
    assert shown["text/markdown"] == to_markdown(frame) and shown["text/plain"] == to_text(frame).rstrip()
    assert said.strip() in shown["text/markdown"] and said.strip() in shown["text/plain"]


def test_a_differing_setting_names_the_row() -> None:
    runs = [
        record("ia", 0, 70.0 + i, config={"learn": {"lr": rate, "epochs": 30}}, settings_sha256=f"{i}" * 64)
        for i, rate in enumerate((1e-3, 2e-3))
    ]
    assert list(summary(runs)["method"]) == ["IA (k = 1), learn.lr 0.001", "IA (k = 1), learn.lr 0.002"]


def test_text_says_once_what_is_the_same() -> None:
    runs = [record("ia", 0, 70.0), record("dne", 0, 80.0)]
    head, names, *rows = to_text(summary(runs)).splitlines()
    assert "dataset digits" in head and "epochs 30" in head and "dataset" not in names
    assert [line.split()[0] for line in rows] == ["IA", "DNE"]
    assert "70.00" in rows[0] and "80.00" in rows[1]
    assert len({line.index(value) + len(value) for line, value in zip(rows, ("70.00", "80.00"), strict=True)}) == 1
    alone = to_text(summary(runs[:1]))
    assert "dataset" in alone.splitlines()[0]


def test_what_latex_reads_as_commands_is_escaped() -> None:
    text = to_latex(pd.DataFrame({"method": ["dne^2", "dne~x", "50% & more", "a_b#{$}\\\\"]}))
    rows = text.split("\\midrule\n")[1].splitlines()
    assert rows[:3] == [r"dne\textasciicircum{}2 \\", r"dne\textasciitilde{}x \\", r"50\% \& more \\"]
    assert rows[3] == r"a\_b\#\{\$\}\textbackslash{}\textbackslash{} \\"


def test_the_middle_between_two_numbers_goes_away_from_zero_whatever_the_last_bit_is() -> None:
    for digits, shown in ((2, "0.28"), (3, "0.275")):
        for nearly in (0.275, 0.275 + 1e-13, 0.275 - 1e-13):
            assert fixed(nearly, digits) == shown and fixed(-nearly, digits) == f"-{shown}"
    assert fixed(0.2749, 2) == "0.27" and fixed(-0.001, 2) == "0.00" and fixed(1.0, 2, "+") == "+1.00"
    assert fixed(float("nan"), 2) == "nan"
