"""Controls of a variant: three ways of computing agree, and each column does what it says."""

from typing import Any

import controlled
import numpy as np
import pytest
import reference
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dne_lab.analysis.connections import connections
from dne_lab.analysis.probe import probe
from dne_lab.core.errors import LabError
from dne_lab.models import literal
from dne_lab.models.attention import AttentionWeights
from dne_lab.models.controlled_attention import at_entropy, other_pictures
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, PROGRESSIVE, STA, Variant

EXACT = 1e-10
GATED = {"spatial": "gpsa", "readout": "cls_token", "hidden_norm": False}
SOME = [v for v in controlled.CONTROLS if v.pictures == "same" and v.projections == "shared"]


@pytest.mark.parametrize("style", [*tiny.STYLES, GATED], ids=tiny.names)
@pytest.mark.parametrize("variant", controlled.CONTROLS, ids=tiny.names)
def test_the_ways_of_computing_agree(variant: Variant, style: dict[str, Any]) -> None:
    """Literal and normal path, evaluated, trained, and with every hook on."""
    model, images = tiny.model(variant, (3, 1, 2, 1), **style).double(), tiny.images(3)
    for training in (False, True):
        model.train(training)
        with torch.no_grad():
            normal, printed = model(images), literal.forward(model, images)
        assert tiny.difference([normal.logits, *normal.readouts], [printed.logits, *printed.readouts]) < EXACT
    points = [part for part in model.modules() if isinstance(part, AttentionWeights)]
    shapes = []
    handles = [p.register_forward_hook(lambda *call: shapes.append(len(call[2]))) for p in points]
    assert tiny.difference(model(images).logits, normal.logits) < EXACT
    assert {*shapes} == {3}  # of the images asked for alone
    for handle in handles:
        handle.remove()
    assert len(model.banks()) == 4


@pytest.mark.parametrize("variant", controlled.CONTROLS, ids=tiny.names)
def test_gradients_agree_and_reach_everything(variant: Variant) -> None:
    model, images = tiny.model(variant, (2, 1, 2), **GATED).double().train(), tiny.images(3)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    grads = []
    for forward in (model, lambda x: literal.forward(model, x)):
        output = forward(images)
        loss = output.logits.square().mean() + output.expertise.sigmoid().mean()
        grads.append(torch.autograd.grad(loss, list(trained.values())))
    largest = max(g.abs().max() for g in grads[1])
    for name, one, other in zip(trained, *grads, strict=True):
        assert (one - other).abs().max() < EXACT * largest, name
        assert one.abs().max() > 0 or "gate" in name or "position" in name or "qkv" in name, name


@settings(derandomize=True, deadline=None, max_examples=6)
@given(variant=st.sampled_from(SOME), heads=st.lists(st.integers(1, 3), min_size=2, max_size=4), seed=st.integers(0, 9))
def test_plain_loops_give_the_same(variant: Variant, heads: list[int], seed: int) -> None:
    """`reference` knows the columns that change a row of attention; it shares no code with the package."""
    model, images = tiny.model(variant, heads, shape=(1, 4, 8), seed=seed, **GATED).double(), tiny.images(1, (1, 4, 8))
    truth = reference.forward(model, images)
    with torch.no_grad():
        assert tiny.difference(model(images).logits, truth.logits) < EXACT


# The published rows ---------------------------------------------------------------------------------------------------


def test_published_rows_differ_by_the_papers_ideas_alone() -> None:
    assert all(not row.controls for row in tiny.PUBLISHED)
    assert [repr(row) for row in (IA, STA, DNE, PROGRESSIVE)] == [
        "Variant('ia', 'own', 'mlp')",
        "Variant('sta', 'all', 'mlp')",
        "Variant('dne', 'own', 'task')",
        "Variant('progressive', 'own', 'linear')",
    ]


@pytest.mark.parametrize("variant", controlled.CONTROLS, ids=tiny.names)
def test_all_else_starts_as_without_the_control(variant: Variant) -> None:
    plain = tiny.model(Variant("plain", variant.reads, variant.mixes), (2, 1, 1), shake=0, **tiny.AUTHORS)
    model = tiny.model(variant, (2, 1, 1), shake=0, **tiny.AUTHORS)
    there = plain.state_dict()
    same = [name for name, value in model.state_dict().items() if name in there and value.shape == there[name].shape]
    same = [name for name in same if not name.endswith("scale")]  # lambda starts at the number of heads that are read
    assert len(same) > 60 and all(torch.equal(model.state_dict()[name], there[name]) for name in same)


