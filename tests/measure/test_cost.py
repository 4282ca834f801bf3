"""What the published geometry (the authors' code, patch 4 on 32 pixels) costs, counted on the paths that run."""

import functools
from fractions import Fraction

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from dne_lab.core.config import Network
from dne_lab.core.errors import LabError
from dne_lab.measure.cost import blank_stream, count_tasks, final_parameters, flops, refuse_uncountable
from dne_lab.methods import base
from dne_lab.models import literal
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, Variant

SHAPE = (3, 32, 32)


@functools.cache
def model(variant: Variant, heads: tuple[int, ...], tasks: int) -> ExpandableViT:
    """50 classes, then the other 50 in equal tasks; the values of the weights do not matter."""
    with torch.device("meta"):
        net = ExpandableViT(Network(heads=heads), SHAPE, variant)
        for task in range(1, tasks + 1):
            net.expand(net.network.heads_of(task), 50 if task == 1 else 50 // (tasks - 1))
    net.requires_grad_(False).eval().to_empty(device="cpu")
    for values in (*net.parameters(), *net.buffers()):
        values.zero_()
    return net


@functools.cache
def literal_flops(net: ExpandableViT) -> int:
    """One image on the literal path (`flops` computes four): all but the position scores, which need no image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net.classifier(literal.readouts(net, torch.zeros((1, *SHAPE), dtype=torch.uint8)))
    pairs, gated_blocks = (SHAPE[1] // net.network.patch) ** 4, net.network.depth - 1
    return counter.get_total_flops() - 2 * 3 * pairs * sum(net.heads) * gated_blocks


def spent_flops(net: ExpandableViT) -> int:
    """One image on the normal path."""
    return flops(lambda images: net.classifier(net.readouts(images)), SHAPE)


def test_counting_one_image_is_counting() -> None:
    net = model(IA, (1, 1), 2)
    assert flops(lambda images: net.classifier(literal.readouts(net, images)), SHAPE) == literal_flops(net)


def test_fused_attention_is_counted() -> None:
    """As the two products that it stands for: not every torch has a formula for it."""
    scores = 2 * 3 * 64 * 64 * 16  # three heads of 16, 64 patches
    fused = lambda images: torch.nn.functional.scaled_dot_product_attention(*[images.float().view(-1, 3, 64, 16)] * 3)  # noqa: E731
    assert flops(fused, SHAPE) == 2 * scores


@pytest.mark.parametrize(("heads", "tasks", "giga"), [(1, 6, 2.542), (2, 6, 2.925), (4, 6, 3.794), (1, 11, 4.292)])
def test_literal_cost_of_dne(heads: int, tasks: int, giga: float) -> None:
    assert literal_flops(model(DNE, (12, heads), tasks)) / 1e9 == pytest.approx(giga, rel=0.01)


def test_literal_cost_of_dne_is_quadratic_in_the_tasks() -> None:
    """Three counts give the parabola, a fourth lies on it to the last operation, and so 26 tasks need not be run."""
    counts = {tasks: literal_flops(model(DNE, (12, 1), tasks)) for tasks in (2, 3, 6, 11)}

    def parabola(tasks: int) -> Fraction:
        total, points = Fraction(0), (2, 3, 6)
        for at in points:
            weight = Fraction(1)
            for other in points:
                weight *= Fraction(tasks - other, at - other) if other != at else 1
            total += weight * counts[at]
        return total

    assert parabola(11) == counts[11]
    assert float(parabola(26)) / 1e9 == pytest.approx(12.04, rel=0.01)


@pytest.mark.parametrize(("heads", "giga"), [(1, 1.265), (2, 1.402), (4, 1.920), (7, 3.310), (12, 7.255)])
def test_literal_cost_of_independent_attention(heads: int, giga: float) -> None:
    assert literal_flops(model(IA, (12, heads), 6)) / 1e9 == pytest.approx(giga, rel=0.01)


@pytest.mark.parametrize(("tasks", "most"), [(6, 1.75), (11, 2.45), (26, 5.45)])
def test_spent_cost_of_dne(tasks: int, most: float) -> None:
    assert 0.95 * most < spent_flops(model(DNE, (12, 1), tasks)) / 1e9 <= most


@pytest.mark.parametrize("method", ["icarl", "podnet", "der", "foster", "joint-resnet", "dytox", "dne"])
def test_networks_made_without_memory_have_as_many_parameters(method: str) -> None:
    config = base.configure(method, "digits", {"options.width": 4} if "resnet" in base.find(method).__module__ else {})
    stream = blank_stream((4, 3, 3), (1, 8, 8))
    stream = stream.joint() if base.find(method).joint else stream
    assert final_parameters(config, stream) == count_tasks(config, stream)[-1]["params_total"]


def test_what_would_take_minutes_to_count_is_refused() -> None:
    config = base.configure("dytox", "digits", {"data.tasks": [1] * 101, "memory.budget": 200})
    with pytest.raises(LabError, match="for up to 100 tasks, not 101"):
        refuse_uncountable(config, blank_stream([1] * 101))
    config = base.configure("icarl", "digits", {"options.width": 20_000})
    with pytest.raises(LabError, match=r"options\.width = 20000: the network of task 1 needs [\d,]+ GB"):
        refuse_uncountable(config, blank_stream((4, 2, 2, 2), (1, 8, 8)))
    config = base.configure("dne", "digits", {"network.heads": "3,100000"})  # by formula, at once
    refuse_uncountable(config, blank_stream((4, 2, 2, 2), (1, 8, 8)))
