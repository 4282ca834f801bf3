"""The probe on networks of torchvision and timm: what it reads there, what it refuses, what it leaves behind."""

import contextlib
import copy
import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from timm.models.vision_transformer import ParallelScalingBlock, ParallelThingsBlock
from torch import Tensor, nn

from dne_lab.analysis.ablation import ablate
from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.probe import probe
from dne_lab.core.errors import LabError
from dne_lab.models.attention import Axes

TORCHVISION, TIMM = "torchvision", "timm"


def network(library: str = TIMM, **changes: Any) -> Any:
    """A random transformer for 32 pixels, two blocks and two heads, with every parameter moved off its start."""
    torch.manual_seed(0)
    if library == TORCHVISION:
        names: dict[str, Any] = {"image_size": 32, "patch_size": 8, "num_layers": 2, "hidden_dim": 16, "mlp_dim": 32}
        model: Any = torchvision.models.VisionTransformer(**{**names, "num_heads": 2, "num_classes": 5, **changes})
    else:
        names = {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 5}
        model = timm.models.VisionTransformer(**{**names, **changes})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def images(count: int = 3, *size: int) -> Tensor:
    """Normalised floats, as these libraries take them."""
    return torch.randn(count, 3, *(size or (32, 32)), generator=torch.Generator().manual_seed(count))


def attentions(model: Any) -> list[Any]:
    """The attention module of each block."""
    if isinstance(model, torchvision.models.VisionTransformer):
        return [block.self_attention for block in model.encoder.layers]
    return [block.attn for block in model.blocks]


@torch.no_grad()
def expected(model: Any, given: Tensor) -> list[Tensor]:
    """The weights of each block, from what went into its attention."""
    caught: list[Tensor] = []
    handles = [a.register_forward_pre_hook(lambda m, inputs: caught.append(inputs[0])) for a in attentions(model)]
    model(given)
    for handle in handles:
        handle.remove()
    found = []
    for attention, x in zip(attentions(model), caught, strict=True):
        if isinstance(attention, nn.MultiheadAttention):
            found.append(attention(x, x, x, need_weights=True, average_attn_weights=False)[1])
            continue
        rows = torch.empty(len(x), attention.num_heads, x.shape[1], x.shape[1], dtype=x.dtype)
        q, k, _ = attention.qkv(x).reshape(*x.shape[:2], 3, attention.num_heads, -1).unbind(2)
        for b, h, p in np.ndindex(*rows.shape[:3]):
            query = attention.q_norm(q[b, p, h])
            scores = [float(query @ attention.k_norm(k[b, other, h])) for other in range(x.shape[1])]
            shares = np.exp(np.array(scores) / len(query) ** 0.5)
            rows[b, h, p] = torch.from_numpy(shares / shares.sum())
        found.append(rows)
    return found


