"""Sums over the rows of maps made by hand: plain loops, symmetries, and what uniform attention must give."""

from typing import Any

import handmade
import literal_groups
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from literal_groups import agree, close
from torch import Tensor

from dne_lab.analysis import row_statistics
from dne_lab.analysis.group_tables import AttentionGroups
from dne_lab.analysis.labelling import find_labelling
from dne_lab.analysis.row_statistics import Accumulator, Sums
from dne_lab.models.attention import Axes

HEADS, GRID = handmade.HEADS, handmade.GRID
LITERAL = literal_groups.labellings(HEADS, GRID)
layouts = st.sampled_from(handmade.LAYOUTS)
patchwise = st.sampled_from(handmade.PATCHWISE)
experts = st.sampled_from([1, 2, 3])
seeds = st.integers(0, 2**31)


def accumulated(
    parts: list[Tensor], axes: Axes, name: str = "groups", replicates: int = 0, by_patch: bool = False
) -> Accumulator:
    """Sums of the batches of one map."""
    found = Accumulator(find_labelling(name, HEADS, axes.grid), replicates, by_patch)
    start = 0
    for part in parts:
        found.begin(torch.arange(start, start + len(part)))
        found.add(part, axes)
        start += len(part)
    return found


@pytest.mark.parametrize("name", LITERAL)
@pytest.mark.parametrize(("layout", "classes"), handmade.LAYOUTS, ids=str)
def test_sums_are_those_of_plain_loops(layout: str, classes: int, name: str) -> None:
    literal, labels = LITERAL[name]
    for expert in (1, 2, 3):
        axes = handmade.axes(layout, classes, expert=expert)
        values = handmade.values(axes, 3, seed=expert)
        values = torch.where(values < 0.02, 0.0, values)  # some entries, and so some groups, have no mass at all
        values = values / values.sum((-1, -2) if layout == "b h p kh kp" else -1, keepdim=True)
        expected = literal_groups.totals(
            literal_groups.rows(values, axes), literal, len(labels), GRID, name == "class_token"
        )
        agree(accumulated([values], axes, name).sums, expected)


def test_a_map_is_brought_to_double_precision_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    axes = handmade.axes("b h p kh kp", 1)
    values = handmade.values(axes, 7).float()
    whole = accumulated([values], axes, replicates=3)
    sizes: list[int] = []
    reduce = row_statistics._reduce

    def watched(a: Tensor, plan: row_statistics.Plan) -> Tensor:
        assert a.dtype == torch.float64
        sizes.append(a.nbytes)
        return reduce(a, plan)

    monkeypatch.setattr(row_statistics, "_reduce", watched)
    monkeypatch.setattr(row_statistics, "LARGEST", 2 * 8 * values[0].numel())
    parts = accumulated([values], axes, replicates=3)
    assert len(sizes) == 4 and max(sizes) <= row_statistics.LARGEST
    for head, vector in whole.sums.items():
        assert close(parts.sums[head], vector)
    for expert, drawn in whole.drawn.items():
        assert close(parts.drawn[expert], drawn)


