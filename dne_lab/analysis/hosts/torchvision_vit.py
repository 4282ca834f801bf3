"""How `probe` reads torchvision's `VisionTransformer`, whose attention never shows its weights."""

import contextlib
import functools
import inspect
from collections.abc import Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dne_lab.analysis.hosts.base import Hear, Place
from dne_lab.analysis.hosts.foreign import ForeignViT
from dne_lab.errors import LabError
from dne_lab.models.attention import SPATIAL

TITLE = "torchvision's VisionTransformer"
CALL = inspect.signature(nn.MultiheadAttention.forward)


class TorchvisionHost(ForeignViT):
    """A ``torchvision.models.VisionTransformer``; read only, and its logits stay the same bit for bit.

    Its `torch.nn.MultiheadAttention` is called without weights and multiplies them with V inside one kernel. They are
    computed a second time here, from what went into the module, by the module's own projection.
    """

    def __init__(self, network: Any) -> None:
        attentions: list[Any] = []
        for name, block in network.encoder.layers.named_children():
            attention = getattr(block, "self_attention", None)
            if not _known(attention):
                raise LabError(
                    f"probe cannot listen to {TITLE}: encoder.layers.{name} has no self_attention that is a plain "
                    "torch.nn.MultiheadAttention (batch_first, one projection for q, k and v, no added keys), and the "
                    "weights are computed again as that module computes them."
                )
            attentions.append(attention)
        grid = (network.image_size // network.patch_size,) * 2
        super().__init__(TITLE, network, attentions, [part.num_heads for part in attentions], 1, grid)

    def refuse(self, part: str, replacing: bool) -> None:
        """Nothing can be replaced."""
        super().refuse(part, replacing)
        if replacing:
            raise LabError(
                f"{TITLE} can only be read: its nn.MultiheadAttention multiplies the weights with V inside one kernel "
                "and takes none from outside, so replace would change nothing. It works on an ExpandableViT and on "
                "timm's VisionTransformer."
            )

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, hear: Hear, hooks: contextlib.ExitStack) -> None:
        """Hooks on the attention modules; they see what the module was given, after hooks of others changed it."""

        def heard(layer: int, module: nn.MultiheadAttention, inputs: Any, named: dict[str, Any], output: Any) -> None:
            values = self._weights(layer, module, CALL.bind(module, *inputs, **named).arguments)
            hear(values, self.axes(layer, values))

        for _, layer in wanted:
            hook = functools.partial(heard, layer)
            hooks.callback(self.attentions[layer].register_forward_hook(hook, with_kwargs=True).remove)

    @torch.no_grad()
    def _weights(self, layer: int, module: nn.MultiheadAttention, given: dict[str, Any]) -> Tensor:
        """softmax(q k^T / sqrt(width of a head)), (b, h, tokens, tokens), without the dropout of training."""
        masks = [name for name in ("key_padding_mask", "attn_mask") if given.get(name) is not None]
        if masks:
            raise LabError(
                f"{self.names[SPATIAL, layer]} of {TITLE} was called with {' and '.join(masks)}, which torchvision "
                "never does: probe computes attention without a mask, and would read wrongly."
            )
        width, heads = module.embed_dim, module.num_heads
        weights, biases = module.in_proj_weight.split(width), [None] * 3
        if module.in_proj_bias is not None:
            biases = module.in_proj_bias.split(width)
        q, k = (
            functional.linear(given[name], weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)
            for name, weight, bias in zip(("query", "key"), weights[:2], biases[:2], strict=True)
        )
        return (q * (width // heads) ** -0.5 @ k.transpose(-1, -2)).softmax(-1)


def _known(attention: Any) -> bool:
    """Whether `TorchvisionHost._weights` computes what this module computes."""
    return (
        isinstance(attention, nn.MultiheadAttention)
        and type(attention).forward is nn.MultiheadAttention.forward
        and attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )
