"""Tiny networks, images and streams that the tests of models and methods share."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dne_lab.core import config
from dne_lab.data.stream import ClassStream, stream
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, PROGRESSIVE, STA, Variant

SHAPE = (3, 8, 12)  # with patch 4 a grid of 2 x 3: rows and columns cannot be confused
PUBLISHED = (IA, STA, DNE, PROGRESSIVE)
VARIANTS = tuple(Variant(f"{r}-{m}", r, m) for r in ("own", "all") for m in ("mlp", "task", "task1", "task2", "linear"))
PAPER: dict[str, Any] = {"spatial": "mhsa", "readout": "cls_token", "hidden_norm": True}
AUTHORS: dict[str, Any] = {"spatial": "gpsa", "readout": "class_attention", "hidden_norm": False}
STYLES = (PAPER, AUTHORS)


def names(value: object) -> str:
    """A readable test id."""
    if isinstance(value, Variant):
        return value.name
    if isinstance(value, dict):
        return "-".join(str(part) for part in value.values())
    return str(value)


def network(**changes: Any) -> config.Network:
    """A network of head width 4, two blocks and patch 4 in the style of the paper's text."""
    return config.Network(**{"patch": 4, "depth": 2, "head_width": 4, "ratio": 2, **PAPER, **changes})


def model(
    variant: Variant = DNE,
    heads: Sequence[int] = (3, 1, 2),
    *,
    shape: tuple[int, int, int] = SHAPE,
    classes: int = 2,
    shake: float = 0.3,
    seed: int = 0,
    **changes: Any,
) -> ExpandableViT:
    """A model of ``len(heads)`` experts; ``shake`` moves every parameter off its start, so that no term is hidden."""
    torch.manual_seed(seed)
    mean, std = (0.4, 0.5, 0.6)[: shape[0]], (0.2, 0.25, 0.3)[: shape[0]]
    net = ExpandableViT(network(**changes), shape, variant, mean, std)
    for count in heads:
        net.expand(count, classes)
    with torch.no_grad():
        for parameter in net.parameters() if shake else ():
            parameter.add_(torch.randn_like(parameter) * shake)
    return net.eval()


def expert(model: ExpandableViT, number: int) -> Any:
    """Expert 1, 2, ... (untyped: a module list does not know what it holds)."""
    return model.experts[number - 1]


def images(count: int = 2, shape: tuple[int, int, int] = SHAPE, seed: int = 0) -> Tensor:
    """Random pixels, (count, C, H, W) uint8."""
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def difference(one: Any, other: Any) -> float:
    """max|difference| / max|value|, over tensors or arrays or lists of them."""
    if isinstance(one, (list, tuple)):
        return max(difference(a, b) for a, b in zip(one, other, strict=True))
    a, b = (np.asarray(v.detach().double() if isinstance(v, Tensor) else v, dtype=np.float64) for v in (one, other))
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


def tiny_stream(tasks: Sequence[int] = (2, 1, 2), order: Any = "identity", each: int = 4) -> ClassStream:
    """Random images of ``sum(tasks)`` classes, ``each`` a class in both splits."""
    count = sum(tasks)
    labels = np.arange(count).repeat(each)
    pixels = images(2 * len(labels)).permute(0, 2, 3, 1).numpy()
    return stream((pixels[: len(labels)], labels, pixels[len(labels) :], labels), tasks, order=order)


def hooks(model: nn.Module) -> list[Any]:
    """Every hook in a network, and what attention points were told of experts that are listened to."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    names += ("_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    only = [number for part in model.modules() for number in getattr(part, "only", ())]
    return only + [hook for part in model.modules() for name in names for hook in getattr(part, name).items()]
