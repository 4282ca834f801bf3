"""A vision transformer of timm as expert 1: the same function, frozen, without its weights in checkpoints."""

import copy
import dataclasses
import sys
from pathlib import Path
from typing import Any

import backbones
import pytest
import tiny
import torch
from backbones import SHAPE
from safetensors.torch import load_file, save_file

from dne_lab.core.config import Network
from dne_lab.core.errors import LabError
from dne_lab.models import backbone, literal
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, PROGRESSIVE, STA, Variant

NAMED = {"lab_plain": "plain", "lab_scaled": "layer scale", "lab_bare": "no bias of queries, keys and values"}


def network(file: Path | str | None, name: str = "lab_plain", heads: tuple[int, ...] = (3, 1, 2)) -> Network:
    weights = None if file is None else str(file)
    made = Network(backbone=f"timm:{name}", backbone_weights=weights, heads=heads)
    return dataclasses.replace(made, **backbone.follow(made))


def model(file: Path | str, variant: Variant = DNE, experts: int = 1, name: str = "lab_plain") -> ExpandableViT:
    """A model whose later experts are moved off their start."""
    torch.manual_seed(0)
    made = ExpandableViT(network(file, name), SHAPE, variant)
    for number in range(1, experts + 1):
        made.expand(made.network.heads_of(number), 2)
    with torch.no_grad():
        for expert in list(made.experts)[1:]:
            for parameter in expert.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return made.eval()


@pytest.mark.parametrize("name", NAMED, ids=NAMED.get)
def test_expert_1_computes_what_timm_computes(name: str, tmp_path: Path) -> None:
    made, images = model(backbones.weights(tmp_path, name), name=name), tiny.images(4, SHAPE)
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))
    pixels = (images / 255 - mean) / std
    with torch.no_grad():
        expected = backbones.shaken(name)(pixels)
        assert tiny.difference(made.readouts(images)[0], expected) < 2e-6
        assert tiny.difference(literal.readouts(made, images)[0], expected) < 2e-6


@pytest.mark.parametrize("variant", [STA, DNE, PROGRESSIVE], ids=lambda v: v.name)
def test_later_experts_read_it_layer_by_layer_on_both_paths(variant: Variant, tmp_path: Path) -> None:
    file, images = backbones.weights(tmp_path), tiny.images(3, SHAPE)
    made = model(file, variant, 3)
    assert tiny.difference(made(images).logits, literal.forward(made, images).logits) < 1e-5
    other = model(backbones.weights(tmp_path, seed=1), variant, 3)
    pairs = zip(made.experts[1].parameters(), other.experts[1].parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)
    assert tiny.difference(made.readouts(images)[1], other.readouts(images)[1]) > 1e-3


def trainable(made: ExpandableViT) -> set[str]:
    return {name for name, parameter in made.named_parameters() if parameter.requires_grad}


def test_nothing_of_it_trains_and_what_grows_does(tmp_path: Path) -> None:
    made = model(backbones.weights(tmp_path))
    assert trainable(made) == {"classifier.weights.0", "classifier.bias"} and made.still
    made.thaw()
    assert not any(p.requires_grad for p in made.experts[0].parameters())
    made.expand(1, 2)
    assert not made.still and {name[:9] for name in trainable(made) if name.startswith("experts")} == {"experts.1"}
    made.train()(tiny.images(2, SHAPE)).logits.sum().backward()
    assert all(p.grad is None for p in made.experts[0].parameters())


def test_a_state_holds_a_digest_in_place_of_its_weights_and_checks_it(tmp_path: Path) -> None:
    file = backbones.weights(tmp_path)
    made, images = model(file, experts=2), tiny.images(2, SHAPE)
    state = made.state_dict()
    assert [name for name in state if name.startswith("experts.0")] == ["experts.0.sha256"]
    again = ExpandableViT(made.network, SHAPE, DNE)
    for heads in (3, 1):
        again.expand(heads, 2)
    again.load_state_dict(state)
    assert torch.equal(again(images).logits, made(images).logits)
    assert torch.equal(copy.deepcopy(made)(images).logits, made(images).logits)
    other = model(backbones.weights(tmp_path, seed=1), experts=2)
    with pytest.raises(backbone.WeightsError, match=r"sha256 \w{12}.* are not those that this was learned with"):
        other.load_state_dict(state)


def test_random_weights_are_asked_for_and_follow_from_chance() -> None:
    torch.manual_seed(3)
    first = ExpandableViT(network("random"), SHAPE, DNE)
    first.expand(3, 2)
    torch.manual_seed(3)
    second = ExpandableViT(network("random"), SHAPE, DNE)
    second.expand(3, 2)
    second.load_state_dict(first.state_dict())
    assert first.experts[0].sha256 == second.experts[0].sha256 != ""


