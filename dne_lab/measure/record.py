"""A record: everything a number needs to be believed, as one JSON file (`record.json` of a run folder)."""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from dne_lab.core.errors import LabError
from dne_lab.core.files import write_text

if TYPE_CHECKING:
    import pandas as pd


FORMAT = 1  # of record.json; raised when the meaning of a key changes
RUN_FIRST = "Train one first, e.g. `dne-lab run dne --preset digits`, or name a folder that holds record.json files."


@dataclass(frozen=True, kw_only=True)
class Record:
    """One run; accuracies in percent, FLOPs (2 x multiply-accumulate, one image) as integers, clocks in ``timing``.

    ``tasks`` are the numbers of classes of each task, ``class_order`` maps rank -> class number. ``memory`` holds
    budget, policy, stored (distinct exemplars at the end), where given the ``bytes`` that the budget follows from, and
    scope: "run" = one global budget, however many processes.
    ``accuracy`` has a row of growing length for each finished task. ``heads`` are those of each expert (empty for other
    networks), ``network`` describes the network, ``other_predictions`` {name: {seen_accuracy, LA, AA}} are a method's
    further predictions, ``before_tuning`` what was predicted before stage 2 of tasks 2, 3, ... (`metrics.old_and_new`;
    empty without a stage 2), ``validation`` > 0 says that the test images were a share of the training images.
    ``settings_sha256`` is the hash of the configuration without its seed ("" if unknown): only equal ones are averaged.
    ``config`` is the resolved configuration but for the place of the data. ``forked_from`` {run, task, config_sha256,
    settings_sha256} names the run whose state after that task a run went on from with settings of its own: accuracies,
    curves and seconds up to that task are the other run's. ``products`` names the library of
    float32 matrix products on a CPU ("" if unknown: MKL on x86). ``flops_training`` is what learning all tasks took
    (`measure.learning_cost`).

    Raises:
        LabError: rows, lists and summary values that contradict each other, or are no percentages.
    """

    method: str
    preset: str
    dataset: str
    tasks: list[int]
    class_order: list[int]
    memory: dict[str, Any]
    seed: int
    epochs: int
    accuracy: list[list[float]]
    seen_accuracy: list[float]
    LA: float | None
    AA: float | None
    forgetting: float | None
    flops_literal: int | None
    flops_spent: int | None
    params: dict[str, Any]
    device: str
    torch: str
    code_version: str
    config_sha256: str
    finished: bool
    timing: dict[str, Any]
    joint: bool = False
    heads: list[int] = field(default_factory=list)
    network: dict[str, Any] = field(default_factory=dict)
    other_predictions: dict[str, dict[str, Any]] = field(default_factory=dict)
    before_tuning: dict[str, list[float]] = field(default_factory=dict)
    validation: float = 0.0
    threads: int = 1
    products: str = ""
    settings_sha256: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    forked_from: dict[str, Any] = field(default_factory=dict)
    flops_training: int | None = None
    format: int = FORMAT

    def __post_init__(self) -> None:
        # Equality, hashes and files must not depend on whether a caller gave tuples or lists.
        for name, value in _plain(dataclasses.asdict(self)).items():
            object.__setattr__(self, name, value)
        if not self.tasks or not all(type(size) is int and size > 0 for size in self.tasks):
            raise LabError(f"record of {self.id}: tasks = {self.tasks} are no numbers of classes.")
        done = len(self.accuracy)
        if [len(row) for row in self.accuracy] != list(range(1, done + 1)) or len(self.seen_accuracy) != done:
            raise LabError(
                f"record of {self.id}: accuracy and seen_accuracy must have one entry for each finished task."
            )
        if done > len(self.tasks) or (self.finished and done != len(self.tasks)):
            raise LabError(f"record of {self.id}: accuracies of {done} tasks, but {len(self.tasks)} tasks.")
        for value in [*self.seen_accuracy, *(value for row in self.accuracy for value in row)]:
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
                raise LabError(f"record of {self.id}: accuracy {value!r} is not a percentage.")
        if done and (self.LA is None or self.AA is None):
            raise LabError(f"record of {self.id}: LA and AA are missing.")
        if done and not math.isclose(self.LA or 0, self.seen_accuracy[-1], abs_tol=1e-6):
            raise LabError(
                f"record of {self.id}: LA = {self.LA}, but the last seen accuracy is {self.seen_accuracy[-1]}."
            )

    @property
    def id(self) -> str:
        """Method, preset, seed and the start of the configuration's hash: what a figure cites."""
        return f"{self.method}-{self.preset.replace(',', '+')}-s{self.seed}-{self.config_sha256[:8]}"

    @property
    def seconds(self) -> float | None:
        """Wall-clock training seconds (``timing["seconds"]``), None if not measured."""
        value = self.timing.get("seconds")
        return None if value is None else float(value)

    @classmethod
    def from_json(cls, path: str | Path) -> "Record":
        """Reads one record file; raises LabError for a missing, damaged or foreign file and for another version."""
        return cls.from_tree(_read(Path(path)), Path(path))

    @classmethod
    def from_tree(cls, tree: Any, path: Path) -> "Record":
        """A record from its dictionary; ``path`` is named in errors."""
        if not _is_record(tree):
            raise LabError(
                f"{path} is not a record: it lacks method and seen_accuracy. Name a run folder's record.json."
            )
        # Fields come and go with defaults; FORMAT changes when the meaning of one does.
        fields = dataclasses.fields(cls)
        needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        wrong = [f"without {name}" for name in needed if name not in tree]
        if wrong or tree.get("format") != FORMAT:
            what = ", ".join(wrong) if wrong else f"format {tree.get('format')} instead of {FORMAT}"
            raise LabError(f"{path}: run folder of another version ({what}). Run it again with this version.")
        try:
            return cls(**{f.name: tree[f.name] for f in fields if f.name in tree})
        except (TypeError, AttributeError) as error:  # a value of the wrong kind, e.g. a number for a list
            raise LabError(f"{path} is damaged: {error}. Run it again.") from error
        except LabError as error:
            raise LabError(f"{path} is damaged: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary, the content of the JSON file."""
        return _plain(dataclasses.asdict(self))

    def without_timing(self) -> dict[str, Any]:
        """`to_dict` without what depends on the clock: equal for a run and its exact repetition."""
        tree = self.to_dict()
        del tree["timing"]
        return tree

    def write(self, path: str | Path) -> None:
        """Writes the JSON file, atomically."""
        from dne_lab.core.files import write_text

        write_text(Path(path), json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")

    def table(self) -> "pd.DataFrame":
        """One row a finished task: task, classes, seen accuracy %, then the accuracy on each task (NaN: not seen)."""
        import pandas as pd

        rows = [
            {"task": number, "classes": sum(self.tasks[:number]), "seen accuracy %": seen}
            | {f"task {j} %": value for j, value in enumerate(row, start=1)}
            for number, (seen, row) in enumerate(zip(self.seen_accuracy, self.accuracy, strict=True), start=1)
        ]
        columns = ["task", "classes", "seen accuracy %", *(f"task {j} %" for j in range(1, len(self.accuracy) + 1))]
        return pd.DataFrame(rows, columns=columns)


def find(paths: str | Path | Iterable[str | Path]) -> list[Record]:
    """All records in files and, recursively, folders, in the order of their paths; exact duplicates once.

    In folders every ``record.json`` is read, and every other ``*.json`` that is a record (not configurations).

    Raises:
        LabError: nothing found, a path that does not exist, or a damaged record.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    found: list[Record] = []
    for path in given:
        if path.is_dir():
            files = [(file, _read(file)) for file in sorted(path.rglob("*.json")) if file.is_file()]
            files = [(file, tree) for file, tree in files if file.name == "record.json" or _is_record(tree)]
        else:
            files = [(path, _read(path))]
        if not files:
            raise LabError(f"{path}: no record in this folder. {RUN_FIRST}")
        found += [Record.from_tree(tree, file) for file, tree in files]
    if not found:
        raise LabError(f"no folder given. {RUN_FIRST}")
    return unique(found)


def unique(records: Iterable[Record]) -> list[Record]:
    """Each run once, where it was first; of copies of one record the one that knows what learning took."""
    found: dict[str, Record] = {}
    for record in records:
        key = json.dumps(dataclasses.replace(record, flops_training=None).without_timing(), sort_keys=True)
        if key not in found or found[key].flops_training is None:
            found[key] = record
    return list(found.values())


def _is_record(tree: Any) -> bool:
    return isinstance(tree, dict) and "method" in tree and "seen_accuracy" in tree


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise LabError(f"{path} does not exist. {RUN_FIRST}") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror}. {RUN_FIRST}") from error
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        if path.suffix != ".json":
            raise LabError(f"{path} is no record of a run, but another kind of file. {RUN_FIRST}") from None
        raise LabError(f"{path} is damaged: not JSON ({error}). Leave it out, or train that run again.") from error


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _plain(value: Any) -> Any:
    """``value`` with tuples as lists, NumPy scalars as Python's, keys as text: what JSON would give back."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(inner) for inner in value]
    return value.item() if hasattr(value, "item") and not isinstance(value, str) else value


# Records of the instruments as JSON files: how they are written, found again and checked.

R = TypeVar("R")


def write(record: Any, path: Path) -> None:
    """Writes a dataclass as a JSON file, atomically."""
    write_text(path, json.dumps(dataclasses.asdict(record), separators=(",", ":"), allow_nan=False) + "\n")


def trained(record: Record) -> dict[str, Any]:
    """What tells one training of a configuration from another, on another machine or version: last digits differ.

    ``digest`` is the start of the SHA-256 of the run's record without its clock.
    """
    tree = json.dumps(record.without_timing(), sort_keys=True)
    told = {name: getattr(record, name) for name in ("LA", "code_version", "torch", "device", "threads")}
    return {**told, "digest": hashlib.sha256(tree.encode()).hexdigest()[:16]}


def among(paths: Path | Iterable[Path], of: type[R]) -> list[R]:
    """All records of a class in files and, recursively, folders, in the order of their paths; other files are passed
    over.

    The class is a dataclass with defaults for ``kind`` (which tells its files) and ``format`` (its version, raised when
    the meaning of a field changes; fields with defaults may be missing), and names in ``AGAIN`` how to make a record.

    Raises:
        LabError: a damaged file, or a record of another version.
    """
    given = [paths] if isinstance(paths, Path) else list(paths)
    listed = [file for path in given for file in (sorted(path.rglob("*.json")) if path.is_dir() else [path])]
    files = {file.resolve(): file for file in listed}.values()  # once, also where one folder lies in another
    known = {field.name: field.default for field in dataclasses.fields(of)}  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    needed = {f.name for f in dataclasses.fields(of) if f.default is f.default_factory is missing}  # type: ignore[arg-type]
    again = of.AGAIN  # type: ignore[attr-defined]
    found = []
    for file in files:
        try:
            tree = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise LabError(f"{file} cannot be read ({error}). {again}") from error
        if not isinstance(tree, dict) or tree.get("kind") != known["kind"]:
            continue
        if tree.get("format") != known["format"] or not needed <= tree.keys() <= known.keys():
            raise LabError(f"{file}: {known['kind']} record of another version. {again}")
        found.append(of(**tree))
    return found


def find_kept(paths: Path | Iterable[Path], of: type[R]) -> list[R]:
    """`among`, but none at all is a `LabError` too."""
    given = [paths] if isinstance(paths, Path) else list(paths)
    found = among(given, of)
    if not found:
        kind = next(field.default for field in dataclasses.fields(of) if field.name == "kind")  # type: ignore[arg-type]
        raise LabError(f"{', '.join(map(str, given))}: no {kind} record there. {of.AGAIN}")  # type: ignore[attr-defined]
    return found
