"""Finds the one network that `probe` can listen to in what it was given, or says why there is none."""

import copy
import functools
import sys
from collections.abc import Callable, Mapping, Set
from contextlib import ExitStack
from importlib import import_module
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dne_lab.core.errors import LabError
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, AttentionWeights, Axes
from dne_lab.models.block import AttentionPoint
from dne_lab.models.expandable import ExpandableViT

# What a network has to offer so that `probe` can listen to it, whoever wrote it.

ATTENTION, CONTENT, POSITION = PARTS = ("attention", "content", "position")
Entry = tuple[str, int, int, int]  # kind, layer, expert, head
Place = tuple[str, int]  # kind, layer: one attention point
Callback = Callable[[Tensor, Axes], Tensor | None]


class Host(Protocol):
    """A network and its attention points.

    Attributes:
        title: what it is called in messages.
        network: the module whose call is one forward pass.
        grid: (rows, columns) of patches, of the size of image that the network was made for.
        names: the name of each attention point within ``network``.
        entries: every (kind, layer, expert, head) for which it computes attention.
    """

    title: str
    network: nn.Module
    grid: tuple[int, int]
    names: dict[Place, str]
    entries: list[Entry]

    def refuse(self, part: str, replacing: bool) -> None:
        """Raises a `LabError` with the reason if this network can never give ``part``, or take a replacement."""

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, callback: Callback, hooks: ExitStack) -> None:
        """From now on, whenever a wanted point computes attention, calls ``callback(probabilities, axes)``.

        What it returns is used instead, unless it is None. Closing ``hooks`` undoes everything, and nothing else.

        Args:
            wanted: points, and the experts to listen to at each.
            part: one of `PARTS`.
            callback: gets the tensor on its device, as ``axes.layout`` says, with whatever graph it has.
            hooks: takes what undoes it.
        """


def heads_of(host: Host) -> tuple[int, ...]:
    """The heads of each expert, in order."""
    heads: dict[int, int] = {}
    for _, _, expert, head in host.entries:
        heads[expert] = max(heads.get(expert, 0), head + 1)
    return tuple(heads[expert] for expert in sorted(heads))


# Hooks of a probe belong to one module, and not to the copies that are made of it while the probe listens.

HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "only",
)  # fmt: skip
_owned: dict[int, set[int]] = {}  # the id of a module that is listened to: the numbers of a probe's hooks on it


def own_hook(module: nn.Module, handle: RemovableHandle, hooks: ExitStack) -> RemovableHandle:
    """Removes a hook when ``hooks`` is closed, and leaves it out of what ``copy.deepcopy`` makes of the module."""
    numbers = _owned.setdefault(id(module), set())
    numbers.add(handle.id)
    module.__dict__["__deepcopy__"] = functools.partial(_copy, module)

    def undo() -> None:
        handle.remove()
        numbers.discard(handle.id)
        if not numbers:
            _owned.pop(id(module), None)
            module.__dict__.pop("__deepcopy__", None)

    hooks.callback(undo)
    return handle


