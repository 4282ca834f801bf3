"""Who reads whom in a network: its connections and its parts as rows, read off its own modules."""

from typing import Any

from torch import nn

from dne_lab.analysis.hosts import ExpandableHost
from dne_lab.core.errors import LabError
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, TASK1, TASK2
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.expert import Expert, ExpertBlock, TaskAttentionParameters

LATERAL, LINEAR1, LINEAR2 = "lateral", "linear1", "linear2"
ATTENTIONS = (SPATIAL, JOINT, CLASS)
STEPS = ((LATERAL,), ATTENTIONS, (LINEAR1, TASK1), (LINEAR2, TASK2))  # in the order in which a block computes


def experts_of(network: ExpandableViT) -> list[Expert]:
    """The experts; raises LabError for a network that has none yet."""
    if not len(network.experts):
        raise LabError("this network has no expert yet, so nothing is connected: call expand, or next_task.")
    return list(network.experts)


def connections(network: ExpandableViT) -> list[dict[str, Any]]:
    """One row for each block, kind of connection, expert that reads and expert that is read.

    Attention (spatial, joint, class, task1, task2) is where the network has an attention point that fires for the
    expert (`hosts.expandable`); linear1 and linear2 are the layers of an MLP, lateral is eq. 11's map.

    Returns:
        Dictionaries: layer; kind; reader and heads (of it); read and heads read; patches, "all" or "same" as the patch
        that reads; keys, the tokens of the expert read that one reading token sees (class tokens not counted); state of
        the reader, "trains" or "frozen".
    """
    experts = experts_of(network)
    heads, patches = network.heads, network.grid[0] * network.grid[1]
    firing = sorted({(layer, kind, number) for kind, layer, number, _ in ExpandableHost(network).entries})
    kinds: dict[tuple[int, int], list[str]] = {}
    for layer, kind, number in firing:
        kinds.setdefault((layer, number), []).append(kind)
    rows: list[dict[str, Any]] = []
    for layer in range(network.network.depth):
        for number, expert in enumerate(experts, start=1):
            block = expert.blocks[layer]
            there = [*kinds.get((layer, number), []), *_without_attention(block)]
            for step in STEPS:
                for kind in (k for k in there if k in step):
                    alone = kind in (SPATIAL, LINEAR1, LINEAR2) or (kind == CLASS and not block.joint)
                    everywhere = kind in ATTENTIONS
                    for other in [number] if alone else range(1, number + 1):
                        own = kind in ATTENTIONS and alone  # head by head
                        count = 1 if own else heads[other - 1]
                        rows.append(
                            {"layer": layer, "kind": kind, "reader": number, "heads": heads[number - 1]}
                            | {"read": other, "heads read": heads[other - 1]}
                            | {"patches": "all" if everywhere else "same"}
                            | {"keys": count * (patches if everywhere else 1)}
                            | {"state": state(expert)}
                        )
    return rows


def state(expert: nn.Module) -> str:
    """Whether anything in an expert trains: "trains" or "frozen"."""
    return "trains" if any(p.requires_grad for p in expert.parameters()) else "frozen"


def _without_attention(block: ExpertBlock) -> list[str]:
    found = [LATERAL] if block.lateral is not None else []
    found += [LINEAR1] if isinstance(block.mix1, nn.Linear) else []
    return found + ([LINEAR2] if isinstance(block.mix2, nn.Linear) else [])


def parts(network: ExpandableViT) -> list[dict[str, Any]]:
    """One row for each part of each expert in each block, in the order of computation.

    Returns:
        Dictionaries: layer, expert, part, what (kind of connection, or the layer's class), shapes (of the parameters by
        name), parameters (their number), reads ("1-3": the experts whose heads it reads) and state.
    """
    reads: dict[tuple[int, int, str], list[int]] = {}
    for row in connections(network):
        reads.setdefault((row["layer"], row["reader"], row["kind"]), []).append(row["read"])
    rows = []
    for layer in range(network.network.depth):
        for number, expert in enumerate(experts_of(network), start=1):
            block = expert.blocks[layer]
            mine = {kind: who for (at, reader, kind), who in reads.items() if (at, reader) == (layer, number)}
            for part, what, module in _parts_of(block, mine):
                named = dict(module.named_parameters()) if isinstance(module, nn.Module) else {part: module}
                who = mine.get(what, [number])
                rows.append(
                    {"layer": layer, "expert": number, "part": part, "what": what}
                    | {"shapes": ", ".join(f"{n} {' x '.join(map(str, p.shape))}" for n, p in named.items())}
                    | {"parameters": sum(p.numel() for p in named.values())}
                    | {"reads": str(who[0]) if len(who) == 1 else f"{who[0]}-{who[-1]}", "state": state(expert)}
                )
    return rows


def _parts_of(block: ExpertBlock, kinds: dict[str, list[int]]) -> list[tuple[str, str, Any]]:
    """(part, what, module or parameter) of one block, in order; ``kinds`` are its connections."""
    attention = next(kind for kind in ATTENTIONS if kind in kinds)
    found: list[tuple[str, str, Any]] = []
    if block.lateral is not None:
        found.append(("lateral", LATERAL, block.lateral))
    found += [("norm1", "LayerNorm", block.norm1), ("attention", attention, block.attention)]
    found.append(("norm2", "LayerNorm", block.norm2))
    found.append(("mix1", TASK1 if isinstance(block.mix1, TaskAttentionParameters) else LINEAR1, block.mix1))
    if block.norm_hidden is not None:
        found.append(("norm_hidden", "LayerNorm", block.norm_hidden))
    found.append(("mix2", TASK2 if isinstance(block.mix2, TaskAttentionParameters) else LINEAR2, block.mix2))
    return found
