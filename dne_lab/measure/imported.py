"""Results of other programs as records: what a PyCIL log or Mammoth's result files say, marked as imported.

Both formats are those that these programs write; nothing of a file is executed. A record that was imported has
``imported`` {from, file, sha256, prediction, settings}, no FLOPs, seconds or weights, and a name of its own in tables:
``iCaRL (PyCIL)``. It is never averaged with runs of ours.
"""

import ast
import csv
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dne_lab.core.config import CLASSES, TASKS
from dne_lab.core.errors import LabError, brief, unknown
from dne_lab.core.files import check_regular, file_name
from dne_lab.core.sealing import sha256
from dne_lab.measure import metrics
from dne_lab.measure.record import Record

PYCIL, MAMMOTH = "PyCIL", "Mammoth"
LARGEST = 16_000_000  # bytes of a log: some seconds, whatever its lines are
LONGEST = 1_000_000  # letters of a list or dictionary in one
CNN, NME = "cnn", "nme"


@dataclass
class Result:
    """One training, as a log tells it; accuracies in percent.

    ``seen`` after each task over all classes seen; ``matrix`` rows of growing length, empty where the log does not have
    it; ``others`` ``seen`` of further predictions; ``order`` rank -> class, empty if unknown; ``tasks`` classes of all
    tasks, as far as they are known.
    """

    settings: dict[str, str] = field(default_factory=dict)
    seen: list[float] = field(default_factory=list)
    matrix: list[list[float]] = field(default_factory=list)
    others: dict[str, list[float]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    tasks: list[int] = field(default_factory=list)
    prediction: str = ""


def read(tool: str, path: Path, tasks: Sequence[int] = (), prediction: str | None = None) -> list[Record]:
    """The records of all trainings in a file, ``tool``: "pycil" or "mammoth".

    Args:
        tasks: classes of each task, where the file does not say.
        prediction: of PyCIL "cnn" (the classifier) or "nme" (nearest mean of exemplars); default: nme of iCaRL, as its
            authors report it, cnn of all others, and the other one under ``other_predictions``.

    Raises:
        LabError: no such file or no text, no result in it, results that contradict each other, are no percentages, or
            are of a setting in which the task is known.
    """
    if tool not in READERS:
        raise unknown("program", tool, READERS)
    if prediction not in (None, CNN, NME):
        raise unknown("prediction", prediction, (CNN, NME))
    if prediction is not None and tool != "pycil":
        raise LabError(f"--prediction {prediction} is for PyCIL, which has two: leave it out.")
    title, reader = READERS[tool]
    data, text = _content(path)
    found = [result for result in reader(path, text, list(tasks), prediction) if result.seen]
    if not found:
        raise LabError(f"{path} has no result of {title}: {WANTED[tool]}")
    return [_record(title, path, sha256(data), result) for result in found]


def _content(path: Path) -> tuple[bytes, str]:
    try:
        check_regular(path, "a log or a table of results")
        if (size := path.stat().st_size) > LARGEST:
            raise LabError(f"{path} has {size:,} bytes; logs of up to {LARGEST:,} are read.")
        data = path.read_bytes()
        return data, data.decode("utf-8-sig")
    except FileNotFoundError:
        raise LabError(f"{path} does not exist. Name the file that the other program wrote.") from None
    except UnicodeDecodeError:
        raise LabError(f"{path} is no text in UTF-8: name a log (PyCIL) or a table of results (Mammoth).") from None
    except OSError as error:
        raise LabError(f"{path} cannot be read: {error.strerror or error}.") from error


def _record(title: str, path: Path, digest: str, result: Result) -> Record:
    """A result as a record: whole where all tasks were learned."""
    told, seen = result.settings, result.seen
    where = f"{path}, {told.get('model_name') or told.get('model') or 'a run'}"
    _check_accuracies(where, [*seen, *(v for row in result.matrix for v in row)])
    for values in result.others.values():
        _check_accuracies(where, values)
    seed = _whole(told.get("seed"), 0)
    same = {name: value for name, value in told.items() if name not in ("seed", "device") and not CHANCE.match(name)}
    settings = hashlib.sha256(json.dumps([title, same], sort_keys=True).encode()).hexdigest()
    network = told.get("convnet_type") or told.get("backbone_type") or told.get("backbone")
    budget = _whole(told.get("memory_size") or told.get("buffer_size"), 0)
    policy = "fixed" if told.get("fixed_memory") == "True" else "reservoir" if title == MAMMOTH else "shared"
    if policy == "fixed":
        budget = _whole(told.get("memory_per_class"), 0) * sum(result.tasks)
    return Record(
        method=_name(told.get("model_name") or told.get("model")),
        preset="",
        dataset=_name(re.sub("^seq-", "", told.get("dataset", ""))),
        tasks=result.tasks,
        class_order=result.order or list(range(sum(result.tasks))),
        memory={"budget": budget, "policy": policy if budget else "none"},
        seed=seed,
        epochs=_whole(told.get("epochs") or told.get("n_epochs"), 0),
        accuracy=result.matrix,
        seen_accuracy=seen,
        LA=metrics.last_accuracy(seen),
        AA=metrics.average_accuracy(seen),
        forgetting=metrics.forgetting(result.matrix) if result.matrix else None,
        flops_literal=None,
        flops_spent=None,
        params={},
        device="",
        torch="",
        code_version="",
        config_sha256=hashlib.sha256(f"{settings}{seed}".encode()).hexdigest(),
        finished=len(seen) == len(result.tasks),
        timing={},
        network={"name": network} if network else {},
        other_predictions={
            name: {"seen_accuracy": o, "LA": metrics.last_accuracy(o), "AA": metrics.average_accuracy(o)}
            for name, o in result.others.items()
            if len(o) == len(seen)
        },
        settings_sha256=settings,
        imported={
            "from": title,
            "file": path.name[:1000],
            "sha256": digest,
            "prediction": result.prediction,
            "settings": json.dumps(told, sort_keys=True)[:1000],
        },
    )


def _check_accuracies(where: str | Path, values: Iterable[Any]) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise LabError(f"{where}: accuracy {brief(value)}: must be a percentage, from 0 to 100.")


CHANCE = re.compile("conf_|wandb_|time|notes|prefix|config|results_path|output_dir|experiment_id|num_workers|ckpt|job")


def _name(text: str | None) -> str:
    return file_name(text or "unknown")


def _whole(text: str | None, otherwise: int) -> int:
    try:
        return int(float(text)) if text is not None else otherwise
    except (ValueError, OverflowError):
        return otherwise


# PyCIL: the log of its trainer ----------------------------------------------------------------------------------------

_SETTING = re.compile(r"(\w{1,60}): (.{1,1000})")
_GROUPED = re.compile(r"(CNN|NME): (\{.*\})")
_CURVE = re.compile(r"(CNN|NME) top1 curve: (\[.*\])")
_EPOCH = re.compile(r"Task (\d+), Epoch \d+/(\d+)")
_NUMPY = re.compile(r"np\.float\d*\(([^()]*)\)")  # how NumPy 2 writes a number within a list
_RANGE = re.compile(r"(\d{1,7})-(\d{1,7})")


def _pycil(path: Path, text: str, tasks: list[int], prediction: str | None) -> Iterator[Result]:
    """Every training of a log: one begins with its settings, or where a curve has one entry again."""
    for number, part in enumerate(_trainings(path, text), start=1):
        settings, order, groups, curves = part
        method = settings.get("model_name", "")
        wanted = prediction or (NME if method == "icarl" and curves.get(NME) else CNN)
        if not curves.get(wanted):
            if prediction is not None and any(curves.values()):
                raise LabError(f"{path}: training {number} ({method or 'unknown'}) has no {wanted.upper()} curve.")
            continue
        seen = curves[wanted]
        sizes = tasks or _sizes(path, settings, len(seen), len(order), groups.get(wanted, []))
        if not sizes:
            raise LabError(
                f"{path} does not say how the classes were split (init_cls, increment): give --tasks 50,10,10."
            )
        _check_sizes(path, sizes, len(seen))
        rows = groups.get(wanted, [])
        if len(rows) == len(seen) and any(abs(row["total"] - a) > 0.011 for row, a in zip(rows, seen, strict=True)):
            raise LabError(f"{path}: training {number}: its curve and its grouped accuracies contradict each other.")
        matrix = [_by_task(row, sizes[: i + 1]) for i, row in enumerate(rows)] if len(rows) == len(seen) else []
        others = {name: values for name, values in curves.items() if name != wanted and values}
        yield Result(
            settings, seen, [row for row in matrix if row] if all(matrix) else [], others,
            order if len(order) == sum(sizes) else [], sizes, wanted,
        )  # fmt: skip


Training = tuple[dict[str, str], list[int], dict[str, list[dict[str, float]]], dict[str, list[float]]]


def _trainings(path: Path, text: str) -> Iterator[Training]:
    settings, order, groups, curves = {}, [], {}, {}  # type: Training
    for line in text.splitlines():
        message = line.partition("=> ")[2].strip() if "=> " in line else line.strip()
        if found := _GROUPED.fullmatch(message):
            if isinstance(row := _literal(found[2]), dict) and "total" in row:
                if other := next((name for name in row if not isinstance(name, str)), None):
                    raise LabError(f"{path}: accuracies of {brief(other)}: must be of classes, such as '00-09'.")
                _check_accuracies(path, row.values())
                groups.setdefault(found[1].lower(), []).append(row)
        elif found := _CURVE.fullmatch(message):
            if not isinstance(values := _literal(found[2]), list):
                continue
            _check_accuracies(path, values)
            name = found[1].lower()
            if len(values) == 1 and len(curves.get(name, [])) > 0:  # another one, of the same settings
                yield dict(settings), order, {n: rows[:-1] for n, rows in groups.items()}, dict(curves)
                groups, curves = {n: rows[-1:] for n, rows in groups.items()}, {}
            curves[name] = [float(value) for value in values]
        elif found := _EPOCH.search(message):
            settings["epochs"] = found[2]
        elif message.startswith("[") and isinstance(values := _literal(message), list):
            if values and all(type(v) is int for v in values) and sorted(values) == list(range(len(values))):
                order = values
        elif (found := _SETTING.fullmatch(message)) and found[1] in SETTINGS:
            if curves:
                yield settings, order, groups, curves
                settings, order, groups, curves = {}, [], {}, {}
            settings[found[1]] = found[2]
    if curves:
        yield settings, order, groups, curves


SETTINGS = (
    *("prefix", "dataset", "memory_size", "memory_per_class", "fixed_memory", "shuffle", "init_cls", "increment"),
    *("model_name", "convnet_type", "backbone_type", "device", "seed", "batch_size", "optimizer", "init_lr", "lrate"),
)


def _literal(text: str) -> Any:
    """A list or dictionary of numbers, None for anything else."""
    if len(text) > LONGEST:
        return None
    try:
        return ast.literal_eval(_NUMPY.sub(r"\1", text))
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def _sizes(path: Path, settings: dict[str, str], done: int, classes: int, rows: list[dict[str, float]]) -> list[int]:
    """Classes of each task: of all classes, where their order is known, else of the tasks that were learned."""
    first, step = _whole(settings.get("init_cls"), 0), _whole(settings.get("increment"), 0)
    if first < 1 or step < 1:
        ranges = [_RANGE.fullmatch(name) for name in (rows[-1] if rows else {})]
        return [int(r[2]) - int(r[1]) + 1 for r in ranges if r] if len([r for r in ranges if r]) == done else []
    total = classes or first + step * (done - 1)
    later = max(0, total - first)
    count = 1 + -(-later // step)
    if total > CLASSES or count > TASKS:
        raise LabError(
            f"{path}: init_cls {brief(first)}, increment {brief(step)} are {brief(total)} classes in {brief(count)} "
            f"tasks; up to {CLASSES:,} in {TASKS:,} are taken."
        )
    return [min(first, total), *(min(step, later - done) for done in range(0, later, step))]


def _by_task(row: dict[str, float], sizes: Sequence[int]) -> list[float]:
    """The accuracy on each task, from that of ranges of classes; empty where a range lies in two tasks. Test images are
    taken to be as many for each class."""
    values, start = [], 0
    ranges = {(int(r[1]), int(r[2]) + 1): value for name, value in row.items() if (r := _RANGE.fullmatch(name))}
    for size in sizes:
        inside = {(a, b): v for (a, b), v in ranges.items() if start <= a < b <= start + size}
        if sum(b - a for a, b in inside) != size:
            return []
        values.append(sum((b - a) * float(v) for (a, b), v in inside.items()) / size)
        start += size
    return values


def _check_sizes(path: Path, sizes: Sequence[int], done: int) -> None:
    if min(sizes) < 1 or sum(sizes) > CLASSES or len(sizes) > TASKS:
        raise LabError(
            f"{path} has {len(sizes):,} tasks of {brief(list(sizes))} classes; up to {CLASSES:,} classes in {TASKS:,} "
            "tasks are taken, each of at least one."
        )
    if len(sizes) < done:
        raise LabError(
            f"{path} has accuracies after {done} tasks, but its settings or --tasks make only {len(sizes)}, of "
            f"{brief(list(sizes))} classes. Is the log of one run, and whole? Or give --tasks with all of them."
        )


# Mammoth: mean_accs.csv, and the lines of logs.pyd --------------------------------------------------------------------

CLASSES_OF = {"seq-mnist": 10, "seq-cifar10": 10, "seq-cifar100": 100, "seq-tinyimg": 200, "seq-miniimg": 100}
CLASSES_OF |= {"seq-cub200": 200, "seq-imagenet-r": 200, "seq-cifar10-224": 10, "seq-cifar100-224": 100}
_PAIR = re.compile(r"'(\w{1,60})': ('[^']{0,1000}'|\"[^\"]{0,1000}\"|[^,'\"{}\[\]]{1,60})")
_MEAN = re.compile(r"(?:accmean_)?task(\d{1,4})")
_SINGLE = re.compile(r"accuracy_(\d{1,4})_task(\d{1,4})")


def _mammoth(path: Path, text: str, tasks: list[int], prediction: str | None) -> Iterator[Result]:
    """Every row of a table, or every line of a log, is a training."""
    folders = path.absolute().parts[:-1]
    if other := next((part for part in folders if part in OTHERS), ""):
        raise LabError(f"{path} is of {other}: only class-il, where the task is not known, is compared here.")
    for number, row in enumerate(_rows(text), start=1):
        means = _numbered({int(f[1]): v for name, v in row.items() if (f := _MEAN.fullmatch(name))})
        if not means:
            continue
        single = {(int(f[2]), int(f[1])): v for name, v in row.items() if (f := _SINGLE.fullmatch(name))}
        matrix = _matrix(single, len(means))
        dataset = row.get("dataset") or next((part for part in folders if part in CLASSES_OF), "")
        sizes = tasks or _equal(CLASSES_OF.get(dataset, 0), len(means))
        if not sizes:
            raise LabError(
                f"{path}, row {number}: {len(means)} tasks of {dataset or 'an unknown data set'}, of how many classes "
                "each? Give --tasks 10,10,10."
            )
        _check_sizes(path, sizes, len(means))
        names = {n: v for n, v in row.items() if not (_MEAN.fullmatch(n) or _SINGLE.fullmatch(n) or n in METRICS)}
        model = row.get("model") or folders[-1]
        yield Result({**names, "dataset": dataset, "model": model}, means, matrix, tasks=sizes)


OTHERS = ("task-il", "domain-il", "general-continual")
METRICS = ("forward_transfer", "backward_transfer", "forgetting")


def _rows(text: str) -> Iterable[dict[str, str]]:
    """Names and values as text, of a CSV with a header or of one dictionary a line (read, never evaluated)."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    if first.lstrip().startswith("{"):
        for line in text.splitlines():
            yield {name: value.strip("'\" ") for name, value in _PAIR.findall(_NUMPY.sub(r"\1", line))}
        return
    try:
        for row in csv.DictReader(text.splitlines()):
            yield {name: value for name, value in row.items() if isinstance(name, str) and isinstance(value, str)}
    except csv.Error as error:
        raise LabError(f"the table cannot be read ({error}).") from error


def _numbered(values: dict[int, str]) -> list[float]:
    """Numbers of tasks 1, 2, ... as far as there are any in a row."""
    found = []
    for number in range(1, len(values) + 1):
        value = _percent(values.get(number))
        if value is None:
            break
        found.append(value)
    return found


def _matrix(single: dict[tuple[int, int], str], tasks: int) -> list[list[float]]:
    """The accuracy after each task on each one so far, or nothing where one is missing."""
    if len(single) < tasks * (tasks + 1) // 2:
        return []
    rows = [[_percent(single.get((i, j))) for j in range(1, i + 1)] for i in range(1, tasks + 1)]
    known = [[value for value in row if value is not None] for row in rows]
    return known if all(len(row) == i for i, row in enumerate(known, start=1)) else []


def _percent(text: str | None) -> float | None:
    try:
        value = float(text) if text else None
    except ValueError:
        return None
    return value if value == value else None  # not NaN


def _equal(classes: int, tasks: int) -> list[int]:
    return [classes // tasks] * tasks if classes and classes % tasks == 0 else []


Reader = Callable[[Path, str, list[int], str | None], Iterator[Result]]
READERS: dict[str, tuple[str, Reader]] = {"pycil": (PYCIL, _pycil), "mammoth": (MAMMOTH, _mammoth)}
WANTED = {
    "pycil": "lines such as `CNN top1 curve: [...]`, which its trainer logs after each task.",
    "mammoth": "columns task1, task2, ... (mean_accs.csv) or accmean_task1, ... (logs.pyd), which it writes.",
}
