"""A list of runs as data: what is to be trained, what for, and how far it is. The folder of each run is its state.

The file is a JSON list, most informative run first, and lies beside the records that come of it (``grid.json``)::

    [{"name": "dne-s0", "method": "dne", "preset": "cifar100-medium", "settings": {"network.heads": "4,1"}, "seed": 0,
      "purpose": "gate G5: does the attention of a task attention block matter", "core_hours": 1.2}]

A finished run whose record has been put beside the list, as ``NAME.json``, is finished on every machine.
"""

import json
import os
import re
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dne_lab.core.config import Config, differences
from dne_lab.core.errors import LabError, brief
from dne_lab.core.files import file_name, resolved
from dne_lab.core.schema import DamagedError, build, read_json, settings
from dne_lab.measure.record import Record
from dne_lab.methods import base
from dne_lab.training.run_folder import CONFIG, RunFolder, record_in

if TYPE_CHECKING:
    import pandas as pd

FINISHED, NOT_BEGUN = "finished", "not begun"
JOBS = "slurm"  # a folder beside the run folders: what `on_slurm` keeps there
LONGEST = 200  # bytes of a run's name; a file system takes 255, and .json is added


@settings
class Entry:
    """One run of a list. ``name`` is that of its folder, ``settings`` are dotted fields as after ``--set``.

    ``core_hours``: how long it is expected to take on one core; ``purpose``: what it is for.
    """

    name: str = ""
    method: str = ""
    preset: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    seed: Annotated[int, Field(ge=0, le=10**18)] = 0
    purpose: str = ""
    core_hours: Annotated[float, Field(ge=0)] | None = None

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w+=,-][\w.+=,-]*", self.name) or len(os.fsencode(self.name)) > LONGEST:
            raise LabError(
                f"name = {brief(self.name)}: every run needs one that can be a folder's, of at most {LONGEST} bytes, "
                "e.g. dne-s0."
            )
        if self.name == JOBS:
            raise LabError(f"name = {JOBS!r}: the jobs of a cluster have a folder of this name. Give another one.")
        if not self.method:
            raise LabError("method is missing, e.g. dne.")
        for name in self.settings:
            if name in ("method", "preset", "seed"):
                raise LabError(f"settings.{name}: give {name} beside the settings, not among them.")

    def config(self) -> Config:
        """The resolved configuration."""
        base.refuse_ignored(self.method, self.settings)
        return base.configure(self.method, self.preset, self.settings, seed=self.seed)


Entries = Annotated[list[Entry], Field(min_length=1)]  # what the file holds


@dataclass(frozen=True)
class Listed:
    """An entry with its configuration, its folder, and the finished record that lies beside the list, if there is
    one."""

    entry: Entry
    config: Config
    folder: Path
    beside: Record | None = None

    @property
    def record(self) -> Record | None:
        """What is known of the run so far: the record beside the list, or that in its folder."""
        return self.beside or record_in(self.folder)

    @property
    def tasks(self) -> int:
        """How many tasks the run has; all classes are one to a joint model."""
        return 1 if base.find(self.config.method).joint else len(self.config.data.tasks)

    def tasks_done(self) -> int:
        """How many tasks are finished."""
        record = self.record
        return 0 if record is None else len(record.seen_accuracy)

    @property
    def state(self) -> str:
        """``finished``, ``at task 3 of 6`` or ``not begun``."""
        record = self.record
        if record is not None and record.finished:
            return FINISHED
        if record is None and not (self.folder / CONFIG).exists():
            return NOT_BEGUN
        return f"at task {self.tasks_done() + 1} of {self.tasks}"


