"""A run belongs to its data and to its folder: what is other is named, and nothing is written over."""

import json
import random
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs as tiny
import torch
from PIL import Image

from dne_lab.analysis import run_views
from dne_lab.commands import api as lab
from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream, stream
from dne_lab.training import archive, grid, storage
from dne_lab.training.run import Run
from dne_lab.training.run_folder import LAST, RunFolder, load, save

SMALL: dict[str, Any] = {
    "network__heads": (1, 1), "network__depth": 2, "network__head_width": 4, "learn__epochs": 1, "tune__epochs": 1,
    "memory__budget": 6, "progress": False, "device": "cpu",
}  # fmt: skip


def picture(seed: int, side: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return fill(tmp_path / "T")


def fill(root: Path, seed: int = 0, classes: tuple[str, ...] = ("ant", "bee", "cow")) -> Path:
    for split, count in (("train", 5), ("test", 2)):
        for place, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(count):
                picture(seed + 100 * place + 10 * number + len(split)).save(root / split / name / f"{number}.jpg")
    return root


def of(tree: Path) -> ClassStream:
    return stream(tree, tasks=[2, 1], size=8)


def start(tree: Path, folder: Path, **changes: Any) -> Run:
    return lab.start("dne", of(tree), folder=folder, **SMALL | changes)


# The data -----------------------------------------------------------------------------------------------------------


def test_other_images_in_the_same_place_are_refused_and_named(tree: Path, tmp_path: Path) -> None:
    run = start(tree, tmp_path / "run")
    run.next_task()
    archive.export(tmp_path / "run", tmp_path / "run.zip")
    before = tiny.content(tmp_path / "run")
    picture(999).save(tree / "train" / "bee" / "2.jpg")
    for open_again in (lambda: start(tree, tmp_path / "run"), lambda: lab.open(tmp_path / "run"),
                       lambda: lab.open(tmp_path / "run.zip")):  # fmt: skip
        with pytest.raises(LabError, match=r"bee/2\.jpg has other content"):
            open_again()
    assert tiny.content(tmp_path / "run") == before
    shutil.rmtree(tree)
    fill(tree, classes=("ant", "bee", "crow"))
    with pytest.raises(LabError, match="class 'cow' is called 'crow' here"):
        lab.open(tmp_path / "run")
    shutil.rmtree(tree)
    fill(tree, seed=7)
    with pytest.raises(LabError, match="other content"):
        lab.open(tmp_path / "run")
    shutil.rmtree(tree)
    lab.open(tmp_path / "run", of(fill(tmp_path / "moved")))  # the same images elsewhere


def test_a_finished_run_of_other_images_is_not_shown(tree: Path, tmp_path: Path) -> None:
    plan = [(start(tree, tmp_path / "x").config, tmp_path / "run")]
    (record,) = grid.execute(plan, progress=False, device="cpu")
    assert grid.execute(plan, progress=False, device="cpu") == [record]
    (tmp_path / "model").mkdir()
    model = archive.export_model(tmp_path / "run", tmp_path / "model" / "dne.safetensors")
    tree.rename(tmp_path / "elsewhere")
    with pytest.warns(UserWarning, match="cannot be compared"):
        assert grid.execute(plan, progress=False, device="cpu") == [record]
    fill(tree, seed=5)
    with pytest.raises(LabError, match="other data"):
        grid.execute(plan, progress=False, device="cpu")
    with pytest.raises(LabError, match="other classes or images"):
        storage.stream_of_model(replace(archive.read_model(model), config=plan[0][0]))
    assert lab.open(model, of(tree)).finished  # to look at others


def test_other_arrays_are_named(tmp_path: Path) -> None:
    rng, labels = np.random.default_rng(0), np.arange(12) % 3
    arrays = {"train_images": rng.integers(0, 256, (12, 8, 8), dtype=np.uint8), "train_labels": labels}
    arrays |= {"test_images": arrays["train_images"][:6], "test_labels": labels[:6]}
    np.savez(tmp_path / "d.npz", **arrays)
    lab.start("dne", stream(tmp_path / "d.npz", tasks=[2, 1]), folder=tmp_path / "run", **SMALL).next_task()
    arrays["train_images"][4] += 1
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(LabError, match=r"1 of 12 training images are others, the first is number 4 \(class 1\)"):
        lab.open(tmp_path / "run")


def test_an_export_names_images_that_have_changed(tree: Path, tmp_path: Path) -> None:
    start(tree, tmp_path / "run").train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        archive.export(tmp_path / "run", tmp_path / "before.zip")
    image = next((tree / "train" / "cow").iterdir())
    shutil.copy(next((tree / "train" / "ant").iterdir()), image)
    for export, name in ((archive.export, "after.zip"), (archive.export_model, "after.safetensors")):
        with pytest.warns(UserWarning, match=rf"other data .* training images cow/{image.name} has other content"):
            export(tmp_path / "run", tmp_path / name)
    assert (tmp_path / "after.zip").read_bytes() == (tmp_path / "before.zip").read_bytes()
    shutil.rmtree(tree)  # nothing to compare with
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        archive.export(tmp_path / "run", tmp_path / "gone.zip")


def test_a_truncated_image_is_found_before_training_and_its_loss_can_be_accepted(tree: Path, tmp_path: Path) -> None:
    bad = tree / "train" / "cow" / "3.jpg"
    whole = bad.read_bytes()
    bad.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(LabError, match=r"cow/3\.jpg cannot be decoded"):
        start(tree, tmp_path / "run").train()
    assert not list((tmp_path / "run").glob("task*"))
    bad.write_bytes(whole)
    start(tree, tmp_path / "run").next_task()
    bad.unlink()
    gone = min(load(tmp_path / "run" / "task_01.safetensors")[1]["memory"]["exemplars"]["1"])
    image = of(tree).source.names("train")[gone]
    (tree / "train" / image).unlink()  # an exemplar, too
    with pytest.raises(LabError, match="accept_changed_data"):
        start(tree, tmp_path / "run")
    run = start(tree, tmp_path / "run", accept_changed_data=True)
    assert run.cursor.task == 2
    run.train()
    (change,) = run.record.data_changes
    assert "cow/3.jpg" in str(change["told"]) and change["exemplars_gone"] == 1
    again = lab.open(tmp_path / "run")  # without the word: it is the run's data now
    assert again.finished and again.record == run.record and again.method_at(1) is not None
    (tmp_path / "run" / "last.safetensors").unlink()
    assert lab.open(tmp_path / "run").method_at(1) is not None  # a file of before the change, known by the record
    picture(555).save(tree / "train" / "ant" / "0.jpg")
    with pytest.raises(LabError, match=r"ant/0\.jpg has other content"):
        lab.open(tmp_path / "run")


def test_a_finished_run_is_shown_with_changed_images_when_that_is_wanted(tree: Path, tmp_path: Path) -> None:
    run = start(tree, tmp_path / "run")
    run.train()
    picture(555).save(tree / "train" / "ant" / "0.jpg")
    with pytest.raises(LabError, match=r"ant/0\.jpg has other content") as told:
        lab.open(tmp_path / "run")
    assert "--accept-changed-data" not in str(told.value)  # the command has nothing to go on with
    before = sorted((file.name, file.read_bytes()) for file in (tmp_path / "run").iterdir())
    opened = lab.open(tmp_path / "run", progress=False, accept_changed_data=True)
    assert opened.finished and opened.record == run.record
    assert sorted((file.name, file.read_bytes()) for file in (tmp_path / "run").iterdir()) == before


def test_images_that_have_moved_can_be_named(tree: Path, tmp_path: Path) -> None:
    run = start(tree, tmp_path / "run")
    run.train()
    moved = tree.rename(tmp_path / "other")
    with pytest.raises(
        LabError, match=r"(?s)no such folder.*--data DIR.*dne_lab\.stream\(DIR, tasks=\(2, 1\), size=8\)"
    ):
        lab.open(tmp_path / "run")
    assert lab.open(tmp_path / "run", of(moved), progress=False).record == run.record


def test_a_run_that_goes_on_with_moved_images_knows_where_they_are(tree: Path, tmp_path: Path) -> None:
    start(tree, tmp_path / "run").next_task()
    moved = tree.rename(tmp_path / "other")
    start(moved, tmp_path / "run").train()
    assert lab.open(tmp_path / "run", progress=False).stream.source.path == str(moved)


def test_a_run_is_not_trained_anew_where_its_folder_was(tree: Path, tmp_path: Path) -> None:
    run = start(tree, tmp_path / "run")
    run.next_task()
    opened = lab.open(tmp_path / "run", progress=False)
    (tmp_path / "run").rename(tmp_path / "moved")
    for handle in (run, opened):
        with pytest.raises(LabError, match="not there any more"):
            handle.train()
        assert not (tmp_path / "run").exists()
    later = lab.open(tmp_path / "moved", progress=False)
    assert later.cursor.task == 2
    later.train()
    assert later.finished


def test_runs_of_before_there_were_digests_still_open(tree: Path, tmp_path: Path) -> None:
    run = start(tree, tmp_path / "run")
    run.train()
    folder = tmp_path / "run"
    (folder / "data.safetensors").unlink()
    record = json.loads((folder / "record.json").read_text())
    for name in ("data_sha256", "images_sha256", "task_sha256", "curves_sha256", "predictions_sha256", "sha256"):
        del record[name]
    (folder / "record.json").write_text(json.dumps(record))
    for file in folder.glob("*.safetensors"):
        tensors, info = load(file)
        for name in ("train_images", "test_images", "class_names"):
            del info["stream"][name]
        for name in ("data_changes", "task_sha256", "threads", "processes"):
            info.get("state", {}).pop(name, None)
        rewritten_without_digest(file, tensors, info)
    old = lab.open(folder)
    assert old.finished and "data_sha256" not in old.record.to_dict() and old.method_at(1) is not None
    (folder / "last.safetensors").unlink()
    assert lab.open(folder).finished


def rewritten_without_digest(file: Path, tensors: dict[str, torch.Tensor], info: dict[str, Any]) -> None:
    import safetensors.torch

    del info["sha256"]
    file.write_bytes(safetensors.torch.save(tensors, metadata={"dne-lab": json.dumps(info)}))


# Places -------------------------------------------------------------------------------------------------------------


def test_a_change_of_the_working_directory_between_tasks_changes_nothing(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path)
    run = lab.start("dne", stream("T", tasks=[2, 1], size=8), folder="runs/x", **SMALL)
    run.next_task()
    monkeypatch.chdir(tmp_path / "notebooks")
    run.next_task()
    assert list((tmp_path / "notebooks").iterdir()) == [] and run.finished
    assert len(list((tmp_path / "runs" / "x").glob("task*"))) == 2
    assert lab.open(tmp_path / "runs" / "x").finished  # from here "T" is nowhere
    assert json.loads((tmp_path / "runs" / "x" / "config.json").read_text())["data"]["path"] == "../../T"
    archive.export("../runs/x", "x.zip")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert lab.open("../notebooks/x.zip").finished
    for name in ("T", "runs"):  # data and runs move together
        shutil.move(tmp_path / name, tmp_path / "elsewhere" / name)
    assert lab.open("runs/x").finished


def test_the_home_folder_is_that_of_a_shell(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tree)
    run = lab.start("dne", stream("~/T", tasks=[2, 1], size=8), folder="~/runs/x", **SMALL)
    run.next_task()
    assert (tmp_path / "runs" / "x" / "task_01.safetensors").exists() and not Path("~").exists()
    assert lab.open("~/runs/x").cursor.task == 2
    assert [file.parent for file in run.plot().save("~/figures")] == [tmp_path / "figures"] * 2


# The folder ---------------------------------------------------------------------------------------------------------


def tiny_run(folder: Path) -> Run:
    torch.set_num_threads(1)
    return Run(tiny.settings(), tiny.stream(), folder, device="cpu", progress=False)


def test_a_handle_that_is_behind_its_folder_loads_it_and_never_writes_it_back(tmp_path: Path) -> None:
    old = tiny_run(tmp_path / "run")
    old.next_task()
    tiny_run(tmp_path / "run").train()
    before = tiny.content(tmp_path / "run")
    with pytest.raises(LabError, match="gone on elsewhere"):
        old.save()
    assert tiny.content(tmp_path / "run") == before and old.cursor.task == 2
    with pytest.warns(UserWarning, match="gone on elsewhere"):
        old.next_task()
    assert old.finished and tiny.content(tmp_path / "run") == before


@pytest.mark.parametrize("how", ["renamed", "removed", "another in its place"])
def test_a_folder_that_goes_away_stops_the_run(tmp_path: Path, how: str) -> None:
    run = tiny_run(tmp_path / "run")
    run.next_task()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")

    def away(_: Run) -> None:
        if (tmp_path / "run").exists() and not (tmp_path / "moved").exists():
            if how == "removed":
                shutil.rmtree(tmp_path / "run")
            else:
                (tmp_path / "run").rename(tmp_path / "moved")
            if how == "another in its place":
                (tmp_path / "run").mkdir()

    run.viewers.append(away)
    with pytest.raises(LabError, match="renamed, moved or removed"):
        run.next_task()
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())
    if how != "removed":
        assert tiny_run(tmp_path / "moved").cursor.task == 2  # goes on
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    (tmp_path / ("copy" if how == "removed" else "moved")).rename(tmp_path / "run")


