"""What a number is: accuracies, forgetting and intervals as pure functions of labels and predictions.

Labels are ranks: the classes of task 1 are 0, 1, .., those of task 2 follow. All values are percent. Every function is
right for tasks of unequal size: `seen_accuracy` counts images, it does not average tasks.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dne_lab.core.errors import LabError

Predictions = Sequence[tuple[ArrayLike, ArrayLike]]


def boundaries(tasks: Sequence[int]) -> list[int]:
    """First rank of every task, then the number of all classes: sizes (50, 10, 10) -> [0, 50, 60, 70]."""
    sizes = list(tasks)
    if not sizes or any(int(size) != size or size < 1 for size in sizes):
        raise LabError(f"tasks = {sizes}: needs the number of classes of each task, at least one task of one class.")
    return [0, *np.cumsum(sizes).tolist()]


def accuracy_matrix(predictions: Predictions, tasks: Sequence[int]) -> list[list[float]]:
    """Accuracy R[i][j] on the test images of task j after task i; row i has i + 1 entries, percent.

    Args:
        predictions: for each task finished, in order, (labels, predicted) over the test images of the classes seen: two
            integer arrays (n,) of ranks. Fewer pairs than tasks are the state of an unfinished run.
        tasks: number of classes of each task.

    Raises:
        LabError: shapes differ, a label or prediction is not a class seen so far, NaN, or a task without test images.
    """
    bounds = boundaries(tasks)
    rows = []
    for number, (labels, predicted) in enumerate(_checked(predictions, bounds), start=1):
        hit = labels == predicted
        task = np.searchsorted(bounds, labels, side="right") - 1
        images = np.bincount(task, minlength=number)
        if not images.all():
            empty = int(np.flatnonzero(images == 0)[0]) + 1
            raise LabError(
                f"predictions after task {number}: no test image of task {empty}. Predict the test images of all "
                f"{bounds[number]} classes seen."
            )
        rows.append((100 * np.bincount(task, weights=hit, minlength=number) / images).tolist())
    return rows


def seen_accuracy(predictions: Predictions, tasks: Sequence[int]) -> list[float]:
    """A_1 .. A_M: accuracy over all test images of all classes seen after each task, percent.

    Arguments and errors are those of `accuracy_matrix`. With unequal tasks this is not the mean of a row of R.
    """
    return [float(100 * np.mean(labels == predicted)) for labels, predicted in _checked(predictions, boundaries(tasks))]


def old_and_new(
    labels: Sequence[ArrayLike], predicted: Sequence[ArrayLike | None], tasks: Sequence[int]
) -> dict[str, list[float]]:
    """How new and old classes do after tasks 2, 3, ..., and how many images of old classes are called new, percent.

    Args:
        labels, predicted: for each finished task (n,) ranks over the test images of the classes seen; a task without
            predictions (None) and the first, which has no old classes, have no value.
        tasks: number of classes of each task.

    Returns:
        ``new``, ``old`` (accuracies) and ``old_called_new``, each with a value per task that has predictions.
    """
    found: dict[str, list[float]] = {"new": [], "old": [], "old_called_new": []}
    bounds = boundaries(tasks)
    for number, (truth, guess) in enumerate(zip(labels, predicted, strict=True)):
        if number == 0 or guess is None:
            continue
        truth, guess = np.asarray(truth), np.asarray(guess)
        old = truth < bounds[number]
        found["new"].append(float(100 * np.mean(guess[~old] == truth[~old])))
        found["old"].append(float(100 * np.mean(guess[old] == truth[old])))
        found["old_called_new"].append(float(100 * np.mean(guess[old] >= bounds[number])))
    return found


def last_accuracy(seen: Sequence[float]) -> float:
    """LA = A_M, from the percentages A_1 .. A_M."""
    return float(_finite("seen accuracy", seen)[-1])


def average_accuracy(seen: Sequence[float]) -> float:
    """AA = mean of A_1 .. A_M (average incremental accuracy, the first task included), percent."""
    return float(_finite("seen accuracy", seen).mean())


def forgetting(matrix: Sequence[Sequence[float]]) -> float | None:
    """Mean over tasks j < M of max(R[i][j] for i = j .. M - 1) - R[M][j], in points; None after a single task.

    A negative value means that old tasks got better. `matrix` is that of `accuracy_matrix`.
    """
    lost = forgetting_by_task(matrix)
    return float(np.mean(lost)) if lost else None


def forgetting_by_task(matrix: Sequence[Sequence[float]]) -> list[float]:
    """For each task j < M max(R[i][j] for i = j .. M - 1) - R[M][j], in points; `forgetting` is their mean."""
    if [len(row) for row in matrix] != list(range(1, len(matrix) + 1)):
        raise LabError(
            f"accuracy matrix with rows of {[len(row) for row in matrix]} entries: row i must have i entries."
        )
    rows = [_finite("accuracy matrix", row) for row in matrix]
    if not rows:
        raise LabError("accuracy matrix is empty: finish at least one task.")
    last = len(rows) - 1
    return [float(max(rows[i][j] for i in range(j, last)) - rows[last][j]) for j in range(last)]


def difference(joint_last: float, last: float) -> float:
    """D = A_M(joint) - A_M, in points: what learning in tasks costs against learning all classes at once."""
    return float(_finite("last accuracy of joint", [joint_last])[0] - _finite("last accuracy", [last])[0])


def with_half_width(mean: float, half: float, places: int = 2) -> str:
    """``73.33 ± 5.40``; the number alone where there is no half width, nothing where there is no number (NaN)."""
    if mean != mean:
        return ""
    return f"{mean:.{places}f}" + (f" ± {half:.{places}f}" if half == half else "")


def interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float | None]:
    """Mean and half width of Student's t confidence interval across seeds; the half width of one value is None."""
    if not 0 < level < 1:
        raise LabError(f"level = {level}: must be between 0 and 1, e.g. 0.95.")
    array = _finite("values", values)
    if len(array) == 1:
        return float(array[0]), None
    error = array.std(ddof=1) / np.sqrt(len(array))
    return float(array.mean()), float(_students_t(level, len(array) - 1) * error)


