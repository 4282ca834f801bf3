"""The figures of a report: what each input fills, the same bytes twice, and several data sets under one name."""

import dataclasses
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from invented import record
from safetensors.torch import save_file
from shell import TINY, Here

import dne_lab
from dne_lab.commands import report
from dne_lab.core.errors import LabError
from dne_lab.plots.series import NO_RECORD
from dne_lab.training import run_folder

sys.path.insert(0, str(Path(__file__).parents[1] / "plots"))
from test_contributions_read_outs import invented as invented_probe

FIGURES = Path(__file__).parents[2] / "figures"
RECORDS = FIGURES / "records"


def test_records_fill_what_they_can() -> None:
    assert list(report.drawings([record("joint")])) == ["accuracy_by_task", "accuracy_against_cost"]
    both = [record("ia"), record("sta", last=81.0)]
    assert list(report.drawings(both))[2:] == ["accuracy_matrix", "forgetting", "figure_4_right", "figure_6a"]
    tuned = [*both, record("dne", validation=0.2)]
    assert "dne" not in report.drawings(tuned)["figure_6a"].table["method"].iloc[:2].tolist()
    assert list(report.drawings(tuned[2:])) == ["accuracy_by_task", "accuracy_against_cost"]
    streams = [record("ia"), record("ia", tasks=(5, 5), heads=[4, 1])]
    assert list(report.drawings(streams))[2:-1] == [
        f"{kind}_{tasks}" for tasks in ("4+2x3", "5+5") for kind in ("accuracy_matrix", "forgetting")
    ]
    many = {"tasks": (50, *[2] * 25), "heads": [12, *[1] * 25], "class_order": list(range(100)), "dataset": "cifar100"}
    found = report.drawings([record("der", **{**many, "heads": []}), record("dne", **many)])
    assert list(found)[2:] == [
        *("accuracy_matrix", "forgetting", "figure_1_right", "figure_6a", "figure_6c", "figure_6f"),
    ]


def test_what_is_no_model_is_passed_over_in_a_folder_of_models(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.warns(UserWarning, match="pipe.safetensors is no regular file"):
        assert report.models_among([tmp_path]) == [tmp_path]
    (tmp_path / "pipe.safetensors").unlink()
    run_folder.save(tmp_path / "task_01.safetensors", {"weight": torch.zeros(2)}, {"task": 1})
    with pytest.warns(UserWarning, match="task_01.safetensors is a part of a run, not a model"):
        assert report.models_among([tmp_path]) == [tmp_path]
    (tmp_path / "task_01.safetensors").unlink()
    save_file({"weight": torch.zeros(2)}, tmp_path / "another.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no model")
    with pytest.warns(UserWarning, match="another.safetensors was not written by this program"):
        found = report.models_among([tmp_path])
    assert [file.name for file in found] == ["damaged.safetensors"]  # whoever reads it says so
    (tmp_path / "damaged.safetensors").unlink()
    with pytest.warns(UserWarning, match="passed over"):
        assert report.models_among([tmp_path]) == [tmp_path]


def test_one_series_is_drawn_and_the_others_are_rows_without_a_record() -> None:
    alone = {"figure_1_right": 6, "figure_6a": 7, "figure_6c": 8}
    found = report.drawings([record("dne")])
    assert [name for name in found if name.startswith("figure")] == [*alone]
    for name, missing in alone.items():
        table = found[name].table
        assert table.loc[table["source"] == "ours", "series"].tolist() == ["DNE (k = 1)"]
        assert (table["record"] == NO_RECORD).sum() == missing == len(table) - 1


def test_counts_and_benchmarks_are_no_runs(tmp_path: Path) -> None:
    names = ("cost_growth", "figure_6e", "step_time", "step_time_nvidia_h200")
    places = [RECORDS / "cost", RECORDS / "timing"]
    assert report.find(places) == []
    one, two = (report.figures([], tmp_path / name, paths=places) for name in ("one", "two"))
    assert sorted(path.name for path in one) == sorted(
        f"{name}.{suffix}" for name in names for suffix in ("csv", "png")
    )
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    record().write(tmp_path / "run" / "record.json")
    assert len(report.find([*places, tmp_path / "run"])) == 1
    (tmp_path / "run" / "bench.json").write_text((RECORDS / "timing" / "bench.json").read_text())
    assert len(report.find([tmp_path / "run"])) == 1  # beside a run
    with pytest.raises(LabError, match="no record in this folder"):
        report.find([tmp_path / "one"])


def test_several_data_sets_do_not_overwrite_each_other(tmp_path: Path) -> None:
    runs = [record("ia"), record("ia", dataset="digits100")]
    written = report.figures(runs, tmp_path, "mine")
    assert len(set(written)) == len(written)
    names = {path.name for path in written}
    assert {"mine.csv", "mine_digits_accuracy_by_task.csv", "mine_digits100_accuracy_by_task.csv"} <= names


def test_files_of_others_stay(tmp_path: Path) -> None:
    mine = [("summary.csv", "pupil,mark\n"), ("digits_forgetting.png", "a photograph"), ("digits_forgetting.csv", "")]
    mine += [("summary.csv", "method,pupil,mark\n"), ("summary.csv", '"method","my accuracy, %"\n')]
    for name, content in mine:
        (tmp_path / name).write_text(content)
        with pytest.raises(LabError, match=rf"{name.partition('.')[0]}\.(csv|png) exists and is none"):
            report.figures([record("ia")], tmp_path)
        assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(name, content)]
        (tmp_path / name).unlink()
    written = report.figures([record("ia")], tmp_path)
    assert report.figures([record("ia", last=50.0)], tmp_path) == written  # our own of before are replaced
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "curves.csv").write_text("method\n")
    with pytest.raises(LabError, match="a file of the run"):
        report.figures([record("ia")], tmp_path, "curves")


