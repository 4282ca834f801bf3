"""Ways of sorting (query, key) pairs: what they say, and what is refused."""

from collections.abc import Callable
from typing import Any

import handmade
import literal_groups
import numpy as np
import pytest
import torch
from literal_groups import TOKEN

from dne_lab.analysis import labelling
from dne_lab.analysis.labelling import Labelling, find_labelling
from dne_lab.analysis.maps import Pairs, pairs_of
from dne_lab.core.errors import LabError

HEADS, GRID = handmade.HEADS, handmade.GRID


LITERAL = literal_groups.labellings(HEADS, GRID)


@pytest.mark.parametrize("expert", [1, 3])
@pytest.mark.parametrize(("layout", "classes"), handmade.LAYOUTS, ids=str)
@pytest.mark.parametrize("name", LITERAL)
def test_places_are_those_of_plain_loops(name: str, layout: str, classes: int, expert: int) -> None:
    axes = handmade.axes(layout, classes, expert=expert)
    shape = handmade.shape(axes, 1)
    found = find_labelling(name, HEADS, GRID)
    literal, labels = LITERAL[name]
    assert (found.name, found.labels) == (name, labels)
    places = found.places(pairs_of(axes, shape), shape[1:])
    number, seen = torch.arange(float(np.prod(shape))).view(shape), 0
    for row in literal_groups.rows(number, axes):
        if (row.query.patch == TOKEN) == found.class_queries:
            for key, entry in row.keys:
                expected = len(labels) if key.patch == TOKEN else literal(row.query, key)
                assert places.flat[int(entry)] == expected
                seen += 1
    views = {"class"} if handmade.KIND[layout] == "class" else {"patch", "class"} if classes else {"patch"}
    assert bool(seen) == (("class" if found.class_queries else "patch") in views)


def test_all_names_are_known_and_a_wrong_one_lists_the_nearest() -> None:
    assert tuple(LITERAL) == labelling.NAMES
    assert LITERAL["heads"][1] == ("1.1", "1.2", "1.3", "2.1", "3.1", "3.2") and len(LITERAL["rings"][1]) == 3
    with pytest.raises(LabError, match=r"unknown labelling 'ring'. Did you mean rings\? Allowed: class_token, directi"):
        find_labelling("ring", HEADS, GRID)
    with pytest.raises(LabError, match="unknown labelling 3"):
        find_labelling(3, HEADS, GRID)  # type: ignore[arg-type]
    own = Labelling("mine", ("all",), lambda pairs: 0)  # type: ignore[arg-type, return-value]
    assert find_labelling(own, HEADS, GRID) is own


@pytest.mark.parametrize("labels", [(), ("a", "a"), ("near", "class")], ids=str)
def test_labels_are_different_names_and_not_that_of_class_tokens(labels: tuple[str, ...]) -> None:
    with pytest.raises(LabError, match=r"labelling 'mine' has labels .* none of them 'class'"):
        Labelling("mine", labels, lambda pairs: pairs.key_patch)


@pytest.mark.parametrize(
    ("of", "message"),
    [
        (lambda p: np.zeros((5, 7), dtype=int), r"shape \(5, 7\) for pairs of shape \(2, 6, 6, 6\): it must broadcast"),
        (lambda p: np.zeros((1, 2, 6, 6, 6), dtype=int), r"shape \(1, 2, 6, 6, 6\)"),
        (lambda p: p.same_patch * 0.5, "'mine' gave float64 numbers: give whole ones"),
        (lambda p: np.array("near"), "gave <U4 numbers"),
        (lambda p: p.key_patch, "places from 0 to 5: it has 2 labels, so 0 to 1"),
        (lambda p: -p.same_head.astype(int), "places from -1 to 0"),
    ],
)
def test_a_labelling_that_cannot_be_used_says_why(of: Callable[[Pairs], Any], message: str) -> None:
    axes = handmade.axes("b h p kh kp")
    shape = handmade.shape(axes)
    with pytest.raises(LabError, match=message):
        Labelling("mine", ("near", "far"), of).places(pairs_of(axes, shape), shape[1:])


def test_what_it_says_of_class_tokens_is_not_used() -> None:
    """Neither of class-token keys nor of queries that give no row: their numbers need not be places."""
    axes = handmade.axes("b h p kp", 1)
    shape = handmade.shape(axes)
    wild = Labelling("mine", ("all",), lambda p: np.where((p.query_patch < 0) | (p.key_patch < 0), 99, 0))
    places = wild.places(pairs_of(axes, shape), shape[1:])
    assert (places[:, 1:, 0] == 1).all() and (places[:, 1:, 1:] == 0).all()
    other = Labelling("mine", ("all",), lambda p: np.where(p.query_patch < 0, 0, -5), class_queries=True)
    places = other.places(pairs_of(axes, shape), shape[1:])
    assert (places[:, 0, 0] == 1).all() and (places[:, 0, 1:] == 0).all()


def test_yes_and_no_are_places_and_a_number_labels_all() -> None:
    axes = handmade.axes("b p h kh")
    pairs, shape = pairs_of(axes, handmade.shape(axes)), handmade.shape(axes)[1:]
    assert Labelling("own", ("other", "own"), lambda p: p.same_head).places(pairs, shape).sum() == 6 * 2
    assert not Labelling("one", ("all",), lambda p: np.array(0)).places(pairs, shape).any()
