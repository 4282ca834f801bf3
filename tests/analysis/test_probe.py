"""The probe: it reads what the points compute, replaces what it is told to, and leaves nothing behind."""

import contextlib
import copy
import gc
import warnings
import weakref
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from reference import Query
from torch import Tensor, nn

from dne_lab.analysis.maps import AttentionMap, Maps
from dne_lab.analysis.probe import probe
from dne_lab.core.errors import LabError
from dne_lab.models import literal
from dne_lab.models.attention import AttentionWeights, Axes
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, STA, Variant

HEADS = (3, 1, 2, 1, 1, 2)
BOTH = Variant("both", "all", "task")
CHOICES = [{"spatial": s, "readout": r} for s in ("mhsa", "gpsa") for r in ("cls_token", "class_attention")]
HEAD_DIM = {"b h p kp": 1, "b h p kh kp": 1, "b p h kh": 2, "b h kp": 1, "b h k": 1}


def hooks(model: nn.Module) -> list[Any]:
    """Every hook in the network."""
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    names += ("_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")
    only = [number for part in model.modules() if isinstance(part, AttentionWeights) for number in part.only]
    return only + [hook for part in model.modules() for name in names for hook in getattr(part, name).items()]


def rows(found: AttentionMap) -> Iterator[tuple[Query, Tensor]]:
    """A map row by row."""
    axes = found.axes
    for place, (expert, head) in enumerate(zip(axes.query_expert, axes.query_head, strict=True)):
        mine = found.values.select(HEAD_DIM[axes.layout], place)
        mine = mine.unsqueeze(1) if axes.layout in ("b h kp", "b h k") else mine
        for image in range(mine.shape[0]):
            for position in range(mine.shape[1]):
                yield Query(axes.kind, axes.layer, expert, head, image, position), mine[image, position]


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
@pytest.mark.parametrize("variant", [IA, STA, DNE, BOTH], ids=tiny.names)
def test_maps_are_those_of_the_equations(variant: Variant, choice: dict[str, Any]) -> None:
    """Every row of every expert over exactly the keys that it may see, over two passes."""
    model, images = tiny.model(variant, HEADS, **choice).double(), tiny.images(3)
    with probe(model, dtype=torch.float64) as maps:
        model(images[:2])
        model(images[2:])
    expected: dict[Query, Any] = {}
    reference.forward(model, images, lambda query, row: expected.setdefault(query, row.copy()))
    found = dict(pair for part in maps for pair in rows(part))
    assert found.keys() == expected.keys()
    assert all(
        found[q].shape == row.shape and np.abs(found[q].numpy() - row).max() < 1e-12 for q, row in expected.items()
    )
    assert len({(part.kind, part.layer, part.expert) for part in maps}) == len(maps)
    for part in maps:
        sums = part.values.sum((-1, -2) if "kh kp" in part.axes.layout else -1)
        torch.testing.assert_close(sums, torch.ones_like(sums), atol=1e-12, rtol=0)
        assert part.axes.allowed is None and set(part.axes.query_expert) == {part.expert}
        assert max(part.axes.key_expert) == part.expert and len(part.values) == 3
    assert [(m.layer, m.expert) for m in maps.select("spatial")] == sorted(
        (m.layer, m.expert) for m in maps.select("spatial")
    )


