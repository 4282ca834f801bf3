"""Which differences are told apart: Student's t over seeds, paired; a pooled standard deviation; Holm within a family.

With three seeds an interval from one method's own standard deviation is wide (t = 4.3) and varies much from method to
method. What seeds do is much the same to all methods of an experiment, so beside it stands the interval from what they
have in common: `spread` for a mean, `residual` for a difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dne_lab.core.errors import LabError

LEVEL = 0.95  # of intervals; differences are told apart at 1 - LEVEL after Holm's correction
SMALLEST = 2.0  # points of accuracy: the smallest difference of interest

Scores = Mapping[str, Mapping[int, float]]  # method -> seed -> score


@dataclass(frozen=True)
class Deviation:
    """A standard deviation in points, and its degrees of freedom."""

    value: float
    freedom: int

    def half_width(self, seeds: int, means: int = 1) -> float:
        """Of the interval of a mean over ``seeds`` (``means`` = 2: of the difference of two such means)."""
        from scipy.stats import t

        return float(t.ppf((1 + LEVEL) / 2, self.freedom) * self.value * math.sqrt(means / seeds))


def p_value(values: Sequence[float], against: float = 0.0) -> float | None:
    """Two-sided p of Student's t that the mean of ``values`` (differences by seed) is ``against``; None for one value.

    Values that are all equal have p = 0, or 1 where they equal ``against``.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array) or not np.isfinite(array).all():
        raise LabError(f"values = {list(values)}: give at least one finite number.")
    if len(array) == 1:
        return None
    from scipy.stats import t

    distance, error = abs(array.mean() - against), array.std(ddof=1) / math.sqrt(len(array))
    if error <= 1e-12 * max(1.0, float(np.abs(array).max())):  # rounding alone
        return float(distance <= 1e-9)
    return float(2 * t.sf(distance / error, len(array) - 1))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction of the p values of one family, in their order: with each below 0.05, the chance that
    any of them is a false find is below 0.05, however the comparisons depend on each other."""
    values = np.asarray(p, dtype=np.float64)
    if values.size and not ((values >= 0) & (values <= 1)).all():
        raise LabError(f"p = {list(p)}: must be between 0 and 1.")
    order = np.argsort(values, kind="stable")
    steps = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)) if values.size else values
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(value) for value in adjusted]


def spread(scores: Scores) -> Deviation | None:
    """The standard deviation over seeds, pooled over methods: sqrt(sum (n - 1) sd^2 / sum (n - 1)).

    None where every method has one seed.
    """
    squares = sum(float(((v := _array(seeds)) - v.mean()) @ (v - v.mean())) for seeds in scores.values())
    freedom = sum(len(seeds) - 1 for seeds in scores.values())
    return Deviation(math.sqrt(squares / freedom), freedom) if freedom else None


def residual(scores: Scores) -> Deviation | None:
    """The standard deviation of what a score is beside its method's and its seed's effect, pooled over methods.

    For differences paired by seed: what a seed (and the class order that goes with it) does to all methods drops out of
    them. Least squares, so methods may lack seeds. None where nothing is left to estimate it from.
    """
    methods, seeds = list(scores), sorted({seed for by_seed in scores.values() for seed in by_seed})
    cells = [(m, seeds.index(s), value) for m, name in enumerate(methods) for s, value in scores[name].items()]
    design = np.zeros((len(cells), len(methods) + len(seeds)))
    for row, (method, seed, _) in enumerate(cells):
        design[row, method] = design[row, len(methods) + seed] = 1
    wanted = np.array([value for *_, value in cells])
    if not cells or (freedom := len(cells) - int(np.linalg.matrix_rank(design))) < 1:
        return None
    left = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    return Deviation(math.sqrt(float(left @ left) / freedom), freedom)


def beside_smallest(mean: float, width: float | None) -> str:
    """How a difference, whatever its sign, stands to the smallest one of interest: "above", "below" or "" (unknown)."""
    if width is None:
        return ""
    return "above" if abs(mean) - width > SMALLEST else "below" if abs(mean) + width < SMALLEST else ""


def _array(values: Mapping[int, float]) -> np.ndarray:
    return np.array(list(values.values()), dtype=np.float64)