@settings(max_examples=30, deadline=None)
@given(layouts, experts, seeds, st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_batches_may_be_cut_anywhere(chosen: tuple[str, int], expert: int, seed: int, cuts: list[int]) -> None:
    axes = handmade.axes(*chosen, expert=expert)
    values = handmade.values(axes, sum(cuts), seed)
    one, several = (accumulated(list(values.split(sizes)), axes, replicates=5) for sizes in ([sum(cuts)], cuts))
    assert one.images == several.images == sum(cuts)
    for which in ("sums", "drawn"):
        assert getattr(one, which).keys() == getattr(several, which).keys()
        assert all(close(getattr(several, which)[key], value) for key, value in getattr(one, which).items())


@settings(max_examples=40, deadline=None)
@given(patchwise, experts, seeds, st.permutations(range(6)))
def test_renaming_patches_changes_no_group(chosen: tuple[str, int], expert: int, seed: int, order: list[int]) -> None:
    """The patch axis of queries and keys together; class tokens stay in front."""
    axes = handmade.axes(*chosen, expert=expert)
    values = handmade.values(axes, 2, seed)
    places = torch.tensor([*range(axes.classes), *(axes.classes + p for p in order)])
    moved = values
    for dim, name in enumerate(axes.layout.split()):
        if name in ("p", "kp"):
            moved = moved.index_select(dim, places)
    agree_but_distance(accumulated([moved], axes), accumulated([values], axes))


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(["b h p kh kp", "b p h kh"]), st.booleans(), experts, seeds, st.data())
def test_renaming_other_heads_changes_no_group(layout: str, token: bool, expert: int, seed: int, data: Any) -> None:
    """For every query head, any order of the key heads that are not its own."""
    axes = handmade.axes(layout, int(token), expert=expert)
    values = handmade.values(axes, 2, seed)
    h, kh = (axes.layout.split().index(name) for name in ("h", "kh"))
    keys = list(zip(axes.key_expert, axes.key_head, strict=True))
    moved = values.clone()
    for row, query in enumerate(zip(axes.query_expert, axes.query_head, strict=True)):
        others = [place for place, key in enumerate(keys) if key != query]
        order = list(range(len(keys)))
        for place, other in zip(others, data.draw(st.permutations(others)), strict=True):
            order[place] = other
        mine = values.narrow(h, row, 1).index_select(kh, torch.tensor(order))
        moved.narrow(h, row, 1).copy_(mine)
    one, other_way = accumulated([values], axes), accumulated([moved], axes)
    for head, vector in one.sums.items():
        assert close(other_way.sums[head], vector)


def agree_but_distance(one: Accumulator, other: Accumulator) -> None:
    """Renamed patches lie elsewhere, so distances may change; nothing else may."""
    for head, vector in one.sums.items():
        found, expected = Sums.of(vector), Sums.of(other.sums[head])
        for name, value in (found.by_label | found.by_row).items():
            if name not in ("distance", "uniform_distance"):
                assert close(value, (expected.by_label | expected.by_row)[name]), name


@pytest.mark.parametrize("expert", [1, 2, 3])
@pytest.mark.parametrize(("layout", "classes"), handmade.PATCHWISE, ids=str)
def test_uniform_attention_gives_the_closed_forms(layout: str, classes: int, expert: int) -> None:
    """H the heads that the query can see, N patches; with class tokens shares are of what is not on them."""
    axes = handmade.axes(layout, classes, expert=expert)
    n, heads = GRID[0] * GRID[1], sum(HEADS[:expert]) if "kh" in layout else 1
    if layout == "b p h kh":
        shares, keys, every = [1 / heads, (heads - 1) / heads, 0.0, 0.0], [1, heads - 1, 0, 0], heads
    else:
        shares = [
            1 / (heads * n),
            (heads - 1) / (heads * n),
            (n - 1) / (heads * n),
            (heads - 1) * (n - 1) / (heads * n),
        ]
        keys, every = [1, heads - 1, n - 1, (heads - 1) * (n - 1)], heads * (n + classes)
    on_class = 0.0 if layout == "b p h kh" else classes * heads / every
    found = AttentionGroups(accumulated([handmade.uniform(axes)], axes), "attention", False)
    table, whole = found.whole_table(), found.rows().iloc[0]
    assert close(table["share %"], [100 * s for s in shares], 1e-11)
    assert close(table["uniform %"], table["share %"], 1e-11)
    blank = [np.nan if k == 0 else float(k) for k in keys]
    assert close(table["effective keys"], blank, 1e-11) and close(table["keys"], blank)
    connection = [np.nan if k == 0 else 100 * s / k for s, k in zip(shares, keys, strict=True)]
    assert close(table["mass per connection %"], connection) and close(table["uniform mass %"], connection)
    assert close(whole["class %"], 100 * on_class, 1e-11)
    assert close(whole["effective keys"], every, 1e-11) and whole["keys"] == every
    assert close(whole["entropy"], np.log(every)) and close(whole["uniform entropy"], np.log(every))
    assert close(whole["largest %"], 100 / every) and close(whole["uniform largest %"], 100 / every)
    assert close(whole["distance"], whole["uniform distance"])
    assert (whole["distance"] == 0) == (layout == "b p h kh")


