"""Training on images of 224 pixels from files: decoded one batch ahead, memory flat, on every kind of network."""

import gc
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.data.image_folder import FolderSource
from dne_lab.data.stream import ClassStream
from dne_lab.training.feed import clean
from dne_lab.training.run import Run

SIDE, TASKS, EACH, TESTED = 224, (2, 1), 10, 4
TRANSFORMER: dict[str, Any] = {
    "preset": "paper-text", "network__patch": 16, "network__depth": 2, "network__head_width": 16,
    "network__heads": "2,1", "learn__epochs": 8, "learn__lr": 5e-3, "learn__batch": 4, "tune__epochs": 1,
    "memory__budget": 9, "learn__augment": "crop,flip",
}  # fmt: skip
RESIDUAL: dict[str, Any] = {
    "preset": "resnet-imagenet", "options__width": 16, "learn__epochs": 4, "learn__batch": 5, "learn__lr": 1e-2,
    "tune__epochs": 1, "memory__budget": 9, "learn__augment": "flip",
}  # fmt: skip


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Crops of scikit-learn's two photographs, larger than what is learned: two parts of one, one of the other."""
    root, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    china, flower = load_sample_images().images
    for split, count in (("train", EACH), ("test", TESTED)):
        for name, photo, start in (("sky", china, 0), ("petals", flower, 150), ("roof", china, 160)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                top = start + int(rng.integers(0, 20))
                left = int(rng.integers(0, 380))
                Image.fromarray(photo[top : top + 240, left : left + 256]).save(folder / f"{number}.jpg")
    return root


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def stream(photographs: Path) -> ClassStream:
    return ClassStream(FolderSource(photographs, SIDE, keep=0), TASKS, order="identity")


def start(method: str, photographs: Path, folder: Path | None = None, **settings: Any) -> Run:
    return lab.start(method, stream(photographs), folder=folder, device="cpu", progress=False, **settings)


@pytest.mark.parametrize(("method", "settings"), [("dne", TRANSFORMER), ("replay-resnet", RESIDUAL)])
def test_it_learns_from_files(method: str, settings: dict[str, Any], photographs: Path, tmp_path: Path) -> None:
    run = start(method, photographs, tmp_path / "run", **settings)
    run.train()
    first = [row["classification"] for row in run.curves if row["task"] == 1]
    assert first[-1] < first[0] and run.record.seen_accuracy[0] >= 75 and run.record.memory["stored"] == 9
    again = lab.open(tmp_path / "run", stream(photographs), progress=False)
    images = run.stream.test_images(3).images
    assert images.shape == (3, 3, SIDE, SIDE)
    with torch.no_grad():
        assert torch.equal(again.method.predict(images)["classifier"], run.method.predict(images)["classifier"])


@pytest.mark.parametrize("method", ["dne", "ranpac"])
def test_small_experts_and_a_ridge_on_a_backbone_of_its_real_size(method: str, photographs: Path) -> None:
    pytest.importorskip("timm", reason='needs timm: pip install "dne-lab[timm]"')
    from timm.models import create_model

    settings = {name: value for name, value in TRANSFORMER.items() if not name.startswith("network")}
    if method == "ranpac":
        settings = {"preset": "paper-text", "options__random_features": 100}
    backbone = {"network__backbone": "timm:vit_tiny_patch16_224", "network__backbone_weights": "random"}
    run = start(method, photographs, **{**settings, **backbone, **({"learn__epochs": 1} if method == "dne" else {})})
    run.train()
    of_timm = sum(p.numel() for p in create_model("vit_tiny_patch16_224", num_classes=0).parameters())
    # without biases of keys and values, and the position of the class token
    assert run.record.params["backbone"] == of_timm - 12 * 2 * 192 - 192
    assert run.record.finished and len(run.record.seen_accuracy) == 2
    with pytest.raises(LabError, match="takes images of 3 x 224 x 224"):
        source = FolderSource(photographs, 96, keep=0)
        lab.start(method, ClassStream(source, TASKS, order="identity"), progress=False, **settings, **backbone)


class Counting(FolderSource):
    """Knows how many of its decoded batches are still somewhere in memory, and which thread decoded them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, 32, keep=0)
        self.alive: list[weakref.ref[Tensor]] = []
        self.most, self.threads = 0, set[str]()

    def images(self, split: str, index: Tensor) -> Tensor:
        gc.collect()
        self.most = max(self.most, sum(one() is not None for one in self.alive))
        found = super().images(split, index)
        self.alive.append(weakref.ref(found))
        self.threads.add(threading.current_thread().name)
        return found


def test_a_batch_is_decoded_ahead_and_no_more_than_that_stays_in_memory(photographs: Path) -> None:
    source = Counting(photographs)
    settings = TRANSFORMER | {"network__patch": 8, "learn__epochs": 2, "learn__batch": 3}
    run = lab.start("dne", ClassStream(source, TASKS, order="identity"), device="cpu", progress=False, **settings)
    run.train()
    assert len(source.alive) > 30 and source.most <= 2 and len(source.threads) > 1
    assert not any(one() is not None for one in source.alive)


def test_what_is_decoded_ahead_is_what_would_have_been_decoded(
    photographs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def learned() -> dict[str, Tensor]:
        settings = TRANSFORMER | {"network__patch": 8, "learn__epochs": 2}
        source = FolderSource(photographs, 32, keep=0)
        run = lab.start("dne", ClassStream(source, TASKS, order="identity"), device="cpu", progress=False, **settings)
        run.train()
        return run.method.state_dict()

    ahead = learned()
    monkeypatch.setattr(FolderSource, "from_files", False)
    assert all(torch.equal(value, ahead[name]) for name, value in learned().items())


def test_a_file_that_cannot_be_decoded_ends_the_run_by_name(photographs: Path, tmp_path: Path) -> None:
    import shutil

    root = tmp_path / "damaged"
    shutil.copytree(photographs, root)
    source = FolderSource(root, 32, keep=0)
    bad = root / "train" / "petals" / "7.jpg"
    bad.write_bytes(bad.read_bytes()[:300])
    index = torch.arange(2 * EACH)
    with pytest.raises(LabError, match=r"7\.jpg"):
        list(clean(ClassStream(source, TASKS, order="identity"), "train", index, torch.device("cpu")))
