"""Attention over patches under the controls of a `Variant`: what the published variants leave free is fixed.

Experts from 2 on run one at a time here, so E = 1 throughout; expert 1 is as ever. R heads are read, the last K of them
the expert's own.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.models.attention import AttentionWeights, Axes
from dne_lab.models.bank import Bank, Context, LayerWeights, by_head, experts, linear, product, queries
from dne_lab.models.block import (
    PUBLISHED,
    AttentionPoint,
    ClassAttention,
    JointAttention,
    Points,
    SpatialAttention,
    by_position,
    joint_query,
    joint_value,
)
from dne_lab.models.variants import Variant


def points(variant: Variant) -> Points:
    """The attentions of a variant's blocks."""
    if not variant.computes_otherwise:
        return PUBLISHED
    kinds = (ControlledSpatial, ControlledJoint, ControlledClass)
    return Points(*(functools.partial(kind, variant) for kind in kinds))


# Where attention goes: masks, the mass on a position, temperatures.


@functools.lru_cache(maxsize=64)
def unmasked(masked: str, own: int, read: int, positions: int, device: torch.device) -> Tensor:
    """(K, n, R, n) bool: what is left of the pairs of a query and a key when a group of them is masked."""
    same_head = torch.arange(read - own, read, device=device)[:, None] == torch.arange(read, device=device)
    same_head = same_head[:, None, :, None]
    same = torch.eye(positions, dtype=torch.bool, device=device)[None, :, None]
    gone = {"none": same & False, "SPDH": same, "DPDH": ~same, "both": same | True}[masked]
    return same_head | ~gone


def matched_mass(scores: Tensor) -> Tensor:
    """Softmax of (B, K, n, R, n) scores over the same positions, and over the others, with the mass on the same ones
    that the softmax over the query's own head alone puts there."""
    count, read = scores.shape[1], scores.shape[3]
    heads = torch.arange(count, device=scores.device)
    own = scores[:, heads, :, heads + read - count]  # (K, B, n, n)
    share = own.softmax(-1).diagonal(dim1=-2, dim2=-1).transpose(0, 1)  # (B, K, n)
    same = scores.diagonal(dim1=2, dim2=4).softmax(2) * share.unsqueeze(2)  # (B, K, R, n)
    eye = torch.eye(scores.shape[2], dtype=torch.bool, device=scores.device)[:, None]  # (n, 1, n)
    if len(eye) == 1:  # no other position, on which all of the mass would not be
        return same.unsqueeze(2).transpose(3, 4).reshape_as(scores)  # n = 1: (B, K, 1, R, 1)
    # the keys of a row together, (B, K, n, R x n), and apart again, (B, K, n, R, n)
    other = scores.masked_fill(eye, float("-inf")).flatten(3).softmax(-1).view_as(scores)
    # the diagonal over both axes of positions, (B, K, R, n) -> (B, K, n, R, n)
    return other * (1 - share)[..., None, None] + torch.diag_embed(same).transpose(2, 3)


STEPS, WIDEST = 16, 12.0  # of Newton's method; of the logarithm of 1 / temperature
REACHED = 1e-3  # nats


