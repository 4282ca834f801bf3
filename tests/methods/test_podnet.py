"""PODNet: the two distillations and the loss against loops, imprinted proxies, its stages and what it refuses."""

import math
from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional as F

from dne_lab.core import config
from dne_lab.core.errors import LabError
from dne_lab.methods import create
from dne_lab.methods.base import configure
from dne_lab.methods.podnet import PODNet, k_means, nca, nca_code, pod_flat, pod_spatial, pooled


def method(tasks: tuple[int, ...] = (2, 1, 2), each: int = 4, **changes: Any) -> PODNet:
    tree = {"method": "podnet", "options": {"width": 2, "proxies": 3}, "memory": {"budget": 10}}
    made = config.from_dict(tree).with_changes({name.replace("__", "."): value for name, value in changes.items()})
    found = create(made, tiny.tiny_stream(tasks, each=each))
    assert isinstance(found, PODNet)
    return found


def test_pooled_maps_by_hand() -> None:
    """One channel of 2 x 2: rows (1, 2), (3, 0): squares summed by row 5, 9; by column 10, 4; divided by the length."""
    maps = torch.tensor([[[[1.0, -2.0], [3.0, 0.0]]]])
    length = math.sqrt(5**2 + 9**2 + 10**2 + 4**2)
    torch.testing.assert_close(pooled(maps), torch.tensor([[5.0, 9.0, 10.0, 4.0]]) / length)


def test_pod_distances_are_those_of_loops() -> None:
    torch.manual_seed(0)
    new = [torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 2, 3, 2, dtype=torch.float64)]
    old = [torch.randn_like(maps) for maps in new]
    total = 0.0
    for a, b in zip(new, old, strict=True):
        for image in range(2):
            vectors = []
            for maps in (a[image], b[image]):
                channels, height, width = maps.shape
                values = [
                    sum(float(maps[c, i, j]) ** 2 for j in range(width)) for c in range(channels) for i in range(height)
                ]
                values += [
                    sum(float(maps[c, i, j]) ** 2 for i in range(height)) for c in range(channels) for j in range(width)
                ]
                length = math.sqrt(sum(v * v for v in values))
                vectors.append([v / length for v in values])
            total += math.sqrt(sum((x - y) ** 2 for x, y in zip(*vectors, strict=True))) / 2 / 2
    assert float(pod_spatial(new, old)) == pytest.approx(total, abs=1e-6)  # pooled in float32
    a, b = torch.randn(3, 5), torch.randn(3, 5)
    cosines = [float(x @ y / x.norm() / y.norm()) for x, y in zip(a, b, strict=True)]
    assert float(pod_flat(a, b)) == pytest.approx(1 - sum(cosines) / 3, abs=1e-6)
    assert float(pod_spatial(new, new)) == 0


@pytest.mark.parametrize("margin", [0.0, 0.6])
def test_the_loss_leaves_the_positive_out_of_the_sum(margin: float) -> None:
    torch.manual_seed(1)
    scores, labels, scale = (
        -4 * torch.rand(6, 4, dtype=torch.float64),
        torch.tensor([0, 3, 1, 1, 2, 0]),
        torch.tensor(2.5),
    )
    total = 0.0
    for row, label in zip(scores.tolist(), labels.tolist(), strict=True):
        others = sum(math.exp(2.5 * s) for rank, s in enumerate(row) if rank != label)
        total += max(0.0, -math.log(math.exp(2.5 * row[label] - margin) / others))
    assert float(nca(scores, labels, scale, margin)) == pytest.approx(total / 6, abs=1e-9)
    easy = torch.tensor([[0.0, -4.0], [-4.0, 0.0]])
    assert float(nca(easy, torch.tensor([0, 1]), torch.tensor(1.0), margin)) == 0


