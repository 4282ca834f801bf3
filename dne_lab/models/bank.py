"""Experts computed together: their weights stacked along a leading expert axis, padded to the widest.

The newest expert is a bank of one, so that there is a single way of computing. Later frozen experts share up to four
banks (expert 1 has its own), so that the number of kernels does not grow with the number of experts.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.core.config import Network
from dne_lab.models import products
from dne_lab.models.expert import Expert, ExpertBlock, TaskAttentionParameters, position_probabilities

T = TypeVar("T")


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks tensors of unlike sizes along a new first axis, each padded with zeros at the end of every dimension.

    Heads are stored one after another, so padding at the end adds heads that read and write zeros.
    """
    if len(tensors) == 1:
        return tensors[0].unsqueeze(0)
    shape = [max(sizes) for sizes in zip(*(t.shape for t in tensors), strict=True)]
    out = tensors[0].new_zeros(len(tensors), *shape)
    for slot, tensor in zip(out, tensors, strict=True):
        slot[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return out


@dataclass(frozen=True, eq=False)
class TaskWeights:
    """A stacked task attention block, with the product of its query and key maps."""

    w_qk: Tensor | None  # (E, D_in, D_in) = w_q w_k^T; None where the weights are fixed
    w_v: Tensor  # (E, H, D_in, D_out)
    b_v: Tensor  # (E, H, D_out)
    scale: Tensor  # (E, K)
    read: Tensor | None = None  # of a bank of one: places of the earlier heads that it reads; None: all
    fixed: Tensor | None = None  # of a bank of one: its weights (K or 1, H) where they do not depend on the image


@dataclass(frozen=True, eq=False)
class LinearWeights:
    """A stacked linear layer: ``weight`` (E, out, in), ``bias`` (E, out); of a bank of one without the axis E."""

    weight: Tensor
    bias: Tensor


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The stacked weights of one block of a bank. Norms are (weight, bias) pairs of (E, width), or (width,) for one."""

    norm1: tuple[Tensor, Tensor]
    qkv: Tensor  # (E, 3, width, width)
    out: LinearWeights
    position: Tensor | None  # (E, K, n, n) probabilities from positions alone
    gate: Tensor | None  # (E, K, n), 0 for class tokens
    norm2: tuple[Tensor, Tensor]
    mix1: TaskWeights | LinearWeights
    norm_hidden: tuple[Tensor, Tensor] | None
    mix2: TaskWeights | LinearWeights
    lateral: Tensor | None  # (E, all widths, width)
    joint: Tensor | None  # (E, D, D) = W_q^T W_k in spatial-task attention, which reads all experts; else None
    read: Tensor | None = None  # of a bank of one: places of the earlier heads that it reads; None: all
    others: Tensor | None = None  # of a bank of one: (H, 2, D, D), W_k and W_v for each head read, where they differ
    query_bias: Tensor | None = None  # (width,) of a pretrained expert 1, which is a bank of one


@dataclass(frozen=True, eq=False)
class Bank:
    """Experts that run together: E experts of at most K heads."""

    numbers: tuple[int, ...]
    heads: tuple[int, ...]
    heads_so_far: tuple[int, ...]  # of experts 1 to the last of these: what they may read
    head_width: int
    frozen: bool
    training: bool  # stochastic depth is on
    embed: LinearWeights
    position: Tensor
    class_token: Tensor
    norm: tuple[Tensor, Tensor]
    layers: tuple[LayerWeights, ...]
    counts: Tensor | None  # (E, 1, 1, 1) true heads, on the device (a copy in every norm would wait), or None as `real`
    real: Tensor | None  # positions of the real heads among E x K, None if no head is padding
    allowed: Tensor | None  # (E x K, total): False for heads of later experts; None for a bank of one
    pictures: int = 0  # how many of the images, the last ones, are there to be read by other images alone
    epsilon: float = 1e-5  # of its norms; a pretrained expert 1 has that of its own

    @property
    def size(self) -> int:
        """E, the number of experts."""
        return len(self.numbers)

    @property
    def total(self) -> int:
        """Heads up to and including those of the last expert."""
        return sum(self.heads_so_far)

    @property
    def most_heads(self) -> int:
        """K, the heads that every expert is padded to."""
        return max(self.heads)

    def widths(self, channels_per_head: int) -> Tensor | None:
        """(E, 1, 1, 1) true widths, or None if no expert is padded."""
        return None if self.counts is None else self.counts * channels_per_head


def build(experts: Sequence[Expert], network: Network, heads: tuple[int, ...], pictures: int = 0) -> Bank:
    """Stacks consecutive experts into a bank; differentiable, so that a bank of one can train.

    ``heads``: of all experts of the network, expert 1 first; ``pictures``: see `Bank`.

    Products of weights are formed in the weights' own type whatever the autocast type: an exact rewriting must not lose
    digits twice, and a bank of frozen experts outlives the autocast under which it happened to be prepared.
    """
    device = experts[0].position.device.type
    with contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        return _build(experts, network, heads[: experts[-1].place.number], pictures)


def _build(experts: Sequence[Expert], network: Network, heads_so_far: tuple[int, ...], pictures: int) -> Bank:
    heads = tuple(e.place.heads for e in experts)
    most, total = max(heads), sum(heads_so_far)
    device = experts[0].position.device
    counts = real = allowed = None
    if len(set(heads)) > 1:
        counts = torch.tensor(heads, device=device, dtype=experts[0].position.dtype).view(-1, 1, 1, 1)  # (E, 1, 1, 1)
        real = torch.cat([torch.arange(k, device=device) + i * most for i, k in enumerate(heads)])
    if len(experts) > 1:
        ends = torch.tensor([e.place.all_heads for e in experts], device=device).repeat_interleave(most)
        allowed = torch.arange(total, device=device)[None] < ends[:, None]
    classes = 1 if network.readout == "cls_token" else 0
    frozen = all(e.frozen for e in experts)
    return Bank(
        numbers=tuple(e.place.number for e in experts),
        heads=heads,
        heads_so_far=heads_so_far,
        head_width=network.head_width,
        frozen=frozen,
        training=not frozen and experts[-1].training,
        embed=_linear([e.embed for e in experts]),
        position=stack([e.position for e in experts]),
        class_token=stack([e.class_token for e in experts]),
        norm=_norm([e.norm for e in experts]),
        layers=tuple(_layer([e.blocks[i] for e in experts], experts[0], classes) for i in range(network.depth)),
        counts=counts,
        real=real,
        allowed=allowed,
        pictures=pictures,
        epsilon=experts[0].norm.eps,
    )


def _norm(norms: Sequence[torch.nn.LayerNorm]) -> tuple[Tensor, Tensor]:
    if len(norms) == 1:  # no axis for one expert: fewer views, and the newest expert passes here in every step
        return norms[0].weight, norms[0].bias
    return stack([n.weight for n in norms]), stack([n.bias for n in norms])


def _linear(layers: Sequence[torch.nn.Linear]) -> LinearWeights:
    if len(layers) == 1:
        return LinearWeights(layers[0].weight, layers[0].bias)
    return LinearWeights(stack([f.weight for f in layers]), stack([f.bias for f in layers]))


def _mixing(layers: Sequence[TaskAttentionParameters | torch.nn.Linear]) -> TaskWeights | LinearWeights:
    task = [f for f in layers if isinstance(f, TaskAttentionParameters)]  # all of them or none: expert 1 is alone
    if not task:
        return _linear([f for f in layers if isinstance(f, torch.nn.Linear)])
    products = [f.w_q @ f.w_k.T for f in task if f.w_q is not None and f.w_k is not None]
    return TaskWeights(
        stack(products) if products else None,
        stack([f.w_v for f in task]),
        stack([f.b_v for f in task]),
        stack([f.scale for f in task]),
        task[0].read,
        task[0].fixed,
    )


def _present(parts: Iterable[T | None]) -> list[T]:
    """Without None: a part is there in all experts of a bank or in none."""
    return [part for part in parts if part is not None]


def _layer(blocks: Sequence[ExpertBlock], first: Expert, classes: int) -> LayerWeights:
    position = gate = None
    if positions := _present(b.attention.position for b in blocks):
        position = position_probabilities(stack(positions), first.place.grid, classes)
        gate = torch.sigmoid(stack(_present(b.attention.gate for b in blocks)))
        gate = gate[..., None].expand(*gate.shape, position.shape[-1])
        if classes:
            gate = torch.cat([torch.zeros_like(gate[..., :classes]), gate[..., classes:]], dim=-1)
    hidden = _present(b.norm_hidden for b in blocks)
    lateral = _present(b.lateral for b in blocks)
    joint = [b.attention.qkv[0].T @ b.attention.qkv[1] for b in blocks if b.joint]
    others: Tensor | None = blocks[0].attention.others
    if others is not None:
        owners = torch.tensor(first.place.owners, device=others.device)
        others = torch.cat([others, blocks[0].attention.qkv[None, 1:]]).index_select(0, owners)  # (H, 2, D, D)
    return LayerWeights(
        norm1=_norm([b.norm1 for b in blocks]),
        qkv=stack([b.attention.qkv for b in blocks]),
        out=_linear([b.attention.out for b in blocks]),
        position=position,
        gate=gate,
        norm2=_norm([b.norm2 for b in blocks]),
        mix1=_mixing([b.mix1 for b in blocks]),
        norm_hidden=_norm(hidden) if hidden else None,
        mix2=_mixing([b.mix2 for b in blocks]),
        lateral=stack(lateral) if lateral else None,
        joint=stack(joint) if joint else None,
        read=first.read,
        others=others,
        query_bias=blocks[0].attention.query_bias,
    )


# What later experts read.


class Context:
    """What the experts computed so far offer to later ones at one layer, by name.

    Args:
        heads: of all experts that will come, so that room is made once; adding a bank by concatenation would copy all
            earlier ones.
        so_far: what was computed before.
    """

    def __init__(self, heads: int, so_far: dict[str, Tensor] | None = None) -> None:
        self.heads = heads
        self._storage: dict[str, Tensor] = {}
        self._so_far: dict[str, Tensor] = so_far or {}

    def extend(self, name: str, own: Tensor, dim: int) -> Tensor:
        """Appends ``own`` along the head axis ``dim`` and returns all heads so far."""
        before = self._so_far.get(name)
        start = 0 if before is None else before.shape[dim]
        end = start + own.shape[dim]
        live = own.requires_grad or (before is not None and name not in self._storage)
        if before is None and (live or end == self.heads):
            self._so_far[name] = own
        elif live:
            assert before is not None
            self._so_far[name] = torch.cat([before, own], dim)
            self._storage.pop(name, None)
        else:
            if before is None:
                shape = list(own.shape)
                shape[dim] = self.heads
                self._storage[name] = own.new_empty(shape)
            room = self._storage[name]
            room.narrow(dim, start, end - start).copy_(own)
            self._so_far[name] = room.narrow(dim, 0, end)
        return self._so_far[name]

    def mark(self) -> dict[str, Tensor]:
        """What is there now, to `return_to`."""
        return dict(self._so_far)

    def return_to(self, mark: dict[str, Tensor]) -> None:
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

    def read(self, name: str, own: Tensor, dim: int, places: Tensor | None) -> list[Tensor]:
        """What an expert in a bank of its own reads: [the earlier heads at ``places`` (None: all), its own], or [its
        own] where there are none."""
        parts = self.parts(name, own, dim)
        if places is not None and not len(places):
            return [own]
        earlier = parts[0] if len(parts) > 1 else parts[0].narrow(dim, 0, parts[0].shape[dim] - own.shape[dim])
        return [earlier if places is None else earlier.index_select(dim, places), own]


# Layer norm, linear maps and head shuffling on stacked experts: tensors (E, B, n, width), weights with a leading E.


def norm(x: Tensor, affine: tuple[Tensor, Tensor], widths: Tensor | None = None, epsilon: float = 1e-5) -> Tensor:
    """Layer norm of (E, ..., width), each expert's own affine; ``widths`` (E, 1, 1, 1): the true widths if padded."""
    weight, bias = affine
    if weight.dim() == 1:
        return F.layer_norm(x, x.shape[-1:], weight, bias, epsilon)
    shape = (len(x), *[1] * (x.dim() - 2), -1)
    if widths is None:
        normal = F.layer_norm(x, x.shape[-1:], None, None, epsilon)
    else:
        mean = x.sum(-1, keepdim=True) / widths
        inside = torch.arange(x.shape[-1], device=x.device) < widths
        centred = (x - mean) * inside
        normal = centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / widths + epsilon)
    return normal * weight.view(shape) + bias.view(shape)  # (E, 1, ..., width)


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """(E, ..., in) -> (E, ..., out)."""
    if weights.weight.dim() == 2:
        return products.linear(x, weights.weight, weights.bias)
    flat = torch.baddbmm(weights.bias.unsqueeze(1), x.flatten(1, -2), weights.weight.mT)  # (E, rows, out)
    return flat.view(*x.shape[:-1], -1)  # (E, ..., out)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """(E, ..., in) @ (E, in, out) -> (E, ..., out)."""
    if len(weight) == 1:
        return products.times(x, weight[0])
    return products.batched(x.flatten(1, -2), weight).view(*x.shape[:-1], -1)  # (E, rows, in) -> (E, ..., out)


