"""What a frozen expert 1 gives without any other expert: a linear probe, nearest class means, random-projection ridge.

With a backbone (``network.backbone``) expert 1 is pretrained; without one it learns task 1, as in the methods that
grow, and is frozen then. All that these methods learn afterwards is a classifier of its read-out, so they say what
later experts have to beat.
"""

import dataclasses
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core.config import LATER_HEADS, Config
from dne_lab.core.schema import settings
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import Method, NoOptions, Stage
from dne_lab.methods.expansion import Expansion
from dne_lab.methods.finetune import Replay
from dne_lab.models.classifier import ExpandableClassifier

HELD_OUT = 5  # of the task's images one in so many is held out for the choice of lambda
SHARES = tuple(10.0**power for power in range(-4, 3))  # of the mean eigenvalue: what lambda is chosen from
UNKNOWN = 1e-2  # the share where no image can be held out


class LinearProbe(Replay):
    """A linear classifier of the frozen expert 1, learned from new images and exemplars, then tuned on the exemplars.

    On a backbone replay is the same, because its one expert does not train there.
    """

    name = "linear-probe"
    title = "Linear probe"

    def grow(self, task: Task) -> None:
        """Expert 1 in task 1; after it the classifier alone."""
        super().grow(task)
        if task.old:
            self.model.tune_classifier()

    def task_state(self, task: Task) -> dict[str, Tensor]:
        """Expert 1 with task 1, the classifier with every task."""
        return Expansion.task_state(self, task)