def test_a_map_is_the_one_that_a_hook_by_hand_reads() -> None:
    model, told = tiny.model(STA, HEADS), []
    point: AttentionWeights = model.blocks[0].joint.weights  # type: ignore[union-attr, assignment]
    point.register_forward_hook(lambda module, inputs, output: told.append((inputs[1], output)))
    with probe(model, kind="joint", layer=0, expert=(2, 4, 6), head=0) as maps:
        model(tiny.images())
    assert [part.expert for part in maps] == [2, 4, 6]
    for part in maps:
        axes, output = next(pair for pair in told if part.expert in pair[0].query_expert)
        visible = [owner <= part.expert for owner in axes.key_expert]
        row = axes.query_expert.index(part.expert)
        assert torch.equal(part.values, output[:, row : row + 1][:, :, :, visible])
        assert part.axes.query_head == (0,)
        assert part.axes.key_expert == tuple(
            t for t, count in enumerate(HEADS, 1) for _ in range(count) if t <= part.expert
        )


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [*tiny.VARIANTS, *tiny.PUBLISHED], ids=tiny.names)
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
def test_listening_changes_no_logit_and_no_gradient(variant: Variant, style: dict[str, Any], training: bool) -> None:
    model = tiny.model(variant, HEADS, **style).train(training)
    images = tiny.images(4)

    def gradient(output: Any) -> Tensor:
        parameters = [p for p in model.experts[-1].parameters() if p.requires_grad]
        found = torch.autograd.grad(output.logits.square().sum(), parameters, allow_unused=True)
        return torch.cat([g.flatten() for g in found if g is not None])

    model.experts[-1].requires_grad_(True)
    before = model(images)
    with probe(model) as maps:
        heard = model(images)
        after = gradient(heard)
    assert len(maps) and not any(part.values.requires_grad for part in maps)
    assert tiny.difference(heard.logits, before.logits) < 1e-5
    assert tiny.difference(after, gradient(before)) < 1e-4


def test_only_the_selected_is_listened_to_and_kept() -> None:
    model = tiny.model(BOTH, HEADS, depth=3)
    with probe(model, kind=["joint", "task2"], layer=[0, 2], expert=[3, 6], head=1) as maps:
        points = {name: part for name, part in model.named_modules() if isinstance(part, AttentionWeights)}
        listened = {name for name, part in points.items() if part.listens_to(range(1, 7))}
        others = [part.listens_to([2, 4, 5]) for name, part in points.items() if "joint" in name]
        banks = [bank.numbers for bank in model.banks()]
        model(tiny.images())
    assert listened == {f"blocks.{i}.{kind}.weights" for i in (0, 2) for kind in ("joint", "task2")}
    assert not any(others) and (3,) in banks and (4, 5) in banks and max(map(len, banks)) > 1
    assert not any(part.only for part in points.values())
    assert [(m.layer, m.kind, m.expert) for m in maps] == [
        (i, kind, t) for i in (0, 2) for kind in ("joint", "task2") for t in (3, 6)
    ]
    assert all(part.axes.query_head == (1,) for part in maps)
    before = [bank.numbers for bank in model.banks()]
    with probe(model, kind="task1", layer=1):
        assert [bank.numbers for bank in model.banks()] == before  # all experts: no batch is undone
        model(tiny.images())
    with probe(model, kind="joint", layer=1) as every:  # maps over every patch of every head: one expert at a time
        assert [bank.numbers for bank in model.banks()] == [(number,) for number in range(1, 7)]
        model(tiny.images())
    assert [part.axes.query_head for part in every] == [tuple(range(count)) for count in HEADS[1:]]
    with probe(model, kind="spatial", head=(0, 2)) as apart:  # rows that are no slice
        model(tiny.images())
    with probe(model, kind="spatial") as whole:
        model(tiny.images())
    assert torch.equal(apart[0].values, whole[0].values[:, [0, 2]])


@pytest.mark.parametrize(("variant", "kind"), [(IA, "spatial"), (STA, "joint")], ids=tiny.names)
def test_only_the_listened_expert_leaves_the_fused_kernels(variant: Variant, kind: str) -> None:
    model, called = tiny.model(variant, HEADS), []
    weights = getattr(model.blocks[0], kind).weights
    forward = weights.forward
    weights.forward = lambda scores, axes, *rest: called.append(set(axes.query_expert)) or forward(scores, axes, *rest)
    with probe(model, kind, 0, 4) as maps:
        model(tiny.images())
    assert called == [{4}] and [part.expert for part in maps] == [4]


