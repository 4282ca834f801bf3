"""The controls of a `Variant` as they are defined, query head by query head: the oracle of `controlled_attention`.

It shares with the normal path the parameters and what brings a row to an entropy (`at_entropy`), nothing else.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.models.controlled_attention import at_entropy
from dne_lab.models.expert import Expert, ExpertBlock, TaskAttentionParameters, position_probabilities
from dne_lab.models.variants import Variant

if TYPE_CHECKING:
    from dne_lab.models.expandable import ExpandableViT


def read(heads: list[Tensor], places: Tensor | None) -> Tensor:
    """The heads (B, n, H_t, D) of every expert -> those that the last one reads: of the others those at ``places``
    (None: all), and its own."""
    if places is None:
        return torch.cat(heads, 2)
    everyone = torch.cat([*heads[:-1], heads[-1]], 2)
    return torch.cat([everyone[:, :, int(place)].unsqueeze(2) for place in places] + [heads[-1]], 2)


def fixed_weights(layer: TaskAttentionParameters) -> Tensor:
    """(H_t, H): 1/H, or the means that were measured."""
    heads, count = len(layer.scale), len(layer.w_v)
    return torch.ones_like(layer.b_v[:1, 0]).expand(heads, count) / count if layer.means is None else layer.means


def own_patches(variant: Variant, scores: Tensor) -> Tensor:
    """(..., keys) scores of eq. 12 -> probabilities at the variant's temperature."""
    if variant.entropy is not None:
        return at_entropy(scores, variant.entropy)
    return (scores / variant.temperature).softmax(-1)


def joint(model: "ExpandableViT", expert: Expert, b: ExpertBlock, x: list[Tensor], reads_out: bool) -> Tensor:
    """Spatial-task attention of one expert, whose block is ``b``, on the (B, n, C) tokens of experts up to it."""
    width, p = model.network.head_width, b.attention
    tokens = [r.unflatten(-1, (-1, width)) for r in x]  # (B, n, H_t, D) each
    own = tokens[-1]
    seen = other_pictures(model, expert, [r[:, 1:] if reads_out else r for r in tokens])
    u = b.norm1(seen)  # (B, n, H, D)
    maps = [p.qkv[1:]] * u.shape[2]
    if p.others is not None:
        maps = [torch.cat([p.others, p.qkv[None, 1:]])[owner] for owner in expert.place.owners]
    keys, values = (torch.stack([F.linear(u[:, :, j], m[i]) for j, m in enumerate(maps)], 2) for i in (0, 1))
    first = u.shape[2] - own.shape[2]
    out = []
    for head, r in enumerate(own.unbind(2)):
        mine = b.norm1(r[:, :1] if reads_out else r)
        q = F.linear(mine, p.qkv[0])
        if reads_out:
            key, value = (F.linear(mine, w) for w in p.qkv[1:])
            out.append(class_row(model.variant, q, (key, keys), (value, values), first + head))
        else:
            scores = torch.einsum("bpd,bkjd->bpjk", q, keys) * width**-0.5  # (B, n, H, n)
            a = rows(model.variant, scores, first + head)
            if p.position is not None and p.gate is not None:
                a = gated(model, a, p.position[head], p.gate[head], first + head)
            out.append(torch.einsum("bpjk,bkjd->bpd", a, values))  # (B, n, D)
    return p.out(torch.cat(out, -1))


def other_pictures(model: "ExpandableViT", expert: Expert, tokens: list[Tensor]) -> Tensor:
    """The (B, n, H_t, D) heads of experts up to this one -> what it reads of them, image by image."""
    whole, own = read(tokens, expert.read), tokens[-1]
    count = whole.shape[2] - own.shape[2]
    if model.variant.pictures == "same" or model.pictures is None:
        return whole
    images = len(whole) - len(model.pictures)
    trains = expert.training and not expert.frozen
    found = []
    for b in range(len(whole)):
        slots = []
        for j in range(count):
            further = j if model.variant.pictures == "own" else 0
            if b >= images:
                others = [*range(b + 1, len(whole)), *range(images, b)]
            elif trains and images > 1:
                others = [*range(b + 1, images), *range(b)]
            else:
                others = [*range(images, len(whole))]
            other = others[further % len(others)]
            of = own[other, :, j % own.shape[2]] if model.variant.pictures == "own" else whole[other, :, j]
            slots.append(of)
        found.append(torch.stack([*slots, *own[b].unbind(1)], 1))  # (n, H, D)
    return torch.stack(found)


def rows(variant: Variant, scores: Tensor, own: int) -> Tensor:
    """(B, n, H, n) scores of one head, the one at place ``own`` -> its probabilities."""
    scores = scores / variant.temperature
    positions, heads = scores.shape[1:3]
    same = torch.eye(positions, dtype=torch.bool, device=scores.device)[:, None]  # (n, 1, n)
    if variant.mass == "ia":
        share = scores[:, :, own].softmax(-1).diagonal(dim1=1, dim2=2)  # (B, n): on its own position
        parts = []
        for where in (same, ~same):
            left = scores.masked_fill(~where, float("-inf")).flatten(2)  # (B, n, H x n)
            parts.append(left.softmax(-1).view_as(scores) if where.any() else torch.zeros_like(scores))
        share = share[:, :, None, None]
        return share * parts[0] + (1 - share) * parts[1]
    gone = ~connected(variant.masked, positions, heads, own, scores.device)
    flat = scores.masked_fill(gone, float("-inf")).flatten(2)  # (B, n, H x n)
    return (flat.softmax(-1) if variant.entropy is None else at_entropy(flat, variant.entropy)).view_as(scores)


def connected(masked: str, positions: int, heads: int, own: int, device: torch.device) -> Tensor:
    """(n, H, n): which keys the head at place ``own`` reads."""
    left = torch.ones(positions, heads, positions, dtype=torch.bool, device=device)
    for j in (j for j in range(heads) if j != own):
        for p in range(positions):
            left[p, j, p] = masked not in ("SPDH", "both")
            left[p, j, [o for o in range(positions) if o != p]] = masked not in ("DPDH", "both")
    return left


def gated(model: "ExpandableViT", a: Tensor, position: Tensor, gate: Tensor, own: int) -> Tensor:
    """The (B, n, H, n) content with attention to positions mixed in; a position's weight is split over the heads that
    may be read there."""
    positions, heads = a.shape[1:3]
    classes = positions - model.grid[0] * model.grid[1]
    share = torch.sigmoid(gate).repeat(positions)
    share[:classes] = 0
    share = share[:, None, None]
    left = connected(model.variant.masked, positions, heads, own, a.device).to(a.dtype)
    places = position_probabilities(position[None], model.grid, classes)[0]  # (n, n)
    return (1 - share) * a + share * places[:, None] * left / left.sum(1, keepdim=True)


def class_row(
    variant: Variant, q: Tensor, keys: tuple[Tensor, Tensor], values: tuple[Tensor, Tensor], own: int
) -> Tensor:
    """What a class token sees: itself, then every patch of every head that it may read; (B, 1, D).

    Keys and values: (B, 1, D) of the class token and (B, N, H, D) of patches.
    """
    heads = [own] if variant.masked in ("DPDH", "both") else list(range(keys[1].shape[2]))
    k, v = (torch.cat([token, *(of[:, :, j] for j in heads)], 1) for token, of in (keys, values))
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
