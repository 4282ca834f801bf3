"""One block on the normal path, for any bank of experts: attention, then feature mixing (eq. 12-18).

To read the equations, start with `literal`: the same function expert by expert. Here E is the number of experts in a
bank, K the heads of the widest of them, H all heads up to an expert, n the tokens.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab import chance
from dne_lab.config import Network
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, TASK1, TASK2
from dne_lab.models.bank import Bank, LayerWeights, LinearWeights, TaskWeights
from dne_lab.models.class_attention import ClassAttention
from dne_lab.models.points import Context
from dne_lab.models.spatial import JointAttention, SpatialAttention
from dne_lab.models.stacked import by_head, keep_real, linear, norm, product, queries
from dne_lab.models.task_attention import TaskAttention
from dne_lab.models.variants import Variant


class Block(nn.Module):
    """One block for any bank of experts: attention, then feature mixing, each added to its input (eq. 12-18)."""

    def __init__(self, layer: int, network: Network, variant: Variant, grid: tuple[int, int]) -> None:
        super().__init__()
        self.layer = layer
        self.reads_out = network.readout == "class_attention" and layer == network.depth - 1
        classes = 1 if network.readout == "cls_token" or self.reads_out else 0
        self.drop = network.drop_path * layer / max(1, network.depth - 1)
        if self.reads_out:
            self.class_attention = ClassAttention(CLASS, layer, grid, classes)
        else:
            self.spatial = SpatialAttention(SPATIAL, layer, grid, classes)
            if variant.joint:
                self.joint = JointAttention(JOINT, layer, grid, classes)
        # A class token is mixed as a patch is; behind class attention it is the only one.
        if variant.task1:
            self.task1 = TaskAttention(TASK1, layer, grid, classes)
        if variant.task2:
            self.task2 = TaskAttention(TASK2, layer, grid, classes)
        self.variant = variant

    def forward(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context, key_heads: tuple[int, ...]) -> Tensor:
        """(E, B, n, C) -> (E, B, n, C); with class attention (E, B, 1 + N, C) -> (E, B, 1, C)."""
        if self.variant.lateral:
            x = self._lateral(x, w, bank, context)
        if self.variant.joint and w.joint is None:  # expert 1 reads itself, but later experts read its patches
            patches = x[:, :, self.reads_out :]
            own = F.layer_norm(by_head(patches, bank.most_heads), (bank.head_width,))
            context.extend("joint", keep_real(queries(own), bank, 1), 1)
        if self.reads_out:
            branch = self.class_attention(x, w, bank, context, key_heads)
            x = x[:, :, : branch.shape[2]]
        elif w.joint is not None:
            branch = self.joint(x, w, bank, context, key_heads)
        else:
            branch = self.spatial(norm(x, w.norm1, bank.widths(bank.head_width)), w, bank)
        x = self._add(x, branch, "attention", bank)
        z = norm(x, w.norm2, bank.widths(bank.head_width))
        hidden = F.gelu(self._mix("task1", z, w.mix1, bank, context, key_heads))
        if w.norm_hidden is not None:
            hidden = norm(hidden, w.norm_hidden, bank.widths(hidden.shape[-1] // bank.most_heads))
        branch = self._mix("task2", hidden, w.mix2, bank, context, key_heads)
        return self._add(x, branch, "mixing", bank)

    def _mix(
        self,
        name: str,
        z: Tensor,
        w: TaskWeights | LinearWeights,
        bank: Bank,
        context: Context,
        key_heads: tuple[int, ...],
    ) -> Tensor:
        heads = by_head(z, bank.most_heads)
        if isinstance(w, TaskWeights):
            return getattr(self, name)(heads, w, bank, context, key_heads)
        if hasattr(self, name):  # expert 1 has a linear layer, but later experts read its heads
            context.extend(name, keep_real(heads.permute(1, 2, 0, 3, 4).flatten(2, 3), bank, 2), 2)
        return linear(z, w)

    def _lateral(self, x: Tensor, w: LayerWeights, bank: Bank, context: Context) -> Tensor:
        heads = by_head(x, bank.most_heads).permute(1, 2, 0, 3, 4).flatten(2, 3)
        tokens = context.extend("tokens", keep_real(heads, bank, 2), 2).flatten(2)
        if w.lateral is None:
            return x
        return product(tokens.unsqueeze(0).expand(bank.size, -1, -1, -1), w.lateral)

    def _add(self, x: Tensor, branch: Tensor, name: str, bank: Bank) -> Tensor:
        """The residual sum; in training a branch of the newest expert is dropped for some images (stochastic depth)."""
        if not bank.training or not self.drop:
            return x + branch
        draw = chance.for_batch(f"block {self.layer} {name}", branch, branch.shape[1])
        keep = (draw >= self.drop).to(branch.dtype) / (1 - self.drop)
        return x + branch * keep[:, None, None]
