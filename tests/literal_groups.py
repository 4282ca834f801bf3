"""The oracle of attention groups: a map entry by entry, every statistic of its rows as the definition reads.

It shares nothing with `dne_lab.analysis` but the names of the sums: queries and keys are named by plain loops.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from dne_lab.analysis.row_statistics import Sums
from dne_lab.models.attention import Axes

TOKEN = -1  # the patch of a class token


class Unit(NamedTuple):
    """One head's token: expert from 1, head within it and patch from 0 (a class token: -1)."""

    expert: int
    head: int
    patch: int


class Row(NamedTuple):
    """What one query of one image attends to."""

    kind: str
    layer: int
    image: int
    query: Unit
    keys: list[tuple[Unit, float]]


Label = Callable[[Unit, Unit], int]  # query and key -> a place among the labels
Head = tuple[str, int, int, int]


def rows(values: Tensor, axes: Axes) -> Iterator[Row]:
    """A map of any layout row by row; the map of one expert, with the keys that it may see."""
    patches = axes.grid[0] * axes.grid[1]
    a = values.detach().cpu().double()
    queries = list(zip(axes.query_expert, axes.query_head, strict=True))
    others = list(zip(axes.key_expert, axes.key_head, strict=True))
    for image in range(len(a)):
        for h, (expert, head) in enumerate(queries):
            found: dict[int, list[tuple[Unit, float]]] = {}  # query patch -> keys
            if axes.layout == "b h p kp":
                for p in range(a.shape[2]):
                    for kp in range(a.shape[3]):
                        key = Unit(expert, head, kp - axes.classes)
                        found.setdefault(p - axes.classes, []).append((key, float(a[image, h, p, kp])))
            elif axes.layout == "b h p kh kp":
                for p in range(a.shape[2]):
                    for j, (owner, other) in enumerate(others):
                        for kp in range(a.shape[4]):
                            key = Unit(owner, other, kp - axes.classes)
                            found.setdefault(p - axes.classes, []).append((key, float(a[image, h, p, j, kp])))
            elif axes.layout == "b p h kh":
                for p in range(a.shape[1]):
                    for j, (owner, other) in enumerate(others):
                        key = Unit(owner, other, p - axes.classes)
                        found.setdefault(p - axes.classes, []).append((key, float(a[image, p, h, j])))
            elif axes.layout == "b h kp":
                found[TOKEN] = [
                    (Unit(expert, head, kp - axes.classes), float(a[image, h, kp])) for kp in range(a.shape[2])
                ]
            else:
                assert axes.layout == "b h k" and a.shape[2] == 1 + len(others) * patches
                found[TOKEN] = [(Unit(expert, head, TOKEN), float(a[image, h, 0]))]
                for j, (owner, other) in enumerate(others):
                    for kp in range(patches):
                        found[TOKEN].append((Unit(owner, other, kp), float(a[image, h, 1 + j * patches + kp])))
            for patch, keys in found.items():
                yield Row(axes.kind, axes.layer, image, Unit(expert, head, patch), keys)


def group(query: Unit, key: Unit) -> int:
    """SPSH 0, SPDH 1, DPSH 2, DPDH 3."""
    same_head = query.expert == key.expert and query.head == key.head
    if query.patch == key.patch:
        return 0 if same_head else 1
    return 2 if same_head else 3


def away(grid: tuple[int, int], query: Unit, key: Unit) -> tuple[int, int]:
    """Rows and columns between two patches."""
    y0, x0 = divmod(query.patch, grid[1])
    y1, x1 = divmod(key.patch, grid[1])
    return abs(y1 - y0), abs(x1 - x0)


