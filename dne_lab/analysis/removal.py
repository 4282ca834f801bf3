"""What an ablation takes out of attention: which entries of which maps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dne_lab.analysis import labelling as labellings
from dne_lab.analysis.choice import kinds_with_rows
from dne_lab.analysis.hosts.expandable import ExpandableHost
from dne_lab.analysis.hosts.find import find_host
from dne_lab.analysis.images import evaluating
from dne_lab.analysis.labelling import CLASS, Labelling
from dne_lab.analysis.maps import Key
from dne_lab.analysis.pairs import Pairs, pairs_of
from dne_lab.analysis.probe import probe
from dne_lab.analysis.probe_selection import Names, Numbers, describe, select
from dne_lab.errors import LabError, unknown
from dne_lab.models.attention import KINDS, Axes
from dne_lab.models.expandable import ExpandableViT

OTHERS, BETWEEN = "others", "between"
WORDS = {OTHERS: "other experts", BETWEEN: "experts between the first and the reader"}
Reads = int | Iterable[int] | str | None


class View(NamedTuple):
    """What one expert looks at in one place: the axes of its map and the map's shape, with one image."""

    axes: Axes
    shape: tuple[int, ...]


Views = dict[Key, View]  # by kind, layer and expert


def network_of(model: Any) -> ExpandableViT:
    """The one `ExpandableViT` that ``model`` is or holds.

    Raises:
        LabError: none, or a network of another library.
    """
    host = find_host(model)
    if not isinstance(host, ExpandableHost):
        raise LabError(
            f"ablate takes an ExpandableViT, and this is {host.title}, whose logits and images are of other kinds. "
            "Where probe can replace its attention (timm's), remove it with probe(model, replace=...) and call it."
        )
    return host.network


def views_of(network: ExpandableViT) -> dict[Key, View]:
    """The views of every kind of attention, layer and expert, from a pass of one blank image."""
    found: dict[Key, View] = {}

    def read(part: Tensor, axes: Axes) -> None:
        found[axes.kind, axes.layer, axes.query_expert[0]] = View(axes, tuple(part.shape))

    with evaluating(network) as device, probe(network, keep=False, read=read):
        network(torch.zeros((1, *network.shape), dtype=torch.uint8, device=device))
    return found


def crosses(key: Key, view: View) -> bool:
    """Whether an expert reads others there."""
    return bool(set(view.axes.key_expert) - {key[2]})


def crossing_kinds(views: dict[Key, View]) -> list[str]:
    """The kinds of attention in which experts read each other, in the order of `KINDS`."""
    there = {key[0] for key, view in views.items() if crosses(key, view)}
    return [kind for kind in KINDS if kind in there]


@dataclass(frozen=True, eq=False)
class Removal:
    """Entries of attention maps.

    Attributes:
        what: in words.
        masks: (kind, layer, expert) -> bool, the shape of that expert's map without the image axis; True goes.
    """

    what: str
    masks: dict[Key, Tensor]

    @property
    def kinds(self) -> list[str]:
        """The kinds of attention touched."""
        return list(dict.fromkeys(kind for kind, _, _ in self.masks))

    @property
    def layers(self) -> list[int]:
        """The layers touched, ascending."""
        return sorted({layer for _, layer, _ in self.masks})

    @property
    def experts(self) -> list[int]:
        """The experts whose queries are touched, ascending."""
        return sorted({expert for _, _, expert in self.masks})


def removal(
    network: ExpandableViT,
    kind: Names = None,
    layer: Numbers = None,
    expert: Numbers = None,
    head: Numbers = None,
    reads: Reads = None,
    key_head: Numbers = None,
    group: Names = None,
    labelling: str | Labelling = "groups",
    views: Views | None = None,
) -> Removal:
    """The entries that are of all the given kinds at once; the arguments are those of `ablate`.

    Raises:
        LabError: nothing chosen, a choice that does not exist, or that has no entry beside the other choices.
    """
    given = (kind, layer, expert, head, reads, key_head, group)
    if all(choice is None for choice in given):
        raise LabError(
            "ablate: nothing is selected. Name what to remove: kind, layer, expert (whose queries), head, reads (whose "
            "keys), key_head or group, e.g. group=('SPDH', 'DPDH') or expert=3, reads=1."
        )
    chosen = labellings.find(labelling, network.heads, network.grid)
    labels, sources = _labels(group, chosen), _sources(reads, network)
    heads = None if key_head is None else _numbers("key_head", key_head, range(max(network.heads)))
    queries: dict[Key, set[int]] = {}
    for name, block, number, place in select(find_host(network), kind, layer, expert, head):
        queries.setdefault((name, block, number), set()).add(place)
    if labels is not None and kind is None:
        rows = kinds_with_rows(list(dict.fromkeys(key[0] for key in queries)), chosen)
        queries = {key: places for key, places in queries.items() if key[0] in rows}
    views = views or views_of(network)
    masks: dict[Key, Tensor] = {}
    there: dict[str, set[str]] = {}  # what each kind has, for messages
    for key, mine in queries.items():
        axes, shape = views[key]
        pairs, inner = pairs_of(axes, shape), shape[1:]
        mask = np.broadcast_to(np.isin(pairs.query_head, list(mine)), inner).copy()
        if labels is not None:
            places = chosen.places(pairs, inner)
            counted = np.broadcast_to((pairs.query_patch < 0) == chosen.class_queries, inner)
            there.setdefault(key[0], set()).update(_names(chosen, places[mask & counted]))
            mask &= counted & np.isin(places, [_place(chosen, label) for label in labels])
        if sources is not None:
            mask &= _read(pairs, sources)
        if heads is not None:
            mask &= np.isin(pairs.key_head, heads)
        if mask.any():
            masks[key] = torch.from_numpy(mask)
    _check(network, kind, labels, sources, chosen, masks, there, views)
    return Removal(_words(labels, sources, heads, masks, views), masks)