def test_maps_are_a_sequence_and_are_found_by_name() -> None:
    model = tiny.model(DNE, HEADS)
    with probe(model, kind=("spatial", "task1")) as maps:
        assert len(maps) == 0 and repr(maps) == "Maps()"
        model(tiny.images(2))
        first = len(maps.get("spatial", 0, 1).values)
        model(tiny.images(3))
    assert first == 2 and len(maps.get("spatial", 0, 1).values) == 5
    assert isinstance(maps, Maps) and list(maps) == [maps[i] for i in range(len(maps))] == maps[:]
    assert [m.expert for m in maps.select("task1", 1)] == [2, 3, 4, 5, 6]
    assert maps.bytes == sum(part.values.numel() * 4 for part in maps)
    assert "task1, layer 1, expert 2: b 5, p 7, h 1, kh 4" in repr(maps)
    with pytest.raises(LabError, match=r"0 maps for kind='joint'\..* There are: .*spatial, layer 0, expert 1"):
        maps.get("joint")
    with pytest.raises(LabError, match="2 maps for kind='task1', expert=2"):
        maps.get("task1", expert=2)


def test_names_of_another_library() -> None:
    one, several = tiny.model(IA, HEADS[:1], depth=2), tiny.model(BOTH, HEADS[:2], depth=2)
    with probe(one) as maps:
        one(tiny.images(2))
        one(tiny.images(1))
    named = maps.names("transformerlens")
    assert list(named) == ["blocks.0.attn.hook_pattern", "blocks.1.attn.hook_pattern"]
    first = named["blocks.0.attn.hook_pattern"]
    assert first is maps.get(layer=0) and first.axes.layout == "b h p kp" and len(first.values) == 3
    with probe(several, layer=1) as maps:
        several(tiny.images())
    assert {name: (found.kind, found.expert) for name, found in maps.names().items()} == {
        "blocks.1.expert_1.attn.hook_pattern": ("spatial", 1),
        **{f"blocks.1.expert_2.{kind}_attn.hook_pattern": (kind, 2) for kind in ("joint", "task1", "task2")},
    }
    with pytest.raises(LabError, match=r"unknown naming convention.*Allowed: transformerlens"):
        maps.names("timm")


def test_the_maps_of_a_network_that_grew_are_not_joined() -> None:
    model = tiny.model(IA, (2, 1))
    model.network = copy.copy(model.network)
    with probe(model, kind="spatial", layer=0, expert=1) as maps:
        model(tiny.images(2))
        model.expand(1, 2)
        model(tiny.images(3))
    assert len(maps[0].values) == 5  # what expert 1 sees has not changed
    values, axes = maps[0].values, maps[0].axes
    mixed = Maps()
    for size in (6, 6, 5):
        mixed.add(AttentionMap(values[..., :size], axes))
    assert [tuple(part.values.shape[::3]) for part in mixed] == [(10, 6), (5, 5)]
    with pytest.raises(LabError, match="would name several maps"):
        mixed.names()


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
def test_a_frame_names_every_entry(choice: dict[str, Any]) -> None:
    model = tiny.model(BOTH, (2, 1, 2), **choice)
    with probe(model) as maps:
        model(tiny.images(2))
    for part in maps:
        frame, axes = part.frame(), part.axes
        assert len(frame) == part.values.numel() and set(frame.kind) == {part.kind} and set(frame.layer) == {part.layer}
        index = [c for c in frame.columns if c != "attention"]
        assert not frame.duplicated(index).any()
        query = ["image", "query_head", "query_patch"]
        assert np.allclose(frame.groupby(query).attention.sum(), 1, atol=1e-5)
        assert frame[["query_patch", "key_patch"]].stack().between(-1, 5).all()
        assert (frame.key_expert <= frame.query_expert).all()
        row = frame.sample(1, random_state=0).iloc[0]
        place = {"b": row.image, "h": axes.query_head.index(row.query_head), "p": row.query_patch + axes.classes}
        key_head = list(zip(axes.key_expert, axes.key_head, strict=True)).index((row.key_expert, row.key_head))
        place |= {"kh": key_head, "kp": row.key_patch + axes.classes}
        place["k"] = 0 if row.key_patch < 0 else axes.classes + key_head * 6 + row.key_patch
        assert part.numpy()[tuple(int(place[name]) for name in axes.layout.split())] == np.float32(row.attention)
    whole = maps.frame()
    assert len(whole) == sum(part.values.numel() for part in maps) and set(whole.kind) == {m.kind for m in maps}
    with pytest.raises(LabError, match="no maps"):
        Maps().frame()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_values_are_kept_in_the_chosen_type(dtype: torch.dtype) -> None:
    model = tiny.model(DNE)
    with torch.inference_mode(), probe(model, "spatial", 1, dtype=dtype) as maps:
        model(tiny.images())
    assert all(part.values.dtype == dtype and part.values.device.type == "cpu" for part in maps)
    assert not any(part.values.is_inference() or part.values.requires_grad for part in maps)
    expected = np.float32 if dtype == torch.bfloat16 else getattr(np, str(dtype).removeprefix("torch."))
    assert maps[0].numpy().dtype == expected


