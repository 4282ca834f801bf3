"""One block on the normal path, for any bank of experts: attention, then feature mixing (eq. 12-18).

To read the equations, start with `literal`: the same function expert by expert. Here E is the number of experts in a
bank, K the heads of the widest of them, H all heads up to an expert, n the tokens.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core import chance
from dne_lab.core.config import Network
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, TASK1, TASK2, AttentionWeights, Axes
from dne_lab.models.bank import (
    Bank,
    Context,
    LayerWeights,
    LinearWeights,
    TaskWeights,
    by_head,
    by_patch,
    experts,
    keep_real,
    linear,
    norm,
    product,
    queries,
    restore,
)
from dne_lab.models.variants import Variant


class AttentionPoint(nn.Module):
    """Base of the four attentions: a hook point and the axes of what passes through it."""

    masked, pictures = "none", "same"  # columns of the variant

    def __init__(self, kind: str, layer: int, grid: tuple[int, int], classes: int) -> None:
        super().__init__()
        self.weights = AttentionWeights()
        self.kind, self.layer, self.grid, self.classes = kind, layer, grid, classes

    def axes(self, layout: str, bank: Bank, reads_all: bool = False, read: Tensor | None = None) -> Axes:
        """The axes of this point for a bank, with ``reads_all`` one that reads all heads so far (of the earlier ones
        those at ``read``, if it is given), else its own."""
        own = _labels(bank.numbers, bank.heads)
        keys = _labels(range(1, len(bank.heads_so_far) + 1), bank.heads_so_far) if reads_all else own
        if read is not None:
            places = [*read.tolist(), *range(len(keys[0]) - len(own[0]), len(keys[0]))]
            keys = tuple(keys[0][i] for i in places), tuple(keys[1][i] for i in places)
        columns = (self.masked, self.pictures) if bank.numbers[0] > 1 else ()
        allowed = keep_real(bank.allowed, bank, 0) if reads_all and bank.allowed is not None else None
        return Axes(self.kind, layout, self.layer, *own, *keys, allowed, self.grid, self.classes, *columns)

    def weigh(
        self, bank: Bank, scores: Tensor, axes: Axes, position: Tensor | None = None, gate: Tensor | None = None
    ) -> Tensor:
        """`AttentionWeights`, whose hooks see only the images that were asked for."""
        if not bank.pictures:
            return self.weights(scores, axes, position, gate)
        count = len(scores) - bank.pictures
        rest = self.weights.forward(scores[count:], axes, position, gate)
        return torch.cat([self.weights(scores[:count], axes, position, gate), rest])

    def unfused(self, bank: Bank) -> bool:
        """Whether the probabilities are computed, so that hooks see them; else they stay in a fused kernel."""
        return self.weights.listens_to(bank.numbers)

    def scale(self, bank: Bank) -> float:
        """What scores over patches are multiplied by."""
        return bank.head_width**-0.5

    def flat(self, values: Tensor | None, bank: Bank) -> Tensor | None:
        """(E, K, ...) -> (real heads, ...)."""
        return None if values is None else keep_real(values.flatten(0, 1), bank, 0)


@functools.lru_cache(maxsize=256)
def _labels(numbers: range | tuple[int, ...], heads: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    expert = tuple(number for number, count in zip(numbers, heads, strict=True) for _ in range(count))
    return expert, tuple(head for count in heads for head in range(count))


# Attention over patches on the normal path: each expert's own (eq. 12), or all experts' (spatial-task attention).


def by_position(position: Tensor, values: Tensor) -> Tensor:
    """Attention to positions alone: (E, K, n, n) and (B, E x K or 1, n, D) -> (B, E x K, n, D).

    One product per head over all images together; ``position @ values`` would copy the probabilities for every image.
    """
    flat = position.flatten(0, 1)  # (E x K, n, n)
    return torch.einsum("hpk,bhkd->bhpd", flat, values.expand(-1, len(flat), -1, -1))


class SpatialAttention(AttentionPoint):
    """Eq. 12, head by head within each expert; with a gate, ConViT's mixture with attention to positions."""

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank) -> Tensor:
        """(E, B, n, C) normalised tokens -> (E, B, n, C)."""
        heads = bank.most_heads
        qkv = product(x, w.qkv.flatten(1, 2).mT).unflatten(-1, (3, heads, -1))  # (E, B, n, 3, K, D)
        q, k, v = qkv.permute(3, 1, 0, 4, 2, 5).flatten(2, 3).unbind()  # (B, E x K, n, D) each
        if w.query_bias is not None:
            q = q + w.query_bias.view(heads, 1, -1)  # (K, 1, D)
        scale = self.scale(bank)
        if self.unfused(bank):
            q, k, v = (keep_real(part, bank, 1) for part in (q, k, v))
            scores = q @ k.mT * scale
            axes = self.axes("b h p kp", bank)
            out = self.weigh(bank, scores, axes, self.flat(w.position, bank), self.flat(w.gate, bank)) @ v
            out = restore(out, bank, 1)
        else:
            out = F.scaled_dot_product_attention(q, k, v, scale=scale)
            if w.position is not None and w.gate is not None:
                # gate (E x K, n, 1)
                out = torch.lerp(out, by_position(w.position, v), w.gate.flatten(0, 1)[..., None].to(out.dtype))
        return linear(experts(out, bank), w.out)


