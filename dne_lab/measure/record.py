"""A record: everything a number needs to be believed, as one JSON file (`record.json` of a run folder)."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from dne_lab.core.config import differences, from_dict
from dne_lab.core.errors import LabError, brief
from dne_lab.core.files import inside, resolved, settled, stamp, write_text
from dne_lab.core.schema import DamagedError, Like, RecordedConfig, document, load, plain, read_json
from dne_lab.core.sealing import sealed, unsealed

if TYPE_CHECKING:
    import pandas as pd


YOUNGER = (
    *("data_sha256", "images_sha256", "data_changes", "task_sha256", "curves_sha256", "predictions_sha256"),
    *("python", "numpy", "platform", "imported"),
)
CLOCK = "timing"  # sealed apart
FORMAT = 1  # of record.json; raised when the meaning of a key changes
RUN_FIRST = "Train one first, e.g. `dne-lab run dne --preset digits`, or name a folder that holds record.json files."


# What is within records, more loosely than their own fields: keys may come and go, but what there is has its kind.

Percent = Annotated[float, Field(ge=0, le=100)]
Whole = Annotated[int, Field(ge=0, le=10**30)]
Some = Annotated[int, Field(ge=1, le=10**30)]  # images that something was measured on
Number = Annotated[float, Field(ge=-(10.0**30), le=10.0**30)]
Seconds = Annotated[float, Field(ge=0, le=10.0**12)]
Classes = Annotated[int, Field(ge=1, le=10**6)]
Name = Annotated[str, Field(max_length=1000)]
Seed = Annotated[int, Field(ge=-(10**18), le=10**18)]


class Section(BaseModel):
    """A dictionary within a record: the keys that are known are checked, others may be there."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Memory(Section):
    budget: Whole | None = None
    policy: Name | None = None
    stored: Whole | None = None
    scope: Name | None = None
    bytes: Whole | None = None
    stored_by_task: list[Whole] = []


class _Params(Section):
    total: Whole | None = None
    trainable_by_task: list[Whole] = []
    backbone: Whole = 0


class Timing(Section):
    """Everything that depends on the clock, in seconds; ``resumed``: how often the run went on from a checkpoint;
    ``command``: the one that wrote the record ("" from a notebook), which an exact repetition need not share."""

    seconds: Seconds | None = None
    by_task: list[Seconds] = []
    by_purpose: dict[str, Seconds] = {}
    last_epoch: list[dict[str, Seconds]] = []
    resumed: Whole = 0
    command: Name = ""


class _Other(Section):
    seen_accuracy: list[Percent]
    LA: Percent | None = None
    AA: Percent | None = None


class _Origin(Section):
    run: Name = ""
    task: Whole = 0
    config_sha256: Name = ""
    settings_sha256: Name = ""


Simple = Annotated[dict[str, Any], Like(dict[str, bool | Number | Name | list[Number] | None])]


