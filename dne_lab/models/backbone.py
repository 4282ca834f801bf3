"""A pretrained vision transformer of timm as expert 1: frozen, in the laboratory's own form.

timm's weights are brought into the parameters of an `Expert`, so that expert 1 computes what timm computes (a test) and
is an expert like any other: its heads are read by later experts layer by layer, probes listen to it, its cost has a
formula. Four things are exact rewritings. The bias of the keys adds the same to all scores of a row, so it goes; the
bias of the values passes through the attention, whose rows sum to 1, into the bias of the output projection; a layer
scale is part of the map before it; the class token's position is part of the class token. The bias of the queries
stays (``query_bias``), and the norms keep timm's epsilon.

The weights are no part of checkpoints: a digest of them is, and what is loaded must have it.
"""

import contextlib
import dataclasses
import difflib
import functools
import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from dne_lab.core.config import Config, Network
from dne_lab.core.errors import LabError, brief, reason
from dne_lab.core.files import absolute
from dne_lab.models.expert import Expert, Place
from dne_lab.models.variants import IA

RANDOM = "random"  # in place of a file: not trained, for tests
DIGEST = "sha256"  # the one entry of a frozen expert in a checkpoint
FOLLOWS = ("patch", "depth", "head_width", "ratio", "spatial", "readout", "hidden_norm")  # fields, beside heads[0]


class WeightsError(LabError):
    """The weights of a backbone are not there, or not those that a file was written with."""


class Trunk(NamedTuple):
    """What a network takes over from a backbone: sizes, ``shape`` (C, H, W) of its images, and the ``mean`` and
    ``std`` per channel, in units of [0, 1], that it was trained with."""

    heads: int
    patch: int
    depth: int
    head_width: int
    ratio: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    epsilon: float
    spatial: str = "mhsa"
    readout: str = "cls_token"
    hidden_norm: bool = False


@functools.lru_cache(maxsize=16)
def trunk(backbone: str) -> Trunk:
    """The sizes of a backbone, without its weights.

    Args:
        backbone: "timm:NAME".

    Raises:
        LabError: timm is missing or does not know the name; a model that is no plain vision transformer.
    """
    model = _made(backbone, pretrained=False)
    wrong = _unlike(model)
    if wrong:
        raise LabError(
            f"network.backbone = {backbone} cannot be expert 1: {wrong}. Take a plain vision transformer with a class "
            "token, e.g. timm:vit_base_patch16_224.augreg_in21k, timm:deit3_small_patch16_224.fb_in1k or "
            "timm:vit_small_patch14_dinov2.lvd142m."
        )
    block = model.blocks[0]
    channels, width = model.patch_embed.proj.in_channels, model.embed_dim
    cfg = model.pretrained_cfg
    return Trunk(
        heads=block.attn.num_heads,
        patch=model.patch_embed.patch_size[0],
        depth=len(model.blocks),
        head_width=width // block.attn.num_heads,
        ratio=block.mlp.fc1.out_features // width,
        shape=(channels, *model.patch_embed.img_size),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        epsilon=block.norm1.eps,
    )


def follow(network: Network) -> dict[str, Any]:
    """The fields of a network that follow from its backbone: sizes, a plain transformer, the heads of expert 1."""
    assert network.backbone is not None
    found = trunk(network.backbone)
    alone = len(network.heads) == 1 and network.heads[0] != found.heads
    later = network.heads if alone else network.heads[1:]
    return {name: getattr(found, name) for name in FOLLOWS} | {"heads": (found.heads, *later)}


def completed(config: Config, chosen: Sequence[str] = ()) -> Config:
    """The configuration with what follows from its network's backbone, if it names one, and the whole path of its
    weights.

    Args:
        chosen: dotted names of the fields that the user has set.

    Raises:
        LabError: one of them contradicts the backbone; what `trunk` raises.
    """
    network = config.network
    if network.backbone is None:
        return config
    wanted = follow(network)
    fields = [name.removeprefix("network.") for name in chosen if name.startswith("network.")]
    wrong = [name for name in fields if name in wanted and getattr(network, name) != wanted[name]]
    if wrong:
        raise LabError(_contradiction(network, wrong))
    file = network.backbone_weights
    if file not in (None, RANDOM):
        wanted["backbone_weights"] = str(absolute(Path(file).expanduser()))
    return dataclasses.replace(config, network=dataclasses.replace(network, **wanted))


