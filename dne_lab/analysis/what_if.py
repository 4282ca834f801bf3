"""What if: one choice of connections taken out by `ablate`, and what it does to an image and to every expert."""

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.analysis.ablated import ALL, Tally
from dne_lab.analysis.ablation import ablate
from dne_lab.analysis.cutter import MEAN, Means
from dne_lab.analysis.images import evaluating, parts
from dne_lab.analysis.removal import Views
from dne_lab.data.stream import Batch
from dne_lab.errors import LabError
from dne_lab.models.expandable import ExpandableViT

if TYPE_CHECKING:
    import pandas as pd

NOTHING = "nothing is off"


@dataclass(frozen=True)
class Choice:
    """Which connections are off: those that all fields (None, no group: any) have in common; by itself nothing is.

    Attributes:
        reads: an expert whose heads are not read, or "others": all but the reader itself. Without a reader an expert is
            cut off from all later ones, not from itself.
        expert: the reader.
        kind, layer: where.
        group: SPSH, SPDH, DPSH, DPDH.
        how: "mean", "zero" or "mask", see `ablate`.
    """

    reads: int | str | None = None
    expert: int | None = None
    kind: str | None = None
    layer: int | None = None
    group: tuple[str, ...] = ()
    how: str = MEAN

    @property
    def nothing(self) -> bool:
        """Whether all connections are on."""
        return self.reads is None and not self.group

    def arguments(self, experts: int) -> dict[str, Any]:
        """The arguments of `ablate`, for a network of so many experts; a `LabError` where no later one is left."""
        readers: Any = self.expert
        if readers is None and isinstance(self.reads, int):
            if self.reads >= experts:
                raise LabError(
                    f"no later expert reads expert {self.reads}, the newest. Choose an earlier one, or name the "
                    f"reader: as read by expert {self.reads} itself."
                )
            readers = list(range(self.reads + 1, experts + 1))
        found = {"reads": self.reads, "expert": readers, "kind": self.kind, "layer": self.layer}
        return {**found, "group": self.group or None, "how": self.how}


@dataclass(frozen=True, eq=False)
class WhatIf:
    """What a choice does: in words ``what`` is off, logits ``before`` and ``after`` (n, classes), and for each expert
    the largest change of its outputs, ``moved``; exactly 0.0 are the same bits."""

    what: str
    before: Tensor
    after: Tensor
    moved: list[float]

    def classes(self, image: int = 0, count: int = 5) -> "pd.DataFrame":
        """The ``count`` best classes before and after: class, logit before, logit after, change, softmax of both."""
        import pandas as pd

        old, new = self.before[image].double(), self.after[image].double()
        best = {rank for logits in (old, new) for rank in logits.argsort(descending=True)[:count].tolist()}
        ranks = sorted(best, key=lambda rank: -float(old[rank]))
        rows: dict[str, Any] = {"class": ranks, "logit before": old[ranks], "logit after": new[ranks]}
        rows["change"] = rows["logit after"] - rows["logit before"]
        rows |= {"softmax before": old.softmax(0)[ranks], "softmax after": new.softmax(0)[ranks]}
        return pd.DataFrame({name: np.asarray(values) for name, values in rows.items()})


def what_if(
    network: ExpandableViT,
    images: Tensor,
    choice: Choice,
    views: Views | None = None,
    means: Means | None = None,
) -> WhatIf:
    """Runs images (n, C, H, W) uint8 with everything on and with a choice off.

    ``views`` of the network, from `removal.views_of`, spare a pass; ``means`` of a data set, from `ablation.means_of`,
    are what "mean" puts in place of attention (default: the mean over these images: of a single one, its own).

    Raises:
        LabError: the network has no such connection; see `ablate`.
    """
    if choice.nothing:
        logits = _logits(network, images)
        return WhatIf(NOTHING, logits, logits, [0.0] * len(network.heads))
    asked = choice.arguments(len(network.heads))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="mask multiplies")  # the choice itself says so
        found = ablate(network, images, **asked, groups=False, progress=False, views=views, means=means)
    return WhatIf(f"off ({found.how}): {found.what}", found.before, found.after, found.moved)


def accuracy(network: ExpandableViT, images: Batch, choice: Choice) -> "pd.DataFrame":
    """`Ablation.table` of labelled images: accuracy before and after, over all and by task."""
    import pandas as pd

    if not choice.nothing:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="mask multiplies")
            return ablate(network, images, **choice.arguments(len(network.heads)), groups=False, progress=False).table()
    tally, logits = Tally(network.task_classes), _logits(network, images.images)
    tally.add(logits, logits, images.labels)
    places: list[Any] = [ALL, *tally.tasks()]
    return pd.DataFrame([{"task": task, **tally.row(task)} for task in places])


def _logits(network: ExpandableViT, images: Tensor) -> Tensor:
    with evaluating(network) as device:
        return torch.cat([network(some.images.to(device)).logits.float().cpu() for some in parts(images, 64)])
