"""What vision transformers of other libraries share: one sequence of tokens, one attention a block, one "expert"."""

from collections.abc import Sequence

from torch import Tensor, nn

from dne_lab.analysis.hosts.base import POSITION, Entry, Place
from dne_lab.errors import LabError
from dne_lab.models.attention import SPATIAL, Axes


class ForeignViT:
    """Base of the adapters: kind spatial, layer = block from 0, all heads of expert 1, layout "b h p kp".

    Args:
        title: what it is called in messages.
        network: the transformer.
        attentions: the attention module of each block, in order.
        heads: of each block.
        classes: tokens before the patches.
        grid: rows and columns of patches.

    Raises:
        LabError: if blocks share an attention module, so that a map could not be given to one of them.
    """

    def __init__(
        self,
        title: str,
        network: nn.Module,
        attentions: Sequence[nn.Module],
        heads: Sequence[int],
        classes: int,
        grid: tuple[int, int],
    ) -> None:
        named = {part: name for name, part in network.named_modules()}
        if len({*attentions}) < len(attentions):
            raise LabError(
                f"probe cannot listen to {title}: blocks share one attention module, so that no map of it belongs to a "
                "layer."
            )
        self.title, self.network, self.attentions, self.classes, self.grid = title, network, attentions, classes, grid
        self.names: dict[Place, str] = {(SPATIAL, layer): named[part] for layer, part in enumerate(attentions)}
        self.entries: list[Entry] = [(SPATIAL, i, 1, head) for i, count in enumerate(heads) for head in range(count)]

    def refuse(self, part: str, replacing: bool) -> None:
        """There is no positional part: positions are added to the tokens, so that all attention is content."""
        if part == POSITION:
            raise LabError(
                f"part = {POSITION!r}: {self.title} adds positions to its tokens and mixes no positional attention in. "
                "What it attends to is part = 'attention', and 'content' is the same."
            )

    def axes(self, layer: int, values: Tensor) -> Axes:
        """The axes of ``values`` (b, h, tokens, tokens) at a block.

        Raises:
            LabError: if there are not as many tokens as patches and class tokens.
        """
        rows, columns = self.grid
        expected = self.classes + rows * columns
        if values.shape[-2:] != (expected, expected):
            raise LabError(
                f"{self.names[SPATIAL, layer]} of {self.title} got {values.shape[-1]} tokens, where {self.classes} "
                f"before the patches and {rows} x {columns} patches make {expected}: which patches these are is not "
                "known. Patch dropout leaves some out in training (model.eval() ends that)."
            )
        heads = values.shape[1]
        expert, head = (1,) * heads, tuple(range(heads))
        return Axes(SPATIAL, "b h p kp", layer, expert, head, expert, head, None, self.grid, self.classes)