# What the columns do --------------------------------------------------------------------------------------------------


def test_frozen_zero_queries_are_uniform_weights() -> None:
    """w_q = 0 gives A = 1/H exactly; what the variant without queries computes is the same to rounding."""
    learned, uniform = (
        tiny.model(v, (3, 1, 2)).double() for v in (DNE, Variant("u", "own", "task", weights="uniform"))
    )
    missing, unexpected = uniform.load_state_dict(learned.state_dict(), strict=False)
    assert not missing and all(name.endswith(("w_q", "w_k")) for name in unexpected)
    with torch.no_grad():
        for expert in learned.experts:
            for block in expert.blocks:
                for tab in block.task_attention.values():
                    tab.w_q.zero_()
    images = tiny.images(2)
    for model in (learned, uniform):
        with probe(model, kind=("task1", "task2")) as maps:
            model(images)
        for one in maps:
            assert torch.equal(one.values, torch.full_like(one.values, 1 / one.values.shape[-1]))
    assert tiny.difference(learned(images).logits, uniform(images).logits) < EXACT


@pytest.mark.parametrize("style", [tiny.PAPER, GATED], ids=tiny.names)
def test_sta_without_foreign_keys_is_ia(style: dict[str, Any]) -> None:
    """At k = 1, whatever the first expert has: its parameters are IA's, and so is what it computes."""
    masked = Variant("m", "all", "mlp", masked="both")
    ia, sta = tiny.model(IA, (3, 1, 1), **style).double(), tiny.model(masked, (3, 1, 1), **style).double()
    assert ia.state_dict().keys() == sta.state_dict().keys()
    assert all(torch.equal(value, sta.state_dict()[name]) for name, value in ia.state_dict().items())
    assert tiny.difference(ia(tiny.images(3)).logits, sta(tiny.images(3)).logits) < EXACT


@pytest.mark.parametrize(("masked", "gone"), [("SPDH", 1), ("DPDH", 3), ("both", (1, 3))])
def test_masked_groups_have_no_mass(masked: str, gone: Any) -> None:
    model = tiny.model(Variant("m", "all", "mlp", masked=masked), (3, 1, 2), **GATED)
    with probe(model, kind="joint") as maps:
        model(tiny.images(2))
    for one in maps:
        axes, values = one.axes, one.values  # (b, h, p, kh, kp)
        assert axes.masked == masked and axes.allowed is None
        assert torch.allclose(values.sum((-1, -2)), torch.ones(()), atol=1e-5)
        frame = one.frame()
        same_patch = frame.query_patch == frame.key_patch
        foreign = (frame.query_expert != frame.key_expert) | (frame.query_head != frame.key_head)
        for group in np.atleast_1d(gone):
            rows = frame[foreign & (same_patch if group == 1 else ~same_patch)]
            assert len(rows) and (rows.attention == 0).all()


def test_the_mass_on_the_own_patch_is_that_of_ia() -> None:
    """By the row: over all heads what the softmax over the own head alone puts on the query's own position."""
    seen: list[Tensor] = []
    model = tiny.model(Variant("m", "all", "mlp", mass="ia"), (3, 1, 2), **tiny.PAPER).double()
    handle = model.blocks[0].joint.weights.register_forward_hook(lambda m, given, out: seen.extend([given[0], out]))
    model(tiny.images(2))
    handle.remove()
    for scores, a in zip(seen[::2], seen[1::2], strict=True):
        count, read = scores.shape[1], scores.shape[3]
        for head in range(count):
            own = scores[:, head, :, read - count + head].softmax(-1).diagonal(dim1=-2, dim2=-1)
            assert torch.allclose(a[:, head].diagonal(dim1=1, dim2=3).sum(1), own)
        assert torch.allclose(a.sum((-1, -2)), torch.ones((), dtype=a.dtype))


@pytest.mark.parametrize("variant", [v for v in controlled.CONTROLS if v.joint], ids=tiny.names)
def test_one_patch_is_a_grid_too(variant: Variant) -> None:
    """There is no other position then, and whatever is left sums to 1."""
    shape = (3, 4, 4)
    model, images = tiny.model(variant, (3, 1, 1), shape=shape, **tiny.AUTHORS).double(), tiny.images(2, shape)
    with probe(model, kind="joint") as maps:
        normal = model(images)
    assert tiny.difference(normal.logits, literal.forward(model, images).logits) < EXACT
    assert all(torch.allclose(one.values.sum((-1, -2)), torch.ones(())) for one in maps)


