"""AutoAugment (Cubuk et al., CVPR 2019) with its policy for CIFAR-10, on whole batches.

Table and ranges are those of ``torchvision.transforms.AutoAugment``. Turns and shears are bilinear, shifts are whole
pixels, and outside is middle grey; by default torchvision takes the nearest pixel and black. FOSTER's authors fill with
grey too, but turn by nearest pixels, shear bicubically and round half a pixel of a shift up or down; in the
implementation that theirs goes back to, Solarize starts from 256, one level above torchvision's 255.
"""

import torch
from torch import Tensor

from dne_lab import chance
from dne_lab.data import operations as ops
from dne_lab.data.operations import Operation

STRONGEST = 9  # magnitudes are 0..9

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


def autoaugment(images: Tensor, key: chance.Key, index: Tensor) -> Tensor:
    """Draws one of 25 sub-policies for each image and applies its two operations, each with its own probability.

    Args:
        images: (B, C, H, W) uint8, C = 1 or 3.
        key, index: see `dne_lab.data.augment.augment`.
    """
    images = images.clone()
    policy, applied, sign = _drawn(key, index)
    for step in range(2):
        which = _WHICH[policy, step].masked_fill(~applied[:, step], -1)
        ops.apply_each(images, OPERATIONS, which, _LEVEL[policy, step], sign[:, step])
    return images


def _drawn(key: chance.Key, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The sub-policy (B,) int64, and for each of its two operations (B, 2) whether it is applied and its sign."""
    draws = chance.uniform(key, index, 5).double().cpu()
    policy = (draws[:, 0] * len(POLICY)).long()
    return policy, draws[:, 1:3] < _PROBABILITY[policy], ops.signs(draws[:, 3:])


OPERATIONS: dict[str, Operation] = {
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
_PLACE = {name: place for place, name in enumerate(OPERATIONS)}
_WHICH = torch.tensor([[_PLACE[name] for name, _, _ in pair] for pair in POLICY])
_PROBABILITY = torch.tensor([[probability for _, probability, _ in pair] for pair in POLICY], dtype=torch.float64)
_LEVEL = torch.tensor([[magnitude / STRONGEST for _, _, magnitude in pair] for pair in POLICY], dtype=torch.float64)
