"""Attention maps of one expert, made by hand, for the tests of what is counted in them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dne_lab.models.attention import Axes

HEADS = (3, 1, 2)
GRID = (2, 3)
KIND = {"b h p kp": "spatial", "b h p kh kp": "joint", "b p h kh": "task1", "b h kp": "class", "b h k": "class"}
# every layout, without and with class tokens; those of class attention have one always
LAYOUTS = [(name, classes) for name in KIND for classes in (0, 1) if classes or KIND[name] != "class"]
PATCHWISE = [(name, classes) for name, classes in LAYOUTS if KIND[name] != "class"]


def axes(layout: str, classes: int = 0, heads: Sequence[int] = HEADS, expert: int | None = None, **given: Any) -> Axes:
    """The axes of the map of one expert (the last) of a network with these heads."""
    expert = len(heads) if expert is None else expert
    named = [(t, h) for t, count in enumerate(heads, start=1) for h in range(count)]
    own = [(t, h) for t, h in named if t == expert]
    keys = [(t, h) for t, h in named if t <= expert] if "kh" in layout or layout == "b h k" else own
    labels = tuple(tuple(column) for pairs in (own, keys) for column in zip(*pairs, strict=True))
    made = {"kind": KIND[layout], "layer": 0, "grid": GRID, **given}
    return Axes(made["kind"], layout, made["layer"], *labels, None, made["grid"], classes)  # type: ignore[arg-type]


def shape(of: Axes, images: int = 2) -> tuple[int, ...]:
    """The shape of a map with these axes."""
    patches = of.grid[0] * of.grid[1]
    sizes = {
        "b": images,
        "h": len(of.query_expert),
        "p": patches + of.classes,
        "kp": patches + of.classes,
        "kh": len(of.key_expert),
        "k": len(of.key_expert) * patches + of.classes,
    }
    return tuple(sizes[name] for name in of.layout.split())


def values(of: Axes, images: int = 2, seed: int = 0, sharpness: float = 2.0) -> Tensor:
    """Random rows that sum to 1, float64."""
    scores = torch.randn(shape(of, images), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return normal(scores * sharpness, of)


def uniform(of: Axes, images: int = 2) -> Tensor:
    """Rows that are the same everywhere."""
    return normal(torch.zeros(shape(of, images), dtype=torch.float64), of)


def normal(scores: Tensor, of: Axes) -> Tensor:
    """The softmax over the keys."""
    if of.layout == "b h p kh kp":
        return scores.flatten(-2).softmax(-1).view_as(scores)
    return scores.softmax(-1)
