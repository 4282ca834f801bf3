"""Names of run folders: readable, safe for every file system, and different for different configurations."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import dne_lab.methods  # noqa: F401
from dne_lab.core.errors import LabError
from dne_lab.methods import base
from dne_lab.training import grid
from dne_lab.training.folder_names import experiment_name, folder_name, place

LONG = ",".join(map(str, range(99, -1, -1)))


def name(method: str = "dne", preset: str = "digits", seed: int = 0, **changes: Any) -> str:
    dotted = {field.replace("__", "."): value for field, value in changes.items()}
    return folder_name(base.configure(method, preset, dotted, seed=seed))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, "dne-digits-s0"),
        ({"k": 2}, "dne-digits-heads3.2-s0"),
        ({"network__heads": "3,2"}, "dne-digits-heads3.2-s0"),
        ({"k": 1}, "dne-digits-s0"),  # what the preset says anyway
        ({"learn__augment": "none"}, "dne-digits-s0"),
        ({"learn__epochs": 5, "seed": 3}, "dne-digits-learn.epochs5-s3"),
        ({"learn__lr": "1e-5", "network__hidden_norm": True}, "dne-digits-hidden_norm_true-learn.lr1e-05-s0"),
        ({"method": "icarl", "preset": "digits100,small"}, "icarl-digits100+icarl-small-s0"),
        ({"preset": "digits100", "data__tasks": [50] + [2] * 25}, "dne-digits100-tasks50.2x25-s0"),
        ({"preset": "digits100", "data__order": "podnet_seed", "seed": 1}, "dne-digits100-order_podnet_seed-s1"),
        ({"data__name": "folder", "data__path": "a/flowers", "data__tasks": "2,2"}, "dne-flowers-tasks2.2-s0"),
        ({"preset": "authors-code", "data__name": "npz", "data__path": "x/my.npz"}, "dne-my+authors-code-s0"),
        ({"preset": "imagenet100-b50-10", "data__path": "a/flowers"}, "dne-flowers-b50-10-s0"),
    ],
)
def test_a_name_says_what_ran(given: dict[str, Any], expected: str) -> None:
    assert name(**given) == expected


def test_other_configurations_have_other_names() -> None:
    own = {"data__name": "folder", "data__path": "a/flowers"}
    odd = own | {"data__path": "a/fl öw:ers"}
    made = [
        *({"preset": preset} for preset in ("", "digits", "digits100", "digits,authors-code", "authors-code")),
        *(own | {"preset": preset} for preset in ("", "digits", "digits100", "digits,authors-code", "authors-code")),
        *({"preset": "digits100", "data__order": LONG, "learn__epochs": epochs} for epochs in (15, 4)),
        {"preset": "digits100", "data__order": f"{LONG[:-4]},0,1"},
        *(odd | {"learn__epochs": epochs} for epochs in (1, 2)),
        own | {"data__path": "a/digits"},
        own | {"data__path": "b/birds", "data__size": 32},
        own | {"data__path": "a/birds-size32"},
        *({f"{stage}__{field}": 0.5} for stage in ("learn", "tune") for field in ("lr", "min_lr", "momentum")),
        *({f"options__x{n}": n for n in range(many)} for many in (20, 30)),
    ]  # fmt: skip
    names = [name(**given) for given in made]
    assert all(one != other for one, other in itertools.combinations(names, 2)), names
    assert all(re.fullmatch(r"[A-Za-z0-9._+-]{5,200}", text) for text in names)
    assert [name(**given) for given in made] == names


def test_the_hash_in_a_name_is_that_of_all_seeds() -> None:
    one, other = (name(preset="digits100", data__order=LONG, seed=seed) for seed in (0, 1))
    assert one.removesuffix("-s0") == other.removesuffix("-s1") and re.search(r"-[0-9a-f]{8}-s0$", one)
    assert experiment_name(base.configure("dne", "digits", {"k": 2})) == "digits-heads3.2"
    one, other = (experiment_name(base.configure(m, "digits100", {"data.order": LONG})) for m in ("dne", "joint"))
    assert one == other


def test_a_grid_over_a_field_needs_no_folders_of_its_own(tmp_path: Path) -> None:
    folders = [
        grid.plan(["dne"], base.configure("dne", "digits", {"k": k}), [0, 1], tmp_path)[seed][1]
        for k in (1, 2, 3)
        for seed in (0, 1)
    ]
    assert len({*folders}) == 6


def images(path: Path) -> dict[str, Any]:
    path.mkdir(parents=True, exist_ok=True)
    return {"data.name": "folder", "data.path": str(path), "data.tasks": "2,2"}


def folder_of(given: dict[str, Any], out: Path, seed: int = 0) -> Path:
    """The folder that a command plans; as a run does, it leaves its configuration there."""
    config = base.configure("dne", "digits", given, seed=seed)
    ((_, folder),) = grid.plan(["dne"], config, [seed], out)
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps(config.to_dict()))
    return folder


def test_data_sets_of_one_name_have_folders_of_their_own(tmp_path: Path) -> None:
    out, a, b = tmp_path / "runs", images(tmp_path / "a" / "birds"), images(tmp_path / "b" / "birds")
    one, other = folder_of(a, out), folder_of(b, out)
    assert one.name == "dne-birds-tasks2.2-s0" and re.fullmatch(r"dne-birds-tasks2\.2-[0-9a-f]{8}-s0", other.name)
    assert [folder_of(a, out), folder_of(b, out)] == [one, other]  # the same command goes on where it was
    shutil.rmtree(one)
    assert folder_of(b, out) == other and folder_of(a, out) == one


def test_a_run_is_found_again_when_its_images_were_moved(tmp_path: Path) -> None:
    out, a = tmp_path / "runs", images(tmp_path / "a" / "birds")
    one = folder_of(a, out)
    (tmp_path / "a").rename(tmp_path / "moved")
    assert folder_of(a | {"data.path": str(tmp_path / "moved" / "birds")}, out) == one


def test_runs_and_images_are_moved_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project = tmp_path / "project"
    both = [images(project / there / "birds") for there in ("a", "b")]
    names = [folder_of(given, project / "runs").name for given in both]
    for name, there in zip(names, ("a", "b"), strict=True):  # as a run of a relative path writes it
        file = project / "runs" / name / "config.json"
        tree = json.loads(file.read_text())
        tree["data"]["path"] = f"../../{there}/birds"
        file.write_text(json.dumps(tree))
    project.rename(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = [place(base.configure("dne", "digits", images(Path(there) / "birds")), Path("runs")) for there in "ab"]
    assert [folder.name for folder in found] == names and names[0] != names[1]


@pytest.mark.parametrize("wrong", [0, -1, "", "two", "2,1", 1.5])
def test_k_is_a_number_of_heads(wrong: Any) -> None:
    with pytest.raises(LabError, match=r"k = .* must be a whole number from 1, the heads of every expert after the"):
        base.configure("dne", "digits", {"k": wrong})
    assert base.configure("dne", "digits", {"k": " 2"}).network.heads == (3, 2)
