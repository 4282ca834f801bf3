import json
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dne_lab.core.errors import LabError
from dne_lab.data.memory import ExemplarMemory, herd
from dne_lab.data.source import ArraySource
from dne_lab.data.stream import ClassStream


def herd_as_written(features: np.ndarray, count: int) -> list[int]:
    """Algorithm 4 of iCaRL with plain loops; images whose distances agree to 1e-9 are a tie, the first one wins."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    mean, chosen = unit.mean(axis=0), []
    for k in range(1, min(count, len(unit)) + 1):
        best, best_distance = -1, np.inf
        for i in range(len(unit)):
            if i not in chosen:
                distance = np.linalg.norm(mean - (unit[i] + sum(unit[j] for j in chosen)) / k)
                if distance < best_distance - 1e-9:
                    best, best_distance = i, distance
        chosen.append(best)
    return chosen


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 25), st.integers(1, 8), st.integers(0, 30), st.booleans())
def test_herding_is_icarls(seed, count, width, quota, doubled):
    features = np.random.default_rng(seed).normal(size=(count, width + 1)) + 0.5
    if doubled:
        features = np.concatenate([features, features[::-1]])  # exact ties
    assert herd(torch.from_numpy(features), quota).tolist() == herd_as_written(features, quota)


def test_herding_takes_the_lowest_position_of_equal_images_and_ignores_length():
    assert herd(torch.ones(6, 3), 4).tolist() == [0, 1, 2, 3]
    features = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    scaled = features * torch.linspace(0.1, 9, 20)[:, None]
    assert torch.equal(herd(features.double(), 20), herd(scaled.double(), 20))
    assert torch.equal(herd(features, 5), herd(features, 20)[:5])  # a prefix, whatever the count
    assert sorted(herd(features, 99).tolist()) == list(range(20))
    assert herd(torch.zeros(3, 4), 2).tolist() == [0, 1]
    assert herd(torch.zeros(0, 4), 2).tolist() == []


def test_herding_is_fast_and_refuses_nan():
    features = torch.randn(500, 1000, generator=torch.Generator().manual_seed(0))
    start = time.process_time()
    herd(features, 40)
    assert time.process_time() - start < 2
    features[3, 3] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        herd(features, 40)


def stream(classes=4, per_class=10, order=(2, 0, 3, 1)):
    labels = np.tile(np.arange(classes), per_class)
    images = np.zeros((len(labels), 2, 2), np.uint8)
    return ClassStream(ArraySource(images, labels, images, labels), (2, 2), list(order))


def filled(memory, ours, seen):
    for rank in range(seen):
        memory.add(rank, ours.index("train", range(rank, rank + 1))[: memory.quota(seen)])
    return memory


def test_quota_is_shared_or_fixed():
    shared, fixed = ExemplarMemory(2000, "shared", 100), ExemplarMemory(2000, "fixed", 100)
    assert [shared.quota(seen) for seen in (50, 60, 70, 100)] == [40, 33, 28, 20]
    assert [fixed.quota(seen) for seen in (50, 100)] == [20, 20]
    assert ExemplarMemory(0, "shared", 100).quota(50) == 0


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(0, 60), st.sampled_from(["shared", "fixed"]), st.lists(st.integers(1, 3), min_size=1, max_size=5))
def test_the_budget_holds_after_every_task_and_reducing_keeps_a_prefix(budget, policy, tasks):
    classes = sum(tasks)
    labels = np.tile(np.arange(classes), 12)
    images = np.zeros((len(labels), 2, 2), np.uint8)
    ours = ClassStream(ArraySource(images, labels, images, labels), tasks, "1")
    memory = ExemplarMemory(budget, policy, classes)
    for task in ours:
        before = {rank: list(numbers) for rank, numbers in memory.exemplars.items()}
        memory.reduce(task.new.stop)
        for rank in task.new:
            numbers = ours.index("train", range(rank, rank + 1)).flip(0)
            memory.add(rank, numbers[: memory.quota(task.new.stop)])
        audit = memory.audit(ours, task.new.stop)
        assert audit["stored"] == len(memory) <= budget
        assert audit["quota"] * task.new.stop <= budget
        for rank, numbers in before.items():
            assert memory.exemplars[rank] == numbers[: audit["quota"]]
        balanced = ours.labels("train", memory.balanced(task.new.stop))
        assert torch.bincount(balanced, minlength=task.new.stop).unique().numel() <= 1


def test_index_keeps_herding_order_and_takes_the_first_of_each():
    memory = ExemplarMemory(100, "shared", 4)
    memory.add(0, [9, 5, 7])
    memory.add(1, torch.tensor([2, 8]))
    assert memory.index(range(2)).tolist() == [9, 5, 7, 2, 8]
    assert memory.index(range(2), per_class=1).tolist() == [9, 2]
    assert memory.index(range(1, 2)).tolist() == [2, 8]
    assert memory.index(range(0)).dtype == torch.int64
    assert memory.balanced(2).tolist() == [9, 5, 2, 8]
    assert memory.balanced(3).tolist() == []  # a class seen but without exemplars: balance forbids all others
    assert len(memory) == 5


def test_audit_reports_and_refuses():
    ours = stream()
    assert filled(ExemplarMemory(8, "shared", 4), ours, 2).audit(ours, 2) == {
        "budget": 8,
        "policy": "shared",
        "stored": 8,
        "quota": 4,
    }
    memory = filled(ExemplarMemory(8, "shared", 4), ours, 2)
    memory.add(2, ours.index("train", range(2, 3))[:1])
    with pytest.raises(RuntimeError, match="9 distinct images, the budget is 8"):
        memory.audit(ours, 3)
    memory.reduce(3)
    assert memory.audit(ours, 3)["stored"] == 5
    with pytest.raises(RuntimeError, match="rank 2, but only 2 classes"):
        memory.audit(ours, 2)
    memory.add(2, ours.index("train", range(3, 4))[:1])
    with pytest.raises(RuntimeError, match="no training images of class rank 2"):
        memory.audit(ours, 4)
    memory.add(2, [4000])
    with pytest.raises(RuntimeError, match="no training images"):
        memory.audit(ours, 4)
    memory.add(2, ours.index("train", range(2, 3))[[0, 0]])
    with pytest.raises(RuntimeError, match="1 images twice"):
        memory.audit(ours, 4)


def test_a_validation_image_is_no_exemplar():
    ours = ClassStream(stream().source, (2, 2), validation=0.5)
    memory = ExemplarMemory(8, "shared", 4)
    memory.add(0, ours.index("test", range(1))[:1])
    with pytest.raises(RuntimeError, match="no training images"):
        memory.audit(ours, 2)


def test_state_goes_through_json_and_must_fit():
    memory = filled(ExemplarMemory(8, "fixed", 4), stream(), 3)
    state = json.loads(json.dumps(memory.state()))
    again = ExemplarMemory(8, "fixed", 4)
    again.load(state)
    assert again.exemplars == memory.exemplars
    assert again.state() == memory.state()
    with pytest.raises(LabError, match="budget = 8, this run has 9"):
        ExemplarMemory(9, "fixed", 4).load(state)
    with pytest.raises(LabError, match=r"unknown memory\.policy 'share'"):
        ExemplarMemory(9, "share", 4)
    with pytest.raises(LabError, match="at least 0"):
        ExemplarMemory(-1, "shared", 4)


def test_exemplars_follow_images_to_new_numbers():
    memory = ExemplarMemory(6, "shared", 2)
    memory.add(0, [4, 0, 2])
    memory.add(1, [5, 7])
    assert memory.renumber(np.array([0, 1, -1, 2, 3, -1, 4, 5])) == 2
    assert memory.exemplars == {0: [3, 0], 1: [5]}
