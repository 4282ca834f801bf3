"""What a user gets wrong, through the command line: one message that says what to do, status 2, nothing changed."""

import json
import os
import re
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from shell import Here, content, run_folder, sets, snapshot

SMALL = {"data__tasks": "2,2", "network__patch": 4, "memory__budget": 8}


def refused(here: Here, message: str, *words: object) -> None:
    """Asserts that a command says why not, in one paragraph, and what to do, and leaves all files as they were."""
    before = snapshot(Path())
    done = here(*words)
    assert done.code == 2, done
    assert re.search(message, done.err), done.err
    *before_it, last = done.err.splitlines()
    begun = [line for line in before_it if not re.match(r"1 of 1 runs to train|  dne: learn\.epochs", line)]
    assert last.startswith("dne-lab: ") and begun == [] and "Traceback" not in done.err
    assert done.out == "" and snapshot(Path()) == before


def pixels(seed: int, side: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four classes as a folder: three training images and a test image each, 8 x 8."""
    for split, count in (("train", 3), ("test", 1)):
        for number, name in enumerate("abcd"):
            (tmp_path / "tree" / split / name).mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels(10 * number + i)).save(tmp_path / "tree" / split / name / f"{i}.png")
    return tmp_path / "tree"


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    labels = np.arange(4).repeat(3)
    images = np.stack([pixels(i) for i in range(12)])
    return {"train_images": images, "train_labels": labels, "test_images": images, "test_labels": labels}


def of_folder(**changes: object) -> list[str]:
    return ["run", "dne", *sets(data__name="folder", data__path="tree", **{**SMALL, **changes})]


def of_npz() -> list[str]:
    return ["run", "dne", *sets(data__name="npz", data__path="own.npz", **SMALL)]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (r"unknown method 'dnee'\. Did you mean dne .* Allowed: der, dne, ", ["run", "ia,dnee"]),
        (r"',' names no method: give one or more", ["run", ","]),
        (r"unknown preset 'digit'\. Did you mean digits", ["run", "dne", "--preset", "digit"]),
        (r"unknown preset 'digit'", ["reproduce", "--preset", "digit"]),
        (r"unknown field 'learn.epoch'\. Did you mean learn\.epochs", ["run", "dne", "--set", "learn.epoch=3"]),
        (r"unknown field 'options.x': options has no fields", ["run", "finetune", "--set", "options.x=3"]),
        (r"learn\.epochs = 'x': must be a whole number", ["run", "dne", "--set", "learn.epochs=x"]),
        (r"--set 'learn.epochs': write field=value", ["run", "dne", "--set", "learn.epochs"]),
        (r"--set 'seed=3': use --seeds", ["run", "dne", "--set", "seed=3"]),
        (r"--set 'method=ia': name the method after the command", ["run", "dne", "--set", "method=ia"]),
        (r"--seeds '0-x': give numbers such as", ["run", "dne", "--seeds", "0-x"]),
        (r"--seeds '4-1' names no number", ["run", "dne", "--seeds", "4-1"]),
        (r"--jobs 'two': give a number of runs at a time, from 1, or auto", ["run", "dne", "--jobs", "two"]),
        (r"--jobs '0': give a number", ["run", "dne", "--jobs", "0", "--dry-run"]),
        (r"unknown preset 'smal'\. Did you mean small", ["run", "dne", "--preset", "digits,smal"]),
        (r"device 'gpu' cannot be used .*This machine has: cpu", ["run", "dne", "--device", "gpu"]),
        (r"device 'meta' cannot be used", ["reproduce", "--device", "meta"]),
        (r"tasks 6\+3 = 9 classes, but digits has 10\. Give task", ["run", "dne", *sets(data__tasks="6,3")]),
        (r"tasks 6\+4\+1 = 11 classes, but digits", ["run", "dne", *sets(data__tasks="6,4,1")]),
        (r"memory\.budget = 9 is smaller than the number of classes", ["run", "dne", *sets(memory__budget=9)]),
        (r"network\.patch = 3 does not divide images of 8 x 8", ["run", "dne", *sets(network__patch=3)]),
        (r"memory\.budget = 0 is smaller than the number of classes", ["run", "icarl", "--set", "memory.budget=0"]),
        (r"data\.tasks = \(1, 9\): podnet tells classes from each", ["run", "podnet", "--set", "data.tasks=1,9"]),
        (r"icarl does not use network\.stem.* icarl reads .*learn\.\*", ["run", "icarl", "--set", "network.stem=conv"]),
        (r"icarl does not use tune\.epochs", ["run", "icarl,foster", "--set", "tune.epochs=3", "--dry-run"]),
        (r"podnet does not use k\.", ["run", "podnet", "--set", "k=2"]),
        (r"der does not use k\.", ["cost", "der", "--tasks", "5,5", "--heads", "2"]),
        (r"dytox does not use k: it has no later experts", ["run", "dytox", "--set", "network.heads=6"]),
        (r"--data says where --attention, .*give one of them", ["report", "runs", "--data", "images"]),
        (r"--how mean says how --ablation .*give --ablation N", ["report", "runs", "--how", "mean"]),
        (r"unknown how 'foo'", ["report", "runs", "--how", "foo", "--ablation", 5]),
        (r"unknown field 'K'.*, k, ", ["run", "dne", "--set", "K=2"]),
        (
            r"k = 2 beside network\.heads = 3,1.*e\.g\. network\.heads = 3,2",
            ["run", "dne", "--set", "network.heads=3,1", "--set", "k=2"],
        ),
        (r"--heads 2 beside --set network\.heads=2,1", ["cost", "dne", "--tasks", "5,5", "--heads", "2", *sets()]),
        (r"--set 'k=2' beside --set k=1", ["run", "dne", "--set", "k=1", "--set", "k=2"]),
        (r"network\.readout = cls_token: dytox reads", ["run", "dytox", "--preset", "digits,paper-text"]),
        (r"network\.patch = 3 does not divide", ["run", "dytox", *sets(network__patch=3)]),
        (r"resnet18-224 needs images of .*these have 8 x 8", ["run", "icarl", "--set", "options.network=resnet18-224"]),
        (
            r"unknown options\.network 'vgg'.*resnet18",
            ["cost", "podnet", "--tasks", "5,5", "--set", "options.network=vgg"],
        ),
        (r"unknown field 'options\.widht'\. Did you mean options\.width", ["run", "icarl", "--set", "options.widht=8"]),
        (r"unknown field 'options\.width': options has no", ["run", "joint", "--preset", "digits,resnet-small"]),
        (
            r"options\.shuffle_tune = 'maybe': must be true or false",
            ["run", "dytox", *sets(options__shuffle_tune="maybe")],
        ),
        (r"'3' .*classes|tasks = '3,x'", ["cost", "dne", "--tasks", "3,x"]),
        (r"images of unknown size: add --set data\.size", ["cost", "dne", "--tasks", "4", "--set", "data.name=folder"]),
        (r"--tasks x: |--tasks 'x': give numbers", ["bench", "--tasks", "x"]),
        (r"--tasks 7: preset digits has tasks 1 to 4", ["bench", "--preset", "digits", "--tasks", "7"]),
        (r"--attention -3 --tasks 2: takes at least 2 images", ["bench", "--tasks", "2", "--attention", "-3"]),
        (r"--batch 0 --pairs 5: both must be at least 1", ["bench", "--batch", "0"]),
        (r"nowhere does not exist\. Train one first", ["report", "nowhere"]),
        (r"nowhere\.zip does not exist", ["report", "nowhere.zip"]),
        (r"nowhere.* does not exist", ["report", "nowhere", "--attention", 9]),
        (r"\. holds no run folder: attention needs a run's weights", ["report", ".", "--attention", 9]),
        (r"--attention 1: give at least 2 images", ["report", ".", "--attention", 1]),
        (r"nowhere does not exist", ["export", "nowhere", "x.zip"]),
        (r"CIFAR-100 is not complete in .*cifar-100-python", ["run", "dne", "--preset", "cifar100-b50-10"]),
        (r"data 'folder' needs a path: set data\.path", ["run", "dne", "--preset", "imagenet100-b50-10"]),
        (r"tree: no such folder\. Expected train/CLASS/IMAGE", of_folder()),
        (r"own\.npz: no such file\. Expected an \.npz with the arrays train_images", of_npz()),
        (r"is too long a name", ["report", "n" * 300]),
        (r"is too long a name", ["run", "dne", "--out", "a/" * 3000]),
        (r"is too long a name", ["check", "folder", "--path", "n" * 300]),
        (r"is too long a name", ["run", "--from", "n" * 300, "--after", "1"]),
        (r"--seeds '0-99999999999': are more than", ["run", "dne", "--seeds", "0-99999999999"]),
        (r"--stop-after nan: give seconds", ["run", "dne", "--stop-after", "nan"]),
        (r"are 1,000,000,000 classes", ["cost", "dne", "--tasks", "1000000000"]),
        (r"are 20,000 tasks", ["cost", "dne", "--tasks", ",".join(["1"] * 20_000)]),
        (r"network\.heads\[\d\] = '?9+'?: must be at most", ["cost", "dne", "--tasks", "5,5", "--heads", "9" * 60]),
        (r"network\.depth = '1000000': must be", ["run", "dne", "--set", "network.depth=1000000"]),
    ],
)
def test_wrong_words_are_refused_before_anything_is_written(message: str, words: list[str], here: Here) -> None:
    refused(here, message, *words)


@pytest.mark.parametrize(
    "words",
    [
        ["report", "FILE"], ["report", "FILE", "--attention", 9], ["run", "--grid", "FILE"],
        ["run", "--from", "FILE", "--after", 1], ["check", "FILE"], ["check", "npz", "--path", "FILE"],
        ["check", "folder", "--path", "FILE"],
    ],
)  # fmt: skip
def test_what_never_ends_is_not_read(words: list[str], here: Here) -> None:
    for ending in ("", ".json", ".zip", ".safetensors", ".npz"):
        os.mkfifo(f"pipe{ending}")
        refused(here, f"pipe{ending}", *[f"pipe{ending}" if word == "FILE" else word for word in words])
        Path(f"pipe{ending}").unlink()
    refused(here, "/dev/zero", *["/dev/zero" if word == "FILE" else word for word in words])


def test_images_that_no_memory_holds_are_a_sentence(here: Here) -> None:
    done = here("bench", "--preset", "digits", "--tasks", 2, "--batch", 10**14)
    assert done.code == 2 and done.err.splitlines()[-1].startswith("dne-lab: out of memory")


@pytest.mark.parametrize(
    "words",
    [
        ["import", "pycil", "a.log", "--out", ""],
        ["import", "pycil", "a.log", "--out="],
        ["import", "pycil", ""],
        ["import", "pycil", "a.log", ""],
        ["report", ""],
        ["report", "runs", "--out", ""],
        ["run", "dne", "--out", ""],
        ["run", "--config", ""],
        ["run", "--grid", ""],
        ["export", "", "a.zip"],
        ["export", "runs", ""],
        ["reproduce", "--out", ""],
        ["push", "", "user/name"],
        ["notebooks", ""],
        ["check", ""],
        ["check", "folder", "--path", ""],
        ["check", "npz", "--path="],
    ],
)
def test_an_empty_path_is_not_the_working_directory(words: list[str], here: Here) -> None:
    refused(here, "a name of a file or folder is empty|the name of a file or folder is empty", *words)


def test_usage_errors_show_the_usage(here: Here) -> None:
    for words in (["report"], ["nothing"], ["run", "dne", "--nothing"], ["run", "dne", "--stop-after", "soon"]):
        done = here(*words)
        assert done.code == 2 and "Usage:" in done.err and "Traceback" not in done.err, words


def remove(*names: str) -> Callable[[Path], object]:
    return lambda tree: [shutil.rmtree(tree / name) for name in names]


def bad_image(name: str, side: int) -> Callable[[Path], object]:
    return lambda tree: Image.fromarray(pixels(0, side)).save(tree / name)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "half unpacked": (remove("test"), r"tree has no test/ or val/ \(found: train\)\. Unpack all of it\. Expected"),
    "a class without files": (lambda t: [f.unlink() for f in (t / "train/b").iterdir()], r"train/b has no images"),
    "a class without folder": (remove("test/c"), r"1 class folder\(s\) of tree/train are not in tree/test: c"),
    "another size": (bad_image("train/a/9.png", 6), r"train/a/9\.png has 6 x 6 pixels.*Pass size \(data\.size\)"),
    "no image": (lambda t: (t / "train/d/9.png").write_text("hello"), r"train/d/9\.png cannot be decoded"),
    "a class more": (lambda t: [shutil.copytree(t / s / "a", t / s / "e") for s in ("train", "test")],
                     r"tasks 2\+2 = 4 classes, but folder has 5"),
}  # fmt: skip


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_wrong_image_folder_is_refused(kind: str, here: Here, tree: Path) -> None:
    change, message = FOLDERS[kind]
    change(tree)
    refused(here, message, *of_folder())


def test_a_patch_that_does_not_divide_the_folders_images(here: Here, tree: Path) -> None:
    refused(here, r"network\.patch = 4 does not divide images of 6 x 6 pixels", *of_folder(data__size=6))


def test_a_truncated_image_is_named_and_the_same_command_goes_on_once_it_is_whole(here: Here, tree: Path) -> None:
    file = tree / "train" / "d" / "2.png"  # of task 2, found before task 1
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    done = here(*of_folder())
    assert done.code == 2 and re.search(r"train/d/2\.png cannot be decoded.*Copy it again", done.err)
    assert "Traceback" not in done.err and not list(Path("runs").rglob("task_*"))
    file.write_bytes(whole)
    assert here(*of_folder()).code == 0
    assert here(*of_folder(), "--out", "other").code == 0
    assert content(run_folder(Path("runs"), "dne")) == content(run_folder(Path("other"), "dne"))


ARRAYS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "floats": (lambda a: a.update(train_images=a["train_images"] / 255), r"train_images has type float64"),
    "channels": (lambda a: a.update(train_images=a["train_images"][..., :2]), r"has shape \(12, 8, 8, 2\)"),
    "other test images": (lambda a: a.update(test_images=a["test_images"][:, :6]), r"training images are .*test"),
    "missing": (lambda a: a.pop("test_labels"), r"no test_labels among its arrays"),
    "lengths": (lambda a: a.update(train_labels=a["train_labels"][1:]), r"12 images, 11 labels"),
    "a class without images": (lambda a: a.update(train_labels=np.where(a["train_labels"] == 1, 0, a["train_labels"])),
                               r"classes without train images: 1 \(1\)"),
    "objects": (lambda a: a.update(train_images=np.array([None, 1], dtype=object)), r"cannot be read"),
    "one size": (lambda a: a.update({k: v[:, :6, :6] for k, v in a.items() if v.ndim == 4}), r"patch = 4 does not"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_wrong_npz_is_refused(kind: str, here: Here, arrays: dict[str, np.ndarray]) -> None:
    change, message = ARRAYS[kind]
    change(arrays)
    np.savez("own.npz", **arrays)
    refused(here, message, *of_npz())


def test_a_truncated_npz_and_a_foreign_archive_are_refused(here: Here, arrays: dict[str, np.ndarray]) -> None:
    np.savez("own.npz", **arrays)
    Path("own.npz").write_bytes(Path("own.npz").read_bytes()[:-100])
    refused(here, r"own\.npz: cannot be read", *of_npz())
    Path("x.zip").write_text("no archive")
    refused(here, r"x\.zip is no archive of a run, or damaged", "report", "x.zip")
    Path("record.json").write_text('{"method": "dne", "seen_accuracy": []')
    refused(here, r"record\.json is damaged", "report", "record.json")


# Folders -----------------------------------------------------------------------------------------------------------


def test_a_folder_of_another_configuration_stays_as_it_is(here: Here) -> None:
    other = ["run", "ia,dne", *sets(learn__epochs=2)]
    assert here("run", "dne", *sets(learn__epochs=2), "--stop-after", 0).code == 0
    run = run_folder(Path("runs"), "dne")  # the name of the other one
    shutil.rmtree(run)
    assert here("run", "dne", *sets()).code == 0
    right = run_folder(Path("runs"), "dne")
    right.rename(run)
    refused(here, rf"{run} belongs to another configuration: learn\.epochs \(1 there, 2 here\)", *other)
    run.rename(right)
    for name in ("config.json", "last.safetensors"):
        file = right / name
        good = file.read_bytes()
        file.write_bytes(good[:-20])
        (right / "record.json").rename("record.json")
        refused(here, rf"{name} is (truncated or )?damaged", "run", "dne", *sets())
        Path("record.json").rename(right / "record.json")
        file.write_bytes(good)
    assert here("run", "dne", *sets()).code == 0


def test_a_place_that_cannot_be_written_to_is_named_before_any_training(here: Here) -> None:
    Path("file").write_text("in the way")
    assert here("run", "dne", *sets()).code == 0
    refused(
        here,
        r"file/dne-digits-.* cannot be a folder: file is a file",
        "run",
        "dne",
        *sets(),
        "--out",
        "file",
    )
    refused(here, r"file/x cannot be a folder: file is a file", "report", "runs", "--out", "file/x")
    refused(here, r"file cannot be a folder: file is a file", "report", "runs", "--out", "file")
    refused(here, r"file is no record of a run, but another kind of file", "report", "file")
    refused(
        here,
        r"cannot make the folder .*file: .*file is a file",
        "export",
        run_folder(Path("runs"), "dne"),
        "file/x.zip",
    )
    refused(here, r"cannot make the folder file/x: file is a file", "reproduce", "--out", "file/x")


def test_a_full_disk_loses_nothing(here: Here) -> None:
    """The system itself refuses to write a file beyond a size, as it would on a full disk."""
    words = ["run", "dne", *sets()]
    assert here(*words, "--out", "whole").code == 0
    whole = run_folder(Path("whole"), "dne")
    expected, run = content(whole), Path("runs") / whole.name
    size = (whole / "last.safetensors").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size - 500, before[1]))  # task 1 fits, the end does not
    try:
        done = here(*words)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.code == 2 and re.search(rf"cannot write {run}/.*Nothing was lost.*Free space", done.err)
    left = sorted(file.name for file in run.iterdir())
    assert "task_01.safetensors" in left and not [name for name in left if name.endswith(".tmp")]
    assert not json.loads((run / "record.json").read_text())["finished"]
    again = here(*words)
    assert again.code == 0 and "task 1/2" not in again.err
    assert content(run) == expected
