"""What is learned on a frozen expert 1: linear probe, nearest class mean, random-projection ridge; by hand, resumed."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.methods.base import Method
from dne_lab.methods.trunk import SHARES, RanPAC, best_share, ridge
from dne_lab.training.run import Run

TASKS = (2, 1, 2)
METHODS = ("linear-probe", "ncm", "ranpac")
SMALL: dict[str, Any] = {
    "network__patch": 4, "network__depth": 2, "network__head_width": 4, "network__heads": "2,1", "learn__epochs": 1,
    "learn__batch": 4, "learn__lr": 0.01,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "linear-probe": {"memory__budget": 10, "tune__epochs": 1, "tune__batch": 4},
    "ranpac": {"options__random_features": 30},
}


def start(method: str, folder: Path | None = None, **changes: Any) -> Run:
    settings = SMALL | OWN.get(method, {}) | changes
    return lab.start(
        method, tiny.tiny_stream(TASKS, each=6), "authors-code", folder=folder, device="cpu", progress=False, **settings
    )


def learned(run: Run) -> tuple[Tensor, Tensor]:
    """Features in float64 and ranks of all training images."""
    index = run.stream.index("train", range(5))
    with torch.no_grad():
        return run.method.features(run.stream.images("train", index)).double(), run.stream.labels("train", index)


def scores(method: Method, images: Tensor) -> Tensor:
    with torch.no_grad():
        return method.predict(images)["classifier"]


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_ncm_is_the_nearest_mean_of_all_training_images() -> None:
    run = start("ncm")
    run.train()
    features, labels = learned(run)
    means = torch.stack([features[labels == rank].mean(0) for rank in range(5)])
    images = run.stream.test_images(12).images
    found = scores(run.method, images)
    with torch.no_grad():
        expected = F.cosine_similarity(run.method.features(images).double()[:, None], means[None], dim=2)
    assert torch.equal(found.argmax(1), expected.argmax(1))
    length = run.method.features(images).norm(dim=1, keepdim=True)
    assert tiny.difference(found / length, expected) < 1e-5


def test_ranpac_is_one_ridge_regression_on_all_images_however_they_came() -> None:
    run = start("ranpac")
    run.train()
    assert isinstance(run.method, RanPAC)
    features, labels = learned(run)
    h = (features @ run.model.classifier.projection.double()).relu()
    gram, moments = h.mT @ h, h.mT @ F.one_hot(labels, 5).double()
    share = float(run.method.share)
    penalty = share * torch.linalg.eigvalsh(gram).mean() * torch.eye(30, dtype=torch.float64)
    expected = torch.linalg.inv(gram + penalty) @ moments
    assert share in [torch.tensor(s).item() for s in SHARES]
    assert tiny.difference(run.model.classifier.weights[0], expected.mT) < 1e-3
    with torch.no_grad():
        images = run.stream.test_images(12).images
        hidden = (run.method.features(images) @ run.model.classifier.projection).relu()
        assert tiny.difference(scores(run.method, images), hidden.double() @ expected) < 1e-3


def test_lambda_is_that_which_predicts_held_out_images_best() -> None:
    generator = torch.Generator().manual_seed(0)
    h, held = (torch.randn(n, 12, generator=generator, dtype=torch.float64) for n in (15, 9))
    true = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    chosen = []
    for noise in (0.0, 3.0, 30.0):
        y, held_y = (x @ true + noise * torch.randn(len(x), 3, generator=generator).double() for x in (h, held))
        errors = {}
        for share in SHARES:
            w = ridge(h.mT @ h, h.mT @ y, share)
            errors[share] = float((held @ w - held_y).square().sum())
        found = best_share(h.mT @ h, h.mT @ y, held.mT @ held, held.mT @ held_y)
        assert found == min(errors, key=lambda share: errors[share])
        chosen.append(found)
    assert chosen[0] < chosen[-1]  # the noisier, the more damped


def test_the_linear_probe_learns_a_classifier_alone_after_task_1() -> None:
    run = start("linear-probe")
    run.next_task()
    before = {name: value.clone() for name, value in run.model.experts[0].state_dict().items()}
    run.train()
    after = run.model.experts[0].state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    first, *later = run.record.params["trainable_by_task"]
    assert first > 500 and later == [3 * (8 + 1), 5 * (8 + 1)]
    assert run.record.memory["stored"] == 10 and {row["stage"] for row in run.curves} == {"learn", "tune"}


@pytest.mark.parametrize("method", ["ncm", "ranpac"])
def test_nothing_trains_after_task_1_and_no_exemplar_is_kept(method: str) -> None:
    run = start(method)
    run.train()
    assert run.record.params["trainable_by_task"][1:] == [0, 0] and run.record.memory["stored"] == 0
    assert {row["task"] for row in run.curves} == {1} and run.record.flops_training


@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_after_every_step_ends_as_one_that_was_not(method: str, tmp_path: Path) -> None:
    whole = start(method, tmp_path / "whole")
    whole.train()
    for _ in range(100):
        again = start(method, tmp_path / "again")
        again.checkpoint_seconds = 0
        again.train(seconds=0)
        if again.finished:
            break
    assert again.finished and again.record.timing["resumed"] > 3
    state = again.method.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in whole.method.state_dict().items())
    assert again.record.accuracy == whole.record.accuracy and again.curves == whole.curves


@pytest.mark.parametrize("method", METHODS)
def test_it_is_what_it_was_after_each_task_and_goes_on_from_there(method: str, tmp_path: Path) -> None:
    run = start(method, tmp_path / "run")
    run.next_task()
    run.next_task()
    images = run.stream.test_images(6).images
    second = scores(run.method, images)
    run.train()
    assert torch.equal(scores(run.method_at(2), images), second)
    forked = run.fork(tmp_path / "fork", after=2)
    forked.train()
    assert torch.equal(scores(forked.method, images), scores(run.method, images))


def test_settings_that_change_nothing_are_told() -> None:
    for method, field in (("ncm", "k"), ("ncm", "tune.epochs"), ("ranpac", "memory.budget"), ("linear-probe", "k")):
        with pytest.raises(LabError, match=f"{method} does not use {field}"):
            start(method, **{field.replace(".", "__"): 3})
    with pytest.raises(LabError, match="random_features"):
        start("ranpac", options__random_features=0)
