"""Runs in other programs: what tensorboard reads back, what the others are given, and what their failures spoil."""

import json
import pickle
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from followed import StandIn, reader, told_to_tensorboard
from shell import Here, sets

import dne_lab as lab
from dne_lab.analysis.labelling import GROUPS
from dne_lab.commands import track
from dne_lab.core.errors import LabError
from dne_lab.training.run import Run

SMALL: dict[str, Any] = {
    "learn__epochs": 2, "tune__epochs": 1, "learn__batch": 8, "network__depth": 2, "network__head_width": 4,
    "network__heads": (2, 1), "network__patch": 4, "memory__budget": 10, "network__spatial": "gpsa",
    "network__readout": "class_attention",
}  # fmt: skip


@pytest.fixture(scope="module")
def images() -> Any:
    """One stream for all runs here."""
    return tiny.tiny_stream()


def started(images: Any, folder: Path | None, method: str = "dne") -> Run:
    return lab.start(method, images, folder=folder, progress=False, device="cpu", **SMALL)


def test_tensorboard_reads_back_what_a_run_that_was_gone_on_with_knows(images: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    plain, first = started(images, None), started(images, tmp_path / "run")
    plain.train()
    follower = lab.track(first, "tensorboard")
    first.next_task()
    follower.close()
    run = lab.open(tmp_path / "run", images, progress=False)
    lab.track(run)
    run.train()
    assert run.record.without_timing() == plain.record.without_timing() and run.curves == plain.curves

    told, rows = told_to_tensorboard(tmp_path / "run" / "track"), run.curves
    steps = list(range(1, len(rows) + 1))
    assert told["learning rate"] == [(step, pytest.approx(row["lr"])) for step, row in zip(steps, rows, strict=True)]
    assert told["loss/classification"] == [
        (step, pytest.approx(row["classification"], rel=1e-6)) for step, row in zip(steps, rows, strict=True)
    ]
    ends = [sum(row["task"] <= task for row in rows) for task in (1, 2, 3)]
    assert told["accuracy/seen"] == list(zip(ends, map(pytest.approx, run.record.seen_accuracy), strict=True))
    assert told["accuracy/task 2"] == list(
        zip(ends[1:], [pytest.approx(r[1]) for r in run.record.accuracy[1:]], strict=True)
    )
    shares = [told[f"attention/{label} %"] for label in GROUPS[:2]]  # one head each: no other head
    assert [[step for step, _ in share] for share in shares] == [ends[1:]] * 2
    now = lab.attention_groups(run.model, images.test_images(track.IMAGES), replicates=0, progress=False)
    assert shares[0][-1][1] == pytest.approx(now.share(GROUPS[0]).value)
    (gate,) = [value for step, value in told["gate/expert 3, layer 0"] if step == steps[-1]]
    newest = run.model.experts[2].blocks[0].attention.gate
    assert gate == pytest.approx(float(torch.sigmoid(newest.detach()).mean()))

    events = reader(tmp_path / "run" / "track")
    pictures = events.Images("accuracy on each task")
    assert [picture.step for picture in pictures] == ends and min(pictures[-1].width, pictures[-1].height) > 100
    assert events.Tags()["tensors"] == ["configuration/text_summary"]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_others_are_given_the_same_and_nothing_twice(
    name: str, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("WANDB_MODE", "WANDB_PROJECT", "TRACKIO_PROJECT"):
        monkeypatch.delenv(variable, raising=False)
    other, run = StandIn(name, monkeypatch), started(images, tmp_path / "run")
    follower = lab.track(run, name)
    run.next_task()
    follower.close()
    lab.track(run, name)
    run.train()
    assert other.ended == 2
    first, second = other.began
    assert first["project"] == "dne-lab" and first["config"]["method"] == "dne" and first["resume"] == "allow"
    assert first["name"] == second["name"] and first["name"].startswith("run-")
    assert first.get("mode", "offline") == "offline"  # nothing leaves this machine unasked
    losses = [(step, values["loss/total"]) for step, values in other.logged if "loss/total" in values]
    assert [step for step, _ in losses] == list(range(1, len(run.curves) + 1))
    names = ("classification", "distillation", "expertise")
    assert losses[-1][1] == pytest.approx(sum(run.curves[-1].get(n) or 0 for n in names))
    assert [v["accuracy/seen"] for _, v in other.logged if "accuracy/seen" in v] == run.record.seen_accuracy
    assert len([v for _, v in other.logged if "accuracy on each task" in v]) == len(images.tasks)


def test_a_program_that_fails_does_not_stop_the_run(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, run = StandIn("trackio", monkeypatch), started(images, tmp_path / "run", "ia")

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(other, "log", full)
    lab.track(run, "trackio")
    with pytest.warns(UserWarning, match="trackio has failed, and follows this run no more: no space left"):
        run.train()
    assert run.finished


@pytest.mark.parametrize("known", ['{"rows": -5, "tasks": -5}', '{"rows": "a"}', '{"tasks": [1]}'])
def test_what_was_told_is_read_with_care(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str
) -> None:
    StandIn("trackio", monkeypatch)
    run = started(images, tmp_path / "run", "ia")
    (tmp_path / "run" / "track").mkdir(parents=True)
    (tmp_path / "run" / "track" / "trackio.json").write_text(known)
    with pytest.warns(UserWarning, match=r"trackio has failed.*trackio\.json is damaged: rows and tasks are"):
        lab.track(run, "trackio")


def test_nothing_is_written_where_a_link_in_a_run_folder_leads(
    images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    StandIn("trackio", monkeypatch)
    run = started(images, tmp_path / "run", "ia")
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / "track").symlink_to(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="track is a link: nothing is written where it leads"):
        lab.track(run, "trackio")
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_method_without_experts_has_no_attention_to_tell(images: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run = lab.start("finetune", images, folder=tmp_path / "run", progress=False, device="cpu", **SMALL)
    lab.track(run, folder=tmp_path / "elsewhere")
    run.next_task()
    told = told_to_tensorboard(tmp_path / "elsewhere")
    assert "accuracy/seen" in told and not [name for name in told if name.startswith("attention")]
    assert not (tmp_path / "run" / "track").exists()
    assert json.loads((tmp_path / "elsewhere" / "tensorboard.json").read_text())["tasks"] == 1


def test_what_cannot_be_followed_is_said_before_training(
    here: Here, images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LabError, match="kept in memory only: say where files go"):
        lab.track(started(images, None))
    monkeypatch.setattr(track, "find_spec", lambda name: ModuleSpec(name, None))  # a folder, as wandb leaves one
    for words, said in (
        ("tensorbord", "unknown tracker 'tensorbord'. Did you mean tensorboard?"),
        ("trackio", "trackio is not installed here: pip install trackio"),
        (",", "--track ',' names nothing"),
    ):
        done = here("run", "dne", *sets(), "--track", words)
        assert done.code == 2 and said in done.err and not (tmp_path / "runs").exists(), done.err


def test_each_run_of_a_grid_gets_a_viewer_of_its_own(here: Here) -> None:
    pytest.importorskip("tensorboard")
    one, other = (pickle.loads(pickle.dumps(make))() for make in [*track.makers("tensorboard")] * 2)
    assert one is not other and one.name == "tensorboard" and not track.makers(None)
    shown = here("run", "ia", *sets(), "--track", "tensorboard", "--dry-run")
    assert shown.code == 0 and shown.out.rstrip().endswith("--track tensorboard")
