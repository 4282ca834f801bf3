"""The probe on the vision models of transformers: what it reads and replaces there, and what it leaves behind."""

import contextlib
import copy
import gc
import weakref
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.probe import probe
from dne_lab.core.errors import LabError
from dne_lab.models.attention import Axes

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
# family: (model, configuration, tokens before the patches)
FAMILIES = {
    "ViT": ("ViTForImageClassification", "ViTConfig", 1),
    "DeiT": ("DeiTModel", "DeiTConfig", 2),
    "DINOv2": ("Dinov2Model", "Dinov2Config", 1),
    "DINOv2 with registers": ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", 5),
    "DINOv3": ("DINOv3ViTModel", "DINOv3ViTConfig", 4),
    "SigLIP": ("SiglipVisionModel", "SiglipVisionConfig", 0),
    "CLIP": ("CLIPVisionModel", "CLIPVisionConfig", 1),
}


def network(family: str = "ViT", **changes: Any) -> Any:
    """A random model of a family for 32 pixels, two blocks and two heads, every parameter moved off its start."""
    torch.manual_seed(0)
    model, config, _ = FAMILIES[family]
    sizes = {**SIZES, "num_register_tokens": 3} if family == "DINOv3" else SIZES
    sizes = sizes if "mlp_ratio" in vars(getattr(transformers, config)()) else {**sizes, "intermediate_size": 32}
    made = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **changes}))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.eval()


def images(count: int = 3, *size: int) -> Tensor:
    """Normalised floats, (B, 3, H, W)."""
    return torch.randn(count, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(count))


def attentions(model: Any) -> list[Any]:
    """The attention module of each block."""
    return [part for part in model.modules() if hasattr(part, "is_causal")]


def output(found: Any) -> Tensor:
    """Logits where there are any, else the last hidden state."""
    return found["logits"] if "logits" in found else found["last_hidden_state"]


def uniform(values: Tensor, axes: Axes) -> Tensor:
    """What attends to every token alike."""
    return torch.full_like(values, 1 / values.shape[-1])


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_those_of_the_library_s_own_eager_kernel(family: str) -> None:
    model, before = network(family), FAMILIES[family][2]
    with torch.no_grad(), probe(model) as maps:
        read = output(model(pixel_values=images()))
    assert (read - output(model(pixel_values=images()))).abs().max() <= 1e-5 * read.abs().max()
    model.set_attn_implementation("eager")
    with torch.no_grad():
        truth = model(pixel_values=images(), output_attentions=True)
    assert len(maps) == len(truth.attentions) == 2
    for part, weights in zip(maps, truth.attentions, strict=True):
        torch.testing.assert_close(part.values, weights, atol=1e-6, rtol=0)
        assert (part.kind, part.expert, part.axes.grid, part.axes.classes) == ("spatial", 1, (4, 4), before)
    assert set(maps[0].frame().key_patch) == set(range(-before, 16))


