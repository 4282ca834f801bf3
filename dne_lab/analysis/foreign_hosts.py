"""What vision transformers of other libraries share: one sequence of tokens, one attention per block, one "expert"."""

import copy
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from dne_lab.analysis.hosts import POSITION, Callback, Entry, Place, own_hook
from dne_lab.core.errors import LabError
from dne_lab.models.attention import SPATIAL, Axes


class ForeignViT:
    """Base of the adapters: kind spatial, layer = block from 0, all heads of expert 1, layout "b h p kp".

    Args:
        title: what it is called in messages.
        network: the transformer.
        attentions: the attention module of each block, in order.
        heads: of each block.
        classes: tokens before the patches.
        grid: rows and columns of patches.

    Raises:
        LabError: if blocks share an attention module, so that a map could not be given to one of them.
    """

    def __init__(
        self,
        title: str,
        network: nn.Module,
        attentions: Sequence[nn.Module],
        heads: Sequence[int],
        classes: int,
        grid: tuple[int, int],
    ) -> None:
        named = {part: name for name, part in network.named_modules()}
        if len({*attentions}) < len(attentions):
            raise LabError(
                f"probe cannot listen to {title}: blocks share one attention module, so that no map of it belongs to a "
                "layer."
            )
        self.title, self.network, self.attentions, self.classes, self.grid = title, network, attentions, classes, grid
        self.names: dict[Place, str] = {(SPATIAL, layer): named[part] for layer, part in enumerate(attentions)}
        self.entries: list[Entry] = [(SPATIAL, i, 1, head) for i, count in enumerate(heads) for head in range(count)]

    def refuse(self, part: str, replacing: bool) -> None:
        """There is no positional part: positions are added to the tokens, so that all attention is content."""
        if part == POSITION:
            raise LabError(
                f"part = {POSITION!r}: {self.title} adds positions to its tokens and mixes no positional attention in. "
                "What it attends to is part = 'attention', and 'content' is the same."
            )

    def prefix(self, count: int) -> list[str]:
        """The names of the ``count`` tokens before the patches, in order."""
        parts = (self.network, getattr(self.network, "embeddings", None))

        def has(*names: str) -> bool:
            return any(getattr(part, name, None) is not None for part in parts for name in names)

        names = ["class token"] if has("cls_token", "class_token", "class_embedding") else []
        names += ["distillation token"] if has("dist_token", "distillation_token") else []
        return [*names, *(f"register {number}" for number in range(1, count - len(names) + 1))][:count]

    def axes(self, layer: int, values: Tensor) -> Axes:
        """The axes of ``values`` (b, h, tokens, tokens) at a block.

        Raises:
            LabError: if there are not as many tokens as patches and class tokens.
        """
        rows, columns = self.grid
        expected = self.classes + rows * columns
        if values.shape[-2:] != (expected, expected):
            raise LabError(
                f"{self.names[SPATIAL, layer]} of {self.title} got {values.shape[-1]} tokens, where {self.classes} "
                f"before the patches and {rows} x {columns} patches make {expected}: which patches these are is not "
                "known. Patch dropout leaves some out in training (model.eval() ends that)."
            )
        heads = values.shape[1]
        expert, head = (1,) * heads, tuple(range(heads))
        return Axes(SPATIAL, "b h p kp", layer, expert, head, expert, head, None, self.grid, self.classes)


# How `probe` reads and replaces in timm's `VisionTransformer`: listened blocks leave the fused kernel for a while.

TIMM = "timm's VisionTransformer"
# Attention modules that probes keep from their fused kernel: how many probes, and the switch before the first.
_unfused_by: WeakKeyDictionary[nn.Module, tuple[int, bool]] = WeakKeyDictionary()


