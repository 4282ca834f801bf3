"""Vision transformers of timm with two blocks, which the tests of backbones share, and files of their weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

timm = pytest.importorskip("timm", reason='needs timm: pip install "dne-lab[timm]"')

SIZES: dict[str, Any] = {"patch_size": 8, "embed_dim": 12, "depth": 2, "num_heads": 3, "img_size": (16, 24)}
KINDS: dict[str, dict[str, Any]] = {
    "lab_plain": {},
    "lab_scaled": {"init_values": 0.5, "no_embed_class": True, "mlp_ratio": 2},
    "lab_bare": {"qkv_bias": False},
    "lab_registers": {"reg_tokens": 2},
    "lab_normed": {"qk_norm": True},
    "lab_mean": {"global_pool": "avg"},
}
SHAPE = (3, 16, 24)


def _register(name: str, own: dict[str, Any]) -> None:
    from timm.models import generate_default_cfgs, register_model
    from timm.models.vision_transformer import _create_vision_transformer

    def make(pretrained: bool = False, **settings: Any) -> torch.nn.Module:
        return _create_vision_transformer(name, pretrained=pretrained, **{**SIZES, **own, **settings})

    make.__name__ = make.__qualname__ = name
    make.__module__ = __name__
    cfg = {"url": "", "num_classes": 1000, "input_size": SHAPE, "first_conv": "patch_embed.proj", "classifier": "head"}
    cfg |= {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.25, 0.3)}
    globals()["default_cfgs"] = globals().get("default_cfgs", {}) | generate_default_cfgs({name: cfg})
    register_model(make)


for _name, _own in KINDS.items():
    _register(_name, _own)


def shaken(name: str, seed: int = 0) -> Any:
    """timm's model without its classifier, every parameter moved off its start, so that no term is hidden."""
    torch.manual_seed(seed)
    model = timm.create_model(name, num_classes=0).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


def weights(folder: Path, name: str = "lab_plain", seed: int = 0) -> Path:
    """A file of a `shaken` model's weights."""
    file = folder / f"{name}-{seed}.safetensors"
    save_file({key: value.contiguous() for key, value in shaken(name, seed).state_dict().items()}, file)
    return file