@pytest.mark.parametrize("reads", ["own", "all"])
def test_every_row_has_the_entropy_asked_for(reads: str) -> None:
    model = tiny.model(Variant("m", reads, "mlp", entropy=0.7), (3, 1, 2), **tiny.PAPER).double()
    with probe(model, kind="spatial" if reads == "own" else "joint", expert=(2, 3)) as maps:
        model(tiny.images(2))
    for one in maps:
        rows = one.values.double().flatten(3)
        entropy = -torch.xlogy(rows, rows).sum(-1)
        assert torch.allclose(entropy, torch.full_like(entropy, 0.7 * float(np.log(rows.shape[-1]))), atol=1e-5)


@pytest.mark.parametrize("scale", [0.05, 1.0, 30.0])
def test_the_gradient_keeps_the_entropy(scale: float) -> None:
    scores = torch.randn(3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * scale
    scores[0, 2] = float("-inf")
    rest = scores[1:].requires_grad_()
    assert torch.autograd.gradcheck(lambda x: at_entropy(x, 0.7), rest)
    rows = at_entropy(scores, 0.7)
    assert rows[0, 2] == 0
    wanted = torch.tensor([6.0, 7.0, 7.0], dtype=torch.float64).log() * 0.7
    assert torch.allclose(-torch.xlogy(rows, rows).sum(-1), wanted)
    equal = at_entropy(torch.zeros(1, 5, requires_grad=True), 0.5)
    assert torch.allclose(equal, torch.full((1, 5), 0.2))  # no temperature changes equal scores


@pytest.mark.parametrize("mixes", ["task", "linear", "mlp"])
@pytest.mark.parametrize("experts", ["first", "previous", "own"])
def test_an_expert_reads_those_it_is_said_to(experts: str, mixes: str) -> None:
    """Changing one that is not read changes nothing; the rows of connections say the same."""
    variant = Variant("r", "all" if mixes == "mlp" else "own", mixes, experts=experts)
    images, read = tiny.images(2), {"first": {1, 4}, "previous": {3, 4}, "own": {4}}[experts]
    for changed in (1, 2, 3):
        model = tiny.model(variant, (2, 1, 2, 1), depth=4, **tiny.AUTHORS)
        before = model.readouts(images)[3]
        with torch.no_grad():
            for parameter in tiny.expert(model, changed).parameters():
                parameter.add_(torch.randn_like(parameter))
        after = model.readouts(images)[3]
        reached = {"first": {1}, "previous": {1, 2, 3}, "own": set()}[experts]
        assert torch.equal(before, after) == (changed not in reached)
    rows = connections(model)
    kinds = {"task": ("task1", "task2"), "linear": ("lateral",), "mlp": ("joint", "class")}[mixes]
    assert {r["read"] for r in rows if r["reader"] == 4 and r["kind"] in kinds and r["read"] != 4} == read - {4}


@pytest.mark.parametrize("pictures", ["shuffled", "own"])
def test_other_pictures(pictures: str) -> None:
    """Evaluated: whatever else is in the batch, an image's logits are its own; what is kept to be read matters."""
    model, images = tiny.model(Variant("p", "all", "mlp", pictures=pictures), (2, 1, 1)).double(), tiny.images(6)
    assert model.pictures is not None
    model.keep_pictures(tiny.images(40, seed=5))
    whole, alone = model(images).logits, model(images[:1]).logits
    assert tiny.difference(whole[:1], alone) < EXACT
    model.keep_pictures(tiny.images(40, seed=6))
    assert tiny.difference(model(images).logits, whole) > 1e-4
    model.train()
    trained = model(images).logits
    order = [0, 3, 1, 5, 2, 4]
    assert tiny.difference(model(images[order]).logits, trained[order]) > 1e-6  # others of the batch


@pytest.mark.parametrize("pictures", ["shuffled", "own"])
@pytest.mark.parametrize("images", [1, 2, 3])
def test_other_pictures_than_the_own_one_also_in_a_small_batch(pictures: str, images: int) -> None:
    """With fewer images than heads that are read they are read over again; a single image reads those that are kept."""
    model = tiny.model(Variant("p", "all", "mlp", pictures=pictures), (18, 1), **tiny.PAPER).double()
    model.keep_pictures(tiny.images(40, seed=5))
    for training in (False, True):
        model.train(training)
        pixels = tiny.images(images)
        assert tiny.difference(model(pixels).logits, literal.forward(model, pixels).logits) < EXACT
        places = other_pictures(images + 16, model.banks()[-1], 18, torch.device("cpu"))
        assert not (places == torch.arange(images + 16)).any()
        assert (places[:, images:] >= images).all()
        assert (places[:, :images] < images).all() == (training and images > 1)


def test_the_table_of_a_drawing_says_what_is_left() -> None:
    seen = {}
    for masked in ("none", "SPDH", "DPDH", "both"):
        rows = connections(tiny.model(Variant("m", "all", "mlp", masked=masked), (3, 1), **tiny.PAPER))
        seen[masked] = [(r["patches"], r["keys"]) for r in rows if r["kind"] == "joint" and r["read"] == 1][:1]
    assert seen == {"none": [("all", 18)], "SPDH": [("others", 15)], "DPDH": [("same", 3)], "both": []}


# What cannot be -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("columns", "named"),
    [
        ({"experts": "last"}, "Variant.experts"),
        ({"experts": "first"}, "Variant.experts"),
        ({"weights": "uniform"}, "Variant.weights"),
        ({"masked": "SPDH"}, "Variant.masked"),
        ({"reads": "all", "mass": "ia", "masked": "both"}, "Variant.mass"),
        ({"reads": "all", "mass": "ia", "entropy": 0.5}, "Variant.mass"),
        ({"entropy": 0.5, "temperature": 2.0}, "Variant.temperature"),
        ({"entropy": 1.5}, "Variant.entropy"),
        ({"temperature": 0.0}, "Variant.temperature"),
        ({"entropy": True}, "Variant.entropy"),
        ({"temperature": 1e-320}, "Variant.temperature"),
        ({"mixes": "task", "most": -1}, "Variant.most"),
        ({"mixes": "task", "most": 2, "experts": "first"}, "Variant.most"),
        ({"mixes": "task", "most": 2, "weights": "uniform"}, "Variant.most"),
        ({"query_rate": 8.0}, "Variant.query_rate"),
        ({"mixes": "task", "query_rate": 0.0}, "Variant.query_rate"),
        ({"mixes": "task", "query_rate": float("nan")}, "Variant.query_rate"),
        ({"mixes": "task", "query_rate": 8.0, "weights": "uniform"}, "Variant.query_rate"),
        ({"reads": "all", "pictures": "own", "projections": "each"}, "Variant.pictures"),
        ({"reads": "all", "experts": "own", "pictures": "shuffled"}, "Variant.pictures"),
        ({"reads": "all", "experts": "own", "projections": "each"}, "Variant.projections"),
    ],
)
def test_a_variant_that_cannot_be(columns: dict[str, Any], named: str) -> None:
    with pytest.raises(LabError, match=named):
        Variant("x", **columns)


