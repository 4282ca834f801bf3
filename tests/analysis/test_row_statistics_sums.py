"""Streaming sums: bootstrap weights that belong to images, and memory that does not grow."""

import itertools
import math
from typing import Any

import handmade
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dne_lab.analysis import row_statistics
from dne_lab.analysis.group_tables import AttentionGroups
from dne_lab.analysis.labelling import find_labelling
from dne_lab.analysis.row_statistics import Accumulator, poisson
from dne_lab.core.errors import LabError

AXES = handmade.axes("b h p kh kp")


def accumulator(values: Tensor, index: Tensor, size: int = 8, replicates: int = 200) -> Accumulator:
    """Sums of a joint map of these images."""
    found = Accumulator(find_labelling("groups", handmade.HEADS, handmade.GRID), replicates)
    for part, numbers in zip(values.split(size), index.split(size), strict=True):
        found.begin(numbers)
        found.add(part, AXES)
    return found


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=30, unique=True), st.data())
def test_an_image_has_its_weights_whatever_the_batch_and_the_order(numbers: list[int], data: Any) -> None:
    index = torch.tensor(numbers)
    weights = poisson(index, 7)
    assert weights.shape == (len(numbers), 7) and weights.dtype == torch.float64
    order = torch.tensor(data.draw(st.permutations(range(len(numbers)))))
    assert torch.equal(poisson(index[order], 7), weights[order])
    cut = data.draw(st.integers(0, len(numbers)))
    assert torch.equal(torch.cat([poisson(index[:cut], 7), poisson(index[cut:], 7)]), weights)
    assert torch.equal(poisson(index, 3), weights[:, :3])  # more replicates change none of those before


def test_weights_are_poisson_of_mean_one() -> None:
    """Chi-square against exp(-1) / k!, by image and by replicate, and no correlation between them."""
    weights = poisson(torch.arange(5000), 200)
    count = weights.numel()
    assert abs(float(weights.mean()) - 1) < 5 / math.sqrt(count)
    assert abs(float(weights.var()) - 1) < 5 * math.sqrt(3 / count)  # the fourth central moment is 4
    chi = 0.0
    for k in range(6):
        expected = count * math.exp(-1) / math.factorial(k)
        chi += (int((weights == k).sum()) - expected) ** 2 / expected
    assert chi < 25  # 6 terms; 25 is passed by chance once in three thousand
    assert (weights.mean(0) - 1).abs().max() < 5 / math.sqrt(5000)
    assert (weights.mean(1) - 1).abs().max() < 6 / math.sqrt(200)
    first, second = weights[:-1].flatten() - 1, weights[1:].flatten() - 1
    assert abs(float((first * second).mean())) < 5 / math.sqrt(count)


def test_replicates_are_sums_with_the_weights_of_the_images() -> None:
    values, index = handmade.values(AXES, 9), torch.tensor([40, 3, 7, 1, 22, 5, 6, 90, 13])
    found = accumulator(values, index, size=4, replicates=6)
    alone = [accumulator(values[i : i + 1], index[i : i + 1], replicates=0) for i in range(9)]
    weights = poisson(index, 6)
    for replicate in range(6):
        expected = sum(
            weights[i, replicate] * sum(vector for head, vector in one.sums.items()) for i, one in enumerate(alone)
        )
        torch.testing.assert_close(found.drawn["joint", 0, 3][replicate], expected, atol=0, rtol=1e-12)


