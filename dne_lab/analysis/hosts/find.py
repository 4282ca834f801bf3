"""Finds the one network that `probe` can listen to in what it was given, or says why there is none."""

import sys
from importlib import import_module
from typing import Any

from torch import nn

from dne_lab.analysis.hosts.base import Host
from dne_lab.analysis.hosts.expandable import ExpandableHost
from dne_lab.errors import LabError
from dne_lab.models.expandable import ExpandableViT

LITERAL = "dne_lab.models.literal"
# Where another library defines its VisionTransformer, and the adapter. A library that is not loaded has made no model,
# so that nothing here imports one.
FOREIGN = {
    "torchvision.models.vision_transformer": ("dne_lab.analysis.hosts.torchvision_vit", "TorchvisionHost"),
    "timm.models.vision_transformer": ("dne_lab.analysis.hosts.timm_vit", "TimmHost"),
}
READS = "an ExpandableViT, torchvision's VisionTransformer and timm's VisionTransformer"


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


def _adapter(part: nn.Module) -> Any:
    """The class of the host for this module, or None."""
    if isinstance(part, ExpandableViT):
        return ExpandableHost
    for library, (module, name) in FOREIGN.items():
        kind = getattr(sys.modules.get(library), "VisionTransformer", None)
        if kind is not None and isinstance(part, kind):
            return getattr(import_module(module), name)
    return None


def _why(model: nn.Module) -> str:
    """What to say of other models of the two libraries."""
    for part in model.modules():
        library, _, rest = type(part).__module__.partition(".")
        if library in ("torchvision", "timm") and rest.startswith("models."):
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
