"""A probe that hands over maps as they come, and the two distributions that a gate mixes."""

from typing import Any

import pytest
import reference
import tiny
import torch
from torch import Tensor

from dne_lab.analysis.probe import probe
from dne_lab.core.errors import LabError
from dne_lab.models.attention import Axes
from dne_lab.models.variants import DNE, IA, STA, Variant

HEADS = (3, 1, 2, 1, 1, 2)
READOUTS = ["cls_token", "class_attention"]


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
def test_what_is_read_is_what_is_kept(variant: Variant, style: dict[str, Any]) -> None:
    model, told = tiny.model(variant, HEADS, **style), []

    def read(part: Tensor, axes: Axes) -> None:
        assert not part.requires_grad and set(axes.query_expert) == {axes.query_expert[0]}
        told.append((part.clone(), axes))

    with probe(model, read=read) as maps:
        model(tiny.images(2))
        model(tiny.images(3, seed=1))
    assert len(told) == 2 * len(maps)
    for part in maps:
        mine = [(v, a) for v, a in told if (a.kind, a.layer, a.query_expert[0]) == (part.kind, part.layer, part.expert)]
        assert torch.equal(torch.cat([values for values, _ in mine]), part.values)
        assert all(axes.layout == part.axes.layout and axes.key_head == part.axes.key_head for _, axes in mine)


def test_reading_alone_keeps_nothing_and_has_no_memory_limit() -> None:
    model, told = tiny.model(STA, HEADS), []
    with probe(model, "joint", keep=False, memory_limit=1, read=lambda part, axes: told.append(axes.layer)) as maps:
        model(tiny.images())
    assert len(maps) == 0 and sorted(told) == [0] * 5 + [1] * 5


def test_reading_comes_after_replacing() -> None:
    model, told = tiny.model(IA, HEADS), []
    uniform = lambda part, axes: torch.full_like(part, 1 / part.shape[-1])  # noqa: E731
    with probe(model, "spatial", 0, 2, keep=False, replace=uniform, read=lambda part, axes: told.append(part.clone())):
        model(tiny.images())
    assert len(told) == 1 and torch.equal(told[0], torch.full_like(told[0], 1 / 7))


def test_reading_changes_neither_logits_nor_gradients() -> None:
    model, images = tiny.model(DNE, HEADS), tiny.images()
    model.experts[-1].requires_grad_(True)
    parameters = [p for p in model.experts[-1].parameters() if p.requires_grad]

    def gradients() -> list[Tensor]:
        found = torch.autograd.grad(model(images).logits.square().sum(), parameters, allow_unused=True)
        return [part for part in found if part is not None]

    plain = gradients()
    with probe(model, keep=False, read=lambda part, axes: None):
        heard = gradients()
    assert tiny.difference(heard, plain) < 1e-4