@settings(max_examples=40, deadline=None)
@given(patchwise, experts, seeds, st.sampled_from(list(LITERAL)[:5]), st.floats(0, 20))
def test_shares_sum_to_100_and_effective_keys_have_their_bounds(
    chosen: tuple[str, int], expert: int, seed: int, name: str, sharpness: float
) -> None:
    axes = handmade.axes(*chosen, expert=expert)
    found = accumulated([handmade.values(axes, 2, seed, sharpness)], axes, name)
    groups = AttentionGroups(found, "attention", False)
    table, whole = groups.whole_table(by="head"), groups.rows(by="head")
    for _, part in table.groupby("head"):
        assert close(part["share %"].sum(), 100.0) and close(part["uniform %"].sum(), 100.0)
    known = table.dropna(subset="effective keys")
    assert (known["effective keys"] >= 1 - 1e-9).all() and (known["effective keys"] <= known["keys"] + 1e-9).all()
    assert (whole["effective keys"] <= whole["keys"] + 1e-9).all()
    assert (whole["entropy"] <= whole["uniform entropy"] + 1e-9).all()
    assert (whole["largest %"] >= whole["uniform largest %"] - 1e-9).all()


def test_own_attention_has_no_other_head_and_patchwise_attention_no_other_patch() -> None:
    for layout, empty in (("b h p kp", (1, 3)), ("b p h kh", (2, 3))):
        for classes in (0, 1):
            axes = handmade.axes(layout, classes)
            for vector in accumulated([handmade.values(axes)], axes).sums.values():
                by_label = Sums.of(vector).by_label
                assert all(float(by_label[name][place]) == 0.0 for name in by_label for place in empty)
                assert all(float(by_label["mass"][place]) > 0 for place in {0, 1, 2, 3} - {*empty})


@pytest.mark.parametrize(("layout", "classes"), handmade.PATCHWISE, ids=str)
def test_masses_of_every_patch_are_those_of_plain_loops(layout: str, classes: int) -> None:
    literal, labels = LITERAL["experts"]
    axes = handmade.axes(layout, classes)
    values = handmade.values(axes, 3)
    expected: dict[Any, np.ndarray] = {}
    for row in literal_groups.rows(values, axes):
        if row.query.patch != literal_groups.TOKEN:
            where = (row.kind, row.layer, row.query.expert, row.query.head)
            for key, value in row.keys:
                if key.patch != literal_groups.TOKEN:
                    to = expected.setdefault(where, np.zeros((6, len(labels))))
                    to[row.query.patch, literal(row.query, key)] += value
    found = accumulated(list(values.split(2)), axes, "experts", by_patch=True)
    assert found.patches.keys() == expected.keys()
    assert all(close(found.patches[head], value) for head, value in expected.items())
    for head, vector in found.sums.items():
        assert close(found.patches[head].sum(0), Sums.of(vector).by_label["mass"])


def test_a_map_of_class_tokens_alone_gives_no_row() -> None:
    for layout in ("b h kp", "b h k"):
        axes = handmade.axes(layout, 1)
        assert row_statistics.plan(axes, handmade.shape(axes), find_labelling("groups", HEADS, GRID)) is None
        assert not accumulated([handmade.values(axes)], axes).sums
    axes = handmade.axes("b p h kh", 1)
    only = handmade.values(axes)[:, :1]  # behind class attention a task attention block sees one token
    assert not accumulated([only], axes).sums
