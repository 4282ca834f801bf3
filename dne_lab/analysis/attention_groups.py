"""Where attention goes, over a data set: shares by group and fragmentation, with uniform references and intervals."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from dne_lab.analysis.group_tables import AttentionGroups
from dne_lab.analysis.hosts import POSITION, Entry, Host, find_host, heads_of
from dne_lab.analysis.labelling import Labelling, find_labelling
from dne_lab.analysis.probe import (
    ATTENTION,
    Images,
    Names,
    Numbers,
    Read,
    describe,
    evaluating,
    image_batches,
    probe,
    select,
)
from dne_lab.analysis.row_statistics import REPLICATES, Accumulator
from dne_lab.core.errors import LabError
from dne_lab.models.attention import CLASS, JOINT, SPATIAL, TASK1, TASK2, Axes
from dne_lab.models.bank import Context
from dne_lab.models.block import AttentionPoint

# A null model: what experts would attend to if the other experts looked at another picture.

ACROSS = (JOINT, TASK1, TASK2)  # kinds of attention in which experts read each other


class _Elsewhere(Context):
    """What the other experts offer, from other images of the batch; the expert's own tokens are those of the image."""

    def __init__(self, context: Context) -> None:
        super().__init__(context.heads)
        self.context = context

    def extend(self, name: str, own: Tensor, dim: int) -> Tensor:
        whole = self.context.so_far(name)
        before = whole.narrow(dim, 0, whole.shape[dim] - own.shape[dim])
        return torch.cat([before.roll(len(own) // 2, 0), own], dim)


@contextmanager
def shuffled_reader(host: Host, read: Read) -> Iterator[Read]:
    """Inside, what is yielded passes to ``read`` only the maps of the null model; give it to `probe`.

    At every point where experts read each other's patches the attention is computed a second time, with the tokens of
    the other experts rolled by half a batch: give batches whose halves are of different classes, as `image_batches`
    with ``spread`` makes them of images sorted by class. The network itself goes on with the true attention, so queries
    are the true ones at every layer.

    Raises:
        LabError: experts that do not read each other; inside a pass, a batch of one image.
    """
    points = [part for part in host.network.modules() if isinstance(part, AttentionPoint) and part.kind in ACROSS]
    experts = len(heads_of(host))
    if experts < 2 or not points:
        raise LabError(
            f"shuffled: the experts of this network ({host.title}, {experts} experts) do not read each other, so there "
            "is nothing to shuffle. Give a network of STA or DNE with two experts or more."
        )
    second = [False]

    def passed(attention: Tensor, axes: Axes) -> None:
        if second[0]:
            read(attention, axes)

    def second_pass(module: AttentionPoint, inputs: tuple[Any, ...], output: Tensor) -> None:
        *before, context = inputs
        images = inputs[0].shape[1]
        if images < 2:
            raise LabError("shuffled: a batch of one image has no other image. Give two or more, of several classes.")
        second[0] = True
        try:
            module.forward(*before, _Elsewhere(context))
        finally:
            second[0] = False

    with ExitStack() as hooks:
        alone = points[0].weights  # a listener that names every expert takes each out of its batch
        handle = alone.register_forward_hook(_nothing)
        hooks.callback(handle.remove)
        alone.only[handle.id] = frozenset(range(1, experts + 1))
        hooks.callback(alone.only.pop, handle.id, None)
        for module in points:
            hooks.callback(module.register_forward_hook(second_pass).remove)
        yield passed


def _nothing(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
    return None


# Which attention gives rows for a labelling: what `attention_groups` listens to.


def choose(
    host: Host,
    kind: Names,
    layer: Numbers,
    expert: Numbers,
    head: Numbers,
    labelling: Labelling,
    part: str,
    shuffled: bool,
) -> tuple[list[str], list[int]]:
    """The kinds and layers, of those that were given (None: all), that give rows.

    Raises:
        LabError: a choice that matches no point, or a kind or layer that was asked for and gives no row.
    """
    left = select(host, kind, layer, expert, head)
    why = {e: _no_row(host.entries, e, labelling, part, shuffled) for e in left}
    good = [e for e, reason in why.items() if reason is None]
    for column, given in enumerate((kind, layer)):
        seen = {e[column] for e in good}
        bare = [e for e in left if e[column] not in seen]
        if bare and (given is not None or not good):
            raise LabError(f"{describe(bare)}: no row to count, because {why[bare[0]]}.")
    return list(dict.fromkeys(e[0] for e in good)), sorted({e[1] for e in good})


def _no_row(there: list[Entry], entry: Entry, labelling: Labelling, part: str, shuffled: bool) -> str | None:
    """Why this attention gives no row; None if it does."""
    kind, layer = entry[:2]
    patchwise = kind in (SPATIAL, JOINT)
    if shuffled and kind not in ACROSS:
        return f"shuffled looks where experts read each other's patches ({', '.join(ACROSS)})"
    if part == POSITION and not patchwise:
        return f"part = {POSITION!r} is of attention between patches alone ({SPATIAL}, {JOINT})"
    if labelling.class_queries and part == POSITION:
        return f"class tokens look at content alone, without a part = {POSITION!r}"
    if labelling.class_queries:
        if kind == CLASS or (patchwise and all(e[0] != CLASS for e in there)):
            return None
        return (
            f"no class token looks at patches there, and labelling {labelling.name!r} counts the views of class tokens"
        )
    if any(e[:2] == (CLASS, layer) for e in there):
        return (
            f"only class tokens look there and labelling {labelling.name!r} counts the views of patches; "
            "labelling='class_token' shows what class tokens see"
        )
    return None


def kinds_with_rows(there: list[str], labelling: Labelling) -> list[str]:
    """Those of the kinds whose queries a labelling counts: views of class tokens, or of patches."""
    if labelling.class_queries:
        return [kind for kind in there if kind == CLASS or (CLASS not in there and kind not in (TASK1, TASK2))]
    return [kind for kind in there if kind != CLASS]


LARGEST = 8 * 2**20  # bytes of one map in float32


def attention_groups(
    model: nn.Module,
    images: Images,
    kind: Names = None,
    layer: Numbers = None,
    expert: Numbers = None,
    head: Numbers = None,
    *,
    labelling: str | Labelling = "groups",
    part: str = ATTENTION,
    batch_size: int = 64,
    replicates: int = REPLICATES,
    by_patch: bool = False,
    by_image: bool = False,
    shuffled: bool = False,
    progress: bool = True,
) -> AttentionGroups:
    """Streams images through a network and sorts its attention into groups (SPSH, SPDH, DPSH, DPDH; paper, figure 3).

        groups = lab.attention_groups(run.model, stream.test_images(200))
        groups.table()  # shares, intervals, uniform references, effective keys
        groups.table(by="layer")

    Memory grows with the number of images under ``by_image`` alone. Class tokens stand apart: as keys they are a fifth
    mass and shares are of what is left, as queries they give no row. Attention between the heads of one patch (task1,
    task2) has SPSH and SPDH only.

    Args:
        model: what `probe` takes.
        images: a `Batch` (stream.test_images), a tensor, or any number of them; uint8 for an `ExpandableViT`.
        kind, layer, expert, head: what to look at, as in `probe`; None: all that gives rows.
        labelling: "groups", "rings" (distance), "directions" (row and column), "experts" (who reads whom), "heads",
            "class_token" (what class tokens see), or a `Labelling` of your own.
        part: "attention", or under gpsa one of the two parts that the gate mixes: "content", "position".
        batch_size: images at a time; of the null model at least two.
        replicates: of the bootstrap over images; 0: no intervals.
        by_patch: keep the masses of every query patch too, for `AttentionGroups.patch_map`.
        by_image: keep how spread out every image's rows are, for `AttentionGroups.by_image` and ``plot("images")``.
        shuffled: the null model: every expert reads the other experts' tokens of another image, so that nothing is
            left of what it finds because both look at the same picture.
        progress: show a bar.

    Raises:
        LabError: a choice that matches no point or gives no row, images of another size, no image, a labelling of the
            wrong shape. Hooks are gone then too.
    """
    host = find_host(model)
    chosen = find_labelling(labelling, heads_of(host), host.grid)
    found = Accumulator(chosen, replicates, by_patch, by_image)
    if by_patch and chosen.class_queries:
        raise LabError(f"by_patch: labelling {chosen.name!r} counts the views of class tokens, which are at no patch.")
    with (
        evaluating(model) as device,
        _reading(host, found.add, shuffled) as read,
        probe(
            model,
            *choose(host, kind, layer, expert, head, chosen, part, shuffled),
            expert,
            head,
            keep=False,
            read=read,
            part=part,
        ),
        tqdm(desc="attention", unit="image", disable=None if progress else True, leave=False) as bar,
    ):
        for some in image_batches(images, _at_once(host, batch_size), spread=shuffled):
            found.begin(some.numbers)
            model(some.images.to(device))
            bar.update(len(some.images))
    return AttentionGroups(found, part, shuffled)


def _at_once(host: Host, batch_size: int) -> int:
    """Images in one pass, so that the largest map (h, p, kh, kp) of one expert stays below `LARGEST` bytes."""
    patches, heads = host.grid[0] * host.grid[1], heads_of(host)
    joint = any(entry[0] == JOINT for entry in host.entries)
    seen = [sum(heads[: number + 1]) if joint and number else 1 for number in range(len(heads))]
    most = max(own * patches * keys * patches for own, keys in zip(heads, seen, strict=True))
    return min(batch_size, max(2, LARGEST // (4 * most)))


@contextmanager
def _reading(host: Host, read: Read, shuffled: bool) -> Iterator[Read]:
    if not shuffled:
        yield read
        return
    with shuffled_reader(host, read) as passed:
        yield passed
