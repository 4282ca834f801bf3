"""What a network loses when attention is taken out of it: `ablate`, one removal in whole forward passes."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from dne_lab.analysis.attention_groups import kinds_with_rows
from dne_lab.analysis.group_tables import AttentionGroups
from dne_lab.analysis.hosts import find_host, find_network
from dne_lab.analysis.labelling import Labelling, find_labelling
from dne_lab.analysis.probe import ATTENTION, ImageBatch, Images, Names, Numbers, evaluating, image_batches, probe
from dne_lab.analysis.removal import MEAN, Intervention, Means, Reads, Removal, Views, removal, warning
from dne_lab.analysis.row_statistics import REPLICATES, Accumulator
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch
from dne_lab.measure.tables import brief
from dne_lab.models.attention import Axes
from dne_lab.models.expandable import ExpandableViT, Output

if TYPE_CHECKING:
    import pandas as pd


# What `ablate` gives: logits before and after, accuracies, attention groups, and what was not touched.

ALL = "all"


class Ablation:
    """One removal and what it did.

    Attributes:
        how: "mean", "zero" or "mask".
        what: was removed, in words.
        removal: the entries.
        before, after: logits, (n, classes) float32 on the CPU.
        labels: (n,) ranks, or None.
        index: (n,) image numbers.
        task_classes: classes of each task.
        mass: percent of a touched row's attention that was on the removed entries.
        empty_rows: rows, over all images, of which "mask" left nothing; they stay 0.
        old_readouts_identical: whether the read-outs of all experts before the first one touched are the same to the
            last bit; None if expert 1 was touched.
        moved: for each expert the largest change of any of its outputs (read-outs); exactly 0.0 are the same bits.
        groups_before, groups_after: the attention groups of all attention that has rows for the labelling, or None.
            Under "zero" and "mean" rows do not sum to 1, and shares after are in units of a whole row.
    """

    def __init__(self, how: str, removal: Removal, task_classes: tuple[int, ...]) -> None:
        self.how, self.removal, self.what, self.task_classes = how, removal, removal.what, task_classes
        self.first = min(removal.experts)
        self.mass, self.empty_rows = float("nan"), 0
        self.old_readouts_identical: bool | None = None if self.first == 1 else True
        self.moved: list[float] = []
        self.groups_before: AttentionGroups | None = None
        self.groups_after: AttentionGroups | None = None
        self.before = self.after = self.index = torch.zeros(0)
        self.labels: Tensor | None = None
        self._parts: list[tuple[Tensor, Tensor, Tensor, Tensor | None]] = []

    def add(self, some: ImageBatch, before: Output, after: Output) -> None:
        """Takes the outputs of a batch."""
        self._parts.append((before.logits.float().cpu(), after.logits.float().cpu(), some.numbers, some.labels))
        largest = [float((new - old).abs().max()) for old, new in zip(before.readouts, after.readouts, strict=True)]
        self.moved = [max(pair) for pair in zip(self.moved or largest, largest, strict=True)]
        for one, other in zip(before.readouts[: self.first - 1], after.readouts, strict=False):
            self.old_readouts_identical = bool(self.old_readouts_identical and torch.equal(one, other))

    def done(self) -> "Ablation":
        """Joins the batches."""
        before, after, index, labels = zip(*self._parts, strict=True)
        self.before, self.after, self.index = torch.cat(before), torch.cat(after), torch.cat(index).cpu()
        self.labels = None if any(part is None for part in labels) else torch.cat(labels).cpu()
        self._parts = []
        return self

    @property
    def warning(self) -> str:
        """What to beware of: "mask" in task attention; else ""."""
        return warning(self.how, self.removal.kinds)

    @property
    def change(self) -> Tensor:
        """After minus before, for every logit: (n, classes)."""
        return self.after - self.before

    def table(self) -> "pd.DataFrame":
        """One row for all images and, where there are labels, one per task.

        Returns:
            Columns ``task`` ("all", 1, 2, ..), ``images``, ``before %`` and ``after %`` accuracy, ``loss`` = before -
            after in percentage points with ``+-`` the half width of its 95% interval over images, ``changed %`` of the
            answers, ``mean |logit change|``. Without labels there are no accuracies and no tasks. Images of classes
            that the network has not learned are in no row that has accuracies.
        """
        import pandas as pd

        if self.labels is None:
            changed = self.before.argmax(1) != self.after.argmax(1)
            row = {"task": ALL, "images": len(self.before), "changed %": 100 * float(changed.double().mean())}
            return pd.DataFrame([row | {"mean |logit change|": float(self.change.abs().double().mean())}])
        tally = Tally(self.task_classes)
        tally.add(self.before, self.after, self.labels)
        places: list[str | int] = [ALL, *tally.tasks()]
        return pd.DataFrame([{"task": task, **tally.row(task)} for task in places])

    def __repr__(self) -> str:
        empty = f"; {self.empty_rows} rows left empty" if self.empty_rows else ""
        text = f"Ablation({self.how}: {self.what}; {self.mass:.1f}% of these rows' attention{empty})"
        text += f"\nBeware: {self.warning}" if self.warning else ""
        return f"{text}\n{brief(self.table())}"


class Tally:
    """Counts of answers before and after, by task, added up over batches. Rows are tasks."""

    def __init__(self, task_classes: tuple[int, ...]) -> None:
        self.ends = torch.tensor(task_classes).cumsum(0)
        self.counts = torch.zeros(len(task_classes), 6, dtype=torch.float64)

    def add(self, before: Tensor, after: Tensor, labels: Tensor) -> None:
        """Logits (n, classes) and ranks (n,); images of unknown classes are left out."""
        known = (labels >= 0) & (labels < int(self.ends[-1]))
        before, after, labels = before[known.to(before.device)], after[known.to(after.device)], labels[known].cpu()
        answers = [logits.argmax(1).cpu() for logits in (before, after)]
        was, now = (answer == labels for answer in answers)
        change = (after - before).abs().double().mean(1).cpu() if len(labels) else torch.zeros(0)
        columns = [torch.ones(len(labels)), was, now, was != now, answers[0] != answers[1], change]
        task = torch.bucketize(labels, self.ends, right=True)
        self.counts.index_add_(0, task, torch.stack([c.double() for c in columns], 1))

    def tasks(self) -> list[int]:
        """The tasks that have images."""
        return [number for number, count in enumerate(self.counts[:, 0].tolist(), start=1) if count]

    def row(self, task: int | str) -> dict[str, Any]:
        """The columns of `Ablation.table` for a task, or "all"; NaN without images."""
        sums = self.counts.sum(0) if task == ALL else self.counts[int(task) - 1]
        images, was, now, flipped, changed, change = sums.tolist()
        n = images or float("nan")
        loss = (was - now) / n
        return {
            "images": int(images),
            "before %": 100 * was / n,
            "after %": 100 * now / n,
            "loss": 100 * loss,
            "+-": 196 * max(flipped / n - loss**2, 0.0) ** 0.5 / n**0.5,
            "changed %": 100 * changed / n,
            "mean |logit change|": change / n,
        }


def ablate(
    model: nn.Module,
    images: Images,
    kind: Names = None,
    layer: Numbers = None,
    expert: Numbers = None,
    head: Numbers = None,
    *,
    reads: Reads = None,
    key_head: Numbers = None,
    group: Names = None,
    labelling: str | Labelling = "groups",
    how: str = MEAN,
    groups: bool = True,
    batch_size: int = 64,
    replicates: int = REPLICATES,
    progress: bool = True,
    views: Views | None = None,
    means: Means | None = None,
) -> Ablation:
    """Takes connections out of a network's attention and says what changes.

        lost = lab.ablate(run.model, stream.test_images(500), group=("SPDH", "DPDH"), how="zero")
        lost.table()  # accuracy before and after, overall and by task
        lab.ablate(run.model, stream.test_images(500), kind="task1", expert=4, reads=2)  # expert 2 to expert 4

    What goes are the entries that all choices (None: any) have in common. Both passes run the same way, listening at
    the same points, so experts before the first one touched are the same to the last bit.

    Args:
        model: an `ExpandableViT`, or a module that holds one.
        images: a `Batch` (stream.test_images), a tensor, or any number of them in a list; uint8. Accuracies need a
            `Batch`, which has labels; of images whose class the network has not learned only logits are kept.
        kind, layer, expert, head: whose attention, as in `probe`: ``expert`` and ``head`` are the query's.
        reads: the experts whose keys go, or "others": all but the query's own, or "between": those but expert 1.
        key_head: the heads, within their expert, whose keys go.
        group: one or several names of ``labelling``, such as ("SPDH", "DPDH"), or "class" for class-token keys. Without
            ``kind``: in every kind of attention that has rows for the labelling; so the four groups leave class
            attention, and what class tokens look at, as they are.
        labelling: as in `attention_groups`: "groups", "rings", "experts", ..., or your own.
        how: "mean" asks whether the attention matters: each entry becomes its mean over the images in the intact
            network (one more pass; rows need not sum to 1), so the connection stays and what depends on the image goes.
            "zero" asks whether the connection matters: the entries become 0. "mask": zero, then each row is divided by
            what is left of it (for a plain softmax that is masking the scores; for the gated mixture of gpsa it is the
            definition); a row with nothing left stays 0: `Ablation.empty_rows` counts them. In task attention "mask"
            warns: rows are scaled by lambda, so what is left is multiplied.
        groups: also measure the attention groups before and after, by ``labelling``. It listens to all attention.
        batch_size: images at a time.
        replicates: of the bootstrap over images, for the groups.
        progress: show a bar.
        views: what `removal.views_of` found of this network before, which spares a pass of one image.
        means: for "mean", what `means_of` found on other images, such as the data set that a single image is from.

    Raises:
        LabError: nothing selected, a choice that does not exist or has no such entry (lists what there is), an unknown
            ``how``, images of another size, no image. Hooks are gone then too.
    """
    network = find_network(model, "ablate")
    taken = removal(network, kind, layer, expert, head, reads, key_head, group, labelling, views)
    mine = Means(taken.masks) if how == MEAN and means is None else None
    intervention = Intervention(taken, how, mine or means)
    warn_of(how, taken.kinds)
    chosen = find_labelling(labelling, network.heads, network.grid)
    there = dict.fromkeys(entry[0] for entry in find_host(network).entries)
    kinds = kinds_with_rows(list(there), chosen) if groups else []
    counted = tuple(Accumulator(chosen, replicates) for _ in range(2))
    result = Ablation(how, taken, network.task_classes)
    with evaluating(network), _bar(progress) as bar:
        if mine is not None:
            measure_means(network, images, mine, batch_size, bar)
        with (
            intended_rows(),
            probe(network, *_place(taken), keep=False, replace=intervention),
            _reading(network, kinds, counted, intervention),
        ):
            for some in image_batches(images, batch_size):
                outputs = []
                for intervention.on in (False, True):
                    if kinds:
                        counted[intervention.on].begin(some.numbers)
                    outputs.append(network(_on(network, some)))
                    bar.update(len(some.images))
                result.add(some, *outputs)
    result.mass, result.empty_rows = intervention.mass, intervention.empty
    if kinds:
        result.groups_before, result.groups_after = (AttentionGroups(a, ATTENTION, False) for a in counted)
    return result.done()


def means_of(model: nn.Module, images: Images, batch_size: int = 64) -> Means:
    """The mean over images of all attention maps of a network, for ``how="mean"`` on other images than these."""
    network = find_network(model, "ablate")
    means = Means(entry[:3] for entry in find_host(network).entries)
    with evaluating(network), _bar(False) as bar:
        measure_means(network, images, means, batch_size, bar)
    return means


def measure_means(network: ExpandableViT, images: Images, means: Means, batch_size: int, bar: tqdm) -> None:
    """The first pass of "mean": what the entries are in the intact network.

    Raises:
        LabError: images that can be read only once.
    """
    check_repeatable(images, "how = 'mean'")
    with probe(network, *means.place, keep=False, read=means.read):
        for some in image_batches(images, batch_size):
            network(_on(network, some))
            means.count(len(some.images))
            bar.update(len(some.images))


def warn_of(how: str, kinds: Iterable[str]) -> None:
    """Warns the user of "mask" in task attention."""
    if text := warning(how, kinds):
        warnings.warn(text, stacklevel=3)


def check_repeatable(images: Images, why: str) -> None:
    """Raises a `LabError` for an iterator, which is used up by a first pass."""
    if isinstance(images, Iterator):
        raise LabError(f"{why} goes through the images several times, and these can be read once: give them as a list.")


@contextlib.contextmanager
def intended_rows() -> Iterator[None]:
    """Inside, the probe does not warn of rows that do not sum to 1: here that is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="probe: rows of the replaced map")
        yield


