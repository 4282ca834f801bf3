"""Batches from images that stay on the device are the batches that are fetched one by one."""

import functools
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch

from dne_lab.core import chance, config
from dne_lab.data.augment import AUGMENTATIONS
from dne_lab.training import feed as module
from dne_lab.training import run as run_module
from dne_lab.training.feed import Feed
from dne_lab.training.run import Run

CPU = torch.device("cpu")


def test_batches_are_the_same_wherever_the_images_are() -> None:
    stream, recipe = tiny.stream(), config.Recipe(augment=tuple(AUGMENTATIONS), batch=8)
    index = torch.tensor([40, 3, 17, 5, 60, 22])
    fetched, resident = (Feed(stream, index, recipe, CPU, resident=where) for where in (False, True))
    seen = []
    for epoch in range(2):
        key = (0, "augment", 1, "learn", epoch)
        with fetched.epoch(key), resident.epoch(key):
            for order in (index[[4, 0, 2]], index[[1, 5]]):
                one, other = fetched.batch(order), resident.batch(order)
                assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
                seen.append(other.images)
    assert not torch.equal(seen[0], seen[2])  # another epoch


def test_a_run_from_resident_images_learns_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small: dict[str, Any] = {
        "learn": {"epochs": 2, "batch": 8, "augment": ["crop", "flip", "randaugment"]},
        "tune": {"epochs": 1},
        "network": {"patch": 2, "depth": 2, "heads": [2, 1], "head_width": 4, "drop_path": 0.2},
    }
    for name, resident in (("fetched", False), ("resident", True)):
        monkeypatch.setattr(run_module, "Feed", functools.partial(Feed, resident=resident))
        Run(tiny.settings("dne", **small), tiny.stream(), tmp_path / name, device="cpu", progress=False).train()
    assert tiny.content(tmp_path / "fetched") == tiny.content(tmp_path / "resident")


def test_numbers_of_a_batch_that_was_named_are_taken_without_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.arange(10, 30)
    plain = chance.uniform((0, "depth"), images[[3, 8]], 2)
    monkeypatch.setattr(torch, "searchsorted", lambda *_: pytest.fail("a GPU would be waited for"))
    with chance.ahead(images) as ahead:
        index = images[[3, 8]]
        ahead.name(index, torch.tensor([3, 8]))
        assert torch.equal(chance.uniform((0, "depth"), index, 2), plain)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_keeps_the_images_where_they_fit_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, index = tiny.stream(), torch.arange(60)
    recipe = config.Recipe(augment=("crop", "flip", "randaugment"), batch=8)
    there, gpu = Feed(stream, index, recipe, CPU), torch.device("cuda")
    ours = Feed(stream, index, recipe, gpu)
    assert ours.resident and not there.resident
    with there.epoch((0, 1)), ours.epoch((0, 1)):
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = ours.batch(index[:8])
            depth = chance.uniform((0, "depth"), batch.index, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        plain = there.batch(index[:8])
        assert torch.equal(batch.labels.cpu(), plain.labels)
        assert ((batch.images.cpu().int() - plain.images.int()).abs() <= 1).all()  # interpolation rounds differently
        assert torch.equal(depth.cpu(), chance.uniform((0, "depth"), index[:8], 1))
    monkeypatch.setattr(module, "SHARE", 2**40)
    assert not Feed(stream, index, recipe, gpu).resident
