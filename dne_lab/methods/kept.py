"""What stays the same through a stage, computed once: outputs of frozen modules for images that are not augmented."""

from collections.abc import Callable, Iterator, Sequence
from typing import Self

import torch
from torch import Tensor

from dne_lab.data.stream import Batch


class Kept:
    """Rows for each image, found again by its number.

    Args:
        batches: the images of a stage, plain.
        function: (B, C, H, W) uint8 -> (B, d), or several tensors (B, ...), of what does not change in the stage.
        limit: bytes.

    Raises:
        MemoryError: the rows take more than ``limit``.
    """

    def __init__(
        self,
        batches: Iterator[Batch],
        function: Callable[[Tensor], Tensor | Sequence[Tensor]],
        limit: int | None = None,
    ) -> None:
        numbers, rows, taken = [], [], 0
        for batch in batches:
            found = function(batch.images)
            parts = [found] if isinstance(found, Tensor) else list(found)
            taken += sum(part.numel() * part.element_size() for part in parts)
            if limit is not None and taken > limit:
                raise MemoryError(f"more than {limit} bytes")
            numbers.append(batch.index)
            rows.append(parts)
        together = torch.cat(numbers)
        order = together.argsort()
        self.numbers = together[order]
        self._parts = [torch.cat(column)[order] for column in zip(*rows, strict=True)]

    @classmethod
    def within(
        cls, limit: int, batches: Iterator[Batch], function: Callable[[Tensor], Tensor | Sequence[Tensor]]
    ) -> Self | None:
        """What is kept, or None where it takes more than ``limit`` bytes."""
        try:
            return cls(batches, function, limit)
        except MemoryError:
            return None

    def __call__(self, index: Tensor) -> Tensor:
        """(B,) image numbers -> their rows (B, d), of the first tensor if there are several."""
        return self.parts(index)[0]

    def parts(self, index: Tensor) -> list[Tensor]:
        """(B,) image numbers -> their rows of every tensor, (B, ...) each."""
        places = torch.searchsorted(self.numbers, index)
        return [part[places] for part in self._parts]
