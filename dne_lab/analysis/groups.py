"""Where attention goes, over a data set: shares by group and fragmentation, with uniform references and intervals."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from tqdm import tqdm

from dne_lab.analysis import labelling as labellings
from dne_lab.analysis.accumulate import REPLICATES, Accumulator
from dne_lab.analysis.choice import choose
from dne_lab.analysis.hosts.base import Host, heads_of
from dne_lab.analysis.hosts.find import find_host
from dne_lab.analysis.images import Images, evaluating, parts
from dne_lab.analysis.labelling import Labelling
from dne_lab.analysis.null import shuffled_reader
from dne_lab.analysis.probe import ATTENTION, Read, probe
from dne_lab.analysis.probe_selection import Names, Numbers
from dne_lab.analysis.shares import AttentionGroups
from dne_lab.errors import LabError
from dne_lab.models.attention import JOINT

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
        shuffled: the null model: every expert reads the other experts' tokens of another image (see
            `dne_lab.analysis.null`), so that nothing is left of what it finds because both look at the same picture.
        progress: show a bar.

    Raises:
        LabError: a choice that matches no point or gives no row, images of another size, no image, a labelling of the
            wrong shape. Hooks are gone then too.
    """
    host = find_host(model)
    chosen = labellings.find(labelling, heads_of(host), host.grid)
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
        for some in parts(images, _at_once(host, batch_size), spread=shuffled):
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