class Stop(Exception):
    """Raised on purpose."""


def leave_normally(model: ExpandableViT) -> None:
    with probe(model):
        model(tiny.images())


def raise_in_the_body(model: ExpandableViT) -> None:
    with contextlib.suppress(Stop), probe(model):
        model(tiny.images())
        raise Stop


def raise_in_forward(model: ExpandableViT) -> None:
    def stop(*call: Any) -> None:
        raise Stop

    handle = model.blocks[1].register_forward_hook(stop)
    with contextlib.suppress(Stop), probe(model):
        model(tiny.images())
    handle.remove()


def interrupt_in_forward(model: ExpandableViT) -> None:
    def stop(*call: Any) -> None:
        raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt), probe(model, replace=stop):
        model(tiny.images())


def nested(model: ExpandableViT) -> None:
    with probe(model, kind="spatial"), probe(model, kind="task1"), probe(model, layer=1), probe(model, expert=2):
        model(tiny.images())


def twice_on_the_same_points(model: ExpandableViT) -> None:
    with probe(model) as one, probe(model) as other:
        model(tiny.images())
    assert len(one) and all(torch.equal(a.values, b.values) for a, b in zip(one, other, strict=True))


def inner_one_ends_first(model: ExpandableViT) -> None:
    with probe(model, kind="spatial") as outer:
        with probe(model) as inner:
            model(tiny.images())
        model(tiny.images())
    assert len(outer[0].values) == 4 and len(inner[0].values) == 2


def nothing_fires(model: ExpandableViT) -> None:
    with pytest.raises(LabError), probe(model):
        pass


def wrong_selection(model: ExpandableViT) -> None:
    with pytest.raises(LabError), probe(model, kind="joint"):
        model(tiny.images())


def too_little_memory(model: ExpandableViT) -> None:
    with pytest.raises(LabError), probe(model, memory_limit=10):
        model(tiny.images())


def garbage_collected(model: ExpandableViT) -> None:
    manager = probe(model)
    manager.__enter__()
    del manager
    gc.collect()


WAYS = [
    leave_normally,
    raise_in_the_body,
    raise_in_forward,
    interrupt_in_forward,
    nested,
    twice_on_the_same_points,
    inner_one_ends_first,
    nothing_fires,
    wrong_selection,
    too_little_memory,
    garbage_collected,
]


@pytest.mark.parametrize("foreign", [False, True], ids=["no foreign hook", "foreign hooks"])
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_hooks_are_gone_and_foreign_ones_stay(way: Any, foreign: bool) -> None:
    model, called = tiny.model(DNE), []
    if foreign:
        for part in [model, *(p for p in model.modules() if isinstance(p, AttentionWeights))]:
            part.register_forward_hook(lambda module, inputs, output: called.append(type(module)))
            part.register_forward_pre_hook(lambda module, inputs: called.append(type(module)))
    before = hooks(model)
    assert bool(before) == foreign
    way(model)
    assert hooks(model) == before
    called.clear()
    model(tiny.images())
    assert bool(called) == foreign
    with probe(model) as maps:  # and it can be probed again
        model(tiny.images())
    assert len(maps)


