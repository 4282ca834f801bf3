"""What every network does with images first: check them, and bring uint8 pixels to mean 0 and deviation 1."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dne_lab.core.errors import LabError


class ImageModel(nn.Module):
    """A network that takes uint8 images and normalises them itself.

    Args:
        shape: (channels, height, width) of the images.
        mean, std: of the training images per channel, in units of [0, 1].
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: tuple[int, int, int],
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.register_buffer("mean", torch.tensor(mean or [0.5] * shape[0]).view(-1, 1, 1))  # (C, 1, 1)
        self.register_buffer("std", torch.tensor(std or [0.25] * shape[0]).view(-1, 1, 1))  # (C, 1, 1)

    def check(self, images: Tensor) -> None:
        """Raises a `LabError` unless ``images`` is a uint8 batch of this model's size."""
        if images.dtype != torch.uint8 or images.dim() != 4 or tuple(images.shape[1:]) != self.shape:
            raise LabError(
                f"the model takes uint8 images of shape (B, {', '.join(map(str, self.shape))}); "
                f"given: {str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}. "
                "It normalises them itself: pass raw pixels from 0 to 255."
            )

    def normalised(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the same shape in the type of the weights, mean 0 and deviation 1 per channel."""
        self.check(images)
        return (images.to(self.mean.dtype) / 255 - self.mean) / self.std


def cut(images: Tensor, side: int) -> Tensor:
    """(B, C, H, W) -> patches (B, N, C x side x side), row by row."""
    x = images.unfold(2, side, side).unfold(3, side, side)  # (B, C, rows, columns, side, side)
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def patch_grid(shape: tuple[int, int, int], patch: int) -> tuple[int, int]:
    """(rows, columns) of patches; a `LabError` where patches do not fill the image."""
    _, height, width = shape
    if height % patch or width % patch:
        sides = sorted(d for d in range(1, min(height, width) + 1) if height % d == 0 and width % d == 0)
        raise LabError(
            f"network.patch = {patch} does not divide images of {height} x {width} pixels. "
            f"Allowed: {', '.join(map(str, sides))}."
        )
    return height // patch, width // patch
