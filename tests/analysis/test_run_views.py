"""Runs as their files show them: nested and flat, finished and going on, with and without measured attention."""

import json
import math
from pathlib import Path

import pytest
from invented import record

from dne_lab.analysis import run_views
from dne_lab.core.errors import LabError

ROOT = Path(__file__).parent.parent.parent


def test_runs_are_found_with_their_curves(tmp_path: Path) -> None:
    record(method="dne", seed=1).write(tmp_path / "a" / "record.json")
    (tmp_path / "a" / "curves.csv").write_text(
        "task,stage,epoch,lr,ce,kl\n1,learn,1,0.001,2.5,\n2,learn,1,1e-05,1.5,0.25\n"
    )
    (tmp_path / "a" / "config.json").write_text('{"seed": 1}')
    record(method="ia", seed=2).write(tmp_path / "flat" / "ia-s2.json")
    first, second = run_views.find(tmp_path)
    assert (first.name, second.name) == ("a", "flat/ia-s2") and second.curves == () and first.attention is None
    assert first.curves[0] == {"task": 1, "stage": "learn", "epoch": 1, "lr": 0.001, "ce": 2.5}
    assert first.curves[1]["lr"] == 1e-5 and first.curves[1]["kl"] == 0.25
    frame = run_views.losses(first.curves)
    assert frame["epoch of the run"].tolist() == [1, 2] and math.isnan(frame["kl"][0])
    assert run_views.losses(second.curves).empty
    table = run_views.table([first, second])
    assert table["run"].tolist() == ["a", "flat/ia-s2"] and table["LA %"][0] == first.record.LA
    assert math.isnan(table["same patch %"][0]) and table["MFLOPs spent"][0] == first.record.flops_spent / 1e6
    assert run_views.find(tmp_path / "a")[0].name == "a"


def test_a_run_that_goes_on_says_how_far_it_is(tmp_path: Path) -> None:
    whole = record(method="dne")
    tree = whole.to_dict() | {"finished": False}
    done = len(whole.accuracy) - 1
    tree |= {"accuracy": whole.accuracy[:done], "seen_accuracy": whole.seen_accuracy[:done]}
    tree |= {"LA": whole.seen_accuracy[done - 1], "AA": 1.0}
    (tmp_path / "record.json").write_text(json.dumps(tree))
    (found,) = run_views.find(tmp_path)
    assert found.label.endswith(f", {done} of {len(whole.tasks)} tasks")
    classes, seen = run_views.accuracies(found)
    assert classes == [sum(whole.tasks[: n + 1]) for n in range(done)] and seen == whole.seen_accuracy[:done]


def test_a_change_of_a_file_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "a" / "record.json"
    record().write(file)
    before = run_views.changed(tmp_path)
    assert run_views.changed(tmp_path) == before
    (tmp_path / "a" / "curves.csv").write_text("task\n")
    after = run_views.changed(tmp_path)
    assert after != before
    record(seed=5).write(file)
    assert run_views.changed(tmp_path) != after


def test_nothing_to_find_is_told(tmp_path: Path) -> None:
    with pytest.raises(LabError, match="there is no such folder"):
        run_views.find(tmp_path / "no")
    with pytest.raises(LabError, match=r"no run in this folder. Train one first"):
        run_views.find(tmp_path)
    (tmp_path / "record.json").write_text("{")
    with pytest.raises(LabError, match=r"record.json is damaged"):
        run_views.find(tmp_path)


def test_measured_attention_is_matched_to_its_run() -> None:
    """On what is committed: the records of a run, and what was measured of it in another folder."""
    attention = ROOT / "figures" / "records" / "attention"
    measured = (
        {json.loads(file.read_text())["run"] for file in attention.rglob("*.json")} if attention.is_dir() else set()
    )
    if not measured:
        pytest.skip("no attention record is committed")
    found = run_views.find(ROOT / "figures" / "records", attention)
    matched = [run for run in found if run.attention is not None]
    assert {run.record.id for run in matched} == measured & {run.record.id for run in found}
    table = run_views.table(matched)
    assert table["same patch %"].dropna().between(0, 100).all()


def test_curves_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """As an editor of spreadsheets saves them, of a run of before there were digests."""
    record().write(tmp_path / "record.json")
    (tmp_path / "curves.csv").write_bytes(b"\xef\xbb\xbftask,stage,epoch,lr,ce\r\n1,learn,1,0.001,2.5\r\n")
    (view,) = run_views.find(tmp_path)
    assert view.curves == ({"task": 1, "stage": "learn", "epoch": 1, "lr": 0.001, "ce": 2.5},)
