"""The one hook point: scores in, probabilities out, with axes that say what every dimension is."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

SPATIAL, JOINT, TASK1, TASK2, CLASS = KINDS = ("spatial", "joint", "task1", "task2", "class")
PARAMETERS_OF = {TASK1: "mix1", TASK2: "mix2"}  # how checkpoints call the two TABs of a block, in `ExpertBlock`


@dataclass(frozen=True, eq=False)
class Axes:
    """What the dimensions of an attention tensor mean.

    Attributes:
        kind: spatial (own patches), joint (patches of all heads), task1 and task2 (heads, patch by patch), class (the
            view of a class token).
        layout: names of the dimensions: b image, h query head, p query patch, kh key head, kp key patch, and k = class
            token, then all patches of key head 0, 1, ...
        layer: block number, from 0.
        query_expert, query_head: for each h the expert (from 1) and the head within it (from 0).
        key_expert, key_head: the same for each key head; in layouts without kh they equal the query's own, except in
            the "b h k" of spatial-task attention, whose k runs over all key heads.
        allowed: (h, kh) bool or None; False is a later expert: exactly 0, no connection, not in the uniform reference.
        grid: (rows, columns) of patches.
        classes: leading class tokens on the patch axes (queries and keys; in layout "b h k" and "b h kp" on the keys).
        masked, pictures: columns of `Variant`: which pairs are no connection, exactly 0 and not in the uniform
            reference; and on which picture the keys of other experts are.
    """

    kind: str
    layout: str
    layer: int
    query_expert: tuple[int, ...]
    query_head: tuple[int, ...]
    key_expert: tuple[int, ...]
    key_head: tuple[int, ...]
    allowed: Tensor | None
    grid: tuple[int, int]
    classes: int
    masked: str = "none"
    pictures: str = "same"


class AttentionWeights(nn.Module):
    """Turns scores into the final attention probabilities.

    A forward hook reads them, or replaces them by returning a tensor. While nobody listens, spatial attention runs in
    fused kernels and this module is not called for it, except where a `Variant` sets mass or entropy; task and class
    attention always come through here. It may fire several times per forward pass, each time with its own `Axes`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.only: dict[int, frozenset[int]] = {}  # a hook's id: the experts it listens to; others listen to all

    def listens_to(self, numbers: Iterable[int]) -> bool:
        """Whether a hook here listens to the attention of any of these experts."""
        numbers = set(numbers)
        hooks = [*self._forward_hooks, *self._forward_pre_hooks]
        return any(hook not in self.only or self.only[hook] & numbers for hook in hooks)

    def forward(self, scores: Tensor, axes: Axes, position: Tensor | None = None, gate: Tensor | None = None) -> Tensor:
        """Softmax over the keys and, with ``gate``, the gated mixture of ConViT.

        Args:
            scores: scaled products in ``axes.layout``.
            position: (h, p, kp) probabilities from positions alone, rows summing to 1 (for layout with kh: to be split
                equally over the key heads allowed).
            gate: (h, p) share of the position part.

        Returns:
            Probabilities of the same shape; every row sums to 1 over the keys.
        """
        content = self.content(scores, axes)
        if gate is None or position is None:
            return content
        gate = gate.reshape(*gate.shape, *[1] * (content.dim() - 1 - gate.dim()))  # (h, p, 1) or (h, p, 1, 1)
        # Under autocast the scores are of a narrower type than what follows from parameters alone.
        placed = self.placed(scores, axes, position).to(content.dtype)
        return torch.lerp(content, placed, gate.to(content.dtype))

    def content(self, scores: Tensor, axes: Axes) -> Tensor:
        """What the content alone attends to: the softmax of the scores over the keys that are allowed."""
        if axes.allowed is not None:
            shape = {"b h p kh kp": (1, -1, 1, axes.allowed.shape[1], 1), "b p h kh": (1, 1, *axes.allowed.shape)}
            if axes.layout == "b h k":
                patches = axes.grid[0] * axes.grid[1]
                allowed = axes.allowed.repeat_interleave(patches, dim=1)
                allowed = torch.cat([allowed.new_ones(len(allowed), axes.classes), allowed], dim=1)[None]
            else:
                allowed = axes.allowed.reshape(shape[axes.layout])  # (1, h, 1, kh, 1) or (1, 1, h, kh)
            scores = scores.masked_fill(~allowed, float("-inf"))
        if axes.layout == "b h p kh kp":
            return scores.flatten(-2).softmax(-1).view_as(scores)  # over all (kh, kp) keys at once
        return scores.softmax(-1)

    def placed(self, scores: Tensor, axes: Axes, position: Tensor) -> Tensor:
        """What positions alone attend to, without the image axis: ``position``, split over the allowed key heads."""
        if axes.layout == "b h p kh kp":
            return position.unsqueeze(-2) * _share(axes, scores)
        return position


def _share(axes: Axes, scores: Tensor) -> Tensor:
    """(h, 1, kh, 1): each allowed key head's equal part of a position's weight."""
    heads = scores.shape[-2]
    if axes.allowed is None:
        return scores.new_full((1, 1, heads, 1), 1 / heads)
    allowed = axes.allowed.to(scores.dtype)
    return (allowed / allowed.sum(1, keepdim=True))[:, None, :, None]