def read(file: Path, out: Path | None = None) -> list[Listed]:
    """The runs of a list, each in the folder ``out / name``; default ``out``: ``runs/`` and what the list is called.

    Nothing is written.

    Raises:
        LabError: no JSON list, an unknown method, preset or field, two runs of one name or configuration, a folder or a
            record beside the list of another configuration than it asks for now (says which run, and what differs).
    """
    trees = _trees(file)
    out = Path("runs") / title(file) if out is None else out
    found: dict[str, Listed] = {}  # by name
    names: dict[str, str] = {}  # by the hash of the configuration
    for number, tree in enumerate(trees, start=1):
        where = f"{file}, run {number}"
        try:
            entry = build(Entry, tree)
            where += f" ({entry.name})"
            config = entry.config()
            listed = Listed(entry, config, out / entry.name, _beside(file.parent / f"{entry.name}.json", config))
            if entry.name in found:
                raise LabError("another run of the list has this name. Give it another one.")
            if (same := names.setdefault(config.sha256, entry.name)) != entry.name:
                raise LabError(f"is the same run as {same}. Leave one of them out.")
            RunFolder(listed.folder).check(listed.config)
        except LabError as error:
            raise LabError(f"{where}: {error}") from None
        found[entry.name] = listed
    return [*found.values()]


def _beside(file: Path, config: Config) -> Record | None:
    """The finished record of a run beside the list; none if there is no such file, or the run is not finished."""
    if not file.exists():
        return None
    record = Record.from_json(file)
    if record.config_sha256 != config.sha256:
        unlike = differences(record.config, config.identity())
        raise LabError(
            f"{file} is the record of another configuration ({'; '.join(unlike) or 'of other fields'}). Give the run "
            "another name, or ask for what was run."
        )
    return record if record.finished else None


def title(file: Path) -> str:
    """What a list is called: its file, or for ``grid.json`` the folder that it lies in."""
    return file_name(resolved(file).parent.name if file.stem == "grid" else file.stem)


def _trees(file: Path) -> list[Any]:
    try:
        trees = read_json(file)
        json.loads(file.read_bytes(), object_pairs_hook=_once)
    except FileNotFoundError:
        raise LabError(f"{file} cannot be read: it does not exist. Name a list of runs (JSON).") from None
    except DamagedError as error:
        raise LabError(f"{file} is no list of runs: {error}") from None
    if not isinstance(trees, list) or not trees:
        raise LabError(f'{file} is no list of runs: it needs [{{"name": ..., "method": ..., "preset": ...}}, ...].')
    return trees


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dictionary of JSON, in which nothing was said twice."""
    for name, times in Counter(name for name, _ in pairs).items():
        if times > 1:
            raise DamagedError(f"{brief(name)} is said {times} times in one place. Say it once.")
    return dict(pairs)


def table(runs: list[Listed]) -> "pd.DataFrame":
    """A row per run, in the order of the list: name, state, LA and wall-clock hours so far, core-hours, purpose."""
    import pandas as pd

    rows = []
    for run in runs:
        record = run.record
        rows.append({
            "run": run.entry.name,
            "state": run.state,
            "LA": record.LA if record is not None and record.finished else None,
            "hours so far": None if record is None or record.seconds is None else record.seconds / 3600,
            "core-hours expected": run.entry.core_hours,
            "for": run.entry.purpose,
        })  # fmt: skip
    numbers = {"LA": float, "hours so far": float, "core-hours expected": float}
    return pd.DataFrame(rows).astype(numbers)


def left(runs: list[Listed]) -> float:
    """Core-hours that are expected to be left: of a run that has begun, its share of tasks not finished."""
    return sum((run.entry.core_hours or 0.0) * (1 - run.tasks_done() / run.tasks) for run in runs)


def states(runs: list[Listed]) -> list[dict[str, Any]]:
    """The entries, each with its folder and its state, JSON-able."""
    return [asdict(run.entry) | {"folder": str(run.folder), "state": run.state} for run in runs]


def summary(runs: list[Listed]) -> str:
    """What is done and what is left, in a line."""
    found = [run.state for run in runs]
    done, begun = found.count(FINISHED), len(found) - found.count(FINISHED) - found.count(NOT_BEGUN)
    said = f"{done} of {len(runs)} runs are finished, {begun} have begun"
    if all(run.entry.core_hours is None for run in runs):  # then 0.0 would be no estimate
        return f"{said}."
    return f"{said}; about {left(runs):.1f} core-hours are left."


def text(runs: list[Listed]) -> str:
    """The table and the summary."""
    from dne_lab.measure import tables

    return tables.to_text(table(runs)) + summary(runs)
