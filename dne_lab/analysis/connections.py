"""Who reads whom in a network: its connections and its parts as rows, read off its own modules."""

import copy
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dne_lab.analysis.hosts import ExpandableHost, find_network
from dne_lab.analysis.probe import Images, Numbers, evaluating, image_batches, probe
from dne_lab.core.errors import LabError, unknown
from dne_lab.models.attention import CLASS, JOINT, PARAMETERS_OF, SPATIAL, TASK1, TASK2, Axes
from dne_lab.models.controls import WEIGHTS
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.expert import Expert, ExpertBlock, TaskAttentionParameters
from dne_lab.models.variants import Variant

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
    expert (`hosts.ExpandableHost`); linear1 and linear2 are the layers of an MLP, lateral is eq. 11's map.

    Returns:
        Dictionaries: layer; kind; reader and heads (of it); read and heads read; patches, "all" or "same" as the patch
        that reads, or "others", and of which picture, if not of its own; keys, the tokens of the expert read that one
        reading token sees (class tokens not counted); state of the reader, "trains" or "frozen".
    """
    experts = experts_of(network)
    heads, patches = network.heads, network.grid[0] * network.grid[1]
    firing = sorted({(layer, kind, number) for kind, layer, number, _ in ExpandableHost(network).entries})
    kinds: dict[tuple[int, int], list[str]] = {}
    for layer, kind, number in firing:
        kinds.setdefault((layer, number), []).append(kind)
    rows: list[dict[str, Any]] = []
    states = [state(expert) for expert in experts]
    for layer in range(network.network.depth):
        for number, expert in enumerate(experts, start=1):
            block = expert.blocks[layer]
            there = [*kinds.get((layer, number), []), *_without_attention(block)]
            for step in STEPS:
                for kind in (k for k in there if k in step):
                    alone = kind in (SPATIAL, LINEAR1, LINEAR2) or (kind == CLASS and not block.joint)
                    everywhere = kind in ATTENTIONS
                    read = {number: heads[number - 1]} if alone else heads_read(expert, block, kind, heads)
                    for other, seen in read.items():
                        own = kind in ATTENTIONS and alone  # head by head
                        where, each = "all" if everywhere else "same", patches if everywhere else 1
                        if other != number and kind in (JOINT, CLASS):
                            where, each = _foreign(network.variant, kind, patches)
                        if where == "none":
                            continue
                        rows.append(
                            {"layer": layer, "kind": kind, "reader": number, "heads": heads[number - 1]}
                            | {"read": other, "heads read": seen}
                            | {"patches": where}
                            | {"keys": (1 if own else seen) * each}
                            | {"state": states[number - 1]}
                        )
    return rows


def heads_read(expert: Expert, block: ExpertBlock, kind: str, heads: Sequence[int]) -> dict[int, int]:
    """How many heads of each expert one expert reads, those alone of which it reads any; ``heads``: of all experts."""
    number = expert.place.number
    tab = block.task_attention.get(PARAMETERS_OF.get(kind, ""))
    places = expert.read if tab is None else tab.read
    if places is None:
        return dict(enumerate(heads[:number], start=1))
    owners = [t for t, count in enumerate(heads[:number], start=1) for _ in range(count)]
    found = Counter(owners[place] for place in places.tolist())
    return {t: found[t] for t in sorted(found)} | {number: heads[number - 1]}


def _foreign(variant: Variant, kind: str, patches: int) -> tuple[str, int]:
    """Which patches of another expert's head a patch (a class token, for kind "class") reads, and how many."""
    masked, picture = variant.masked, {"same": "", "shuffled": " of another picture"}.get(variant.pictures)
    picture = ", its own of other pictures" if picture is None else picture
    if masked == "both" or (masked == "DPDH" and kind == CLASS):
        return "none", 0
    if masked == "none" or kind == CLASS:
        return f"all{picture}", patches
    return (f"others{picture}", patches - 1) if masked == "SPDH" else (f"same{picture}", 1)


def with_most_read(
    model: nn.Module, images: Images, most: int | None = None, weights: str = "learned", expert: Numbers = None
) -> ExpandableViT:
    """A copy of a model whose task attention blocks read their own heads and the ``most`` others that they read most.

        sparse = lab.with_most_read(run.model, stream.test_images(500), most=2)

    What is read most is the mean attention over the images; heads that are not read lose their value maps. Expert by
    expert, the earlier ones first, each measured in the model as it was.

    Args:
        model: an `ExpandableViT` with task attention, or a module that holds one.
        images: what `attention_groups` takes.
        most: heads of other experts; None: all, to change the weights alone.
        weights: "learned"; "means": the mean attention, whatever the image; "uniform": 1/H.
        expert: whose blocks; None: of all experts from 2 on.

    Raises:
        LabError: no task attention there, a number or a name that is not allowed.
    """
    if most is not None and (isinstance(most, bool) or not isinstance(most, int) or most < 0):
        raise LabError(f"most = {most!r}: must be a whole number of heads from 0, or None for all.")
    if weights not in WEIGHTS:
        raise unknown("weights", weights, WEIGHTS)
    network = copy.deepcopy(find_network(model, "with_most_read"))
    sums: dict[tuple[int, int, str], Tensor] = {}
    count = 0

    def read(part: Tensor, axes: Axes) -> None:
        place = axes.query_expert[0], axes.layer, PARAMETERS_OF[axes.kind]
        seen = part.sum(0, dtype=torch.float64).mean(0)  # (b, p, h, kh) -> (h, kh)
        sums[place] = sums.get(place, 0) + seen

    kinds = [kind for kind in (TASK1, TASK2) if getattr(network.variant, kind)] or TASK1
    with evaluating(network) as device, probe(network, kind=kinds, expert=expert, keep=False, read=read):
        for some in image_batches(images, 256):
            count += len(some.images)
            network(some.images.to(device))
    for (number, layer, name), mass in sums.items():
        block = network.experts[number - 1].blocks[layer]
        before = block.task_attention[name]
        after = before.restricted(most, weights)
        after.take_over(before, (mass / count).to(before.w_v.device))
        setattr(block, name, after)
    return network


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
    states = [state(expert) for expert in experts_of(network)]
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
                    | {"reads": _listed(who), "state": states[number - 1]}
                )
    return rows


def _listed(who: list[int]) -> str:
    """``1-3``, or ``1, 3`` where some between are not read."""
    if (len(who) > 2 and who == list(range(who[0], who[-1] + 1))) or (len(who) == 2 and who[1] == who[0] + 1):
        return f"{who[0]}-{who[-1]}"
    return ", ".join(map(str, who))


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
