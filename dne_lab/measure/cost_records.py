"""Committed counts: what ``dne-lab cost METHOD --json`` printed, in files ``METHOD[-kK]-BASE[+STEPxCOUNT].json``."""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dne_lab.core.errors import LabError
from dne_lab.core.schema import Like, check
from dne_lab.measure import record as records
from dne_lab.measure.comparison import ORDER
from dne_lab.measure.record import Classes, Section, Whole
from dne_lab.methods.base import title_of

_NAME = re.compile(
    r"(?P<method>[a-z][a-z0-9-]*?)(-k(?P<k>\d+))?-(?P<base>\d+)(\+(?P<step>\d+)x(?P<count>\d+))?", re.ASCII
)
_KEYS = {"task", "classes", "flops_literal", "flops_spent", "params_total"}


class CostRow(Section):
    """What a model costs after a task."""

    task: Classes
    classes: Classes
    flops_literal: Whole
    flops_spent: Whole
    params_total: Whole
    macs_spent: Whole | None = None
    params_trainable: Whole | None = None
    params_added: int | None = None


Rows = Annotated[list[dict[str, Any]], Like(list[CostRow])]


@dataclass(frozen=True)
class CostRecord:
    """Cost after every task of one method at the paper's CIFAR-100 geometry (what ``dne-lab cost`` counts by default).

    ``k`` are the heads of every later expert (12 in the first), None for networks without experts of a transformer;
    ``rows`` are those of `measure.cost.of_tasks`.
    """

    method: str
    k: int | None
    tasks: tuple[int, ...]
    rows: tuple[dict[str, Any], ...]

    @property
    def label(self) -> str:
        """As in tables and figures: ``DNE (k = 1)``, ``DER``."""
        name = title_of(self.method)
        return name if self.k is None else f"{name} (k = {self.k})"

    @property
    def id(self) -> str:
        """What a figure cites."""
        step = "" if len(self.tasks) == 1 else f"+{self.tasks[1]}x{len(self.tasks) - 1}"
        return f"cost-{self.method}{'' if self.k is None else f'-k{self.k}'}-{self.tasks[0]}{step}"

    @property
    def last(self) -> dict[str, Any]:
        """The cost after the last task."""
        return self.rows[-1]


def read(path: str | Path) -> CostRecord:
    """One file.

    Raises:
        LabError: a name that does not say what was counted, or rows that do not fit it.
    """
    path = Path(path)
    match = _NAME.fullmatch(path.stem)
    if match is None:
        raise LabError(
            f"{path}: the name of a cost record says what was counted, e.g. dne-k1-50+10x5.json or der-50+10x5.json."
        )
    rows = records.read(path)
    if not is_cost(rows):
        raise LabError(f"{path} does not hold what dne-lab cost --json prints. Count it again.")
    try:
        check(Rows, rows)
    except LabError as error:
        raise LabError(f"{path}: {error} Count it again: dne-lab cost {match['method']} ...") from error
    count = int(match["count"] or 0)
    tasks = (int(match["base"]), *[int(match["step"] or 0)] * min(count, len(rows)))
    if count >= len(rows) or [row["classes"] for row in rows] != list(itertools.accumulate(tasks)):
        raise LabError(
            f"{path} does not hold the cost of {count + 1} tasks of its name. Count it again: "
            f"dne-lab cost {match['method']} --tasks {','.join(map(str, tasks[:50]))} --json."
        )
    return CostRecord(match["method"], int(match["k"]) if match["k"] else None, tasks, tuple(rows))


def find(paths: Iterable[str | Path]) -> list[CostRecord]:
    """All cost records in files and, recursively, folders, in the order of `ORDER`, k and length; none is no error."""
    places = [path for path in map(Path, paths) if path.is_dir() or path.suffix == ".json"]
    found = [read(file) for file, tree in records.trees(places) if is_cost(tree)]
    order = list(ORDER)
    return sorted(found, key=lambda c: (order.index(c.method) if c.method in order else len(order), c.k or 0, c.tasks))


def longest(costs: Sequence[CostRecord]) -> list[CostRecord]:
    """For each method and k the record with most tasks: after T tasks the cost hardly depends on how classes are cut.

    (Only the classifier differs, a few thousand operations.)
    """
    best: dict[str, CostRecord] = {}
    for cost in costs:
        if cost.label not in best or len(cost.tasks) > len(best[cost.label].tasks):
            best[cost.label] = cost
    return list(best.values())


def is_cost(tree: Any) -> bool:
    """Whether a JSON tree is what ``dne-lab cost --json`` prints."""
    return isinstance(tree, list) and bool(tree) and all(isinstance(row, dict) and row.keys() >= _KEYS for row in tree)
