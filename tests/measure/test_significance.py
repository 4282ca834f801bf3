"""What is told apart: tests over seeds, pooled deviations, Holm's correction."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from dne_lab.core.errors import LabError
from dne_lab.measure import significance
from dne_lab.measure.significance import holm, p_value, residual, spread

fractions = st.lists(st.floats(0, 1), min_size=1, max_size=8)


def test_holm_by_hand() -> None:
    """0.01 x 4, 0.02 x 3, 0.03 x 2, and 0.04 x 1, which may not be below the one before."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.03]) == [0.03] and holm([]) == []
    with pytest.raises(LabError, match="between 0 and 1"):
        holm([0.1, math.nan])


@given(fractions)
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(p: list[float]) -> None:
    found = holm(p)
    assert all(a <= b <= min(1.0, len(p) * a) + 1e-12 for a, b in zip(p, found, strict=True))
    assert all(found[i] <= found[j] for i in range(len(p)) for j in range(len(p)) if p[i] < p[j])
    assert holm(p[::-1]) == found[::-1]


@given(st.lists(st.floats(-50, 50).map(lambda v: round(v, 3)), min_size=2, max_size=6, unique=True))
def test_p_is_that_of_scipy_and_agrees_with_the_interval(values: list[float]) -> None:
    from dne_lab.measure.metrics import interval

    p = p_value(values)
    assert p == pytest.approx(stats.ttest_1samp(values, 0).pvalue, abs=1e-9)
    mean, width = interval(values)
    assert p is not None and width is not None
    assert abs(abs(mean) - width) < 1e-6 or (p < 0.05) == (abs(mean) > width)


def test_p_without_spread_and_of_one_seed() -> None:
    assert (p_value([3.0, 3.0]), p_value([0.0, 0.0]), p_value([3.0, 3.0], 3.0), p_value([3.0])) == (0.0, 1.0, 1.0, None)
    with pytest.raises(LabError, match="finite"):
        p_value([1.0, math.inf])


def test_pooled_deviations_by_hand() -> None:
    scores = {"a": {0: 1.0, 1: 3.0}, "b": {0: 2.0, 1: 2.0, 2: 8.0}, "alone": {1: 50.0}}
    pooled = spread(scores)
    assert pooled is not None and pooled.freedom == 3 and pooled.value == pytest.approx(((2 + 24) / 3) ** 0.5)
    assert pooled.half_width(3) == pytest.approx(stats.t.ppf(0.975, 3) * pooled.value / 3**0.5)
    assert spread({"alone": {1: 50.0}}) is None and residual({"a": {0: 1.0, 1: 2.0}}) is None and residual({}) is None


@pytest.mark.parametrize("shape", [(2, 3), (5, 3), (3, 5)])
def test_the_residual_of_two_methods_gives_the_paired_test_and_seeds_drop_out(shape: tuple[int, int]) -> None:
    draw = np.random.default_rng(0).normal(size=shape)

    def scores(values: Any) -> dict[str, dict[int, float]]:
        return {f"m{m}": dict(enumerate(row)) for m, row in enumerate(values)}

    found = residual(scores(draw + 10 * np.arange(shape[1])))  # however much seeds differ
    centred = draw - draw.mean(0) - draw.mean(1, keepdims=True) + draw.mean()
    assert found is not None and found.freedom == (shape[0] - 1) * (shape[1] - 1)
    assert found.value == pytest.approx((centred**2).sum() ** 0.5 / found.freedom**0.5)
    if shape[0] == 2:
        difference = draw[0] - draw[1]
        own = stats.t.ppf(0.975, shape[1] - 1) * difference.std(ddof=1) / shape[1] ** 0.5
        assert found.half_width(shape[1], means=2) == pytest.approx(own)


@pytest.mark.parametrize(
    ("mean", "width", "told"),
    [(5, 2, "above"), (-5, 2, "above"), (0.5, 1, "below"), (1.5, 1, ""), (3, 1.5, ""), (9, None, "")],
)
def test_beside_the_smallest_difference_of_interest(mean: float, width: float | None, told: str) -> None:
    assert significance.SMALLEST == 2.0 and significance.beside_smallest(mean, width) == told
