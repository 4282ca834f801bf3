"""RandAugment (Cubuk et al. 2020) with the 15 "increasing" operations of timm, on whole batches.

Each operation works on the images that drew it, with a strength for each; the arithmetic is Pillow's.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dne_lab import chance
from dne_lab.data.geometry import about_centre, rotation, warp

ROUNDS, PROBABILITY = 2, 0.5
MAGNITUDE, DEVIATION, STRONGEST = 9.0, 0.5, 10.0
FILL = 128  # what comes from outside the image: middle grey


class Operation(NamedTuple):
    """``argument``: (level in [0, 1], sign +-1), float64 (B,) each -> what the operation takes, (B,) float64;
    ``apply``: (images (B, C, H, W) uint8, argument (B,)) -> (B, C, H, W) uint8."""

    argument: Callable[[Tensor, Tensor], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]


def randaugment(images: Tensor, key: chance.Key, index: Tensor) -> Tensor:
    """Applies 2 operations, drawn with replacement, each with probability 1/2 and a magnitude of 9 (sd 0.5) of 10.

    Args:
        images: (B, C, H, W) uint8, C = 1 or 3.
        key, index: see `dne_lab.data.augment.augment`.
    """
    draws = chance.uniform(key, index, 4 * ROUNDS).double().cpu()
    images = images.clone()
    for which, applied, magnitude, sign in draws.view(-1, ROUNDS, 4).permute(1, 2, 0):
        normal = torch.special.ndtri(magnitude + 2.0**-25)  # in the middle of the 2**-24 wide bins: never infinite
        level = ((MAGNITUDE + DEVIATION * normal) / STRONGEST).clamp(0, 1)
        operation = (which * len(OPERATIONS)).long().masked_fill(applied >= PROBABILITY, -1)
        _apply(images, operation, level, torch.where(sign < 0.5, -1.0, 1.0).double())
    return images


def _apply(images: Tensor, operation: Tensor, level: Tensor, sign: Tensor) -> None:
    """Changes images (B, C, H, W) in place, by the number (-1: none), level and sign of the operation of each, (B,).

    These are on the CPU, so that two transfers suffice and nothing waits for a GPU.
    """
    order = operation.argsort(stable=True)
    level, sign = level[order], sign[order]
    stops = torch.bincount(operation + 1, minlength=len(OPERATIONS) + 1).cumsum(0).tolist()
    parts = [(OPERATIONS[name], slice(*stops[i : i + 2])) for i, name in enumerate(OPERATIONS)]
    argument = torch.cat([level[: stops[0]], *(drawn.argument(level[mine], sign[mine]) for drawn, mine in parts)])
    order, argument = order.to(images.device), argument.to(images.device)
    for drawn, mine in parts:
        if mine.stop > mine.start:
            images[order[mine]] = drawn.apply(images[order[mine]], argument[mine])


# Arguments: timm's level ranges -------------------------------------------------------------------------------------


def _none(level: Tensor, sign: Tensor) -> Tensor:
    return level


def _signed(most: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda level, sign: sign * level * most


def _enhance(level: Tensor, sign: Tensor) -> Tensor:
    return (1 + sign * level * 0.9).clamp_min(0.1)


# Operations -----------------------------------------------------------------------------------------------------------


def _each(argument: Tensor) -> Tensor:
    return argument.float()[:, None, None, None]


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """Pillow's ``blend``: from the degenerate image (0) through the image (1) and beyond, truncated."""
    base = degenerate.float()
    return (base + _each(factor) * (images.float() - base)).clamp(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma (ITU-R 601) in Pillow's fixed point: (B, 1, H, W) int32."""
    if images.shape[1] != 3:
        return images.to(torch.int32)
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return (red * 19595 + green * 38470 + blue * 7471 + 32768) >> 16


def _histogram(images: Tensor) -> Tensor:
    """(B, C, H, W) uint8 -> counts of the 256 values, (B, C, 256) int64."""
    values = images.flatten(2).long()
    return torch.zeros((*values.shape[:2], 256), dtype=torch.int64, device=images.device).scatter_add_(
        2, values, torch.ones_like(values)
    )


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replaces each value by the table (B, C, 256) of its image and channel."""
    values = table.clamp(0, 255).to(torch.uint8)
    return values.gather(2, images.flatten(2).long()).view_as(images)


def _autocontrast(images: Tensor, _: Tensor) -> Tensor:
    low = images.amin(dim=(2, 3)).double()[:, :, None]
    high = images.amax(dim=(2, 3)).double()[:, :, None]
    scale = 255 / (high - low)
    values = torch.arange(256, device=images.device, dtype=torch.float64)
    return _look_up(images, torch.where(high > low, (values * scale - low * scale).floor(), values))


def _equalize(images: Tensor, _: Tensor) -> Tensor:
    counts = _histogram(images)
    brightest = images.amax(dim=(2, 3)).long()[:, :, None]
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, brightest)) // 255
    before = counts.cumsum(dim=2) - counts  # how many values are darker
    values = torch.arange(256, device=images.device)
    return _look_up(images, torch.where(step > 0, (step // 2 + before) // step.clamp_min(1), values))


def _invert(images: Tensor, _: Tensor) -> Tensor:
    return 255 - images


def _posterize(images: Tensor, bits: Tensor) -> Tensor:
    mask = 256 - 2 ** (8 - bits.long())
    return images & mask.to(torch.uint8)[:, None, None, None]


def _solarize(images: Tensor, threshold: Tensor) -> Tensor:
    return torch.where(images < threshold[:, None, None, None], images, 255 - images)


def _solarize_add(images: Tensor, add: Tensor) -> Tensor:
    brighter = (images.to(torch.int16) + add.to(torch.int16)[:, None, None, None]).clamp_max(255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def _color(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(_grey(images), images, factor)


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    mean = (_grey(images).double().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()
    return _blend(mean, images, factor)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return _blend(torch.zeros((), device=images.device), images, factor)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    if min(images.shape[2:]) < 3:
        return images
    kernel = torch.ones((1, 1, 3, 3), device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.float()
    inner = F.conv2d(smooth.flatten(0, 1)[:, None], kernel).view(*images.shape[:2], *(n - 2 for n in images.shape[2:]))
    smooth[:, :, 1:-1, 1:-1] = (inner / 13).round()  # the rim stays, as in Pillow's SMOOTH
    return _blend(smooth, images, factor)


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    height, width = images.shape[2:]
    nowhere = torch.zeros((len(images), 2), dtype=degrees.dtype, device=degrees.device)
    return warp(images, about_centre(rotation(degrees), nowhere, height, width), FILL)


def _entry(row: int, column: int, relative: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """The warp whose map is the identity but for one entry; a ``relative`` one is a share of the side."""

    def moved(images: Tensor, argument: Tensor) -> Tensor:
        matrix = torch.eye(2, 3, device=images.device, dtype=argument.dtype).repeat(len(images), 1, 1)
        matrix[:, row, column] += argument * (images.shape[3 - row] if relative else 1)
        return warp(images, matrix, FILL)

    return moved


OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(_none, _autocontrast),
    "Equalize": Operation(_none, _equalize),
    "Invert": Operation(_none, _invert),
    "Rotate": Operation(_signed(30), _rotate),
    "PosterizeIncreasing": Operation(lambda level, sign: 4 - (level * 4).floor(), _posterize),
    "SolarizeIncreasing": Operation(lambda level, sign: 256 - (level * 256).floor(), _solarize),
    "SolarizeAdd": Operation(lambda level, sign: (level * 110).floor(), _solarize_add),
    "ColorIncreasing": Operation(_enhance, _color),
    "ContrastIncreasing": Operation(_enhance, _contrast),
    "BrightnessIncreasing": Operation(_enhance, _brightness),
    "SharpnessIncreasing": Operation(_enhance, _sharpness),
    "ShearX": Operation(_signed(0.3), _entry(0, 1, relative=False)),
    "ShearY": Operation(_signed(0.3), _entry(1, 0, relative=False)),
    "TranslateXRel": Operation(_signed(0.45), _entry(0, 2, relative=True)),
    "TranslateYRel": Operation(_signed(0.45), _entry(1, 2, relative=True)),
}
