"""Cost of the transformers in closed form: what `measure.cost` counts, to the last operation, without a model.

Literal FLOPs are those of `total`. Spent ones follow the normal path (`models.block`): experts run in banks, each
padded to its widest, no key is projected, frozen products of weights are prepared once. A thousand tasks take a second,
where their weights would take 100 GB.
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from dne_lab.core.config import Network
from dne_lab.core.errors import LabError
from dne_lab.models import backbone
from dne_lab.models.expandable import bank_sizes
from dne_lab.models.image_model import patch_grid
from dne_lab.models.variants import Variant

# The complexity formula: FLOPs of one image on the literal path, term by term, without building a model.


class Terms(NamedTuple):
    """FLOPs (2 x multiply-accumulate) that one expert adds to one image, by part."""

    embedding: int
    attention: int
    mixing: int
    task_attention: int
    lateral: int

    @property
    def total(self) -> int:
        """All parts."""
        return sum(self)


def expert_terms(
    network: Network,
    variant: Variant,
    heads: Sequence[int],
    shape: tuple[int, int, int] = (3, 32, 32),
    values: int | None = None,
) -> list[Terms]:
    """What each expert costs; the sum over the first T of them is F after task T but for the classifier.

    With N patches, D = head width, C = D H_t, A = heads of experts 1..t, n tokens (N, or N + 1 with a class token) and
    m of them that ask (n, or the class token alone in the last block with class attention), a block multiplies

    * spatial attention (eq. 12): 4 n C^2 + 2 n^2 C; class attention: 2 C^2 + 2 (N + 1) C^2 + 2 (N + 1) C;
    * joint attention: 2 n A D^2 + m H_t D^2 + 2 m n A C + m C^2, and (2 D + 2) C for the class token's own key;
    * each of the two linear layers of an MLP: gamma m C^2;
    * a task attention block from a to b numbers per head: m (H_t a^2 + A a^2 + H_t A a + A a b + H_t A b);
    * a lateral map (eq. 11): n A D C.

    Under a control A counts the heads that are read; fixed task weights leave m (A a b + H_t A b) of a block.

    Args:
        heads: of every expert.
        shape: (channels, height, width) of the images.
        values: numbers in a patch, where they are not its pixels (a stem's).
    """
    patches = (shape[1] // network.patch) * (shape[2] // network.patch)
    values = shape[0] * network.patch**2 if values is None else values
    width, ratio = network.head_width, network.ratio
    class_attention = network.readout == "class_attention"
    found = []
    for number, own in enumerate(heads, start=1):
        channels, later = width * own, number > 1
        everyone, chosen = variant.heads_read(heads[:number]), variant.heads_read_most(heads[:number])
        attention = mixing = task = lateral = 0
        for layer in range(network.depth):
            reads_out = class_attention and layer == network.depth - 1
            tokens = patches if class_attention and not reads_out else patches + 1
            asking = 1 if reads_out else tokens
            if later and variant.joint:
                keys = patches if reads_out else tokens
                attention += 2 * keys * everyone * width**2 + asking * own * width**2 + asking * channels**2
                seen = 1 if reads_out and variant.masked in ("DPDH", "both") else everyone
                attention += 2 * asking * keys * seen * channels + reads_out * (2 * width + 2) * channels
            elif reads_out:
                attention += 2 * channels**2 + 2 * tokens * channels**2 + 2 * tokens * channels
            else:
                attention += 4 * tokens * channels**2 + 2 * tokens**2 * channels
            for block, a, b in ((variant.task1, width, ratio * width), (variant.task2, ratio * width, width)):
                if later and block:
                    task += asking * (chosen * a * b + own * chosen * b)
                    if variant.weights == "learned":
                        task += asking * ((own + chosen) * a**2 + own * chosen * a)
                else:
                    mixing += asking * ratio * channels**2
            if later and variant.lateral:
                lateral += tokens * everyone * width * channels
        found.append(Terms(*(2 * n for n in (patches * values * channels, attention, mixing, task, lateral))))
    return found


def total(
    network: Network,
    variant: Variant,
    heads: Sequence[int],
    tasks: Sequence[int] = (),
    shape: tuple[int, int, int] = (3, 32, 32),
    values: int | None = None,
) -> list[int]:
    """F after each task in FLOPs of one image: the running sum of `expert_terms`, and the classifier.

    Args:
        heads: of every expert.
        tasks: classes of every task, for the classifier: classes seen x sum of the C_t; left out, it is not counted.
        shape, values: see `expert_terms`.
    """
    terms = expert_terms(network, variant, heads, shape, values)
    sums = list(itertools.accumulate(expert.total for expert in terms))
    if not tasks:
        return sums
    widths = itertools.accumulate(network.head_width * own for own in heads)
    seen = itertools.accumulate(tasks)
    return [cost + 2 * width * classes for cost, width, classes in zip(sums, widths, seen, strict=True)]


def paper_bound(heads: int = 12, patches: int = 196) -> int:
    """The paper's bound: DNE with one head is cheaper than IA with ``heads`` for T < H^2 + (H - 1) P (printed: 2,300).

    It follows from the paper's orders of computation, T H P D^2 (P + H) for IA and T H P D^2 (P + T H) for DNE, whose
    O(P^2 D^2) for spatial attention should be O(P^2 D + P D^2) (`expert_terms` has what is counted). It takes DNE's
    first expert to have one head too; with 12 of them see `cheaper_until`.
    """
    return heads**2 + (heads - 1) * patches


def cheaper_until(
    network: Network,
    dense: Variant,
    independent: Variant,
    later: int = 1,
    shape: tuple[int, int, int] = (3, 32, 32),
    most: int = 4000,
) -> int:
    """The largest T at which ``dense``, with ``later`` heads after the first expert, costs less than ``independent``
    with the first expert's heads in every expert (literal FLOPs).

    Raises:
        LabError: it is still cheaper at ``most`` tasks.
    """
    first = network.heads[0]
    one = total(network, independent, [first, first], shape=shape)
    sums = total(network, dense, [first, *[later] * (most - 1)], shape=shape)
    for tasks, cost in enumerate(sums, start=1):
        if tasks > 1 and cost >= one[0] + (tasks - 1) * (one[1] - one[0]):
            return tasks - 1
    raise LabError(f"{dense.name} is cheaper up to {most} tasks: give a larger `most`.")


class Images(NamedTuple):
    """What experts see of an image (C, H, W): patches of ``values`` numbers; ``before``: FLOPs of a stem."""

    shape: tuple[int, int, int]
    patches: int
    values: int
    before: int = 0


def pixels(network: Network, shape: tuple[int, int, int]) -> Images:
    """The image itself, cut into patches."""
    if network.backbone is not None:  # which has a patch, and images of one size
        backbone.check(network, shape)
    rows, columns = patch_grid(shape, network.patch)
    return Images(shape, rows * columns, shape[0] * network.patch**2)


def bank_macs(
    network: Network, variant: Variant, heads: Sequence[int], total: int, seen: Images, first: bool, chosen: int
) -> int:
    """Multiply-adds of one bank for one image, on the normal path.

    Args:
        heads: of its experts; it is padded to K, the most of them.
        total: heads that are read: of all experts up to its last one, where nothing is controlled.
        first: whether it is expert 1, a plain transformer.
        chosen: heads that its task attention blocks read.
    """
    width, ratio, depth = network.head_width, network.ratio, network.depth
    size, most, real = len(heads), max(heads), sum(heads)
    channels, padded = width * most, size * most
    class_attention = network.readout == "class_attention"
    joint, lateral = variant.joint and not first, variant.lateral and not first
    each = variant.projections == "each"
    unfused = not first and (variant.entropy is not None or variant.mass != "free")
    alike = variant.weights == "uniform" or (variant.weights == "means" and most == 1)
    found = size * seen.patches * seen.values * channels  # patch embedding
    for layer in range(depth):
        reads_out = class_attention and layer == depth - 1
        tokens = seen.patches + (not class_attention or reads_out)
        asking = 1 if reads_out else tokens
        gated = network.spatial == "gpsa" and layer < depth - 1 and not unfused
        if lateral:
            found += size * tokens * total * width * channels
        if reads_out and joint:  # query and value maps; scores and mixture over the patches of all heads
            found += (2 + each) * padded * width**2 + 2 * padded * width * total * seen.patches
            found += each * 2 * seen.patches * total * width**2
        elif reads_out:  # query; W_k^T q and W_v a head; scores and mixture over raw tokens
            found += size * channels**2 + 2 * padded * width * channels + 2 * padded * channels * tokens
        elif joint:
            found += 2 * padded * tokens * total * tokens * width
            found += tokens * width**2 * (padded + 2 * total if each else 2 * padded)
            if gated:  # the mean of the heads that may be read, a product for several experts; then at positions
                found += (size > 1) * padded * total * tokens * width + padded * tokens**2 * width
        else:
            found += 3 * size * tokens * channels**2 + (2 + gated) * padded * tokens**2 * width
        found += size * asking * channels**2  # output projection
        for task, a, b in ((variant.task1, width, ratio * width), (variant.task2, ratio * width, width)):
            if first or not task:
                found += size * asking * most * a * most * b
                continue
            found += asking * size * chosen * a * b  # one product, or values projected once
            if alike:
                continue
            found += asking * padded * chosen * b  # a @ b_v
            if variant.weights == "learned":
                found += asking * (padded * a**2 + real * a * chosen)  # queries, scores
            if most > 1 or a > b:
                found += asking * padded * chosen * b  # and mixed
    return found


def experts_flops(
    network: Network, variant: Variant, heads: Sequence[int], seen: Images, since: int = 1
) -> tuple[list[int], list[int]]:
    """FLOPs of one image through the first ``since``, ``since`` + 1, ... experts, without stem and classifier: literal
    and spent."""
    terms = expert_terms(network, variant, heads, seen.shape, seen.values)
    literal = list(itertools.accumulate(term.total for term in terms))[since - 1 :]
    if variant.computes_otherwise:  # one expert at a time
        alone = [
            bank_macs(network, variant, heads[t : t + 1], variant.heads_read(heads[: t + 1]), seen, t == 0,
                      variant.heads_read_most(heads[: t + 1]))
            for t in range(len(heads))
        ]  # fmt: skip
        return literal, [2 * macs for macs in itertools.accumulate(alone)][since - 1 :]
    return literal, [normal_flops(network, variant, heads[:done], seen) for done in range(since, len(heads) + 1)]


def normal_flops(network: Network, variant: Variant, heads: Sequence[int], seen: Images) -> int:
    """FLOPs of one image through all experts on the normal path, without stem and classifier; not of controls."""
    macs, start, total = 0, 0, 0
    for size in bank_sizes(len(heads)):
        mine = heads[start : start + size]
        total += sum(mine)
        macs += bank_macs(network, variant, mine, total, seen, start == 0, total)
        start += size
    return 2 * macs


def parameters(network: Network, variant: Variant, heads: Sequence[int], seen: Images) -> int:
    """Parameters of the last of experts with these ``heads``."""
    width, ratio, later, own = network.head_width, network.ratio, len(heads) > 1, heads[-1]
    everyone, chosen = variant.heads_read(heads), variant.heads_read_most(heads)
    others = {"all": len(heads) - 1, "own": 0}.get(variant.experts, 1)  # experts
    channels = width * own
    attention = width if later and variant.joint else channels
    found = channels * (seen.values + 1 + seen.patches + 1 + 2)  # embedding, positions, class token, last norm
    found += channels * network.depth * (network.backbone is not None and not later)  # biases of queries
    for layer in range(network.depth):
        gated = network.spatial == "gpsa" and layer < network.depth - 1
        found += 2 * attention + 3 * attention**2 + channels**2 + channels + 4 * own * gated + 2 * channels
        found += 2 * others * width**2 * (later and variant.projections == "each")
        for task, a, b in ((variant.task1, width, ratio * width), (variant.task2, ratio * width, width)):
            maps = 2 * a**2 * (variant.weights == "learned")
            found += maps + chosen * (a + 1) * b + own if later and task else own * (own * a + 1) * b
        found += 2 * ratio * channels * network.hidden_norm
        found += everyone * width * channels * (later and variant.lateral)
    return found


def rows(
    network: Network, variant: Variant, tasks: Sequence[int], seen: Images, grows: bool = True, since: int = 1
) -> list[dict[str, Any]]:
    """Cost after every task from the ``since``-th on; the keys of `cost.of_tasks`.

    Args:
        tasks: classes of every task.
        grows: whether every task brings an expert; else there is one, and the classifier alone grows.
        since: the first task that is asked for, from 1.
    """
    heads = [network.heads_of(number) for number in range(1, len(tasks) + 1)] if grows else [network.heads_of(1)]
    first = min(since, len(heads))
    literal, normal = experts_flops(network, variant, heads, seen, first)
    ends = list(itertools.accumulate(heads))
    weights = [parameters(network, variant, heads[:number], seen) for number in range(1, len(heads) + 1)]
    # a warm-up trains all that is restricted after it
    learned = variant
    if variant.restricts_task_attention:
        learned = dataclasses.replace(variant, most=None, weights="learned")
    so_far, known = list(itertools.accumulate(weights)), list(itertools.accumulate(tasks))

    def total(task: int) -> int:
        last = task - 1 if grows else 0
        return so_far[last] + known[task - 1] * (network.head_width * ends[last] + 1) if task else 0

    found: list[dict[str, Any]] = []
    for task in range(since, len(tasks) + 1):
        last = task - 1 if grows else 0
        width, classes = network.head_width * ends[last], known[task - 1]
        # what tells its classes from all old ones trains with the expert and goes with the stage
        expertise = (network.head_width * heads[last] + 1) * (tasks[last] + 1) if last else 0
        frozen = network.backbone is not None and last == 0
        trained = 0 if frozen else parameters(network, learned, heads[: last + 1], seen)
        found.append(
            {
                "task": task,
                "classes": classes,
                "flops_literal": seen.before + literal[last + 1 - first] + 2 * width * classes,
                "flops_spent": seen.before + normal[last + 1 - first] + 2 * width * classes,
                "macs_spent": (seen.before + normal[last + 1 - first]) // 2 + width * classes,
                "params_total": total(task),
                "params_trainable": trained + classes * (width + 1) + expertise,
                "params_added": total(task) - total(task - 1),
            }
        )
    return found