@document
class Record:
    """One run; accuracies in percent, FLOPs (2 x multiply-accumulate, one image) as integers, clocks in ``timing``.

    ``tasks`` are the numbers of classes of each task, ``class_order`` maps rank -> class number. ``memory`` holds
    budget, policy, stored (distinct exemplars at the end), where given the ``bytes`` that the budget follows from, and
    scope: "run" = one global budget, however many processes. ``params``: total, those that trained in each task, and
    how many of the total are a pretrained ``backbone``'s.
    ``accuracy`` has a row of growing length for each finished task. ``heads`` are those of each expert (empty for other
    networks), ``network`` describes the network, ``other_predictions`` {name: {seen_accuracy, LA, AA}} are a method's
    further predictions, ``before_tuning`` what was predicted before stage 2 of tasks 2, 3, ... (`metrics.old_and_new`;
    empty without a stage 2), ``validation`` > 0 says that the test images were a share of the training images.
    ``settings_sha256`` is the hash of the configuration without its seed ("" if unknown): only equal ones are averaged.
    ``config`` is the resolved configuration but for the place of the data. ``device`` is "cpu" or the name of the GPU;
    ``python``, ``numpy`` and ``platform`` (system and processor) are those of the process that wrote the record ("" in
    older ones). ``forked_from`` {run, task, config_sha256,
    settings_sha256} names the run whose state after that task a run went on from with settings of its own: accuracies,
    curves and seconds up to that task are the other run's. ``products`` says how
    matrix products were computed: a CPU's library, a GPU's type ("" if unknown: MKL on x86; on a GPU bf16, if
    ``precision`` is "auto"). ``flops_training`` is what learning all tasks took
    (`measure.learning_cost`). ``data_sha256`` tells class names and images from others ("" if unknown),
    ``images_sha256`` does so whatever the order of the classes: only equal ones are averaged,
    ``data_changes`` says where a run went on with changed data, ``task_sha256`` are the digests of its tasks' files,
    ``curves_sha256`` and ``predictions_sha256`` those of the two files beside it. ``imported`` says that another
    program trained this, which one, and what its file says (`imported.read`); ``accuracy`` may be missing then. The
    JSON file is `sealed`.

    Raises:
        LabError: rows, lists and summary values that contradict each other, or are no percentages.
    """

    method: Name
    preset: Name
    dataset: Name
    tasks: Annotated[list[Classes], Field(min_length=1, max_length=10**5)]
    class_order: list[Whole]
    memory: Annotated[dict[str, Any], Like(_Memory)]
    seed: Seed
    epochs: Whole
    accuracy: Annotated[list[list[float]], Like(list[list[Percent]])]
    seen_accuracy: Annotated[list[float], Like(list[Percent])]
    LA: Annotated[float, Like(Percent)] | None
    AA: Annotated[float, Like(Percent)] | None
    forgetting: Annotated[float, Like(Number)] | None
    flops_literal: Whole | None
    flops_spent: Whole | None
    params: Annotated[dict[str, Any], Like(_Params)]
    device: Name
    torch: Name
    code_version: Name
    config_sha256: Name
    finished: bool
    timing: Annotated[dict[str, Any], Like(Timing)]
    joint: bool = False
    heads: list[Classes] = field(default_factory=list)
    network: Simple = field(default_factory=dict)
    other_predictions: Annotated[dict[str, dict[str, Any]], Like(dict[str, _Other])] = field(default_factory=dict)
    before_tuning: Annotated[dict[str, list[float]], Like(dict[str, list[Percent | None]])] = field(
        default_factory=dict
    )
    validation: Annotated[float, Like(Annotated[float, Field(ge=0, lt=1)])] = 0.0
    threads: Whole = 1
    products: Name = ""
    settings_sha256: Name = ""
    config: Annotated[dict[str, Any], Like(RecordedConfig)] = field(default_factory=dict)
    forked_from: Annotated[dict[str, Any], Like(_Origin)] = field(default_factory=dict)
    flops_training: Whole | None = None
    data_sha256: Name = ""
    images_sha256: Name = ""
    data_changes: list[dict[str, Any]] = field(default_factory=list)
    task_sha256: list[Name] = field(default_factory=list)
    curves_sha256: Name = ""
    predictions_sha256: Name = ""
    python: Name = ""
    numpy: Name = ""
    platform: Name = ""
    imported: dict[str, Name] = field(default_factory=dict)
    format: int = FORMAT

    def __post_init__(self) -> None:
        done = len(self.seen_accuracy)
        rows = list(range(1, done + 1)) if self.accuracy or not self.imported else []
        if [len(row) for row in self.accuracy] != rows:
            raise LabError(
                f"record of {self.id}: accuracy and seen_accuracy must have one entry for each finished task."
            )
        if self.forked_from and not {"task", "settings_sha256"} <= self.forked_from.keys():
            raise LabError(f"record of {self.id}: forked_from lacks task or settings_sha256.")
        if done > len(self.tasks) or (self.finished and done != len(self.tasks)):
            raise LabError(f"record of {self.id}: accuracies of {done} tasks, but {len(self.tasks)} tasks.")
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
        return cls.from_tree(read(Path(path)), Path(path))

    @classmethod
    def from_tree(cls, tree: Any, path: Path) -> "Record":
        """A record from its dictionary; ``path`` is named in errors."""
        if not is_record(tree):
            raise LabError(
                f"{path} is not a record: it lacks method and seen_accuracy. Name a run folder's record.json."
            )
        # Fields come and go with defaults; FORMAT changes when the meaning of one does.
        fields = dataclasses.fields(cls)
        needed = [f.name for f in fields if f.default is f.default_factory is dataclasses.MISSING]
        wrong = [f"without {name}" for name in needed if name not in tree]
        if wrong or tree.get("format") != FORMAT:
            what = ", ".join(wrong) if wrong else f"format {brief(tree.get('format'))} instead of {FORMAT}"
            raise LabError(f"{path}: run folder of another version ({what}). Run it again with this version.")
        tree = unsealed(tree, path, CLOCK)  # after the version, which may seal otherwise
        try:
            record = load(cls, tree, closed=False)
        except LabError as error:
            raise LabError(f"{path} is damaged: {error}") from error
        if path.name == RECORD:
            _check_place(record, path)
        return record

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionary; fields that older records lack are left out where they are unknown."""
        tree = dict(plain({field.name: getattr(self, field.name) for field in dataclasses.fields(self)}))
        return {name: value for name, value in tree.items() if value or name not in YOUNGER}

    def content(self) -> dict[str, Any]:
        """What the JSON file holds: `to_dict` and the digest of it."""
        return sealed(self.to_dict(), CLOCK)

    def without_timing(self) -> dict[str, Any]:
        """`to_dict` without what depends on the clock: equal for a run and its exact repetition."""
        tree = self.to_dict()
        del tree[CLOCK]
        return tree

    def write(self, path: str | Path) -> None:
        """Writes the JSON file, atomically."""
        write_text(Path(path), json.dumps(self.content(), indent=1, allow_nan=False) + "\n")

    def table(self) -> "pd.DataFrame":
        """One row a finished task: task, classes, seen accuracy %, then the accuracy on each task (NaN: not seen)."""
        import pandas as pd

        rows = [
            {"task": number, "classes": sum(self.tasks[:number]), "seen accuracy %": seen}
            | {f"task {j} %": value for j, value in enumerate(row, start=1)}
            for number, (seen, row) in enumerate(
                zip(self.seen_accuracy, self.accuracy or [[]] * len(self.seen_accuracy), strict=True), start=1
            )
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
        alone = not path.is_dir()
        some = [(file, tree) for file, tree in trees(path) if alone or file.name == RECORD or is_record(tree)]
        if not some:
            raise LabError(f"{path}: no record in this folder. {RUN_FIRST}")
        found += [Record.from_tree(tree, file) for file, tree in some]
    if not found:
        raise LabError(f"no folder given. {RUN_FIRST}")
    return unique(found)


def unique(records: Iterable[Record]) -> list[Record]:
    """Each run once, where it was first; of copies of one record the one that knows what learning took."""
    found: dict[str, Record] = {}
    for record in records:
        tree = record.without_timing()
        tree.pop("flops_training", None)
        key = json.dumps(tree, sort_keys=True)
        if key not in found or found[key].flops_training is None:
            found[key] = record
    return list(found.values())


def is_record(tree: Any) -> bool:
    """Whether a JSON tree is the record of a run, of this version or another one."""
    return isinstance(tree, dict) and "method" in tree and "seen_accuracy" in tree


def _check_place(record: Record, file: Path) -> None:
    """Raises a `LabError` where the record in a run folder is that of another run: a whole one, put there by hand."""
    beside = file.with_name(CONFIG)
    if not beside.is_file():
        return
    try:
        tree = read(beside)
        here = from_dict(tree).identity()
    except LabError:  # who opens the folder is told of it
        return
    known = record.config or {name: here.get(name) for name in here} | {"method": record.method, "seed": record.seed}
    if from_dict(tree).sha256 != record.config_sha256 and (unlike := differences(here, known)):
        raise LabError(
            f"{file} is the record of another run than {CONFIG} beside it: {'; '.join(unlike)}. It is untouched. Bring "
            "back the record of this run."
        )


# Finding: every kind of record is found by `trees`, which reads a file once while it stays the same.

RECORD, CONFIG = "record.json", "config.json"
_OURS = (b'"seen_accuracy"', b'"config_sha256"', b'"flops_literal"', b'"train_step"')  # keys that this program writes
_seen: dict[Path, tuple[tuple[int, ...], Any]] = {}
_REMEMBERED = 20_000  # files that are remembered


def trees(paths: str | Path | Iterable[str | Path], wrong: list[LabError] | None = None) -> Iterator[tuple[Path, Any]]:
    """The JSON files given, and those in folders and below, in the order of their names: each once, with its content.

    In folders, hidden files and folders are passed over, and so is what is no JSON and was not written by this program
    (settings of an editor, notes).

    Raises:
        LabError: a path that does not exist or cannot be read; a damaged file of this program. With a list ``wrong``
            it gets the errors, and the others are read.
    """
    given = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    passed: set[Path] = set()
    for path in given:
        folder = path.is_dir()
        for file in sorted(inside(path, "*.json")) if folder else [path]:
            place = resolved(file)
            if place in passed:
                continue
            passed.add(place)
            try:
                tree = read(file)
            except LabError as error:
                if folder and not _ours(file):
                    continue
                if wrong is None:
                    raise
                wrong.append(error)
                continue
            yield file, tree


def read(path: Path) -> Any:
    """The content of one JSON file, from memory while the file stays as it is; not to be changed.

    Raises:
        LabError: missing, no regular file, or no JSON.
    """
    try:
        now, place = stamp(path), path.absolute()
        if place in _seen and _seen[place][0] == now:
            return _seen[place][1]
        tree = read_json(path)
    except FileNotFoundError:
        raise LabError(f"{path} does not exist. {RUN_FIRST}") from None
    except DamagedError as error:
        if path.suffix != ".json":
            raise LabError(f"{path} is no record of a run, but another kind of file. {RUN_FIRST}") from None
        raise DamagedError(f"{error} Leave it out, or make it again.") from error
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror or error}. {RUN_FIRST}") from error
    if settled(now):
        if len(_seen) >= _REMEMBERED:
            _seen.clear()
        _seen[place] = now, tree
    return tree


def _ours(file: Path) -> bool:
    """Whether a file that cannot be read as JSON was one of this program's."""
    if file.name == RECORD:
        return True
    if not file.is_file():  # a pipe would be waited for
        return False
    try:
        with file.open("rb") as opened:
            start = opened.read(1_000_000)
    except OSError:
        return False
    return any(key in start for key in _OURS)


M = TypeVar("M")


def images_of(one: Any) -> str:
    """The digest of the images that a record, of a run or of an instrument, is about; "" where it does not say."""
    return str(getattr(one, "images_sha256", "") or getattr(one, "trained", {}).get("images_sha256", ""))


def by_images(members: Sequence[M]) -> dict[str, list[M]]:
    """Records that are about the same images, by their digest. One that does not say is taken for the others, unless
    they are about several."""
    known = set(filter(None, map(images_of, members)))
    if len(known) < 2:
        return {"": list(members)}
    found: dict[str, list[M]] = {}
    for member in members:
        found.setdefault(images_of(member), []).append(member)
    return found
