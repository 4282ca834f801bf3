"""Runs on a frozen backbone: every method, what is kept per image, counted, written, resumed, exported and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import backbones
import numpy as np
import pytest
import torch
from backbones import SHAPE

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.core.schema import read_json
from dne_lab.data.source import ArraySource
from dne_lab.data.stream import ClassStream
from dne_lab.measure import cost
from dne_lab.training import archive
from dne_lab.training.run import Run

TASKS = (2, 1, 2)
GROWING = ("ia", "sta", "dne", "progressive")
METHODS = (*GROWING, "joint", "finetune", "replay", "linear-probe", "ncm", "ranpac")
RECIPES: dict[str, Any] = {"learn__epochs": 2, "learn__batch": 8, "tune__epochs": 1, "memory__budget": 10}
CLOSED = ("ncm", "ranpac")


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def stream() -> ClassStream:
    """Noisy copies of one picture a class."""
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (5, *SHAPE[1:], 3))
    labels = [np.arange(5).repeat(each) for each in (6, 4)]
    noisy = [np.clip(pictures[own] + rng.normal(0, 40, (len(own), *SHAPE[1:], 3)), 0, 255) for own in labels]
    train, test = (pixels.astype(np.uint8) for pixels in noisy)
    return ClassStream(ArraySource(train, labels[0], test, labels[1]), TASKS, order="identity")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return backbones.weights(tmp_path_factory.mktemp("weights"))


def start(method: str, stream: ClassStream, file: Path | str, folder: Path | None = None, **changes: Any) -> Run:
    settings = {name: value for name, value in RECIPES.items() if method not in CLOSED or name.startswith("learn")}
    settings |= {"options__random_features": 40} if method == "ranpac" else {}
    settings |= {"network__backbone": "timm:lab_plain", "network__backbone_weights": str(file), **changes}
    return lab.start(method, stream, "authors-code", folder=folder, device="cpu", progress=False, **settings)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_on_it_is_counted_and_opened_again(
    method: str, stream: ClassStream, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = {} if method in CLOSED else {"learn__lr": 0.05, "learn__epochs": 6}
    run = start(method, stream, file, tmp_path / "run", **quick)
    run.train()
    record, network = run.record, run.config.network
    assert (network.patch, network.depth, network.head_width, network.heads[0], network.spatial) == (8, 2, 4, 3, "mhsa")
    own = sum(p.numel() for p in run.model.experts[0].parameters())
    assert record.params["backbone"] == own and record.params["total"] > own
    assert record.network["backbone_sha256"] == run.model.experts[0].sha256
    assert record.config["network"]["backbone_weights"] == file.name
    *_, counted = cost.count_tasks(run.config, run.stream)
    assert counted == cost.of_tasks(run.config, run.stream)[-1]
    assert record.flops_spent == counted["flops_spent"] and record.flops_training
    first = record.params["trainable_by_task"][0]
    assert first == (0 if method in CLOSED else len(run.stream.task(1).new) * (12 + 1))
    assert record.LA is not None and (record.LA >= 30 or method == "finetune")
    again = lab.open(tmp_path / "run", stream, progress=False)
    images = stream.test_images(8).images
    with torch.no_grad():
        assert torch.equal(again.method.predict(images)["classifier"], run.method.predict(images)["classifier"])
    export = tmp_path / "run.safetensors"
    archive.export_model(tmp_path / "run", export)
    monkeypatch.chdir(file.parent)  # of its weights the name alone is known there
    opened = lab.open(export, stream)
    with torch.no_grad():
        assert torch.equal(opened.model(images).logits, run.model(images).logits)


@pytest.mark.parametrize("method", ["dne", "ranpac", "linear-probe"])
def test_a_run_stopped_after_every_step_ends_as_one_that_was_not(
    method: str, stream: ClassStream, file: Path, tmp_path: Path
) -> None:
    whole = start(method, stream, file, tmp_path / "whole")
    whole.train()
    for _ in range(100):
        again = start(method, stream, file, tmp_path / "again")
        again.train(seconds=0)
        if again.finished:
            break
    state = again.method.state_dict()
    assert again.finished and all(torch.equal(v, state[name]) for name, v in whole.method.state_dict().items())
    assert again.record.accuracy == whole.record.accuracy


def test_no_file_of_a_run_holds_the_weights_of_the_backbone(stream: ClassStream, file: Path, tmp_path: Path) -> None:
    run = start("dne", stream, file, tmp_path / "run")
    run.train()
    from safetensors import safe_open

    for path in (tmp_path / "run").glob("*.safetensors"):
        with safe_open(path, "pt") as tensors:
            held = [name for name in tensors.keys() if "experts.0." in name]  # noqa: SIM118
        assert [name.rpartition(".")[2] for name in held] == (["sha256"] if path.stem in ("last", "task_01") else [])


def test_weights_that_moved_are_taken_and_other_ones_are_refused(
    stream: ClassStream, file: Path, tmp_path: Path
) -> None:
    run = start("dne", stream, file, tmp_path / "run")
    run.next_task()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(file, elsewhere)
    start("dne", stream, elsewhere / file.name, tmp_path / "run").next_task()
    before = (tmp_path / "run" / "last.safetensors").read_bytes()
    shutil.copy(backbones.weights(tmp_path, seed=1), elsewhere / file.name)
    with pytest.raises(LabError, match=r"are not those that this was learned with .* It is untouched"):
        start("dne", stream, elsewhere / file.name, tmp_path / "run")
    (elsewhere / file.name).unlink()
    with pytest.raises(LabError, match=r"run: network.backbone_weights = .*no such file"):
        start("dne", stream, elsewhere / file.name, tmp_path / "run")
    assert (tmp_path / "run" / "last.safetensors").read_bytes() == before


@pytest.mark.parametrize(("augment", "passes"), [("", 1), ("flip", 3)])
def test_read_outs_are_kept_per_image_where_nothing_is_augmented(
    augment: str, passes: int, stream: ClassStream, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start("linear-probe", stream, file, learn__augment=augment, learn__epochs=3)
    seen: list[int] = []
    inner = run.model.patches
    monkeypatch.setattr(run.model, "patches", lambda images: seen.append(len(images)) or inner(images))
    run.next_task()
    herded, tested = 12, 8
    assert sum(seen) - herded - tested == passes * 12


def test_its_first_task_is_shared_by_all_methods_that_grow(stream: ClassStream, file: Path, tmp_path: Path) -> None:
    first = start("ia", stream, file, tmp_path / "ia")
    first.next_task()
    alone = start("dne", stream, file)
    alone.train()
    forked = first.fork(tmp_path / "dne", method="dne")
    forked.train()
    assert forked.record.accuracy == alone.record.accuracy


def test_what_contradicts_it_or_cannot_take_it_is_named(stream: ClassStream, file: Path) -> None:
    with pytest.raises(LabError, match=r"network.depth = 3: with network.backbone = timm:lab_plain .*depth = 2"):
        start("dne", stream, file, network__depth=3)
    with pytest.raises(LabError, match=r"network.heads = 4,1: .*heads = 3,1"):
        start("dne", stream, file, network__heads="4,1")
    assert start("dne", stream, file, k=2).config.network.heads == (3, 2)
    with pytest.raises(LabError, match="dytox trains its encoder"):
        start("dytox", stream, file)
    for method in ("der", "replay-resnet"):
        with pytest.raises(LabError, match=f"{method} does not use network.backbone"):
            start(method, stream, file)
    with pytest.raises(LabError, match="takes images of 3 x 16 x 24"):
        start("dne", lab.stream("digits"), file)
    odd = np.zeros((4, 17, 24, 3), np.uint8)  # into which its patches do not fit, and they cannot be chosen
    with pytest.raises(LabError, match="takes images of 3 x 16 x 24"):
        start("dne", lab.stream((odd, np.arange(4) % 2, odd, np.arange(4) % 2), (1, 1)), file)


def test_weights_that_are_not_there_are_said_before_anything_is_trained(stream: ClassStream, tmp_path: Path) -> None:
    with pytest.raises(LabError, match="no such file"):
        start("dne", stream, tmp_path / "none.safetensors", tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_line_trains_counts_and_names(here: Any, stream: ClassStream, file: Path, tmp_path: Path) -> None:
    source = stream.source
    assert isinstance(source, ArraySource)
    arrays = {}
    for split in ("train", "test"):
        labels = source.labels(split)
        pixels = source.images(split, torch.arange(len(labels))).permute(0, 2, 3, 1).numpy()
        arrays |= {f"{split}_images": pixels, f"{split}_labels": labels}
    np.savez(tmp_path / "own.npz", **arrays)
    chosen = ["--set", "network.backbone=timm:lab_plain", "--set", f"network.backbone_weights={file}"]
    data = ["--set", "data.name=npz", "--set", "data.path=own.npz", "--set", "data.tasks=2,1,2"]
    made = ["run", "dne,ncm", "--preset", "authors-code", *data, *chosen, "--set", "learn.epochs=1"]
    made += ["--set", "tune.epochs=1", "--set", "memory.budget=10", "--out", "runs"]
    done = here(*made)
    assert done.code == 0, done.err
    folders = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert len(folders) == 2 and all("lab_plain" in name and "depth" not in name for name in folders)
    assert all("backbone_weights_lab_plain" in name for name in folders)
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("record.json")}
    assert here(*made).code == 0 and all(path.stat().st_mtime_ns == then for path, then in written.items())
    packed = here("export", tmp_path / "runs" / folders[0], "small.safetensors")
    sha256 = read_json(tmp_path / "runs" / folders[0] / "record.json")["network"]["backbone_sha256"]
    assert packed.code == 0 and f"timm:lab_plain (sha256 {sha256[:12]}) are not in it" in packed.err
    large = ["--tasks", "2,1,2", "--set", "network.backbone=timm:vit_base_patch16_224.augreg_in21k", "--json"]
    counted = here("cost", "dne", *large)  # of its own images, whatever the preset's are
    rows = json.loads(counted.out)
    assert rows == json.loads(here("cost", "dne", *large, "--set", "data.name=folder", "--set", "data.size=224").out)
    refused = here("cost", "dne", *large, "--set", "data.size=224")
    assert refused.code == 2 and "Add --set data.name=folder" in refused.err
    matched = json.loads(here("cost", "ia", *large, "--match", "dne").out)
    assert {tuple(one["settings"]) for one in matched} <= {("network.heads",), ()}
    assert 85e6 < rows[0]["params_total"] < 86e6 and rows[0]["params_trainable"] == 2 * (768 + 1)
    assert 34e9 < rows[0]["flops_spent"] < 36e9  # 17.6 G multiply-adds, as published