def test_a_broken_count_is_told(tmp_path: Path) -> None:
    rows = json.loads((RECORDS / "cost" / "dne-k1-50+10x5.json").read_text())
    (tmp_path / "dne-k1-50+10x4.json").write_text(json.dumps(rows))
    with pytest.raises(LabError, match="does not hold the cost of 5 tasks"):
        report.measurements([tmp_path])


def test_all_figures_of_the_committed_records_and_models_twice_with_the_same_bytes() -> None:
    places = [RECORDS, FIGURES / "checkpoints"]
    made = [report.gathered(report.find(places), None, places) for _ in range(2)]
    one, two = ({stem: figure.csv() for stem, figure in found.items()} for found in made)
    assert one == two
    ours = {"accuracy_by_task", "accuracy_against_cost", "figure_4_right", "figure_1_right", "figure_6a", "figure_6c"}
    for dataset in ("digits", "digits100", "cifar100"):
        assert {f"{dataset}_{kind}" for kind in ours} <= one.keys()
        for kind in ("accuracy_matrix", "forgetting"):
            assert any(stem.startswith(f"{dataset}_{kind}") for stem in one)
    assert {
        "figure_3",
        "figure_6e",
        "digits100_figure_6f",
        "cost_growth",
        "step_time",
        "attention_groups",
    } <= one.keys()
    assert {f"figure_{n}_{variant}" for n in (2, 5) for variant in ("ia", "sta", "dne")} <= one.keys()
    assert {"fragmentation", "expert_flow_dne_digits100", "ablation_digits100_dne"} <= one.keys()


def test_a_model_of_digits_is_drawn_with_a_digit_and_twice_the_same(tmp_path: Path) -> None:
    model = FIGURES / "checkpoints" / "dne-digits-s0.safetensors"
    one, two = (report.architectures([model])["figure_3"] for _ in range(2))
    assert one.image() == two.image() and one.csv() == two.csv()
    assert "patch 27 (row 3, column 3) of expert 4" in one.title


def test_gates_stand_under_every_protocol(tmp_path: Path) -> None:
    found = [record("joint", last=70.0), record("dne", last=60.0), record("replay", last=58.0)]
    found.append(record("dne", tasks=(5, 5), preset="digits-b50-5", heads=[4, 1]))
    early = {"new": [80.0], "old": [40.0], "old_called_new": [30.0]}
    found[1] = dataclasses.replace(found[1], before_tuning=early)
    probe = invented_probe(run=found[1].id)
    probe.write(tmp_path / "records" / "probe" / "one.json")
    told = report.protocols_text(found, [tmp_path])
    first, second = told.split("Gates of ")[1:]
    assert first.startswith("digits, 4 + 2 x 3") and second.startswith("digits-b50-5, 5 + 5")
    rows = {line[:2]: line for line in first.splitlines() if line.startswith("G")}
    assert "70.00" in rows["G1"] and "12.00" in rows["G2"] and "5.00" in rows["G3"] and "met, not clear" in rows["G3"]
    assert "no record" in rows["G4"] and "no record" in second.split("G3")[1].splitlines()[0]
    assert "Before stage 2 of digits, 4 + 2 x 3" in first and "80.00" in first.split("Before stage 2")[1]
    assert report.protocols_text([record("dne")], []) == ""  # nothing has been measured


def test_runs_that_learned_little_are_named() -> None:
    guess = 100 / sum(record("ia").tasks)
    found = report.text([record("ia", last=2 * guess), record("dne", last=2 * guess + 1)])
    assert "Near chance" in found and ": IA (k = 1). So" in found
    assert "Near chance" not in report.text([record("dne", last=2 * guess + 1)])


def test_what_is_written_in_place_of_older_files_is_counted() -> None:
    files = [Path("out/a.csv"), Path("out/a.png")]
    assert report.below(files, Path("out")) == "wrote 2 files below out"
    assert ", 1 of them in place of older ones" in report.below(files, Path("out"), {files[1], Path("out/b.csv")})


def test_images_that_were_given_in_python_are_measured_there(tmp_path: Path, here: Here) -> None:
    shapes = np.random.default_rng(0).integers(0, 255, (6, 8, 8), dtype=np.uint8)
    arrays = (shapes, np.arange(6) % 3, shapes[:3], np.arange(3))
    folder = tmp_path / "mine"
    tiny = {name.replace(".", "__"): value for name, value in TINY.items() if name != "data.tasks"}
    dne_lab.train("ia", dne_lab.stream(arrays, tasks=(2, 1)), folder=folder, progress=False, **tiny)
    for more in ((), ("--data", "digits.npz")):
        told = here("report", folder, "--probe", *more)
        assert told.code == 2 and "given in Python (arrays)" in told.err and "dne_lab.open(" in told.err


def test_a_record_alone_is_not_measured(tmp_path: Path) -> None:
    record().write(tmp_path / "record.json")
    for given in (tmp_path, tmp_path / "record.json"):
        with pytest.raises(LabError, match="weights, not its record alone"):
            report.measured([given], 8, None, False, None)
