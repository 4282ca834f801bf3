"""Runs side by side and a run that is watched, without a browser."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from invented import record

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.plots.figure import PLOTLY_MIME
from dne_lab.widgets import runs
from dne_lab.widgets.runs import RunsExplorer

SMALL: dict[str, Any] = {
    "learn__epochs": 2, "tune__epochs": 1, "learn__batch": 8, "network__depth": 2, "network__head_width": 4,
    "network__heads": (2, 1), "network__patch": 4, "memory__budget": 10,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for method, seed in (("dne", 0), ("dne", 1), ("ia", 0)):
        record(method=method, seed=seed).write(tmp_path / f"{method}-s{seed}" / "record.json")
    (tmp_path / "dne-s0" / "curves.csv").write_text(
        "task,stage,epoch,lr,ce,kl\n1,learn,1,0.1,2.5,\n2,learn,1,0.1,1.5,0.25\n"
    )
    return tmp_path


def drawn(made: RunsExplorer) -> list[dict[str, Any]]:
    """The lines on the page, in the order of drawing."""
    ((output),) = made.curves.outputs
    return [trace for trace in output["data"][PLOTLY_MIME]["data"] if trace.get("hovertext")]


def test_chosen_runs_are_drawn_and_saved(folder: Path) -> None:
    made = lab.explore_runs(folder)
    assert isinstance(made, RunsExplorer) and made.chosen.value == ("dne-s0", "dne-s1", "ia-s0")
    for name in ("dne-s0", "dne-s1", "ia-s0"):
        assert name in made.table.value
    *accuracy, losses = drawn(made)
    assert [line["name"] for line in accuracy] == ["DNE (k = 1), seed 0", "DNE (k = 1), seed 1", "IA (k = 1), seed 0"]
    assert losses["name"] == "DNE (k = 1), seed 0" and losses["y"] == [2.5, 1.75] and losses["x"] == [1.0, 2.0]
    assert accuracy[0]["legendgroup"] == losses["legendgroup"]  # a click on the legend hides both
    made.chosen.value = ("ia-s0",)
    assert [line["name"] for line in drawn(made)] == ["IA (k = 1), seed 0"] and "dne-s1" not in made.table.value
    name, _, text = made._csv()
    assert name == "runs.csv" and pd.read_csv(io.BytesIO(text))["run"].tolist() == ["ia-s0"]
    name, _, text = made._curves_csv()
    assert name == "curves.csv" and pd.read_csv(io.BytesIO(text))["task"].tolist() == [1, 2, 3, 4]
    assert made._png()[2].startswith(b"\x89PNG")
    made.beside.value = "cost"
    assert "last accuracy" in str(made.curves.outputs) and "training loss" not in str(made.curves.outputs)
    made.chosen.value = ()
    assert "Choose one or more runs" in made.message.value and made.view.layout.display == "none"
    with pytest.raises(LabError, match="no run is chosen"):
        made.figure()


def test_every_method_is_among_those_shown_first(folder: Path) -> None:
    for seed in range(2, 9):
        record(method="dne", seed=seed).write(folder / f"dne-s{seed}" / "record.json")
    record(method="sta", seed=0).write(folder / "sta-s0" / "record.json")
    made = lab.explore_runs(folder)
    assert made.chosen.value == ("dne-s0", "dne-s1", "dne-s2", "dne-s3", "ia-s0", "sta-s0")


def test_words_choose_runs(folder: Path) -> None:
    made = lab.explore_runs(folder)
    made.words.value = "dne seed 1"
    assert [value for _, value in made.chosen.options] == ["dne-s1"] and made.chosen.value == ("dne-s1",)
    assert "1 of 3 runs fit the filter" in made.count.value and len(drawn(made)) == 1
    made.words.value = "nothing-like-it <b>"
    assert made.chosen.options == () and "No run fits the filter" in made.message.value
    made.words.value = ""
    assert len(made.chosen.options) == 3 and made.message.value == "" and len(made.chosen.value) == 3


def test_configurations_are_means_and_two_are_compared(folder: Path) -> None:
    record(method="dne", seed=2, done=2).write(folder / "dne-s2" / "record.json")
    record(method="dne", seed=1, last=90.0).write(folder / "dne-s1" / "record.json")
    made = lab.explore_runs(folder)
    assert made.pair.layout.display == "none"
    made.by_configuration.value = True
    assert [label for label, _ in made.chosen.options] == ["IA (k = 1): one seed, no interval", "DNE (k = 1): 2 seeds"]
    assert "2 configurations; 1 not finished and in none" in made.count.value
    ia, dne = drawn(made)[:2]
    assert (ia["y"][-1], dne["y"][-1]) == (80.0, 85.0) and "95% interval 21.47 to 148.5" in dne["hovertext"][-1]
    assert "one seed, no interval" in ia["hovertext"][0] and "85.00 ± 63.53" in made.table.value
    assert made.pair.layout.display == "" and (made.pair.one.value, made.pair.other.value) == (
        "DNE (k = 1)",
        "IA (k = 1)",
    )
    assert "+0.00 points of last accuracy; one pair of seeds" in made.pair.said.value
    assert "1 of 2 seeds of DNE" in made.pair.said.value and "IA (k = 1)</th>" in made.pair.table.value
    made.pair.one.value, made.pair.other.value = "IA (k = 1)", "DNE (k = 1)"
    made.words.value = "dne"
    made.words.value = ""
    assert (made.pair.one.value, made.pair.other.value) == ("IA (k = 1)", "DNE (k = 1)")  # what was asked is kept
    made.pair.other.value = "IA (k = 1)"
    assert "same configuration twice" in made.pair.said.value and made.pair.table.value == ""
    made.chosen.value = ("DNE (k = 1)",)
    assert [run.name for run in made.shown()] == ["dne-s0", "dne-s1"]
    curves = pd.read_csv(io.BytesIO(made._curves_csv()[2]))
    assert set(curves["configuration"]) == {"DNE (k = 1)"} and len(curves) == 8
    assert pd.read_csv(io.BytesIO(made._csv()[2]))["seeds"].tolist() == [2]
    made.by_configuration.value = False
    assert len(made.chosen.options) == 4 and made.pair.layout.display == "none"


def test_what_cannot_be_averaged_is_said_and_can_be_filtered_out(folder: Path) -> None:
    record(method="dne", seed=0, last=70.0).write(folder / "again" / "record.json")
    made = lab.explore_runs(folder)
    made.by_configuration.value = True
    assert "two different records of DNE" in made.message.value and "leave one of them out" in made.message.value
    made.words.value = "-again"
    assert made.message.value == "" and len(made.chosen.options) == 2
    made.words.value = ""
    assert "two different records" in made.message.value and made.chosen.options == ()
    made.by_configuration.value = False
    assert made.message.value == "" and len(made.chosen.options) == 4


def test_one_run_in_its_matrices(tmp_path: Path) -> None:
    run = lab.train("dne", tiny.tiny_stream(), progress=False, folder=tmp_path / "run", **SMALL)
    made = lab.explore_runs(tmp_path)
    last = len(run.record.tasks)
    details = made.details
    assert details.after.value == last == details.after.max and details.message.value == ""
    assert details.matrix.value.count("<rect") == last * (last + 1) // 2
    shown = pd.read_csv(io.BytesIO(details._saved("csv")[2]))
    right = shown[shown["true class"] == shown["predicted class"]]["images"].sum() / shown["images"].sum()
    assert 100 * right == pytest.approx(run.record.LA)
    assert details._saved("png")[2].startswith(b"\x89PNG")
    before = details.confusion.value
    details.after.value = 1
    assert details.confusion.value != before and "after task 1" in details.confusion.value
    (tmp_path / "run" / "predictions.npz").unlink()
    details.after.value = 2
    assert "predictions.npz is missing" in details.message.value and details.confusion.value == ""
    assert details.matrix.value.count("<rect") > 0 and details.saving.layout.display == "none"


def test_damage_and_names_from_files_are_words(folder: Path) -> None:
    record(method="<img src=x onerror=alert(1)>").write(folder / "<b>bold" / "record.json")
    (folder / "ia-s0" / "record.json").write_text("{")
    (folder / "dne-s1" / "curves.csv").write_bytes(b"\xff\xfe")
    made = lab.explore_runs(folder)
    assert [value for _, value in made.chosen.options] == ["<b>bold", "dne-s0", "dne-s1"]
    assert "record.json is damaged" in made.message.value and "And 1 more like it" in made.message.value
    for page in (made.message.value, made.table.value, made.details.matrix.value, str(made.curves.outputs)):
        assert "<img" not in page and "<b>" not in page
    made.by_configuration.value = True
    made.pair.one.value, made.pair.other.value = made.pair.one.options[0][1], made.pair.one.options[1][1]
    assert "<img" not in made.pair.said.value and "&lt;img" in made.pair.said.value


@pytest.mark.parametrize("place", ["~no-such-user/x", "x" * 5000, "a\0b", "/proc/1/cwd/x", ""])
def test_a_folder_that_cannot_be_one_is_a_sentence(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    made = lab.explore_runs(folder)
    made.folder.value = str(folder / "dne-s0" / "record.json") if place == "" else place
    assert made.chosen.options == () and 'role="alert"' in made.message.value
    made.folder.value = str(folder)
    assert len(made.chosen.options) == 3 and made.message.value == ""


def test_a_folder_that_vanishes_is_a_sentence_and_comes_back(folder: Path) -> None:
    made = lab.explore_runs(folder)
    away = folder.with_name("away")
    folder.rename(away)
    assert made.look() and "there is no such folder" in made.message.value and made.chosen.options == ()
    assert not made.look()  # said once
    away.rename(folder)
    assert made.look() and len(made.chosen.options) == 3 and made.message.value == ""


def test_another_folder_and_none_at_all(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    made = lab.explore_runs(tmp_path_factory.mktemp("empty"))
    assert "no run in this folder" in made.message.value and made.view.layout.display == "none"
    made.folder.value = str(folder)
    assert made.message.value == "" and len(made.chosen.options) == 3 and made.view.layout.display == ""
    made.folder.value = str(folder / "nowhere")
    assert "there is no such folder" in made.message.value and made.chosen.options == ()


def test_a_run_that_goes_on_is_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "SECONDS", 0.01)
    made = lab.explore_runs(folder)
    made.chosen.value = ("ia-s0",)
    assert not made.look()
    whole = record(method="ia", seed=0).to_dict()
    whole["accuracy"][-1][0], before = 12.5, made.table.value

    async def work() -> None:
        made.follow.value = True
        task = made._task
        assert task is not None
        await asyncio.sleep(0.05)
        assert made.table.value == before
        whole["params"] = {"total": 12_340_000}
        (folder / "ia-s0" / "record.json").write_text(json.dumps(whole))
        for _ in range(200):
            await asyncio.sleep(0.01)
            if made.table.value != before:
                break
        made.follow.value = False
        await asyncio.wait_for(task, 5)

    asyncio.run(work())
    assert "12.34" in made.table.value and made.chosen.value == ("ia-s0",)
    made.follow.value = True  # without a kernel's loop there is nobody to look
    assert made.follow.value


def test_a_watched_run_is_shown_after_every_epoch_and_task() -> None:
    run = lab.start("dne", tiny.tiny_stream(), progress=False, **SMALL)
    live = run.watch()
    assert "dne, seed 0: task 1 of 3" in live.place.value and "<polyline" not in live.losses.value
    shown: list[str] = []
    live.place.observe(lambda change: shown.append(change["new"]), "value")
    run.next_task()
    assert any("last epoch: 1 of stage learn in task 1" in text for text in shown)
    assert live.accuracy.value.count("<circle") == 1
    run.train()
    assert "finished" in live.place.value and live.accuracy.value.count("<circle") == 3
    terms = {name for row in run.curves for name in row} - {"task", "stage", "epoch", "lr"}
    assert live.losses.value.count("<polyline") == len(terms) > 1
    points = sum(name in row for row in run.curves for name in terms)
    assert live.losses.value.count("<circle") == points


def test_a_run_has_one_view_however_often_it_is_watched() -> None:
    run = lab.start("dne", tiny.tiny_stream(), progress=False, **SMALL)
    live = run.watch()
    assert run.watch() is live and len(run.viewers) == 1
    live.close()
    other = run.watch()
    assert other is not live and run.viewers == [other.show]


def test_watching_changes_nothing_that_is_learned() -> None:
    watched, plain = (lab.start("dne", tiny.tiny_stream(), progress=False, **SMALL) for _ in range(2))
    watched.watch()
    watched.train()
    plain.train()
    assert watched.record.without_timing() == plain.record.without_timing() and watched.curves == plain.curves


def test_watching_without_widgets_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    run = lab.start("ia", tiny.tiny_stream(), progress=False, **SMALL)
    monkeypatch.setitem(sys.modules, "dne_lab.widgets.runs", None)
    with pytest.raises(LabError, match=r"watch\(\).*ipywidgets.*run\.curves"):
        run.watch()


def test_a_copy_of_a_record_is_not_a_second_run(folder: Path) -> None:
    before = lab.explore_runs(folder)
    name, run = next((view.name, view) for view in before.runs if view.folder is not None)
    (folder / "records").mkdir()
    copied = folder / "records" / "copy.json"
    copied.write_bytes((folder / name / "record.json").read_bytes())
    made = lab.explore_runs(folder)
    assert [view.name for view in made.runs] == [view.name for view in before.runs]
    tree = json.loads(copied.read_text())
    del tree["sha256"]
    copied.write_text(json.dumps(tree | {"seed": run.record.seed + 70}))
    assert made.look() and len(made.runs) == len(before.runs) + 1
