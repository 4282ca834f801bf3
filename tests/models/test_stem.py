"""The convolutional stem: what it computes, what it refuses, and that nothing moves it once it has learned."""

from typing import Any

import pytest
import tiny
import torch
from torch.nn import functional as F

from dne_lab.core.errors import LabError
from dne_lab.methods.dytox import DyToxViT
from dne_lab.models import literal
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.stem import ConvStem
from dne_lab.models.variants import DNE, STA

SHAPE = (3, 32, 40)  # a map of 8 x 10 cells


def stemmed(variant: Any = DNE, heads: tuple[int, ...] = (2, 1), **changes: Any) -> ExpandableViT:
    return tiny.model(variant, heads, shape=SHAPE, stem="conv", shake=0.05, **changes)


def test_patches_are_the_cells_of_the_last_map_row_by_row_with_mean_0_and_deviation_1() -> None:
    torch.manual_seed(0)
    stem = ConvStem(SHAPE, 4).eval()
    images = tiny.images(6, SHAPE)
    stem.measure(images.split(4))
    found = stem(images)
    maps = F.relu(stem.trunk(images).maps[-1])  # (6, 64, 8, 10)
    cells = maps.permute(0, 2, 3, 1).reshape(-1, 64)
    expected = (cells - cells.mean(0)) / cells.std(0, correction=0).clamp(min=1e-5)
    assert found.shape == (6, 80, 64) and stem.patch_values == 64
    assert tiny.difference(found.reshape(-1, 64), expected) < 1e-4


def test_a_larger_patch_takes_several_cells() -> None:
    stem = ConvStem(SHAPE, 8).eval()
    images = tiny.images(2, SHAPE)
    maps = F.relu(stem.trunk(images).maps[-1])
    found = stem(images)
    assert found.shape == (2, 20, 256) and stem.patch_values == 256
    # The second patch of the first row: columns 2 and 3 of rows 0 and 1, channel by channel.
    assert tiny.difference(found[:, 1], maps[:, :, :2, 2:4].flatten(1)) < 1e-6


@pytest.mark.parametrize(("shape", "patch", "says"), [
    ((3, 28, 28), 4, "32 to 64 pixels"),
    ((3, 32, 96), 4, "32 to 64 pixels"),
    ((3, 34, 34), 4, "that 4 divides"),
    ((3, 32, 32), 2, "multiple of 4"),
])  # fmt: skip
def test_images_and_patches_that_it_cannot_serve_are_named(shape: tuple[int, ...], patch: int, says: str) -> None:
    with pytest.raises(LabError, match=says):
        ConvStem(shape, patch)


@pytest.mark.parametrize("variant", [DNE, STA], ids=lambda v: v.name)
@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
def test_the_normal_path_equals_the_literal_one_behind_a_stem(variant: Any, style: dict[str, Any]) -> None:
    model, images = stemmed(variant, (2, 1, 2), **style), tiny.images(2, SHAPE)
    assert tiny.difference(model(images).logits, literal.forward(model, images).logits) < 1e-5


def test_it_learns_alone_with_a_classifier_of_its_own_and_is_then_frozen_for_good() -> None:
    model = ExpandableViT(tiny.network(stem="conv"), SHAPE, DNE)
    model.learn_stem(5)
    assert model.stem is not None
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"stem"}
    assert model.stem.logits(tiny.images(2, SHAPE)).shape == (2, 5)
    model.expand(2, 5)
    before = {name: value.clone() for name, value in model.stem.state_dict().items()}
    model.train()
    model(tiny.images(4, SHAPE)).logits.sum().backward()
    model.thaw()
    assert not any(p.requires_grad for p in model.stem.parameters()) and model.stem.classifier is None
    assert all(p.grad is None for p in model.stem.parameters())
    after = model.stem.state_dict()  # batch statistics too
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


def test_dytox_thaws_everything_but_the_stem() -> None:
    model = DyToxViT(tiny.network(stem="conv", **tiny.AUTHORS), SHAPE)
    model.expand(2, 3)
    model.add_task(2)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert any(name.startswith("stem.trunk") for name in frozen)
    assert all(not name.startswith("experts.0.blocks") for name in frozen)


def test_in_bfloat16_the_maps_move_little_and_keep_their_type() -> None:
    stem = ConvStem(SHAPE, 4).eval()
    images = tiny.images(2, SHAPE)
    exact = stem(images)
    stem.bf16 = True
    assert stem(images).dtype == torch.float32 and 0 < tiny.difference(stem(images), exact) < 2e-2
