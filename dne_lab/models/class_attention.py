"""Class attention on the normal path (CaiT): one query a head, so no patch is projected."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.models.bank import Bank, LayerWeights
from dne_lab.models.points import AttentionPoint, Context
from dne_lab.models.spatial import joint_query, joint_value
from dne_lab.models.stacked import by_head, keep_real, linear, norm, product, queries, restore


class ClassAttention(AttentionPoint):
    """The class token's view (CaiT): one query, so neither keys nor values of the patches are projected."""

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context, key_heads: tuple[int, ...]) -> Tensor:
        """(E, B, 1 + n, C) tokens, not normalised, class token first -> (E, B, 1, C), to be added to that token."""
        if w.joint is not None:
            return self._joint(x, w, bank, context, key_heads)
        x = norm(x, w.norm1, bank.widths(bank.head_width))
        size, batch, n, width = x.shape
        heads = bank.most_heads
        w_q, w_k, w_v = w.qkv.unbind(1)
        q = by_head(product(x[:, :, :1], w_q.mT), heads)[:, :, 0]  # (E, B, K, D)
        absorbed = torch.einsum("ebkd,ekdc->ebkc", q, w_k.view(size, heads, -1, width))
        scores = (absorbed @ x.mT * bank.head_width**-0.5).permute(1, 0, 2, 3).flatten(1, 2)
        a = self.weights(keep_real(scores, bank, 1), self.axes("b h kp", bank))
        a = restore(a, bank, 1).view(batch, size, heads, n).transpose(0, 1)
        value = torch.einsum("ebkc,ekdc->ebkd", a @ x, w_v.view(size, heads, -1, width))
        return linear(value.reshape(size, batch, 1, width), w.out)

    def _joint(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context, key_heads: tuple[int, ...]) -> Tensor:
        own = F.layer_norm(by_head(x, bank.most_heads), (bank.head_width,))
        token = queries(own[:, :, :1])
        keys = context.extend("joint", keep_real(queries(own[:, :, 1:]), bank, 1), 1).flatten(1, 2)  # (B, H n, D)
        q, affine = joint_query(own[:, :, :1], w)
        q = queries(q)
        scores = torch.cat([(q * token).sum(-1), q.squeeze(2) @ keys.mT], dim=-1) * bank.head_width**-0.5
        a = restore(self.weights(keep_real(scores, bank, 1), self.axes("b h k", bank, key_heads)), bank, 1)
        mixed = a[..., :1] * token.squeeze(2) + a[..., 1:] @ keys
        return joint_value(mixed.unsqueeze(2), a.sum(-1)[..., None, None], affine, w, bank)