def test_hooks_registered_inside_stay() -> None:
    model = tiny.model(DNE)
    with probe(model):
        handle = model.blocks[0].task1.weights.register_forward_hook(lambda *call: None)  # type: ignore[union-attr]
        model(tiny.images())
    assert len(hooks(model)) == 1
    handle.remove()


def test_a_pass_that_raised_leaves_nothing() -> None:
    model = tiny.model(DNE)
    with probe(model, layer=0, memory_limit=9_000) as maps:
        for _ in range(5):  # what five of these begin to keep would exceed the limit
            with pytest.raises(RuntimeError):
                handle = model.blocks[1].register_forward_pre_hook(lambda *call: torch.ones(2) @ torch.ones(3))
                model(tiny.images(4))
            handle.remove()
        assert len(maps) == 0
        model(tiny.images(3))
    assert {len(part.values) for part in maps} == {3}
    with pytest.raises(LabError, match="did not fire"), probe(model, layer=0), contextlib.suppress(RuntimeError):
        handle = model.blocks[1].register_forward_pre_hook(lambda *call: torch.ones(2) @ torch.ones(3))
        model(tiny.images(4))
    handle.remove()


def test_readouts_called_on_their_own_are_read_too() -> None:
    model = tiny.model(DNE)
    with probe(model, "spatial", 0) as maps:
        model.readouts(tiny.images(2))
        model(tiny.images(3))
    assert {len(part.values) for part in maps} == {5}


@pytest.mark.parametrize("replacing", [False, True])
def test_nothing_is_kept_alive(replacing: bool) -> None:
    model = tiny.model(DNE, HEADS).train()
    model.experts[-1].requires_grad_(True)
    given, alive = [], []

    def same(values: Tensor, axes: Axes) -> Tensor:
        result = values * 1.0
        given.append(weakref.ref(result))
        return result

    alive = [weakref.ref(model), weakref.ref(same), *map(weakref.ref, model.modules())]
    model.blocks[0].spatial.weights.register_forward_hook(  # type: ignore[union-attr]
        lambda module, inputs, output: alive.append(weakref.ref(output))
    )
    manager = probe(model, replace=same if replacing else None)
    with manager as maps:
        output = model(tiny.images())
        alive.append(weakref.ref(output.logits))
    assert all(part.values.grad_fn is None and not part.values._is_view() for part in maps)
    assert maps.bytes == sum(part.values.untyped_storage().nbytes() for part in maps)  # no piece of something larger
    del model, same, output
    gc.collect()
    assert not [ref() for ref in alive + given if ref() is not None]
    assert len(maps) and manager is not None


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
@pytest.mark.parametrize("kind", [None, "spatial", "joint", "task1", "task2"])
def test_a_replaced_map_is_used_for_the_selected_rows_alone(kind: str | None, choice: dict[str, Any]) -> None:
    """Against the equations with the same rows replaced."""
    model, images = tiny.model(BOTH, HEADS, **choice).double(), tiny.images(2)
    expert = [1] if kind == "spatial" else [3, 4, 6]
    generator = torch.Generator().manual_seed(3)
    used: dict[Query, Tensor] = {}

    def replace(values: Tensor, axes: Axes) -> Tensor:
        assert values.dtype == torch.float64 and axes.query_expert[0] in expert
        new = torch.rand(values.shape, generator=generator, dtype=values.dtype)
        new = new / new.sum((-1, -2) if "kh kp" in axes.layout else -1, keepdim=True)
        used.update(rows(AttentionMap(new, axes)))
        return new

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with probe(model, kind, expert=expert, head=0, replace=replace, dtype=torch.float64) as maps:
            changed = model(images)
    assert {query.head for query in used} == {0} and {query.expert for query in used} == set(expert)
    truth = reference.forward(model, images, lambda q, row: used[q].detach().numpy() if q in used else row)
    assert tiny.difference(changed.logits, truth.logits) < 1e-10
    assert tiny.difference(changed.logits, model(images).logits) > 1e-6
    kept = dict(pair for part in maps for pair in rows(part))
    assert kept.keys() == used.keys() and all(torch.equal(kept[q], used[q]) for q in used)