def _place(removal: Removal) -> tuple[list[str], list[int], list[int]]:
    return removal.kinds, removal.layers, removal.experts


def _on(network: ExpandableViT, some: ImageBatch) -> Tensor:
    return some.images.to(network.mean.device)


def _bar(progress: bool) -> tqdm:
    return tqdm(desc="ablation", unit="image", disable=None if progress else True, leave=False)


@contextlib.contextmanager
def _reading(
    network: ExpandableViT, kinds: list[str], counted: tuple[Accumulator, ...], intervention: Intervention
) -> Iterator[None]:
    """Inside, the groups are counted; a probe within that of the cutter, so it reads what that one returns."""
    if not kinds:
        yield
        return

    def read(attention: Tensor, axes: Axes) -> None:
        counted[intervention.on].add(attention, axes)

    with probe(network, kinds, keep=False, read=read):
        yield


# What if: one choice of connections taken out by `ablate`, and what it does to an image and to every expert.

NOTHING = "nothing is off"


@dataclass(frozen=True)
class Selection:
    """Which connections are off: those that all fields (None, no group: any) have in common; by itself nothing is.

    Attributes:
        reads: an expert whose heads are not read, or "others": all but the reader itself. Without a reader an expert is
            cut off from all later ones, not from itself.
        expert: the reader.
        kind, layer: where.
        group: SPSH, SPDH, DPSH, DPDH.
        how: "mean", "zero" or "mask", see `ablate`.
    """

    reads: int | str | None = None
    expert: int | None = None
    kind: str | None = None
    layer: int | None = None
    group: tuple[str, ...] = ()
    how: str = MEAN

    @property
    def nothing(self) -> bool:
        """Whether all connections are on."""
        return self.reads is None and not self.group

    def arguments(self, experts: int) -> dict[str, Any]:
        """The arguments of `ablate`, for a network of so many experts; a `LabError` where no later one is left."""
        readers: Any = self.expert
        if readers is None and isinstance(self.reads, int):
            if self.reads >= experts:
                raise LabError(
                    f"no later expert reads expert {self.reads}, the newest. Choose an earlier one, or name the "
                    f"reader: as read by expert {self.reads} itself."
                )
            readers = list(range(self.reads + 1, experts + 1))
        found = {"reads": self.reads, "expert": readers, "kind": self.kind, "layer": self.layer}
        return {**found, "group": self.group or None, "how": self.how}


