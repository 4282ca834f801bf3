"""The plain loops of `reference`, the literal path and the normal path are one function."""

import copy
import itertools
from typing import Any

import pytest
import reference
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dne_lab.models import block, literal
from dne_lab.models.attention import AttentionWeights
from dne_lab.models.bank import Context
from dne_lab.models.expandable import ExpandableViT, Output
from dne_lab.models.variants import DNE, STA, Variant

FLOAT64, FLOAT32, BF16 = 1e-10, 1e-5, 2e-2
CHOICES = [
    {"spatial": s, "readout": r, "hidden_norm": (s == "mhsa") == (r == "cls_token")}
    for s in ("mhsa", "gpsa")
    for r in ("cls_token", "class_attention")
]


def both(model: ExpandableViT, images: Tensor) -> tuple[Output, Output]:
    """What the normal and the literal path give."""
    with torch.no_grad():
        return model(images), literal.forward(model, images)


def agreement(model: ExpandableViT, images: Tensor) -> float:
    """The normal path's difference from the literal path, over every output."""
    normal, printed = both(model, images)
    pairs: list[tuple[Tensor | None, Tensor | None]] = [
        (normal.logits, printed.logits),
        (normal.old_logits, printed.old_logits),
        (normal.expertise, printed.expertise),
        *zip(normal.readouts, printed.readouts, strict=True),
    ]
    return max(tiny.difference(a, b) for a, b in pairs if b is not None)


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.VARIANTS, ids=tiny.names)
def test_all_three_ways_agree(variant: Variant, choice: dict[str, Any]) -> None:
    model, images = tiny.model(variant, (3, 1, 2, 1), **choice), tiny.images(1)
    truth = reference.forward(model, images)
    for output in both(model, images):
        assert tiny.difference([output.logits, *output.readouts], [truth.logits, *truth.readouts]) < FLOAT32
    truth = reference.forward(model.double(), images)  # now with the normalisation constants in float64
    for output in both(model, images):
        assert tiny.difference([output.logits, *output.readouts], [truth.logits, *truth.readouts]) < FLOAT64


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
def test_what_a_layer_hands_out_is_what_the_next_step_reads(style: dict[str, Any]) -> None:
    """Eq. 16-23 on the intermediate tensors alone, for the newest of experts with 3, 1 and 2 heads."""
    model, images = tiny.model(DNE, (3, 1, 2), **style), tiny.images(2)
    with torch.no_grad():
        found = list(literal.layers(model, images))
        assert len(found) == model.network.depth
        for layer, (s, z, o, r) in zip(tiny.expert(model, 3).blocks, found, strict=True):
            assert torch.equal(layer.norm2(s[-1]).unflatten(-1, (2, -1)), z[-1])
            hidden = torch.nn.functional.gelu(reference_tab(layer.mix1, z))
            if layer.norm_hidden is not None:
                hidden = layer.norm_hidden(hidden.flatten(2)).unflatten(-1, (2, -1))
            assert tiny.difference(hidden, o[-1]) < FLOAT32
            assert tiny.difference(s[-1] + reference_tab(layer.mix2, o).flatten(2), r[-1]) < FLOAT32
        assert torch.equal(tiny.expert(model, 3).norm(found[-1].r[-1][:, 0]), literal.readouts(model, images)[-1])


def reference_tab(tab: Any, z: list[Tensor]) -> Tensor:
    """Eq. 19-23 patch by patch and head by head, (B, n, H_t, D_out)."""
    heads = torch.cat(z, 2)
    out = torch.zeros(*z[-1].shape[:3], tab.w_v.shape[2])
    for image, patch, i in itertools.product(*map(range, z[-1].shape[:3])):
        q = z[-1][image, patch, i] @ tab.w_q
        c = torch.stack([q @ (heads[image, patch, j] @ tab.w_k) for j in range(heads.shape[2])])
        a = (c / len(q) ** 0.5).softmax(0)
        for j in range(heads.shape[2]):
            out[image, patch, i] += tab.scale[i] * a[j] * (heads[image, patch, j] @ tab.w_v[j] + tab.b_v[j])
    return out


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [STA, DNE, Variant("both", "all", "task")], ids=tiny.names)
@pytest.mark.parametrize("heads", [(1, 1, 1), (2, 2), (1, 4, 4), (2, 7), (4, 1, 3, 2, 1, 1)], ids=str)
def test_any_number_of_heads(heads: tuple[int, ...], variant: Variant, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, heads, **style).double(), tiny.images(1)
    truth = reference.forward(model, images)
    for output in both(model, images):
        assert tiny.difference([output.logits, *output.readouts], [truth.logits, *truth.readouts]) < FLOAT64


