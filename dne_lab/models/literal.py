"""The same function as `ExpandableViT`, computed as the equations are written: the oracle and the yardstick of cost.

One thing is not printed: the bias ``b_v`` of a TAB's values (eq. 22), which the authors' code has.

Expert by expert, keys and values projected, one linear map per head, nothing fused, cached or batched. It reads the
parameters of an `ExpandableViT` and has no hook points. What a `Variant` controls beside the paper's ideas is asked of
`literal_controls`.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.models import literal_controls
from dne_lab.models.classifier import ExpandableClassifier
from dne_lab.models.expandable import ExpandableViT, Output
from dne_lab.models.expert import (
    AttentionParameters,
    Expert,
    ExpertBlock,
    TaskAttentionParameters,
    position_probabilities,
)


class Layer(NamedTuple):
    """What one block computes, in each list an entry per expert; n tokens, H_t heads, C_t = H_t D.

    ``s`` (B, n, C_t) after spatial attention (eq. 12, 16); ``z`` (B, n, H_t, D), its heads after LN; ``o``
    (B, n, H_t, gamma D), the heads of the hidden features (eq. 18) as the second task attention block reads them
    (after LN, if there is one); ``r`` (B, n, C_t), the block's output (eq. 17).
    """

    s: list[Tensor]
    z: list[Tensor]
    o: list[Tensor]
    r: list[Tensor]


def forward(model: ExpandableViT, images: Tensor, teacher: ExpandableViT | None = None) -> Output:
    """(B, C, H, W) uint8 -> `Output`; with ``teacher``, a copy of the model before growth, old logits come from it."""
    outs = readouts(model, images)
    old = None
    if teacher is not None:
        with torch.no_grad():
            old = classify(teacher.classifier, readouts(teacher, images))
    elif model.teacher is not None:
        old = classify(model.teacher, [r.detach() for r in outs[: len(model.teacher.weights)]])
    expertise = None if model.expertise is None else model.expertise(outs[-1])
    return Output(classify(model.classifier, outs), old, expertise, outs)


def classify(classifier: ExpandableClassifier, outs: list[Tensor]) -> Tensor:
    """What ``classifier(outs)`` computes, one sum per class.

    So old logits stay to the last bit when classes are added; a matrix product of another size may add up in another
    order.
    """
    logits: Tensor = classifier.bias
    for out, weight in zip(outs, classifier.weights, strict=True):
        logits = logits + (out.unsqueeze(1) * weight).sum(-1)
    return logits


def readouts(model: ExpandableViT, images: Tensor) -> list[Tensor]:
    """One (B, C_t) read-out per expert, computed expert by expert and layer by layer."""
    r: list[Tensor] = []
    for layer in layers(model, images):
        r = layer.r
    return [e.norm(x[: len(images), 0]) for e, x in zip(model.experts, r, strict=True)]


def layers(model: ExpandableViT, images: Tensor) -> Iterator[Layer]:
    """(B, C, H, W) uint8 -> what each block computes, block by block."""
    patches = model.patches(images)
    experts = list(model.experts)
    x = [embed(e, patches, model.network.readout == "cls_token") for e in experts]
    for number in range(model.network.depth):
        if number == model.network.depth - 1 and model.network.readout == "class_attention":
            x = [torch.cat([e.class_token.expand(len(patches), 1, -1), r], 1) for e, r in zip(experts, x, strict=True)]
        found = block(model, experts, number, x)
        yield found
        x = found.r


def embed(expert: Expert, patches: Tensor, with_token: bool) -> Tensor:
    """(B, N, C x patch x patch) patches -> (B, n, C_t) tokens, the class token first where it joins them here."""
    x = expert.embed(patches) + expert.position
    return torch.cat([expert.class_token.expand(len(x), 1, -1), x], 1) if with_token else x


def block(model: ExpandableViT, experts: list[Expert], layer: int, x: list[Tensor]) -> Layer:
    """One block of every expert, from (B, n, C_t) per expert."""
    width = model.network.head_width
    reads_out = layer == model.network.depth - 1 and model.network.readout == "class_attention"
    blocks = [e.blocks[layer] for e in experts]
    before = x
    x = [
        # (B, n, H, D) -> (B, n, H x D), times (H x D, C_t)
        r if b.lateral is None else literal_controls.read(_cut(before[: t + 1], width), e.read).flatten(2) @ b.lateral
        for t, (e, b, r) in enumerate(zip(experts, blocks, x, strict=True))
    ]
    s = []
    for t, (e, b, r) in enumerate(zip(experts, blocks, x, strict=True)):
        if b.joint and e.controlled:
            branch = literal_controls.joint(model, e, b, x[: t + 1], reads_out)
        elif b.joint:
            branch = _joint(b, r, x[: t + 1], width, model.grid, reads_out)
        elif reads_out:
            branch = _class(b.attention, b.norm1(r), width)
        else:
            weigh = functools.partial(literal_controls.own_patches, model.variant) if e.controlled else _softmax
            branch = _spatial(b.attention, b.norm1(r), width, model.grid, weigh)
        s.append((r[:, :1] if reads_out else r) + branch)
    z = [_heads(b.norm2(r), width) for b, r in zip(blocks, s, strict=True)]
    o = [F.gelu(_mix(b.mix1, z[: t + 1])) for t, b in enumerate(blocks)]
    o = [h if b.norm_hidden is None else b.norm_hidden(h) for b, h in zip(blocks, o, strict=True)]
    o = [_heads(h, model.network.ratio * width) for h in o]
    return Layer(s, z, o, [r + _mix(b.mix2, o[: t + 1]) for t, (b, r) in enumerate(zip(blocks, s, strict=True))])


def _heads(x: Tensor, width: int) -> Tensor:
    """(B, n, heads x width) -> (B, n, heads, width)."""
    return x.unflatten(-1, (-1, width))


def _cut(x: list[Tensor], width: int) -> list[Tensor]:
    return [_heads(r, width) for r in x]


def _softmax(scores: Tensor) -> Tensor:
    return scores.softmax(-1)


def _spatial(
    p: AttentionParameters,
    x: Tensor,
    width: int,
    grid: tuple[int, int],
    weigh: Callable[[Tensor], Tensor] = _softmax,
) -> Tensor:
    """Eq. 12 on (B, n, C), with the gate of ConViT if there is one."""
    w_q, w_k, w_v = p.qkv
    q = _heads(F.linear(x, w_q, p.query_bias), width).transpose(1, 2)  # (B, heads, n, D)
    k, v = (_heads(F.linear(x, w), width).transpose(1, 2) for w in (w_k, w_v))  # (B, heads, n, D) each
    a = weigh(q @ k.mT * width**-0.5)
    if p.position is not None and p.gate is not None:
        classes = x.shape[1] - grid[0] * grid[1]
        gate = torch.sigmoid(p.gate)[:, None, None].repeat(1, x.shape[1], 1)
        gate[:, :classes] = 0
        a = (1 - gate) * a + gate * position_probabilities(p.position, grid, classes)
    return p.out((a @ v).transpose(1, 2).flatten(2))  # (B, heads, n, D) -> (B, n, C)


def _class(p: AttentionParameters, x: Tensor, width: int) -> Tensor:
    """Class attention on (B, 1 + n, C): one query, keys and values of all tokens -> (B, 1, C)."""
    w_q, w_k, w_v = p.qkv
    q = _heads(F.linear(x[:, :1], w_q), width).transpose(1, 2)  # (B, heads, 1, D)
    k, v = (_heads(F.linear(x, w), width).transpose(1, 2) for w in (w_k, w_v))  # (B, heads, 1 + n, D) each
    a = (q @ k.mT * width**-0.5).softmax(-1)
    return p.out((a @ v).transpose(1, 2).flatten(2))  # (B, heads, n, D) -> (B, n, C)


def _joint(
    b: ExpertBlock, own: Tensor, everyone: list[Tensor], width: int, grid: tuple[int, int], reads_out: bool
) -> Tensor:
    """Spatial-task attention of one expert: its heads' patches look at the patches of every head of ``everyone``."""
    p = b.attention
    w_q, w_k, w_v = p.qkv
    tokens = torch.cat([_heads(r, width) for r in everyone], 2)  # (B, n, H, D)
    u = b.norm1(tokens[:, 1:] if reads_out else tokens).transpose(1, 2).flatten(1, 2)  # (B, H n, D), head by head
    k, v = F.linear(u, w_k), F.linear(u, w_v)
    out = []
    for head, r in enumerate(_heads(own, width).unbind(2)):
        mine = b.norm1(r[:, :1] if reads_out else r)
        q = F.linear(mine, w_q)
        if reads_out:  # its own class token is one more key
            keys, values = (torch.cat([F.linear(mine, w), t], 1) for w, t in ((w_k, k), (w_v, v)))
        else:
            keys, values = k, v
        a = (q @ keys.mT * width**-0.5).softmax(-1)
        if p.position is not None and p.gate is not None:
            n, count = r.shape[1], tokens.shape[2]
            classes = n - grid[0] * grid[1]
            gate = torch.sigmoid(p.gate[head]).repeat(n, 1)
            gate[:classes] = 0
            a = (1 - gate) * a + gate * position_probabilities(p.position[head : head + 1], grid, classes)[0].repeat(
                1, count
            ) / count
        out.append(a @ values)
    return p.out(torch.cat(out, -1))


def _mix(layer: torch.nn.Module, z: list[Tensor]) -> Tensor:
    """An MLP layer on the expert's own heads ``z[-1]``, or eq. 19-23 on the heads of all experts (B, n, H_j, D_in)."""
    if not isinstance(layer, TaskAttentionParameters):
        return layer(z[-1].flatten(2))  # (B, n, H_t x D_in)
    heads = literal_controls.read(z, layer.read)
    if layer.w_q is None or layer.w_k is None:
        a = literal_controls.fixed_weights(layer).expand(*heads.shape[:2], -1, -1)  # (B, n, H_t, H)
    else:
        q, k = z[-1] @ layer.w_q, heads @ layer.w_k
        a = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1)  # (B, n, H_t, H)
    v = torch.stack([heads[:, :, j] @ layer.w_v[j] + layer.b_v[j] for j in range(heads.shape[2])], 2)
    return (layer.scale[:, None] * (a @ v)).flatten(2)  # (B, n, H_t, D_out) -> (B, n, H_t x D_out)
