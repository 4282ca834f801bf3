"""The explorer of networks of other libraries, without a browser."""

import gc
import io
import weakref
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import tiny
import torch
from PIL import Image

import dne_lab as lab
from dne_lab.analysis.token_views import read_tokens
from dne_lab.widgets.explorer import Explorer


def vit(**changes: Any) -> Any:
    """A random network for 32 pixels, three blocks and two heads, that attends unevenly."""
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 3}
    model = timm.models.VisionTransformer(**{**sizes, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def pictures(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def explored(model: Any) -> Any:
    """The one tab of an explorer."""
    made = lab.explore(model, pictures())
    assert isinstance(made, Explorer) and list(made.parts) == ["tokens"]
    return made.part


def numbers(patches: Any, cells: int = 16) -> Any:
    return np.frombuffer(patches.scene["numbers"], dtype="<f4").reshape(-1, cells)


def test_what_is_seen_is_what_the_view_holds() -> None:
    model = vit(reg_tokens=1)
    made: Any = lab.explore(model, pictures())
    assert made.upload not in made.children[0].children
    part = made.part
    view = read_tokens(model, pictures()[0])
    far = {place: rows.mean() for place, rows in view.structure().items()}
    assert (part.layer.value, part.head.value) == max(far, key=lambda place: far[place]) and part.message.value == ""
    part.layer.value, part.head.value, part.patches.patch = 1, 1, 6
    rows = view.rows(1, 6)[:, 2:]
    assert np.allclose(numbers(part.maps), rows)
    assert np.allclose(numbers(part.patches), [rows[1], rows.mean(0), view.rollout(1)[8, 2:]])
    assert "patch 6 (row 1, column 2)" in part.table.value and "register 1 %" in part.table.value
    assert ">uniform<" in part.table.value and f"{100 / view.weights[0].shape[-1]:.2f}" in part.table.value
    part.query.value = "register 1"
    assert np.allclose(numbers(part.maps), view.rows(1, "register 1")[:, 2:]) and "nan" not in part.table.value
    assert "predicts class" in part.said.value
    before = numbers(part.maps)
    made.image.value = 3
    assert not np.allclose(numbers(part.maps), before)


def test_every_control_to_its_ends_and_both_downloads() -> None:
    part = explored({"one": vit(), "other": vit(depth=2, class_token=False, global_pool="avg")})
    for control in (part.layer, part.head):
        for value in (control.max, control.min):
            control.value = value
            assert part.message.value == ""
    for colours in part.colours.options:
        part.colours.value = colours
        assert colours in part.scale.value
    part.query.value = "class token"
    _, kind, picture = part._png()
    assert kind == "image/png" and Image.open(io.BytesIO(picture)).width > 500
    _, _, text = part._csv()
    assert len(pd.read_csv(io.BytesIO(text))) == 17
    part.layer.value, part.model.value = 2, "other"
    assert part.message.value == "" and part.layer.max == 1 and part.query.value == "" and len(part.query.options) == 1


def test_names_of_classes_come_from_the_configuration() -> None:
    import transformers

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8,
        id2label={0: "<cat>", 1: "<dog>"},
    )  # fmt: skip
    said = explored(transformers.ViTForImageClassification(config)).said.value
    assert "predicts &lt;cat&gt;" in said or "predicts &lt;dog&gt;" in said
    part = explored(transformers.ViTModel(config))
    assert "gives no logits" in part.said.value and part.message.value == ""


@pytest.mark.parametrize("images", [tiny.images(2), pictures(0), pictures()[0], "cat.png"])
def test_images_that_are_not_normalised_floats_get_a_sentence(images: Any) -> None:
    told: Any = lab.explore(vit(), images)
    assert "floats (B, C, H, W)" in told.value


@pytest.mark.parametrize(
    ("images", "told"),
    [
        (torch.zeros(1, 3, 64, 64), "could not compute an image of shape (3, 64, 64): Input height (64)"),
        (torch.zeros(1, 1, 32, 32), "could not compute an image of shape (1, 32, 32)"),
        (torch.full((1, 3, 32, 32), float("nan")), "is not finite: the image has values that are NaN"),
    ],
)
def test_images_that_the_network_cannot_compute_get_a_sentence(images: Any, told: str) -> None:
    assert told in lab.explore(vit(), images).value


def test_a_network_that_is_not_finite_gets_a_sentence() -> None:
    model = vit()
    with torch.no_grad():
        model.blocks[0].attn.qkv.weight.fill_(float("nan"))
    assert "is not finite: the network computes values that are NaN" in lab.explore(model, pictures()).value


def test_a_mixture_gets_a_sentence_and_closing_frees_the_model() -> None:
    told: Any = lab.explore({"dne": tiny.model(), "vit": vit()}, tiny.images(2))
    assert "takes an ExpandableViT" in told.value
    model = vit()
    alive, made = weakref.ref(model), lab.explore(model, pictures())
    del model
    made.close()
    gc.collect()
    assert alive() is None
