"""PODNet's classifier: several proxies a class behind a cosine, and k-means to place them."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
        proxies = torch.cat([F.normalize(part, dim=2).flatten(0, 1) for part in self.tasks])
        scores = 2 * F.normalize(features) @ proxies.T - 2  # -|a - b|^2 of unit vectors
        scores = scores.unflatten(1, (-1, self.proxies))
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
