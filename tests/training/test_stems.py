"""The stem in training: learned once for many runs, resumed to the bit, counted, saved; predictions before stage 2."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dne_lab.core.errors import LabError
from dne_lab.data.source import ArraySource
from dne_lab.data.stream import ClassStream
from dne_lab.measure import cost
from dne_lab.methods import base
from dne_lab.training import archive
from dne_lab.training.run import Run
from dne_lab.training.stems import FOLDER

CHANGES: dict[str, Any] = {
    "data.tasks": "3,1,2", "network.stem": "conv", "network.depth": 2, "network.head_width": 4, "network.heads": "2,1",
    "learn.epochs": 1, "tune.epochs": 1, "stem.epochs": 2, "learn.batch": 8, "stem.batch": 8, "memory.budget": 12,
}  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def images() -> ArraySource:
    rng = np.random.default_rng(0)
    pixels = [rng.integers(0, 256, (6 * each, 32, 32, 3), dtype=np.uint8) for each in (6, 3)]
    labels = [np.repeat(np.arange(6), each) for each in (6, 3)]
    return ArraySource(pixels[0], labels[0], pixels[1], labels[1])


def start(method: str, images: ArraySource, folder: Path | None = None, **changes: Any) -> Run:
    stream = ClassStream(images, (3, 1, 2), order="identity")
    config = base.configure(method, "authors-code", CHANGES | {"data.name": "arrays"} | changes)
    return Run(config, stream, folder, device="cpu", progress=False)


def weights(run: Run) -> str:
    state = sorted(run.method.state_dict().items())
    return hashlib.sha256(b"".join(name.encode() + value.numpy().tobytes() for name, value in state)).hexdigest()


@pytest.mark.parametrize("method", ["dne", "replay", "joint", "dytox"])
def test_a_run_that_takes_the_stem_of_another_ends_as_one_that_learned_it(
    method: str, images: ArraySource, tmp_path: Path
) -> None:
    alone = start(method, images)
    alone.train()
    start("ia", images, tmp_path / "ia").next_task()
    (file,) = (tmp_path / FOLDER).iterdir()
    written = file.stat().st_mtime_ns
    second = start(method, images, tmp_path / method)
    second.train(seconds=0)
    second = start(method, images, tmp_path / method)  # also across a restart
    second.train()
    assert weights(second) == weights(alone) and second.record.accuracy == alone.record.accuracy
    assert second.record.timing["by_purpose"]["shared stem"] > 0 and file.stat().st_mtime_ns == written
    assert [row["stage"] for row in second.curves][:2] == ["stem", "stem"]


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"stem.lr": 0.1}, {"precision": "bf16-stem"}], ids=lambda change: next(iter(change))
)
def test_a_stem_of_other_settings_is_another_one(changes: dict[str, Any], images: ArraySource, tmp_path: Path) -> None:
    start("ia", images, tmp_path / "one").next_task()
    other = start("ia", images, tmp_path / "two", **changes)
    other.next_task()
    assert len(list((tmp_path / FOLDER).iterdir())) == 2 and "shared stem" not in other.record.timing["by_purpose"]


def test_a_damaged_stem_is_named_and_left_alone(images: ArraySource, tmp_path: Path) -> None:
    start("ia", images, tmp_path / "one").next_task()
    (file,) = (tmp_path / FOLDER).iterdir()
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(LabError, match=file.name):
        start("sta", images, tmp_path / "two").next_task()
    assert file.stat().st_size == 100


def test_the_stem_is_saved_once_counted_and_in_the_exported_model(images: ArraySource, tmp_path: Path) -> None:
    run = start("dne", images, tmp_path / "run")
    run.train()
    sizes = [(tmp_path / "run" / f"task_{number:02d}.safetensors").stat().st_size for number in (1, 2, 3)]
    assert sizes[0] > 700_000 > 10 * sizes[1]
    stem = cost.count(run.model.stem)
    assert run.record.params["total"] > stem > 100_000
    # Task 1's trainable parameters are those of expert 1 and its classifier: the stem's stage comes before.
    assert run.record.params["trainable_by_task"][0] < 20_000
    without = start("dne", images, **{"network.stem": "patch"})
    without.train()
    convolutions = 2 * 52_000_000  # about 52 million multiply-adds of an image of 32 x 32
    assert run.record.flops_literal - without.record.flops_literal == pytest.approx(convolutions / 2, rel=0.1)
    file = archive.export_model(tmp_path / "run", tmp_path / "dne.safetensors")
    opened = Run.open(file, run.whole_stream, device="cpu", progress=False)
    batch = run.stream.test_images(4).images
    assert torch.equal(opened.model(batch).logits, run.model(batch).logits)
    assert torch.equal(Run.open(tmp_path / "run", run.whole_stream, progress=False).model_at(2)(batch).logits,
                       run.model_at(2)(batch).logits)  # fmt: skip


def test_what_is_predicted_before_stage_2_is_in_the_record(images: ArraySource, tmp_path: Path) -> None:
    run = start("sta", images, tmp_path / "run")
    run.next_task()
    assert run.record.before_tuning == {}
    run.train()
    early = run.record.before_tuning
    assert [len(values) for values in early.values()] == [2, 2, 2]
    labels = run.predictions["task_03/labels"]
    guess = run.predictions["task_03/before_tuning"]
    old = [i for i in range(len(labels)) if labels[i] < 4]
    new = [i for i in range(len(labels)) if labels[i] >= 4]
    assert early["old"][1] == pytest.approx(100 * sum(guess[i] == labels[i] for i in old) / len(old))
    assert early["new"][1] == pytest.approx(100 * sum(guess[i] == labels[i] for i in new) / len(new))
    assert early["old_called_new"][1] == pytest.approx(100 * sum(guess[i] >= 4 for i in old) / len(old))
    assert Run.open(tmp_path / "run", run.whole_stream, progress=False).record.before_tuning == early
    assert run.record.other_predictions == {}