class ClosedForm(Expansion):
    """A classifier of the frozen expert 1 that is computed from the new images, seen once; no exemplars.

    Stage "fit" trains nothing: the classifier follows from sums over its images (`initialise`).
    """

    uses_memory: ClassVar[bool] = False
    shares_first_task: ClassVar[bool] = False
    Options: ClassVar[type[Any]] = NoOptions
    ignores: ClassVar[tuple[str, ...]] = (LATER_HEADS, "tune", "memory")

    def stages(self, task: Task) -> list[Stage]:
        """ "fit", in task 1 after what expert 1 learns, if it is no backbone."""
        fit = Stage("fit", dataclasses.replace(self.config.learn, epochs=0, augment=()))
        learned = task.number == 1 and self.config.network.backbone is None
        return [*(super().stages(task) if learned else []), fit]

    def enter(self, task: Task, stage: Stage) -> None:
        """In "fit" the classes of the task, and nothing trains."""
        if stage.name != "fit":
            super().enter(task, stage)
            return
        if task.number == 1 and not len(self.model.experts):
            self.model.expand(self.config.network.heads_of(1), len(task.new))
        elif task.old:
            self.model.widen(len(task.new))
            self.model.teacher = None
        self.model.requires_grad_(False)

    def initialise(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """The classifier in "fit", from clean images."""
        if stage.name == "fit":
            self.fit(task, batches)
        else:
            super().initialise(task, stage, batches)

    def fit(self, task: Task, batches: Iterator[Batch]) -> None:
        """Sets the classifier from the images of a task; a subclass says how."""
        raise NotImplementedError(f"{type(self).__name__} must define fit(task, batches)")


class NearestClassMean(ClosedForm):
    """Predicts the class whose mean read-out has the smallest angle to the image's (NCM with cosine similarity).

    The means are those of all training images of a class. As the length of a read-out is the same for all classes, this
    is a linear classifier: unit means, no bias.
    """

    name = "ncm"
    title = "NCM"

    def fit(self, task: Task, batches: Iterator[Batch]) -> None:
        """The rows of the new classes."""
        weight: Tensor = self.model.classifier.weights[0]
        sums = torch.zeros(weight.shape, dtype=torch.float64, device=weight.device)
        for batch in batches:
            sums.index_add_(0, batch.labels, self.features(batch.images).double())
        new = slice(task.new.start, task.new.stop)
        weight[new] = F.normalize(sums[new]).to(weight.dtype)  # sum and mean have the same direction
        self.model.classifier.bias.zero_()


@settings
class RanPACOptions:
    """``random_features``: M, to how many numbers read-outs are projected (RanPAC: 10,000; a task takes memory and time
    that grow with M^2 and M^3)."""

    random_features: Annotated[int, Field(ge=1, le=50_000)] = 2000


class RanPAC(ClosedForm):
    """Ridge regression of one-hot classes on randomly projected read-outs (RanPAC's idea; McDonnell et al. 2023).

    With h = relu(f P) for a read-out f and a fixed random P (d x M): W = (G + lambda I)^-1 C, G = sum h^T h and
    C = sum h^T y over all images seen, so W does not depend on how classes came in tasks. lambda, a share of G's mean
    eigenvalue, is chosen in every task as the one that predicts a fifth of its images best (squared error) from the
    rest and all earlier ones. RanPAC chooses it from the task's images alone, and also adapts the backbone in task 1.
    """

    name = "ranpac"
    title = "RanPAC"
    Options: ClassVar[type[Any]] = RanPACOptions
    gram: Tensor
    moments: Tensor
    share: Tensor

    def __init__(self, config: Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        size = self.options.random_features
        self.register_buffer("gram", torch.zeros(size, size))
        self.register_buffer("moments", torch.zeros(size, 0))
        self.register_buffer("share", torch.zeros(()))  # of the mean eigenvalue: the last task's lambda

    def enter(self, task: Task, stage: Stage) -> None:
        """In "fit" of task 1 the projected classifier takes the place of the linear one."""
        super().enter(task, stage)
        if stage.name != "fit":
            return
        if task.number == 1:
            width = self.model.classifier.weights[0].shape[1]
            classifier = ProjectedClassifier(width, self.options.random_features)
            classifier.grow(len(task.new), width)
            self.model.classifier = classifier
        self.model.requires_grad_(False)
        self.moments = F.pad(self.moments, (0, len(task.new)))

    def fit(self, task: Task, batches: Iterator[Batch]) -> None:
        """Adds the task's images to G and C, chooses lambda, and solves for W."""
        classifier: Any = self.model.classifier
        classes = task.new.stop
        sums = [self.gram.new_zeros(len(self.gram), len(self.gram) + classes, dtype=torch.float64) for _ in range(2)]
        seen = 0
        for batch in batches:
            h = classifier.projected(self.features(batch.images)).double()  # (B, M)
            y = F.one_hot(batch.labels, classes).double()  # (B, classes)
            places = torch.arange(seen, seen + len(h), device=h.device)
            seen += len(h)
            held = places % HELD_OUT == HELD_OUT - 1
            for total, chosen in zip(sums, (~held, held), strict=True):
                total += h[chosen].mT @ torch.cat([h, y], 1)[chosen]  # (M, M + classes): their parts of G and C
        known, held_out = sums
        known += torch.cat([self.gram, self.moments], 1)
        size = [len(self.gram), classes]
        if seen >= HELD_OUT:
            self.share.fill_(best_share(*known.split(size, 1), *held_out.split(size, 1)))
        else:
            self.share.fill_(UNKNOWN)
        gram, moments = (known + held_out).split(size, 1)
        self.gram.copy_(gram)
        self.moments.copy_(moments)
        classifier.weights[0].copy_(ridge(gram, moments, float(self.share)).mT)

    def task_state(self, task: Task) -> dict[str, Tensor]:
        """Expert 1 and the projection with task 1; the classifier and the sums, which the next task goes on with, with
        every task."""
        sums = {name: value for name, value in Method.task_state(self, task).items() if not name.startswith("model.")}
        state = super().task_state(task) | sums
        if task.old:
            del state["model.classifier.projection"]
        return state


class ProjectedClassifier(ExpandableClassifier):
    """A linear classifier of relu(f P): P (width, M), standard normal and fixed, of a read-out f."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.projection = nn.Parameter(torch.randn(width, size), requires_grad=False)

    def grow(self, classes: int, width: int | None = None) -> None:
        """Adds classes; the first time ``width`` is given, for the one read-out there is."""
        super().grow(classes, None if width is None else self.projection.shape[1])

    def projected(self, features: Tensor) -> Tensor:
        """(B, width) -> (B, M)."""
        return F.relu(features @ self.projection)

    def forward(self, readouts: Any) -> Tensor:
        """The one (B, width) read-out -> logits (B, classes)."""
        return F.linear(self.projected(torch.cat(list(readouts), 1)), self.weights[0], self.bias)


def ridge(gram: Tensor, moments: Tensor, share: float) -> Tensor:
    """W = (G + lambda I)^-1 C with lambda = ``share`` of G's mean eigenvalue: (M, M), (M, classes) -> (M, classes)."""
    penalty = max(share * float(gram.diagonal().mean()), torch.finfo(gram.dtype).tiny)
    damped = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.linalg.solve(damped, moments)  # G is kept in float32: no longer positive definite to the last digits


def best_share(gram: Tensor, moments: Tensor, held_gram: Tensor, held_moments: Tensor) -> float:
    """Which share of the mean eigenvalue, as lambda, predicts held-out images best.

    Args:
        gram, moments: (M, M) and (M, classes), G and C of the images that W is computed from.
        held_gram, held_moments: of those that it is judged by: |H W - Y|^2 = tr(W^T G W) - 2 tr(W^T C) + |Y|^2.

    Returns:
        One of `SHARES`.
    """

    def error(share: float) -> float:
        w = ridge(gram, moments, share)
        return float((w * (held_gram @ w)).sum() - 2 * (w * held_moments).sum())

    return min(SHARES, key=error)
