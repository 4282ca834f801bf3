"""Runs in a folder as they stand, also while they go on: records, curves, and the attention that was measured."""

import csv
import functools
import io
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.decomposition import TRAINED, Decomposition
from dne_lab.core.errors import LabError, reason
from dne_lab.core.files import inside, settled, stamp
from dne_lab.measure.comparison import flat, later_heads, seedless, tasks_text, title
from dne_lab.measure.record import RECORD, RUN_FIRST, Record, is_record, trees
from dne_lab.training.run_folder import COLUMNS, CURVES, read_output

if TYPE_CHECKING:
    import pandas as pd


Row = dict[str, Any]
LETTERS = 70  # of a name on the screen


@dataclass(frozen=True, eq=False)
class RunView:
    """A run as its files show it.

    Attributes:
        name: its place in the folder.
        record: as far as it has come.
        curves: a row per epoch (task, stage, epoch, lr, the mean of each loss); empty where there are none.
        attention: what `dne-lab report --attention` measured of it, or None.
        folder: the run's own folder; None where the record lies alone.
    """

    name: str
    record: Record
    curves: tuple[Row, ...] = ()
    attention: Decomposition | None = None
    folder: Path | None = None

    @functools.cached_property
    def label(self) -> str:
        """Method, seed and how far it is."""
        done, tasks = len(self.record.seen_accuracy), len(self.record.tasks)
        far = "" if self.record.finished else f", {done} of {tasks} tasks"
        return f"{short(title(self.record))}, seed {self.record.seed}{far}"

    @functools.cached_property
    def settings(self) -> dict[str, str]:
        """What the run was asked to do, by dotted names, without the seed and what follows from it."""
        r = self.record
        known: Row = {"method": r.method, "preset": r.preset, "dataset": r.dataset, "tasks": tasks_text(r.tasks)}
        known |= {"epochs": r.epochs, "heads": r.heads, "memory.budget": r.memory.get("budget")}
        known |= flat(seedless(r)) if r.config else flat({"network": r.network})
        return {name: _words(value) for name, value in known.items()}

    @functools.cached_property
    def words(self) -> str:
        """Lines of words in small letters that a filter looks at: place, names, state, values of settings."""
        r = self.record
        state = "finished" if r.finished else "unfinished"
        return "\n".join([self.name, title(r), state, f"seed {r.seed}", *self.settings.values()]).lower()

    @functools.cached_property
    def asked(self) -> str:
        """The settings as lines ``name=value`` in small letters, the seed among them."""
        return "\n".join(
            f"{name}={value}" for name, value in (self.settings | {"seed": self.record.seed}).items()
        ).lower()

    @functools.cached_property
    def same_patch(self) -> float:
        """Percent of later experts' attention on the query's own patch; NaN where nothing was measured, or a network
        has no later experts."""
        if self.attention is None or TRAINED not in self.attention.moments:
            return math.nan
        return self.attention.same_patch().value

    @functools.cached_property
    def total_loss(self) -> NDArray[np.float64]:
        """(epochs,): the sum of all losses of each epoch."""
        names = {name for row in self.curves for name in row}.difference(COLUMNS)
        values = ([row.get(name, 0.0) for name in names] for row in self.curves)
        return np.array([sum(v for v in some if isinstance(v, int | float)) for some in values], dtype=np.float64)


