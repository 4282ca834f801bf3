"""Ways of sorting (query, key) pairs: the paper's four groups, distance, direction, experts, heads, or a user's own."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dne_lab.analysis.maps import Pairs
from dne_lab.core.errors import LabError, unknown

GROUPS = ("SPSH", "SPDH", "DPSH", "DPDH")
CLASS = "class"  # the label of class-token keys, beside those of a labelling


@dataclass(frozen=True)
class Labelling:
    """A name for every pair of a patch that looks and a patch that is looked at.

    Attributes:
        name: of the labelling.
        labels: what pairs can be called.
        of: `Pairs` -> whole numbers, places in ``labels``, in an array that broadcasts to the pairs. What it says of
            class tokens as keys is not used, they have a label of their own ("class"), nor what it says of queries that
            are not counted.
        class_queries: count the views of class tokens instead of those of patches (for attention of kind "class", and
            spatial attention under a cls_token read-out).
    """

    name: str
    labels: tuple[str, ...]
    of: Callable[[Pairs], NDArray[Any]]
    class_queries: bool = False

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) < len(self.labels) or CLASS in self.labels:
            raise LabError(
                f"labelling {self.name!r} has labels {self.labels}: give one or more different names, none of them "
                f"{CLASS!r}, which is the label of class-token keys."
            )

    def places(self, pairs: Pairs, shape: tuple[int, ...]) -> NDArray[np.int64]:
        """The labels of all pairs of a map whose shape without the image axis is ``shape``; class-token keys get
        ``len(labels)``. Of queries that are not counted they can be anything.

        Raises:
            LabError: wrong type or shape, or numbers that are no places in ``labels``.
        """
        found = np.asarray(self.of(pairs))
        try:
            found = np.broadcast_to(found, shape)
        except ValueError:
            raise LabError(
                f"labelling {self.name!r} gave an array of shape {found.shape} for pairs of shape {shape}: it must "
                "broadcast to that. Compute it from the arrays in `Pairs` alone."
            ) from None
        if not np.issubdtype(found.dtype, np.integer) and found.dtype != np.bool_:
            raise LabError(f"labelling {self.name!r} gave {found.dtype} numbers: give whole ones, places in labels.")
        token = np.broadcast_to(pairs.key_patch, shape) < 0
        places = np.where(token, len(self.labels), found.astype(np.int64))
        counted = (np.broadcast_to(pairs.query_patch, shape) < 0) == self.class_queries
        patches = places[~token & counted]
        if patches.size and not (patches.min() >= 0 and patches.max() < len(self.labels)):
            raise LabError(
                f"labelling {self.name!r} gave places from {patches.min()} to {patches.max()}: it has "
                f"{len(self.labels)} labels, so 0 to {len(self.labels) - 1}."
            )
        return places


def groups() -> Labelling:
    """SPSH, SPDH, DPSH, DPDH: Same or Different Patch, Same or Different Head (paper, figure 3)."""
    return Labelling("groups", GROUPS, lambda p: 2 * ~p.same_patch + ~p.same_head)


def rings(grid: tuple[int, int]) -> Labelling:
    """Rings around the query's patch: 0 is the patch itself, 1 its eight neighbours, ... (Chebyshev distance)."""

    def ring(pairs: Pairs) -> NDArray[Any]:
        rows, columns = pairs.offsets()
        return np.maximum(abs(rows), abs(columns))

    return Labelling("rings", tuple(f"ring {i}" for i in range(max(grid))), ring)


def directions() -> Labelling:
    """The same patch, another one in its row, another one in its column, elsewhere."""

    def place(pairs: Pairs) -> NDArray[Any]:
        rows, columns = pairs.offsets()
        return np.where(rows == 0, np.where(columns == 0, 0, 1), np.where(columns == 0, 2, 3))

    return Labelling("directions", ("same patch", "same row", "same column", "elsewhere"), place)


def experts(count: int) -> Labelling:
    """Expert by expert: whose key it is."""
    return Labelling("experts", tuple(f"expert {t}" for t in range(1, count + 1)), lambda p: p.key_expert - 1)


def heads(counts: tuple[int, ...]) -> Labelling:
    """Head by head: "2.1" is the first head of expert 2."""
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    names = tuple(f"{expert}.{head + 1}" for expert, count in enumerate(counts, start=1) for head in range(count))
    return Labelling("heads", names, lambda p: starts[p.key_expert - 1] + p.key_head)


def class_token() -> Labelling:
    """What class tokens see: patches, or (label "class") their own token."""
    return Labelling("class_token", ("patches",), lambda p: np.zeros_like(p.key_patch), class_queries=True)


NAMES = ("groups", "rings", "directions", "experts", "heads", "class_token")


def find_labelling(given: "str | Labelling", heads_of_experts: tuple[int, ...], grid: tuple[int, int]) -> Labelling:
    """A labelling by name for a network, or the user's own.

    Raises:
        LabError: an unknown name.
    """
    if isinstance(given, Labelling):
        return given
    made: dict[str, Callable[[], Labelling]] = {
        "groups": groups,
        "rings": lambda: rings(grid),
        "directions": directions,
        "experts": lambda: experts(len(heads_of_experts)),
        "heads": lambda: heads(heads_of_experts),
        "class_token": class_token,
    }
    if not isinstance(given, str) or given not in made:
        raise unknown("labelling", given, NAMES)
    return made[given]()
