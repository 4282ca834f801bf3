"""What the four attentions of the normal path share: a hook point with its axes, and what later experts read.

The modules hold no parameters and compute a bank of experts at once. Tokens are (E, B, n, width): E experts, B images,
n patches (after leading class tokens).
"""

import functools

import torch
from torch import Tensor, nn

from dne_lab.models.attention import AttentionWeights, Axes
from dne_lab.models.bank import Bank
from dne_lab.models.stacked import keep_real


class Context(dict[str, Tensor]):
    """What the experts computed so far offer to later ones at one layer, by name."""

    def extend(self, name: str, own: Tensor, dim: int) -> Tensor:
        """Appends ``own`` along the head axis ``dim`` and returns all heads so far."""
        self[name] = torch.cat([self[name], own], dim) if name in self else own
        return self[name]


class AttentionPoint(nn.Module):
    """Base of the four attentions: a hook point and the axes of what passes through it."""

    def __init__(self, kind: str, layer: int, grid: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.weights = AttentionWeights()
        self.kind, self.layer, self.grid, self.classes = kind, layer, grid, classes

    def axes(self, layout: str, bank: Bank, key_heads: tuple[int, ...] | None = None) -> Axes:
        """The axes of this point for a bank.

        ``key_heads``: heads of each expert among the keys; None: the query's own.
        """
        own = _labels(bank.numbers, bank.heads)
        keys = own if key_heads is None else _labels(range(1, len(key_heads) + 1), key_heads)
        allowed = None if key_heads is None or bank.allowed is None else keep_real(bank.allowed, bank, 0)
        return Axes(self.kind, layout, self.layer, *own, *keys, allowed, self.grid, self.classes)

    def flat(self, values: Tensor | None, bank: Bank) -> Tensor | None:
        """(E, K, ...) -> (real heads, ...)."""
        return None if values is None else keep_real(values.flatten(0, 1), bank, 0)


@functools.lru_cache(maxsize=256)
def _labels(numbers: range | tuple[int, ...], heads: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    expert = tuple(number for number, count in zip(numbers, heads, strict=True) for _ in range(count))
    return expert, tuple(head for count in heads for head in range(count))