def test_intervals_do_not_depend_on_the_order_of_images() -> None:
    values, index = handmade.values(AXES, 12), torch.arange(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    one = AttentionGroups(accumulator(values, index), "attention", False).whole_table()
    other = AttentionGroups(accumulator(values[order], index[order], size=5), "attention", False).whole_table()
    assert abs(one.select_dtypes("number") - other.select_dtypes("number")).max().max() < 1e-9


def test_intervals_cover_the_value_and_more_images_make_them_narrower() -> None:
    values = handmade.values(AXES, 320, sharpness=1)
    widths = []
    for count in (20, 80, 320):  # half as wide each time
        groups = AttentionGroups(accumulator(values[:count], torch.arange(count)), "attention", False)
        table = groups.whole_table()
        assert (table["share low"] < table["share %"]).all() and (table["share %"] < table["share high"]).all()
        one = groups.share("SPSH")
        assert (one.value, one.low, one.high) == tuple(table.iloc[0][["share %", "share low", "share high"]])
        widths.append((table["share high"] - table["share low"]).sum())
    assert all(1.5 < before / after < 2.6 for before, after in itertools.pairwise(widths))


def test_an_interval_is_as_wide_as_the_spread_between_images_says() -> None:
    """95% of a mean over images is +-1.96 standard errors, here within a quarter."""
    values, index = handmade.values(AXES, 200, sharpness=3), torch.arange(200)
    shares = [
        AttentionGroups(accumulator(values[i : i + 1], index[i : i + 1], replicates=0), "attention", False)
        .share("SPSH")
        .value
        for i in range(200)
    ]
    expected = 2 * 1.96 * float(torch.tensor(shares).std()) / math.sqrt(200)
    found = AttentionGroups(accumulator(values, index), "attention", False).share("SPSH")
    assert 0.75 < (found.high - found.low) / expected < 1.25


def test_no_replicates_no_intervals() -> None:
    groups = AttentionGroups(accumulator(handmade.values(AXES), torch.arange(2), replicates=0), "attention", False)
    for frame in (groups.whole_table(), groups.rows(), groups.table(by="head")):
        bounds = [name for name in frame.columns if name.endswith((" low", " high"))]
        assert bounds and frame[bounds].isna().all().all()
    found = groups.share("SPSH")
    assert found.value > 0 and math.isnan(found.low) and math.isnan(found.high)


@pytest.mark.parametrize("number", [-1, 1.5, True, "200", None], ids=str)
def test_replicates_are_a_number(number: Any) -> None:
    with pytest.raises(LabError, match=r"replicates = .*: must be a whole number, 0 for no intervals"):
        Accumulator(find_labelling("groups", (1,), (2, 2)), number)


def test_plans_are_kept_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Making room changes no sum; a plan that is larger than the limit is kept alone."""
    found = Accumulator(find_labelling("groups", handmade.HEADS, handmade.GRID), 0)
    monkeypatch.setattr(row_statistics, "PLANS", 1)
    found.begin(torch.arange(2))
    maps = [(handmade.axes(layout, classes), layout) for layout, classes in handmade.LAYOUTS]
    for axes, _ in maps * 2:
        found.add(handmade.values(axes), axes)
        assert sum(plan is not None for plan in found._plans.values()) <= 1
    monkeypatch.undo()
    whole = Accumulator(find_labelling("groups", handmade.HEADS, handmade.GRID), 0)
    whole.begin(torch.arange(2))
    for axes, _ in maps * 2:
        whole.add(handmade.values(axes), axes)
    assert sum(plan is not None for plan in whole._plans.values()) == len(handmade.PATCHWISE)
    assert all(torch.equal(vector, whole.sums[head]) for head, vector in found.sums.items())


def test_the_state_is_as_large_after_many_images_as_after_one() -> None:
    def size(found: Accumulator) -> int:
        kept = [*found.sums.values(), *found.drawn.values(), *found.patches.values()]
        return sum(part.untyped_storage().nbytes() for part in kept)  # of views too: what they hold on to

    values = handmade.values(AXES, 64)
    one = accumulator(values[:1], torch.arange(1))
    many = accumulator(values, torch.arange(64))
    assert size(one) == size(many)
    columns = len(next(iter(one.sums.values())))
    assert size(one) == 8 * columns * (len(one.sums) + 200 * len(one.drawn))
