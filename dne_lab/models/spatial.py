"""Attention over patches on the normal path: each expert's own (eq. 12), or all experts' (spatial-task attention)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.models.bank import Bank, LayerWeights
from dne_lab.models.points import AttentionPoint, Context
from dne_lab.models.stacked import by_head, experts, keep_real, linear, product, queries, restore


def look(position: Tensor, values: Tensor) -> Tensor:
    """Attention to positions alone: (E, K, n, n) and (B, E x K or 1, n, D) -> (B, E x K, n, D).

    One product a head over all images together; ``position @ values`` would copy the probabilities for every image.
    """
    flat = position.flatten(0, 1)
    return torch.einsum("hpk,bhkd->bhpd", flat, values.expand(-1, len(flat), -1, -1))


class SpatialAttention(AttentionPoint):
    """Eq. 12, head by head within each expert; with a gate, ConViT's mixture with attention to positions."""

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank) -> Tensor:
        """(E, B, n, C) normalised tokens -> (E, B, n, C)."""
        heads = bank.most_heads
        qkv = product(x, w.qkv.flatten(1, 2).mT).unflatten(-1, (3, heads, -1))
        q, k, v = qkv.permute(3, 1, 0, 4, 2, 5).flatten(2, 3).unbind()  # (B, E x K, n, D) each
        scale = bank.head_width**-0.5
        if self.weights.listens_to(bank.numbers):
            q, k, v = (keep_real(part, bank, 1) for part in (q, k, v))
            scores = q @ k.mT * scale
            axes = self.axes("b h p kp", bank)
            out = self.weights(scores, axes, self.flat(w.position, bank), self.flat(w.gate, bank)) @ v
            out = restore(out, bank, 1)
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
            if w.position is not None and w.gate is not None:
                out = torch.lerp(out, look(w.position, v), w.gate.flatten(0, 1)[..., None].to(out.dtype))
        return linear(experts(out, bank), w.out)


class JointAttention(AttentionPoint):
    """Spatial-task attention: the keys are every patch of every head of all experts so far, one head's token each.

    Keys and values are never projected: with u = g r + b (LN of a head's token r; g, b belong to the reading expert),
    q . W_k u = (g W_k^T q) . r + a constant of the row, and sum_j a_j W_v u_j = W_v (g sum_j a_j r_j + b sum_j a_j).
    """

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context, key_heads: tuple[int, ...]) -> Tensor:
        """(E, B, n, C) tokens, not normalised -> (E, B, n, C)."""
        own = F.layer_norm(by_head(x, bank.most_heads), (bank.head_width,))
        keys = context.extend("joint", keep_real(queries(own), bank, 1), 1)
        q, affine = joint_query(own, w)
        q = queries(q)
        batch, heads, n, width = q.shape
        scale = width**-0.5
        if self.weights.listens_to(bank.numbers):
            q = keep_real(q, bank, 1)
            scores = torch.einsum("bhpd,bjkd->bhpjk", q, keys) * scale
            axes = self.axes("b h p kh kp", bank, key_heads)
            a = self.weights(scores, axes, self.flat(w.position, bank), self.flat(w.gate, bank))
            mixed = restore(torch.einsum("bhpjk,bjkd->bhpd", a, keys), bank, 1)
            mass = restore(a.sum((-1, -2))[..., None], bank, 1)
        else:
            mask = None
            if bank.allowed is not None:
                mask = bank.allowed.repeat_interleave(n, 0).repeat_interleave(n, 1)
            flat = keys.reshape(batch, 1, -1, width)
            mixed = F.scaled_dot_product_attention(q.reshape(batch, 1, -1, width), flat, flat, mask, scale=scale)
            mixed = mixed.view(batch, heads, n, width)
            if w.position is not None and w.gate is not None:
                placed = look(w.position, _mean_allowed(keys, bank))
                mixed = torch.lerp(mixed, placed, w.gate.flatten(0, 1)[..., None].to(mixed.dtype))
            mass = mixed.new_ones(())
        return joint_value(mixed, mass, affine, w, bank)


def joint_query(own: Tensor, w: LayerWeights) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The query in terms of raw keys: (E, B, n, K, D) heads -> the same shape, and the affine (g, b) of the LN."""
    gain, shift = (part.view(len(own), 1, 1, 1, -1) for part in w.norm1)
    assert w.joint is not None
    return product(own * gain + shift, w.joint) * gain, (gain, shift)


def joint_value(mixed: Tensor, mass: Tensor, affine: tuple[Tensor, Tensor], w: LayerWeights, bank: Bank) -> Tensor:
    """What the attention mixed, (B, E x K, n, D), through W_v and the output projection -> (E, B, n, C)."""
    heads, (gain, shift) = bank.most_heads, affine
    if mass.dim():
        mass = by_head(experts(mass, bank), heads)
    value = product(by_head(experts(mixed, bank), heads) * gain + mass * shift, w.qkv[:, 2].mT)
    return linear(value.flatten(3), w.out)


def _mean_allowed(keys: Tensor, bank: Bank) -> Tensor:
    """(B, H, n, D) -> for each query head the mean over the key heads it may read, (B, h or 1, n, D)."""
    if bank.allowed is None:
        return keys.mean(1, keepdim=True)
    share = bank.allowed.to(keys.dtype)
    return torch.einsum("hj,bjnd->bhnd", share / share.sum(1, keepdim=True), keys)
