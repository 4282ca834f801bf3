"""How experts start: gated positional attention, task attention, lateral maps."""

from typing import Any

import pytest
import tiny
import torch

from dne_lab.core.config import Network
from dne_lab.models import literal
from dne_lab.models.attention import AttentionWeights
from dne_lab.models.bank import Context, TaskWeights, build
from dne_lab.models.block import TaskAttention
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.expert import TaskAttentionParameters, position_probabilities
from dne_lab.models.variants import DNE, PROGRESSIVE, Variant


def test_gpsa_starts_on_a_neighbourhood() -> None:
    model = tiny.model(DNE, (12, 1), shake=0, **tiny.AUTHORS)
    first, later = (tiny.expert(model, t).blocks[0].attention for t in (1, 2))
    for attention in (first, later):
        width = attention.qkv.shape[-1]
        assert torch.equal(attention.qkv[2], torch.eye(width))
        assert torch.equal(attention.gate, torch.ones(len(attention.gate)))
    assert later.position.abs().max() < 0.1  # truncated normal 0.02, no neighbourhood
    assert first.position[9:].abs().max() < 0.1
    looks = position_probabilities(first.position.detach(), (5, 7), 0)
    cells = set()
    for head in range(9):
        for row in range(1, 4):
            for column in range(1, 6):
                where = int(looks[head, row * 7 + column].argmax())
                cells.add((head, where // 7 - row, where % 7 - column))
    offsets = [(dy, dx) for _, dy, dx in sorted(cells)]
    assert len(offsets) == 9 and set(offsets) == {(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)}


def test_gpsa_start_same_patch_share() -> None:
    """The published geometry: with uniform content and gate sigmoid(1) the positions give expert 1 a share of 9.8%."""
    torch.manual_seed(0)
    model = ExpandableViT(Network(), (3, 32, 32), DNE)
    model.expand(12, 50)
    positional, mixture = [], []
    for block in tiny.expert(model, 1).blocks[:-1]:
        looks = position_probabilities(block.attention.position.detach(), (8, 8), 0)
        share = float(looks.diagonal(dim1=1, dim2=2).mean())
        gate = float(torch.sigmoid(block.attention.gate.detach()).mean())
        positional.append(share)
        mixture.append(gate * share + (1 - gate) / 64)
    assert sum(positional) / 5 == pytest.approx(0.128, abs=0.002)
    assert sum(mixture) / 5 == pytest.approx(0.098, abs=0.001)

    heard = []
    for module in model.modules():
        if isinstance(module, AttentionWeights):
            module.register_forward_hook(lambda *call: heard.append((call[1][1].kind, call[2])))
    with torch.no_grad():
        model(tiny.images(1, (3, 32, 32)))
    shares = [float(a.diagonal(dim1=2, dim2=3).mean()) for kind, a in heard if kind == "spatial"]
    assert len(shares) == 5 and sum(shares) / 5 == pytest.approx(0.098, abs=0.002)


def test_class_tokens_take_no_part_in_positions() -> None:
    looks = position_probabilities(torch.randn(2, 3), (2, 3), 1)
    assert looks.shape == (2, 7, 7)
    assert looks[:, 0].abs().sum() == 0 and looks[:, :, 0].abs().sum() == 0
    torch.testing.assert_close(looks[:, 1:].sum(-1), torch.ones(2, 6))


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_uniform_task_attention_is_a_linear_layer_over_all_heads(heads: int) -> None:
    """The remark under eq. 23, with W_q = 0 and lambda = H, on both ways of computing."""
    torch.manual_seed(0)
    old, inputs, outputs = 4, 4, 8
    model = tiny.model(DNE, (old, heads))
    parameters = tiny.expert(model, 2).blocks[0].mix1
    assert isinstance(parameters, TaskAttentionParameters)
    with torch.no_grad():
        parameters.w_q.zero_()
        parameters.scale.fill_(old + heads)
    z_old, z = torch.randn(2, 5, old, inputs), torch.randn(2, 5, heads, inputs)
    every = torch.cat([z_old, z], 2).flatten(2)
    expected = every @ parameters.w_v.flatten(0, 1) + parameters.b_v.sum(0)
    expected = expected.repeat(1, 1, heads)
    assert expected.shape[-1] == heads * outputs
    assert tiny.difference(literal._mix(parameters, [z_old, z]), expected) < 1e-5

    bank = build([tiny.expert(model, 2)], model.network, model.heads)
    weights = bank.layers[0].mix1
    assert isinstance(weights, TaskWeights)
    context = Context(old + heads)
    context.extend("task1", z_old, 2)
    point = TaskAttention("task1", 0, model.grid, 1)
    assert tiny.difference(point(z.unsqueeze(0), weights, bank, context)[0], expected) < 1e-5
    assert (
        tiny.difference(context.parts("task1", z[:, :, :0], 2)[0].flatten(2), every) == 0
    )  # later experts read these heads too


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.VARIANTS, ids=tiny.names)
def test_start_of_an_expert(variant: Variant, style: dict[str, Any]) -> None:
    model = tiny.model(variant, (3, 2), shake=0, **style)
    for layer, block in enumerate(tiny.expert(model, 2).blocks):
        for name in ("mix1", "mix2"):
            mix = getattr(block, name)
            is_task = variant.mixes == "task" or variant.mixes == name.replace("mix", "task")
            assert isinstance(mix, TaskAttentionParameters) == is_task
            if is_task:
                inputs, outputs = (4, 8) if name == "mix1" else (8, 4)
                assert {n: tuple(p.shape) for n, p in mix.named_parameters()} == {
                    "w_q": (inputs, inputs),
                    "w_k": (inputs, inputs),
                    "w_v": (5, inputs, outputs),
                    "b_v": (5, outputs),
                    "scale": (2,),
                }
                assert torch.equal(mix.scale, torch.full((2,), 5.0)) and mix.b_v.abs().max() == 0
                for weight in (mix.w_q, mix.w_k, mix.w_v):
                    assert weight.abs().max() < 0.1 and 0.01 < weight.std() < 0.03
        assert block.attention.qkv.shape == ((3, 4, 4) if variant.joint else (3, 8, 8))
        assert (block.norm_hidden is not None) == style["hidden_norm"]
        assert (block.attention.gate is not None) == (style["spatial"] == "gpsa" and layer == 0)
        if variant.mixes == "linear":
            assert torch.equal(block.lateral, torch.cat([torch.zeros(12, 8), torch.eye(8)]))
    first = tiny.expert(model, 1)
    assert not any(isinstance(m, TaskAttentionParameters) for m in first.modules())
    assert all(block.lateral is None and not block.joint for block in first.blocks)


def test_progressive_starts_as_independent_experts() -> None:
    """The lateral map starts as the identity on the expert's own tokens."""
    model, images = tiny.model(PROGRESSIVE, (2, 1, 1), shake=0), tiny.images(2)
    before = model.readouts(images)[-1]
    with torch.no_grad():
        for parameter in model.experts[0].parameters():
            parameter.add_(torch.randn_like(parameter))
    assert tiny.difference(model.readouts(images)[-1], before) < 1e-6