def by_head(x: Tensor, heads: int) -> Tensor:
    """(E, B, n, K x d) -> (E, B, n, K, d)."""
    return x.view(*x.shape[:-1], heads, -1)


def queries(x: Tensor) -> Tensor:
    """(E, B, n, K, d) -> (B, E x K, n, d), heads of all experts side by side."""
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)


def by_patch(x: Tensor) -> Tensor:
    """(E, B, n, K, d) -> (B, n, E x K, d), heads of all experts side by side, patch by patch."""
    return x.permute(1, 2, 0, 3, 4).flatten(2, 3)


def experts(x: Tensor, bank: Bank) -> Tensor:
    """(B, E x K, n, d) -> (E, B, n, K x d), the inverse of `queries` with heads joined."""
    batch, _, n, d = x.shape
    return x.view(batch, bank.size, -1, n, d).permute(1, 0, 3, 2, 4).flatten(3)  # (B, E, K, n, d) -> (E, B, n, K x d)


def keep_real(x: Tensor, bank: Bank, dim: int) -> Tensor:
    """Without the padding among the heads of axis ``dim``."""
    return x if bank.real is None else x.index_select(dim, bank.real)


def restore(x: Tensor, bank: Bank, dim: int) -> Tensor:
    """The inverse of `keep_real`: padding heads are zero."""
    if bank.real is None:
        return x
    shape = list(x.shape)
    shape[dim] = bank.size * bank.most_heads
    return x.new_zeros(shape).index_copy(dim, bank.real, x)