def test_a_replacement_may_decline_and_is_differentiable() -> None:
    model, images = tiny.model(DNE, HEADS), tiny.images()
    before = model(images).logits
    strength = torch.ones((), requires_grad=True)
    seen: list[str] = []

    def scale(values: Tensor, axes: Axes) -> Tensor | None:
        seen.append(axes.kind)
        values.mul_(2)  # counts only if it is returned
        return None

    with probe(model, replace=scale, keep=False) as maps:
        after = model(images).logits
    assert tiny.difference(after, before) < 1e-5 and len(maps) == 0 and set(seen) == {"spatial", "task1", "task2"}
    with probe(model, "task1", expert=6, replace=lambda values, axes: values * strength), torch.enable_grad():
        model(images).logits.sum().backward()
    assert strength.grad is not None and float(strength.grad.abs()) > 0


def test_rows_that_do_not_sum_to_1_are_used_with_a_warning() -> None:
    model, images = tiny.model(DNE, HEADS), tiny.images()
    with (
        pytest.warns(UserWarning, match=r"blocks\.0\.task1 of expert 2 do not sum to 1 \(from 0\.5 to 0\.5\)") as told,
        probe(model, "task1", 0, 2, replace=lambda values, axes: values / 2) as maps,
    ):
        halved = model(images).logits
        model(images)
    assert len(told) == 1  # once, not once a pass
    assert tiny.difference(halved, model(images).logits) > 1e-4
    assert torch.allclose(maps[0].values.sum(-1), torch.tensor(0.5))
    with (
        pytest.warns(UserWarning, match="from nan"),
        probe(model, "spatial", 0, 1, replace=lambda v, axes: v * torch.nan),
    ):
        model(images)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            lambda values: values[:1],
            r"shape \(1, 1, 7, 7\) for blocks\.1\.spatial of expert 2: .*\(2, 1, 7, 7\) \(b h p kp\)",
        ),
        (lambda values: 0.0, "returned float for"),
    ],
)
def test_a_replacement_of_another_shape(result: Any, message: str) -> None:
    model = tiny.model(DNE)
    with pytest.raises(LabError, match=message), probe(model, "spatial", 1, 2, replace=lambda v, axes: result(v)):
        model(tiny.images())
    assert not hooks(model)


def test_nested_probes_read_what_the_one_around_returns() -> None:
    model = tiny.model(DNE)
    uniform = lambda values, axes: torch.full_like(values, 1 / values.shape[-1])  # noqa: E731
    with (
        probe(model, "spatial") as outside,
        probe(model, "spatial", replace=uniform),
        probe(model, "spatial") as inside,
    ):
        model(tiny.images())
    assert float(inside[0].values.std()) < 1e-6 < float(outside[0].values.std())


def test_memory_is_limited_before_it_is_passed() -> None:
    model = tiny.model(DNE)
    with probe(model, "spatial") as maps:
        model(tiny.images(4))
    size = maps.bytes
    with probe(model, "spatial", memory_limit=size) as maps:
        model(tiny.images(4))
    with probe(model, "spatial", memory_limit=size / 2, dtype=torch.float16) as maps:
        model(tiny.images(4))
    assert maps.bytes == size / 2
    last = r"more than memory_limit = 9\.41 kB.*dtype=torch\.float16.*lab\.attention_groups"
    with (
        pytest.raises(
            LabError, match=rf"9\.41 kB of attention maps with blocks\.1\.spatial of expert 3 .*4 images.*{last}"
        ),
        probe(model, "spatial", memory_limit=size - 1) as maps,
    ):
        model(tiny.images(4))
    assert maps.bytes < size and not hooks(model)
    with pytest.raises(LabError, match="more than"), probe(model, "spatial", memory_limit=2 * size - 1):
        model(tiny.images(4))
        model(tiny.images(4))
    with probe(model, "spatial", memory_limit=1, keep=False):
        model(tiny.images(4))