@pytest.mark.parametrize("family", ["ViT", "DeiT", "DINOv2", "SigLIP", "CLIP"])
def test_maps_are_the_softmax_of_queries_and_keys(family: str) -> None:
    """By hand, in double precision, from what the projections of the second block gave."""
    model, caught = network(family).double(), {}
    attention = attentions(model)[1]
    for name in ("q_proj", "k_proj"):
        getattr(attention, name).register_forward_hook(lambda m, i, o, name=name: caught.update({name: o}))
    with torch.no_grad(), probe(model, layer=1, dtype=torch.float64) as maps:
        model(pixel_values=images().double())
    q, k = (caught[name].unflatten(-1, (2, 8)) for name in ("q_proj", "k_proj"))  # (b, tokens, h, D)
    truth = (torch.einsum("bqhd,bkhd->bhqk", q, k) / 8**0.5).softmax(-1)
    torch.testing.assert_close(maps[0].values, truth, atol=1e-12, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_replaced_multiplies_v(family: str) -> None:
    model, caught = network(family).double(), {}
    attention = attentions(model)[1]
    attention.v_proj.register_forward_hook(lambda m, i, o: caught.update(v=o))
    last = attention.o_proj if hasattr(attention, "o_proj") else attention.out_proj
    last.register_forward_pre_hook(lambda m, inputs: caught.update(mixed=inputs[0]))
    with torch.no_grad(), probe(model, layer=1, replace=uniform, dtype=torch.float64) as maps:
        model(pixel_values=images().double())
    assert float(maps[0].values.std()) < 1e-12
    torch.testing.assert_close(caught["mixed"], caught["v"].mean(1, keepdim=True).expand_as(caught["v"]))


def test_only_listened_blocks_leave_their_kernel_and_the_configuration_stays() -> None:
    model = network()
    one, two = attentions(model)
    before = model.config.to_dict()
    with probe(model, layer=0):
        assert one.config._attn_implementation == "dne_lab" and two.config is model.config
        assert model.config._attn_implementation == "sdpa"
        model(pixel_values=images())
    assert one.config is two.config is model.config and model.config.to_dict() == before


def test_the_kernel_comes_back_in_whatever_order_probes_end() -> None:
    model = network()
    first, second = probe(model), probe(model, layer=0)
    first.__enter__()
    maps = second.__enter__()
    model(pixel_values=images())
    first.__exit__(None, None, None)
    assert [part.config is model.config for part in attentions(model)] == [False, True]
    model(pixel_values=images())
    second.__exit__(None, None, None)
    assert all(part.config is model.config for part in attentions(model)) and len(maps[0].values) == 6


def test_nested_probes_read_what_the_outer_ones_return() -> None:
    model = network()
    with probe(model) as outside, probe(model, replace=uniform), probe(model) as inside:
        model(pixel_values=images())
    assert float(inside[0].values.std()) < 1e-6 < float(outside[0].values.std())


def test_gradients_flow_and_dropout_comes_after_what_is_read() -> None:
    model, strength = network(attention_probs_dropout_prob=0.5).train(), torch.ones((), requires_grad=True)
    with probe(model, layer=0, replace=lambda values, axes: values * strength) as maps:
        output(model(pixel_values=images())).sum().backward()
    assert strength.grad is not None and float(strength.grad.abs()) > 0
    torch.testing.assert_close(maps[0].values.sum(-1), torch.ones(3, 2, 17))


def test_images_of_any_size_have_the_grid_of_their_pass() -> None:
    model = network()
    with probe(model, layer=0) as maps:
        model(pixel_values=images(2, 32, 48), interpolate_pos_encoding=True)
        model(pixel_values=images())
    assert [part.axes.grid for part in maps] == [(4, 6), (4, 4)]


def test_the_vision_tower_of_clip_is_found_beside_the_text() -> None:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text |= {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
    vision = {**SIZES, "intermediate_size": 32}
    model = transformers.CLIPModel(transformers.CLIPConfig(vision_config=vision, text_config=text)).eval()
    with probe(model) as maps:
        model.get_image_features(pixel_values=images())
    assert len(maps) == 2 and maps[0].values.shape == (3, 2, 17, 17)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_groups_sort_them(family: str) -> None:
    """Against sums over single entries: tokens before the patches are no patches."""
    model, given, before = network(family), images(4), FAMILIES[family][2]
    found = attention_groups(model, given, batch_size=2, progress=False, replicates=0)
    with torch.no_grad(), probe(model) as maps:
        model(given)
    patches = torch.cat([part.values[..., before:, before:] for part in maps])  # (layers * b, h, p, kp)
    same = patches.diagonal(dim1=-2, dim2=-1).sum() / patches.sum()
    assert found.same_patch("expert 1").value == pytest.approx(100 * float(same), rel=1e-5)


class Stop(Exception):
    """Raised on purpose."""


def test_everything_is_undone_whatever_happens_inside() -> None:
    model = network()

    def stop(values: Tensor, axes: Axes) -> None:
        raise Stop

    with contextlib.suppress(Stop), probe(model, read=stop):
        model(pixel_values=images())
    with pytest.raises(LabError, match="did not fire"), probe(model):
        copied = copy.deepcopy(model)
    assert all(part.config is model.config for part in attentions(model))
    assert all(part.config._attn_implementation == "sdpa" for part in attentions(copied))
    assert all(part.config is copied.config for part in attentions(copied))
    with probe(copied) as maps:
        copied(pixel_values=images())
    assert len(maps) == 2


def test_nothing_is_kept_alive() -> None:
    model = network()
    alive = [*map(weakref.ref, model.modules())]
    with probe(model) as maps:
        model(pixel_values=images())
    del model
    gc.collect()
    assert not [ref() for ref in alive if ref() is not None] and len(maps) == 2


def test_other_models_and_checkpointing_are_refused() -> None:
    swin = transformers.SwinModel(
        transformers.SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1], num_heads=[2])
    )
    with pytest.raises(LabError, match="Other architectures of transformers, such as Swin"), probe(swin):
        pass
    model = network()
    model.gradient_checkpointing_enable()
    with pytest.raises(LabError, match="gradient_checkpointing_disable"), probe(model):
        pass