class TimmHost(ForeignViT):
    """A ``timm.models.VisionTransformer`` whose blocks hold ``timm.layers.Attention``.

    With ``fused_attn`` off that module passes the softmax through its ``attn_drop``, and there it is read and replaced:
    before the dropout of training. Tokens before the patches are the class token, if there is one, then the token of
    distillation or the registers.
    """

    def __init__(self, network: Any) -> None:
        if network.grad_checkpointing:
            raise LabError(
                f"probe cannot listen to {TIMM}: with gradient checkpointing every block runs again in the "
                "backward pass, after the probe or a second time inside it. Call model.set_grad_checkpointing(False)."
            )
        attentions: list[Any] = []
        for name, block in network.blocks.named_children():
            attention = getattr(block, "attn", None)
            if not _known_timm(attention):
                what = "" if attention is None else f" with {type(attention).__name__}"
                raise LabError(
                    f"probe cannot listen to {TIMM}: blocks.{name} is a {type(block).__name__}{what}, and only "
                    "blocks whose attn is timm.layers.Attention have one softmax that can be read where it is computed."
                )
            attentions.append(attention)
        heads = [part.num_heads for part in attentions]
        super().__init__(
            TIMM, network, attentions, heads, network.num_prefix_tokens, tuple(network.patch_embed.grid_size)
        )

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, callback: Callback, hooks: ExitStack) -> None:
        """Hooks on what takes in the softmax, and one that learns the grid of images of any size."""

        def measure(module: Any, inputs: Any, output: Tensor) -> None:
            dynamic = output.dim() == 4  # (b, rows, columns, width)
            self.grid = (output.shape[1], output.shape[2]) if dynamic else tuple(module.grid_size)

        def listen_to(layer: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor | None:
            return callback(inputs[0], self.axes(layer, inputs[0]))

        network: Any = self.network
        own_hook(network.patch_embed, network.patch_embed.register_forward_hook(measure), hooks)
        for _, layer in wanted:
            attention: Any = self.attentions[layer]
            hooks.enter_context(_unfused(attention))
            hook = functools.partial(listen_to, layer)
            own_hook(attention.attn_drop, attention.attn_drop.register_forward_pre_hook(hook), hooks)


@contextmanager
def _unfused(attention: Any) -> Iterator[None]:
    """Keeps the fused kernel away until the last of those who asked for it leaves, in whatever order they do."""
    count, before = _unfused_by.get(attention, (0, attention.fused_attn))
    _unfused_by[attention] = count + 1, before
    attention.fused_attn = False
    try:
        yield
    finally:
        count, before = _unfused_by.pop(attention)
        if count > 1:
            _unfused_by[attention] = count - 1, before
        else:
            attention.fused_attn = before


def _known_timm(attention: Any) -> bool:
    """Whether the softmax of this module goes through its ``attn_drop``."""
    plain = sys.modules["timm.models.vision_transformer"].Attention
    return isinstance(attention, plain) and type(attention).forward is plain.forward


# How `probe` reads torchvision's `VisionTransformer`, whose attention never shows its weights.

TORCHVISION = "torchvision's VisionTransformer"
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
            if not _known_torchvision(attention):
                raise LabError(
                    f"probe cannot listen to {TORCHVISION}: encoder.layers.{name} has no self_attention that is a "
                    "plain torch.nn.MultiheadAttention (batch_first, one projection for q, k and v, no added keys), "
                    "and the weights are computed again as that module computes them."
                )
            attentions.append(attention)
        grid = (network.image_size // network.patch_size,) * 2
        super().__init__(TORCHVISION, network, attentions, [part.num_heads for part in attentions], 1, grid)

    def refuse(self, part: str, replacing: bool) -> None:
        """Nothing can be replaced."""
        super().refuse(part, replacing)
        if replacing:
            raise LabError(
                f"{TORCHVISION} can only be read: its nn.MultiheadAttention multiplies the weights with V inside one "
                "kernel and takes none from outside, so replace would change nothing. It works on an ExpandableViT and "
                "on timm's VisionTransformer."
            )

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, callback: Callback, hooks: ExitStack) -> None:
        """Hooks on the attention modules; they see what the module was given, after hooks of others changed it."""

        def listen_to(
            layer: int, module: nn.MultiheadAttention, inputs: Any, named: dict[str, Any], output: Any
        ) -> None:
            values = self._weights(layer, module, CALL.bind(module, *inputs, **named).arguments)
            callback(values, self.axes(layer, values))

        for _, layer in wanted:
            hook = functools.partial(listen_to, layer)
            attention = self.attentions[layer]
            own_hook(attention, attention.register_forward_hook(hook, with_kwargs=True), hooks)

    @torch.no_grad()
    def _weights(self, layer: int, module: nn.MultiheadAttention, given: dict[str, Any]) -> Tensor:
        """softmax(q k^T / sqrt(width of a head)), (b, h, tokens, tokens), without the dropout of training."""
        masks = [name for name in ("key_padding_mask", "attn_mask") if given.get(name) is not None]
        if masks:
            raise LabError(
                f"{self.names[SPATIAL, layer]} of {TORCHVISION} was called with {' and '.join(masks)}, which "
                "torchvision never does: probe computes attention without a mask, and would read wrongly."
            )
        width, heads = module.embed_dim, module.num_heads
        weights, biases = module.in_proj_weight.split(width), [None] * 3
        if module.in_proj_bias is not None:
            biases = module.in_proj_bias.split(width)
        q, k = (
            functional.linear(given[name], weight, bias).unflatten(-1, (heads, -1)).transpose(1, 2)  # (b, h, tokens, D)
            for name, weight, bias in zip(("query", "key"), weights[:2], biases[:2], strict=True)
        )
        return (q * (width // heads) ** -0.5 @ k.transpose(-1, -2)).softmax(-1)  # (b, h, tokens, tokens)


def _known_torchvision(attention: Any) -> bool:
    """Whether `TorchvisionHost._weights` computes what this module computes."""
    return (
        isinstance(attention, nn.MultiheadAttention)
        and type(attention).forward is nn.MultiheadAttention.forward
        and attention.batch_first
        and attention.in_proj_weight is not None
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


# How `probe` reads and replaces in the vision models of transformers, which leave the choice of the kernel to a table.

KERNEL = "dne_lab"  # the name of `_attend` in that table
# Attention modules that probes listen to: what each calls, the outermost probe first.
_listeners: WeakKeyDictionary[nn.Module, list[Callable[[Tensor], Tensor | None]]] = WeakKeyDictionary()


class TransformersHost(ForeignViT):
    """A ViT, DeiT, DINOv2, DINOv3, SigLIP or CLIP vision model of ``transformers`` (5 or newer).

    Its attention modules ask a table for the kernel that their configuration names. One that is listened to is given
    an unfused kernel, with or without mask, which computes the softmax before the dropout of training; the others, and
    the configuration that they share, stay as they are. Tokens before the patches are what is left when the patches
    are subtracted: class token, token of distillation, registers.
    """

    def __init__(self, network: Any) -> None:
        title = f"transformers' {type(network).__name__}"
        library = sys.modules["transformers.modeling_utils"]
        if getattr(network, "is_gradient_checkpointing", False):
            raise LabError(
                f"probe cannot listen to {title}: with gradient checkpointing every block runs again in the backward "
                "pass. Call model.gradient_checkpointing_disable()."
            )
        if not hasattr(library, "ALL_ATTENTION_FUNCTIONS"):
            raise LabError(f"probe cannot listen to {title}: it needs transformers 5 or newer.")
        library.ALL_ATTENTION_FUNCTIONS.register(KERNEL, _attend)
        attentions: list[Any] = [part for part in network.modules() if hasattr(part, "is_causal")]
        heads = [int(getattr(part, "num_attention_heads", 0) or part.num_heads) for part in attentions]
        (self.patches,) = (part for part in network.embeddings.modules() if isinstance(part, nn.Conv2d))
        side = network.config.image_size
        rows, columns = (side, side) if isinstance(side, int) else side
        high, wide = self.patches.stride
        grid = (rows // int(high), columns // int(wide))
        super().__init__(title, network, attentions, heads, 0, grid)

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, callback: Callback, hooks: ExitStack) -> None:
        """Another kernel for these attention modules, and a hook that learns the grid of images of any size."""

        def measure(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self.grid = (output.shape[-2], output.shape[-1])  # (b, width, rows, columns)

        def listener(layer: int, values: Tensor) -> Tensor | None:
            rows, columns = self.grid
            self.classes = values.shape[-1] - rows * columns
            return callback(values, self.axes(layer, values))

        own_hook(self.patches, self.patches.register_forward_hook(measure), hooks)
        for _, layer in wanted:
            hooks.enter_context(_listened(self.attentions[layer], functools.partial(listener, layer)))


class _OtherKernel:
    """A configuration that names another kernel, and is the given one in all else."""

    _attn_implementation = KERNEL

    def __init__(self, config: Any) -> None:
        self.before = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self.before, name)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copy of the network is not listened to."""
        return copy.deepcopy(self.before, memo)


@contextmanager
def _listened(attention: Any, listener: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Computes with `_attend` until the last of those who asked for it leaves, in whatever order they do."""
    mine = _listeners.setdefault(attention, [])
    if not mine:
        attention.config = _OtherKernel(attention.config)
    mine.append(listener)
    try:
        yield
    finally:
        mine.remove(listener)
        if not mine:
            attention.config = attention.config.before
            del _listeners[attention]


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, Tensor]:
    """softmax(q k^T) v as the library's eager kernel has it: (b, tokens, h, D), and weights (b, h, tokens, tokens)."""
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if attention_mask is not None:
        scores = scores + attention_mask
    precise = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, dtype=precise).to(query.dtype)
    for listener in _listeners.get(module, ()):
        new = listener(weights)
        weights = weights if new is None else new
    used = functional.dropout(weights, dropout, module.training)
    return (used @ value).transpose(1, 2).contiguous(), weights
