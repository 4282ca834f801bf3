"""Layer norm, linear maps and head shuffling on stacked experts: tensors (E, B, n, width), weights with a leading E."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.models import products
from dne_lab.models.bank import Bank, LinearWeights

EPS = 1e-5


def norm(x: Tensor, affine: tuple[Tensor, Tensor], widths: Tensor | None = None) -> Tensor:
    """Layer norm of (E, ..., width), each expert's own affine; ``widths`` (E, 1, 1, 1): the true widths if padded."""
    weight, bias = affine
    if weight.dim() == 1:
        return F.layer_norm(x, x.shape[-1:], weight, bias, EPS)
    shape = (len(x), *[1] * (x.dim() - 2), -1)
    if widths is None:
        normal = F.layer_norm(x, x.shape[-1:], None, None, EPS)
    else:
        mean = x.sum(-1, keepdim=True) / widths
        inside = torch.arange(x.shape[-1], device=x.device) < widths
        centred = (x - mean) * inside
        normal = centred * torch.rsqrt(centred.square().sum(-1, keepdim=True) / widths + EPS)
    return normal * weight.view(shape) + bias.view(shape)


def linear(x: Tensor, weights: LinearWeights) -> Tensor:
    """(E, ..., in) -> (E, ..., out)."""
    if weights.weight.dim() == 2:
        return products.linear(x, weights.weight, weights.bias)
    flat = torch.baddbmm(weights.bias.unsqueeze(1), x.flatten(1, -2), weights.weight.mT)
    return flat.view(*x.shape[:-1], -1)


def product(x: Tensor, weight: Tensor) -> Tensor:
    """(E, ..., in) @ (E, in, out) -> (E, ..., out)."""
    if len(weight) == 1:
        return products.times(x, weight[0])
    return products.batched(x.flatten(1, -2), weight).view(*x.shape[:-1], -1)


def by_head(x: Tensor, heads: int) -> Tensor:
    """(E, B, n, K x d) -> (E, B, n, K, d)."""
    return x.view(*x.shape[:-1], heads, -1)


def queries(x: Tensor) -> Tensor:
    """(E, B, n, K, d) -> (B, E x K, n, d), heads of all experts side by side."""
    return x.permute(1, 0, 3, 2, 4).flatten(1, 2)


def experts(x: Tensor, bank: Bank) -> Tensor:
    """(B, E x K, n, d) -> (E, B, n, K x d), the inverse of `queries` with heads joined."""
    batch, _, n, d = x.shape
    return x.view(batch, bank.size, -1, n, d).permute(1, 0, 3, 2, 4).flatten(3)


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
