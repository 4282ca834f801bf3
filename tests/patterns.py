"""Images on which operations show what they do, and their way to Pillow and back."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def patterns(channels: int, height: int = 40, width: int | None = None) -> Tensor:
    """Noise, gradients, a constant one, one with few values, one with a narrow range, black: (6, C, H, W) uint8."""
    rng = np.random.default_rng(0)
    size = (height, width or height)
    steps = np.linspace(0, 255, size[0] * size[1])
    ramps = [steps.reshape(size), steps.reshape(size[::-1]).T, steps[::-1].reshape(size)]
    made = [
        rng.integers(0, 256, (*size, channels)),
        np.stack(ramps[:channels], axis=2),
        np.full((*size, channels), 93),
        rng.choice([3, 200], (*size, channels), p=[0.9, 0.1]),
        rng.integers(100, 140, (*size, channels)),
        np.zeros((*size, channels)),
    ]
    return torch.from_numpy(np.stack(made).astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def to_pillow(image: Tensor) -> Image.Image:
    """(C, H, W) uint8 -> a grey or colour image."""
    return Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy())


def from_pillow(image: Image.Image) -> Tensor:
    """(C, H, W) int64."""
    values = torch.tensor(list(image.tobytes()))
    return values.view(image.size[1], image.size[0], len(image.getbands())).permute(2, 0, 1)
