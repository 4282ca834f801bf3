"""Attention of one image in networks of other libraries: against each library's own maps, and loops."""

import itertools
from typing import Any

import numpy as np
import pytest
import timm
import torch
from test_probe_transformers import FAMILIES, images, network
from torchvision.models import VisionTransformer

from dne_lab.analysis.token_views import TokenView, read_tokens
from dne_lab.core.errors import LabError

NAMES = {
    "ViT": ("class token",),
    "DeiT": ("class token", "distillation token"),
    "DINOv2": ("class token",),
    "DINOv2 with registers": ("class token", *(f"register {number}" for number in (1, 2, 3, 4))),
    "DINOv3": ("class token", "register 1", "register 2", "register 3"),
    "SigLIP": (),
    "CLIP": ("class token",),
}


def vit(**changes: Any) -> Any:
    """A random timm network for 32 pixels, two blocks and two heads."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.models.VisionTransformer(**{**sizes, **changes}).eval()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_transformers_has_its_tokens_by_name(family: str) -> None:
    model = network(family)
    view = read_tokens(model, images()[0])
    assert view.prefix == NAMES[family] and view.grid == (4, 4) and (view.logits is not None) == (family == "ViT")
    model.set_attn_implementation("eager")
    with torch.no_grad():
        truth = model(pixel_values=images(), output_attentions=True).attentions
    for weights, whole in zip(view.weights, truth, strict=True):
        np.testing.assert_allclose(weights, whole[0].numpy(), atol=1e-6)


def test_timm_and_torchvision() -> None:
    view = read_tokens(vit(reg_tokens=2), images()[0])
    assert view.prefix == ("class token", "register 1", "register 2") and view.logits is not None
    assert len(view.weights) == 2 and view.weights[0].shape == (2, 19, 19)
    assert read_tokens(vit(num_classes=0), images()[0]).logits is None
    assert read_tokens(vit(class_token=False, global_pool="avg"), images()[0]).prefix == ()
    plain = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=3)
    assert read_tokens(plain, images()[0]).prefix == ("class token",) and plain.training


def test_of_two_towers_the_one_with_images_is_read() -> None:
    import transformers

    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    seen = {**small, "image_size": 32, "patch_size": 8}
    model = transformers.CLIPModel(transformers.CLIPConfig(text_config=small, vision_config=seen, projection_dim=8))
    view = read_tokens(model, images()[0])
    assert view.logits is None and len(view.weights) == 2 and view.prefix == ("class token",)


def handmade() -> TokenView:
    """Two layers, two heads, a class token and 2 x 3 patches, rows that sum to 1."""
    random = np.random.default_rng(0).random((2, 2, 7, 7)).astype(np.float32)
    random[0, 0, :, 3] = 0
    return TokenView(tuple(random / random.sum(-1, keepdims=True)), ("class token",), (2, 3), None)


def test_rollout_is_the_product_of_the_layers() -> None:
    view = handmade()
    product = np.eye(7)
    for layer, weights in enumerate(view.weights):
        mixed = np.zeros((7, 7))
        for i, j in itertools.product(range(7), repeat=2):
            mixed[i, j] = 0.5 * (weights[0, i, j] + weights[1, i, j]) / 2 + 0.5 * (i == j)
        product = np.array([[sum(mixed[i, k] * product[k, j] for k in range(7)) for j in range(7)] for i in range(7)])
        np.testing.assert_allclose(view.rollout(layer), product, atol=1e-7)
        np.testing.assert_allclose(product.sum(1), 1, atol=1e-6)


def test_the_summary_of_a_row() -> None:
    view = handmade()
    table, row = view.summary(1, 4), view.rows(1, 4)[1]  # patch 4: row 1, column 1
    entropy = -sum(p * np.log(p) for p in row if p > 0)
    distance = sum(row[1 + 3 * y + x] * np.hypot(y - 1, x - 1) for y in (0, 1) for x in (0, 1, 2)) / row[1:].sum()
    assert table["effective keys"][1] == pytest.approx(np.exp(entropy)) and table["keys"][1] == 7
    assert table["distance"][1] == pytest.approx(distance)
    assert table["class token %"][1] == pytest.approx(100 * row[0])
    assert table["patches %"][1] == pytest.approx(100 * row[1:].sum())
    assert view.summary(0, "class token")["distance"].isna().all()
    keys = view.keys(1, "class token")
    assert keys["key"].tolist() == ["class token", *(f"patch {n}" for n in range(6))]
    assert keys["row"].tolist() == [-1, 0, 0, 0, 1, 1, 1] and keys["head 1"].sum() == pytest.approx(1)
    assert np.allclose(keys["rollout"], view.rollout(1)[0])
    far = view.structure()
    assert set(far) == set(itertools.product((0, 1), repeat=2))
    assert far[1, 1][4] == pytest.approx(1 - entropy / np.log(7))


def test_a_query_that_is_not_there_is_refused() -> None:
    with pytest.raises(LabError, match="patch 6: this image has patches 0 to 5"):
        handmade().rows(0, 6)
    with pytest.raises(LabError, match="token 'register 1': this network has class token"):
        handmade().rows(0, "register 1")
