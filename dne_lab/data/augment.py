"""Augmentation of uint8 batches, drawn for each image by itself."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dne_lab.core import chance
from dne_lab.core.errors import unknown
from dne_lab.data import operations as ops
from dne_lab.data.operations import Operation, about_centre, rotation, warp

Drawn = tuple[Tensor, ...]  # (n, ...) each, one row per image


class Augmentation(NamedTuple):
    """What happens to images, apart from what is drawn for them.

    ``draw``: (key, image numbers (n,), height, width) -> tensors (n, ...) on the CPU; ``apply``: (images, drawn) ->
    images. Where the shapes in ``apply`` depend on what was drawn: ``plan``, (height, width, drawn) -> other tensors
    (n, ...), and ``fixed``, which does the same from these by shapes that depend on nothing, for GPUs.
    """

    draw: Callable[..., Drawn]
    apply: Callable[..., Tensor]
    plan: Callable[..., Drawn] | None = None
    fixed: Callable[..., Tensor] | None = None


# RandAugment (Cubuk et al. 2020) with the 15 "increasing" operations of timm, on whole batches.

ROUNDS, PROBABILITY = 2, 0.5
MAGNITUDE, DEVIATION, STRONGEST = 9.0, 0.5, 10.0


def _randaugment_draws(key: chance.Key, index: Tensor, *_: int) -> Drawn:
    """2 operations, drawn with replacement, each with probability 1/2 and a magnitude of 9 (sd 0.5) of 10.

    For each round (B, ROUNDS): the operation's place, -1 for none, its level and its sign.
    """
    draws = chance.uniform(key, index, 4 * ROUNDS).double().view(-1, ROUNDS, 4)
    which, applied, magnitude, sign = draws.unbind(2)
    normal = torch.special.ndtri(magnitude + 2.0**-25)  # in the middle of the 2**-24 wide bins: never infinite
    level = ((MAGNITUDE + DEVIATION * normal) / STRONGEST).clamp(0, 1)
    return (which * len(OPERATIONS)).long().masked_fill(applied >= PROBABILITY, -1), level, ops.signs(sign)


def _one_by_one(operations: dict[str, Operation]) -> Callable[..., Tensor]:
    """(images, which, level, sign (B, rounds) each) -> images, on a CPU: what was drawn for an image is computed."""

    def apply(images: Tensor, *drawn: Tensor) -> Tensor:
        images = images.clone()
        for which, level, sign in zip(*(part.unbind(1) for part in drawn), strict=True):
            ops.apply_each(images, operations, which, level, sign)
        return images

    return apply


def _planned(operations: dict[str, Operation]) -> Callable[..., Drawn]:
    return lambda height, width, which, level, sign: ops.planned(operations, which, level, sign, height, width)


def _all_at_once(images: Tensor, kind: Tensor, argument: Tensor, maps: Tensor) -> Tensor:
    """As `_one_by_one`, from what `_planned` gives, on any device."""
    for place in range(kind.shape[1]):
        images = ops.apply_any(images, kind[:, place], argument[:, place], maps[:, place])
    return images


OPERATIONS: dict[str, Operation] = {  # the order is drawn from; level ranges are timm's
    "AutoContrast": Operation(ops.none, ops.autocontrast),
    "Equalize": Operation(ops.none, ops.equalize),
    "Invert": Operation(ops.none, ops.invert),
    "Rotate": Operation(ops.signed(30), ops.rotate),
    "PosterizeIncreasing": Operation(lambda level, sign: 4 - (level * 4).floor(), ops.posterize),
    "SolarizeIncreasing": Operation(lambda level, sign: 256 - (level * 256).floor(), ops.solarize),
    "SolarizeAdd": Operation(lambda level, sign: (level * 110).floor(), ops.solarize_add),
    "ColorIncreasing": Operation(ops.around_one, ops.color),
    "ContrastIncreasing": Operation(ops.around_one, ops.contrast),
    "BrightnessIncreasing": Operation(ops.around_one, ops.brightness),
    "SharpnessIncreasing": Operation(ops.around_one, ops.sharpness),
    "ShearX": Operation(ops.signed(0.3), ops.shear(0)),
    "ShearY": Operation(ops.signed(0.3), ops.shear(1)),
    "TranslateXRel": Operation(ops.signed(0.45), ops.translate(0, whole=False)),
    "TranslateYRel": Operation(ops.signed(0.45), ops.translate(1, whole=False)),
}


# AutoAugment (Cubuk et al., CVPR 2019) with its policy for CIFAR-10, on whole batches.

AUTO_STRONGEST = 9  # magnitudes are 0..9

# 25 sub-policies of two (operation, probability, magnitude); 0 where the operation takes none
POLICY: tuple[tuple[tuple[str, float, int], tuple[str, float, int]], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)


def _autoaugment_draws(key: chance.Key, index: Tensor, *_: int) -> Drawn:
    """One of 25 sub-policies for each image, and its two operations, each with its own probability.

    For each of them (B, 2): its place, -1 for none, its level and its sign.
    """
    policy, applied, sign = _drawn(key, index)
    return _WHICH[policy].masked_fill(~applied, -1), _LEVEL[policy], sign


def _drawn(key: chance.Key, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sub-policy (B,) int64, and for each of its two operations (B, 2) whether it is applied and its sign."""
    draws = chance.uniform(key, index, 5).double()
    policy = (draws[:, 0] * len(POLICY)).long()
    return policy, draws[:, 1:3] < _PROBABILITY[policy], ops.signs(draws[:, 3:])


