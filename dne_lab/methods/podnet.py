"""PODNet (Douillard et al., ECCV 2020): pooled outputs distillation and a classifier of several proxies per class."""

from collections.abc import Iterator
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from dne_lab.core.config import Config, Rate
from dne_lab.core.schema import OneOf, settings
from dne_lab.data.stream import Batch, ClassStream, Task
from dne_lab.methods.base import Stage, check_stage, frozen
from dne_lab.methods.resnet import ResNetMethod, ResNetOptions
from dne_lab.models.resnet import ResNet


class ProxyClassifier(nn.Module):
    """Local similarity classifier (PODNet, eq. 7 to 9): a class is scored by its proxies, each by how near it is.

    ``tasks[t]`` is (classes, proxies, width) of task t + 1, so that old ones can be frozen; ``scale`` is learned.
    """

    def __init__(self, proxies: int) -> None:
        super().__init__()
        self.proxies = proxies
        self.tasks = nn.ParameterList()
        self.scale = nn.Parameter(torch.ones(()))

    def grow(self, classes: int, width: int) -> None:
        """Adds the proxies of new classes, drawn at random; nothing old changes."""
        fresh = torch.randn(classes, self.proxies, width) * width**-0.5
        self.tasks.append(nn.Parameter(fresh.to(self.scale)))

    def forward(self, readouts: list[Tensor]) -> Tensor:
        """[(B, width)] -> (B, classes), at most 0: sum_k softmax_k(s) s, s = -|proxy - feature|^2 of unit vectors."""
        (features,) = readouts
        # (classes x proxies, width)
        proxies = torch.cat([F.normalize(part, dim=2).flatten(0, 1) for part in self.tasks])
        scores = 2 * F.normalize(features) @ proxies.T - 2  # -|a - b|^2 of unit vectors
        scores = scores.unflatten(1, (-1, self.proxies))  # (B, classes, proxies)
        return (scores.softmax(2) * scores).sum(2)


def k_means(points: Tensor, count: int, steps: int = 100) -> Tensor:
    """Centres of ``count`` clusters of ``points`` (n, d) -> (count, d), by Lloyd's algorithm from k-means++ starts.

    Draws from torch's own generator. With fewer points than clusters, points are repeated.
    """
    if len(points) <= count:
        return points[torch.arange(count, device=points.device) % len(points)].clone()
    centres = _spread(points, count)
    for _ in range(steps):
        nearest = torch.cdist(points, centres).argmin(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=count).unsqueeze(1)
        moved = torch.where(sizes > 0, sums / sizes.clamp_min(1), centres)  # an empty cluster stays where it was
        if torch.equal(moved, centres):
            break
        centres = moved
    return centres


def _spread(points: Tensor, count: int) -> Tensor:
    """k-means++: each further start is a point drawn by its squared distance to the nearest one so far."""
    chosen = [int(torch.randint(len(points), ()))]
    for _ in range(count - 1):
        distance = torch.cdist(points, points[chosen]).amin(1).square().cpu()
        weights = distance if float(distance.sum()) > 0 else torch.ones(len(points))
        chosen.append(int(torch.multinomial(weights, 1)))
    return points[chosen].clone()


LOSSES = ("hinge", "code")


@settings
class PODNetOptions(ResNetOptions):
    """``proxies`` per class; ``spatial`` and ``flat``: weights of the two distillations.

    ``loss``: "hinge" (the paper's eq. 10, with its ``margin``), or "code": what the authors' code computes (`nca_code`)
    and what trains in "tune".
    """

    proxies: Annotated[int, Field(ge=1, le=10**6)] = 10
    loss: Annotated[str, OneOf(LOSSES)] = "hinge"
    margin: Rate = 0.6
    spatial: Rate = 3.0
    flat: Rate = 1.0


