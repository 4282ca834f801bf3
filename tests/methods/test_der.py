"""DER: stages and their rates, features, what stays still, both classifiers' terms by hand, and what it refuses."""

import math
from typing import Any

import pytest
import tiny
import torch
from torch import nn

from dne_lab.core import config
from dne_lab.core.errors import LabError
from dne_lab.core.presets import resolve
from dne_lab.measure import cost
from dne_lab.methods import create
from dne_lab.methods.der import DER
from dne_lab.training.run import Run

LEARN = {"epochs": 17, "warmup": 1, "schedule": "milestones", "milestones": [11, 13], "lr": 0.1, "optimizer": "sgd"}


def method(tasks: tuple[int, ...] = (2, 1, 2), each: int = 4, **changes: Any) -> DER:
    tree = {"method": "der", "options": {"width": 2}, "memory": {"budget": 10}, "learn": LEARN}
    made = config.from_dict(tree).with_changes({name.replace("__", "."): value for name, value in changes.items()})
    found = create(made, tiny.tiny_stream(tasks, each=each))
    assert isinstance(found, DER)
    return found


def entered(made: DER, tasks: int, stages: int = 9) -> Any:
    """The method after so many tasks, the last one entered for its first ``stages`` stages."""
    for task in list(made.stream)[:tasks]:
        for stage in made.stages(task)[: stages if task.number == tasks else 9]:
            made.enter(task, stage)
    return made.stream.task(tasks)


def test_warm_up_and_the_rest_are_one_schedule() -> None:
    made = method()
    warm, learn = made.stages(made.stream.task(1))
    assert [s.name for s in made.stages(made.stream.task(2))] == ["warm-up", "learn", "tune"]
    assert (warm.recipe.epochs, learn.recipe.epochs, learn.keep_optimizer) == (1, 16, True)
    whole = made.config.learn
    for epoch in range(17):
        part = warm.recipe.rate(epoch) if epoch < 1 else learn.recipe.rate(epoch - 1)
        assert part == pytest.approx(whole.rate(epoch))
    plain = method(options__reset=False)
    assert [s.name for s in plain.stages(plain.stream.task(2))] == ["learn", "tune"]
    assert plain.stages(plain.stream.task(1))[0].recipe == whole


def test_the_published_recipe() -> None:
    made = method(tasks=(2, 1))
    published = resolve("cifar100-b50-10,der-published", method="der")
    assert published.learn.rate(0) == 0 and published.learn.rate(10) == 0.1
    assert [round(published.learn.rate(e), 6) for e in (109, 110, 129, 130, 169)] == [0.1, 0.01, 0.01, 0.001, 0.001]
    assert (published.memory.policy, published.tune.epochs, made.options.temperature) == ("fixed", 30, 5.0)


def test_classifiers_start_again_while_encoders_and_momentum_go_on() -> None:
    """In the loop: a stage as the last step of the one before left it, and as it begins."""
    sgd = {"optimizer": "sgd", "batch": 4}
    learn, tune = LEARN | sgd | {"epochs": 2, "milestones": []}, sgd | {"epochs": 1, "lr": 0.1}
    tree = {"method": "der", "options": {"width": 2}, "memory": {"budget": 10}, "learn": learn, "tune": tune}
    data = {"name": "arrays", "tasks": [2, 1]}
    run = Run(config.from_dict(tree | {"data": data}), tiny.tiny_stream((2, 1)), device="cpu", progress=False)
    found: dict[tuple[int, int], list[dict[str, torch.Tensor]]] = {}
    while not run.finished:
        run.train(seconds=0)  # the begin of a stage, or one step
        if run.state.position.begun:
            assert run.state.optimisation is not None
            now = {**run.model.state_dict(), **run.state.optimisation.state()}
            found.setdefault(run.cursor[:2], []).append({name: value.clone() for name, value in now.items()})
    assert list(found) == [(1, 0), (1, 1), (2, 0), (2, 1), (2, 2)]
    for task, stage in ((1, 1), (2, 1), (2, 2)):
        before, begun = found[task, stage - 1][-1], found[task, stage][0]
        momentum = {name for name in before if name.startswith("momentum_buffer:")}
        classifiers = {"classifier.weight", "auxiliary.weight"} & before.keys()
        assert len(classifiers) == task
        assert {name for name in before.keys() - momentum if not torch.equal(before[name], begun[name])} == classifiers
        moving = {name.removeprefix("momentum_buffer:model.") for name in momentum if before[name].any()}
        assert classifiers < moving
        if stage == 1:
            assert all(torch.equal(before[name], begun[name]) for name in momentum)
        else:  # "tune"
            assert not begun.keys() & momentum