def test_an_error_in_a_reader_is_told_and_leaves_no_hook() -> None:
    model = tiny.model(STA, HEADS)

    def read(part: Tensor, axes: Axes) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), probe(model, read=read):
        model(tiny.images())
    assert not tiny.hooks(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("variant", [IA, STA, DNE], ids=tiny.names)
def test_the_gate_mixes_the_parts_back_to_the_attention(variant: Variant, readout: str, dtype: torch.dtype) -> None:
    """(1 - g) content + g position, for old experts in a bank and the newest one, and class tokens by content alone."""
    model, images = tiny.model(variant, HEADS, spatial="gpsa", readout=readout).to(dtype), tiny.images()
    found = {}
    for part in ("attention", "content", "position"):
        with probe(model, ["spatial", "joint"] if variant is STA else "spatial", 0, dtype=dtype, part=part) as maps:
            logits = model(images).logits
        found[part] = maps
        assert tiny.difference(logits, model(images).logits) < 1e-5
    bound = 1e-6 if dtype == torch.float32 else 1e-12
    for whole, content, position in zip(*found.values(), strict=True):
        gate = torch.sigmoid(tiny.expert(model, whole.expert).blocks[0].attention.gate.detach())
        gate = gate[:, None].repeat(1, whole.values.shape[2])
        gate[:, : whole.axes.classes] = 0
        gate = gate.view(*gate.shape, *[1] * (whole.values.dim() - 3))
        mixed = (1 - gate) * content.values + gate * position.values
        assert (mixed - whole.values).abs().max() < bound
        for part in (content, position):
            sums = part.values.sum((-1, -2) if whole.kind == "joint" else -1)
            assert ((sums[:, :, whole.axes.classes :] - 1).abs() < bound).all()
            if whole.axes.classes:  # a class token looks at content alone
                assert ((sums[:, :, 0] - float(part is content)).abs() < bound).all()
        assert (content.values - position.values).abs().max() > 0.01
        assert whole.axes.key_expert == content.axes.key_expert == position.axes.key_expert


def test_position_is_that_of_the_equations_and_the_same_for_all_images() -> None:
    model = tiny.model(STA, HEADS, **tiny.AUTHORS).double()
    with probe(model, ("spatial", "joint"), part="position", dtype=torch.float64) as maps:
        model(tiny.images(3))
    for part in maps:
        weights = reference.array(tiny.expert(model, part.expert).blocks[part.layer].attention.position)
        heads = len(part.axes.key_expert) if part.kind == "joint" else 1
        for place, head in enumerate(part.axes.query_head):
            for patch in range(6):
                row = torch.from_numpy(reference.position_row(weights[head], (2, 3), patch)) / heads
                for image in range(3):
                    mine = part.values[image, place, patch]
                    torch.testing.assert_close(mine, row.expand_as(mine), atol=1e-12, rtol=0)


def test_without_a_gate_content_is_the_attention() -> None:
    """Under mhsa, in task attention, for class queries, and after the last block of a cls_token read-out."""
    for model in (tiny.model(DNE, HEADS), tiny.model(DNE, HEADS, **tiny.AUTHORS), tiny.model(STA, spatial="gpsa")):
        images = tiny.images()
        gated = model.network.spatial == "gpsa"
        with probe(model, part="content") as content:
            model(images)
        with probe(model) as whole:
            model(images)
        for one, other in zip(content, whole, strict=True):
            mixed = gated and one.kind in ("spatial", "joint") and one.layer == 0
            assert torch.equal(one.values, other.values) != mixed


@pytest.mark.parametrize(
    ("style", "choice", "message"),
    [
        (
            tiny.PAPER,
            {"kind": "spatial"},
            r"blocks\.0\.spatial has no positional part\. Select layers of kind spatial or",
        ),
        (tiny.AUTHORS, {"kind": "task1"}, r"blocks\.0\.task1 has no positional part"),
        (tiny.AUTHORS, {"kind": "class"}, r"blocks\.1\.class_attention has no positional part"),
        (
            tiny.PAPER | {"spatial": "gpsa"},
            {"kind": "spatial"},
            r"blocks\.1\.spatial has no .*last block of a cls_token",
        ),
    ],
    ids=str,
)
def test_where_there_is_no_position(style: dict[str, Any], choice: dict[str, Any], message: str) -> None:
    model = tiny.model(DNE, HEADS, **style)
    with pytest.raises(LabError, match=message), probe(model, part="position", **choice) as maps:
        model(tiny.images())
    assert not tiny.hooks(model) and not len(maps)


def test_a_part_is_read_only_and_has_a_name() -> None:
    model = tiny.model(IA, HEADS, **tiny.AUTHORS)
    with (
        pytest.raises(LabError, match=r"unknown part of the attention 'contents'\. Did you mean content\?"),
        probe(model, part="contents"),
    ):
        raise AssertionError("the body is not entered")
    for part in ("content", "position"):
        with (
            pytest.raises(LabError, match=f"part = '{part}' can only be read: replace works on part = 'attention'"),
            probe(model, part=part, replace=lambda values, axes: None),
        ):
            raise AssertionError("the body is not entered")
    assert not tiny.hooks(model)
