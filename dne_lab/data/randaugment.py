"""RandAugment (Cubuk et al. 2020) with the 15 "increasing" operations of timm, on whole batches."""

import torch
from torch import Tensor

from dne_lab import chance
from dne_lab.data import operations as ops
from dne_lab.data.operations import Operation

ROUNDS, PROBABILITY = 2, 0.5
MAGNITUDE, DEVIATION, STRONGEST = 9.0, 0.5, 10.0


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
        ops.apply_each(images, OPERATIONS, operation, level, ops.signs(sign))
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
