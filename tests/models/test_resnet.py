"""Residual networks: torchvision's are the oracle; published sizes and costs; what they refuse."""

from typing import Any

import pytest
import tiny
import torch
from torch import nn

from dne_lab.core.errors import LabError
from dne_lab.measure.cost import count, flops
from dne_lab.models.classifier import ExpandableClassifier
from dne_lab.models.resnet import PLANS, BasicBlock, Classified, ResNet


def network(name: str, shape: tuple[int, int, int], width: int | None = None, classes: int = 100) -> Classified:
    net = Classified(ResNet(name, shape, width), ExpandableClassifier())
    net.classifier.grow(classes, net.encoder.width)
    return net.eval()


def shaken(net: nn.Module) -> nn.Module:
    """Every weight and statistic off its start, so that nothing is hidden by a gain of 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point() and name not in ("mean", "std"):
                noise = torch.rand(value.shape, generator=generator)
                value.copy_(noise + 0.5 if value.dim() < 2 else (noise - 0.5) * 0.3)
    return net


@pytest.mark.parametrize(
    ("name", "side"), [("resnet18", 16), ("resnet18-224", 64), ("resnet34", 8), ("resnet50", 16), ("resnet101", 8)]
)
@pytest.mark.parametrize("final_relu", [True, False])
def test_it_computes_what_torchvisions_does(name: str, side: int, final_relu: bool) -> None:
    import torchvision.models

    theirs: Any = getattr(torchvision.models, name.removesuffix("-224"))(weights=None)
    if not PLANS[name].large:  # the modification: a small stem without pooling
        theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    theirs.fc = nn.Identity()
    shaken(theirs).eval()
    ours = ResNet(name, (3, side, side), mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3), final_relu=final_relu).eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert set(missing) == {"mean", "std"} and not unexpected
    images = tiny.images(2, (3, side, side))
    found = ours(images)
    pooled = theirs(ours.normalised(images))
    assert tiny.difference(found.maps[-1].relu().mean((2, 3)), pooled) < 1e-5
    assert [tuple(m.shape[1:]) for m in found.maps][-1] == (ours.width, *[side // (32 if PLANS[name].large else 8)] * 2)
    last = found.maps[-1]
    assert bool((last < 0).any())  # before the ReLU
    assert tiny.difference(found.features, (last.relu() if final_relu else last).mean((2, 3))) < 1e-6


@pytest.mark.parametrize(
    ("name", "shape", "gflops", "millions"),
    [
        ("resnet18", (3, 32, 32), 1.111, 11.22),
        ("resnet34", (3, 32, 32), 2.319, 21.33),
        ("resnet50", (3, 32, 32), 2.596, 23.71),
        ("resnet101", (3, 32, 32), 5.020, 42.70),
        ("resnet152", (3, 32, 32), 7.445, 58.34),
        ("resnet32", (3, 32, 32), 0.139, 0.473),
        ("resnet18-224", (3, 224, 224), 3.628, 11.23),
    ],
)
def test_published_sizes_and_costs(name: str, shape: tuple[int, int, int], gflops: float, millions: float) -> None:
    with torch.device("meta"):
        net = network(name, shape)
    assert flops(net, shape, "meta") / 1e9 == pytest.approx(gflops, rel=0.01)
    assert count(net) / 1e6 == pytest.approx(millions, rel=0.01)


def test_a_block_starts_as_its_shortcut() -> None:
    net = ResNet("resnet18", (3, 8, 8), 4).eval()
    x = torch.randn(2, 4, 8, 8)
    first, second = net.get_submodule("layer1").children()
    assert torch.equal(first(x), x) and torch.equal(second(x), x)
    assert sum(isinstance(m, BasicBlock) for m in net.modules()) == 8


def test_width_is_that_of_every_stage() -> None:
    net = ResNet("resnet32", (3, 8, 8), 6)
    assert [m.shape[1] for m in net(tiny.images(2, (3, 8, 8))).maps] == [6, 12, 24]
    assert (net.width, net.conv1.out_channels) == (24, 6)


def test_what_is_refused() -> None:
    with pytest.raises(LabError, match=r"unknown network 'resnet19'\. Did you mean resnet18"):
        ResNet("resnet19", (3, 32, 32))
    with pytest.raises(LabError, match=r"resnet18-224 needs images of at least 32 x 32.*Allowed: resnet18, .*resnet32"):
        ResNet("resnet18-224", (3, 16, 16))
    with pytest.raises(LabError, match="width = 0"):
        ResNet("resnet18", (3, 32, 32), 0)
    with pytest.raises(LabError, match=r"uint8 images of shape \(B, 3, 8, 8\)"):
        ResNet("resnet18", (3, 8, 8), 2)(torch.zeros(1, 3, 8, 8))
