"""How `probe` reads and replaces in timm's `VisionTransformer`: listened blocks leave the fused kernel for a while."""

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Set
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn

from dne_lab.analysis.hosts.base import Hear, Place
from dne_lab.analysis.hosts.foreign import ForeignViT
from dne_lab.errors import LabError

TITLE = "timm's VisionTransformer"
# Attention modules that probes hold open: how many probes, and what the switch was before the first.
_open: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()


class TimmHost(ForeignViT):
    """A ``timm.models.VisionTransformer`` whose blocks hold ``timm.layers.Attention``.

    With ``fused_attn`` off that module passes the softmax through its ``attn_drop``, and there it is read and replaced:
    before the dropout of training. Tokens before the patches are the class token, if there is one, then the token of
    distillation or the registers.
    """

    def __init__(self, network: Any) -> None:
        if network.grad_checkpointing:
            raise LabError(
                f"probe cannot listen to {TITLE}: with gradient checkpointing every block runs again in the "
                "backward pass, after the probe or a second time inside it. Call model.set_grad_checkpointing(False)."
            )
        attentions: list[Any] = []
        for name, block in network.blocks.named_children():
            attention = getattr(block, "attn", None)
            if not _known(attention):
                what = "" if attention is None else f" with {type(attention).__name__}"
                raise LabError(
                    f"probe cannot listen to {TITLE}: blocks.{name} is a {type(block).__name__}{what}, and only "
                    "blocks whose attn is timm.layers.Attention have one softmax that can be read where it is computed."
                )
            attentions.append(attention)
        heads = [part.num_heads for part in attentions]
        super().__init__(
            TITLE, network, attentions, heads, network.num_prefix_tokens, tuple(network.patch_embed.grid_size)
        )

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, hear: Hear, hooks: contextlib.ExitStack) -> None:
        """Hooks on what takes in the softmax, and one that learns the grid of images of any size."""

        def measure(module: Any, inputs: Any, output: Tensor) -> None:
            dynamic = output.dim() == 4  # (b, rows, columns, width)
            self.grid = (output.shape[1], output.shape[2]) if dynamic else tuple(module.grid_size)

        def heard(layer: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
            return hear(inputs[0], self.axes(layer, inputs[0]))

        network: Any = self.network
        hooks.callback(network.patch_embed.register_forward_hook(measure).remove)
        for _, layer in wanted:
            attention: Any = self.attentions[layer]
            hooks.enter_context(_unfused(attention))
            hooks.callback(attention.attn_drop.register_forward_pre_hook(functools.partial(heard, layer)).remove)


@contextlib.contextmanager
def _unfused(attention: Any) -> Iterator[None]:
    """Computes in the open until the last of those who asked for it leaves, in whatever order they do."""
    count, before = _open.get(attention, (0, attention.fused_attn))
    _open[attention] = count + 1, before
    attention.fused_attn = False
    try:
        yield
    finally:
        count, before = _open.pop(attention)
        if count > 1:
            _open[attention] = count - 1, before
        else:
            attention.fused_attn = before


def _known(attention: Any) -> bool:
    """Whether the softmax of this module goes through its ``attn_drop``."""
    plain = sys.modules["timm.models.vision_transformer"].Attention
    return isinstance(attention, plain) and type(attention).forward is plain.forward
