"""What RandAugment and AutoAugment do to images: operations on whole batches, with a strength for each image.

The arithmetic is Pillow's; turns, shears and shifts are bilinear, and what comes from outside the image is middle grey.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# Moving the pixels of a batch, each image by its own affine map.


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
    # filled, not copied from the CPU: a GPU would be waited for
    size = torch.cat([x.new_full((1,), width), x.new_full((1,), height)])[:, None, None]
    outside = ((source < 0) | (source >= size)).any(dim=1, keepdim=True)
    grid = (source * 2 / size - 1).permute(0, 2, 3, 1)  # (B, H, W, 2)
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


FILL = 128  # what comes from outside the image: middle grey

Argument = Callable[[Tensor, Tensor], Tensor]
Apply = Callable[[Tensor, Tensor], Tensor]


class Operation(NamedTuple):
    """``argument``: (level in [0, 1], sign +-1), float64 (B,) each -> what the operation takes, (B,) float64;
    ``apply``: (images (B, C, H, W) uint8, argument (B,)) -> (B, C, H, W) uint8."""

    argument: Argument
    apply: Apply


@dataclass(frozen=True)
class Move:
    """An operation that moves pixels; several of them are one `warp`.

    ``matrix``: (argument (B,), height, width) -> its maps from output to input coordinates, (B, 2, 3).
    """

    matrix: Callable[[Tensor, int, int], Tensor]

    def __call__(self, images: Tensor, argument: Tensor) -> Tensor:
        """As `Operation.apply`."""
        return warp(images, self.matrix(argument, images.shape[2], images.shape[3]), FILL)


def apply_each(images: Tensor, operations: dict[str, Operation], which: Tensor, level: Tensor, sign: Tensor) -> None:
    """Changes images (B, C, H, W) on the CPU in place, each by one of the operations and by no other.

    ``which`` (B,) int64 is its place among ``operations`` (-1: none). All that moves pixels is done together.
    """
    order = which.argsort(stable=True)
    level, sign = level[order], sign[order]
    stops = torch.bincount(which + 1, minlength=len(operations) + 1).cumsum(0).tolist()
    parts = [(drawn, slice(*stops[i : i + 2])) for i, drawn in enumerate(operations.values())]
    argument = torch.cat([level[: stops[0]], *(drawn.argument(level[mine], sign[mine]) for drawn, mine in parts)])
    parts = [(drawn, mine) for drawn, mine in parts if mine.stop > mine.start]
    moves = [(drawn.apply, mine) for drawn, mine in parts if isinstance(drawn.apply, Move)]
    maps = [move.matrix(argument[mine], *images.shape[2:]).double() for move, mine in moves]
    moved = [order[mine] for _, mine in moves]
    for drawn, mine in parts:
        if not isinstance(drawn.apply, Move):
            images[order[mine]] = drawn.apply(images[order[mine]], argument[mine])
    if moves:
        where = torch.cat(moved)
        images[where] = warp(images[where], torch.cat(maps), FILL)


def planned(
    operations: dict[str, Operation], which: Tensor, level: Tensor, sign: Tensor, height: int, width: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What `apply_any` takes, for images (n,) with an operation each, or (n, rounds) with several one after another.

    Args:
        which, level, sign: as for `apply_each`, of one shape, on the CPU.
        height, width: of the images.

    Returns:
        The place of each operation in `KINDS` (its length for one that moves pixels, -1 for none), int64; what it
        takes, float64; its map from output to input coordinates, (..., 2, 3) float32, the identity if nothing moves.
    """
    kind, argument = torch.full_like(which, -1), level.clone()
    maps = torch.eye(2, 3, dtype=torch.float64).repeat(*which.shape, 1, 1)
    for place, operation in enumerate(operations.values()):
        mine = which == place
        argument[mine] = operation.argument(level[mine], sign[mine])
        if isinstance(operation.apply, Move):
            kind[mine] = len(KINDS)
            maps[mine] = operation.apply.matrix(argument[mine], height, width).double()
        else:
            kind[mine] = KINDS.index(operation.apply)
    return kind, argument, maps.float()


