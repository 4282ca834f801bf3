"""What the figures of attention share: decompositions by setting, and how their scale is told."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from dne_lab.analysis.decomposition import Decomposition
from dne_lab.errors import LabError
from dne_lab.measure.groups import EXPANSION
from dne_lab.measure.metrics import interval
from dne_lab.plots.series import PAPER_DATASETS, PAPER_EPOCHS

SAME = ("SPSH", "SPDH")


def settings(found: Iterable[Decomposition], moment: str) -> dict[tuple[str, str], list[Decomposition]]:
    """Decompositions by preset and method, ordered by seed.

    Raises:
        LabError: none of several experts with that moment; two of one seed.
    """
    order = list(EXPANSION)
    there = [m for m in found if moment in m.moments and len(m.heads) > 1]
    if not there:
        raise LabError(
            "no attention record of a trained run with two experts or more. Make one first: "
            "dne-lab report RUN --attention 500."
        )
    there.sort(key=lambda m: (m.preset, order.index(m.method) if m.method in order else len(order), m.method, m.seed))
    made: dict[tuple[str, str], list[Decomposition]] = {}
    for member in there:
        k = member.heads[-1]
        label = member.preset if k == 1 else f"{member.preset}, k = {k}"
        made.setdefault((label, member.method), []).append(member)
    for (preset, method), members in made.items():
        seeds = [m.seed for m in members]
        if len(set(seeds)) < len(seeds):
            raise LabError(
                f"two attention records of {method}, {preset}, of one seed ({seeds}): they cannot be averaged. "
                "Remove one of them."
            )
    return made


def scale_of(members: Sequence[Decomposition]) -> str:
    """Data sets, scale and seeds, for a title."""
    names = ", ".join(dict.fromkeys(m.dataset for m in members))
    full = all(m.dataset in PAPER_DATASETS and m.epochs >= PAPER_EPOCHS for m in members)
    return names if full else f"{names}, small scale"


def estimate(rows: Sequence[Any], name: str) -> tuple[float, float, float]:
    """Mean, low and high of a value in rows of attention tables, one a seed: the 95% interval over seeds, or for one
    seed that over its images; NaN where a row has none (a group without keys)."""
    values = [float(row[name]) for row in rows]
    if not all(math.isfinite(value) for value in values):
        return math.nan, math.nan, math.nan
    mean, width = interval(values)
    if width is None:
        bare = name.removesuffix(" %")
        return mean, float(rows[0][f"{bare} low"]), float(rows[0][f"{bare} high"])
    return mean, mean - width, mean + width
