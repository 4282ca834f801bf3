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


def test_chosen_runs_are_drawn_and_saved(folder: Path) -> None:
    made = lab.explore_runs(folder)
    assert isinstance(made, RunsExplorer) and made.chosen.value == ("dne-s0", "dne-s1", "ia-s0")
    for name in ("dne-s0", "dne-s1", "ia-s0"):
        assert name in made.table.value
    assert made.curves.value.count("<polyline") == 3 and made.losses.value.count("<polyline") == 1
    assert "dne-s0, epoch of the run: 2, training loss, all terms together: 1.75" in made.losses.value
    made.chosen.value = ("ia-s0",)
    assert made.curves.value.count("<polyline") == 1 and made.losses.value == "" and "dne-s1" not in made.table.value
    name, _, text = made._csv()
    assert name == "runs.csv" and pd.read_csv(io.BytesIO(text))["run"].tolist() == ["ia-s0"]
    assert made._png()[2].startswith(b"\x89PNG")
    made.chosen.value = ()
    assert "Choose one or more runs" in made.message.value and made.view.layout.display == "none"
    with pytest.raises(LabError, match="no run is chosen"):
        made.figure()


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