def labellings(heads: Sequence[int], grid: tuple[int, int]) -> dict[str, tuple[Label, tuple[str, ...]]]:
    """Every labelling that has a name, with its labels."""

    def ring(query: Unit, key: Unit) -> int:
        return max(away(grid, query, key))

    def direction(query: Unit, key: Unit) -> int:
        down, right = away(grid, query, key)
        if down == 0:
            return 0 if right == 0 else 1
        return 2 if right == 0 else 3

    def place(query: Unit, key: Unit) -> int:
        return sum(heads[: key.expert - 1]) + key.head

    return {
        "groups": (group, ("SPSH", "SPDH", "DPSH", "DPDH")),
        "rings": (ring, tuple(f"ring {i}" for i in range(max(grid)))),
        "directions": (direction, ("same patch", "same row", "same column", "elsewhere")),
        "experts": (lambda query, key: key.expert - 1, tuple(f"expert {t + 1}" for t in range(len(heads)))),
        "heads": (place, tuple(f"{t + 1}.{h + 1}" for t, count in enumerate(heads) for h in range(count))),
        "class_token": (lambda query, key: 0, ("patches",)),
    }


def entropy(values: Iterable[float]) -> float:
    """-sum p log p of values that are scaled to sum to 1."""
    values = [v for v in values if v > 0]
    total = sum(values)
    return -sum(v / total * math.log(v / total) for v in values)


def totals(
    found: Iterable[Row], label: Label, labels: int, grid: tuple[int, int], class_queries: bool = False
) -> dict[Head, dict[str, Any]]:
    """For every head, sums over its rows, under the names of `dne_lab.analysis.row_statistics.Sums`."""
    by_label = ("mass", "entropy", "keys", "keys_there", "with_mass", "uniform", "connections")
    by_row = ("class_mass", "rows", "weight", "row_entropy", "row_keys", "largest", "log_connections")
    by_row += ("row_connections", "uniform_entry", "distance", "uniform_distance")
    sums: dict[Head, dict[str, Any]] = {}
    for row in found:
        if (row.query.patch == TOKEN) != class_queries:
            continue
        head = (row.kind, row.layer, row.query.expert, row.query.head)
        if head not in sums:
            sums[head] = {name: [0.0] * labels for name in by_label} | dict.fromkeys(by_row, 0.0)
        to = sums[head]
        patches = [(key, value) for key, value in row.keys if key.patch != TOKEN]
        on_class = sum(value for key, value in row.keys if key.patch == TOKEN)
        w = 1 - on_class
        for place in range(labels):
            mine = [value for key, value in patches if label(row.query, key) == place]
            mass = sum(mine)
            to["mass"][place] += mass
            to["uniform"][place] += w * len(mine) / len(patches) if patches else 0.0
            to["connections"][place] += w * len(mine)
            if mass > 0:
                to["entropy"][place] += entropy(mine)
                to["keys"][place] += math.exp(entropy(mine))
                to["keys_there"][place] += len(mine)
                to["with_mass"][place] += 1
        values = [value for _, value in row.keys]
        to["class_mass"] += on_class
        to["rows"] += 1
        to["weight"] += w
        to["row_entropy"] += entropy(values)
        to["row_keys"] += math.exp(entropy(values))
        to["largest"] += max(values)
        to["log_connections"] += math.log(len(values))
        to["row_connections"] += len(values)
        to["uniform_entry"] += 1 / len(values)
        if class_queries:
            to["distance"] = to["uniform_distance"] = math.nan
            continue
        far = [math.hypot(*away(grid, row.query, key)) for key, _ in patches]
        to["distance"] += sum(d * value for d, (_, value) in zip(far, patches, strict=True))
        to["uniform_distance"] += w * sum(far) / len(far)
    return sums


def close(found: Any, expected: Any, bound: float = 1e-12) -> bool:
    """Equal to ``bound``, relative to one or the largest value; NaN equals NaN."""
    a, b = (np.asarray(v, dtype=np.float64) for v in (found, expected))
    nan = np.isnan(b)
    assert a.shape == b.shape and (np.isnan(a) == nan).all()
    return bool((np.abs(a - b)[~nan] <= bound * max(1.0, np.abs(b[~nan]).max(initial=0))).all())


def agree(found: dict[Any, Tensor], expected: dict[Any, dict[str, Any]], bound: float = 1e-12) -> None:
    """Every sum of every head is the expected one."""
    assert found.keys() == expected.keys()
    for head, vector in found.items():
        by_label, by_row = Sums.of(vector)
        assert by_label.keys() | by_row.keys() == expected[head].keys()
        for name, value in (by_label | by_row).items():
            assert close(value, expected[head][name], bound), (head, name, value, expected[head][name])