def ahead() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (32, 7) and labels: the true class 0.5 ahead of the next one."""
    torch.manual_seed(2)
    scores, labels = 0.3 * torch.rand(32, 7, dtype=torch.float64), torch.randint(0, 7, (32,))
    others = scores.masked_fill(F.one_hot(labels, 7).bool(), -math.inf)
    scores[torch.arange(32), labels] = others.amax(1) + 0.5
    return scores.requires_grad_(), labels


def test_the_loss_of_the_authors_code_goes_on_pulling_where_the_hinge_has_stopped() -> None:
    scale = torch.tensor(10.0, dtype=torch.float64)
    for loss, expected, length in ((nca_code, 0.01867, 0.0372), (lambda *a: nca(*a, 0.6), 0, 0)):
        scores, labels = ahead()
        value = loss(scores, labels, scale)
        value.backward()
        assert scores.grad is not None
        assert float(value.detach()) == pytest.approx(expected, abs=1e-4)
        assert float(scores.grad.norm()) == pytest.approx(length, abs=1e-4)
    scores, labels = ahead()
    torch.testing.assert_close(nca_code(scores, labels, scale), F.cross_entropy(scale * scores, labels))


def test_the_loss_of_the_authors_code_is_that_of_a_loop_over_their_lines() -> None:
    torch.manual_seed(1)
    scores, labels, margin = -4 * torch.rand(6, 4, dtype=torch.float64), [0, 3, 1, 1, 2, 0], 0.6
    total = 0.0
    for row, label in zip(scores.tolist(), labels, strict=True):
        z = [2.5 * (s - margin) for s in row]
        z = [value - max(z) for value in z]
        total += math.log(sum(math.exp(0.0 if rank == label else value) for rank, value in enumerate(z))) - z[label]
    found = nca_code(scores, torch.tensor(labels), torch.tensor(2.5, dtype=torch.float64))
    assert float(found) == pytest.approx(total / 6, abs=1e-12)


def test_with_the_authors_loss_stage_2_trains_proxies_alone_and_batch_norm_goes_on() -> None:
    made = method(options__loss="code")
    task = made.stream.task(1)
    made.enter(task, made.stages(task)[0])
    task = made.stream.task(2)
    learn, tune = made.stages(task)
    made.enter(task, learn)
    made.train()
    assert "model.classifier.scale" in made.parameters_to_train()
    assert made.teacher is not None and not any(module.training for module in made.teacher.modules())
    made.enter(task, tune)
    made.train()
    assert set(made.parameters_to_train()) == {"model.classifier.tasks.0", "model.classifier.tasks.1"}
    norms = [module for module in made.model.encoder.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert norms and all(norm.training for norm in norms)
    made.eval()
    assert not any(norm.training for norm in norms)


def test_the_published_recipe_has_the_authors_loss_and_older_runs_the_papers() -> None:
    assert configure("podnet", "cifar100-b50-10,published").options == {"loss": "code"}
    assert method().options.loss == "hinge"


def test_before_anything_is_learned_the_scale_is_not_pushed_down() -> None:
    """With the margin outside the scale; inside, its gradient is the margin, and the scale's sign turns over."""
    scale = torch.ones((), requires_grad=True)
    nca(torch.full((4, 5), -2.0), torch.tensor([0, 1, 2, 3]), scale, 0.6).backward()
    assert scale.grad is not None and abs(float(scale.grad)) < 1e-6


def test_new_proxies_are_cluster_centres_as_long_as_the_old_ones() -> None:
    made = method(each=7)
    stages = [made.stages(task)[0] for task in made.stream]
    first, second = made.stream.task(1), made.stream.task(2)
    made.enter(first, stages[0])
    random = made.model.classifier.tasks[0].clone()
    made.eval()
    with torch.no_grad():
        made.initialise(first, stages[0], iter([]))  # task 1 starts at random
        assert torch.equal(made.model.classifier.tasks[0], random)
        made.enter(second, stages[1])
        batch = made.stream.batch("train", made.stream.index("train", range(3)))
        torch.manual_seed(4)
        made.initialise(second, stages[1], iter([batch]))
        features = F.normalize(made.features(batch.images))[batch.labels == 2]
        torch.manual_seed(4)
        expected = k_means(features, 3) * random.flatten(0, 1).norm(dim=1).mean()
    torch.testing.assert_close(made.model.classifier.tasks[1][0], expected)
    assert torch.equal(made.model.classifier.tasks[0], random)


def test_stages_terms_and_what_trains() -> None:
    made = method()
    for task in list(made.stream)[:2]:
        for stage in made.stages(task):
            made.enter(task, stage)
            made.train()
            trained = set(made.parameters_to_train())
            new = f"model.classifier.tasks.{task.number - 1}"
            proxies = {name for name in trained if "classifier.tasks" in name}
            batch = made.stream.batch("train", made.stream.index("train", range(task.new.stop)))
            terms = made.losses(batch, task, stage)
            if stage.name == "tune":
                assert trained == {"model.classifier.scale", "model.classifier.tasks.0", new}
                assert not made.model.encoder.training and terms.keys() == {"nca"}
            else:
                assert proxies == {new} and "model.classifier.scale" in trained and made.model.encoder.training
                assert terms.keys() == ({"nca", "pod_spatial", "pod_flat"} if task.old else {"nca"})
    # the more classes are old, the more the distillations weigh: sqrt(seen / new), seen with the new ones
    task, stage = made.stream.task(3), made.stages(made.stream.task(3))[0]
    made.enter(task, stage)
    made.eval()
    batch = made.stream.batch("train", made.stream.index("train", range(5)))
    with torch.no_grad():
        for part in made.model.encoder.parameters():
            part.sub_(0.1)
        terms = made.losses(batch, task, stage)
        features, maps = made.model.encoder(batch.images)
        assert made.teacher is not None
        old_features, old_maps = made.teacher(batch.images)
    factor = math.sqrt(5 / 2)
    assert float(terms["pod_spatial"]) == pytest.approx(3 * factor * float(pod_spatial(maps, old_maps)))
    assert float(terms["pod_flat"]) == pytest.approx(factor * float(pod_flat(features, old_features)))
    assert [tuple(m.shape[1:]) for m in maps] == [(2, 8, 12), (4, 4, 6), (8, 2, 3), (16, 1, 2)]
    assert torch.equal(features, maps[-1].mean((2, 3))) and bool((features < 0).any())  # before the ReLU


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": (1, 2, 2)}, r"data\.tasks = \(1, 2, 2\): podnet tells classes from each other"),
        ({"options__proxies": 0}, r"options\.proxies = 0: must be at least 1"),
        ({"options__loss": "nca"}, r"unknown options\.loss 'nca'\. Allowed: code, hinge"),
        ({"options__margin": -1}, r"options\.margin = -1: must be at least 0"),
        ({"options__spatial": "nan"}, r"options\.spatial = nan: must be at least 0"),
        ({"options__margins": 1}, r"unknown field 'options\.margins'\. Did you mean options\.margin"),
    ],
)
def test_what_is_refused_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        method(**changes)