def state(model: nn.Module) -> list[Any]:
    """Every hook, and every switch of the fused kernel."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    names += ("_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    found = [hook for part in model.modules() for name in names for hook in getattr(part, name).items()]
    return found + [(name, part.fused_attn) for name, part in model.named_modules() if hasattr(part, "fused_attn")]


def uniform(values: Tensor, axes: Axes) -> Tensor:
    """What attends to every token alike."""
    return torch.full_like(values, 1 / values.shape[-1])


@pytest.mark.parametrize(
    ("library", "changes", "classes"),
    [
        (TORCHVISION, {}, 1),
        (TORCHVISION, {"num_heads": 1, "patch_size": 16}, 1),
        (TIMM, {}, 1),
        (TIMM, {"class_token": False, "global_pool": "avg"}, 0),
        (TIMM, {"reg_tokens": 3, "no_embed_class": True}, 4),
        (TIMM, {"qkv_bias": False, "qk_norm": True, "init_values": 0.1, "img_size": (32, 48)}, 1),
    ],
    ids=str,
)
def test_maps_are_those_of_an_independent_computation(library: str, changes: dict[str, Any], classes: int) -> None:
    model = network(library, **changes).double()
    rows, columns = (4, 6) if "img_size" in changes else (2, 2) if "patch_size" in changes else (4, 4)
    given = images(3, 32, 48 if columns == 6 else 32).double()
    with probe(model, dtype=torch.float64) as maps:
        model(given[:2])
        model(given[2:])
    assert [(part.kind, part.layer, part.expert) for part in maps] == [("spatial", 0, 1), ("spatial", 1, 1)]
    for part, truth in zip(maps, expected(model, given), strict=True):
        torch.testing.assert_close(part.values, truth, atol=1e-12, rtol=0)
        axes = part.axes
        heads = truth.shape[1]
        assert axes.layout == "b h p kp" and axes.grid == (rows, columns) and axes.classes == classes
        assert axes.query_expert == axes.key_expert == (1,) * heads and axes.allowed is None
        assert axes.query_head == axes.key_head == tuple(range(heads))
    frame = maps[0].frame()
    assert set(frame.key_patch) == set(frame.query_patch) == set(range(-classes, rows * columns))


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
def test_logits_of_torchvision_stay_bit_for_bit(training: bool, grad: bool) -> None:
    """On the native kernel of evaluation too; in training the dropout draws the same numbers."""
    model = network(TORCHVISION, attention_dropout=0.2, dropout=0.1).train(training)
    results = []
    with torch.set_grad_enabled(grad):
        for manager in (contextlib.nullcontext(), probe(model), contextlib.nullcontext()):
            torch.manual_seed(1)
            with manager:
                results.append(model(images()))
    assert torch.equal(results[0], results[1]) and torch.equal(results[0], results[2])
    assert all(part.training is training for part in model.modules())


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_logits_of_timm_agree(training: bool) -> None:
    model = network().train(training)
    before = model(images())
    with probe(model):
        heard = model(images())
        gradient = torch.autograd.grad(heard.square().sum(), model.blocks[0].attn.qkv.weight)[0]
    assert (heard - before).abs().max() / before.abs().max() < 1e-5
    truth = torch.autograd.grad(before.square().sum(), model.blocks[0].attn.qkv.weight)[0]
    assert (gradient - truth).abs().max() / truth.abs().max() < 1e-4
    assert torch.equal(model(images()), before) and all(part.training is training for part in model.modules())


def test_attention_is_read_before_the_dropout_of_training() -> None:
    for library, name in ((TORCHVISION, "attention_dropout"), (TIMM, "attn_drop_rate")):
        model = network(library, **{name: 0.5}).train()
        with probe(model, layer=0) as maps:
            model(images())
        torch.testing.assert_close(maps[0].values.sum(-1), torch.ones(3, 2, 17))
        assert float(maps[0].values.min()) > 0


@pytest.mark.parametrize("library", [TORCHVISION, TIMM])
def test_selection_reading_and_part_work_as_ever(library: str) -> None:
    model, seen = network(library), []
    with (
        torch.inference_mode(),
        probe(model, "spatial", 1, 1, head=1, read=lambda v, axes: seen.append((v, axes)), dtype=torch.float16) as maps,
        probe(model, part="content", keep=False, read=lambda v, axes: seen.append((v, axes))) as none,
    ):
        model(images())
    assert len(maps) == 1 and len(none) == 0 and maps[0].values.dtype == torch.float16
    assert maps[0].axes.query_head == (1,) and not maps[0].values.is_inference()
    content, mine = [v for v, axes in seen if axes.layer == 1 and len(axes.query_head) == 2], seen[1][0]
    assert [axes.layer for _, axes in seen] == [0, 1, 1] and not any(v.requires_grad for v, _ in seen)
    assert torch.equal(mine, content[0][:, 1:]) and torch.equal(mine.half(), maps[0].values)


@pytest.mark.parametrize("library", [TORCHVISION, TIMM])
def test_a_network_inside_a_module_is_found(library: str) -> None:
    model = nn.Sequential(nn.Identity(), network(library))
    with probe(model) as maps:
        model(images())
    assert len(maps) == 2


def test_features_asked_for_on_their_own_are_read_too() -> None:
    model = network()
    with probe(model, layer=0) as maps:
        model.forward_features(images(2))
        model(images(3))
    assert len(maps[0].values) == 5


def test_only_listened_blocks_of_timm_leave_the_fused_kernel() -> None:
    model = network()
    model.blocks[1].attn.fused_attn = False
    with probe(model, layer=0):
        assert [a.fused_attn for a in attentions(model)] == [False, False]
        model(images())
    assert [a.fused_attn for a in attentions(model)] == [True, False]
    with probe(model, layer=1):
        assert [a.fused_attn for a in attentions(model)] == [True, False]
        model(images())
    assert [a.fused_attn for a in attentions(model)] == [True, False]


def test_the_fused_kernel_comes_back_in_whatever_order_probes_end() -> None:
    model = network()
    first, second = probe(model), probe(model, layer=0)
    first.__enter__()
    maps = second.__enter__()
    model(images())
    first.__exit__(None, None, None)
    assert [a.fused_attn for a in attentions(model)] == [False, True]
    model(images())
    second.__exit__(None, None, None)
    assert [a.fused_attn for a in attentions(model)] == [True, True] and len(maps[0].values) == 6


def test_timm_of_any_image_size_has_the_grid_of_each_pass() -> None:
    model = network(dynamic_img_size=True, dynamic_img_pad=True, reg_tokens=1)
    with probe(model, layer=0) as maps:
        model(images(2, 32, 48))
        model(images(3, 30, 20))
    assert [(part.axes.grid, tuple(part.values.shape)) for part in maps] == [
        ((4, 6), (2, 2, 26, 26)),
        ((4, 3), (3, 2, 14, 14)),
    ]


def test_a_distilled_transformer_has_two_tokens_before_the_patches() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, embed_dim=12, num_heads=3, depth=1)
    with probe(model, head=2) as maps:
        model(images())
    assert maps[0].axes.classes == 2 and maps[0].axes.grid == (2, 2) and maps[0].values.shape == (3, 1, 6, 6)


def test_a_mask_of_timm_shows_in_the_map() -> None:
    model = network()
    mask = torch.ones(17, 17, dtype=torch.bool)
    mask[:, 5:] = False
    with probe(model) as maps:
        model(images(), attn_mask=mask)
    assert all(float(part.values[..., 5:].max()) == 0 for part in maps)
    torch.testing.assert_close(maps[0].values.sum(-1), torch.ones(3, 2, 17))


def test_replacing_in_timm_is_what_multiplies_v() -> None:
    """Against a block computed by hand with the same weights; the other head stays."""
    model = network().double()
    given: list[Tensor] = []
    attention = model.blocks[1].attn
    with probe(model, layer=1, dtype=torch.float64) as before:
        model(images().double())
    handle = attention.register_forward_hook(lambda module, inputs, output: given.extend([inputs[0], output]))
    with probe(model, layer=1, head=0, replace=uniform, dtype=torch.float64) as maps:
        logits = model(images().double())
    handle.remove()
    x, output = given
    weights = before[0].values.clone()
    weights[:, 0] = 1 / 17
    v = attention.qkv(x).reshape(3, 17, 3, 2, 8)[:, :, 2]
    mixed = torch.einsum("bhpk,bkhd->bphd", weights, v).flatten(2)
    torch.testing.assert_close(output, attention.proj(mixed), atol=1e-12, rtol=0)
    assert torch.equal(maps[0].values, weights[:, :1]) and not torch.allclose(logits, model(images().double()))

    def decline(values: Tensor, axes: Axes) -> None:
        values.zero_()  # counts only if it is returned

    with probe(model, replace=decline):
        same = model(images().double())
    torch.testing.assert_close(same, model(images().double()), atol=1e-12, rtol=0)


def test_replacing_in_timm_is_differentiable_checked_and_nested() -> None:
    model, strength = network(), torch.ones((), requires_grad=True)
    with probe(model, layer=0, replace=lambda values, axes: values * strength):
        model(images()).sum().backward()
    assert strength.grad is not None and float(strength.grad.abs()) > 0
    with (
        pytest.warns(UserWarning, match=r"blocks\.0\.attn of expert 1 do not sum to 1 \(from 0\.5 to 0\.5\)"),
        probe(model, layer=0, replace=lambda values, axes: values / 2),
    ):
        model(images())
    with (
        pytest.raises(LabError, match=r"\(1, 2, 17, 17\) for blocks\.0\.attn of expert 1: .*\(3, 2, 17, 17\)"),
        probe(model, layer=0, replace=lambda values, axes: values[:1]),
    ):
        model(images())
    with probe(model) as outside, probe(model, replace=uniform), probe(model) as inside:
        model(images())
    assert float(inside[0].values.std()) < 1e-6 < float(outside[0].values.std())


class Stop(Exception):
    """Raised on purpose."""


def stop(*call: Any) -> None:
    raise Stop


def normally(model: Any) -> None:
    with probe(model):
        model(images())


def raising_in_the_body(model: Any) -> None:
    with contextlib.suppress(Stop), probe(model):
        model(images())
        raise Stop


def raising_in_forward(model: Any) -> None:
    handle = attentions(model)[1].register_forward_hook(stop)
    with contextlib.suppress(Stop), probe(model) as maps:
        model(images())
    handle.remove()
    assert len(maps) == 0  # a pass that raised leaves nothing


def raising_in_the_callback(model: Any) -> None:
    with contextlib.suppress(Stop), probe(model, read=stop):
        model(images())


def nested(model: Any) -> None:
    with probe(model) as one, probe(model, layer=1), probe(model) as other:
        model(images())
    assert all(torch.equal(a.values, b.values) for a, b in zip(one, other, strict=True))


def inner_first(model: Any) -> None:
    with probe(model, layer=0) as outer:
        with probe(model):
            model(images())
        model(images())
    assert len(outer[0].values) == 6


def nothing_fires(model: Any) -> None:
    told = r"did not fire: .*(self_attention|attn) \(experts 1\)\. Call the network"
    with pytest.raises(LabError, match=told), probe(model):
        pass


def wrong_selection(model: Any) -> None:
    with pytest.raises(LabError, match="layer 2: this network has layers 0, 1"), probe(model, layer=2):
        pass


def too_little_memory(model: Any) -> None:
    size, told = 3 * 2 * 17 * 17 * 4, r"6\.94 kB of attention maps with .*0.* for 3 images"
    with pytest.raises(LabError, match=told), probe(model, memory_limit=size - 1):
        model(images())
    with probe(model, layer=1, memory_limit=size):
        model(images())


def garbage_collected(model: Any) -> None:
    manager = probe(model)
    manager.__enter__()
    del manager
    gc.collect()


WAYS = [
    normally,
    raising_in_the_body,
    raising_in_forward,
    raising_in_the_callback,
    nested,
    inner_first,
    nothing_fires,
    wrong_selection,
    too_little_memory,
    garbage_collected,
]


@pytest.mark.parametrize("foreign", [False, True], ids=["no foreign hook", "foreign hooks"])
@pytest.mark.parametrize("library", [TORCHVISION, TIMM])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_hooks_are_gone_and_foreign_ones_stay(way: Callable[[Any], None], library: str, foreign: bool) -> None:
    model, called = network(library), []
    if foreign:
        for part in [model, *attentions(model), *(a.attn_drop for a in attentions(model) if hasattr(a, "attn_drop"))]:
            part.register_forward_hook(lambda module, inputs, output: called.append("hook"))
            part.register_forward_pre_hook(lambda module, inputs: called.append("pre-hook"))
    before = state(model)
    way(model)
    assert state(model) == before
    called.clear()
    model(images())
    assert set(called) == ({"hook", "pre-hook"} if foreign else set())
    normally(model)  # and it can be probed again


@pytest.mark.parametrize("library", [TORCHVISION, TIMM])
def test_nothing_is_kept_alive(library: str) -> None:
    model = network(library).train()
    read = lambda values, axes: alive.append(weakref.ref(values))  # noqa: E731
    alive: list[Any] = [*map(weakref.ref, model.modules())]
    manager = probe(model, read=read)
    with manager as maps:
        output = model(images())
        alive.append(weakref.ref(output))
    alive.append(weakref.ref(read))
    assert maps.bytes == sum(part.values.untyped_storage().nbytes() for part in maps)
    assert not any(part.values.requires_grad or part.values._is_view() for part in maps)
    del model, output, read
    gc.collect()
    assert not [ref() for ref in alive if ref() is not None] and len(maps) and manager is not None


def test_hooks_that_change_the_input_are_seen_by_both() -> None:
    """What torchvision computes is from what the module got; what timm computes is where it computes."""
    for library in (TORCHVISION, TIMM):
        model = network(library)
        with probe(model, layer=0) as maps:
            attentions(model)[0].register_forward_pre_hook(lambda module, inputs: tuple(x * 0 for x in inputs))
            model(images())
        torch.testing.assert_close(maps[0].values, torch.full((3, 2, 17, 17), 1 / 17))


@pytest.mark.parametrize(
    ("make", "choice", "message"),
    [
        (lambda: network(TORCHVISION), {"replace": uniform}, r"torchvision's VisionTransformer can only be read: "),
        (lambda: network(TORCHVISION), {"part": "position"}, "torchvision's .* mixes no positional attention in"),
        (lambda: network(TIMM), {"part": "position"}, "timm's .* mixes no positional attention in"),
        (lambda: network(TIMM), {"part": "content", "replace": uniform}, "part = 'content' can only be read"),
        (lambda: network(TIMM), {"kind": "joint"}, "attention in timm's VisionTransformer 'joint'. Allowed: spatial"),
        (lambda: network(TIMM), {"expert": 2}, "expert 2: this network has experts 1"),
        (lambda: network(TIMM), {"head": 2}, "head 2: this network has heads 0, 1"),
        (lambda: nn.ModuleList([network(TIMM), network(TORCHVISION)]), {}, "several networks, probe one of them: 0, 1"),
        (lambda: network(block_fn=ParallelScalingBlock), {}, r"blocks\.0 is a ParallelScalingBlock, and only"),
        (lambda: network(block_fn=ParallelThingsBlock), {}, r"blocks\.0 is a ParallelThingsBlock, and only"),
        (lambda: network(attn_layer="diff"), {}, r"blocks\.0 is a Block with DiffAttention, and only"),
        (lambda: timm.create_model("swin_tiny_patch4_window7_224"), {}, "of timm, such as SwinTransformer"),
        (lambda: timm.create_model("eva02_tiny_patch14_224"), {}, "architectures of timm, such as Eva"),
        (torchvision.models.resnet18, {}, "architectures of torchvision, such as ResNet, have no attention or"),
    ],
)  # fmt: skip
def test_what_is_refused(make: Callable[[], Any], choice: dict[str, Any], message: str) -> None:
    model = make()
    before = state(model)
    with pytest.raises(LabError, match=message), probe(model, **choice):
        raise AssertionError("the body is not entered")
    assert state(model) == before


def test_compiled_networks_are_refused_and_the_fix_works() -> None:
    for library in (TORCHVISION, TIMM):
        model = network(library)
        compiled = torch.compile(model, backend="eager")
        with pytest.raises(LabError, match=r"is compiled, .*probe\(model\._orig_mod\)"), probe(compiled):
            raise AssertionError("the body is not entered")
        normally(compiled._orig_mod)
        model.compile(backend="eager")
        with pytest.raises(LabError, match="Probe a copy"), probe(model):
            raise AssertionError("the body is not entered")
        normally(copy.deepcopy(model))


def test_gradient_checkpointing_of_timm_is_refused_and_the_fix_works() -> None:
    model = network()
    model.set_grad_checkpointing()
    with pytest.raises(LabError, match=r"Call model\.set_grad_checkpointing\(False\)"), probe(model):
        raise AssertionError("the body is not entered")
    model.set_grad_checkpointing(False)
    normally(model)


def test_patches_that_were_dropped_cannot_be_named() -> None:
    model = network(patch_drop_rate=0.5).train()
    with pytest.raises(LabError, match=r"blocks\.0\.attn .* got 9 tokens, where 1 .* 4 x 4 patches make 17: .*eval"):
        normally(model)
    normally(model.eval())


def test_attention_that_is_not_as_torchvision_has_it_is_refused() -> None:
    model = network(TORCHVISION)
    first = attentions(model)[0]
    tokens = torch.randn(2, 17, 16)
    with pytest.raises(LabError, match=r"encoder_layer_0\.self_attention .* with attn_mask"), probe(model, layer=0):
        first(tokens, tokens, tokens, attn_mask=torch.zeros(17, 17))
    with pytest.raises(LabError, match="got 5 tokens, where 1 before"), probe(model, layer=0):
        first(tokens, tokens[:, :5], tokens[:, :5])
    with probe(model, layer=0) as maps:  # alone, and as it should be
        weights = first(query=tokens, key=tokens, value=tokens, average_attn_weights=False)[1]
    torch.testing.assert_close(maps[0].values, weights)
    model.encoder.layers[1].self_attention = nn.MultiheadAttention(16, 2, batch_first=True, add_bias_kv=True)
    with pytest.raises(LabError, match=r"encoder\.layers\.encoder_layer_1 has no self_attention that is a plain"):
        normally(model)


def test_blocks_that_share_an_attention_module_are_refused() -> None:
    model = network()
    model.blocks[1].attn = model.blocks[0].attn
    with pytest.raises(LabError, match="share one attention module"):
        normally(model)


@pytest.mark.parametrize(("library", "changes"), [(TORCHVISION, {}), (TIMM, {"reg_tokens": 2})], ids=str)
def test_attention_groups_sort_them_too(library: str, changes: dict[str, Any]) -> None:
    """Against sums over single entries: tokens before the patches are no patches."""
    model, given = network(library, **changes), images(5)
    before = state(model)
    found = attention_groups(model, given, batch_size=2, progress=False, replicates=0)
    same = every = 0.0
    first = 3 if changes else 1
    for truth in expected(model, given):
        for b, h, p, k in np.ndindex(*truth.shape):
            if p >= first and k >= first:
                every += float(truth[b, h, p, k])
                same += float(truth[b, h, p, k]) if p == k else 0.0
    assert found.same_patch("expert 1").value == pytest.approx(100 * same / every, rel=1e-5)
    assert set(found.table("layer").layer) == {0, 1} and state(model) == before
    with pytest.raises(LabError, match=r"VisionTransformer, 1 experts\) do not read each other"):
        attention_groups(model, given, shuffled=True, progress=False)


def test_neither_library_is_loaded_for_a_network_of_ones_own() -> None:
    code = """
import sys, torch
from dne_lab.core import config
from dne_lab.analysis.ablation import ablate
from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.probe import probe
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE
model = ExpandableViT(config.Network(patch=4, depth=2, head_width=4), (3, 8, 8), DNE, (0.5,) * 3, (0.5,) * 3)
model.expand(1, 2)
with probe(model) as maps:
    model(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
loaded = {name.split(".")[0] for name in sys.modules} & {"timm", "torchvision"}
assert len(maps) and not loaded, loaded
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("library", [TORCHVISION, TIMM])
def test_ablation_says_that_it_takes_other_networks(library: str) -> None:
    with pytest.raises(LabError, match=r"ablate takes an ExpandableViT, and this is .*VisionTransformer"):
        ablate(network(library), images(), group="SPSH")
