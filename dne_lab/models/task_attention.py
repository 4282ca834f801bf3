"""The task attention block on the normal path (eq. 19-23): no key is projected, values in the cheaper order."""

import torch
from torch import Tensor

from dne_lab.models.bank import Bank, TaskWeights
from dne_lab.models.points import AttentionPoint, Context
from dne_lab.models.stacked import keep_real, product, restore

# Bytes of one intermediate of the frozen experts; beyond them they are computed in parts. On a CPU a part should stay
# in the cache: fresh memory for all images at once took half the time of a forward pass at 26 experts.
LARGEST = {"cpu": 8 * 2**20, "cuda": 256 * 2**20}


class TaskAttention(AttentionPoint):
    """A task attention block (eq. 19-23), patch by patch over the heads of all experts so far.

    No key is projected: q_i . W_k z_j = (z_i W_q W_k^T) . z_j.
    """

    def forward(self, z: Tensor, w: TaskWeights, bank: Bank, context: Context, key_heads: tuple[int, ...]) -> Tensor:
        """(E, B, n, K, D_in) -> (E, B, n, K x D_out)."""
        batch, n, inputs = z.shape[1], z.shape[2], z.shape[-1]
        own = z.permute(1, 2, 0, 3, 4).flatten(2, 3)
        keys = context.parts(self.kind, keep_real(own, bank, 2), 2)
        q = keep_real(product(z, w.w_qk).permute(1, 2, 0, 3, 4).flatten(2, 3), bank, 2)
        scores = [q @ part.mT * inputs**-0.5 for part in keys]
        joined = torch.cat(scores, -1) if len(scores) > 1 else scores[0]
        a = restore(self.weights(joined, self.axes("b p h kh", bank, key_heads)), bank, 2)
        a = a.view(batch, n, *w.scale.shape, -1) * w.scale[..., None]
        out = product(a.permute(2, 0, 1, 3, 4), w.b_v)
        heads = [part.shape[2] for part in keys]
        for a_part, part, w_v in zip(a.split(heads, -1), keys, w.w_v.split(heads, 1), strict=True):
            out = out + (_mix_in_parts if bank.frozen else mix_values)(a_part, part, w_v)
        return out.flatten(3)


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
    return mixed.view(batch, n, size, heads, outputs).permute(2, 0, 1, 3, 4)


def _mix_in_parts(a: Tensor, z: Tensor, w_v: Tensor) -> Tensor:
    """`mix_values`, some images at a time, so that no intermediate exceeds `LARGEST`."""
    narrow = min(w_v.shape[2:]) if a.shape[3] == 1 else w_v.shape[3]
    size = z.element_size() * z.shape[1] * z.shape[2] * len(w_v) * narrow  # bytes an image
    rows = max(1, LARGEST.get(z.device.type, LARGEST["cuda"]) // size)
    if rows >= len(z):
        return mix_values(a, z, w_v)
    return torch.cat([mix_values(i, j, w_v) for i, j in zip(a.split(rows), z.split(rows), strict=True)], 1)