def check(network: Network, shape: tuple[int, ...]) -> Trunk:
    """The backbone of a network for images of ``shape`` (C, H, W).

    Raises:
        LabError: other images than it takes, sizes that are not its own.
    """
    assert network.backbone is not None
    found = trunk(network.backbone)
    if tuple(shape) != found.shape:
        given, wanted = (" x ".join(map(str, sizes)) for sizes in (shape, found.shape))
        raise LabError(
            f"network.backbone = {network.backbone} takes images of {wanted} (channels, height, width), these have "
            f"{given}. A folder of images is brought to a size by data.size={found.shape[1]}; other images have to be "
            "enlarged before, or take another backbone."
        )
    wrong = [name for name, value in follow(network).items() if getattr(network, name) != value]
    if wrong:
        raise LabError(_contradiction(network, wrong))
    return found


def _contradiction(network: Network, wrong: list[str]) -> str:
    wanted = follow(network)
    listed = ", ".join(f"network.{name} = {_text(getattr(network, name))}" for name in wrong)
    right = ", ".join(f"{name} = {_text(wanted[name])}" for name in wrong)
    return f"{listed}: with network.backbone = {network.backbone} it follows that {right}. Leave it out."


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


# timm ----------------------------------------------------------------------------------------------------------------


def _made(backbone: str, pretrained: bool, file: Path | None = None) -> Any:
    """timm's `VisionTransformer`, or another model of timm, without its classifier, and without memory for weights that
    are not asked for; chance is as before."""
    name = backbone.removeprefix("timm:")
    try:
        import timm
    except ImportError:
        raise LabError(f'network.backbone = {backbone} needs timm: pip install "dne-lab[timm]".') from None
    known = timm.list_models(exclude_filters="")
    if name.partition(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise LabError(f"timm knows no model {brief(name)}.{hint} timm.list_models('vit_*') lists many.")
    overlay: dict[str, Any] = {} if file is None else {"pretrained_cfg_overlay": {"file": str(file)}}

    def make(device: str) -> Any:
        with torch.random.fork_rng(devices=[]), torch.device(device):
            return timm.create_model(name, pretrained=pretrained, num_classes=0, **overlay).eval()

    try:
        with contextlib.suppress(NotImplementedError, RuntimeError):  # models of older timm need memory
            if not pretrained:
                return make("meta")
        return make("cpu")
    except Exception as error:  # whatever timm, the Hub and its client raise
        raise WeightsError(_not_made(backbone, pretrained, file, error)) from error


def _not_made(backbone: str, pretrained: bool, file: Path | None, error: Exception) -> str:
    name, why = backbone.removeprefix("timm:"), reason(error)
    if not pretrained:
        import timm

        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        return f"timm cannot make {backbone} ({why})." + (f" It knows {tags}." if tags and "." in name else "")
    if file is not None:
        return f"network.backbone_weights = {file} does not hold the weights of {backbone} ({why})."
    return (
        f"the weights of {backbone} are not in timm's cache and cannot be fetched ({why}). With a network, "
        f"python -c \"import timm; timm.create_model('{name}', pretrained=True)\" fetches them once (into the folder "
        f"HF_HOME, which can be copied). Or fetch model.safetensors of timm/{name} from the Hugging Face Hub and set "
        "network.backbone_weights=FILE. network.backbone_weights=random takes weights that have learned nothing."
    )


def _unlike(model: Any) -> str:
    """What makes a model of timm another one than a plain vision transformer with a class token; "" for nothing."""
    from timm.layers import Mlp, PatchEmbed
    from timm.models.vision_transformer import Attention, Block, VisionTransformer

    if type(model) is not VisionTransformer:
        return f"it is a {type(model).__name__}, no VisionTransformer"
    if model.global_pool != "token" or model.num_prefix_tokens != 1:
        tokens = f"pooling {model.global_pool!r}, {model.num_prefix_tokens} tokens before the patches"
        return f"what it is read by is not one class token ({tokens})"
    if model.pos_embed is None:
        return "it has no embedding of positions"
    block: Any = model.blocks[0]
    kind = type(block)
    if kind is not Block:
        return f"its {kind.__name__} is no Block"
    kinds = [(block.attn, Attention), (block.mlp, Mlp), (model.patch_embed, PatchEmbed)]
    for part, wanted in [*kinds, (model.norm, nn.LayerNorm), (block.norm1, nn.LayerNorm), (block.mlp.act, nn.GELU)]:
        if type(part) is not wanted and not (wanted is nn.LayerNorm and isinstance(part, wanted)):
            return f"its {type(part).__name__} is no {wanted.__name__}"
    own = {name.partition(".")[2].partition(".")[2] if name.startswith("blocks.") else name for name in _named(model)}
    left = own - {
        "cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias",
        *(f"{layer}.{part}" for layer in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
          for part in ("weight", "bias")), "ls1.gamma", "ls2.gamma",
    }  # fmt: skip
    if left:
        return f"it has parts that a plain one lacks ({', '.join(sorted(left)[:3])})"
    if block.attn.num_heads * block.attn.head_dim != model.embed_dim or block.mlp.act.approximate != "none":
        return "its heads do not fill its width, or its GELU is an approximation"
    (rows, columns), hidden = model.patch_embed.patch_size, block.mlp.fc1.out_features
    whole = rows == columns and hidden % model.embed_dim == 0
    return "" if whole else "its patches are no squares, or its hidden width is no multiple of its width"


def _named(model: nn.Module) -> list[str]:
    return [name for name, _ in model.named_parameters()]


# Weights -------------------------------------------------------------------------------------------------------------


class Weights(NamedTuple):
    """The parameters of expert 1 by name, and the digest of the weights that they were made from."""

    parameters: dict[str, Tensor]
    sha256: str


def weights_of(network: Network) -> Weights:
    """The weights of a network's backbone from its file, or from timm's cache, read once.

    Raises:
        LabError: they are not there, or another model's.
    """
    assert network.backbone is not None
    if network.backbone_weights is None:
        return _read(network.backbone, None, 0)
    file = Path(network.backbone_weights).expanduser()
    if file.suffix != ".safetensors":
        raise WeightsError(f"network.backbone_weights = {file}: give a .safetensors file, or {RANDOM}.")
    if not file.is_file():
        raise WeightsError(
            f"network.backbone_weights = {file}: no such file. Name it where it is; of a run in an archive or a single "
            "file the name alone is known: put it into the working directory."
        )
    return _read(network.backbone, file, file.stat().st_mtime_ns)


def check_weights(network: Network) -> None:
    """Reads the weights of a network's backbone before anything is trained on it; raises what `weights_of` raises."""
    if network.backbone is not None and network.backbone_weights != RANDOM:
        weights_of(network)


def beside(network: Network, sha256: str | None) -> str:
    """What a file of a run on a backbone lacks, in a sentence; "" without a backbone, and for one that learned nothing.

    Args:
        sha256: the digest of the weights, where it is known.
    """
    if network.backbone is None or network.backbone_weights == RANDOM:
        return ""
    which = f" (sha256 {sha256[:12]})" if sha256 else ""
    where = "timm's cache" if network.backbone_weights is None else Path(network.backbone_weights).name
    return (
        f"The weights of {network.backbone}{which} are not in it: whoever opens it needs them, from {where}, in timm's "
        "cache or as network.backbone_weights=FILE."
    )


@functools.lru_cache(maxsize=1)  # experts of one process share them
def _read(backbone: str, file: Path | None, changed: int) -> Weights:
    model = _made(backbone, pretrained=True, file=file)
    state = {name: value.detach().float() for name, value in model.state_dict().items()}
    if file is not None:
        _check_names(backbone, file, state)
    if strange := [name for name, value in state.items() if not value.isfinite().all()]:
        raise WeightsError(f"the weights of {backbone} in {file or 'the cache'} are no numbers: {strange[0]}.")
    return Weights(own_form(state, bool(model.no_embed_class)), digest(state))


def _check_names(backbone: str, file: Path, state: dict[str, Tensor]) -> None:
    """Raises a `WeightsError` where a file holds other tensors than the model, whose missing ones timm leaves as they
    are at the start. A classifier may be there."""
    with safetensors.safe_open(file, framework="pt", device="cpu") as opened:
        there = {name for name in opened.keys() if not name.startswith("head.")}  # noqa: SIM118
    lacking, more = sorted(state.keys() - there), sorted(there - state.keys())
    if lacking or more:
        told = [f"{len(names)} {what}, such as {brief(names[0])}" for names, what in (
            (lacking, "are missing"), (more, "are of another model")) if names]  # fmt: skip
        raise WeightsError(
            f"network.backbone_weights = {file} does not hold the weights of {backbone}: of its tensors "
            f"{'; '.join(told)}. Take the file that timm has for this name."
        )


def digest(state: dict[str, Tensor]) -> str:
    """The SHA-256 of named tensors."""
    found = hashlib.sha256()
    for name, value in sorted(state.items()):
        found.update(f"{name} {tuple(value.shape)}\0".encode() + value.contiguous().cpu().numpy().tobytes())
    return found.hexdigest()


def own_form(state: dict[str, Tensor], bare_token: bool) -> dict[str, Tensor]:
    """timm's weights as the parameters of an `Expert`; ``bare_token``: positions are those of patches alone."""
    position, token = state["pos_embed"][0], state["cls_token"][0, 0]  # (1 + N or N, C), (C,)
    if not bare_token:
        token, position = token + position[0], position[1:]
    found = {
        "embed.weight": state["patch_embed.proj.weight"].flatten(1),  # (C, channels x patch x patch)
        "embed.bias": state["patch_embed.proj.bias"],
        "position": position.clone(),
        "class_token": token.clone(),
        "norm.weight": state["norm.weight"],
        "norm.bias": state["norm.bias"],
    }
    depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
    for layer in range(depth):
        prefix = f"blocks.{layer}."
        found |= {prefix + name: value for name, value in _block(_part(state, prefix)).items()}
    return found


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _block(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """One block of timm's as the parameters of an `ExpertBlock`."""
    width = len(state["norm1.weight"])
    qkv_bias = state.get("attn.qkv.bias", torch.zeros(3 * width))
    query_bias, _, value_bias = qkv_bias.view(3, width)  # (C,) each
    out, out_bias = state["attn.proj.weight"], state.get("attn.proj.bias", torch.zeros(width))
    out_bias = (out_bias.double() + out.double() @ value_bias.double()).float()
    scale1, scale2 = (state.get(f"ls{n}.gamma", torch.ones(width)) for n in (1, 2))
    same = ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias")
    return {name: state[name] for name in same} | {
        "attention.qkv": state["attn.qkv.weight"].view(3, width, width),  # (3 C, C) -> (3, C, C)
        "attention.query_bias": query_bias.clone(),
        "attention.out.weight": out * scale1[:, None],
        "attention.out.bias": out_bias * scale1,
        "mix1.weight": state["mlp.fc1.weight"],
        "mix1.bias": state.get("mlp.fc1.bias", torch.zeros(len(state["mlp.fc1.weight"]))),
        "mix2.weight": state["mlp.fc2.weight"] * scale2[:, None],
        "mix2.bias": state.get("mlp.fc2.bias", torch.zeros(width)) * scale2,
    }


class FrozenExpert(Expert):
    """Expert 1 with the weights of a backbone: nothing of it trains, and a checkpoint holds their digest alone.

    On the device "meta" (where networks are counted, not computed) it has no weights, and its digest is empty.
    """

    def __init__(self, network: Network, place: Place) -> None:
        assert network.backbone is not None
        counted, random = torch.empty(0).is_meta, network.backbone_weights == RANDOM
        with torch.device("cpu" if random and not counted else "meta"):
            super().__init__(network, IA, place)
        self.name, self.sha256 = network.backbone, ""
        epsilon = trunk(network.backbone).epsilon
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = epsilon
        for block in self.blocks:
            bias = torch.zeros(network.head_width * place.heads, device=self.position.device)
            block.attention.query_bias = nn.Parameter(bias)
        self.requires_grad_(False)
        if random and not counted:
            self.sha256 = digest({name: value.detach() for name, value in self.named_parameters()})
        elif not counted:
            self._take(weights_of(network))

    def _take(self, weights: Weights) -> None:
        if {*_named(self)} != weights.parameters.keys():
            raise WeightsError(f"the weights of {self.name} do not fit its structure.")
        for full, value in weights.parameters.items():
            place, _, name = full.rpartition(".")
            setattr(self.get_submodule(place), name, nn.Parameter(value, requires_grad=False))
        self.sha256 = weights.sha256

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """The digest of the weights alone, as the 32 bytes of a tensor."""
        found = OrderedDict() if destination is None else destination
        found[prefix + DIGEST] = torch.tensor(list(bytes.fromhex(self.sha256)), dtype=torch.uint8)
        return found

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """Checks the digest; the weights stay.

        Raises:
            WeightsError: it is another one.
        """
        given = state_dict.pop(prefix + DIGEST, None)
        there = "" if given is None else bytes(given.tolist()).hex()
        if there != self.sha256:
            raise WeightsError(
                f"the weights of {self.name} here (sha256 {self.sha256[:12]}) are not those that this was learned with "
                f"(sha256 {there[:12] or 'not known'}). Bring those back, e.g. with network.backbone_weights=FILE."
            )
        state_dict |= {prefix + name: value for name, value in self.named_parameters()}
        super()._load_from_state_dict(state_dict, prefix, *rest)
