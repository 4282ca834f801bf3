"""Where the rows of one expert stand in what an attention point computes for a whole bank."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dne_lab.models.attention import Axes


@dataclass(frozen=True, eq=False)
class Cut:
    """A place in the tensor of a bank.

    Attributes:
        axes: of what is cut out.
        rows: places on the head axis, ``query_dim``.
        keys: leading places on ``key_dim`` that the expert may see; what follows are later experts, exactly 0.
    """

    axes: Axes
    rows: tuple[int, ...]
    query_dim: int
    keys: int | None
    key_dim: int

    def shape(self, whole: Sequence[int]) -> tuple[int, ...]:
        """The shape of what is cut out of a tensor of shape ``whole``."""
        sizes = list(whole)
        sizes[self.query_dim] = len(self.rows)
        if self.keys is not None:
            sizes[self.key_dim] = self.keys
        return tuple(sizes)

    def take(self, whole: Tensor) -> Tensor:
        """The expert's rows and keys, a view where that is possible."""
        first, count = self.rows[0], len(self.rows)
        if self.rows == tuple(range(first, first + count)):
            part = whole.narrow(self.query_dim, first, count)
        else:
            part = whole.index_select(self.query_dim, torch.tensor(self.rows, device=whole.device))
        return part if self.keys is None else part.narrow(self.key_dim, 0, self.keys)

    def put(self, whole: Tensor, part: Tensor) -> Tensor:
        """``whole`` with these rows replaced by ``part``; differentiable in both."""
        missing = whole.shape[self.key_dim] - part.shape[self.key_dim]
        if missing:
            shape = list(part.shape)
            shape[self.key_dim] = missing
            part = torch.cat([part, part.new_zeros(shape)], self.key_dim)
        return whole.index_copy(self.query_dim, torch.tensor(self.rows, device=whole.device), part)


def cut(axes: Axes, expert: int, chosen: Callable[[int], bool]) -> Cut | None:
    """The rows of ``expert``'s heads that ``chosen`` accepts, or None if there are none."""
    names = axes.layout.split()
    queries = list(zip(axes.query_expert, axes.query_head, strict=True))
    rows = tuple(row for row, (owner, head) in enumerate(queries) if owner == expert and chosen(head))
    if not rows:
        return None
    key_dim = next(names.index(name) for name in ("kh", "k", "kp") if name in names)
    own = tuple(axes.query_expert[row] for row in rows), tuple(axes.query_head[row] for row in rows)
    keys, labels = None, own
    if names[key_dim] in ("kh", "k"):  # all experts' heads, in the order of the experts
        visible = sum(owner <= expert for owner in axes.key_expert)
        labels = axes.key_expert[:visible], axes.key_head[:visible]
        keys = visible if names[key_dim] == "kh" else axes.classes + visible * axes.grid[0] * axes.grid[1]
    mine = Axes(axes.kind, axes.layout, axes.layer, *own, *labels, None, axes.grid, axes.classes)
    return Cut(mine, rows, names.index("h"), keys, key_dim)
