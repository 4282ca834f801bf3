"""Which classes, or tasks, a run's network takes for which others: counts from the predictions in its folder."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.run_views import RunView
from dne_lab.core.errors import LabError
from dne_lab.measure.metrics import boundaries, seen_accuracy
from dne_lab.training.evaluation import key
from dne_lab.training.run_folder import PREDICTIONS, read_predictions

MOST_CLASSES = 20  # of more the matrix is by task


@dataclass(frozen=True)
class Confusion:
    """How often what was taken for what after a task.

    Attributes:
        by: ``class`` or ``task``.
        names: of the rows and columns: class numbers as the data set has them, in the order of learning, or tasks.
        counts: (true, predicted), test images.
        after: the number of the last learned task.
    """

    by: str
    names: tuple[str, ...]
    counts: NDArray[np.int64]
    after: int

    def shares(self) -> NDArray[np.float64]:
        """(true, predicted): percent of the images of each row."""
        return 100 * self.counts / self.counts.sum(axis=1, keepdims=True)


def confusion(run: RunView, after: int | None = None, most: int = MOST_CLASSES) -> Confusion:
    """What a run took for what after a task (None: its last finished one), by class, or of more than ``most`` classes
    by task.

    Raises:
        LabError: no finished task, no predictions beside the record, damaged ones, or a single task of many classes.
    """
    record = run.record
    done = len(record.seen_accuracy)
    if run.folder is None:
        raise LabError(f"There is no {PREDICTIONS} beside this record: only the folder of a run has one.")
    if not done:
        raise LabError("No task is finished yet: there are no predictions.")
    after = done if after is None else after
    if not 1 <= after <= done:
        raise LabError(f"after task {after}: must be one of the finished tasks, 1 .. {done}.")
    arrays = read_predictions(run.folder / PREDICTIONS, record)
    labels, predicted = _reported(arrays, after, record.seen_accuracy[after - 1], record.tasks)
    bounds = boundaries(record.tasks[:after])
    if bounds[-1] <= most:
        by, names = "class", [str(number) for number in record.class_order[: bounds[-1]]]
    elif after == 1:
        raise LabError(f"One task of {bounds[-1]} classes: a matrix is drawn of at most {most} classes, or of tasks.")
    else:
        by, names = "task", [str(number) for number in range(1, after + 1)]
        labels, predicted = (np.searchsorted(bounds, ranks, side="right") - 1 for ranks in (labels, predicted))
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return Confusion(by, tuple(names), counts, after)


def _reported(
    arrays: dict[str, NDArray[np.int64]], after: int, accuracy: float, tasks: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Labels and the prediction of a task that the record reports: a method may have several."""
    mine = {name: values for name, values in arrays.items() if name.startswith(key(after, ""))}
    labels = mine.pop(key(after, "labels"), None)
    if labels is None:
        mine, labels = {}, np.zeros(0, dtype=np.int64)
    for predicted in mine.values():
        # both as ranks below the classes seen: `seen_accuracy` looks
        found = seen_accuracy([(labels, predicted)], [sum(tasks[:after])])
        if abs(found[0] - accuracy) < 1e-6:
            return labels.astype(np.int64), predicted.astype(np.int64)
    raise LabError(f"{PREDICTIONS} holds no prediction after task {after} that gives the record's accuracy.")