AUTO_OPERATIONS: dict[str, Operation] = {
    "AutoContrast": Operation(ops.none, ops.autocontrast),
    "Equalize": Operation(ops.none, ops.equalize),
    "Invert": Operation(ops.none, ops.invert),
    "Rotate": Operation(ops.signed(30), ops.rotate),
    "Posterize": Operation(lambda level, sign: 8 - (level * 4).round(), ops.posterize),
    "Solarize": Operation(lambda level, sign: 255 - level * 255, ops.solarize),
    "Color": Operation(ops.around_one, ops.color),
    "Contrast": Operation(ops.around_one, ops.contrast),
    "Brightness": Operation(ops.around_one, ops.brightness),
    "Sharpness": Operation(ops.around_one, ops.sharpness),
    "ShearY": Operation(ops.signed(0.3), ops.shear(1)),
    "TranslateX": Operation(ops.signed(-150 / 331), ops.translate(0, whole=True)),  # minus: sign 1 moves right
    "TranslateY": Operation(ops.signed(-150 / 331), ops.translate(1, whole=True)),
}
_PLACE = {name: place for place, name in enumerate(AUTO_OPERATIONS)}
_WHICH = torch.tensor([[_PLACE[name] for name, _, _ in pair] for pair in POLICY])
_PROBABILITY = torch.tensor([[probability for _, probability, _ in pair] for pair in POLICY], dtype=torch.float64)
_LEVEL = torch.tensor(
    [[magnitude / AUTO_STRONGEST for _, _, magnitude in pair] for pair in POLICY], dtype=torch.float64
)


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
    return apply(images, names, draw(names, key, index.cpu(), images.shape, images.device))


def draw(
    names: Sequence[str], key: chance.Key, index: Tensor, shape: Sequence[int], device: torch.device
) -> list[Drawn]:
    """What the augmentations draw for images ``index`` (n,) of ``shape`` (..., H, W), for `apply` on this device.

    The numbers are drawn on the CPU and go to the device once: for the images of an epoch rather than of a batch.
    """
    found = []
    for name in names:
        kind = AUGMENTATIONS[name]
        drawn = kind.draw((*key, name), index, *shape[-2:])
        if device.type != "cpu":
            drawn = tuple(
                chance.upload(part, device) for part in (kind.plan(*shape[-2:], *drawn) if kind.plan else drawn)
            )
        found.append(drawn)
    return found


def apply(images: Tensor, names: Sequence[str], drawn: Sequence[Drawn]) -> Tensor:
    """The augmentations one after the other, with what was drawn for these images (B, C, H, W)."""
    for name, mine in zip(names, drawn, strict=True):
        kind = AUGMENTATIONS[name]
        by = kind.apply if images.device.type == "cpu" or kind.fixed is None else kind.fixed
        images = by(images, *mine)
    return images


def _crop_draws(key: chance.Key, index: Tensor, height: int, width: int) -> Drawn:
    pad = max(1, height // 8)
    return ((chance.uniform(key, index, 2) * (2 * pad + 1)).long(),)


def _crop(images: Tensor, place: Tensor) -> Tensor:
    height, width = images.shape[2:]
    pad = max(1, height // 8)
    padded = F.pad(images, (pad, pad, pad, pad))
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (B, C, 2 pad + 1, 2 pad + 1, H, W), a view
    return windows[torch.arange(len(images), device=images.device), :, place[:, 0], place[:, 1]]


def _flip_draws(key: chance.Key, index: Tensor, height: int, width: int) -> Drawn:
    return (chance.uniform(key, index, 1) < 0.5,)


def _flip(images: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped[:, :, None, None], images.flip(-1), images)


def _affine_draws(key: chance.Key, index: Tensor, height: int, width: int) -> Drawn:
    draws = chance.uniform(key, index, 4).double() * 2 - 1  # (B, 4) in [-1, 1)
    linear = rotation(10 * draws[:, 0]) / (1 + 0.1 * draws[:, 1])[:, None, None]
    shift = 0.1 * draws[:, 2:] * torch.tensor([width, height])
    return (about_centre(linear, shift, height, width),)


def _affine(images: Tensor, maps: Tensor) -> Tensor:
    return warp(images, maps, fill=0)


def _brightness_draws(key: chance.Key, index: Tensor, height: int, width: int) -> Drawn:
    return (1 + BRIGHTNESS * (2 * chance.uniform(key, index, 1) - 1),)


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor[:, :, None, None]).clamp_max(255).to(torch.uint8)


def _cutout_draws(key: chance.Key, index: Tensor, height: int, width: int) -> Drawn:
    side = min(height, width) // 2
    return ((chance.uniform(key, index, 2) * torch.tensor([height, width])).long() - side // 2,)  # may be outside


def _cutout(images: Tensor, corner: Tensor) -> Tensor:
    """Black, not the mean of DeVries and Taylor (2017): FOSTER's authors cut before they normalise."""
    height, width = images.shape[2:]
    side = min(height, width) // 2
    top, left = corner.T[:, :, None]
    y = torch.arange(height, device=images.device)
    x = torch.arange(width, device=images.device)
    rows = (y >= top) & (y < top + side)  # (B, H)
    columns = (x >= left) & (x < left + side)  # (B, W)
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], 0)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop": Augmentation(_crop_draws, _crop),
    "flip": Augmentation(_flip_draws, _flip),
    "affine": Augmentation(_affine_draws, _affine),
    "randaugment": Augmentation(_randaugment_draws, _one_by_one(OPERATIONS), _planned(OPERATIONS), _all_at_once),
    "autoaugment": Augmentation(
        _autoaugment_draws, _one_by_one(AUTO_OPERATIONS), _planned(AUTO_OPERATIONS), _all_at_once
    ),
    "cutout": Augmentation(_cutout_draws, _cutout),
    "brightness": Augmentation(_brightness_draws, _brightness),
}
