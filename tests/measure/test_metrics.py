"""Metrics against values computed by hand (SPEC section 9, point 8), and what must hold for any predictions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dne_lab.core.errors import LabError
from dne_lab.measure import metrics

# Streams of the paper, of the 26-task experiment, of the digits, and one with unequal tasks.
STREAMS = {
    "50+10x5": (50, *[10] * 5),
    "50+5x10": (50, *[5] * 10),
    "50+25x2": (50, 25, 25),
    "50+2x25": (50, *[2] * 25),
    "4+2+2+2": (4, 2, 2, 2),
}


def one_image_a_class_right_until(tasks: tuple[int, ...], lost: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """One image a class; after every later task `lost` more classes of task 1 are taken for the newest class."""
    out = []
    for number in range(1, len(tasks) + 1):
        seen = sum(tasks[:number])
        labels = np.arange(seen)
        predicted = labels.copy()
        predicted[: lost * (number - 1)] = seen - 1
        out.append((labels, predicted))
    return out


@pytest.mark.parametrize(
    ("name", "lost", "last", "average", "forgotten"),
    [
        # 100 classes, 5 of the first 50 lost: LA 95, A_i = 100 (1 - (i - 1) / (40 + 10 i)), task 1 falls to 45/50.
        ("50+10x5", 1, 95.0, (100 + 5900 / 60 + 6800 / 70 + 7700 / 80 + 8600 / 90 + 95) / 6, 10 / 5 * 1.0),
        # 10 lost: LA 90; only task 1 forgets, from 100 to 40/50 = 80, over 10 old tasks.
        ("50+5x10", 1, 90.0, sum(100 * (1 - i / (50 + 5 * i)) for i in range(11)) / 11, 20 / 10),
        # 2 x 10 lost: LA 80; task 1 from 100 to 30/50 = 60, over 2 old tasks. A = 100, 65/75, 80/100.
        ("50+25x2", 10, 80.0, (100 + 6500 / 75 + 80) / 3, 40 / 2),
        # 25 lost: LA 75; task 1 from 100 to 25/50 = 50, over 25 old tasks.
        ("50+2x25", 1, 75.0, sum(100 * (1 - i / (50 + 2 * i)) for i in range(26)) / 26, 50 / 25),
        # A = 4/4, 5/6, 6/8, 7/10; task 1 from 100 to 1/4, over 3 old tasks.
        ("4+2+2+2", 1, 70.0, (100 + 500 / 6 + 75 + 70) / 4, 75 / 3),
    ],
)
def test_hand_computed(name: str, lost: int, last: float, average: float, forgotten: float) -> None:
    numbers = metrics.measure(one_image_a_class_right_until(STREAMS[name], lost), STREAMS[name])
    assert numbers["LA"] == pytest.approx(last)
    assert numbers["AA"] == pytest.approx(average)
    assert numbers["forgetting"] == pytest.approx(forgotten)
    assert [len(row) for row in numbers["accuracy"]] == list(range(1, len(STREAMS[name]) + 1))
    assert metrics.difference(76.5, numbers["LA"]) == pytest.approx(76.5 - last)


def test_unequal_tasks_and_unequal_images_count_images_not_tasks() -> None:
    tasks = (3, 1, 2)  # classes 0-2, 3, 4-5
    predictions = [
        ([0, 0, 0, 1, 2], [0, 0, 1, 1, 2]),  # 4 of 5
        ([0, 1, 2, 3], [0, 3, 3, 3]),  # task 1: 1 of 3, task 2: 1 of 1
        ([0, 1, 2, 3, 4, 4, 4, 5], [0, 1, 5, 4, 4, 4, 5, 5]),  # 2 of 3, 0 of 1, 3 of 4
    ]
    matrix = metrics.accuracy_matrix(predictions, tasks)
    assert [pytest.approx(row) for row in matrix] == [[80.0], [100 / 3, 100.0], [200 / 3, 0.0, 75.0]]
    seen = metrics.seen_accuracy(predictions, tasks)
    assert seen == pytest.approx([80.0, 50.0, 62.5])
    assert seen[2] != pytest.approx(np.mean(matrix[2]))  # the mean over tasks would be 47.2
    assert metrics.last_accuracy(seen) == 62.5
    assert metrics.average_accuracy(seen) == pytest.approx(192.5 / 3)
    # task 1: best of 80 and 33.3 before the last task, minus 66.7; task 2: 100 - 0
    assert metrics.forgetting(matrix) == pytest.approx((80 - 200 / 3 + 100) / 2)


def test_forgetting_takes_the_best_before_the_last_and_may_be_negative() -> None:
    assert metrics.forgetting([[50.0], [70.0, 90.0], [60.0, 95.0, 80.0]]) == pytest.approx((10 - 5) / 2)
    assert metrics.forgetting([[50.0]]) is None
    with pytest.raises(LabError, match="row i must have i entries"):
        metrics.forgetting([[50.0], [50.0]])
    with pytest.raises(LabError, match="empty"):
        metrics.forgetting([])


def test_interval_is_students_t() -> None:
    mean, width = metrics.interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert mean == 3.0
    assert width == pytest.approx(2.7764451 * math.sqrt(2.5 / 5))  # t(0.975, 4) from a table
    assert metrics.interval([7.0]) == (7.0, None)
    assert metrics.interval([2.0, 2.0]) == (2.0, 0.0)
    assert metrics.interval([0.0, 1.0], level=0.9)[1] == pytest.approx(6.3137515 * 0.5)  # t(0.95, 1)
    for level in (0.0, 1.0, 95):
        with pytest.raises(LabError, match="between 0 and 1"):
            metrics.interval([1.0, 2.0], level)


def test_intervals_are_those_of_each_column() -> None:
    rows = [[80.0, 10.0], [83.0, 10.0], [89.0, 11.5]]
    means, halves = metrics.intervals(rows)
    for column, (mean, half) in enumerate(zip(means, halves, strict=True)):
        assert (mean, half) == pytest.approx(metrics.interval([row[column] for row in rows]), rel=1e-14)
    means, halves = metrics.intervals(rows[:1])
    assert means.tolist() == rows[0] and np.isnan(halves).all()  # one seed has no interval
    for wrong in ([], [1.0, 2.0], [[1.0, float("nan")]]):
        with pytest.raises(LabError, match="finite number for every seed"):
            metrics.intervals(wrong)


@pytest.mark.parametrize(
    ("predictions", "message"),
    [
        ([], "predictions are empty"),
        ([([0, 1], [0])], "2 labels, but 1 predictions"),
        ([([0, 2], [0, 1])], "labels after task 1 hold 2: must be one of the 2 classes"),
        ([([0, 1], [0, 2])], "predictions after task 1 hold 2"),
        ([([0, -1], [0, 1])], "hold -1"),
        ([([0, 1], [0.0, float("nan")])], "NaN"),
        ([([0, 1], [0.5, 1.0])], "fractions"),
        ([([], [])], "at least one rank"),
        ([([[0, 1]], [[0, 1]])], r"shape \(1, 2\)"),
        ([(["a"], ["a"])], "integer ranks"),
        ([([0, 1], [0, 1]), ([0, 1], [0, 1])], "no test image of task 2"),
        ([([0], [0])] * 4, "after 4 tasks, but there are 3"),
    ],
)
def test_bad_predictions_are_named(predictions: list, message: str) -> None:
    with pytest.raises(LabError, match=message):
        metrics.accuracy_matrix(predictions, (2, 1, 1))


@pytest.mark.parametrize("tasks", [(), (2, 0), (2, -1), (2.5,)])
def test_bad_tasks(tasks: tuple) -> None:
    with pytest.raises(LabError, match="number of classes of each task"):
        metrics.seen_accuracy([([0], [0])], tasks)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_bad_values(values: list[float]) -> None:
    for function in (metrics.interval, metrics.last_accuracy, metrics.average_accuracy):
        with pytest.raises(LabError):
            function(values)


@st.composite
def streams(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[np.ndarray, np.ndarray]]]:
    tasks = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=5)))
    chance = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    predictions = []
    for number in range(1, len(tasks) + 1):
        seen = sum(tasks[:number])
        labels = np.concatenate([np.arange(seen), chance.integers(0, seen, chance.integers(0, 20))])
        chance.shuffle(labels)
        predictions.append((labels, np.where(chance.random(len(labels)) < 0.6, labels, chance.integers(0, seen))))
    return tasks, predictions


@settings(derandomize=True, deadline=None, max_examples=60)
@given(streams())
def test_properties(case: tuple) -> None:
    tasks, predictions = case
    matrix, seen = metrics.accuracy_matrix(predictions, tasks), metrics.seen_accuracy(predictions, tasks)
    bounds = metrics.boundaries(tasks)
    for row, total, (labels, predicted) in zip(matrix, seen, predictions, strict=True):
        images = [int(((labels >= bounds[j]) & (labels < bounds[j + 1])).sum()) for j in range(len(row))]
        assert total == pytest.approx(np.dot(row, images) / sum(images))  # the weighted mean of its tasks
        assert min(row) - 1e-9 <= total <= max(row) + 1e-9
        order = np.random.default_rng(0).permutation(len(labels))
        assert metrics.seen_accuracy([(labels[order], predicted[order])], [sum(tasks)]) == pytest.approx([total])
    lost = metrics.forgetting(matrix)
    assert (lost is None) == (len(tasks) == 1)
    assert lost is None or -100 <= lost <= 100
    # an unfinished run has the first rows of the finished one
    assert metrics.accuracy_matrix(predictions[:1], tasks) == matrix[:1]


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8), st.floats(-50, 50))
def test_interval_moves_with_its_values(values: list[float], shift: float) -> None:
    mean, width = metrics.interval(values)
    moved, same = metrics.interval([value + shift for value in values])
    assert moved == pytest.approx(mean + shift, abs=1e-9)
    assert width is not None
    assert same == pytest.approx(width, abs=1e-6)
    wider = metrics.interval(values, 0.99)[1]
    assert wider is not None
    assert wider >= width