def _words(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def names(runs: Sequence[RunView]) -> list[str]:
    """A name for each run, which no other of them has: its label, and where several have the same also its place."""
    several = Counter(run.label for run in runs)
    return [run.label if several[run.label] == 1 else f"{run.label} ({short(run.name)})" for run in runs]


def natural(name: str) -> list[Any]:
    """Sorts names by their letters and by the numbers in them: s2 before s10."""
    parts = re.split(r"(\d+)", name)  # letters and digits in turn
    return [(int(part), part) if i % 2 else part for i, part in enumerate(parts)]


def short(text: str, most: int = LETTERS) -> str:
    """A name from a file as it fits on the screen."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def readable(text: str) -> str:
    """A file's name whose bytes are no text, as text: they could not be sent to a page or saved."""
    return text.encode("utf-8", "replace").decode()


def find(folder: Path, attention: Path | None = None, wrong: list[LabError] | None = None) -> list[RunView]:
    """The runs in a folder and below it, in the order of their names; files of other kinds are passed over, and so are
    copies of the record of a run whose folder is there.

    Attention records are taken from there too, and from the folder ``attention``, if there is one. What was read is
    remembered: a file is read again when it has changed.

    Args:
        wrong: gets the errors of damaged files, in place of raising the first; all others are found.

    Raises:
        LabError: no folder, no run in it, a damaged record.
    """
    if not folder.is_dir():
        raise LabError(f"{folder}: there is no such folder. {RUN_FIRST}")
    raised: list[LabError] = []
    records: dict[Path, Record] = {}
    measured: dict[str, Decomposition] = {}
    places = [folder, *([attention] if attention is not None and attention.is_dir() else [])]
    for file, tree in trees(places, raised):
        try:
            if is_record(tree) and file.is_relative_to(folder):
                records[file] = _made(file, tree, Record.from_tree)
            elif isinstance(tree, dict) and tree.get("kind") == Decomposition.kind:
                found = _made(file, tree, lambda tree, file: Decomposition.among(file)[0])
                measured[found.run] = found
        except LabError as error:
            raised.append(error)
    views: dict[str, RunView] = {}
    for file, record in records.items():
        own = file.name == RECORD
        name = readable((file.parent if own else file.with_suffix("")).relative_to(folder).as_posix())
        name = name if name != "." else readable(folder.absolute().name)
        while name in views:
            name += "'"  # two names whose bytes are no text may look alike
        curves = file.parent / CURVES
        try:
            rows = read_curves(curves, record) if own and curves.exists() else ()
        except LabError as error:
            raised.append(error)
            rows = ()
        views[name] = RunView(name, record, rows, measured.get(record.id), file.parent if own else None)
    if raised and wrong is None:
        raise raised[0]
    if not records and not raised:
        raise LabError(f"{folder}: no run in this folder. {RUN_FIRST}")
    if wrong is not None:
        wrong += raised
    there = {_state(view.record) for view in views.values() if view.folder is not None}
    return [view for view in views.values() if view.folder is not None or _state(view.record) not in there]


def _state(record: Record) -> tuple[Any, ...]:
    """Tells a copy of a run's record, as `dne-lab reproduce` lays beside its run folders, from another run's."""
    return record.id, record.config_sha256, record.finished, *record.seen_accuracy


# What was made of a file's content, while the file is the same: the content, which `trees` remembers, or a `stamp`.
_seen: dict[Path, tuple[Any, Any]] = {}
_REMEMBERED = 20_000


def _made(file: Path, tree: Any, make: Any) -> Any:
    before = _seen.get(file)
    if before is not None and before[0] is tree:
        return before[1]
    made = make(tree, file)
    _remember(file, tree, made)
    return made


def _remember(file: Path, state: Any, made: Any) -> None:
    if len(_seen) >= _REMEMBERED:
        _seen.clear()
    _seen[file] = state, made


def read_curves(file: Path, record: Record) -> tuple[Row, ...]:
    """The rows of the curves.csv beside a record, numbers as numbers; from memory while both stay as they are.

    Raises:
        LabError: missing or damaged.
    """
    try:
        state = (stamp(file), record.curves_sha256, record.finished)
    except OSError as error:
        raise LabError(f"{file} cannot be read: {error.strerror or error}.") from error
    before = _seen.get(file)
    if before is not None and before[0] == state:
        return tuple(before[1])
    made = _curves(file, read_output(file, record))
    if settled(state[0]):
        _remember(file, state, made)
    return made


def _curves(file: Path, data: bytes) -> tuple[Row, ...]:
    try:
        rows = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except (ValueError, csv.Error) as error:  # ValueError: no text
        raise LabError(
            f"{file} cannot be read as curves ({reason(error)}). Move it away: training on writes another."
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
    found = []
    for file in inside(folder, "*.json", CURVES):
        try:
            found.append((str(file), file.stat().st_mtime_ns))
        except OSError:  # it has gone since it was listed
            continue
    return tuple(sorted(found))


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
                "same patch %": run.same_patch,
            }
        )
    words = ("run", "method")
    return pd.DataFrame(rows).astype({name: float for name in rows[0] if name not in words})


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
