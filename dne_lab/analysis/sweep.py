"""Many removals over one data set: `ablation_sweep`, every connection between experts, one at a time."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dne_lab.analysis.ablation import (
    ALL,
    Tally,
    check_repeatable,
    intended_rows,
    means_of,
    measure_means,
    warn_of,
)
from dne_lab.analysis.hosts import find_host, find_network
from dne_lab.analysis.maps import Key, pairs_of
from dne_lab.analysis.probe import Images, Names, Numbers, evaluating, image_batches, probe, select
from dne_lab.analysis.removal import (
    MEAN,
    Intervention,
    Means,
    Removal,
    View,
    Views,
    crosses,
    crossing_kinds,
    removal,
    views_of,
)
from dne_lab.core import shown
from dne_lab.core.errors import LabError, unknown
from dne_lab.data.stream import Batch
from dne_lab.measure.tables import brief
from dne_lab.models.attention import KINDS, Axes
from dne_lab.models.expandable import ExpandableViT

if TYPE_CHECKING:
    import pandas as pd


# A forward pass that is kept, so that passes that differ from it late share its beginning.


class SharedPass:
    """One pass over a batch, and others that begin alike.

    Expert t reads earlier experts only, and a layer what is below it. So a pass that differs from expert t, layer l on
    is computed from there: of experts before t (before its bank) and of layers below l nothing is computed again.

    Args:
        network: in evaluation mode, without gradients.
        images: (B, C, H, W) uint8.

    Attributes: ``readouts``, one (B, width_t) per expert.
    """

    def __init__(self, network: ExpandableViT, images: Tensor) -> None:
        self.network, self.banks, self.contexts = network, network.banks(), network.contexts()
        patches = network.patches(images)
        self.readouts: list[Tensor] = []
        self._inputs: list[list[Tensor]] = []  # a bank's tokens in front of every layer
        self._marks = []
        for bank in self.banks:
            self._marks.append([context.mark() for context in self.contexts])
            x, seen = network.embed(bank, patches), []
            for layer, context in enumerate(self.contexts):
                seen.append(x)
                x = network.step(bank, layer, x, context)
            self._inputs.append(seen)
            self.readouts += network.read_out(bank, x)
        self._lowest = len(self.banks)

    def from_(self, expert: int, layer: int) -> list[Tensor]:
        """The read-outs of a pass that goes on from here.

        Call it for the newest expert first and then downwards: what an expert offers to later ones is written over.

        Raises:
            ValueError: called for an earlier expert before.
        """
        start = next(place for place, bank in enumerate(self.banks) if expert in bank.numbers)
        if start > self._lowest:
            raise ValueError(f"expert {expert} after an earlier one: go from the newest expert down")
        self._lowest = start
        readouts = self.readouts[: self.banks[start].numbers[0] - 1]
        for place in range(start, len(self.banks)):
            bank, x = self.banks[place], self._inputs[place][layer]
            for block in range(layer, len(self.contexts)):
                if place == start:
                    self.contexts[block].return_to(self._marks[start][block])
                x = self.network.step(bank, block, x, self.contexts[block])
            readouts = readouts + self.network.read_out(bank, x)
        return readouts


COLUMNS = ("kind", "layer", "expert", "reads")
VALUES = ("loss", "own loss", "changed %", "mean |logit change|", "mass %")


class Sweep:
    """The effect of removing each connection. ``how``; ``images``; ``rows``, plain dictionaries of `table`."""

    def __init__(self, how: str, images: int, rows: list[dict[str, Any]]) -> None:
        self.how, self.images, self.rows = how, images, rows

    def table(self) -> "pd.DataFrame":
        """One row per connection, from expert ``reads`` to expert ``expert``.

        Returns:
            Columns ``kind`` and ``layer`` ("all": in all of them at once), ``expert``, ``reads``, ``loss`` of accuracy
            over all images and ``own loss`` over those of the classes that came with ``expert``, both in percentage
            points and followed by half the width of their 95% interval over images (``+-``, ``own +-``), ``changed %``
            of the answers, ``mean |logit change|``, and ``mass %``, how much of the rows' attention was removed.
        """
        import pandas as pd

        return pd.DataFrame(self.rows)

    def matrix(self, kind: str = ALL, layer: int | str = ALL, of: str = "loss") -> "pd.DataFrame":
        """A value for every connection of a kind and layer: rows expert, columns whom it reads; NaN: no connection.

        Raises:
            LabError: a kind or layer that was not swept, an unknown value.
        """
        table = self.table()
        if of not in VALUES:
            raise unknown("value of a sweep", of, VALUES)
        chosen = table[(table["kind"] == kind) & (table["layer"].astype(str) == str(layer))]
        if chosen.empty:
            places = ", ".join(dict.fromkeys(f"{k} {i}" for k, i in zip(table["kind"], table["layer"], strict=True)))
            raise LabError(f"sweep: nothing of kind {kind!r}, layer {layer!r}. It has (kind, layer): {places}.")
        return chosen.pivot(index="expert", columns="reads", values=of)

    def plot(self) -> Any:
        """What is lost without each connection, as a figure: who reads whom."""
        return shown.show(self, "plot", instead="table() and matrix()")

    def __repr__(self) -> str:
        return f"Sweep({self.how}, {self.images} images)\n{brief(self.table())}"


def ablation_sweep(
    model: nn.Module,
    images: Images,
    how: str = MEAN,
    kind: Names = None,
    layer: Numbers = None,
    expert: Numbers = None,
    *,
    own: bool = True,
    together: bool = True,
    batch_size: int = 64,
    progress: bool = True,
) -> Sweep:
    """Removes every connection from an expert to another, one at a time, kind by kind and layer by layer.

        sweep = lab.ablation_sweep(run.model, stream.test_images(500))
        sweep.matrix()  # accuracy lost: rows experts, columns whom they read

    The accuracy of the intact network is measured on the same path, listening at the same points. What a removal cannot
    change (earlier experts, layers below) is not computed again.

    Args:
        model, how, batch_size, progress: as in `ablate`.
        images: with labels (stream.test_images).
        kind, layer, expert: which connections; ``expert`` reads. None: all kinds in which experts read each other.
        own: also remove what an expert reads of itself.
        together: also remove each connection in all these kinds and layers at once ("all").

    Raises:
        LabError: experts that do not read each other, images without labels, and what `ablate` raises.
    """
    network = find_network(model, "ablate")
    swept = connections(network, kind, layer, expert, own=own, together=together)
    warn_of(how, {name for _, taken in swept for name in taken.kinds})
    found = removals(network, images, [(taken, how) for _, taken in swept], batch_size, progress)
    return Sweep(how, int(found[0][0].row(ALL)["images"]), sweep_rows(swept, found))


def connections(
    network: ExpandableViT,
    kind: Names = None,
    layer: Numbers = None,
    expert: Numbers = None,
    *,
    own: bool = True,
    together: bool = True,
) -> list[tuple[dict[str, Any], Removal]]:
    """What `ablation_sweep` removes, and where; its arguments and errors."""
    views = views_of(network)
    selected = {entry[:3] for entry in select(find_host(network), kind, layer, expert, None)}
    chosen = {key for key in selected if crosses(key, views[key])}
    if not chosen:
        names = ", ".join(crossing_kinds(views)) or "none"
        raise LabError(
            f"ablation_sweep: no connection between experts is selected. Kinds in which experts of this network "
            f"({network.variant.name}, {len(network.experts)} experts) read each other: {names}."
        )
    swept: list[tuple[dict[str, Any], Removal]] = []
    places = sorted({key[:2] for key in chosen}, key=lambda place: (KINDS.index(place[0]), place[1]))
    sets: list[tuple[Any, Any, set[Key]]] = [(k, i, {key for key in chosen if key[:2] == (k, i)}) for k, i in places]
    if together and len(places) > 1:
        sets.append((ALL, ALL, chosen))
    for name, block, keys in sets:
        for reader in sorted({key[2] for key in keys}):
            for source in range(1, reader + own):
                mine = {key: views[key] for key in sorted(keys) if key[2] == reader}
                where = dict(zip(COLUMNS, (name, block, reader, source), strict=True))
                swept.append((where, _connection(mine, source)))
    return swept


def sweep_rows(
    swept: Sequence[tuple[dict[str, Any], Removal]], found: Sequence[tuple[Tally, Intervention]]
) -> list[dict[str, Any]]:
    """The rows of `Sweep.table`: what `removals` found of `connections`."""
    rows = []
    for (where, _), (tally, intervention) in zip(swept, found, strict=True):
        every, brought = tally.row(ALL), tally.row(where["expert"])
        rows.append(
            where
            | {"loss": every["loss"], "+-": every["+-"]}
            | {"own loss": brought["loss"], "own +-": brought["+-"]}
            | {name: every[name] for name in ("changed %", "mean |logit change|")}
            | {"mass %": intervention.mass}
        )
    return rows


def _connection(views: dict[Key, View], source: int) -> Removal:
    """All that one expert reads of another, in all its views."""
    masks = {}
    for key, (axes, shape) in views.items():
        mask = np.broadcast_to(pairs_of(axes, shape).key_expert == source, shape[1:]).copy()
        masks[key] = torch.from_numpy(mask)
    return Removal(f"keys of expert {source}", masks)


def removals(
    network: ExpandableViT, images: Images, wanted: Sequence[tuple[Removal, str]], batch_size: int, progress: bool
) -> list[tuple[Tally, Intervention]]:
    """The effect of each removal, in one of the ways (`removal.HOW`), on its own, over labelled images.

    Removals at the same points share the intact pass, and each goes on from where it differs; all that put means in
    place of attention share one pass that finds them.

    Raises:
        LabError: images without labels or of classes unknown to the network only, or that can be read only once.
    """
    check_repeatable(images, "a sweep")
    touched = {key for taken, how in wanted if how == MEAN for key in taken.masks}
    means = Means(touched) if touched else None
    found = [(Tally(network.task_classes), Intervention(taken, how, means)) for taken, how in wanted]
    sessions: dict[Places, list[tuple[Tally, Intervention]]] = {}
    for pair in found:
        sessions.setdefault(_places(pair[1].removal), []).append(pair)
    current: list[Intervention] = []  # the one that cuts now

    def replace(attention: Tensor, axes: Axes) -> Tensor | None:
        return current[0](attention, axes) if current else None

    total = _count(images) * (len(wanted) + (means is not None))
    bar = tqdm(total=total, desc="ablation", unit="image", disable=None if progress else True, leave=False)
    with evaluating(network) as device, intended_rows(), bar:
        if means is not None:
            measure_means(network, images, means, batch_size, bar)
        for places, members in sessions.items():
            # from the newest expert down, as `SharedPass` wants it
            members = sorted(members, key=lambda pair: -pair[1].removal.experts[0])
            with probe(network, *_listened(places), keep=False, replace=replace):
                for some in image_batches(images, batch_size):
                    if some.labels is None:
                        raise LabError("a sweep measures accuracy, and these images have no labels: give a Batch, "
                                       "such as stream.test_images(500).")  # fmt: skip
                    shared = SharedPass(network, some.images.to(device))
                    before = network.classifier(shared.readouts)
                    for tally, intervention in members:
                        current[:] = [intervention]
                        after = shared.from_(intervention.removal.experts[0], intervention.removal.layers[0])
                        current.clear()
                        tally.add(before, network.classifier(after), some.labels)
                        bar.update(len(some.labels))
    if not found[0][0].counts[:, 0].any():
        raise LabError(
            f"no image is of a class that this network has learned (ranks 0 to {sum(network.task_classes) - 1})."
        )
    return found


Places = frozenset[tuple[str, int]]  # kinds and layers


def _places(taken: Removal) -> Places:
    """Where a removal touches attention."""
    return frozenset(key[:2] for key in taken.masks)


def _listened(places: Places) -> tuple[list[str], list[int]]:
    """Kinds and layers to listen to, for all experts: no batch is undone."""
    kinds, layers = zip(*sorted(places), strict=True)
    return list(dict.fromkeys(kinds)), list(dict.fromkeys(layers))


def _count(images: Images) -> int:
    given: Iterable[Any] = [images] if isinstance(images, Tensor | Batch) else images
    return sum(len(some.images) if isinstance(some, Batch) else len(some) for some in given)


# One image: how far each connection's removal moves its answer.

PAIRS = 30  # connections that are tried at most; of more, those of the newest expert


def image_sweep(
    network: ExpandableViT,
    image: Tensor,
    how: str = MEAN,
    views: Views | None = None,
    means: Means | None = None,
) -> "pd.DataFrame":
    """A row for each connection between two experts: expert (that reads), reads (the expert that is read), change.

    ``change`` is the largest share of the softmax that moves to other classes when expert ``expert`` does not read
    expert ``reads`` anywhere (total variation, percent): 0 changes nothing, 100 everything. Of more than 30 connections
    those of the newest expert alone. What a removal cannot change is not computed again.

    Args:
        image: (C, H, W) uint8.
        how, views, means: see `dne_lab.analysis.ablation.what_if`.

    Raises:
        LabError: see `what_if`.
    """
    import pandas as pd

    there = views_of(network) if views is None else views
    pairs = sorted(
        {(key[2], read) for key, view in there.items() if crosses(key, view) for read in set(view.axes.key_expert)}
    )
    pairs = [(expert, read) for expert, read in pairs if read != expert]
    if len(pairs) > PAIRS:
        pairs = [(expert, read) for expert, read in pairs if expert == len(network.heads)]
    if how == MEAN and means is None:
        means = means_of(network, image[None])
    taken = [removal(network, reads=read, expert=expert, views=there) for expert, read in pairs]
    sessions: dict[Places, list[Removal]] = {}
    for one in sorted(taken, key=lambda one: -one.experts[0]):  # as `SharedPass` wants it
        sessions.setdefault(_places(one), []).append(one)
    current: list[Intervention] = []
    changes: dict[Removal, float] = {}

    def replace(attention: Tensor, axes: Axes) -> Tensor | None:
        return current[0](attention, axes) if current else None

    with evaluating(network) as device, intended_rows():
        for places, members in sessions.items():
            with probe(network, *_listened(places), keep=False, replace=replace):
                shared = SharedPass(network, image[None].to(device))
                before = network.classifier(shared.readouts)[0].double().softmax(0)
                for one in members:
                    current[:] = [Intervention(one, how, means)]
                    after = network.classifier(shared.from_(one.experts[0], one.layers[0]))[0].double().softmax(0)
                    current.clear()
                    changes[one] = 50 * float((before - after).abs().sum())
    rows = [(expert, read, changes[one]) for (expert, read), one in zip(pairs, taken, strict=True)]
    return pd.DataFrame(rows, columns=["expert", "reads", "change"])
