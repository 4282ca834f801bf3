"""One portable file stands for a run folder."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs as tiny
import torch
from spoiling import unsealed_tensors, without_seals

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.measure.record import Record
from dne_lab.training import archive, run_folder, storage
from dne_lab.training.run import Run


def run(folder: Path) -> Run:
    torch.set_num_threads(1)
    return Run(tiny.settings(), tiny.stream(), folder, device="cpu", progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    trained = run(tmp_path_factory.mktemp("archive") / "run")
    trained.train()
    return trained


def test_a_finished_run_comes_back_from_its_archive(finished: Run, tmp_path: Path) -> None:
    assert finished.folder is not None
    file = archive.export(finished.folder, tmp_path / "a" / "run.zip")
    assert archive.export(finished.folder, tmp_path / "again.zip").read_bytes() == file.read_bytes()
    with zipfile.ZipFile(file) as packed:
        assert "last.safetensors" not in packed.namelist() and "task_03.safetensors" in packed.namelist()
    opened = Run.open(file, tiny.stream(), device="cpu", progress=False)
    assert opened.finished and opened.record == finished.record
    assert opened.curves == finished.curves and opened.memory.state() == finished.memory.state()
    assert opened.predictions.keys() == finished.predictions.keys()
    images = finished.stream.test_images(9).images
    with torch.no_grad():
        for number in (1, 2, 3):
            expected = finished.method_at(number).predict(images)
            for name, scores in opened.method_at(number).predict(images).items():
                assert torch.equal(scores, expected[name])
        assert torch.equal(opened.method.predict(images)["nme"], finished.method.predict(images)["nme"])
    with pytest.raises(LabError, match="unzip"):
        opened.train()
    forked = opened.fork(method="tiny-other")
    assert forked.cursor.task == 2 and forked.curves == [row for row in finished.curves if row["task"] == 1]
    with archive.unpacked(file) as folder, archive.unpacked(finished.folder) as same:
        assert (folder / "record.json").read_bytes() == (same / "record.json").read_bytes()
    assert not folder.exists() and finished.folder.exists()


@pytest.mark.parametrize("change", ["shape", "type", "missing"])
def test_weights_of_an_older_run_that_are_not_its_methods_are_not_exported(change: str, tmp_path: Path) -> None:
    """Nothing but their names, shapes and types tells that: it has no digests."""
    run(tmp_path / "run").train()
    tree = without_seals(json.loads((tmp_path / "run" / "record.json").read_text()))
    (tmp_path / "run" / "record.json").write_text(json.dumps(tree))
    for file in (tmp_path / "run").glob("*.safetensors"):
        file.write_bytes(unsealed_tensors(file.read_bytes()))
    archive.export(tmp_path / "run", tmp_path / "right.zip")
    file = tmp_path / "run" / "task_02.safetensors"
    tensors, info = run_folder.load(file)
    name = sorted(tensors)[-1]
    one = tensors.pop(name)
    if change != "missing":
        tensors[name] = one[None] if change == "shape" else one.to(torch.float64)
    run_folder.save(file, tensors, info)
    file.write_bytes(unsealed_tensors(file.read_bytes()))
    with pytest.raises(LabError, match=rf"task_02.safetensors is not exported: its weights are not .*{name} is"):
        archive.export(tmp_path / "run", tmp_path / "run.zip")
    assert not (tmp_path / "run.zip").exists()


def test_an_unfinished_run_goes_on_from_its_unpacked_archive(finished: Run, tmp_path: Path) -> None:
    assert finished.folder is not None
    part = run(tmp_path / "part")
    part.next_task()
    part.train(seconds=0)
    file = archive.export(tmp_path / "part", tmp_path / "part.zip")
    opened = Run.open(file, tiny.stream(), device="cpu")
    assert opened.cursor == part.cursor and not opened.finished
    with zipfile.ZipFile(file) as packed:
        packed.extractall(tmp_path / "moved")
    Run.open(tmp_path / "moved", tiny.stream(), device="cpu", progress=False).train()
    assert tiny.content(tmp_path / "moved") == tiny.content(finished.folder)


def test_what_is_no_archive_is_refused(finished: Run, tmp_path: Path) -> None:
    assert finished.folder is not None
    with pytest.raises(LabError, match="does not exist"):
        Run.open(tmp_path / "nothing.zip")
    file = archive.export(finished.folder, tmp_path / "run.zip")
    data = file.read_bytes()
    for number, bad in enumerate((b"", b"text", data[: len(data) // 2])):
        damaged = tmp_path / f"{number}.zip"
        damaged.write_bytes(bad)
        with pytest.raises(LabError, match="no archive of a run, or damaged"):
            Run.open(damaged)
        assert damaged.read_bytes() == bad
    flipped = bytearray(data)
    flipped[data.index(b"PK\x01\x02") // 2] ^= 1  # somewhere in a file's content
    (tmp_path / "flipped.zip").write_bytes(flipped)
    with pytest.raises(LabError, match="damaged"):
        Run.open(tmp_path / "flipped.zip")
    for name in ("../outside.json", "other.txt"):
        with zipfile.ZipFile(tmp_path / "strange.zip", "w") as packed:
            packed.writestr("config.json", "{}")
            packed.writestr(name, "{}")
        with pytest.raises(LabError, match="holds"):
            Run.open(tmp_path / "strange.zip")
    assert not (tmp_path.parent / "outside.json").exists()


def encrypted(data: bytes) -> bytes:
    """An archive that says of all its parts that they need a password."""
    changed = bytearray(data)
    for mark, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            changed[at + flags] |= 1
            at = data.find(mark, at + 1)
    return bytes(changed)


def test_encrypted_archives_and_names_that_come_twice_are_refused(finished: Run, tmp_path: Path) -> None:
    assert finished.folder is not None
    file = archive.export(finished.folder, tmp_path / "run.zip")
    (tmp_path / "locked.zip").write_bytes(encrypted(file.read_bytes()))
    with pytest.raises(LabError, match=r"locked\.zip is encrypted"):
        Run.open(tmp_path / "locked.zip")
    with zipfile.ZipFile(file, "a") as packed, pytest.warns(UserWarning, match="Duplicate name"):
        packed.writestr("record.json", (finished.folder / "record.json").read_text())
    with pytest.raises(LabError, match=r"run\.zip holds 'record\.json' twice"):
        Run.open(file)


def test_what_is_wrong_within_an_archive_is_said_of_the_archive(finished: Run, tmp_path: Path) -> None:
    assert finished.folder is not None
    file = archive.export(finished.folder, tmp_path / "run.zip")
    with zipfile.ZipFile(file) as packed, zipfile.ZipFile(tmp_path / "changed.zip", "w") as other:
        for name in packed.namelist():
            data = packed.read(name)
            other.writestr(name, data.replace(b'"epochs": ', b'"epochs": 1') if name == "record.json" else data)
    with pytest.raises(LabError, match=r"changed\.zip") as told:
        Run.open(tmp_path / "changed.zip", tiny.stream())
    assert "dne-lab-" not in str(told.value)
    with (
        pytest.raises(LabError, match=r"^.*changed\.zip: record\.json is damaged") as told,
        archive.unpacked(tmp_path / "changed.zip") as folder,
    ):
        Record.from_json(folder / "record.json")
    assert "dne-lab-" not in str(told.value)


@pytest.mark.parametrize(
    ("name", "advice"),
    [("curves.csv", r"move record\.json away and run the same"), ("task_02.safetensors", "Bring back a copy of it")],
)
def test_a_finished_run_that_lacks_a_file_gets_advice_that_works(tmp_path: Path, name: str, advice: str) -> None:
    new = run(tmp_path / "new")
    new.train()
    before = (tmp_path / "new" / name).read_bytes()
    (tmp_path / "new" / name).unlink()
    with pytest.raises(LabError, match=rf"{name} missing\. .*{advice}"):
        archive.export(tmp_path / "new", tmp_path / "x.zip")
    if name == "curves.csv":
        (tmp_path / "new" / "record.json").unlink()
        run(tmp_path / "new").train()
        assert (tmp_path / "new" / name).read_bytes() == before
        archive.export(tmp_path / "new", tmp_path / "x.zip")


def test_what_cannot_be_exported(finished: Run, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no run folder"):
        archive.export(tmp_path, tmp_path / "x.zip")
    new = run(tmp_path / "new")
    new.files.claim(new.config)
    with pytest.raises(LabError, match="no record yet"):
        archive.export(tmp_path / "new", tmp_path / "x.zip")
    new.train()
    (tmp_path / "new" / "task_02.safetensors").unlink()
    with pytest.raises(LabError, match=r"task_02\.safetensors missing"):
        archive.export(tmp_path / "new", tmp_path / "x.zip")


# A finished model in one safetensors file ------------------------------------------------------------------------


@pytest.mark.parametrize("half", [False, True])
def test_a_model_comes_back_from_its_file(finished: Run, tmp_path: Path, half: bool) -> None:
    assert finished.folder is not None
    file = archive.export_model(finished.folder, tmp_path / "model.safetensors", half)
    again = archive.export_model(finished.folder, tmp_path / "again.safetensors", half)
    assert again.read_bytes() == file.read_bytes() and str(tmp_path).encode() not in file.read_bytes()
    opened = Run.open(file, tiny.stream(), device="cpu", progress=False)
    assert opened.finished and opened.record == finished.record
    images = finished.stream.test_images(9).images
    with torch.no_grad():
        ours, theirs = opened.method.predict(images), finished.method.predict(images)
    for name, scores in theirs.items():
        assert torch.allclose(ours[name], scores, rtol=0, atol=1e-2 if half else 0)
    (tensors,) = archive.read_model(file).states
    assert all(t.dtype != torch.float16 for t in tensors.values())
    with pytest.raises(LabError, match="finished model alone"):
        opened.method_at(1)
    assert torch.equal(opened.method_at(3).predict(images)["nme"], ours["nme"])
    with archive.unpacked(file) as folder:
        assert Record.from_json(folder / "record.json") == finished.record


@pytest.mark.parametrize("half", [False, True])
def test_the_models_after_every_task_come_back_from_one_file(finished: Run, tmp_path: Path, half: bool) -> None:
    assert finished.folder is not None
    file = archive.export_model(finished.folder, tmp_path / "m.safetensors", half, every_task=True)
    opened = Run.open(file, tiny.stream(), device="cpu", progress=False)
    images = finished.stream.test_images(9).images
    for task in (1, 2, 3):
        with torch.no_grad():
            ours, theirs = (one.method_at(task).predict(images)["classifier"] for one in (opened, finished))
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-2 if half else 0)
    with pytest.raises(LabError, match="without exemplars"):
        opened.fork(tmp_path / "fork", after=2)
    tensors, info = run_folder.load(file)
    run_folder.save(tmp_path / "bad.safetensors", tensors, info | {"tasks": 2})
    with pytest.raises(LabError, match="2 tasks, and its record 3"):
        Run.open(tmp_path / "bad.safetensors", tiny.stream())


def test_what_is_no_model_is_refused(finished: Run, tmp_path: Path) -> None:
    assert finished.folder is not None
    with pytest.raises(LabError, match="part of a run"):
        Run.open(finished.folder / "task_01.safetensors", tiny.stream())
    with pytest.raises(LabError, match=r"does not exist\. The repository has .* `dne-lab export RUN none.safetensors`"):
        Run.open(tmp_path / "none.safetensors", tiny.stream())
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 99)
    with pytest.raises(LabError, match="damaged"):
        Run.open(tmp_path / "bad.safetensors", tiny.stream())
    part = run(tmp_path / "part")
    part.next_task()
    with pytest.raises(LabError, match="not finished"):
        archive.export_model(tmp_path / "part", tmp_path / "x.safetensors")


# Files of others are not replaced ----------------------------------------------------------------------------------

WRITERS = (archive.export, archive.export_model)


@pytest.mark.parametrize("write", WRITERS)
def test_a_file_of_the_users_stays_unless_it_is_forced(finished: Run, tmp_path: Path, write: Any) -> None:
    assert finished.folder is not None
    for name in ("thesis.docx", "thesis.zip", "weights.safetensors"):
        (tmp_path / name).write_text("a year's work")
        with pytest.raises(LabError, match="--force"):
            write(finished.folder, tmp_path / name)
        assert (tmp_path / name).read_text() == "a year's work"
    packed = tmp_path / "other.zip"
    with zipfile.ZipFile(packed, "w") as other:
        other.writestr("thesis.docx", "a year's work")
    before = packed.read_bytes()
    with pytest.raises(LabError, match="no export"):
        write(finished.folder, packed)
    assert packed.read_bytes() == before
    write(finished.folder, packed, force=True)
    once = packed.read_bytes()
    write(finished.folder, packed)  # an export is replaced by the next one
    assert packed.read_bytes() == once != before


@pytest.mark.parametrize("write", WRITERS)
def test_what_a_killed_export_left_goes_with_the_next_one(finished: Run, tmp_path: Path, write: Any) -> None:
    assert finished.folder is not None
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    kept = [f".other.zip.{child.pid}.tmp", f".my[1].zip.{os.getppid()}.tmp", f".my1.zip.{child.pid}.tmp"]
    for name in (f".my[1].zip.{child.pid}.tmp", *kept):
        (tmp_path / name).write_text("")
    write(finished.folder, tmp_path / "my[1].zip")
    assert {file.name for file in tmp_path.iterdir()} == {*kept, "my[1].zip"}


@pytest.mark.parametrize("write", WRITERS)
def test_an_export_never_goes_into_a_run_nor_over_a_device(finished: Run, tmp_path: Path, write: Any) -> None:
    folder = finished.folder
    assert folder is not None
    before = {file: file.read_bytes() for file in folder.iterdir()}
    (tmp_path / "link.safetensors").symlink_to(folder / "task_02.safetensors")
    os.mkfifo(tmp_path / "pipe.zip")
    for name in (folder / "task_02.safetensors", folder / "new.zip", folder / "below" / "new.zip",
                 tmp_path / "link.safetensors", tmp_path / "pipe.zip", tmp_path, Path("/dev/null")):  # fmt: skip
        for force in (False, True):
            with pytest.raises(LabError):
                write(folder, name, force=force)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before
    assert (tmp_path / "pipe.zip").is_fifo() and Path("/dev/null").is_char_device()


@pytest.mark.parametrize("name", ["data.safetensors", "last.safetensors"])
def test_damage_is_not_packed(tmp_path: Path, name: str) -> None:
    begun = run(tmp_path / "run")
    begun.next_task()
    file = tmp_path / "run" / name
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)
    with pytest.raises(LabError, match=rf"{name} is damaged"):
        archive.export(tmp_path / "run", tmp_path / "new.zip")
    assert not (tmp_path / "new.zip").exists()


def test_an_archive_that_would_fill_the_disk_is_refused(finished: Run, tmp_path: Path) -> None:
    assert finished.folder is not None
    file = archive.export(finished.folder, tmp_path / "run.zip")
    with zipfile.ZipFile(file, "a", zipfile.ZIP_DEFLATED) as packed, packed.open("task_09.safetensors", "w") as member:
        for _ in range(28):
            member.write(bytes(10**7))
    with pytest.raises(LabError, match="unpacked"):
        Run.open(file, tiny.stream())


@pytest.mark.parametrize("write", WRITERS)
def test_task_files_of_others_are_not_exported(tmp_path: Path, write: Any) -> None:
    run(tmp_path / "run").train()
    second = tmp_path / "run" / "task_02.safetensors"
    content = second.read_bytes()
    for other, told in (
        ((tmp_path / "run" / "task_01.safetensors").read_bytes(), "holds task 1"),
        (content[:-1] + bytes([content[-1] ^ 1]), "damaged"),
    ):
        second.write_bytes(other)
        with pytest.raises(LabError, match=told):
            write(tmp_path / "run", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()
    second.write_bytes(content)
    write(tmp_path / "run", tmp_path / "x.safetensors")


def test_a_model_carries_the_names_of_its_classes(
    finished: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert finished.folder is not None
    file = archive.export_model(finished.folder, tmp_path / "model.safetensors")
    model = archive.read_model(file)
    assert model.class_names == finished.stream.class_names

    def nowhere(data: Any) -> Any:
        raise LabError("no data here")

    monkeypatch.setattr(storage, "from_config", nowhere)
    monkeypatch.setattr(storage.cost, "shape_of", lambda data: finished.stream.shape)
    assert storage.stream_of_model(model).class_names == finished.stream.class_names
    tensors, info = run_folder.load(file)
    for wrong, said in ((["cat"], "1 class names"), ([1] * len(model.class_names), "no list of texts")):
        run_folder.save(file, tensors, {**info, "class_names": wrong})
        with pytest.raises(LabError, match=said):
            archive.read_model(file)
    run_folder.save(file, tensors, {name: value for name, value in info.items() if name != "class_names"})
    assert archive.read_model(file).class_names == ()  # an older file


def test_a_model_of_ones_own_images_is_opened_without_them(tmp_path: Path) -> None:
    """Sizes that no configuration says are in the file; an older one needs the stream."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 12, 3), dtype=np.uint8)
    np.savez(
        tmp_path / "own.npz", train_images=pixels, train_labels=np.arange(12) % 3, test_images=pixels,
        test_labels=np.arange(12) % 3,
    )  # fmt: skip
    small: dict[str, Any] = {
        "network__patch": 4,
        "network__depth": 2,
        "network__head_width": 4,
        "network__heads": (2, 1),
    }
    run = lab.train(
        "dne", lab.stream(tmp_path / "own.npz", base=2, step=1), folder=tmp_path / "run", learn__epochs=1,
        tune__epochs=1, memory__budget=4, device="cpu", progress=False, **small,
    )  # fmt: skip
    archive.export_model(tmp_path / "run", tmp_path / "m.safetensors")
    (tmp_path / "own.npz").unlink()
    found = lab.open(tmp_path / "m.safetensors", progress=False)
    assert found.stream.shape == (3, 8, 12) and found.record == run.record
    tensors, info = run_folder.load(tmp_path / "m.safetensors")
    run_folder.save(tmp_path / "older.safetensors", tensors, {k: v for k, v in info.items() if k != "shape"})
    with pytest.raises(LabError, match=r"does not say how large images are: dne_lab\.open\(FILE, stream\)"):
        lab.open(tmp_path / "older.safetensors")
    for wrong in ([3, 8], [3, 8, 10**9], "3x8x12"):
        run_folder.save(tmp_path / "m.safetensors", tensors, {**info, "shape": wrong})
        with pytest.raises(LabError, match=r"m\.safetensors is damaged: shape = "):
            lab.open(tmp_path / "m.safetensors")


def test_a_model_far_larger_than_its_record_says_is_not_read(finished: Run, tmp_path: Path) -> None:
    assert finished.folder is not None
    file = archive.export_model(finished.folder, tmp_path / "m.safetensors")
    tensors, info = run_folder.load(file)
    count = archive.SPARE // 4 + archive.LOOSE * finished.record.params["total"]
    run_folder.save(file, tensors | {"more": torch.zeros(count)}, info)
    with pytest.raises(LabError, match=r"m\.safetensors is damaged: [\d,]+ bytes for 1 models of"):
        archive.read_model(file)
