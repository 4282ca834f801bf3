"""Cost of the transformers in closed form: what `measure.cost` counts, to the last operation, without a model.

Literal FLOPs are those of `complexity`. Spent ones follow the normal path (`models.block`): experts run in banks, each
padded to its widest, no key is projected, frozen products of weights are prepared once. A thousand tasks take a second,
where their weights would take 100 GB.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from dne_lab.config import Network
from dne_lab.measure import complexity
from dne_lab.models.expandable import bank_sizes
from dne_lab.models.images import patch_grid
from dne_lab.models.variants import Variant


class Images(NamedTuple):
    """What experts see of an image (C, H, W): patches of ``values`` numbers; ``before``: FLOPs of a stem."""

    shape: tuple[int, int, int]
    patches: int
    values: int
    before: int = 0


def pixels(network: Network, shape: tuple[int, int, int]) -> Images:
    """The image itself, cut into patches."""
    rows, columns = patch_grid(shape, network.patch)
    return Images(shape, rows * columns, shape[0] * network.patch**2)


def bank_macs(network: Network, variant: Variant, heads: Sequence[int], total: int, seen: Images, first: bool) -> int:
    """Multiply-adds of one bank for one image, on the normal path.

    Args:
        heads: of its experts; it is padded to K, the most of them.
        total: heads of all experts up to its last one.
        first: whether it is expert 1, a plain transformer.
    """
    width, ratio, depth = network.head_width, network.ratio, network.depth
    size, most, real = len(heads), max(heads), sum(heads)
    channels, padded = width * most, size * most
    class_attention = network.readout == "class_attention"
    joint, lateral = variant.joint and not first, variant.lateral and not first
    found = size * seen.patches * seen.values * channels  # patch embedding
    for layer in range(depth):
        reads_out = class_attention and layer == depth - 1
        tokens = seen.patches + (not class_attention or reads_out)
        asking = 1 if reads_out else tokens
        gated = network.spatial == "gpsa" and layer < depth - 1
        if lateral:
            found += size * tokens * total * width * channels
        if reads_out and joint:  # query and value maps; scores and mixture over the patches of all heads
            found += 2 * padded * width**2 + 2 * padded * width * total * seen.patches
        elif reads_out:  # query; W_k^T q and W_v a head; scores and mixture over raw tokens
            found += size * channels**2 + 2 * padded * width * channels + 2 * padded * channels * tokens
        elif joint:
            found += 2 * tokens * padded * width**2 + 2 * padded * tokens * total * tokens * width
            if gated:  # the mean of the heads that may be read, a product for several experts; then at positions
                found += (size > 1) * padded * total * tokens * width + padded * tokens**2 * width
        else:
            found += 3 * size * tokens * channels**2 + (2 + gated) * padded * tokens**2 * width
        found += size * asking * channels**2  # output projection
        for task, a, b in ((variant.task1, width, ratio * width), (variant.task2, ratio * width, width)):
            if first or not task:
                found += size * asking * most * a * most * b
                continue
            found += asking * (padded * a**2 + real * a * total + padded * total * b)  # queries, scores, a @ b_v
            found += asking * size * total * a * b  # one product, or values projected once
            if most > 1 or a > b:
                found += asking * padded * total * b  # and mixed
    return found


def experts_flops(
    network: Network, variant: Variant, heads: Sequence[int], seen: Images
) -> tuple[list[int], list[int]]:
    """FLOPs of one image through the first 1, 2, ... experts, without stem and classifier: literal and spent."""
    literal = itertools.accumulate(
        t.total for t in complexity.expert_terms(network, variant, heads, seen.shape, seen.values)
    )
    ends = [0, *itertools.accumulate(heads)]
    normal = []
    for done in range(1, len(heads) + 1):
        macs, start = 0, 0
        for size in bank_sizes(done):
            end = start + size
            macs += bank_macs(network, variant, heads[start:end], ends[end], seen, start == 0)
            start = end
        normal.append(2 * macs)
    return list(literal), normal


def parameters(network: Network, variant: Variant, number: int, own: int, everyone: int, seen: Images) -> int:
    """Parameters of expert ``number`` (from 1) with ``own`` heads; ``everyone``: those of experts 1..number."""
    width, ratio, later = network.head_width, network.ratio, number > 1
    channels = width * own
    attention = width if later and variant.joint else channels
    found = channels * (seen.values + 1 + seen.patches + 1 + 2)  # embedding, positions, class token, last norm
    for layer in range(network.depth):
        gated = network.spatial == "gpsa" and layer < network.depth - 1
        found += 2 * attention + 3 * attention**2 + channels**2 + channels + 4 * own * gated + 2 * channels
        for task, a, b in ((variant.task1, width, ratio * width), (variant.task2, ratio * width, width)):
            found += 2 * a**2 + everyone * (a + 1) * b + own if later and task else own * (own * a + 1) * b
        found += 2 * ratio * channels * network.hidden_norm
        found += everyone * width * channels * (later and variant.lateral)
    return found


def rows(
    network: Network, variant: Variant, tasks: Sequence[int], seen: Images, grows: bool = True
) -> list[dict[str, Any]]:
    """Cost after every task; the keys of `cost.of_tasks`.

    Args:
        tasks: classes of every task.
        grows: whether every task brings an expert; else there is one, and the classifier alone grows.
    """
    heads = [network.heads_of(number) for number in range(1, len(tasks) + 1)] if grows else [network.heads_of(1)]
    literal, normal = experts_flops(network, variant, heads, seen)
    ends = list(itertools.accumulate(heads))
    weights = [
        parameters(network, variant, number, own, end, seen)
        for number, (own, end) in enumerate(zip(heads, ends, strict=True), start=1)
    ]
    kept = list(itertools.accumulate(weights))
    found: list[dict[str, Any]] = []
    for task, classes in enumerate(itertools.accumulate(tasks), start=1):
        last = task - 1 if grows else 0
        width = network.head_width * ends[last]
        total = kept[last] + classes * (width + 1)
        # what tells its classes from all old ones trains with the expert and goes with the stage
        expertise = (network.head_width * heads[last] + 1) * (tasks[last] + 1) if last else 0
        found.append(
            {
                "task": task,
                "classes": classes,
                "flops_literal": seen.before + literal[last] + 2 * width * classes,
                "flops_spent": seen.before + normal[last] + 2 * width * classes,
                "macs_spent": (seen.before + normal[last]) // 2 + width * classes,
                "params_total": total,
                "params_trainable": weights[last] + classes * (width + 1) + expertise,
                "params_added": total - (found[-1]["params_total"] if found else 0),
            }
        )
    return found