def test_points_that_did_not_fire_are_named() -> None:
    model = tiny.model(DNE, HEADS)
    told = r"blocks\.1\.task1 \(experts 2, 3, 4, 5, 6\)\. Call the network inside"
    with pytest.raises(LabError, match=told), probe(model, "task1", 1):
        pass
    with pytest.raises(LabError, match=told), probe(model, "task1", 1):
        literal.forward(model, tiny.images())
    with pytest.raises(Stop), probe(model):  # what went wrong is not hidden
        raise Stop
    with probe(model, "spatial", 0, 1) as maps:
        model(tiny.images())
    axes = maps[0].axes
    with (
        pytest.raises(LabError, match=r"blocks\.1\.spatial \(experts 1\)\. Run whole"),
        probe(model, "spatial", expert=1),
    ):
        model.blocks[0].spatial.weights(torch.zeros(1, 3, 7, 7), axes)  # type: ignore[union-attr, operator]


def test_expert_1_alone_is_a_plain_transformer() -> None:
    model = tiny.model(BOTH, (3,), readout="class_attention")
    with probe(model) as maps:
        model(tiny.images())
    assert [(part.kind, part.layer) for part in maps] == [("spatial", 0), ("class", 1)]


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"kind": "spacial"},
            r"attention in dne 'spacial'\. Did you mean spatial\? Allowed: class, spatial, task1, task2",
        ),
        ({"kind": "joint"}, "unknown kind of attention in dne 'joint'"),
        ({"layer": 2}, "layer 2: this network has layers 0, 1"),
        ({"layer": -1}, "layer -1"),
        ({"expert": 0}, "expert 0: this network has experts 1-6"),
        ({"expert": [1, 9]}, "expert 9: this network has experts 1-6"),
        ({"head": 3}, "head 3: this network has heads 0-2"),
        ({"expert": 2, "head": 2}, r"no attention of expert 2 with head 2\. expert 2 has: spatial \(layers 0, expert"),
        (
            {"kind": "spatial", "layer": 1},
            r"no attention of kind spatial with layer 1\. kind spatial has: spatial \(layers 0,",
        ),
        ({"kind": "task1", "expert": [1, 2]}, "no attention of expert 1 with kind task1"),
        ({"kind": []}, "selects nothing"),
        ({"kind": 3}, "must be a name"),
        ({"layer": "0"}, "must be a whole number"),
        ({"layer": True}, "must be a whole number"),
        ({"expert": 1.0}, "must be a whole number"),
        ({"dtype": torch.int64}, "dtype = torch.int64: must be a floating point type"),
        ({"memory_limit": 0}, "memory_limit = 0: must be a positive"),
    ],
    ids=str,
)
def test_a_selection_that_matches_nothing(choice: dict[str, Any], message: str) -> None:
    model = tiny.model(DNE, HEADS, readout="class_attention")
    with pytest.raises(LabError, match=message), probe(model, **choice):
        model(tiny.images())
    assert not hooks(model)


def test_numpy_integers_and_ranges_select() -> None:
    model = tiny.model(DNE, HEADS)
    with probe(model, {"spatial"}, range(2), np.array([2, 3])) as maps:
        model(tiny.images())
    assert {(part.layer, part.expert) for part in maps} == {(i, t) for i in (0, 1) for t in (2, 3)}


