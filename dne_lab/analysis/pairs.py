"""Which query and which key every entry of an attention map joins: index arrays that follow from its axes alone."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dne_lab.models.attention import Axes

Index = NDArray[np.int32]


class Pairs(NamedTuple):
    """The (query, key) pairs of a map, as whole numbers in arrays that broadcast to its shape without the image axis.

    Experts count from 1, heads within their expert and patches from 0 (row by row); a class token is patch -1. ``grid``
    is (rows, columns) of patches.
    """

    query_expert: Index
    query_head: Index
    query_patch: Index
    key_expert: Index
    key_head: Index
    key_patch: Index
    grid: tuple[int, int]

    @property
    def same_patch(self) -> NDArray[np.bool_]:
        """Query and key are the same patch."""
        return self.query_patch == self.key_patch

    @property
    def same_head(self) -> NDArray[np.bool_]:
        """Query and key are of the same head of the same expert."""
        return (self.query_expert == self.key_expert) & (self.query_head == self.key_head)

    def offsets(self) -> tuple[Index, Index]:
        """Rows and columns from the query's patch to the key's (of class tokens: as if they were the first patch)."""
        query, key = (np.maximum(patch, 0) for patch in (self.query_patch, self.key_patch))
        columns = self.grid[1]
        return key // columns - query // columns, key % columns - query % columns


def pairs_of(axes: Axes, shape: Sequence[int]) -> Pairs:
    """The pairs of a map of ``shape`` (with the image axis) whose dimensions mean ``axes``."""
    names = axes.layout.split()

    def along(name: str, values: Sequence[int] | NDArray[Any]) -> Index:
        column = np.asarray(values, dtype=np.int32)
        return column.reshape([-1 if name == other else 1 for other in names])[0]

    token = np.full([1] * (len(names) - 1), -1, dtype=np.int32)
    size = dict(zip(names, shape, strict=True))
    query = (along("h", axes.query_expert), along("h", axes.query_head))
    query_patch = along("p", np.arange(size["p"]) - axes.classes) if "p" in size else token
    key, key_patch = query, query_patch
    if "kh" in size:
        key = (along("kh", axes.key_expert), along("kh", axes.key_head))
    if "kp" in size:
        key_patch = along("kp", np.arange(size["kp"]) - axes.classes)
    if "k" in size:
        patches = axes.grid[0] * axes.grid[1]
        place = np.arange(size["k"]) - axes.classes
        key_patch = along("k", np.where(place < 0, -1, place % patches))
        head = np.maximum(place, 0) // patches
        own = along("k", place) < 0  # the key is the query's own class token
        of_expert, of_head = (along("k", np.asarray(labels)[head]) for labels in (axes.key_expert, axes.key_head))
        key = (np.where(own, query[0], of_expert), np.where(own, query[1], of_head))
    return Pairs(query[0], query[1], query_patch, key[0], key[1], key_patch, axes.grid)
