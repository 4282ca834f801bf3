"""What a network loses when attention is taken out of it: `ablate`, one removal in whole forward passes."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator

from torch import Tensor, nn
from tqdm import tqdm

from dne_lab.analysis import labelling as labellings
from dne_lab.analysis.ablated import Ablation
from dne_lab.analysis.accumulate import REPLICATES, Accumulator
from dne_lab.analysis.choice import kinds_with_rows
from dne_lab.analysis.cutter import MEAN, Cutter, Means, warning
from dne_lab.analysis.hosts.find import find_host
from dne_lab.analysis.images import Images, Part, evaluating, parts
from dne_lab.analysis.labelling import Labelling
from dne_lab.analysis.probe import ATTENTION, probe
from dne_lab.analysis.probe_selection import Names, Numbers
from dne_lab.analysis.removal import Reads, Removal, Views, network_of, removal
from dne_lab.analysis.shares import AttentionGroups
from dne_lab.errors import LabError
from dne_lab.models.attention import Axes
from dne_lab.models.expandable import ExpandableViT


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
    network = network_of(model)
    taken = removal(network, kind, layer, expert, head, reads, key_head, group, labelling, views)
    mine = Means(taken.masks) if how == MEAN and means is None else None
    cutter = Cutter(taken, how, mine or means)
    beware(how, taken.kinds)
    chosen = labellings.find(labelling, network.heads, network.grid)
    there = dict.fromkeys(entry[0] for entry in find_host(network).entries)
    kinds = kinds_with_rows(list(there), chosen) if groups else []
    counted = tuple(Accumulator(chosen, replicates) for _ in range(2))
    result = Ablation(how, taken, network.task_classes)
    with evaluating(network), _bar(progress) as bar:
        if mine is not None:
            learn(network, images, mine, batch_size, bar)
        with (
            intended_rows(),
            probe(network, *_place(taken), keep=False, replace=cutter),
            _reading(network, kinds, counted, cutter),
        ):
            for some in parts(images, batch_size):
                outputs = []
                for cutter.on in (False, True):
                    if kinds:
                        counted[cutter.on].begin(some.numbers)
                    outputs.append(network(_on(network, some)))
                    bar.update(len(some.images))
                result.add(some, *outputs)
    result.mass, result.empty_rows = cutter.mass, cutter.empty
    if kinds:
        result.groups_before, result.groups_after = (AttentionGroups(a, ATTENTION, False) for a in counted)
    return result.done()


def means_of(model: nn.Module, images: Images, batch_size: int = 64) -> Means:
    """The mean over images of all attention maps of a network, for ``how="mean"`` on other images than these."""
    network = network_of(model)
    means = Means(entry[:3] for entry in find_host(network).entries)
    with evaluating(network), _bar(False) as bar:
        learn(network, images, means, batch_size, bar)
    return means


def learn(network: ExpandableViT, images: Images, means: Means, batch_size: int, bar: tqdm) -> None:
    """The first pass of "mean": what the entries are in the intact network.

    Raises:
        LabError: images that can be read only once.
    """
    check_repeatable(images, "how = 'mean'")
    with probe(network, *means.place, keep=False, read=means.read):
        for some in parts(images, batch_size):
            network(_on(network, some))
            means.counted(len(some.images))
            bar.update(len(some.images))


def beware(how: str, kinds: Iterable[str]) -> None:
    """Warns the user of "mask" in task attention."""
    if told := warning(how, kinds):
        warnings.warn(told, stacklevel=3)


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


def _on(network: ExpandableViT, some: Part) -> Tensor:
    return some.images.to(network.mean.device)


def _bar(progress: bool) -> tqdm:
    return tqdm(desc="ablation", unit="image", disable=None if progress else True, leave=False)


@contextlib.contextmanager
def _reading(
    network: ExpandableViT, kinds: list[str], counted: tuple[Accumulator, ...], cutter: Cutter
) -> Iterator[None]:
    """Inside, the groups are counted; a probe within that of the cutter, so it reads what that one returns."""
    if not kinds:
        yield
        return

    def read(part: Tensor, axes: Axes) -> None:
        counted[cutter.on].add(part, axes)

    with probe(network, kinds, keep=False, read=read):
        yield
