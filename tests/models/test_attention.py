"""The hook point: what a listener reads has the axes it says, and what it returns is used."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
import reference
import tiny
import torch
from reference import Query
from torch import Tensor, nn

from dne_lab.models.attention import AttentionWeights, Axes
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, STA, Variant

HEADS = (3, 1, 2, 1, 1, 2, 1)
BOTH = Variant("both", "all", "task")
CHOICES = [{"spatial": s, "readout": r} for s in ("mhsa", "gpsa") for r in ("cls_token", "class_attention")]


def listen(model: ExpandableViT, hook: Any) -> None:
    """Registers a forward hook on every `AttentionWeights`."""
    for module in model.modules():
        if isinstance(module, AttentionWeights):
            module.register_forward_hook(hook)


def rows(axes: Axes, values: Tensor) -> dict[Query, Tensor]:
    """A map's rows by the query they belong to, without the keys that the query may not see."""
    found = {}
    for h, (expert, head) in enumerate(zip(axes.query_expert, axes.query_head, strict=True)):
        mine = values.select({"b h p kp": 1, "b h p kh kp": 1, "b p h kh": 2, "b h kp": 1, "b h k": 1}[axes.layout], h)
        if axes.layout in ("b h kp", "b h k"):
            mine = mine.unsqueeze(1)  # a class token is the one position
        if axes.allowed is not None:
            allowed = axes.allowed[h]
            if axes.layout == "b h k":
                patches = axes.grid[0] * axes.grid[1]
                allowed = torch.cat([torch.ones(1, dtype=torch.bool), allowed.repeat_interleave(patches)])
            key_axis = 2
            assert mine.index_select(key_axis, (~allowed).nonzero()[:, 0]).abs().sum() == 0
            mine = mine.index_select(key_axis, allowed.nonzero()[:, 0])
        for image in range(mine.shape[0]):
            for position in range(mine.shape[1]):
                found[Query(axes.kind, axes.layer, expert, head, image, position)] = mine[image, position]
    return found


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
@pytest.mark.parametrize("variant", [IA, STA, DNE, BOTH], ids=tiny.names)
def test_maps_are_the_ones_of_the_equations(variant: Variant, choice: dict[str, Any]) -> None:
    model, images = tiny.model(variant, HEADS, **choice).double(), tiny.images(1)
    heard: dict[Query, Tensor] = {}
    calls: dict[tuple[str, int], list[Axes]] = defaultdict(list)

    def hear(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        axes = inputs[1]
        calls[axes.kind, axes.layer].append(axes)
        one_row = {"b h p kh kp": (-2, -1)}.get(axes.layout, (-1,))
        torch.testing.assert_close(output.sum(one_row), torch.ones_like(output.sum(one_row)), atol=1e-12, rtol=0)
        fresh = rows(axes, output)
        assert not fresh.keys() & heard.keys()  # no row is told twice
        heard.update(fresh)

    listen(model, hear)
    model(images)
    expected: dict[Query, Any] = {}

    def record(query: Query, row: Any) -> Any:
        expected[query] = row.copy()
        return row

    reference.forward(model, images, record)
    assert heard.keys() == expected.keys()
    assert max(np.abs(heard[q].detach().numpy() - row).max() for q, row in expected.items()) < 1e-12

    every_head = [(t, i) for t, count in enumerate(HEADS, start=1) for i in range(count)]
    for (kind, _), told in calls.items():
        asking = [pair for axes in told for pair in zip(axes.query_expert, axes.query_head, strict=True)]
        later = kind in ("joint", "task1", "task2")
        only_first = kind == "spatial" and variant.joint  # expert 1 reads its own patches in every variant
        assert asking == (every_head[HEADS[0] :] if later else every_head[: HEADS[0]] if only_first else every_head)
        for axes in told:
            keys = list(zip(axes.key_expert, axes.key_head, strict=True))
            last = axes.query_expert[-1]
            reads_all = later or axes.layout == "b h k"
            queries = list(zip(axes.query_expert, axes.query_head, strict=True))
            assert keys == ([p for p in every_head if p[0] <= last] if reads_all else queries)
            if axes.allowed is not None:
                queries_, keys_ = torch.tensor(axes.query_expert), torch.tensor(axes.key_expert)
                assert torch.equal(axes.allowed, keys_[None] <= queries_[:, None])
            assert axes.grid == (2, 3)
            assert axes.classes == (1 if choice["readout"] == "cls_token" or axes.layer == 1 else 0)
    wanted = {"spatial"}
    wanted |= {"joint"} if variant.joint else set()
    wanted |= {"task1", "task2"} if variant.task1 else set()
    wanted |= {"class"} if choice["readout"] == "class_attention" else set()
    assert {kind for kind, _ in calls} == wanted


@pytest.mark.parametrize("kind", ["spatial", "joint", "task1", "task2", "class", "every"])
@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
def test_a_replaced_map_is_the_one_that_is_used(choice: dict[str, Any], kind: str) -> None:
    """Rows that do not sum to 1 too: zeroing keys without dividing by what is left is one kind of ablation."""
    if kind == "class" and choice["readout"] == "cls_token":
        pytest.skip("no class attention in this read-out")
    model, images = tiny.model(BOTH, (2, 1, 2, 1, 1, 2), **choice).double(), tiny.images(1)
    untouched = model(images).logits
    generator = torch.Generator().manual_seed(1)
    replaced: dict[Query, Tensor] = {}

    def replace(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        axes = inputs[1]
        if kind not in (axes.kind, "every"):
            return None
        fresh = torch.rand(output.shape, generator=generator, dtype=output.dtype) * (output != 0)
        if axes.layer == 1:
            fresh = fresh / fresh.flatten(-2).sum(-1).max()  # rows summing to less than 1
        replaced.update(rows(axes, fresh))
        return fresh

    listen(model, replace)
    changed = model(images).logits
    truth = reference.forward(model, images, lambda query, row: replaced[query].numpy() if query in replaced else row)
    assert {query.kind for query in replaced} == (
        {"spatial", "joint", "task1", "task2"} | ({"class"} if choice["readout"] == "class_attention" else set())
        if kind == "every"
        else {kind}
    )
    assert tiny.difference(changed, truth.logits) < 1e-10
    assert tiny.difference(changed, untouched) > 1e-6


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
def test_a_listener_on_one_point_is_not_called_elsewhere(style: dict[str, Any]) -> None:
    model = tiny.model(BOTH, (2, 1, 1), **style)
    told = []
    point = model.blocks[0].joint.weights  # type: ignore[union-attr]
    assert not point.listens_to([1])  # type: ignore[union-attr]
    handle = point.register_forward_hook(lambda *call: told.append(call[1][1]))  # type: ignore[union-attr]
    assert point.listens_to([1])  # type: ignore[union-attr]
    model(tiny.images())
    assert {(axes.kind, axes.layer) for axes in told} == {("joint", 0)}
    handle.remove()
    assert not point.listens_to([1])  # type: ignore[union-attr]


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
def test_spatial_task_attention_without_foreign_keys_is_independent_attention(choice: dict[str, Any]) -> None:
    """k = 1: same parameters; only the keys of other heads make the difference."""
    alone = tiny.model(IA, (1, 1, 1, 1), **choice).double()
    joint = tiny.model(STA, (1, 1, 1, 1), seed=1, **choice).double()
    joint.load_state_dict(alone.state_dict())
    images = tiny.images(3)
    assert tiny.difference(joint(images).logits, alone(images).logits) > 1e-6

    def mask(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
        scores, axes, position, gate = (*inputs, None, None)[:4]
        own = torch.tensor(axes.key_expert)[None] == torch.tensor(axes.query_expert)[:, None]
        if axes.layout == "b h k":
            patches = axes.grid[0] * axes.grid[1]
            own = torch.cat([torch.ones(len(own), 1, dtype=torch.bool), own.repeat_interleave(patches, 1)], 1)
            return scores.masked_fill(~own[None], float("-inf")).softmax(-1)
        if axes.kind != "joint":
            return None
        own = own[None, :, None, :, None]
        content = scores.masked_fill(~own, float("-inf")).flatten(-2).softmax(-1).view_as(scores)
        if position is None:
            return content
        share = gate[None, :, :, None, None]
        return (1 - share) * content + share * position[None, :, :, None] * own

    listen(joint, mask)
    assert tiny.difference(joint(images).logits, alone(images).logits) < 1e-10