def _read(pairs: Pairs, sources: list[int] | str) -> NDArray[np.bool_]:
    """Which pairs have a key of these experts."""
    if sources == OTHERS:
        return pairs.key_expert != pairs.query_expert
    if sources == BETWEEN:
        return (pairs.key_expert > 1) & (pairs.key_expert < pairs.query_expert)
    return np.isin(pairs.key_expert, sources)


def _labels(group: Names, labelling: Labelling) -> list[str] | None:
    if group is None:
        return None
    wanted = [group] if isinstance(group, str) else list(group)
    if not wanted:
        raise LabError(f"group = {group!r} selects nothing. None selects all.")
    for label in wanted:
        if label not in (*labelling.labels, CLASS):
            raise unknown(f"group of labelling {labelling.name!r}", label, (*labelling.labels, CLASS))
    return wanted


def _place(labelling: Labelling, label: str) -> int:
    return len(labelling.labels) if label == CLASS else labelling.labels.index(label)


def _names(labelling: Labelling, places: NDArray[Any]) -> list[str]:
    return [(*labelling.labels, CLASS)[place] for place in np.unique(places)]


def _sources(reads: Reads, network: ExpandableViT) -> list[int] | str | None:
    if reads is None or (isinstance(reads, str) and reads in WORDS):
        return reads
    if isinstance(reads, str):
        raise unknown("reads", reads, [*WORDS, "the number of an expert, or several"])
    return _numbers("reads", reads, range(1, len(network.experts) + 1))


def _numbers(name: str, given: Numbers, allowed: range) -> list[int]:
    values = [given] if not isinstance(given, Iterable) else list(given)
    for value in values:
        whole = hasattr(value, "__index__") and not isinstance(value, bool)
        if not whole or value not in allowed:
            raise LabError(f"{name} = {given!r}: must be whole numbers from {allowed.start} to {allowed.stop - 1}.")
    if not values:
        raise LabError(f"{name} = {given!r} selects nothing. None selects all.")
    return [int(value) for value in values if value is not None]


def _check(
    network: ExpandableViT,
    kind: Names,
    labels: list[str] | None,
    sources: list[int] | str | None,
    labelling: Labelling,
    masks: dict[Key, Tensor],
    there: dict[str, set[str]],
    views: dict[Key, View],
) -> None:
    """Every kind, label and expert that was named has something to remove, or a `LabError` that lists what there is."""
    order = (*labelling.labels, CLASS)
    if labels is not None:
        found = set().union(*there.values()) if there else set()
        absent = [label for label in labels if label not in found]
        named = [] if kind is None else [kind] if isinstance(kind, str) else list(kind)
        bare = [name for name in named if not there.get(name, set()) & {*labels}]
        if absent or bare:
            what = f"no {', '.join(absent or labels)}" + (f" in {', '.join(bare)} attention" if bare else "")
            has = "; ".join(f"{n}: {', '.join(label for label in order if label in s)}" for n, s in there.items() if s)
            raise LabError(
                f"ablate: {what} among what is selected of this network ({network.variant.name}). Labelling "
                f"{labelling.name!r} finds there {has or 'no row at all'}."
            )
    if masks:
        return
    names = ", ".join(crossing_kinds(views)) or "none"
    asked = WORDS[sources] if isinstance(sources, str) else f"experts {_listed(sources or [])}"
    raise LabError(
        f"ablate: what is selected has no such entries (keys of {asked if sources else 'that head'}). An expert reads "
        f"itself and earlier experts only, and others only in: {names} (network {network.variant.name}, "
        f"{len(network.experts)} experts of {', '.join(map(str, network.heads))} heads)."
    )


def _words(
    labels: list[str] | None,
    sources: list[int] | str | None,
    heads: list[int] | None,
    masks: dict[Key, Tensor],
    views: dict[Key, View],
) -> str:
    what = " + ".join(labels) if labels else "all"
    if sources is not None:
        what += f" keys of {WORDS[sources]}" if isinstance(sources, str) else f" keys of expert {_listed(sources)}"
    if heads is not None:
        what += f", key head {_listed(heads)}"
    rows = [(*key, h) for key, mask in masks.items() for h in _heads(mask, views[key])]
    return f"{what} in {describe(rows)}"


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _heads(mask: Tensor, view: View) -> list[int]:
    """The query heads that a mask touches."""
    place = view.axes.layout.split().index("h") - 1
    touched = mask.movedim(place, 0).flatten(1).any(1).tolist()
    return [head for head, yes in zip(view.axes.query_head, touched, strict=True) if yes]
