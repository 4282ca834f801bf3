"""Small photographs that come with scikit-learn: real pictures to look at a trained model with, without a download."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dne_lab.errors import LabError

# (left, top, right, bottom) of square cuts from the two pictures of 640 x 427 pixels
CUTS = (
    ("flower", "flower.jpg", (106, 0, 533, 427)),
    ("leaf", "flower.jpg", (0, 0, 300, 300)),
    ("temple", "china.jpg", (107, 0, 534, 427)),
    ("lake", "china.jpg", (300, 100, 600, 400)),
)
NAMES = tuple(name for name, _, _ in CUTS)


def photographs(size: int = 32) -> Tensor:
    """Four square cuts of scikit-learn's two sample photographs, in the order of `NAMES`.

    They belong to no class of any data set here: they show what a model computes, not how well.

    Args:
        size: side in pixels.

    Returns:
        (4, 3, size, size) uint8.
    """
    from PIL import Image
    from sklearn.datasets import load_sample_image

    if size < 1:
        raise LabError(f"photographs({size}): a side needs at least one pixel.")
    pictures = [Image.fromarray(load_sample_image(file)).crop(box).resize((size, size)) for _, file, box in CUTS]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
