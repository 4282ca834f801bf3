"""Index arrays say of every entry of a map whose query and whose key it is."""

import handmade
import literal_groups
import numpy as np
import pytest
import torch

from dne_lab.analysis.maps import pairs_of


@pytest.mark.parametrize("expert", [1, 2, 3])
@pytest.mark.parametrize(("layout", "classes"), handmade.LAYOUTS, ids=str)
def test_every_entry_joins_the_query_and_the_key_that_plain_loops_name(layout: str, classes: int, expert: int) -> None:
    axes = handmade.axes(layout, classes, expert=expert)
    shape = handmade.shape(axes, 1)
    pairs = pairs_of(axes, shape)
    number = torch.arange(float(np.prod(shape))).view(shape)  # every entry holds its own place
    seen = 0
    for row in literal_groups.rows(number, axes):
        for key, entry in row.keys:
            place = np.unravel_index(int(entry), shape[1:])
            named = (
                np.broadcast_to(getattr(pairs, name), shape[1:])[place] for name in pairs._fields if name != "grid"
            )
            assert tuple(named) == (*row.query, *key)
            same_patch = np.broadcast_to(pairs.same_patch, shape[1:])[place]
            same_head = np.broadcast_to(pairs.same_head, shape[1:])[place]
            assert 2 * (not same_patch) + (not same_head) == literal_groups.group(row.query, key)
            if literal_groups.TOKEN not in (key.patch, row.query.patch):
                off = [abs(int(np.broadcast_to(part, shape[1:])[place])) for part in pairs.offsets()]
                assert tuple(off) == literal_groups.away(axes.grid, row.query, key)
            seen += 1
    assert seen == number.numel()


def test_offsets_lead_from_the_query_to_the_key_by_row_and_column() -> None:
    axes = handmade.axes("b h p kp")
    rows, columns = pairs_of(axes, handmade.shape(axes)).offsets()
    assert (rows[0, 1, 3], columns[0, 1, 3]) == (1, -1)  # from (0, 1) to (1, 0)
    assert (rows[0, 5, 0], columns[0, 5, 0]) == (-1, -2)
    assert rows.shape == (1, 6, 6)  # small: as broadcast as the axes allow


def test_a_map_of_some_heads_keeps_their_names() -> None:
    axes = handmade.axes("b p h kh", heads=(2, 3))
    some = type(axes)("task1", "b p h kh", 0, (2, 2), (2, 0), axes.key_expert, axes.key_head, None, axes.grid, 0)
    pairs = pairs_of(some, (1, 6, 2, 5))
    assert pairs.query_head.ravel().tolist() == [2, 0]
    assert pairs.key_expert.ravel().tolist() == [1, 1, 2, 2, 2] and pairs.key_head.ravel().tolist() == [0, 1, 0, 1, 2]
    assert np.argwhere(pairs.same_head[0]).tolist() == [[0, 4], [1, 2]]
