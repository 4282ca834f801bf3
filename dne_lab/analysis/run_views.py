"""Runs in a folder as they stand, also while they go on: records, curves, and the attention that was measured."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dne_lab.analysis.decomposition import TRAINED, Decomposition
from dne_lab.core.errors import LabError
from dne_lab.core.files import inside
from dne_lab.measure.comparison import later_heads, title
from dne_lab.measure.record import RUN_FIRST, Record, is_record, trees
from dne_lab.training.run_folder import CURVES, read_output

if TYPE_CHECKING:
    import pandas as pd


Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class RunView:
    """A run as its files show it.

    Attributes:
        name: its place in the folder.
        record: as far as it has come.
        curves: a row per epoch (task, stage, epoch, lr, the mean of each loss); empty where there are none.
        attention: what `dne-lab report --attention` measured of it, or None.
    """

    name: str
    record: Record
    curves: tuple[Row, ...] = ()
    attention: Decomposition | None = None

    @property
    def label(self) -> str:
        """Method, seed and how far it is."""
        done, tasks = len(self.record.seen_accuracy), len(self.record.tasks)
        far = "" if self.record.finished else f", {done} of {tasks} tasks"
        return f"{title(self.record)}, seed {self.record.seed}{far}"


def find(folder: Path, attention: Path | None = None) -> list[RunView]:
    """The runs in a folder and below it, in the order of their names; files of other kinds are passed over.

    Attention records are taken from there too, and from the folder ``attention``, if there is one.

    Raises:
        LabError: no folder, no run in it, a damaged record.
    """
    if not folder.is_dir():
        raise LabError(f"{folder}: there is no such folder. {RUN_FIRST}")
    records: dict[Path, Record] = {}
    measured: dict[str, Decomposition] = {}
    for file, tree in trees(folder):
        if is_record(tree):
            records[file] = Record.from_tree(tree, file)
    places = [folder, *([attention] if attention is not None and attention.is_dir() else [])]
    for found in Decomposition.among(places):
        measured[found.run] = found
    if not records:
        raise LabError(f"{folder}: no run in this folder. {RUN_FIRST}")
    views = []
    for file, record in records.items():
        own = file.name == "record.json"
        name = (file.parent if own else file.with_suffix("")).relative_to(folder).as_posix()
        curves = file.parent / CURVES
        rows = read_curves(curves, record) if own and curves.exists() else ()
        views.append(RunView(name if name != "." else folder.name, record, rows, measured.get(record.id)))
    return views


def read_curves(file: Path, record: Record) -> tuple[Row, ...]:
    """The rows of the curves.csv beside a record, numbers as numbers."""
    data = read_output(file, record)
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (ValueError, csv.Error) as error:  # ValueError: no text
        raise LabError(
            f"{file} cannot be read as curves ({error}). Move it away: training on writes another."
        ) from error
    if any(None in row or not row.get("task") for row in rows):
        raise LabError(f"{file} is damaged: a row does not fit its head. Move it away: training on writes another.")
    return tuple({name: _number(value) for name, value in row.items() if value} for row in rows)


def _number(text: str) -> Any:
    try:
        value = float(text)
    except ValueError:
        return text
    return int(value) if value.is_integer() and "." not in text and "e" not in text else value


def changed(folder: Path) -> tuple[tuple[str, int], ...]:
    """Tells two moments of a folder apart without reading it: names and times of the files that `find` reads."""
    files = inside(folder, "*.json", CURVES)
    return tuple(sorted((str(file), file.stat().st_mtime_ns) for file in files if file.exists()))


def table(runs: Sequence[RunView]) -> "pd.DataFrame":
    """A row per run: accuracy, cost, parameters, percent of later experts' attention on the query's own patch."""
    import pandas as pd

    rows: list[Row] = []
    for run in runs:
        r = run.record
        rows.append(
            {
                "run": run.name,
                "method": title(r),
                "k": later_heads(r),
                "seed": r.seed,
                "tasks done": len(r.seen_accuracy),
                "of tasks": len(r.tasks),
                "LA %": r.LA,
                "AA %": r.AA,
                "forgetting": r.forgetting,
                "MFLOPs spent": None if r.flops_spent is None else r.flops_spent / 1e6,
                "parameters (M)": (r.params.get("total") or math.nan) / 1e6,
                "same patch %": _same_patch(run),
            }
        )
    words = ("run", "method")
    return pd.DataFrame(rows).astype({name: float for name in rows[0] if name not in words})


def _same_patch(run: RunView) -> float:
    """NaN where nothing was measured, or a network has no later experts."""
    if run.attention is None or TRAINED not in run.attention.moments:
        return math.nan
    return run.attention.same_patch().value


def accuracies(run: RunView) -> tuple[list[int], list[float]]:
    """Classes seen after each finished task, and the accuracy over them."""
    seen = list(run.record.seen_accuracy)
    return [sum(run.record.tasks[: number + 1]) for number in range(len(seen))], seen


def losses(curves: Sequence[Row]) -> "pd.DataFrame":
    """A row per epoch: its number from the start of the run, task, stage, and each loss by name."""
    import pandas as pd

    frame = pd.DataFrame(list(curves))
    if len(frame):
        frame.insert(0, "epoch of the run", range(1, len(frame) + 1))
    return frame
