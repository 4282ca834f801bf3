"""Who reads whom: the rows say what the attention of a running network sees, and what its gradients show."""

from typing import Any

import pytest
import tiny
import torch

from dne_lab.analysis.connections import connections, parts
from dne_lab.core.errors import LabError
from dne_lab.models.attention import Axes
from dne_lab.models.expandable import ExpandableViT

HEADS = (3, 1, 2)


def running(model: ExpandableViT) -> set[tuple[int, str, int, int]]:
    """(layer, kind, reader, read) of every attention that fires, from the axes that it fires with."""
    seen: set[tuple[int, str, int, int]] = set()

    def listen(module: Any, given: tuple[Any, ...], out: Any) -> None:
        axes: Axes = given[1]
        for h, reader in enumerate(axes.query_expert):
            if axes.layout in ("b h p kp", "b h kp"):
                seen.add((axes.layer, axes.kind, reader, reader))
                continue
            for j, read in enumerate(axes.key_expert):
                if axes.allowed is None or bool(axes.allowed[h, j]):
                    seen.add((axes.layer, axes.kind, reader, read))

    for block in model.blocks:
        for part in block.modules():
            if type(part).__name__ == "AttentionWeights":
                part.register_forward_hook(listen)
    with torch.no_grad():
        model(tiny.images())
    return seen


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.VARIANTS, ids=tiny.names)
def test_attention_is_what_the_running_network_sees(variant: tiny.Variant, style: dict) -> None:
    model = tiny.model(variant, HEADS, **style)
    rows = connections(model)
    attention = {(r["layer"], r["kind"], r["reader"], r["read"]) for r in rows
                 if not r["kind"].startswith(("linear", "lateral"))}  # fmt: skip
    assert attention == running(model)
    assert [r["state"] for r in rows if r["reader"] < 3] == ["frozen"] * sum(r["reader"] < 3 for r in rows)
    assert {r["state"] for r in rows if r["reader"] == 3} == {"trains"}


@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
def test_every_block_mixes_once_each_way(variant: tiny.Variant) -> None:
    rows = connections(tiny.model(variant, HEADS, **tiny.AUTHORS))
    for layer in range(2):
        for reader in (1, 2, 3):
            mine = [r for r in rows if (r["layer"], r["reader"]) == (layer, reader)]
            kinds = {r["kind"] for r in mine}
            first = "task1" if variant.task1 and reader > 1 else "linear1"
            assert {first, first.replace("1", "2")} <= kinds
            assert ("lateral" in kinds) == (variant.lateral and reader > 1)
            for r in mine:
                everyone = r["kind"] in ("task1", "task2", "lateral", "joint")
                alone = not everyone and not (r["kind"] == "class" and variant.joint)
                assert r["read"] == reader or not alone
                assert r["heads read"] == HEADS[r["read"] - 1]


def test_keys_of_one_query() -> None:
    rows = connections(tiny.model(tiny.STA, HEADS, **tiny.PAPER))
    keys = {(r["kind"], r["reader"], r["read"]): r["keys"] for r in rows if r["layer"] == 0}
    assert keys["spatial", 1, 1] == 6  # 2 x 3 patches of its own head
    assert keys["joint", 3, 1] == 18 and keys["joint", 3, 3] == 12
    assert keys["linear1", 1, 1] == 3


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
def test_parts_hold_every_parameter_of_the_blocks(variant: tiny.Variant, style: dict) -> None:
    model = tiny.model(variant, HEADS, **style)
    rows = parts(model)
    for number in (1, 2, 3):
        counted = sum(r["parameters"] for r in rows if r["expert"] == number)
        assert counted == sum(p.numel() for p in tiny.expert(model, number).blocks.parameters())
    assert {r["reads"] for r in rows if r["expert"] == 3} == ({"3"} if variant.name == "ia" else {"1-3", "3"})


def test_a_network_without_experts() -> None:
    with pytest.raises(LabError, match="no expert yet"):
        connections(ExpandableViT(tiny.network(), tiny.SHAPE))
