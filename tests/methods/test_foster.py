"""FOSTER: effective numbers by hand, both stages' terms by loops, what grows and trains, sizes, what it refuses."""

import itertools
import math
from typing import Any

import pytest
import tiny
import torch

from dne_lab.core import config
from dne_lab.core.errors import LabError
from dne_lab.core.presets import resolve
from dne_lab.measure import cost
from dne_lab.methods import create
from dne_lab.methods.foster import FOSTER, balanced_distillation, class_weights


def method(tasks: tuple[int, ...] = (2, 1, 2), each: int = 4, **changes: Any) -> FOSTER:
    tree = {"method": "foster", "options": {"width": 2}, "memory": {"budget": 10}}
    made = config.from_dict(tree).with_changes({name.replace("__", "."): value for name, value in changes.items()})
    found = create(made, tiny.tiny_stream(tasks, each=each))
    assert isinstance(found, FOSTER)
    return found


def boosting(made: FOSTER) -> tuple[Any, Any, Any]:
    """Task 2, its first stage entered and initialised with its images, and a batch of them."""
    first, second = made.stream.task(1), made.stream.task(2)
    made.enter(first, made.stages(first)[0])
    stage = made.stages(second)[0]
    made.enter(second, stage)
    batch = made.stream.batch("train", made.stream.index("train", range(3))[1:])  # one image of class 0 less
    with torch.no_grad():
        made.eval().initialise(second, stage, iter([batch]))
    return second, stage, batch


def entropy(rows: list[list[float]], targets: list[list[float]]) -> float:
    total = 0.0
    for row, target in zip(rows, targets, strict=True):
        norm = math.log(sum(math.exp(v) for v in row))
        total -= sum(p * (v - norm) for v, p in zip(row, target, strict=True))
    return total / len(rows)


def softened(row: list[float]) -> list[float]:
    powers = [math.exp(v / 2) for v in row]
    return [p / sum(powers) for p in powers]


def test_weights_by_hand() -> None:
    """b = 1/2: effective numbers of 1, 2 and 3 images are 1, 3/2 and 7/4."""
    expected = torch.tensor([1, 2 / 3, 4 / 7]) / ((1 + 2 / 3 + 4 / 7) / 3)
    torch.testing.assert_close(class_weights(torch.tensor([1.0, 2.0, 3.0]), 0.5), expected)


def test_how_weights_align_logits() -> None:
    made = {name: method(options__weights=name) for name in ("divide", "multiply", "none")}
    for one in made.values():
        boosting(one)
        assert one.counts.tolist() == [3, 4, 4]
    weights = made["divide"].weights(0.94)
    assert weights[0] > weights[1] and float(weights.mean()) == pytest.approx(1)
    torch.testing.assert_close(made["divide"].alignment(), 1 / weights)
    effective = (1 - 0.94 ** torch.tensor([3.0, 4.0, 4.0])) / 0.06
    torch.testing.assert_close(made["multiply"].alignment(), effective / effective.mean())
    assert made["none"].alignment().tolist() == [1, 1, 1]


def test_the_terms_of_boosting_by_loops() -> None:
    made = method()
    task, stage, batch = boosting(made)
    teacher = made.teacher
    assert teacher is not None
    with torch.no_grad():
        for parameter in teacher.branch.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        torch.nn.init.normal_(teacher.classifier.weights[1])
        terms = made.losses(batch, task, stage)
        old, new = teacher.features(batch.images)
        logits = teacher.classifier([old, new]).tolist()
        branch = teacher.branch(batch.images).tolist()
        wanted = teacher.old(batch.images).tolist()
    weights = made.weights(0.94).tolist()
    hot = [[float(rank == label) for rank in range(3)] for label in batch.labels.tolist()]
    aligned = [[v / w for v, w in zip(row, weights, strict=True)] for row in logits]
    halves = [[v / 2 for v in row[:2]] for row in logits]
    assert float(terms["classification"]) == pytest.approx(entropy(aligned, hot), rel=1e-5)
    assert float(terms["branch"]) == pytest.approx(entropy(branch, hot), rel=1e-5)
    assert float(terms["distillation"]) == pytest.approx(entropy(halves, [softened(r) for r in wanted]), rel=1e-5)
    assert terms.keys() == {"classification", "branch", "distillation"}


def test_the_term_of_compression_by_loops() -> None:
    torch.manual_seed(0)
    student, teacher, weights = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([1.5, 0.9, 0.6])
    targets = []
    for row in teacher.tolist():
        weighted = [p * w for p, w in zip(softened(row), weights.tolist(), strict=True)]
        targets.append([p / sum(weighted) for p in weighted])
    halves = [[v / 2 for v in row] for row in student.tolist()]
    assert float(balanced_distillation(student, teacher, weights)) == pytest.approx(entropy(halves, targets), rel=1e-5)


