"""The task attention block on the normal path (eq. 19-23): no key is projected, values in the cheaper order."""

import torch
from torch import Tensor

from dne_lab.models.bank import Bank, TaskWeights
from dne_lab.models.points import AttentionPoint, Context
from dne_lab.models.stacked import keep_real, product, restore

LARGEST = 256 * 2**20  # bytes of one intermediate of the frozen experts; beyond it they are computed in parts


class TaskAttention(AttentionPoint):
    """A task attention block (eq. 19-23), patch by patch over the heads of all experts so far.

    No key is projected: q_i . W_k z_j = (z_i W_q W_k^T) . z_j.
    """

    def forward(self, z: Tensor, w: TaskWeights, bank: Bank, context: Context, key_heads: tuple[int, ...]) -> Tensor:
        """(E, B, n, K, D_in) -> (E, B, n, K x D_out)."""
        batch, n, inputs = z.shape[1], z.shape[2], z.shape[-1]
        own = z.permute(1, 2, 0, 3, 4).flatten(2, 3)
        keys = context.extend(self.kind, keep_real(own, bank, 2), 2)
        q = keep_real(product(z, w.w_qk).permute(1, 2, 0, 3, 4).flatten(2, 3), bank, 2)
        scores = q @ keys.mT * inputs**-0.5
        a = restore(self.weights(scores, self.axes("b p h kh", bank, key_heads)), bank, 2)
        a = a.view(batch, n, *w.scale.shape, -1) * w.scale[..., None]
        size = a.element_size() * n * keys.shape[2] * bank.size * max(inputs, w.w_v.shape[-1])
        if not bank.frozen or size * batch <= LARGEST:
            return mix_values(a, keys, w)
        rows = max(1, LARGEST // size)
        parts = [mix_values(i, j, w) for i, j in zip(a.split(rows), keys.split(rows), strict=True)]
        return torch.cat(parts, 1)


def mix_values(a: Tensor, z: Tensor, w: TaskWeights) -> Tensor:
    """sum_j a_ij (W_v^j z_j + b^j) in the cheaper order.

    Args:
        a: (B, n, E, K, H), times lambda. z: (B, n, H, D_in).

    Returns:
        (E, B, n, K x D_out). One query head: scale the heads, then one product; several: project once, then mix.
    """
    batch, n, size, heads, keys = a.shape
    if heads == 1:
        a = a.permute(2, 0, 1, 4, 3)  # (E, B, n, H, 1)
        return product((a * z).flatten(3), w.w_v.flatten(1, 2)) + product(a.squeeze(-1), w.b_v)
    columns = w.w_v.permute(1, 2, 0, 3).flatten(2)  # (H, D_in, E x D_out)
    values = torch.bmm(z.permute(2, 0, 1, 3).reshape(keys, batch * n, -1), columns)
    values = values.view(keys, batch, n, size, -1)
    bias = torch.einsum("bnekh,ehd->ebnkd", a, w.b_v)
    return (torch.einsum("bnekh,hbned->ebnkd", a, values) + bias).flatten(3)
