"""Residual networks for small and for large images (He et al., 2016); the width, channels of the first stage, is free.

Names of layers and parameters are torchvision's, so that weights can be exchanged and outputs compared.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core.errors import LabError, unknown
from dne_lab.models.image_model import ImageModel


class Plan(NamedTuple):
    """``blocks`` of each stage, ``width`` (channels of the first stage, doubled by each later one), ``large``: a 7 x 7
    stem of stride 2 and a pooling, as for images of 224 pixels; else 3 x 3 of stride 1. ``least`` pixels per side.
    ``bottleneck``: blocks of three convolutions whose outputs are four times as wide."""

    blocks: tuple[int, ...]
    width: int = 64
    large: bool = False
    least: int = 8
    bottleneck: bool = False


PLANS = {
    "resnet18": Plan((2, 2, 2, 2)),  # "modified": as iCaRL, PODNet, DER and FOSTER use it
    "resnet34": Plan((3, 4, 6, 3)),
    "resnet50": Plan((3, 4, 6, 3), bottleneck=True),
    "resnet101": Plan((3, 4, 23, 3), bottleneck=True),
    "resnet152": Plan((3, 8, 36, 3), bottleneck=True),
    "resnet32": Plan((5, 5, 5), 16, least=4),
    "resnet18-224": Plan((2, 2, 2, 2), large=True, least=32),  # torchvision's
}


MOST_BYTES = 2**40  # of one convolution


class Maps(NamedTuple):
    """``features`` (B, d), pooled, and ``maps``, the last (B, C, H, W) of each stage before its ReLU."""

    features: Tensor
    maps: list[Tensor]


class Block(nn.Module):
    """Convolutions, each with a batch norm, and a shortcut; returns their sum before the last ReLU.

    The last norm's gain starts at 0, so that a block starts as its shortcut. ``widening``: outputs over width.
    """

    widening = 1

    def __init__(self, inputs: int, width: int, stride: int, kernels: Sequence[tuple[int, int, int]]) -> None:
        """``kernels``: (side, outputs, stride) of each convolution."""
        super().__init__()
        outputs, channels = width * self.widening, inputs
        for number, (side, wide, step) in enumerate(kernels, start=1):
            self.add_module(f"conv{number}", nn.Conv2d(channels, wide, side, step, side // 2, bias=False))
            self.add_module(f"bn{number}", nn.BatchNorm2d(wide))
            channels = wide
        self.depth = len(kernels)
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        nn.init.zeros_(self.get_submodule(f"bn{self.depth}").weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) -> (B, outputs, H / stride, W / stride), before the ReLU."""
        out = x
        for number in range(1, self.depth + 1):
            out = self.get_submodule(f"bn{number}")(self.get_submodule(f"conv{number}")(out))
            out = F.relu(out) if number < self.depth else out
        return out + (x if self.downsample is None else self.downsample(x))


class BasicBlock(Block):
    """Two 3 x 3 convolutions."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride, [(3, width, stride), (3, width, 1)])


class Bottleneck(Block):
    """1 x 1, 3 x 3 (which takes the stride) and 1 x 1, whose outputs are four times as wide as what lies between."""

    widening = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__(inputs, width, stride, [(1, width, 1), (3, width, stride), (1, 4 * width, 1)])


class ResNet(ImageModel):
    """A residual network without a classifier.

    Args:
        name: one of `PLANS` (resnet32 has 1 x 1 convolutions in its shortcuts).
        shape: (channels, height, width) of the images, which enter as uint8.
        width: channels of the first stage; default: the published ones.
        final_relu: whether features are pooled after the last ReLU or, as PODNet does, before it.
        stages: how many of its stages there are; default: all.

    Raises:
        LabError: an unknown name, images too small for it, a width below 1.
    """

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        width: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        final_relu: bool = True,
        stages: int | None = None,
    ) -> None:
        super().__init__(shape, mean, std)
        if name not in PLANS:
            raise unknown("network", name, PLANS)
        plan = PLANS[name]._replace(blocks=PLANS[name].blocks[:stages])
        if min(shape[1:]) < plan.least:
            fits = [other for other, p in PLANS.items() if p.least <= min(shape[1:])]
            raise LabError(
                f"{name} needs images of at least {plan.least} x {plan.least} pixels, these have {shape[1]} x "
                f"{shape[2]}. {'Allowed: ' + ', '.join(fits) + '.' if fits else 'Take a transformer.'}"
            )
        channels = plan.width if width is None else width
        if channels < 1:
            raise LabError(f"width = {channels}: a network needs at least one channel.")
        widest = channels * 2 ** (len(plan.blocks) - 1)
        if 4 * 9 * widest**2 > MOST_BYTES:  # said before the first, smaller ones have filled the memory
            raise LabError(
                f"width = {channels}: one 3 x 3 convolution of {widest} channels is {36 * widest**2 / 1e12:.0f} TB, "
                "which does not fit into memory: take a smaller one."
            )
        self.name, self.plan, self.final_relu = name, plan, final_relu
        kernel, stride = (7, 2) if plan.large else (3, 1)
        self.conv1 = nn.Conv2d(shape[0], channels, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        block = Bottleneck if plan.bottleneck else BasicBlock
        inputs = channels
        for number, count in enumerate(plan.blocks):
            inside = channels * 2**number
            strides = [1 if number == 0 else 2, *[1] * (count - 1)]
            outputs = inside * block.widening
            blocks = [block(inputs if i == 0 else outputs, inside, s) for i, s in enumerate(strides)]
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
            inputs = outputs
        self.width = inputs  # of the features
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # a training step on a CPU takes a fifth less time

    def forward(self, images: Tensor) -> Maps:
        """(B, C, H, W) uint8 -> `Maps`."""
        x = F.relu(self.bn1(self.conv1(self.normalised(images))))
        if self.plan.large:
            x = F.max_pool2d(x, 3, 2, 1)
        maps = []
        for number in range(len(self.plan.blocks)):
            for block in self.get_submodule(f"layer{number + 1}").children():
                raw = block(x)
                x = F.relu(raw)
            maps.append(raw)
        return Maps((x if self.final_relu else raw).mean((2, 3)), maps)


class Classified(nn.Module):
    """A `ResNet` and a classifier that takes [features]; returns logits."""

    classifier: Any

    def __init__(self, encoder: ResNet, classifier: nn.Module) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, classes)."""
        return self.classifier([self.encoder(images).features])
