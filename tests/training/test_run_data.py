"""Where the classes of a run are others, they are named, whatever else would be wrong first."""

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs as tiny
import torch
from PIL import Image

import dne_lab
from dne_lab.commands import api as lab
from dne_lab.commands.run_command import go_on
from dne_lab.core.errors import LabError
from dne_lab.data.stream import ClassStream, stream
from dne_lab.training import archive, grid
from dne_lab.training.run_data import OtherClasses

SMALL: dict[str, Any] = {
    "network__heads": (1, 1), "network__depth": 2, "network__head_width": 4, "learn__epochs": 1, "tune__epochs": 1,
    "memory__budget": 6, "progress": False, "device": "cpu",
}  # fmt: skip


def fill(root: Path, names: tuple[str, ...]) -> Path:
    for split in ("train", "test"):
        for name in names:
            (root / split / name).mkdir(parents=True)
            for number in range(3):
                values = np.random.default_rng([*name.encode(), number, len(split)]).integers(0, 256, (8, 8, 3))
                Image.fromarray(values.astype(np.uint8)).save(root / split / name / f"{number}.png")
    return root


def made(tree: Path, order: str = "identity") -> ClassStream:
    return stream(tree, tasks=[2, 1], size=8, order=order)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    torch.set_num_threads(1)
    return fill(tmp_path / "T", ("ant", "bee", "cow"))


@pytest.mark.parametrize("order", ["identity", "0", "2,0,1"])
@pytest.mark.parametrize(
    "names, told",
    [
        (("ant", "cow"), "3 classes there, 2 here; class 'bee' is gone"),
        (("ant", "axolotl", "bee", "cow", "dog"), "class 'axolotl', 'dog' is new"),
        (("ant", "dog"), "class 'bee', 'cow' is gone; class 'dog' is new"),
    ],
)
def test_classes_that_are_gone_or_new_are_named(
    tree: Path, tmp_path: Path, order: str, names: tuple[str, ...], told: str
) -> None:
    run = lab.start("dne", made(tree, order), folder=tmp_path / "run", **SMALL)
    run.train(seconds=0)
    before = tiny.content(tmp_path / "run")
    shutil.rmtree(tree)
    fill(tree, names)
    with pytest.raises(LabError, match=re.escape(told)) as error:
        lab.open(tmp_path / "run")
    assert "Bring back the classes" in str(error.value) and "accept" not in str(error.value)
    with pytest.raises(LabError, match=re.escape(told)):
        grid.execute([(run.config, tmp_path / "run")], progress=False, device="cpu")
    assert tiny.content(tmp_path / "run") == before


def test_the_table_of_a_finished_run_is_not_shown_for_other_classes(tree: Path, tmp_path: Path) -> None:
    plan = [(lab.start("dne", made(tree), folder=tmp_path / "x", **SMALL).config, tmp_path / "run")]
    grid.execute(plan, progress=False, device="cpu")
    for split in ("train", "test"):
        shutil.rmtree(tree / split / "bee")
    with pytest.raises(OtherClasses, match="class 'bee' is gone"):
        grid.execute(plan, progress=False, device="cpu")


def test_a_renamed_class_that_would_be_taken_for_another_is_not_gone_on_with(tree: Path, tmp_path: Path) -> None:
    lab.start("dne", made(tree), folder=tmp_path / "run", **SMALL).train(seconds=0)
    before = tiny.content(tmp_path / "run")
    for split in ("train", "test"):
        (tree / split / "ant").rename(tree / split / "zebu")
    with pytest.raises(LabError, match="class 'ant' is called 'zebu' here; the classes come in another order") as error:
        lab.open(tmp_path / "run")
    assert "accept" not in str(error.value)  # nothing is advised that is then refused
    with pytest.raises(LabError, match="Bring back the classes, by their names"):
        lab.open(tmp_path / "run", accept_changed_data=True)
    assert tiny.content(tmp_path / "run") == before
    for split in ("train", "test"):
        (tree / split / "zebu").rename(tree / split / "adder")  # comes first too: only the name is another one
    assert not lab.open(tmp_path / "run", accept_changed_data=True, progress=False).finished


@pytest.mark.parametrize("order", ["identity", "2,0,1"])
def test_the_call_that_is_advised_for_images_that_have_moved_opens_the_run(
    tree: Path, tmp_path: Path, order: str
) -> None:
    moved = tmp_path / "moved"
    held = stream(tree, tasks=[2, 1], size=8, order=order, validation=0.34)
    lab.start("dne", held, folder=tmp_path / "run", **SMALL).train(seconds=0)
    tree.rename(moved)
    with pytest.raises(LabError) as error:
        lab.open(tmp_path / "run")
    (call,) = re.findall(r"dne_lab\.open\(RUN, (dne_lab\.stream\(.*\))\)\.$", str(error.value))
    given = eval(call, {"dne_lab": dne_lab, "DIR": str(moved)})
    assert lab.open(tmp_path / "run", given).stream.order == held.order


def test_what_follows_a_task_is_learned_from_images_that_have_moved(tree: Path, tmp_path: Path) -> None:
    run = lab.start("dne", made(tree), folder=tmp_path / "run", **SMALL)
    run.next_task()
    archive.export(tmp_path / "run", tmp_path / "run.zip")
    tree.rename(tmp_path / "moved")
    for source in (tmp_path / "run", tmp_path / "run.zip"):
        out = tmp_path / f"out{source.suffix}"
        with pytest.raises(LabError, match=r"have moved, name where they are: --set data\.path=DIR"):
            go_on(source, 1, [], None, out, False, device="cpu", progress=False)
        go_on(source, 1, [f"data.path={tmp_path / 'moved'}"], None, out, False, device="cpu", progress=False)
        (folder,) = out.iterdir()
        assert lab.open(folder).finished