@settings(derandomize=True, deadline=None, max_examples=12)
@given(
    heads=st.lists(st.integers(1, 4), min_size=1, max_size=7),
    reads=st.sampled_from(("own", "all")),
    mixes=st.sampled_from(("mlp", "task", "task1", "task2", "linear")),
    choice=st.sampled_from(CHOICES),
    depth=st.integers(2, 3),
    patch=st.sampled_from((2, 4)),
    seed=st.integers(0, 99),
)
def test_random_networks(
    heads: list[int], reads: str, mixes: str, choice: dict[str, Any], depth: int, patch: int, seed: int
) -> None:
    shape = (1, 4, 8)
    model = tiny.model(Variant("user", reads, mixes), heads, shape=shape, depth=depth, patch=patch, seed=seed, **choice)
    images = tiny.images(1, shape, seed)
    truth = reference.forward(model.double(), images)
    for output in both(model, images):
        assert tiny.difference(output.logits, truth.logits) < FLOAT64


@pytest.mark.parametrize(
    ("variant", "style"),
    [
        *((variant, tiny.AUTHORS) for variant in tiny.PUBLISHED),
        (STA, tiny.PAPER),
        (Variant("both", "all", "task"), tiny.PAPER),
    ],
    ids=tiny.names,
)
def test_many_experts(variant: Variant, style: dict[str, Any]) -> None:
    heads = (3, *(1 if t % 5 else 2 for t in range(25)))
    model, images = tiny.model(variant, heads, classes=1, shake=0.1, **style), tiny.images(2)
    normal, printed = both(model, images)
    # The logits alone: in float32 a single read-out of the literal path is itself 2e-5 off its value in float64 here.
    assert tiny.difference(normal.logits, printed.logits) < FLOAT32
    assert agreement(model.double(), images) < FLOAT64
    assert len(model.banks()) == 6  # however many experts: expert 1, four banks, the newest


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
def test_autocast(variant: Variant, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, (3, 1, 2, 1, 2, 1, 1), shake=0.1, **style), tiny.images(4)
    _, printed = both(model, images)
    model._banks = None
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits = model(images).logits
    assert tiny.difference(logits, printed.logits) < BF16
    assert agreement(model, images) < FLOAT32  # nothing that autocast rounded is kept


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [STA, DNE], ids=tiny.names)
def test_prepared_products_follow_their_parameters(variant: Variant, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, (2, 1, 2, 1, 1, 1, 2), **style).double(), tiny.images(2)
    before = model(images).logits.detach()

    for step in range(2):  # optimiser steps of the newest expert
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
        optimiser.zero_grad()
        model(images).logits.square().mean().backward()
        optimiser.step()
        assert agreement(model, images) < FLOAT64, step
    assert tiny.difference(model(images).logits, before) > 1e-3

    with torch.no_grad():  # an in-place edit of an old expert
        mixing = tiny.expert(model, 3).blocks[0].mix1
        target = mixing.w_q if variant is DNE else mixing.weight
        target.mul_(-3)
    edited = model(images).logits.detach()
    assert tiny.difference(edited, before) > 1e-6
    assert agreement(model, images) < FLOAT64

    other = tiny.model(variant, (2, 1, 2, 1, 1, 1, 2), seed=5, **style).double()
    model.load_state_dict(other.state_dict())
    assert torch.equal(model(images).logits, other(images).logits)
    other = tiny.model(variant, (2, 1, 2, 1, 1, 1, 2), seed=6, **style).double()
    model.load_state_dict(other.state_dict(), assign=True)
    assert agreement(model, images) < FLOAT64

    clone = copy.deepcopy(model)
    assert torch.equal(clone(images).logits, model(images).logits)
    with torch.no_grad():
        tiny.expert(clone, 2).embed.weight.mul_(2)
    assert agreement(clone, images) < FLOAT64
    assert agreement(model, images) < FLOAT64
    assert not torch.equal(clone(images).logits, model(images).logits)

    assert agreement(model.float(), images) < FLOAT32


def test_new_values_at_an_old_address_are_seen() -> None:
    """The allocator may give a new tensor the place of the one that a product was prepared from."""
    for seed in range(4):
        model, images = tiny.model(DNE, (2, 1, 1, 2, 1, 2, 1, 1), seed=seed).double(), tiny.images(2)
        with torch.no_grad():
            model(images)
        values = tiny.expert(model, 4).blocks[0].mix1.w_v
        address = values.data_ptr()
        for _ in range(20):
            values.data = values.data * 1.1
            if values.data_ptr() == address:
                break
        assert agreement(model, images) < FLOAT64
        model.float().double()  # rounded, and of the old type again
        assert agreement(model, images) < FLOAT64


def test_growth_after_a_change_of_type() -> None:
    model = tiny.model(DNE, (2, 1)).double()
    model.expand(2, 3)
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert agreement(model, tiny.images(2)) < FLOAT64