class Run:
    """Holds a network as a run does."""

    @property
    def model(self) -> nn.Module:
        """The network."""
        return tiny.model(DNE)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Linear(2, 2), "Linear has no attention points"),
        (nn.MultiheadAttention(4, 2), "MultiheadAttention has no attention points"),
        (literal, r"literal path \(dne_lab\.models\.literal\): it has no hook points"),
        (literal.forward, "literal path"),
        (Run(), r"not Run\. Did you mean run\.model\?"),
        (SimpleNamespace(), "not SimpleNamespace"),
        (None, "not NoneType"),
        (nn.ModuleList([tiny.model(IA), tiny.model(IA)]), "several networks, probe one of them: 0, 1"),
        (tiny.model(DNE, ()), "no expert yet"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_cannot_be_probed(model: Any, message: str) -> None:
    with pytest.raises(LabError, match=message), probe(model):
        raise AssertionError("the body is not entered")


def test_a_network_inside_a_module_is_found() -> None:
    model = tiny.model(IA)
    with probe(nn.Sequential(model), "spatial", 0) as maps:
        model(tiny.images())
    assert [part.expert for part in maps] == [1, 2, 3]


def test_a_compiled_network_is_refused_and_the_fix_works() -> None:
    model, images = tiny.model(DNE), tiny.images()
    compiled = torch.compile(model, backend="eager")
    with (
        pytest.raises(LabError, match=r"this network is compiled, .*never called.*probe\(model\._orig_mod\)"),
        probe(compiled),
    ):
        raise AssertionError("the body is not entered")
    with probe(compiled._orig_mod) as maps:
        compiled._orig_mod(images)
    assert len(maps)
    with pytest.raises(LabError, match="is compiled"), probe(nn.Sequential(compiled)):
        raise AssertionError("the body is not entered")
    model.compile(backend="eager")
    with pytest.raises(LabError, match=r"Probe a copy, which is not compiled: copy\.deepcopy\(model\)"), probe(model):
        raise AssertionError("the body is not entered")
    fresh = copy.deepcopy(model)
    with probe(fresh) as maps:
        fresh(images)
    assert len(maps)
    part = tiny.model(DNE)
    part.blocks[1].compile(backend="eager")
    with pytest.raises(LabError, match=r"ExpandableViT\.blocks\.1 is compiled"), probe(part):
        raise AssertionError("the body is not entered")
    part = tiny.model(DNE)
    part.forward = torch.compile(part.forward, backend="eager")  # type: ignore[method-assign]
    with pytest.raises(LabError, match="this network is compiled"), probe(part):
        raise AssertionError("the body is not entered")
    assert not hooks(model)


def test_a_copy_made_inside_has_no_hooks_and_the_network_keeps_its_own() -> None:
    """A teacher, a moving average: used while the probe listens and after it."""
    model, images = tiny.model(DNE, HEADS), tiny.images(2)
    handle = model.register_forward_hook(lambda *_: None)
    with torch.no_grad(), probe(model, kind="spatial", layer=0, expert=1, replace=lambda w, axes: w.flip(-1)) as maps:
        with probe(model, kind="task1"):
            model(images)
            twin, parts = copy.deepcopy(model), copy.deepcopy({"inner": model.blocks[0]})
        holder = copy.deepcopy(nn.Sequential(model))
        changed = model(images).logits
        plain = twin(images).logits
    assert len(hooks(twin)) == len(hooks(holder)) == 1 and hooks(parts["inner"]) == []  # the user's own
    assert len(maps.get().values) == 4 and not torch.equal(plain, changed)
    with torch.no_grad():
        assert torch.equal(model(images).logits, plain) and torch.equal(twin(images).logits, plain)
    assert len(maps.get().values) == 4 and not hasattr(model, "__deepcopy__")
    assert twin.blocks[0] is not model.blocks[0] and twin.state_dict().keys() == model.state_dict().keys()
    handle.remove()
    assert hooks(model) == []


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
def test_maps_under_autocast_are_those_without_it_but_for_rounding(choice: dict[str, Any]) -> None:
    model, images = tiny.model(DNE, HEADS, **choice), tiny.images(2)
    with torch.no_grad(), probe(model) as exact:
        model(images)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), probe(model) as rounded:
        model(images)
    assert len(exact) == len(rounded)
    for one, other in zip(exact, rounded, strict=True):
        assert (one.values - other.values.float()).abs().max() < 0.05
