"""A training step's two halves, what frozen experts offer and the newest expert's pass, each compile to one graph."""

import os

import pytest
import tiny
import torch
from torch import Tensor

from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, STA, Variant


def losses(model: ExpandableViT, backend: str) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """What is offered, the newest pass's outputs, and the gradients of a sum over them."""
    torch._dynamo.reset()
    offer, newest = (
        (model.offer, model.forward_newest)
        if backend == "none"
        else (torch.compile(part, fullgraph=True, backend=backend) for part in (model.offer, model.forward_newest))
    )
    images = tiny.images(4)
    offered = offer(images, model.banks()[:-1])
    out = newest(images, offered)
    made = [out.logits, out.expertise]
    mine = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(sum((one * one).sum() for one in made), mine, allow_unused=True)
    return list(offered), made, list(gradients)


def compare(model: ExpandableViT, backend: str, tolerance: float) -> None:
    for one, other in zip(losses(model, "none"), losses(model, backend), strict=True):
        assert len(one) and tiny.difference(one, other) <= tolerance


@pytest.mark.parametrize("variant", [DNE, IA, STA], ids=tiny.names)
def test_the_halves_of_a_step_are_one_graph_each(variant: Variant) -> None:
    compare(tiny.model(variant, (2, 1, 1)), "eager", 0.0)


@pytest.mark.skipif("DNE_LAB_INDUCTOR" not in os.environ, reason="building kernels takes a minute: DNE_LAB_INDUCTOR=1")
def test_the_compiler_of_kernels_takes_them() -> None:
    compare(tiny.model(DNE, (1, 1), **{**tiny.PAPER, "depth": 1}), "inductor", 1e-5)