class PODNet(ResNetMethod):
    """Learns with the old network as teacher of pooled maps and features; then tunes the proxies on balanced images."""

    name = "podnet"
    title = "PODNet"
    Options: ClassVar[type] = PODNetOptions
    final_relu = False  # features and maps are taken before the last ReLU

    def __init__(self, config: Config, stream: ClassStream) -> None:
        super().__init__(config, stream)
        self.teacher: ResNet | None = None

    def new_classifier(self) -> nn.Module:
        """Proxies and a learned scale."""
        return ProxyClassifier(self.options.proxies)

    def enter(self, task: Task, stage: Stage) -> None:
        """ "learn": new proxies, old ones frozen, the old encoder as teacher; "tune": all proxies and the scale.

        The authors' code leaves the scale as it is in "tune".
        """
        check_stage(self, stage, ["learn", "tune"])
        classifier = self.model.classifier
        if stage.name == "tune":
            self.requires_grad_(False)
            self.teacher = None
            classifier.requires_grad_(True)
            classifier.scale.requires_grad_(self.options.loss == "hinge")
            return
        self.teacher = frozen(self.model.encoder) if task.old else None
        self.model.requires_grad_(True)
        classifier.tasks.requires_grad_(False)
        classifier.grow(len(task.new), self.model.encoder.width)

    def initialise(self, task: Task, stage: Stage, batches: Iterator[Batch]) -> None:
        """New proxies of task 2 and later: cluster centres of each class's features, as long as the old proxies are."""
        if stage.name == "tune" or not task.old:
            return
        *old, new = self.model.classifier.tasks  # one parameter per task
        length = torch.cat([part.flatten(0, 1) for part in old]).norm(dim=1).mean()  # (old classes x proxies, width)
        found = [(F.normalize(self.features(batch.images).float()), batch.labels) for batch in batches]
        features, labels = torch.cat([f for f, _ in found]), torch.cat([y for _, y in found])
        for position, rank in enumerate(task.new):
            new[position] = length * k_means(features[labels == rank], self.options.proxies)

    def train(self, mode: bool = True) -> "PODNet":
        """As every method; but in the authors' code batch norm goes on taking its statistics from batches in "tune"."""
        super().train(mode)
        if mode and self.options.loss == "code":
            for module in self.model.encoder.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.train()
        return self

    def losses(self, batch: Batch, task: Task, stage: Stage) -> dict[str, Tensor]:
        """NCA; from task 2 on in "learn" also POD-spatial and POD-flat, which weigh more the more classes are old."""
        features, maps = self.model.encoder(batch.images)
        scores = self.model.classifier([features]).float()
        scale = self.model.classifier.scale
        hinge = self.options.loss == "hinge"
        loss = nca(scores, batch.labels, scale, self.options.margin) if hinge else nca_code(scores, batch.labels, scale)
        terms = {"nca": loss}
        if self.teacher is not None:
            with torch.no_grad():
                old_features, old_maps = self.teacher(batch.images)
            factor = (task.new.stop / len(task.new)) ** 0.5
            terms["pod_spatial"] = self.options.spatial * factor * pod_spatial(maps, old_maps)
            terms["pod_flat"] = self.options.flat * factor * pod_flat(features, old_features)
        return terms


def nca(scores: Tensor, labels: Tensor, scale: Tensor, margin: float) -> Tensor:
    """Mean of [log sum_{i != y} exp(scale s_i) - (scale s_y - margin)]_+ (PODNet, eq. 10): y is not in the sum.

    The margin stands outside the scale, as in the authors' code. Inside, as eq. 10 prints it, it pushes the learned
    scale below 0 before anything is learned, and then every image is given to the classes it resembles least.

    Args:
        scores: (B, classes) of the proxies.
        labels: (B,) ranks.
    """
    positive = F.one_hot(labels, scores.shape[1]).bool()
    others = (scale * scores).masked_fill(positive, -torch.inf).logsumexp(1)
    return F.relu(others - (scale * scores[positive] - margin)).mean()


def nca_code(scores: Tensor, labels: Tensor, scale: Tensor) -> Tensor:
    """The loss of the authors' code: mean of log sum_i exp(z_i) - z_y with z = scale s - max (scale s), where the sum
    has 0 in place of z_y.

    It takes the margin from every class, so that it cancels, and clamps nothing. Where the true class scores highest
    this is cross entropy; elsewhere the sum holds 1 for the true class, and the loss is cross entropy's or more.

    Args:
        scores: (B, classes) of the proxies.
        labels: (B,) ranks.
    """
    shifted = scale * scores
    shifted = shifted - shifted.amax(1, keepdim=True)
    positive = F.one_hot(labels, scores.shape[1]).bool()
    return (shifted.masked_fill(positive, 0).logsumexp(1) - shifted[positive]).mean()


def pooled(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C (H + W)) of length 1: squares summed over the width and, beside it, over the height."""
    squares = maps.float().square()
    return F.normalize(torch.cat([squares.sum(3).flatten(1), squares.sum(2).flatten(1)], 1))  # (B, C H), (B, C W)


def pod_spatial(maps: list[Tensor], old: list[Tensor]) -> Tensor:
    """Distance of the pooled maps, mean over images and over stages (PODNet, eq. 4)."""
    distances = [(pooled(a) - pooled(b)).norm(dim=1).mean() for a, b in zip(maps, old, strict=True)]
    return torch.stack(distances).mean()


def pod_flat(features: Tensor, old: Tensor) -> Tensor:
    """1 - cosine of the features, mean over images."""
    return (1 - F.cosine_similarity(features.float(), old.float())).mean()