# Damage -------------------------------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_checkpoint_is_seen_or_changes_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tensors = {"a": torch.randn(5, 7), "b": torch.arange(4), "c": torch.randn(3).to(torch.bfloat16)}
    info = {"rate": 0.1, "names": ["x", "y"], "count": 12}
    save(tmp_path / "x.safetensors", tensors, info)
    content = (tmp_path / "x.safetensors").read_bytes()
    seen = 0
    for place in rng.choice(8 * len(content), 400, replace=False).tolist():
        flipped = bytearray(content)
        flipped[place // 8] ^= 1 << place % 8
        (tmp_path / "x.safetensors").write_bytes(flipped)
        try:
            found, told = load(tmp_path / "x.safetensors")
        except LabError:
            seen += 1
        else:
            assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
            assert {name: told[name] for name in info} == info
    assert seen > 350


def flipped(file: Path, draw: random.Random) -> bytes:
    """The content of a file with one bit flipped, which is written there; gives what was there."""
    right = file.read_bytes()
    wrong, bit = bytearray(right), draw.randrange(8 * len(right))
    wrong[bit // 8] ^= 1 << bit % 8
    file.write_bytes(bytes(wrong))
    return right


def test_every_flipped_bit_of_what_a_run_has_written_is_seen_or_changes_nothing(tmp_path: Path) -> None:
    folder, draw = tmp_path / "run", random.Random(0)
    tiny_run(folder).train()
    run = RunFolder(folder)
    record = run.read_outputs()[0]
    archive.export(folder, right_zip := tmp_path / "right.zip")
    seen = 0
    for name in ("curves.csv", "predictions.npz", "record.json"):
        for _ in range(60):
            right = flipped(folder / name, draw)
            try:
                found = run.read_outputs()
                (view,) = run_views.find(folder)
                archive.export(folder, tmp_path / "wrong.zip", force=True)
            except LabError as error:
                assert name in str(error)
                seen += 1
            else:  # white space of the record
                assert name == "record.json" and found[0] == record and view.record == record
            (folder / name).write_bytes(right)
    assert seen >= 120
    archive.export(folder, tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == right_zip.read_bytes()


@pytest.mark.parametrize("name", ["curves.csv", "predictions.npz", "record.json"])
def test_what_a_damaged_output_is_mended_by(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    tiny_run(folder).train()
    right = {file: (folder / file).read_bytes() for file in ("curves.csv", "predictions.npz")}
    record = tiny_run(folder).record
    (folder / name).write_bytes((folder / name).read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(LabError, match=f"{name} is damaged"):
        archive.export(folder, tmp_path / "run.zip")
    if name == "curves.csv":
        with pytest.raises(LabError, match=r"curves.csv is damaged.*move record.json away"):
            run_views.find(folder)
    (folder / "record.json").rename(tmp_path / "away.json")
    tiny_run(folder).train()
    assert {file: (folder / file).read_bytes() for file in right} == right
    assert tiny_run(folder).record.without_timing() == record.without_timing()
    archive.export(folder, tmp_path / "run.zip")


@pytest.mark.parametrize("done", [True, False])
def test_a_damaged_checkpoint_is_mended_by_what_is_said(done: bool, tmp_path: Path) -> None:
    whole, run = tiny_run(tmp_path / "whole"), tiny_run(tmp_path / "run")
    whole.train()
    run.train(None if done else 0)
    last = tmp_path / "run" / LAST
    flipped(last, random.Random(0))
    with pytest.raises(LabError, match=r"or move it away: a finished run is .*, another one begins again"):
        tiny_run(tmp_path / "run")
    last.rename(tmp_path / "away")
    again = tiny_run(tmp_path / "run")
    assert again.finished is done
    again.train()
    theirs, ours = tiny.content(tmp_path / "whole"), tiny.content(tmp_path / "run")
    assert ours == {name: theirs[name] for name in ours} and set(theirs) - set(ours) == ({LAST} if done else set())


def test_a_damaged_task_file_is_not_said_to_be_learned_again(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run").train()
    file = tmp_path / "run" / "task_02.safetensors"
    flipped(file, random.Random(0))
    with pytest.raises(
        LabError, match=r"Bring back a copy of it, or train the run again in another folder \(--out\)\.$"
    ):
        tiny_run(tmp_path / "run").model_at(2)


def test_outputs_of_a_run_that_goes_on_may_be_ahead_of_its_record(tmp_path: Path) -> None:
    """It was killed between the two: the curves are there, the record is the one before."""
    folder = tmp_path / "run"
    run = tiny_run(folder)
    run.next_task()
    record = (folder / "record.json").read_bytes()
    run.train(seconds=0)
    (folder / "curves.csv").write_text((folder / "curves.csv").read_text() + "2,a,1,0.5,1.5\n")
    (folder / "record.json").write_bytes(record)
    (view,) = run_views.find(folder)
    assert not view.record.finished and view.curves[-1]["task"] == 2
    tiny_run(folder).train()
    assert run_views.find(folder)[0].record.finished


def test_a_task_file_of_another_training_is_refused(tmp_path: Path) -> None:
    tiny_run(tmp_path / "run").train()
    folder = RunFolder(tmp_path / "run")
    tensors, info = folder.read_task(2)
    tensors["classifier.weight"] = tensors["classifier.weight"] + 1  # whole, but not what the run wrote
    folder.write_task(2, tensors, info)
    for remove in ((), ("last.safetensors",)):
        for name in remove:
            (tmp_path / "run" / name).unlink()
        with pytest.raises(LabError, match=r"task_02\.safetensors is not the file"):
            tiny_run(tmp_path / "run").method_at(3)
    shutil.copy(tmp_path / "run" / "task_01.safetensors", tmp_path / "run" / "task_02.safetensors")
    with pytest.raises(LabError, match="holds task 1"):
        folder.read_task(2)


def test_another_number_of_threads_is_named(tree: Path, tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        start(tree, tmp_path / "run").next_task()
        torch.set_num_threads(2)
        with pytest.warns(UserWarning, match="trained with 1 threads so far and goes on with 2") as warned:
            start(tree, tmp_path / "run").next_task()
        assert "dne_lab" in Path(warned[0].filename).parts  # so the command line says it as a sentence
    finally:
        torch.set_num_threads(before)