class JointAttention(AttentionPoint):
    """Spatial-task attention: the keys are every patch of every head of all experts so far, one head's token each.

    Keys and values are never projected: with u = g r + b (LN of a head's token r; g, b belong to the reading expert),
    q . W_k u = (g W_k^T q) . r + a constant of the row, and sum_j a_j W_v u_j = W_v (g sum_j a_j r_j + b sum_j a_j).
    """

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        """(E, B, n, C) tokens, not normalised -> (E, B, n, C)."""
        own = F.layer_norm(by_head(x, bank.most_heads), (bank.head_width,))
        keys = context.extend("joint", keep_real(queries(own), bank, 1), 1)
        q, affine = joint_query(own, w)
        mixed, mass = self.attend(queries(q), keys, keys, w, bank)
        return joint_value(mixed, mass, affine, w, bank)

    def attend(self, q: Tensor, keys: Tensor, values: Tensor, w: LayerWeights, bank: Bank) -> tuple[Tensor, Tensor]:
        """(B, E x K, n, D) queries, (B, H, n, D) keys and values -> what the attention mixed, (B, E x K, n, D), and the
        sum of its rows (without axes where it is 1)."""
        batch, heads, n, width = q.shape
        scale = self.scale(bank)
        if self.unfused(bank):
            q = keep_real(q, bank, 1)
            scores = torch.einsum("bhpd,bjkd->bhpjk", q, keys) * scale  # (B, h, n, H, n)
            axes = self.axes("b h p kh kp", bank, reads_all=True, read=w.read)
            a = self.weigh(bank, scores, axes, self.flat(w.position, bank), self.flat(w.gate, bank))
            mixed = restore(torch.einsum("bhpjk,bjkd->bhpd", a, values), bank, 1)  # (B, E x K, n, D)
            return mixed, restore(a.sum((-1, -2))[..., None], bank, 1)
        flat, flat_values = (part.reshape(batch, 1, -1, width) for part in (keys, values))  # (B, 1, H x n, D)
        q = q.reshape(batch, 1, -1, width)  # (B, 1, E x K x n, D)
        mixed = F.scaled_dot_product_attention(q, flat, flat_values, self.mask(bank, keys), scale=scale)
        mixed = mixed.view(batch, heads, n, width)  # (B, E x K, n, D)
        if w.position is not None and w.gate is not None:
            placed = self.placed(w.position, values, bank)
            mixed = torch.lerp(mixed, placed, w.gate.flatten(0, 1)[..., None].to(mixed.dtype))  # gate (E x K, n, 1)
        return mixed, mixed.new_ones(())

    def mask(self, bank: Bank, keys: Tensor) -> Tensor | None:
        """(E x K x n, H x n): what may be read of (B, H, n, D) keys; None: all."""
        if bank.allowed is None:
            return None
        n = keys.shape[2]
        return bank.allowed.repeat_interleave(n, 0).repeat_interleave(n, 1)

    def placed(self, position: Tensor, values: Tensor, bank: Bank) -> Tensor:
        """What attention to positions alone mixes of (B, H, n, D) values: (B, E x K, n, D)."""
        return by_position(position, _mean_allowed(values, bank))


