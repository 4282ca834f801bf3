"""The complexity formula: FLOPs of one image on the literal path, term by term, without building a model.

The paper gives orders (section 3, "Computation") for the same number of heads H in every expert. Here every product of
`models.literal` has its term, for any heads; `measure.cost` counts the same number, to the last operation (a test).
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from dne_lab.config import Network
from dne_lab.errors import LabError
from dne_lab.models.variants import Variant


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
    m of them that ask (n, or the class token alone in the last block behind class attention), a block multiplies

    * spatial attention (eq. 12): 4 n C^2 + 2 n^2 C; class attention: 2 C^2 + 2 (N + 1) C^2 + 2 (N + 1) C;
    * joint attention: 2 n A D^2 + m H_t D^2 + 2 m n A C + m C^2, and (2 D + 2) C for the class token's own key;
    * each of the two linear layers of an MLP: gamma m C^2;
    * a task attention block from a to b numbers a head: m (H_t a^2 + A a^2 + H_t A a + A a b + H_t A b);
    * a lateral map (eq. 11): n A D C.

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
        channels, everyone, later = width * own, sum(heads[:number]), number > 1
        attention = mixing = task = lateral = 0
        for layer in range(network.depth):
            reads_out = class_attention and layer == network.depth - 1
            tokens = patches if class_attention and not reads_out else patches + 1
            asking = 1 if reads_out else tokens
            if later and variant.joint:
                keys = patches if reads_out else tokens
                attention += 2 * keys * everyone * width**2 + asking * own * width**2 + asking * channels**2
                attention += 2 * asking * keys * everyone * channels + reads_out * (2 * width + 2) * channels
            elif reads_out:
                attention += 2 * channels**2 + 2 * tokens * channels**2 + 2 * tokens * channels
            else:
                attention += 4 * tokens * channels**2 + 2 * tokens**2 * channels
            for block, a, b in ((variant.task1, width, ratio * width), (variant.task2, ratio * width, width)):
                if later and block:
                    task += asking * (own * a**2 + everyone * a**2 + own * everyone * (a + b) + everyone * a * b)
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


def paper_order(tasks: int, heads: int, patches: int, width: int, dense: bool) -> int:
    """The paper's order of computation, without its constant: T H P D^2 (P + H) for IA, (P + T H) for DNE.

    Its O(P^2 D^2) for spatial attention should be O(P^2 D + P D^2); `expert_terms` has what is counted.
    """
    return tasks * heads * patches * width**2 * (patches + (tasks * heads if dense else heads))


def paper_bound(heads: int = 12, patches: int = 196) -> int:
    """The paper's bound: DNE with one head is cheaper than IA with ``heads`` for T < H^2 + (H - 1) P (printed: 2,300).

    It takes DNE's first expert to have one head too; with 12 of them see `cheaper_until`.
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
