"""Augmentation of uint8 batches, drawn for each image by itself."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dne_lab import chance
from dne_lab.data.autoaugment import autoaugment
from dne_lab.data.geometry import about_centre, rotation, warp
from dne_lab.data.randaugment import randaugment
from dne_lab.errors import unknown

BRIGHTNESS = 63 / 255


def augment(images: Tensor, names: Sequence[str], key: chance.Key, index: Tensor) -> Tensor:
    """Applies the named augmentations one after the other.

    What happens to an image depends on ``key`` and its number alone, never on the batch it is in or the device. Numbers
    are drawn on the CPU: with ``index`` there, nothing waits for a GPU.

    Args:
        images: (B, C, H, W) uint8, on any device.
        names: of "crop" (pad by an eighth with black, crop at random), "flip" (left-right, every second image),
            "affine" (turn by up to 10 degrees, shift by up to 10%, scale by 0.9 to 1.1; black outside), "brightness"
            (times 1 -+ 63/255), "randaugment" and "autoaugment" (see the modules of these names), "cutout" (one black
            square, half as wide as the shorter side, centred on any pixel and cut at the border).
        key: what is drawn for, e.g. (seed, "augment", task, stage, epoch).
        index: (B,) int64 image numbers.

    Returns:
        (B, C, H, W) uint8 on the device of ``images``; the input is unchanged.

    Raises:
        LabError: an unknown name.
        ValueError: images that are not uint8 (B, C, H, W), or another number of indices.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or index.shape != images.shape[:1]:
        raise ValueError(
            f"augment needs uint8 images (B, C, H, W) and (B,) numbers, "
            f"not {images.dtype} {tuple(images.shape)} and {tuple(index.shape)}"
        )
    for name in names:
        if name not in AUGMENTATIONS:
            raise unknown("augmentation", name, AUGMENTATIONS)
    if len(images) == 0:
        return images
    index = index.cpu()
    for name in names:
        images = AUGMENTATIONS[name](images, (*key, name), index)
    return images


def _crop(images: Tensor, key: chance.Key, index: Tensor) -> Tensor:
    height, width = images.shape[2:]
    pad = max(1, height // 8)
    place = (chance.uniform(key, index, 2) * (2 * pad + 1)).long().to(images.device)
    padded = F.pad(images, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2 pad + 1, 2 pad + 1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, place[:, 0], place[:, 1]]


def _flip(images: Tensor, key: chance.Key, index: Tensor) -> Tensor:
    flipped = (chance.uniform(key, index, 1) < 0.5).to(images.device)
    return torch.where(flipped[:, :, None, None], images.flip(-1), images)


def _affine(images: Tensor, key: chance.Key, index: Tensor) -> Tensor:
    height, width = images.shape[2:]
    draws = chance.uniform(key, index, 4).double() * 2 - 1  # (B, 4) in [-1, 1)
    linear = rotation(10 * draws[:, 0]) / (1 + 0.1 * draws[:, 1])[:, None, None]
    shift = 0.1 * draws[:, 2:] * torch.tensor([width, height])
    return warp(images, about_centre(linear, shift, height, width), fill=0)


def _brightness(images: Tensor, key: chance.Key, index: Tensor) -> Tensor:
    factor = 1 + BRIGHTNESS * (2 * chance.uniform(key, index, 1) - 1)
    return (images * factor.to(images.device)[:, :, None, None]).clamp_max(255).to(torch.uint8)


def _cutout(images: Tensor, key: chance.Key, index: Tensor) -> Tensor:
    """Black, not the mean of DeVries and Taylor (2017): FOSTER's authors cut before they normalise."""
    height, width = images.shape[2:]
    side = min(height, width) // 2
    corner = (chance.uniform(key, index, 2) * torch.tensor([height, width])).long() - side // 2  # may be outside
    top, left = corner.to(images.device).T[:, :, None]
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    rows = (y >= top) & (y < top + side)  # (B, H)
    columns = (x >= left) & (x < left + side)  # (B, W)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


AUGMENTATIONS: dict[str, Callable[[Tensor, chance.Key, Tensor], Tensor]] = {
    "crop": _crop,
    "flip": _flip,
    "affine": _affine,
    "randaugment": randaugment,
    "autoaugment": autoaugment,
    "cutout": _cutout,
    "brightness": _brightness,
}