def test_a_probe_reads_its_maps_as_timm_computes_them(tmp_path: Path) -> None:
    import dne_lab as lab

    file, images = backbones.weights(tmp_path), tiny.images(2, SHAPE)
    made, timm_model = model(file, experts=2), backbones.shaken("lab_plain")
    with torch.no_grad(), lab.probe(made, kind="spatial", layer=1, expert=1) as ours:
        made(images)
    with torch.no_grad(), lab.probe(timm_model, layer=1) as theirs:
        timm_model(made.normalised(images))
    assert tiny.difference(ours.get().values, theirs.get().values) < 1e-5


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("vit_bace_patch16_224", "timm knows no model .*Did you mean vit_base_patch16_224"),
        ("vit_base_patch16_224.nonsense", r"Invalid pretrained tag \(nonsense\).* It knows .*224\.augreg_in21k,"),
        ("resnet18", "is a ResNet, no VisionTransformer"),
        ("swin_tiny_patch4_window7_224", "is a SwinTransformer"),
        ("vit_small_patch16_18x2_224", "its ParallelThingsBlock is no Block"),
        ("vit_base_patch16_xp_224", "its ParallelScalingBlock is no Block"),
        ("lab_registers", "is not one class token"),
        ("lab_mean", "pooling 'avg'"),
        ("lab_normed", "parts that a plain one lacks .attn.k_norm"),
        ("vit_base_patch16_clip_224.openai", "parts that a plain one lacks .norm_pre"),
    ],
)
def test_what_cannot_be_expert_1_is_named(name: str, says: str) -> None:
    with pytest.raises(LabError, match=says):
        backbone.trunk(f"timm:{name}")


def test_other_images_and_sizes_are_named(tmp_path: Path) -> None:
    own = network(backbones.weights(tmp_path))
    with pytest.raises(LabError, match=r"takes images of 3 x 16 x 24 .* these have 3 x 32 x 32"):
        ExpandableViT(own, (3, 32, 32), DNE)
    with pytest.raises(LabError, match=r"network.depth = 6: with .* timm:lab_plain it follows that depth = 2"):
        ExpandableViT(dataclasses.replace(own, depth=6), SHAPE, DNE)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"backbone": "vit_base_patch16_224"}, "give timm:NAME"),
        ({"backbone": "timm:"}, "give timm:NAME"),
        ({"backbone": "timm:lab_plain", "stem": "conv"}, "Leave one of both out"),
        ({"backbone_weights": "random"}, "set network.backbone=timm:NAME too"),
    ],
)
def test_fields_that_do_not_go_together_are_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(LabError, match=says):
        Network(**fields)


def test_missing_and_wrong_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def expand(file: Path | None, name: str = "lab_plain") -> None:
        ExpandableViT(network(file, name), SHAPE, DNE).expand(3, 2)

    with pytest.raises(LabError, match=r"no such file.*working directory"):
        expand(tmp_path / "gone.safetensors")
    with pytest.raises(LabError, match=r"give a .safetensors file, or random"):
        expand(tmp_path / "weights.bin")
    with pytest.raises(LabError, match="does not hold the weights of timm:lab_plain"):
        expand(backbones.weights(tmp_path, "lab_scaled"))
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"no tensors")
    with pytest.raises(LabError, match="does not hold the weights of timm:lab_plain"):
        expand(damaged)
    whole = load_file(backbones.weights(tmp_path, "lab_plain"))
    for change, said in (
        ({"norm.bias": None}, r"1 are missing, such as 'norm\.bias'"),
        ({"more": torch.zeros(2)}, "1 are of another model"),
        ({name: None for name in whole if name.startswith("blocks.1.")}, r"\d+ are missing, such as 'blocks\.1\."),
        ({"norm.bias": whole["norm.bias"] * float("nan")}, r"are no numbers: norm\.bias"),
    ):  # fmt: skip
        changed = {name: value for name, value in (whole | change).items() if value is not None}
        save_file(changed, tmp_path / "changed.safetensors")
        with pytest.raises(LabError, match=said):
            expand(tmp_path / "changed.safetensors")
        backbone._read.cache_clear()
    save_file(whole | {"head.weight": torch.zeros(5, 8), "head.bias": torch.zeros(5)}, tmp_path / "headed.safetensors")
    expand(tmp_path / "headed.safetensors")
    with pytest.raises(LabError, match=r"not in timm's cache and cannot be fetched .*network.backbone_weights=FILE"):
        expand(None)
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    own = Network(backbone="timm:vit_tiny_patch16_224.augreg_in21k")
    with pytest.raises(LabError, match=r"cannot be fetched .*timm.create_model\('vit_tiny_patch16_224.augreg_in21k'"):
        ExpandableViT(dataclasses.replace(own, **backbone.follow(own)), (3, 224, 224), DNE).expand(3, 2)


def test_without_timm_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(LabError, match=r'needs timm: pip install "dne-lab\[timm\]"'):
        backbone.trunk("timm:vit_small_patch8_224.dino")


def test_a_large_batch_is_computed_in_parts_where_nothing_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dne_lab.models import expandable

    made, images = model(backbones.weights(tmp_path), experts=2), tiny.images(7, SHAPE)
    assert made.bytes_offered == 4 * 2 * (1 + 2 * 3) * (3 + 1) * 4 * (1 + 4)
    with torch.no_grad():
        whole = made(images).logits
        sizes: list[int] = []
        monkeypatch.setattr(expandable, "AT_ONCE", 3 * made.bytes_offered)
        monkeypatch.setattr(made, "patches", lambda some: sizes.append(len(some)) or type(made).patches(made, some))
        assert tiny.difference(made(images).logits, whole) < 1e-6 and sizes == [3, 3, 1]
    made(images)
    assert sizes[3:] == [7]
