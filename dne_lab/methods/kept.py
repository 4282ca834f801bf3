"""What stays the same through a stage, computed once: outputs of frozen modules for images that are not augmented."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from dne_lab.data.stream import Batch


class Kept:
    """A row for each image, found again by its number.

    Args:
        batches: the images of a stage, plain.
        function: (B, C, H, W) uint8 -> (B, d), of what does not change in the stage.
    """

    def __init__(self, batches: Iterator[Batch], function: Callable[[Tensor], Tensor]) -> None:
        parts = [(batch.index, function(batch.images)) for batch in batches]
        numbers, rows = (torch.cat(column) for column in zip(*parts, strict=True))
        order = numbers.argsort()
        self.numbers, self.rows = numbers[order], rows[order]

    def __call__(self, index: Tensor) -> Tensor:
        """(B,) image numbers -> their rows (B, d)."""
        return self.rows[torch.searchsorted(self.numbers, index)]