def restricted(variant: Variant, **style: Any) -> tuple[ExpandableViT, ExpandableViT]:
    """A model whose newest expert has chosen what it reads most, and the model before."""
    model, before = (tiny.model(Variant("b", variant.reads, variant.mixes), (3, 1, 2), **style) for _ in range(2))
    model.variant = variant
    model.restrict_task_attention()
    model.choose_most_read([tiny.images(6)])
    return model, before


@pytest.mark.parametrize("variant", controlled.RESTRICTING, ids=tiny.names)
def test_what_task_attention_is_restricted_to_follows_from_what_was_read(variant: Variant) -> None:
    model, before = restricted(variant, **tiny.AUTHORS)
    mass = before.mean_task_attention([tiny.images(6)])
    for (layer, name), seen in mass.items():
        tab = tiny.expert(model, 3).blocks[layer].task_attention[name]
        old = tiny.expert(before, 3).blocks[layer].task_attention[name]
        others = sorted(
            seen[:, :4].sum(0).argsort(descending=True)[: 4 if variant.most is None else variant.most].tolist()
        )
        assert torch.equal(tab.w_v, old.w_v[[*others, 4, 5]])
        assert (tab.read is None) == (variant.most is None) and (tab.read is None or tab.read.tolist() == others)
        if variant.weights == "means":
            left = seen[:, [*others, 4, 5]]
            assert torch.allclose(tab.means, (left / left.sum(1, keepdim=True)).float())
    with torch.no_grad():
        normal, printed = model(tiny.images(2)), literal.forward(model, tiny.images(2))
    assert tiny.difference(normal.logits, printed.logits) < 1e-5
