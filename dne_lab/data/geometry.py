"""Moving the pixels of a batch, each image by its own affine map."""

import torch
import torch.nn.functional as F
from torch import Tensor


def warp(images: Tensor, matrix: Tensor, fill: int) -> Tensor:
    """Resamples every image bilinearly through its own map from output to input coordinates.

    The convention is Pillow's ``transform(AFFINE)``: the centre of pixel (x, y) is (x + 0.5, y + 0.5); what comes from
    outside the image gets ``fill``; at the edge the nearest pixel is repeated. Values are rounded, where Pillow
    truncates.

    Args:
        images: (B, C, H, W) uint8.
        matrix: (B, 2, 3), in pixels: input x = m00 x + m01 y + m02, input y = m10 x + m11 y + m12.
        fill: grey level 0..255.

    Returns:
        (B, C, H, W) uint8.
    """
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device, dtype=torch.float32) + 0.5
    y = torch.arange(height, device=images.device, dtype=torch.float32)[:, None] + 0.5
    rows = matrix.to(images.device, torch.float32)[:, :, :, None, None]  # (B, 2, 3, 1, 1)
    source = rows[:, :, 0] * x + rows[:, :, 1] * y + rows[:, :, 2]  # (B, 2, H, W)
    size = torch.tensor([width, height], device=images.device, dtype=torch.float32)[:, None, None]
    outside = ((source < 0) | (source >= size)).any(dim=1, keepdim=True)
    grid = (source * 2 / size - 1).permute(0, 2, 3, 1)
    moved = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    return moved.round().masked_fill(outside, fill).to(torch.uint8)


def about_centre(linear: Tensor, shift: Tensor, height: int, width: int) -> Tensor:
    """The map (B, 2, 3) with ``linear`` (B, 2, 2) about the centre, for a picture moved by ``shift`` (B, 2) pixels.

    As a map from output to input: linear @ (output - centre - shift) + centre.
    """
    centre = torch.tensor([width / 2, height / 2], dtype=linear.dtype, device=linear.device)
    return torch.cat([linear, centre[:, None] - linear @ (centre + shift)[:, :, None]], dim=2)


def rotation(degrees: Tensor) -> Tensor:
    """(B,) angles -> (B, 2, 2); as an output-to-input map it turns the picture counter-clockwise, as Pillow does."""
    radians = torch.deg2rad(degrees)
    cos, sin = radians.cos(), radians.sin()
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)