def apply_any(images: Tensor, kind: Tensor, argument: Tensor, maps: Tensor) -> Tensor:
    """`apply_each` for a GPU, (B, C, H, W) -> the same shape, from what `planned` gives for these images.

    Every operation is computed for every image and one is taken, so that neither a shape nor the number of kernels
    depends on what was drawn: nothing waits for the CPU, and the whole can be compiled or captured.
    """
    values = torch.arange(256, device=images.device).to(torch.uint8).expand(len(images), 1, 1, 256)
    tables = {
        autocontrast: stretched(images),
        equalize: equalized(images),
        contrast: _blend(_mean_grey(images), values, argument).flatten(2),
        **{alike: alike(values, argument).flatten(2) for alike in _VALUE_BY_VALUE},
    }  # (B, C or 1, 256) each
    table = values.flatten(2)  # (B, 1, 256)
    for operation, found in tables.items():
        mine = kind == KINDS.index(operation)
        table = torch.where(mine[:, None, None], found.clamp(0, 255).to(torch.uint8), table)
    changed = _look_up(images, table.expand(-1, images.shape[1], -1))
    for operation in (color, sharpness):
        mine = kind == KINDS.index(operation)
        changed = torch.where(mine[:, None, None, None], operation(images, argument), changed)
    return torch.where((kind == len(KINDS))[:, None, None, None], warp(images, maps, FILL), changed)


# Arguments ------------------------------------------------------------------------------------------------------------


def none(level: Tensor, sign: Tensor) -> Tensor:
    """For operations that take nothing."""
    return level


def signed(most: float) -> Argument:
    """From 0 to +-``most``."""
    return lambda level, sign: sign * level * most


def around_one(level: Tensor, sign: Tensor) -> Tensor:
    """From 1 to 1.9 or 0.1."""
    return (1 + sign * level * 0.9).clamp_min(0.1)


