"""What a network has to offer so that `probe` can listen to it, whoever wrote it."""

import contextlib
from collections.abc import Callable, Mapping, Set
from typing import Protocol

from torch import Tensor, nn

from dne_lab.models.attention import Axes

ATTENTION, CONTENT, POSITION = PARTS = ("attention", "content", "position")
Entry = tuple[str, int, int, int]  # kind, layer, expert, head
Place = tuple[str, int]  # kind, layer: one attention point
Hear = Callable[[Tensor, Axes], Tensor | None]


class Host(Protocol):
    """A network and its attention points.

    Attributes:
        title: what it is called in messages.
        network: the module whose call is one forward pass.
        grid: (rows, columns) of patches, of the size of image that the network was made for.
        names: the name of each attention point within ``network``.
        entries: every (kind, layer, expert, head) for which it computes attention.
    """

    title: str
    network: nn.Module
    grid: tuple[int, int]
    names: dict[Place, str]
    entries: list[Entry]

    def refuse(self, part: str, replacing: bool) -> None:
        """Raises a `LabError` with the reason if this network can never give ``part``, or take a replacement."""

    def listen(self, wanted: Mapping[Place, Set[int]], part: str, hear: Hear, hooks: contextlib.ExitStack) -> None:
        """From now on, whenever a wanted point computes attention, calls ``hear(probabilities, axes)``.

        What ``hear`` returns is used instead, unless it is None. Closing ``hooks`` undoes everything, and nothing else.

        Args:
            wanted: points, and the experts to listen to at each.
            part: one of `PARTS`.
            hear: gets the tensor on its device, as ``axes.layout`` says, with whatever graph it has.
            hooks: takes what undoes it.
        """


def heads_of(host: Host) -> tuple[int, ...]:
    """The heads of each expert, in order."""
    heads: dict[int, int] = {}
    for _, _, expert, head in host.entries:
        heads[expert] = max(heads.get(expert, 0), head + 1)
    return tuple(heads[expert] for expert in sorted(heads))