def test_each_stage_weights_classes_by_its_own_beta() -> None:
    made = method(options__boost_beta=0.5, options__compress_beta=0.9)
    task, boost, batch = boosting(made)
    made.counts.copy_(torch.tensor([1.0, 5.0, 20.0]))
    assert made.teacher is not None
    uneven = torch.tensor([2.0, 0.0, -2.0])  # a flat softmax would hide the weights
    hot = [[float(rank == label) for rank in range(3)] for label in batch.labels.tolist()]
    with torch.no_grad():
        made.teacher.classifier.bias.copy_(uneven)
        logits = made.teacher(batch.images)
        found = made.losses(batch, task, boost)["classification"]
        aligned = {b: entropy((logits / class_weights(made.counts, b)).tolist(), hot) for b in (0.5, 0.9, 0.94, 0.97)}
        assert float(found) == pytest.approx(aligned[0.5], rel=1e-5)
        compress = made.stages(task)[1]
        made.enter(task, compress)
        made.model.classifier.bias.copy_(uneven)
        found, student = made.losses(batch, task, compress)["compression"], made.model(batch.images)
        wanted = made.teacher(batch.images)
        balanced = {b: float(balanced_distillation(student, wanted, class_weights(made.counts, b))) for b in aligned}
        assert float(found) == pytest.approx(balanced[0.9], rel=1e-5)
    for values, beta in ((aligned, 0.5), (balanced, 0.9)):  # neither the other's nor a default
        assert all(abs(value / values[beta] - 1) > 1e-3 for b, value in values.items() if b != beta)


def test_what_grows_and_what_trains() -> None:
    made = method()
    images = tiny.images(3, made.stream.shape)
    assert [s.name for s in made.stages(made.stream.task(1))] == ["learn"]
    task, _, _ = boosting(made)
    assert made.teacher is not None
    trained = set(made.parameters_to_train())
    assert all(name.startswith(("teacher.branch", "teacher.classifier")) for name in trained)
    assert not any(p.requires_grad for p in made.teacher.old.parameters())
    made.eval()
    with torch.no_grad():  # old weights are kept: before boosting, old logits are the student's
        torch.testing.assert_close(made.teacher(images)[:, :2], made.predict(images)["student"])
        assert made.features(images).shape == (3, 32)
    before = {name: value.clone() for name, value in made.model.named_parameters()}
    compress = made.stages(task)[1]
    made.enter(task, compress)
    assert all(name.startswith("model.") for name in made.parameters_to_train())
    assert compress.name == "compress" and made.model.classifier.classes == 3
    assert torch.equal(made.model.classifier.weights[0][:2], before["classifier.weights.0"])
    assert torch.equal(made.model.encoder.conv1.weight, before["encoder.conv1.weight"])
    assert list(made.eval().predict(images)) == ["student", "teacher"]


def test_the_finished_model_is_one_network_and_costs_what_one_costs() -> None:
    tree = {"method": "foster", "options": {"width": 8}}
    rows = cost.of_tasks(config.from_dict(tree), cost.blank_stream([5, 2, 2], (3, 8, 8)))
    assert [row["params_added"] for row in rows[1:]] == [2 * (64 + 1)] * 2  # rows of the classifier
    growth = [b["flops_spent"] - a["flops_spent"] for a, b in itertools.pairwise(rows)]
    assert growth == [2 * 2 * 64] * 2


def test_its_cost_stays_that_of_one_network() -> None:
    with torch.device("meta"):  # counted, not computed
        made = resolve("cifar100-b50-10", method="foster")
        rows = cost.of_tasks(made, cost.blank_stream([50, *[10] * 5]))
    for tasks in (1, 2, 6):
        assert rows[tasks - 1]["flops_literal"] == rows[tasks - 1]["flops_spent"]
        assert rows[tasks - 1]["flops_spent"] / 1e9 == pytest.approx(1.111, rel=0.01)


@pytest.mark.parametrize("stage", [0, 1])
def test_what_is_computed_once_is_what_each_step_would_compute(stage: int) -> None:
    made = method()
    task, _, batch = boosting(made)
    if stage == 1:
        made.enter(task, made.stages(task)[1])
    made.eval()
    with torch.no_grad():
        mixed = made.stream.batch("train", batch.index.flip(0))
        plain = made.losses(mixed, task, made.stages(task)[stage])
        made.prepare(task, made.stages(task)[stage], iter([batch]))
        assert made._cached is not None and made._cached(made._cached.numbers).shape == (11, [16, 3][stage])
        kept = made.losses(mixed, task, made.stages(task)[stage])
    for name, value in plain.items():
        torch.testing.assert_close(kept[name], value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options__boost_beta": 1}, r"options\.boost_beta = 1: must be above 0 and below 1"),
        ({"options__compress_beta": 0}, r"options\.compress_beta = 0: must be above 0 and below 1"),
        ({"options__weights": "dived"}, r"unknown options\.weights 'dived'\. Did you mean divide"),
        ({"options__compress": {"epoch": 3}}, r"unknown field 'options\.compress\.epoch'"),
        ({"options__network": "resnet1"}, r"unknown options\.network 'resnet1'"),
        ({"memory__budget": 0}, r"memory\.budget = 0 is smaller than the number of classes"),
    ],
)
def test_what_is_refused_before_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(LabError, match=message):
        method(**changes)