def joint_query(own: Tensor, w: LayerWeights) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The query in terms of raw keys: (E, B, n, K, D) heads -> the same shape, and the affine (g, b) of the LN."""
    gain, shift = (part.view(len(own), 1, 1, 1, -1) for part in w.norm1)  # (E, 1, 1, 1, D) each
    assert w.joint is not None
    return product(own * gain + shift, w.joint) * gain, (gain, shift)


def joint_value(mixed: Tensor, mass: Tensor, affine: tuple[Tensor, Tensor], w: LayerWeights, bank: Bank) -> Tensor:
    """What the attention mixed, (B, E x K, n, D), through W_v and the output projection -> (E, B, n, C)."""
    heads, (gain, shift) = bank.most_heads, affine
    if mass.dim():
        mass = by_head(experts(mass, bank), heads)
    value = product(by_head(experts(mixed, bank), heads) * gain + mass * shift, w.qkv[:, 2].mT)
    return linear(value.flatten(3), w.out)  # (E, B, n, K x D)


def _mean_allowed(keys: Tensor, bank: Bank) -> Tensor:
    """(B, H, n, D) -> for each query head the mean over the key heads it may read, (B, h or 1, n, D)."""
    if bank.allowed is None:
        return keys.mean(1, keepdim=True)
    share = bank.allowed.to(keys.dtype)
    # (h, H), (B, H, n, D) -> (B, h, n, D)
    return torch.einsum("hj,bjnd->bhnd", share / share.sum(1, keepdim=True), keys)


# Bytes of one intermediate of the frozen experts; beyond them they are computed in parts. On a CPU a part should stay
# in the cache: fresh memory for all images at once took half the time of a forward pass at 26 experts.
LARGEST = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}


class TaskAttention(AttentionPoint):
    """A task attention block (TAB, eq. 19-23), patch by patch over the heads of all experts so far.

    No key is projected: q_i . W_k z_j = (z_i W_q W_k^T) . z_j.
    """

    def forward(self, z: Tensor, w: TaskWeights, bank: Bank, context: Context) -> Tensor:
        """(E, B, n, K, D_in) -> (E, B, n, K x D_out)."""
        batch, n, inputs = z.shape[1], z.shape[2], z.shape[-1]
        own = keep_real(by_patch(z), bank, 2)
        # (B, n, heads, D_in) each
        keys = context.parts(self.kind, own, 2) if w.read is None else context.read(self.kind, own, 2, w.read)
        if w.w_qk is None:
            assert w.fixed is not None
            if len(w.fixed) == 1 and not self.unfused(bank):
                return _alike(keys, w)
            joined = w.fixed.log().expand(batch, n, z.shape[3], -1)  # their softmax gives them back
        else:
            q = keep_real(by_patch(product(z, w.w_qk)), bank, 2)
            scores = [q @ part.mT * inputs**-0.5 for part in keys]
            joined = torch.cat(scores, -1) if len(scores) > 1 else scores[0]
        a = restore(self.weigh(bank, joined, self.axes("b p h kh", bank, reads_all=True, read=w.read)), bank, 2)
        a = a.view(batch, n, *w.scale.shape, -1) * w.scale[..., None]  # (B, n, E, K, H)
        out = product(a.permute(2, 0, 1, 3, 4), w.b_v)  # (E, B, n, K, D_out)
        heads = [part.shape[2] for part in keys]
        for a_part, part, w_v in zip(a.split(heads, -1), keys, w.w_v.split(heads, 1), strict=True):
            out = out + (_mix_in_parts if bank.frozen else mix_values)(a_part, part, w_v)
        return out.flatten(3)  # (E, B, n, K x D_out)


def _alike(keys: list[Tensor], w: TaskWeights) -> Tensor:
    """Fixed weights that are the same for all heads: one product for all -> (1, B, n, K x D_out)."""
    assert w.fixed is not None
    row, heads = w.fixed[0], [part.shape[2] for part in keys]
    folded = (w.w_v[0] * row[:, None, None]).split(heads)
    # (1, B, n, heads x D_in) times (1, heads x D_in, D_out) each
    mixed = [product(z.flatten(2)[None], v.flatten(0, 1)[None]) for z, v in zip(keys, folded, strict=True)]
    out = sum(mixed[1:], mixed[0]) + row @ w.b_v[0]
    return (out.unsqueeze(3) * w.scale[0][:, None]).flatten(3)  # (1, B, n, K, D_out) -> (1, B, n, K x D_out)


def mix_values(a: Tensor, z: Tensor, w_v: Tensor) -> Tensor:
    """sum_j a_ij W_v^j z_j, in the cheaper order.

    Args:
        a: (B, n, E, K, H), times lambda. z: (B, n, H, D_in). w_v: (E, H, D_in, D_out).

    Returns:
        (E, B, n, K, D_out). One query head that reads narrow heads: scale the heads, then one product; otherwise
        project once, then mix.
    """
    batch, n, size, heads, keys = a.shape
    inputs, outputs = w_v.shape[2:]
    if heads == 1 and inputs <= outputs:
        scaled = a.permute(2, 0, 1, 4, 3) * z  # (E, B, n, H, D_in)
        return product(scaled.flatten(3), w_v.flatten(1, 2)).unsqueeze(3)
    columns = w_v.permute(1, 2, 0, 3).flatten(2)  # (H, D_in, E x D_out)
    values = torch.bmm(z.flatten(0, 1).transpose(0, 1), columns).view(keys, -1, outputs)  # rows (b, n, e)
    mixed = torch.bmm(a.flatten(0, 2), values.transpose(0, 1))
    return mixed.view(batch, n, size, heads, outputs).permute(2, 0, 1, 3, 4)  # (E, B, n, K, D_out)


def _mix_in_parts(a: Tensor, z: Tensor, w_v: Tensor) -> Tensor:
    """`mix_values`, some images at a time, so that no intermediate exceeds `LARGEST`."""
    narrow = min(w_v.shape[2:]) if a.shape[3] == 1 else w_v.shape[3]
    size = z.element_size() * z.shape[1] * z.shape[2] * len(w_v) * narrow  # bytes per image
    rows = max(1, LARGEST.get(z.device.type, LARGEST["cuda"]) // size)
    if rows >= len(z):
        return mix_values(a, z, w_v)
    return torch.cat([mix_values(i, j, w_v) for i, j in zip(a.split(rows), z.split(rows), strict=True)], 1)


class ClassAttention(AttentionPoint):
    """The class token's view (CaiT): one query, so neither keys nor values of the patches are projected."""

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        """(E, B, 1 + n, C) tokens, not normalised, class token first -> (E, B, 1, C), to be added to that token."""
        if w.joint is not None:
            return self._joint(x, w, bank, context)
        x = norm(x, w.norm1, bank.widths(bank.head_width), bank.epsilon)
        size, batch, n, width = x.shape
        heads = bank.most_heads
        w_q, w_k, w_v = w.qkv.unbind(1)
        q = by_head(product(x[:, :, :1], w_q.mT), heads)[:, :, 0]  # (E, B, K, D)
        absorbed = torch.einsum("ebkd,ekdc->ebkc", q, w_k.view(size, heads, -1, width))
        scores = (absorbed @ x.mT * bank.head_width**-0.5).permute(1, 0, 2, 3).flatten(1, 2)  # (B, E x K, 1 + n)
        a = self.weigh(bank, keep_real(scores, bank, 1), self.axes("b h kp", bank))
        a = restore(a, bank, 1).view(batch, size, heads, n).transpose(0, 1)  # (E, B, K, 1 + n)
        value = torch.einsum("ebkc,ekdc->ebkd", a @ x, w_v.view(size, heads, -1, width))  # (E, B, K, D)
        return linear(value.reshape(size, batch, 1, width), w.out)  # (E, B, 1, K x D)

    def _joint(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        own = F.layer_norm(by_head(x, bank.most_heads), (bank.head_width,))
        token = queries(own[:, :, :1])
        keys = context.extend("joint", keep_real(queries(own[:, :, 1:]), bank, 1), 1).flatten(1, 2)  # (B, H n, D)
        q, affine = joint_query(own[:, :, :1], w)
        q = queries(q)
        scores = torch.cat([(q * token).sum(-1), q.squeeze(2) @ keys.mT], dim=-1) * bank.head_width**-0.5
        axes = self.axes("b h k", bank, reads_all=True)
        a = restore(self.weigh(bank, keep_real(scores, bank, 1), axes), bank, 1)
        mixed = a[..., :1] * token.squeeze(2) + a[..., 1:] @ keys
        return joint_value(mixed.unsqueeze(2), a.sum(-1)[..., None, None], affine, w, bank)


class Points(NamedTuple):
    """What makes the attentions of a block: each takes kind, layer, grid and the number of class tokens."""

    spatial: Callable[..., Any] = SpatialAttention
    joint: Callable[..., Any] = JointAttention
    class_attention: Callable[..., Any] = ClassAttention


PUBLISHED = Points()


class Block(nn.Module):
    """One block for any bank of experts: attention, then feature mixing, each added to its input (eq. 12-18)."""

    def __init__(
        self, layer: int, network: Network, variant: Variant, grid: tuple[int, int], points: Points = PUBLISHED
    ) -> None:
        super().__init__()
        self.layer = layer
        self.reads_out = network.readout == "class_attention" and layer == network.depth - 1
        classes = 1 if network.readout == "cls_token" or self.reads_out else 0
        self.drop = network.drop_path * layer / max(1, network.depth - 1)
        if self.reads_out:
            self.class_attention = points.class_attention(CLASS, layer, grid, classes)
        else:
            self.spatial = points.spatial(SPATIAL, layer, grid, classes)
            if variant.joint:
                self.joint = points.joint(JOINT, layer, grid, classes)
        # A class token is mixed as a patch is; after class attention it is the only one.
        if variant.task1:
            self.task1 = TaskAttention(TASK1, layer, grid, classes)
        if variant.task2:
            self.task2 = TaskAttention(TASK2, layer, grid, classes)
        self.variant = variant

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        """(E, B, n, C) -> (E, B, n, C); with class attention (E, B, 1 + N, C) -> (E, B, 1, C)."""
        if self.variant.lateral:
            x = self._lateral(x, w, bank, context)
        if self.variant.joint and w.joint is None:  # expert 1 reads itself, but later experts read its patches
            patches = x[:, :, self.reads_out :]
            own = F.layer_norm(by_head(patches, bank.most_heads), (bank.head_width,))
            context.extend("joint", keep_real(queries(own), bank, 1), 1)
        if self.reads_out:
            branch = self.class_attention(x, w, bank, context)
            x = x[:, :, : branch.shape[2]]
        elif w.joint is not None:
            branch = self.joint(x, w, bank, context)
        else:
            branch = self.spatial(norm(x, w.norm1, bank.widths(bank.head_width), bank.epsilon), w, bank)
        x = self._add(x, branch, "attention", bank)
        z = norm(x, w.norm2, bank.widths(bank.head_width), bank.epsilon)
        hidden = F.gelu(self._mix("task1", z, w.mix1, bank, context))
        if w.norm_hidden is not None:
            hidden = norm(hidden, w.norm_hidden, bank.widths(hidden.shape[-1] // bank.most_heads))
        branch = self._mix("task2", hidden, w.mix2, bank, context)
        return self._add(x, branch, "mixing", bank)

    def _mix(
        self,
        name: str,
        z: Tensor,
        w: TaskWeights | LinearWeights,
        bank: Bank,
        context: Context,
    ) -> Tensor:
        heads = by_head(z, bank.most_heads)
        if isinstance(w, TaskWeights):
            return getattr(self, name)(heads, w, bank, context)
        if hasattr(self, name):  # expert 1 has a linear layer, but later experts read its heads
            context.extend(name, keep_real(by_patch(heads), bank, 2), 2)
        return linear(z, w)

    def _lateral(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        heads = keep_real(by_patch(by_head(x, bank.most_heads)), bank, 2)
        if w.read is None:
            tokens = context.extend("tokens", heads, 2).flatten(2)  # (B, n, H x D)
        else:
            tokens = torch.cat(context.read("tokens", heads, 2, w.read), 2).flatten(2)  # (B, n, H x D)
        if w.lateral is None:
            return x
        return product(tokens.unsqueeze(0).expand(bank.size, -1, -1, -1), w.lateral)

    def _add(self, x: Tensor, branch: Tensor, name: str, bank: Bank) -> Tensor:
        """The residual sum; in training a branch of the newest expert is dropped for some images (stochastic depth)."""
        if not bank.training or not self.drop:
            return x + branch
        draw = chance.for_batch(f"block {self.layer} {name}", branch, branch.shape[1] - bank.pictures)
        draw = F.pad(draw, (0, bank.pictures), value=1.0)
        keep = (draw >= self.drop).to(branch.dtype) / (1 - self.drop)
        return x + branch * keep[:, None, None]
