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


class Context:
    """What the experts computed so far offer to later ones at one layer, by name.

    Args:
        heads: of all experts that will come, so that room is made once; adding a bank by concatenation would copy all
            earlier ones.
        so_far: what was computed before.
    """

    def __init__(self, heads: int, so_far: dict[str, Tensor] | None = None) -> None:
        self.heads = heads
        self._rooms: dict[str, Tensor] = {}
        self._so_far: dict[str, Tensor] = so_far or {}

    def extend(self, name: str, own: Tensor, dim: int) -> Tensor:
        """Appends ``own`` along the head axis ``dim`` and returns all heads so far."""
        before = self._so_far.get(name)
        start = 0 if before is None else before.shape[dim]
        end = start + own.shape[dim]
        live = own.requires_grad or (before is not None and name not in self._rooms)
        if before is None and (live or end == self.heads):
            self._so_far[name] = own
        elif live:
            assert before is not None
            self._so_far[name] = torch.cat([before, own], dim)
            self._rooms.pop(name, None)
        else:
            if before is None:
                shape = list(own.shape)
                shape[dim] = self.heads
                self._rooms[name] = own.new_empty(shape)
            room = self._rooms[name]
            room.narrow(dim, start, end - start).copy_(own)
            self._so_far[name] = room.narrow(dim, 0, end)
        return self._so_far[name]

    def mark(self) -> dict[str, Tensor]:
        """What is there now, to come `back` to."""
        return dict(self._so_far)

    def back(self, mark: dict[str, Tensor]) -> None:
        """Forgets what came after a `mark`; what comes next may be written over it in the same memory."""
        self._so_far = dict(mark)

    def so_far(self, name: str) -> Tensor:
        """All heads so far."""
        return self._so_far[name]

    def parts(self, name: str, own: Tensor, dim: int) -> list[Tensor]:
        """All heads so far in one tensor; of an expert that trains, and that nobody reads, [earlier ones, its own].

        So autograd computes no gradient for frozen heads and copies none of them.
        """
        before = self._so_far.get(name)
        if before is None or not own.requires_grad or before.shape[dim] + own.shape[dim] < self.heads:
            return [self.extend(name, own, dim)]
        return [before, own]


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