@pytest.mark.parametrize("variant", [STA, DNE], ids=tiny.names)
def test_evaluation_in_inference_mode_does_not_spoil_training(variant: Variant) -> None:
    model, images = tiny.model(variant, (2, 1, 1, 2, 1, 1, 1), **tiny.AUTHORS), tiny.images(2)
    with torch.inference_mode():
        model(images)
    model(images).logits.sum().backward()
    assert agreement(model, images) < FLOAT32


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
@pytest.mark.parametrize("variant", [*tiny.PUBLISHED, Variant("both", "all", "task")], ids=tiny.names)
def test_a_listener_changes_nothing(variant: Variant, choice: dict[str, Any]) -> None:
    """Fused and explicit attention give the same logits, and a hook that is gone leaves no trace."""
    model, images = tiny.model(variant, (3, 1, 2, 1, 1, 2, 1), **choice), tiny.images(2)
    alone = model(images).logits
    fired = []
    handles = [
        module.register_forward_hook(lambda *call: fired.append(call[1][1].kind))
        for module in model.modules()
        if isinstance(module, AttentionWeights)
    ]
    heard = model(images).logits
    assert set(fired) >= {"spatial"}
    assert tiny.difference(heard, alone) < FLOAT32
    for handle in handles:
        handle.remove()
    assert torch.equal(model(images).logits, alone)


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
def test_computing_in_parts(monkeypatch: pytest.MonkeyPatch, style: dict[str, Any]) -> None:
    model, images = tiny.model(DNE, (2, 1, 2, 1, 1, 2, 1), **style).double(), tiny.images(5)
    whole = model(images).logits
    monkeypatch.setitem(block.LARGEST, "cpu", 2**12)
    calls = []
    original = block.mix_values

    def counted(a: Tensor, z: Tensor, w_v: Tensor) -> Tensor:
        calls.append(len(a))
        return original(a, z, w_v)

    monkeypatch.setattr(block, "mix_values", counted)
    assert tiny.difference(model(images).logits, whole) < FLOAT64
    assert min(calls) < 5
    assert agreement(model, images) < FLOAT64


@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
def test_gradients_agree(variant: Variant) -> None:
    model, images = tiny.model(variant, (2, 1, 2, 1, 2), **tiny.AUTHORS).double(), tiny.images(3)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = []
    for forward in (model, lambda x: literal.forward(model, x)):
        output = forward(images)
        assert output.expertise is not None
        loss = output.logits.square().mean() + output.expertise.sigmoid().mean()
        grads.append(torch.autograd.grad(loss, list(trained.values())))
    largest = max(g.abs().max() for g in grads[1])
    for name, one, other in zip(trained, *grads, strict=True):
        assert (one - other).abs().max() < FLOAT64 * largest, name


def test_heads_of_earlier_experts_are_not_copied() -> None:
    context = Context(6)
    first, second = torch.randn(2, 5, 3, 4), torch.randn(2, 5, 2, 4)
    before = context.extend("task1", first, 2)
    after = context.extend("task1", second, 2)
    assert torch.equal(after, torch.cat([first, second], 2))
    assert after.data_ptr() == before.data_ptr()
    own = torch.randn(2, 5, 1, 4, requires_grad=True)
    parts = context.parts("task1", own, 2)
    assert [part.requires_grad for part in parts] == [False, True]
    assert parts[0].data_ptr() == before.data_ptr() and parts[1] is own


def test_an_expert_that_is_thawed_by_hand_gets_its_gradient() -> None:
    model, images = tiny.model(DNE, (2, 1, 2), **tiny.AUTHORS).double(), tiny.images(3)
    for number in (1, 2):
        tiny.expert(model, number).requires_grad_(True)
        model.zero_grad()
        model(images).logits.square().sum().backward()
        ours = [p.grad.clone() for p in tiny.expert(model, number).parameters() if p.grad is not None]
        model.zero_grad()
        literal.forward(model, images).logits.square().sum().backward()
        theirs = [p.grad.clone() for p in tiny.expert(model, number).parameters() if p.grad is not None]
        assert len(ours) == len(theirs) > 10
        assert max(tiny.difference(a, b) for a, b in zip(ours, theirs, strict=True)) < FLOAT64
        tiny.expert(model, number).requires_grad_(False)


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
@pytest.mark.parametrize("later", [(1,), (1, 2, 4, 7, 1)], ids=["k1", "mixed"])
def test_twenty_six_experts(variant: Variant, style: dict[str, Any], later: tuple[int, ...]) -> None:
    heads = (3, *(later * 25)[:25])
    model, images = tiny.model(variant, heads, **style), tiny.images(2)
    assert len(model.banks()) == 6  # expert 1, four banks, the newest
    normal, printed = both(model, images)
    # The logits alone: in float32 a single read-out of the literal path is itself 2e-5 off its value in float64 here.
    assert tiny.difference(normal.logits, printed.logits) < FLOAT32
    assert agreement(model.double(), images) < FLOAT64
