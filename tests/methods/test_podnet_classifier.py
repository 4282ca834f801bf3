"""PODNet's classifier against loops over its equations, and k-means against scikit-learn."""

import math

import pytest
import torch
from torch import Tensor

from dne_lab.methods.podnet import ProxyClassifier, k_means


def unit(x: Tensor) -> list[float]:
    length = math.sqrt(sum(float(v) ** 2 for v in x))
    return [float(v) / length for v in x]


def test_scores_are_those_of_the_equations() -> None:
    torch.manual_seed(0)
    classifier = ProxyClassifier(3).double()
    classifier.grow(2, 5)
    classifier.grow(1, 5)
    features = torch.randn(4, 5, dtype=torch.float64)
    found = classifier([features]).detach()
    proxies = [row for part in classifier.tasks for row in part.detach()]  # a class each
    for image, feature in enumerate(features):
        for rank, mine in enumerate(proxies):
            similar = []
            for proxy in mine:
                similar.append(-sum((a - b) ** 2 for a, b in zip(unit(proxy), unit(feature), strict=True)))
            weights = [math.exp(s) / sum(map(math.exp, similar)) for s in similar]
            expected = sum(w * s for w, s in zip(weights, similar, strict=True))
            assert float(found[image, rank]) == pytest.approx(expected, abs=1e-12)
    assert float(found.max()) <= 0


def test_growing_keeps_old_scores() -> None:
    classifier = ProxyClassifier(4)
    classifier.grow(3, 6)
    features = torch.randn(5, 6)
    before = classifier([features])
    classifier.grow(2, 6)
    after = classifier([features])
    assert after.shape == (5, 5) and torch.allclose(after[:, :3], before, atol=1e-6)
    assert [tuple(part.shape) for part in classifier.tasks] == [(3, 4, 6), (2, 4, 6)]


def test_k_means_finds_what_scikit_learn_finds() -> None:
    from sklearn.cluster import KMeans

    torch.manual_seed(3)
    places = torch.randn(4, 6, dtype=torch.float64) * 5
    points = (places.repeat_interleave(9, 0) + 0.3 * torch.randn(36, 6, dtype=torch.float64))[torch.randperm(36)]
    theirs = KMeans(4, n_init=20, random_state=0).fit(points.numpy())
    best = min((k_means(points, 4) for _ in range(5)), key=lambda c: float(torch.cdist(points, c).amin(1).sum()))
    ours = torch.tensor(sorted(best.tolist()))
    torch.testing.assert_close(ours, torch.tensor(sorted(theirs.cluster_centers_.tolist())), atol=1e-6, rtol=0)


def test_k_means_by_hand_and_at_its_edges() -> None:
    points = torch.tensor([[0.0], [1.0], [10.0], [12.0]])
    assert sorted(k_means(points, 2).flatten().tolist()) == [0.5, 11.0]
    assert k_means(points[:2], 3).flatten().tolist() == [0.0, 1.0, 0.0]  # fewer points than clusters
    assert torch.equal(k_means(torch.ones(9, 2), 3), torch.ones(3, 2))  # all alike
    torch.manual_seed(5)
    first = k_means(torch.arange(20.0).view(10, 2), 3)
    torch.manual_seed(5)
    assert torch.equal(first, k_means(torch.arange(20.0).view(10, 2), 3))