def _copy(module: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """What ``copy.deepcopy`` makes of a module: without the hooks of probes."""
    parts = {name: value for name, value in module.__dict__.items() if name != "__deepcopy__"}
    for name in HOOKS:
        if isinstance(parts.get(name), dict):
            foreign = [(number, hook) for number, hook in parts[name].items() if number not in _owned[id(module)]]
            parts[name] = type(parts[name])(foreign)
    made = type(module).__new__(type(module))
    memo[id(module)] = made
    made.__setstate__(copy.deepcopy(parts, memo))
    return made


# How `probe` listens to an `ExpandableViT`: every attention there is a point made to be listened to.


class ExpandableHost:
    """An `ExpandableViT`, as `dne_lab.analysis.hosts.Host` has it.

    Raises:
        LabError: if it has no expert yet.
    """

    def __init__(self, network: ExpandableViT) -> None:
        if not len(network.experts):
            raise LabError("this network has no expert yet, so it computes no attention: call expand, or next_task.")
        self.network, self.title, self.grid = network, network.variant.name, network.grid
        points = {name: part for name, part in network.named_modules() if isinstance(part, AttentionPoint)}
        self.names: dict[Place, str] = {(point.kind, point.layer): name for name, point in points.items()}
        self.entries = [entry for point in points.values() for entry in _entries(network, point)]
        self._points = {(point.kind, point.layer): point for point in points.values()}

    def refuse(self, part: str, replacing: bool) -> None:
        """Nothing: which parts are there shows in a pass, and what multiplies V can be replaced."""

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, callback: Callback, hooks: ExitStack) -> None:
        """Hooks on the `AttentionWeights` of the points; each fires once for every bank of experts."""

        def listen_to(module: AttentionWeights, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
            return callback(output if part == ATTENTION else self._part(part, module, *inputs), inputs[1])

        for place, experts in wanted.items():
            weights = self._points[place].weights
            handle = own_hook(weights, weights.register_forward_hook(listen_to), hooks)
            everyone = {expert for kind, layer, expert, _ in self.entries if (kind, layer) == place}
            # Task and class attention are never fused anyway; and naming every expert would undo all batches.
            # But a joint map holds every patch of every head: there one expert at a time keeps the memory small.
            if place[0] == JOINT or (place[0] == SPATIAL and experts < everyone):
                weights.only[handle.id] = frozenset(experts)
                hooks.callback(weights.only.pop, handle.id, None)

    def _part(
        self,
        part: str,
        module: AttentionWeights,
        scores: Tensor,
        axes: Axes,
        position: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> Tensor:
        """One of the two distributions that a gate mixes; without a gate all is content."""
        if part == CONTENT:
            return module.content(scores, axes)
        if position is None:
            raise LabError(
                f"part = {POSITION!r}: {self.names[axes.kind, axes.layer]} has no positional part. Select layers of "
                "kind spatial or joint of a network with network.spatial = gpsa (after the last block of a cls_token "
                "read-out there is none)."
            )
        return module.placed(scores, axes, position).expand_as(scores)


def _entries(network: ExpandableViT, point: AttentionPoint) -> list[Entry]:
    """Those of one point, in the order of the experts.

    Expert 1 is a plain transformer in every variant; with class attention the last block has no patches that look.
    """
    found: list[Entry] = []
    kind, layer = point.kind, point.layer
    for expert, heads in enumerate(network.heads, start=1):
        own = kind == SPATIAL and (expert == 1 or not network.variant.joint)
        if own or kind == CLASS or (kind != SPATIAL and expert > 1):
            found += [(kind, layer, expert, head) for head in range(heads)]
    return found


LITERAL = "dne_lab.models.literal"
# Where another library defines its transformers, their class, and the adapter. A library that is not loaded has made no
# model, so that nothing here imports one.
FOREIGN = {
    "torchvision.models.vision_transformer": ("VisionTransformer", "TorchvisionHost"),
    "timm.models.vision_transformer": ("VisionTransformer", "TimmHost"),
    "transformers.models.vit.modeling_vit": ("ViTModel", "TransformersHost"),
    "transformers.models.deit.modeling_deit": ("DeiTModel", "TransformersHost"),
    "transformers.models.dinov2.modeling_dinov2": ("Dinov2Model", "TransformersHost"),
    "transformers.models.dinov2_with_registers.modeling_dinov2_with_registers": (
        "Dinov2WithRegistersModel", "TransformersHost",
    ),
    "transformers.models.dinov3_vit.modeling_dinov3_vit": ("DINOv3ViTModel", "TransformersHost"),
    "transformers.models.siglip.modeling_siglip": ("SiglipVisionModel", "TransformersHost"),
    "transformers.models.clip.modeling_clip": ("CLIPVisionModel", "TransformersHost"),
}  # fmt: skip
READS = (
    "an ExpandableViT, the VisionTransformer of torchvision and timm, and the ViT, DeiT, DINOv2, DINOv3, SigLIP and "
    "CLIP vision models of transformers"
)


def find_host(model: Any) -> Host:
    """The one network with attention points that ``model`` is or holds.

    Raises:
        LabError: if it has no attention points, or hooks on it would not be called.
    """
    owner = getattr(model, "func", model)  # a functools.partial of a function
    if LITERAL in (getattr(owner, "__module__", None), getattr(owner, "__name__", None)):
        raise LabError(
            f"probe cannot listen to the literal path ({LITERAL}): it has no hook points. Give the network itself, "
            "and run it by calling it; both compute the same maps."
        )
    if not isinstance(model, nn.Module):
        hint = " Did you mean run.model?" if isinstance(getattr(type(model), "model", None), property) else ""
        raise LabError(f"probe needs a network (it reads {READS}), not {type(model).__name__}.{hint}")
    _refuse_compiled(model)
    found = {name: part for name, part in model.named_modules() if _adapter(part) is not None}
    if not found:
        raise LabError(
            f"{type(model).__name__} has no attention points that probe knows: it reads {READS}.{_why(model)}"
        )
    if len(found) > 1:
        raise LabError(f"{type(model).__name__} holds several networks, probe one of them: {', '.join(found)}.")
    network = next(iter(found.values()))
    host: Host = _adapter(network)(network)
    return host


def find_network(model: Any, purpose: str = "this view") -> ExpandableViT:
    """The one `ExpandableViT` that ``model`` is or holds; ``purpose``: what needs one, as the message says it.

    Raises:
        LabError: none, or a network of another library; see `find_host`.
    """
    host = find_host(model)
    if not isinstance(host, ExpandableHost):
        raise LabError(
            f"{purpose} takes an ExpandableViT, and this is {host.title}, whose logits and images are of other kinds "
            "and which has no experts. lab.probe and lab.attention_groups read it; where probe can replace its "
            "attention (not torchvision's), remove it with probe(model, replace=...) and call it."
        )
    return host.network


def _adapter(part: nn.Module) -> Any:
    """The class of the host for this module, or None."""
    if isinstance(part, ExpandableViT):
        return ExpandableHost
    for library, (name, adapter) in FOREIGN.items():
        kind = getattr(sys.modules.get(library), name, None)
        if kind is not None and isinstance(part, kind):
            return getattr(import_module("dne_lab.analysis.foreign_hosts"), adapter)
    return None


def _why(model: nn.Module) -> str:
    """What to say of other models of these libraries."""
    for part in model.modules():
        library, _, rest = type(part).__module__.partition(".")
        if library in ("torchvision", "timm", "transformers") and rest.startswith("models."):
            return (
                f" Other architectures of {library}, such as {type(part).__name__}, have no attention or classes of "
                "their own for it (windows in Swin, rotary positions in EVA, several resolutions), which no adapter "
                "reads."
            )
    return ""


def _refuse_compiled(model: nn.Module) -> None:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # what is not loaded has compiled nothing
    for name, part in model.named_modules():
        what = f"{type(model).__name__}.{name}" if name else "this network"
        why = f"probe cannot listen: {what} is compiled, and hooks added after compiling are silently never called."
        if dynamo is not None and isinstance(part, dynamo.OptimizedModule):
            raise LabError(f"{why} Probe the network that was compiled: probe(model._orig_mod), and call that one.")
        if part._compiled_call_impl is not None or hasattr(part.__dict__.get("forward"), "_torchdynamo_orig_callable"):
            raise LabError(f"{why} Probe a copy, which is not compiled: copy.deepcopy(model), and call that one.")
