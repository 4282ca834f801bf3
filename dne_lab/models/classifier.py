"""The classifier over all read-outs: it grows by experts and by classes and keeps old logits as they were."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ExpandableClassifier(nn.Module):
    """Linear classifier over the read-outs of all experts, logits summed expert by expert: sum_t readout^t W_t^T + b.

    ``weights[t]`` is (classes, width of expert t+1), ``bias`` is (classes,).
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.bias = nn.Parameter(torch.empty(0))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.bias)

    def grow(self, classes: int, width: int | None = None) -> None:
        """Adds ``classes`` new classes and, if ``width`` is given, the read-out of a new expert.

        Old weights and biases are kept and the new columns of old classes start at zero, so old logits stay.
        """
        old = self.classes
        widths = [w.shape[1] for w in self.weights] + ([width] if width else [])
        grown = []
        for number, columns in enumerate(widths):
            rows = torch.empty(classes, columns)
            nn.init.trunc_normal_(rows, std=0.02)
            before = self.weights[number].detach() if number < len(self.weights) else torch.zeros(old, columns)
            grown.append(nn.Parameter(torch.cat([before, rows.to(before)])))
        self.weights = nn.ParameterList(grown)
        self.bias = nn.Parameter(torch.cat([self.bias.detach(), self.bias.new_zeros(classes)]))

    def forward(self, readouts: Sequence[Tensor]) -> Tensor:
        """One (B, width_t) tensor per expert -> logits (B, classes)."""
        widths = [weight.shape[1] for weight in self.weights]
        if [readout.shape[1] for readout in readouts] != widths:
            raise ValueError(f"read-outs of widths {[r.shape[1] for r in readouts]}, the classifier reads {widths}")
        # One product for all experts, so that the number of kernels does not grow with them.
        return F.linear(torch.cat(list(readouts), 1), torch.cat(list(self.weights), 1), self.bias)
