"""What growth must leave as it was, and what must learn."""

import copy
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor

from dne_lab.core import chance
from dne_lab.models import literal
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, STA, Variant

BOTH = Variant("both", "all", "task")


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [*tiny.PUBLISHED, BOTH], ids=tiny.names)
def test_old_logits_stay(variant: Variant, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, (3, 1, 2), **style), tiny.images(4)
    with torch.no_grad():
        normal, printed = model(images), literal.forward(model, images)
        model.expand(2, 3)
        grown, grown_printed = model(images), literal.forward(model, images)
    old = printed.logits.shape[1]
    assert grown.logits.shape[1] == old + 3
    # Not bit for bit: some versions of torch add up a product in another order where a matrix lies elsewhere in memory.
    assert tiny.difference(grown_printed.logits[:, :old], printed.logits) < 1e-5
    assert grown_printed.old_logits is not None
    assert tiny.difference(grown_printed.old_logits, printed.logits) < 1e-5
    for after, before in zip(grown_printed.readouts, printed.readouts, strict=False):
        assert tiny.difference(after, before) < 1e-5
    assert tiny.difference(grown.logits[:, :old], normal.logits) < 1e-5
    assert tiny.difference(grown.old_logits, normal.logits) < 1e-5
    assert tiny.difference(grown.readouts[:3], normal.readouts) < 1e-5
    assert grown.expertise is not None and grown.expertise.shape == (4, 4)


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [*tiny.PUBLISHED, BOTH], ids=tiny.names)
def test_an_expert_is_read_by_later_ones_only(variant: Variant, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, (2, 1, 2, 1, 1), **style), tiny.images(2)
    with torch.no_grad():
        before, printed = model.readouts(images), literal.readouts(model, images)
        for parameter in model.experts[2].parameters():
            parameter.add_(torch.randn_like(parameter))
        after, reprinted = model.readouts(images), literal.readouts(model, images)
    for old, new, old_printed, new_printed in zip(before[:2], after, printed, reprinted, strict=False):
        assert torch.equal(old_printed, new_printed)
        assert tiny.difference(new, old) < 1e-5
    assert tiny.difference(after[2], before[2]) > 1e-3
    for old, new in zip(before[3:], after[3:], strict=True):
        assert torch.equal(old, new) if variant == IA else tiny.difference(new, old) > 1e-4


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
def test_one_expert_is_a_plain_transformer_in_every_variant(style: dict[str, Any]) -> None:
    images = tiny.images(3)
    plain = tiny.model(IA, (3,), **style)
    for variant in (STA, DNE, BOTH):
        other = tiny.model(variant, (3,), **style)
        assert other.state_dict().keys() == plain.state_dict().keys()
        assert torch.equal(other(images).logits, plain(images).logits)
        assert torch.equal(literal.forward(other, images).logits, literal.forward(plain, images).logits)
    assert plain(images).old_logits is None and plain(images).expertise is None


@pytest.mark.parametrize("variant", [*tiny.PUBLISHED, BOTH], ids=tiny.names)
def test_stochastic_depth_leaves_old_logits_alone(variant: Variant) -> None:
    model, images = tiny.model(variant, (2, 1, 2), drop_path=0.5, depth=3, **tiny.AUTHORS), tiny.images(8)
    before = copy.deepcopy(model).eval()
    model.expand(1, 2)
    model.train()
    one, two = model(images), model(images)
    assert one.old_logits is not None and two.old_logits is not None
    assert torch.equal(one.old_logits, two.old_logits)
    assert tiny.difference(one.old_logits, before(images).logits) < 1e-5
    assert not torch.equal(one.readouts[-1], two.readouts[-1])  # the newest expert's depth is stochastic
    key: chance.Key = (0, "test")
    outputs: list[Tensor] = []
    for order in (range(8), range(7, -1, -1)):
        index = torch.tensor([*order])
        with chance.batch(key, index):
            outputs.append(model(images[index]).logits.detach()[torch.argsort(index)])
    assert tiny.difference(*outputs) < 1e-5  # an image's draw does not depend on its place in the batch
    model.eval()
    assert torch.equal(model(images).readouts[-1], model(images).readouts[-1])


def test_stochastic_depth_is_linear_in_depth_and_keeps_the_mean() -> None:
    model = tiny.model(IA, (2,), drop_path=0.5, depth=3)
    assert [block.drop for block in model.blocks] == [0, 0.25, 0.5]
    model.train()
    images = tiny.images(1).expand(400, -1, -1, -1)
    block, bank = model.blocks[2], model.banks()[-1]
    x = torch.zeros(1, len(images), 2, 8)
    added = block._add(x, torch.ones_like(x), "attention", bank)[0, :, 0, 0]  # type: ignore[operator]
    assert set(added.tolist()) == {0.0, 2.0}
    assert 0.8 < added.mean() < 1.2


@pytest.mark.parametrize("variant", [*tiny.PUBLISHED, BOTH], ids=tiny.names)
def test_what_trains(variant: Variant) -> None:
    model = tiny.model(variant, (2, 1, 2), **tiny.AUTHORS)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    newest = {name for name, _ in model.named_parameters() if name.startswith("experts.2.")}
    rest = {"classifier.bias", *(f"classifier.weights.{t}" for t in range(3)), "expertise.weight", "expertise.bias"}
    assert trained == newest | rest
    model.tune_classifier()
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {n for n in rest if "classifier" in n}
    assert model.teacher is None and model.expertise is None


def test_teacher_is_a_copy_not_the_classifier() -> None:
    model, images = tiny.model(DNE, (2, 1)), tiny.images(2)
    old = model(images).old_logits
    with torch.no_grad():
        for parameter in model.classifier.parameters():
            parameter.mul_(2)
    assert torch.equal(model(images).old_logits, old)


def test_widening_keeps_old_logits_and_needs_no_expert() -> None:
    model, images = tiny.model(IA, (2,)), tiny.images(2)
    before, printed = model(images).logits, literal.forward(model, images).logits
    model.widen(3)
    assert len(model.experts) == 1
    grown, grown_printed = model(images), literal.forward(model, images)
    assert torch.equal(grown_printed.logits[:, :2], printed)  # bit for bit on the literal path alone: a product of
    assert tiny.difference(grown.logits[:, :2], before) < 1e-5  # another width may round otherwise on another processor
    assert torch.equal(grown.old_logits, before)


def test_a_prefix_of_the_experts_is_the_smaller_model() -> None:
    """Experts read only earlier ones, so the model at task t is a prefix."""
    model, images = tiny.model(DNE, (3, 1, 2, 1)), tiny.images(2)
    small = tiny.model(DNE, (3, 1), seed=3)
    small.experts.load_state_dict({k: v for k, v in model.experts.state_dict().items() if int(k.split(".")[0]) < 2})
    assert tiny.difference(small.readouts(images), model.readouts(images)[:2]) < 1e-5


def test_every_parameter_is_counted_once() -> None:
    model: ExpandableViT = tiny.model(DNE, (3, 1, 2), **tiny.AUTHORS)
    named = [p for _, p in model.named_parameters(remove_duplicate=False)]
    assert len(named) == len({id(p) for p in named})
    assert not any(p.numel() == 0 for p in named)
    assert sum(p.numel() for p in model.blocks.parameters()) == 0  # blocks compute, experts hold


def test_the_model_remembers_the_classes_of_each_task() -> None:
    model = tiny.model(DNE, (2, 1), classes=3)
    model.expand(1, 4)
    model.widen(2)
    assert model.task_classes == copy.deepcopy(model).task_classes == (3, 3, 4, 2)
    assert sum(model.task_classes) == model.classifier.classes
