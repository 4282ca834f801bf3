"""The convolutional stem: patches that a small residual network has looked at already.

It learns the classes of task 1 with a classifier of its own, is then frozen, and stands in front of every expert, so
that a transformer which a CPU trains in minutes starts from more than pixels. Sharing shallow layers that were trained
before is the idea of the paper's reference [30].
"""

import contextlib
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core.errors import LabError
from dne_lab.models.image_model import cut
from dne_lab.models.resnet import ResNet

WIDTH, STAGES = 16, 3  # channels of the first stage, and how many stages of the ResNet-18 it takes
STRIDE = 2 ** (STAGES - 1)  # pixels per cell of the last map, along a side
LEAST, MOST = 32, 64  # pixels per side


class ConvStem(nn.Module):
    """The first convolution and three stages of the ResNet-18 that starts at 16 channels: 64 channels on a map of a
    quarter of the image's sides, each channel brought to mean 0 and deviation 1.

    Args:
        shape: (channels, height, width) of the images, which enter as uint8.
        patch: pixels per side of a patch; a multiple of 4.
        mean, std: of the training images per channel, in units of [0, 1].

    Attributes:
        bf16: whether its convolutions run in bfloat16 (``precision=bf16-stem``), which on a CPU with instructions for
            it takes a third of the time.

    Raises:
        LabError: images or patches that it cannot serve.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        patch: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        height, width = shape[1:]
        if not LEAST <= min(height, width) <= max(height, width) <= MOST or height % STRIDE or width % STRIDE:
            raise LabError(
                f"network.stem = conv serves images of {LEAST} to {MOST} pixels per side that {STRIDE} divides; these "
                f"have {height} x {width}. Set network.stem=patch, or data.size={MOST} for a folder of images."
            )
        if patch % STRIDE:
            raise LabError(
                f"network.patch = {patch}: with network.stem = conv it must be a multiple of {STRIDE}, because a cell "
                f"of the stem's map stands for {STRIDE} x {STRIDE} pixels. Set network.patch={STRIDE}."
            )
        self.cells = patch // STRIDE  # of the map per patch, along a side
        self.bf16 = False
        self._arguments = (tuple(shape), mean, std)
        self.classifier: nn.Linear | None = None
        self.begin()
        self.register_buffer("mean", torch.zeros(self.trunk.width, 1, 1))  # of the last map, per channel
        self.register_buffer("deviation", torch.ones(self.trunk.width, 1, 1))

    @property
    def patch_values(self) -> int:
        """Numbers in one patch."""
        return self.trunk.width * self.cells**2

    def begin(self, classes: int | None = None) -> None:
        """Structure of the stage "stem": weights drawn anew, everything trains; ``classes``: with a linear classifier
        of that many on the pooled last map."""
        shape, mean, std = self._arguments
        self.trunk = ResNet("resnet18", shape, WIDTH, mean, std, stages=STAGES)  # type: ignore[arg-type]
        self.classifier = None if classes is None else nn.Linear(self.trunk.width, classes)
        self.trunk.requires_grad_(True)

    def end(self) -> None:
        """The classifier has done its work and goes; what is left is frozen."""
        self.classifier = None
        self.requires_grad_(False)
        self.zero_grad(set_to_none=True)

    def logits(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> (B, classes of task 1), while the stem learns."""
        assert self.classifier is not None
        with self._autocast(images):
            return self.classifier(self.trunk(images).features)

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> patches (B, N, 64 x cells x cells), row by row, in the type of the weights."""
        return cut((self._map(images) - self.mean) / self.deviation, self.cells)

    @torch.no_grad()
    def measure(self, batches: Iterable[Tensor]) -> None:
        """Sets mean and deviation of each channel from (B, C, H, W) uint8 images, summed in float64."""
        sums = torch.zeros(3, self.trunk.width, dtype=torch.float64, device=self.mean.device)
        for images in batches:
            cells = self._map(images).double().transpose(0, 1).flatten(1)  # (64, B x cells of a map)
            sums += torch.stack([torch.ones_like(cells), cells, cells.square()]).sum(-1)
        count, total, squares = sums
        mean = total / count
        self.mean.copy_(mean.view_as(self.mean))
        # A channel that never fires stays 0 for all images, whatever it is divided by.
        self.deviation.copy_((squares / count - mean.square()).clamp(min=1e-10).sqrt().view_as(self.mean))

    def _map(self, images: Tensor) -> Tensor:
        """(B, C, H, W) uint8 -> the last map after its ReLU, (B, 64, H / 4, W / 4)."""
        with self._autocast(images):
            maps = self.trunk(images).maps[-1]
        return F.relu(maps).to(self.mean.dtype)

    def train(self, mode: bool = True) -> "ConvStem":
        """A frozen stem stays in evaluation mode."""
        return super().train(mode and any(p.requires_grad for p in self.parameters()))

    def _autocast(self, images: Tensor) -> contextlib.AbstractContextManager[object]:
        return torch.autocast(images.device.type, torch.bfloat16) if self.bf16 else contextlib.nullcontext()
