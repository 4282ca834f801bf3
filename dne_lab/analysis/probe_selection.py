"""Which attention points a probe listens to, and which networks it cannot listen to."""

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from dne_lab.errors import LabError, unknown
from dne_lab.models.attention import CLASS, SPATIAL
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.points import AttentionPoint

Names = str | Iterable[str] | None
Numbers = int | Iterable[int] | None
Entry = tuple[str, int, int, int]  # kind, layer, expert, head
COLUMNS = ("kind", "layer", "expert", "head")
LITERAL = "dne_lab.models.literal"


@dataclass(frozen=True)
class Point:
    """An attention point: its name in the network and the module that fires."""

    name: str
    module: AttentionPoint


def find_network(model: Any) -> ExpandableViT:
    """The one `ExpandableViT` that ``model`` is or holds.

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
        raise LabError(f"probe needs a network (an ExpandableViT), not {type(model).__name__}.{hint}")
    _refuse_compiled(model)
    found = {name: part for name, part in model.named_modules() if isinstance(part, ExpandableViT)}
    if not found:
        raise LabError(
            f"{type(model).__name__} has no attention points: probe reads an ExpandableViT, where every attention is "
            "an AttentionPoint that holds an AttentionWeights."
        )
    if len(found) > 1:
        raise LabError(f"{type(model).__name__} holds several networks, probe one of them: {', '.join(found)}.")
    network = next(iter(found.values()))
    if not len(network.experts):
        raise LabError("this network has no expert yet, so it computes no attention: call expand, or next_task.")
    return network


def _refuse_compiled(model: nn.Module) -> None:
    dynamo = sys.modules.get("torch._dynamo.eval_frame")  # what is not loaded has compiled nothing
    for name, part in model.named_modules():
        what = f"{type(model).__name__}.{name}" if name else "this network"
        why = f"probe cannot listen: {what} is compiled, and hooks added after compiling are silently never called."
        if dynamo is not None and isinstance(part, dynamo.OptimizedModule):
            raise LabError(f"{why} Probe the network that was compiled: probe(model._orig_mod), and call that one.")
        if part._compiled_call_impl is not None or hasattr(part.__dict__.get("forward"), "_torchdynamo_orig_callable"):
            raise LabError(f"{why} Probe a copy, which is not compiled: copy.deepcopy(model), and call that one.")


def points_of(network: ExpandableViT) -> list[Point]:
    """All attention points, in the order of the blocks."""
    return [Point(name, part) for name, part in network.named_modules() if isinstance(part, AttentionPoint)]


def entries(network: ExpandableViT) -> list[Entry]:
    """Every (kind, layer, expert, head) for which the network computes attention.

    Expert 1 is a plain transformer in every variant; behind class attention the last block has no patches that look.
    """
    found = []
    for point in points_of(network):
        kind, layer = point.module.kind, point.module.layer
        for expert, heads in enumerate(network.heads, start=1):
            own = kind == SPATIAL and (expert == 1 or not network.variant.joint)
            if own or kind == CLASS or (kind != SPATIAL and expert > 1):
                found += [(kind, layer, expert, head) for head in range(heads)]
    return found


def select(network: ExpandableViT, kind: Names, layer: Numbers, expert: Numbers, head: Numbers) -> list[Entry]:
    """The entries of the given kinds, layers, experts and heads (None: all).

    Raises:
        LabError: if a given one does not exist, or nothing of it is left beside the other choices.
    """
    there = entries(network)
    asked = {
        "kind": _set("kind", kind, str),
        "layer": _set("layer", layer, int),
        "expert": _set("expert", expert, int),
        "head": _set("head", head, int),
    }
    for column, name in enumerate(COLUMNS):
        known = {entry[column] for entry in there}
        for value in sorted((asked[name] or known) - known):
            if name == "kind":
                raise unknown(f"kind of attention in {network.variant.name}", value, map(str, known))
            raise LabError(f"{name} {value}: this network has {name}s {_numbers(known)}.")
    left = [e for e in there if all(v in (asked[n] or {v}) for n, v in zip(COLUMNS, e, strict=True))]
    for column, name in enumerate(COLUMNS):
        for value in sorted((asked[name] or set()) - {entry[column] for entry in left}):
            mine = [entry for entry in there if entry[column] == value]
            others = ", ".join(f"{n} {_numbers(v)}" for n, v in asked.items() if v and n != name)
            raise LabError(f"no attention of {name} {value} with {others}. {name} {value} has: {describe(mine)}.")
    return left


def describe(found: Iterable[Entry]) -> str:
    """In words: "spatial (layers 0, 1, experts 1), ..."."""
    kinds: dict[str, list[Entry]] = {}
    for entry in found:
        kinds.setdefault(entry[0], []).append(entry)
    return ", ".join(
        f"{kind} ({', '.join(f'{n}s {_numbers({e[c] for e in mine})}' for c, n in enumerate(COLUMNS) if c)})"
        for kind, mine in kinds.items()
    )


def _set(name: str, given: Any, of: type) -> set[Any] | None:
    if given is None:
        return None
    values = [given] if isinstance(given, str) or not isinstance(given, Iterable) else list(given)
    for value in values:
        whole = of is int and not isinstance(value, bool) and hasattr(value, "__index__")
        if not whole and not (of is str and isinstance(value, str)):
            what = "a name or several" if of is str else "a whole number or several"
            raise LabError(f"{name} = {given!r}: must be {what}, or None for all.")
    if not values:
        raise LabError(f"{name} = {given!r} selects nothing. None selects all.")
    return {of(value) for value in values}


def _numbers(values: Iterable[Any]) -> str:
    """1, 2, 3, 7 -> "1-3, 7"; names as they are."""
    ordered = sorted(values)
    if not all(isinstance(value, int) for value in ordered):
        return ", ".join(map(str, ordered))
    runs: list[list[int]] = []
    for value in ordered:
        if runs and value == runs[-1][-1] + 1:
            runs[-1].append(value)
        else:
            runs.append([value])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs)
