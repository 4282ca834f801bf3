"""iCaRL: nearest mean of exemplars on a hand-made set, both losses against loops, its stages and what it refuses."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from dne_lab.core import config
from dne_lab.core.config import Recipe
from dne_lab.core.errors import LabError
from dne_lab.data.memory import herd
from dne_lab.data.stream import Batch
from dne_lab.methods import create
from dne_lab.methods.icarl import ICaRL, class_means, nearness, original, soft_cross_entropy


def settings(**changes: Any) -> config.Config:
    tree = {"method": "icarl", "options": {"width": 2}, "memory": {"budget": 10}}
    return config.from_dict(tree).with_changes({name.replace("__", "."): value for name, value in changes.items()})


def method(**changes: Any) -> ICaRL:
    made = create(settings(**changes), tiny.tiny_stream())
    assert isinstance(made, ICaRL)
    return made


def test_herding_and_nearest_mean_on_a_hand_made_set() -> None:
    """Two classes on the unit circle (degrees): herding takes the image nearest to the mean, then what balances it."""
    degrees = {0: [0.0, 10.0, 20.0, 60.0], 1: [180.0, 170.0, 200.0, 190.0]}
    points = {
        rank: torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in values])
        for rank, values in degrees.items()
    }
    chosen = {rank: herd(features * 7, 2) for rank, features in points.items()}  # lengths do not count
    assert chosen[0][0] == 2  # the mean of class 0 points at 22 degrees: the image at 20 is nearest
    expected = {}
    for rank, features in points.items():  # the same by trying every image
        mean = features.mean(0)
        order: list[int] = []
        for k in (1, 2):
            left = [i for i in range(4) if i not in order]
            order.append(min(left, key=lambda i: float((mean - features[[*order, i]].sum(0) / k).norm())))
        expected[rank] = order
    assert {rank: order.tolist() for rank, order in chosen.items()} == expected
    units = torch.cat([points[rank][chosen[rank]] for rank in (0, 1)])
    means = class_means(units, torch.tensor([0, 0, 1, 1]), 2)
    torch.testing.assert_close(means.norm(dim=1), torch.ones(2))
    for rank in (0, 1):
        angle = sum(degrees[rank][i] for i in expected[rank]) / 2  # the mean of two directions lies between them
        got = math.degrees(math.atan2(float(means[rank, 1]), float(means[rank, 0]))) % 360
        assert got == pytest.approx(angle, abs=1e-3)
    queries = torch.tensor([[5.0, 1.0], [-1.0, 0.2], [0.1, -3.0]])
    scores = nearness(queries, means)
    for query, row in zip(queries, scores, strict=True):
        distances = [float((query / query.norm() - mean).norm()) for mean in means]
        assert int(row.argmax()) == distances.index(min(distances))
    assert scores.argmax(1).tolist()[:2] == [0, 1]


def test_distillation_is_a_soft_cross_entropy() -> None:
    torch.manual_seed(0)
    new, old = torch.randn(3, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    total = 0.0
    for a, b in zip(new.tolist(), old.tolist(), strict=True):
        wanted = [math.exp(v / 2) for v in b]
        given = [math.exp(v / 2) for v in a]
        total -= sum(w / sum(wanted) * math.log(g / sum(given)) for w, g in zip(wanted, given, strict=True))
    assert float(soft_cross_entropy(new, old, 2.0)) == pytest.approx(total / 3, abs=1e-12)


@pytest.mark.parametrize("with_old", [True, False])
def test_the_original_loss_is_a_binary_cross_entropy_to_old_outputs(with_old: bool) -> None:
    torch.manual_seed(1)
    logits, old = torch.randn(2, 5, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    labels = torch.tensor([4, 1])
    total = 0.0
    for image in range(2):
        for rank in range(5):
            wanted = float(labels[image] == rank)
            if with_old and rank < 3:
                wanted = 1 / (1 + math.exp(-float(old[image, rank])))
            p = 1 / (1 + math.exp(-float(logits[image, rank])))
            total -= wanted * math.log(p) + (1 - wanted) * math.log(1 - p)
    assert float(original(logits, labels, old if with_old else None)) == pytest.approx(total / 10, abs=1e-12)


def test_later_tasks_have_a_recipe_of_their_own_field_by_field() -> None:
    made = method(learn__epochs=9, options__later__epochs="4", options__later__milestones="1,2")
    first, second = (made.stages(task)[0].recipe for task in list(made.stream)[:2])
    assert isinstance(second, Recipe) and (first.epochs, second.epochs, second.milestones) == (9, 4, (1, 2))
    assert second.lr == first.lr and [stage.name for stage in made.stages(made.stream.task(3))] == ["learn"]


@pytest.mark.parametrize("mirrored", [True, False])
def test_mirror_images_count_where_they_are_trained_on(mirrored: bool) -> None:
    made = method(learn__augment="flip" if mirrored else "")
    task = made.stream.task(1)
    made.enter(task, made.stages(task)[0])
    batch = made.stream.batch("train", made.stream.index("train", task.new))

    def exemplars() -> Iterator[Batch]:
        yield batch

    made.eval()
    with torch.no_grad():
        made.finish(task, exemplars())
        sums: dict[int, Tensor] = {}
        for image, label in zip(batch.images, batch.labels.tolist(), strict=True):
            for seen in [image, image.flip(2)][: 1 + mirrored]:
                feature = made.features(seen[None])[0]
                sums[label] = sums.get(label, torch.zeros_like(feature)) + feature / feature.norm().clamp_min(1e-12)
        found = made.predict(batch.images)
    for rank, total in sums.items():
        assert tiny.difference(made.means[rank], total / total.norm()) < 1e-5
    assert list(found) == ["nme", "classifier"]
    unit = made.features(batch.images)
    nearest = torch.cdist(unit / unit.norm(dim=1, keepdim=True), made.means).argmin(1)
    assert torch.equal(found["nme"].argmax(1), nearest)


def test_the_losses_by_task() -> None:
    for loss, names in (("softmax", {"classification", "distillation"}), ("bce", {"classification"})):
        made = method(options__loss=loss)
        for task in list(made.stream)[:2]:
            made.enter(task, made.stages(task)[0])
            made.train()
            batch = made.stream.batch("train", made.stream.index("train", range(task.new.stop)))
            terms = made.losses(batch, task, made.stages(task)[0])
        assert terms.keys() == names
        assert made.teacher is not None and not made.teacher.training
        assert made.teacher.classifier.classes == 2 and made.model.classifier.classes == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options__loss": "ce"}, r"unknown options\.loss 'ce'.*Allowed: bce, softmax"),
        ({"options__network": "resnet20"}, r"unknown options\.network 'resnet20'.*resnet18"),
        ({"options__width": 0}, r"options\.width = 0: must be at least 1"),
        ({"options__size": 3}, r"unknown field 'options\.size'"),
        ({"options__later__epochs": -1}, r"options\.later\.epochs = -1: must be at least 0"),
        ({"options__later__epoch": 1}, r"unknown field 'options\.later\.epoch'\. Did you mean options\.later\.epochs"),
        ({"options__later": 3}, r"options\.later = 3: must be a dictionary"),
        ({"options__network": "resnet18-224"}, r"resnet18-224 needs images of at least 32 x 32 pixels"),
        ({"memory__budget": 0}, r"memory\.budget = 0 is smaller than the number of classes"),
    ],
)
def test_what_is_refused_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        method(**changes)