def at_entropy(scores: Tensor, share: float) -> Tensor:
    """Softmax over the last axis at the temperature at which each row's entropy is ``share`` x log(keys).

    Differentiable: the temperature moves with the scores so that the entropy stays. Keys with -inf are none. Where no
    temperature between e^-12 and e^12 gives that entropy (equal scores), the nearest is taken; a share of 1 is uniform.
    """
    there = scores > float("-inf")
    if share == 1:
        return there.to(scores.dtype) / there.sum(-1, keepdim=True)
    wanted = share * there.sum(-1, keepdim=True).to(scores.dtype).log()
    centred = scores - scores.amax(-1, keepdim=True).detach()
    centred = torch.where(there, centred, 0.0)

    def rows(log_rate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Probabilities, entropy, and how fast it falls with ``log_rate``."""
        rate = log_rate.exp()
        logs = (centred * rate).masked_fill(~there, float("-inf")).log_softmax(-1)
        logs = logs.masked_fill(~there, 0.0)  # before any product: 0 x -inf has no gradient
        p = logs.exp() * there
        mean = (p * centred).sum(-1, keepdim=True)
        entropy = -(p * logs).sum(-1, keepdim=True)
        return p, entropy, rate**2 * (p * (centred - mean) ** 2).sum(-1, keepdim=True)

    with torch.no_grad():
        at = torch.zeros_like(wanted)
        low, high = at - WIDEST, at + WIDEST
        for _ in range(STEPS):
            _, entropy, fall = rows(at)
            above = entropy > wanted  # too even: a higher rate
            low, high = torch.where(above, at, low), torch.where(above, high, at)
            step = at + (entropy - wanted) / fall
            inside = (step >= low) & (step <= high)  # False for NaN too
            at = torch.where(inside, step, (low + high) / 2)
    _, entropy, fall = rows(at)
    near = ((entropy - wanted).abs() <= REACHED) & (fall > 1e-9)
    # The last step carries the gradient of the temperature: d log_rate = d entropy / fall.
    moved = torch.where(near, (entropy - wanted) / torch.where(near, fall, 1.0).detach(), 0.0)
    return rows(at + moved)[0]


class ControlledWeights(AttentionWeights):
    """The probabilities of a variant with controls, of experts from 2 on."""

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        self.variant = variant

    def content(self, scores: Tensor, axes: Axes) -> Tensor:
        """What the content alone attends to."""
        if axes.query_expert[0] == 1:
            return super().content(scores, axes)
        own, read = len(axes.query_expert), len(axes.key_expert)
        if axes.layout == "b h p kh kp":
            if self.variant.mass == "ia":
                return matched_mass(scores)
            if self.variant.masked != "none":
                left = unmasked(self.variant.masked, own, read, scores.shape[-1], scores.device)
                scores = scores.masked_fill(~left, float("-inf"))
            return self._softmax(scores.flatten(3)).view_as(scores)  # over all (kh, kp) keys at once
        if axes.layout == "b h k" and self.variant.masked in ("DPDH", "both"):
            # its own class token and its own head's patches are left: no patch is at the class token's position
            patches = axes.grid[0] * axes.grid[1]
            left = unmasked("both", own, read, 1, scores.device).view(own, read)  # (h, kh)
            left = F.pad(left.repeat_interleave(patches, 1), (axes.classes, 0), value=True)
            scores = scores.masked_fill(~left, float("-inf"))
        return self._softmax(scores) if axes.layout == "b h p kp" else scores.softmax(-1)

    def _softmax(self, scores: Tensor) -> Tensor:
        if self.variant.entropy is None:
            return scores.softmax(-1)
        return at_entropy(scores.float() if scores.dtype != torch.float64 else scores, self.variant.entropy)

    def placed(self, scores: Tensor, axes: Axes, position: Tensor) -> Tensor:
        """What positions alone attend to: a position's weight is split over the heads that may be read there."""
        if axes.layout != "b h p kh kp" or axes.masked == "none":
            return super().placed(scores, axes, position)
        left = unmasked(axes.masked, *scores.shape[1:4:2], scores.shape[-1], scores.device).to(position.dtype)
        return position.unsqueeze(2) * left / left.sum(2, keepdim=True)  # (h, p, kh, kp)


# What is read: other heads, other pictures, through other maps.


def other_pictures(batch: int, bank: Bank, count: int, device: torch.device) -> Tensor:
    """(count, B): for each image the places of ``count`` others.

    While an expert trains these are others of its batch; else, and for the pictures that are kept to be read, those.
    """
    images = batch - bank.pictures
    order = torch.arange(batch, device=device)
    further = torch.arange(count, device=device)[:, None]

    def after(place: Tensor, size: int) -> Tensor:
        """The ones behind a place, over again where there are fewer than ``count``, and never the one there."""
        return (place + 1 + further % max(1, size - 1)) % max(1, size)

    if not bank.pictures:
        return after(order, images)
    shown_ones = images + after(order - images, bank.pictures)
    alone = images + further % bank.pictures + 0 * order
    return torch.where(order < images, after(order, images) if bank.training and images > 1 else alone, shown_ones)


def keys_read(own: Tensor, w: LayerWeights, bank: Bank, context: Context, pictures: str) -> Tensor:
    """(B, K, n, D) tokens of an expert's heads -> those of all heads that it reads, (B, R, n, D)."""
    *others, own = context.read("joint", own, 1, w.read)
    if not others:
        return own
    (earlier,) = others
    if pictures == "shuffled":
        earlier = earlier.index_select(0, other_pictures(len(own), bank, 1, own.device)[0])
    elif pictures == "own":
        count = earlier.shape[1]
        heads = torch.arange(count, device=own.device) % own.shape[1]
        earlier = own[other_pictures(len(own), bank, count, own.device).T, heads]  # (B, R - K, n, D)
    return torch.cat([earlier, own], 1)


class ControlledPoint(AttentionPoint):
    """Base of the attentions here."""

    def __init__(self, variant: Variant, kind: str, layer: int, grid: tuple[int, int], classes: int) -> None:
        super().__init__(kind, layer, grid, classes)
        self.variant, self.masked, self.pictures = variant, variant.masked, variant.pictures
        self.weights = ControlledWeights(variant)

    def unfused(self, bank: Bank) -> bool:
        matched = self.variant.entropy is not None or self.variant.mass != "free"
        return super().unfused(bank) or (matched and bank.numbers[0] > 1)

    def scale(self, bank: Bank) -> float:
        return super().scale(bank) / (self.variant.temperature if bank.numbers[0] > 1 else 1.0)


class ControlledSpatial(ControlledPoint, SpatialAttention):
    """Eq. 12 at a temperature."""


class ControlledJoint(ControlledPoint, JointAttention):
    """Spatial-task attention under controls."""

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        """(1, B, n, C) tokens, not normalised -> (1, B, n, C)."""
        own = F.layer_norm(by_head(x, bank.most_heads), (bank.head_width,))
        keys = keys_read(queries(own), w, bank, context, self.pictures)
        if w.others is None:
            q, affine = joint_query(own, w)
            mixed, mass = self.attend(queries(q), keys, keys, w, bank)
            return joint_value(mixed, mass, affine, w, bank)
        q, k, v = projected(own, keys, w)
        return linear(experts(self.attend(q, k, v, w, bank)[0], bank), w.out)

    def mask(self, bank: Bank, keys: Tensor) -> Tensor | None:
        if self.masked == "none":
            return None
        left = unmasked(self.masked, bank.most_heads, *keys.shape[1:3], keys.device)
        return left.flatten(2).flatten(0, 1)  # (K x n, R x n)

    def placed(self, position: Tensor, values: Tensor, bank: Bank) -> Tensor:
        if self.masked == "none":
            return super().placed(position, values, bank)
        everyone, own = values.mean(1, keepdim=True), values[:, -bank.most_heads :]
        there, elsewhere = (own if self.masked in (group, "both") else everyone for group in ("SPDH", "DPDH"))
        # the query's own position and the others may be read in different heads
        alone = position[0].diagonal(dim1=-2, dim2=-1)[..., None]  # (K, n, 1)
        return by_position(position, elsewhere) + alone * (there - elsewhere)


def projected(own: Tensor, keys: Tensor, w: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of (1, B, n, K, D) own heads, keys and values of (B, R, n, D) heads, each head by its expert's maps."""
    assert w.others is not None
    gain, shift = w.norm1
    q = queries(product(own * gain + shift, w.qkv[:, 0].mT))
    read = keys * gain + shift
    k, v = (torch.einsum("bjkd,jed->bjke", read, maps) for maps in w.others.unbind(1))  # (B, R, n, D) each
    return q, k, v


class ControlledClass(ControlledPoint, ClassAttention):
    """The class token's view under controls."""

    def _joint(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        own = F.layer_norm(by_head(x, bank.most_heads), (bank.head_width,))
        keys: Any = keys_read(queries(own[:, :, 1:]), w, bank, context, self.pictures)
        token = queries(own[:, :, :1])  # (B, K, 1, D)
        affine = None
        if w.others is None:
            q, affine = joint_query(own[:, :, :1], w)
            q, values, token_value = queries(q), keys, token
        else:
            q, keys, values = projected(own[:, :, :1], keys, w)
            gain, shift = w.norm1
            token, token_value = ((token * gain + shift) @ w.qkv[0, i].mT for i in (1, 2))
        flat, flat_values = (part.flatten(1, 2) for part in (keys, values))  # (B, R x n, D)
        scores = torch.cat([(q * token).sum(-1), q.squeeze(2) @ flat.mT], dim=-1) * bank.head_width**-0.5
        a = self.weigh(bank, scores, self.axes("b h k", bank, reads_all=True, read=w.read))
        mixed = (a[..., :1] * token_value.squeeze(2) + a[..., 1:] @ flat_values).unsqueeze(2)  # (B, K, 1, D)
        if affine is None:
            return linear(experts(mixed, bank), w.out)
        return joint_value(mixed, a.sum(-1)[..., None, None], affine, w, bank)