def intervals(rows: ArrayLike, level: float = 0.95) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`interval` of each column of ``rows`` (seeds, columns): means and half widths, NaN where there is one seed."""
    array = np.asarray(rows, dtype=np.float64)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all():
        raise LabError(f"rows of shape {array.shape}: needs a finite number for every seed and column.")
    if len(array) == 1:
        return array[0], np.full(array.shape[1], np.nan)
    return array.mean(axis=0), _students_t(level, len(array) - 1) * (array.std(axis=0, ddof=1) / np.sqrt(len(array)))


def _students_t(level: float, freedom: int) -> float:
    """How many standard errors an interval of this level reaches; scipy.stats, which asks the same, loads for long."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + level) / 2))


def rounded(value: Any) -> Any:
    """What a record keeps of numbers, alone or in lists and dictionaries: six digits; NaN, no number, as None."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float):
        return None if value != value else float(f"{value:.6g}") + 0.0  # never -0.0
    return value


def measure(predictions: Predictions, tasks: Sequence[int]) -> dict[str, Any]:
    """All numbers of a record that derive from predictions: accuracy, seen_accuracy, LA, AA and forgetting by name."""
    matrix, seen = accuracy_matrix(predictions, tasks), seen_accuracy(predictions, tasks)
    return {
        "accuracy": matrix,
        "seen_accuracy": seen,
        "LA": last_accuracy(seen),
        "AA": average_accuracy(seen),
        "forgetting": forgetting(matrix),
    }


def _checked(predictions: Predictions, bounds: list[int]) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    if not len(predictions):
        raise LabError("predictions are empty: finish at least one task.")
    if len(predictions) > len(bounds) - 1:
        raise LabError(f"predictions after {len(predictions)} tasks, but there are {len(bounds) - 1} tasks.")
    checked = []
    for number, pair in enumerate(predictions, start=1):
        labels, predicted = (_ranks(f"{name} after task {number}", values, bounds[number])
                             for name, values in zip(("labels", "predictions"), pair, strict=True))  # fmt: skip
        if labels.shape != predicted.shape:
            raise LabError(f"after task {number}: {len(labels)} labels, but {len(predicted)} predictions.")
        checked.append((labels, predicted))
    return checked


def _ranks(what: str, values: ArrayLike, classes: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise LabError(f"{what} have shape {array.shape}: must be a list of at least one rank, (n,).")
    if not np.issubdtype(array.dtype, np.number) or np.issubdtype(array.dtype, np.complexfloating):
        raise LabError(f"{what} have type {array.dtype}: must be integer ranks.")
    if not np.all(np.isfinite(array)) or np.any(array != np.floor(array)):
        raise LabError(f"{what} hold NaN, infinity or fractions: must be integer ranks, not scores.")
    wrong = array[(array < 0) | (array >= classes)]
    if wrong.size:
        raise LabError(f"{what} hold {wrong[0]}: must be one of the {classes} classes seen so far, 0 .. {classes - 1}.")
    return array.astype(np.int64)


def _finite(what: str, values: Sequence[float]) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or array.size == 0:
        raise LabError(f"{what}: needs at least one number in a list, got shape {array.shape}.")
    if not np.all(np.isfinite(array)):
        raise LabError(f"{what} = {list(values)}: holds NaN or infinity.")
    return array