def signs(draws: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) -> -1 or 1, float64, each half of the time."""
    return torch.where(draws < 0.5, -1.0, 1.0).double()


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
    values = images.flatten(2).long()  # (B, C, H x W)
    return torch.zeros((*values.shape[:2], 256), dtype=torch.int64, device=images.device).scatter_add_(
        2, values, torch.ones_like(values)
    )


def _look_up(images: Tensor, table: Tensor) -> Tensor:
    """Replaces each value by the table (B, C, 256) of its image and channel."""
    values = table.clamp(0, 255).to(torch.uint8)
    return values.gather(2, images.flatten(2).long()).view_as(images)  # (B, C, H x W) -> (B, C, H, W)


def autocontrast(images: Tensor, _: Tensor) -> Tensor:
    """Stretches each channel to 0..255."""
    return _look_up(images, stretched(images))


def stretched(images: Tensor) -> Tensor:
    """The table of `autocontrast`, (B, C, 256) float64."""
    low = images.amin(dim=(2, 3)).double()[:, :, None]
    high = images.amax(dim=(2, 3)).double()[:, :, None]
    scale = torch.full_like(high, 255) / (high - low)  # 255 / tensor would be 255 * (1 / tensor), not Pillow's rounding
    values = torch.arange(256, device=images.device, dtype=torch.float64)
    return torch.where(high > low, (values * scale - low * scale).floor(), values)


def equalize(images: Tensor, _: Tensor) -> Tensor:
    """Makes the values of each channel equally frequent, as far as whole tables can."""
    return _look_up(images, equalized(images))


def equalized(images: Tensor) -> Tensor:
    """The table of `equalize`, (B, C, 256) int64."""
    counts = _histogram(images)
    brightest = images.amax(dim=(2, 3)).long()[:, :, None]
    step = (counts.sum(dim=2, keepdim=True) - counts.gather(2, brightest)) // 255
    before = counts.cumsum(dim=2) - counts  # how many values are darker
    values = torch.arange(256, device=images.device)
    return torch.where(step > 0, (step // 2 + before) // step.clamp_min(1), values)


def invert(images: Tensor, _: Tensor) -> Tensor:
    """255 minus each value."""
    return 255 - images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the highest 0..8 bits of each value."""
    mask = 256 - 2 ** (8 - bits.long()).clamp(0, 8)
    return images & mask.to(torch.uint8)[:, None, None, None]


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values from the threshold on."""
    return torch.where(images < threshold[:, None, None, None], images, 255 - images)


def solarize_add(images: Tensor, add: Tensor) -> Tensor:
    """Adds to the values below 128."""
    brighter = (images.to(torch.int16) + add.to(torch.int16)[:, None, None, None]).clamp_max(255).to(torch.uint8)
    return torch.where(images < 128, brighter, images)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """From grey (0) through the image (1) to stronger colours."""
    return _blend(_grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """From one grey, the mean (0), through the image (1) to more contrast."""
    return _blend(_mean_grey(images), images, factor)


def _mean_grey(images: Tensor) -> Tensor:
    """Rounded, (B, 1, 1, 1) float64."""
    return (_grey(images).double().mean(dim=(1, 2, 3), keepdim=True) + 0.5).floor()


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """From black (0) through the image (1) to brighter."""
    return _blend(torch.zeros((), device=images.device), images, factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """From smoothed (0) through the image (1) to sharper; less than 3 pixels stay as they are."""
    if min(images.shape[2:]) < 3:
        return images
    kernel = torch.ones((1, 1, 3, 3), device=images.device)
    kernel[:, :, 1, 1] = 5
    smooth = images.float()
    # (B, C, H - 2, W - 2)
    inner = F.conv2d(smooth.flatten(0, 1)[:, None], kernel).view(*images.shape[:2], *(n - 2 for n in images.shape[2:]))
    smooth[:, :, 1:-1, 1:-1] = (inner / 13).round()  # the rim stays, as in Pillow's SMOOTH
    return _blend(smooth, images, factor)


def _turned(degrees: Tensor, height: int, width: int) -> Tensor:
    nowhere = torch.zeros((len(degrees), 2), dtype=degrees.dtype, device=degrees.device)
    return about_centre(rotation(degrees), nowhere, height, width)


rotate = Move(_turned)  # about the centre, counter-clockwise, by degrees


def shear(axis: int) -> Move:
    """Along x (0) or y (1), by a share of the distance from the top left corner."""
    return Move(lambda slope, height, width: _identity_but(axis, 1 - axis, slope))


def translate(axis: int, whole: bool) -> Move:
    """Along x (0) or y (1), by a share of the side; by a ``whole`` number of pixels (truncated) or as it comes."""

    def matrix(share: Tensor, height: int, width: int) -> Tensor:
        pixels = share * (width, height)[axis]
        # float32: 150 / 331 of 331 pixels are 150, not a little less
        return _identity_but(axis, 2, pixels.float().trunc() if whole else pixels)

    return Move(matrix)


def _identity_but(row: int, column: int, entry: Tensor) -> Tensor:
    """The maps that are the identity but for one entry, (B, 2, 3)."""
    matrix = torch.eye(2, 3, device=entry.device, dtype=entry.dtype).repeat(len(entry), 1, 1)
    matrix[:, row, column] += entry
    return matrix


# What `apply_any` chooses from, beside what moves pixels: the places are `planned`'s.
_VALUE_BY_VALUE: tuple[Apply, ...] = (invert, posterize, solarize, solarize_add, brightness)  # a look-up does them
KINDS: tuple[Apply, ...] = (autocontrast, equalize, contrast, *_VALUE_BY_VALUE, color, sharpness)
