"""What an ablation takes out of attention: which entries of which maps."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dne_lab.analysis.attention_groups import kinds_with_rows
from dne_lab.analysis.hosts import find_host
from dne_lab.analysis.labelling import CLASS, Labelling, find_labelling
from dne_lab.analysis.maps import Key, Pairs, pairs_of
from dne_lab.analysis.probe import Names, Numbers, describe, evaluating, probe, select
from dne_lab.core.errors import LabError, unknown
from dne_lab.models.attention import KINDS, TASK1, TASK2, Axes
from dne_lab.models.expandable import ExpandableViT

OTHERS, BETWEEN = "others", "between"
WORDS = {OTHERS: "other experts", BETWEEN: "experts between the first and the reader"}
Reads = int | Iterable[int] | str | None


class View(NamedTuple):
    """What one expert looks at in one place: the axes of its map and the map's shape, with one image."""

    axes: Axes
    shape: tuple[int, ...]


Views = dict[Key, View]  # by kind, layer and expert


def views_of(network: ExpandableViT) -> dict[Key, View]:
    """The views of every kind of attention, layer and expert, from a pass of one blank image."""
    found: dict[Key, View] = {}

    def read(attention: Tensor, axes: Axes) -> None:
        found[axes.kind, axes.layer, axes.query_expert[0]] = View(axes, tuple(attention.shape))

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
    chosen = find_labelling(labelling, network.heads, network.grid)
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
    touched = mask.movedim(place, 0).flatten(1).any(1).tolist()  # (h, the rest) -> (h,)
    return [head for head, yes in zip(view.axes.query_head, touched, strict=True) if yes]


# The three ways of taking entries out of attention maps as they pass.

MEAN, ZERO, MASK = HOW = ("mean", "zero", "mask")
QUESTIONS = {
    MEAN: "does the attention matter? what depends on the image goes, the connection stays",
    ZERO: "does the connection matter? its entries become 0",
    MASK: "does the rest do? the entries go, and what is left of each row is scaled up to 1",
}


def warning(how: str, kinds: Iterable[str]) -> str:
    """What to beware of in a way of removing from these kinds of attention; "" if nothing."""
    if how != MASK or not {TASK1, TASK2} & {*kinds}:
        return ""
    return (
        "mask multiplies what is left of task attention: its rows are scaled by lambda, about the number of heads, and "
        "dividing a row by a small rest makes activations that the network never saw. mean asks whether the attention "
        "matters, zero whether the connection does."
    )


class Means:
    """The mean of attention maps over images, in the intact network: what "mean" puts in place of entries.

    Args:
        keys: (kind, layer, expert) of the maps.
    """

    def __init__(self, keys: Iterable[Key]) -> None:
        self.keys = frozenset(keys)
        self._sums: dict[Key, Tensor] = {}
        self._images = 0

    @property
    def place(self) -> tuple[list[str], list[int], list[int]]:
        """Kinds, layers and experts to listen to."""
        kinds, layers, experts = (sorted({*column}) for column in zip(*self.keys, strict=True))
        return list(map(str, kinds)), list(map(int, layers)), list(map(int, experts))

    def read(self, attention: Tensor, axes: Axes) -> None:
        """Adds a map; the ``read`` of a `probe`."""
        key = axes.kind, axes.layer, axes.query_expert[0]
        if key in self.keys:
            seen = attention.sum(0, dtype=torch.float64)
            self._sums[key] = self._sums[key] + seen if key in self._sums else seen

    def count(self, images: int) -> None:
        """How many images the maps given to `read` were of."""
        self._images += images

    def of(self, key: Key) -> Tensor:
        """The mean map, without the image axis."""
        return self._sums[key] / self._images


class Intervention:
    """Takes a `Removal` out of maps as they pass, and counts what went: the ``replace`` of a `probe`.

    Args:
        how: "mean": each entry becomes its mean over images; "zero": 0; "mask": zero, then the row is divided by what
            is left of it (a row with nothing left stays zero).
        means: of the maps touched, for "mean".

    Attributes: ``on``; while it is False maps pass as they are, by the same way. ``empty``: rows with nothing left.
    """

    def __init__(self, removal: Removal, how: str, means: Means | None = None) -> None:
        if how not in HOW:
            raise unknown("how", how, HOW)
        self.removal, self.how, self.means, self.on, self.empty = removal, how, means, True, 0
        self._mass, self._rows = 0.0, 0
        self._masks = dict(removal.masks)

    @property
    def mass(self) -> float:
        """Percent of a touched row's attention that was on the removed entries, averaged over rows and images."""
        return 100 * self._mass / self._rows if self._rows else float("nan")

    def __call__(self, attention: Tensor, axes: Axes) -> Tensor | None:
        key = axes.kind, axes.layer, axes.query_expert[0]
        if key not in self._masks:
            return None
        if not self.on:
            return attention
        mask = self._mask(key, attention)
        keys = (-2, -1) if axes.layout.endswith("kh kp") else (-1,)
        touched = mask.any(-1) if len(keys) == 1 else mask.flatten(-2).any(-1)  # without the axes of keys: a row each
        self._mass += float(attention[:, mask].sum(dtype=torch.float64))
        self._rows += int(touched.sum()) * len(attention)
        if self.how == MEAN:
            assert self.means is not None
            return torch.where(mask, self.means.of(key).to(attention), attention)
        left = attention.masked_fill(mask, 0)
        if self.how == ZERO:
            return left
        total = left.sum(keys, keepdim=True)
        self.empty += int(((total <= 0).view(len(attention), *touched.shape) & touched).sum())  # (b, rows)
        # an untouched row stays as it is, to the last bit
        row = touched.view(touched.shape + (1,) * len(keys))  # (rows, 1) or (rows, 1, 1)
        return torch.where(row, left / total.masked_fill(total <= 0, 1), attention)

    def _mask(self, key: Key, attention: Tensor) -> Tensor:
        self._masks[key] = self._masks[key].to(attention.device)
        return self._masks[key]
