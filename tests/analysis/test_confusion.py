"""What is taken for what, against counts made by hand; and what is said where it cannot be seen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from invented import record

from dne_lab.analysis.confusion import confusion
from dne_lab.analysis.run_views import RunView
from dne_lab.core.errors import LabError
from dne_lab.plots.matrices import confusion_matrix
from dne_lab.training.run_folder import predictions_file

LABELS = np.array([0, 0, 1, 1, 2, 2, 3, 3])
GUESS = np.array([0, 1, 1, 1, 2, 0, 3, 3])  # 6 of 8 are right


def view(folder: Path | None, **changes: Any) -> RunView:
    seen = [50.0, 75.0]
    fixed = {"seen_accuracy": seen, "LA": 75.0, "AA": 62.5, "accuracy": [[50.0], [75.0, 75.0]], "tasks": (2, 2)}
    return RunView("run", record(**{**fixed, "class_order": [7, 5, 6, 4], **changes}), folder=folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    arrays = {
        "task_01/labels": LABELS[:4], "task_01/nme": np.array([0, 1, 0, 1]), "task_02/labels": LABELS,
        "task_02/teacher": np.zeros(8, dtype=int), "task_02/nme": GUESS,
    }  # fmt: skip
    (tmp_path / "predictions.npz").write_bytes(predictions_file(arrays))
    return tmp_path


def test_counts_by_class_of_the_prediction_that_the_record_reports(folder: Path) -> None:
    found = confusion(view(folder))
    assert found.by == "class" and found.names == ("7", "5", "6", "4") and found.after == 2
    assert found.counts.tolist() == [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 2]]
    assert found.shares()[0].tolist() == [50.0, 50.0, 0.0, 0.0]
    assert confusion(view(folder), after=1).counts.tolist() == [[1, 1], [1, 1]]
    figure = confusion_matrix(found, view(folder))
    assert figure.table.query("`true class` == '6' and `predicted class` == '7'")["images"].tolist() == [1]
    assert figure.image().startswith(b"\x89PNG") and figure.plotly()["data"]


def test_many_classes_are_counted_by_task(folder: Path) -> None:
    found = confusion(view(folder), most=3)
    assert found.by == "task" and found.names == ("1", "2") and found.counts.tolist() == [[4, 0], [1, 3]]
    with pytest.raises(LabError, match="One task of 2 classes"):
        confusion(view(folder), after=1, most=1)


def test_what_is_not_there_is_said(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    for run, message in (
        (view(None), "only the folder of a run has one"),
        (view(tmp_path_factory.mktemp("empty")), "is missing or cannot be read"),
        (view(folder, done=0, seen_accuracy=[], accuracy=[], LA=None, AA=None), "No task is finished yet"),
        (view(folder, seen_accuracy=[50.0, 74.0], LA=74.0), "gives the record's accuracy"),
    ):
        with pytest.raises(LabError, match=message):
            confusion(run)
    with pytest.raises(LabError, match=r"1 \.\. 2"):
        confusion(view(folder), after=3)
    whole = (folder / "predictions.npz").read_bytes()
    for data in (b"", b"no archive", whole[:-30], whole.replace(b"task_02/labels", b"task_02/labelx")):
        (folder / "predictions.npz").write_bytes(data)
        with pytest.raises(LabError, match=r"predictions\.npz"):
            confusion(view(folder))
    strange = {"task_02/labels": LABELS, "task_02/nme": np.array(["a"] * 8)}
    (folder / "predictions.npz").write_bytes(predictions_file(strange))
    with pytest.raises(LabError, match="no list of class numbers"):
        confusion(view(folder))