@dataclass(frozen=True, eq=False)
class WhatIf:
    """What a choice does: in words ``what`` is off, logits ``before`` and ``after`` (n, classes), and for each expert
    the largest change of its outputs, ``moved``; exactly 0.0 are the same bits."""

    what: str
    before: Tensor
    after: Tensor
    moved: list[float]

    def classes(self, image: int = 0, count: int = 5) -> "pd.DataFrame":
        """The ``count`` best classes before and after: class, logit before, logit after, change, softmax of both."""
        import pandas as pd

        old, new = self.before[image].double(), self.after[image].double()
        best = {rank for logits in (old, new) for rank in logits.argsort(descending=True)[:count].tolist()}
        ranks = sorted(best, key=lambda rank: -float(old[rank]))
        rows: dict[str, Any] = {"class": ranks, "logit before": old[ranks], "logit after": new[ranks]}
        rows["change"] = rows["logit after"] - rows["logit before"]
        rows |= {"softmax before": old.softmax(0)[ranks], "softmax after": new.softmax(0)[ranks]}
        return pd.DataFrame({name: np.asarray(values) for name, values in rows.items()})


def what_if(
    network: ExpandableViT,
    images: Tensor,
    selection: Selection,
    views: Views | None = None,
    means: Means | None = None,
) -> WhatIf:
    """Runs images (n, C, H, W) uint8 with everything on and with a choice off.

    ``views`` of the network, from `removal.views_of`, spare a pass; ``means`` of a data set, from `ablation.means_of`,
    are what "mean" puts in place of attention (default: the mean over these images: of a single one, its own).

    Raises:
        LabError: the network has no such connection; see `ablate`.
    """
    if selection.nothing:
        logits = _logits(network, images)
        return WhatIf(NOTHING, logits, logits, [0.0] * len(network.heads))
    asked = selection.arguments(len(network.heads))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mask multiplies")  # the choice itself says so
        found = ablate(network, images, **asked, groups=False, progress=False, views=views, means=means)
    return WhatIf(f"off ({found.how}): {found.what}", found.before, found.after, found.moved)


def accuracy(network: ExpandableViT, images: Batch, selection: Selection) -> "pd.DataFrame":
    """`Ablation.table` of labelled images: accuracy before and after, over all and by task."""
    import pandas as pd

    if not selection.nothing:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="mask multiplies")
            return ablate(
                network, images, **selection.arguments(len(network.heads)), groups=False, progress=False
            ).table()
    tally, logits = Tally(network.task_classes), _logits(network, images.images)
    tally.add(logits, logits, images.labels)
    places: list[Any] = [ALL, *tally.tasks()]
    return pd.DataFrame([{"task": task, **tally.row(task)} for task in places])


def _logits(network: ExpandableViT, images: Tensor) -> Tensor:
    with evaluating(network) as device:
        return torch.cat([network(some.images.to(device)).logits.float().cpu() for some in image_batches(images, 64)])
