"""A forward pass that is kept, so that passes that differ from it late share its beginning."""

from torch import Tensor

from dne_lab.models.expandable import ExpandableViT


class Again:
    """One pass over a batch, and others that begin alike.

    Expert t reads earlier experts only, and a layer what is below it. So a pass that differs from expert t, layer l on
    is computed from there: of experts before t (before its bank) and of layers below l nothing is computed again.

    Args:
        network: in evaluation mode, without gradients.
        images: (B, C, H, W) uint8.

    Attributes: ``readouts``, one (B, width_t) an expert.
    """

    def __init__(self, network: ExpandableViT, images: Tensor) -> None:
        self.network, self.banks, self.contexts = network, network.banks(), network.contexts()
        patches = network.patches(images)
        self.readouts: list[Tensor] = []
        self._inputs: list[list[Tensor]] = []  # a bank's tokens in front of every layer
        self._marks = []
        for bank in self.banks:
            self._marks.append([context.mark() for context in self.contexts])
            x, seen = network.embed(bank, patches), []
            for layer, context in enumerate(self.contexts):
                seen.append(x)
                x = network.step(bank, layer, x, context)
            self._inputs.append(seen)
            self.readouts += network.read_out(bank, x)
        self._lowest = len(self.banks)

    def from_(self, expert: int, layer: int) -> list[Tensor]:
        """The read-outs of a pass that goes on from here.

        Call it for the newest expert first and then downwards: what an expert offers to later ones is written over.

        Raises:
            ValueError: called for an earlier expert before.
        """
        start = next(place for place, bank in enumerate(self.banks) if expert in bank.numbers)
        if start > self._lowest:
            raise ValueError(f"expert {expert} after an earlier one: go from the newest expert down")
        self._lowest = start
        readouts = self.readouts[: self.banks[start].numbers[0] - 1]
        for place in range(start, len(self.banks)):
            bank, x = self.banks[place], self._inputs[place][layer]
            for block in range(layer, len(self.contexts)):
                if place == start:
                    self.contexts[block].back(self._marks[start][block])
                x = self.network.step(bank, block, x, self.contexts[block])
            readouts = readouts + self.network.read_out(bank, x)
        return readouts