def test_features_grow_by_a_network_a_task_that_starts_as_a_copy() -> None:
    made = method()
    entered(made, 3)
    assert made.model.classifier.weight.shape == (5, 3 * 16) and made.model.classifier.bias is None
    assert made.model.auxiliary.weight.shape == (3, 16)  # two new classes and one for all old ones
    images = tiny.images(3, made.stream.shape)
    made.eval()
    with torch.no_grad():
        features = made.features(images)
        assert features.shape == (3, 48) and torch.equal(made.model.old_features(images), features[:, :32])
        for part, encoder in zip(features.split(16, 1), made.model.encoders, strict=True):
            assert torch.equal(part, encoder(images).features)
        assert torch.equal(features[:, :16], features[:, 16:32])  # nothing has trained since it was copied
    old, new = (list(made.model.encoders[n].parameters()) for n in (1, 2))
    assert all(a is not b for a, b in zip(old, new, strict=True))


def test_old_networks_do_not_move_when_the_newest_trains() -> None:
    """Parameters, and the running statistics of their batch norms; the newest one's move."""
    made = method(learn__warmup=0)
    task = entered(made, 2, stages=1)
    before = {name: value.clone() for name, value in made.model.encoders.state_dict().items()}
    made.train()
    batch = made.stream.batch("train", made.stream.index("train", range(3)))
    optimizer = torch.optim.SGD(made.parameters_to_train().values(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        torch.stack(list(made.losses(batch, task, made.stages(task)[0]).values())).sum().backward()
        optimizer.step()
    moved = {name for name, value in made.model.encoders.state_dict().items() if not torch.equal(value, before[name])}
    assert all(name.startswith("1.") for name in moved)
    assert {"1.bn1.running_mean", "1.bn1.running_var", "1.conv1.weight"} <= moved
    norms = [m for m in made.model.encoders[0].modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms and not any(m.training for m in norms)


def test_the_terms_by_hand() -> None:
    made = method(learn__warmup=0)
    task = entered(made, 2, stages=1)
    made.eval()
    batch = made.stream.batch("train", made.stream.index("train", range(3)))
    with torch.no_grad():
        terms = made.losses(batch, task, made.stages(task)[0])
        logits = (made.features(batch.images) @ made.model.classifier.weight.T).tolist()
        newest = (made.model.encoders[1](batch.images).features @ made.model.auxiliary.weight.T).tolist()
    labels = batch.labels.tolist()
    assert set(labels) == {0, 1, 2}

    def entropy(rows: list[list[float]], wanted: list[int]) -> float:
        losses = [math.log(sum(math.exp(v) for v in row)) - row[label] for row, label in zip(rows, wanted, strict=True)]
        return sum(losses) / len(losses)

    assert float(terms["classification"]) == pytest.approx(entropy(logits, labels), rel=1e-5)
    assert float(terms["auxiliary"]) == pytest.approx(entropy(newest, [max(0, y - 1) for y in labels]), rel=1e-5)
    tune = made.stages(task)[-1]
    made.enter(task, tune)
    assert set(made.parameters_to_train()) == {"model.classifier.weight"}
    with torch.no_grad():
        terms = made.losses(batch, task, tune)
        logits = (made.features(batch.images) @ made.model.classifier.weight.T / 5).tolist()
    assert terms.keys() == {"classification"}
    assert float(terms["classification"]) == pytest.approx(entropy(logits, labels), rel=1e-5)


@pytest.mark.parametrize("stage", [0, 1])
def test_what_is_computed_once_is_what_each_step_would_compute(stage: int) -> None:
    made = method(learn__warmup=0)
    task = entered(made, 2, stages=stage + 1)
    made.eval()
    index = made.stream.index("train", range(3))
    with torch.no_grad():
        batch = made.stream.batch("train", index.flip(0))
        plain = made.losses(batch, task, made.stages(task)[stage])
        made.prepare(task, made.stages(task)[stage], iter([made.stream.batch("train", index)]))
        assert made._cached is not None and made._cached(made._cached.numbers).shape == (len(index), 16 * (1 + stage))
        kept = made.losses(batch, task, made.stages(task)[stage])
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learn__warmup": 1.5}, r"learn\.warmup = 1\.5: der resets its classifiers after the warm-up"),
        ({"learn__warmup": 17}, r"below learn\.epochs = 17"),
        ({"options__temperature": 0}, r"options\.temperature = 0: must be above 0"),
        ({"options__reset": "maybe"}, r"options\.reset = 'maybe'"),
        ({"memory__budget": 0}, r"memory\.budget = 0 is smaller than the number of classes"),
    ],
)
def test_what_is_refused_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        method(**changes)


@pytest.mark.parametrize(("tasks", "giga"), [([50, 25, 25], 3.33), ([50, *[10] * 5], 6.67), ([50, *[5] * 10], 12.22)])
def test_its_cost_is_that_of_a_network_a_task(tasks: list[int], giga: float) -> None:
    with torch.device("meta"):  # counted, not computed
        made = create(resolve("cifar100-b50-10", method="der"), cost.blank_stream(tasks))
        for task in made.stream:
            made.enter(task, made.stages(task)[0])
        found = cost.of_task(made)
    assert found["flops_literal"] == found["flops_spent"]
    assert found["flops_spent"] / 1e9 == pytest.approx(giga, rel=0.01)
