"""The null model: the same queries before the other experts' view of another picture."""

import copy
from typing import Any

import literal_groups
import numpy as np
import pytest
import reference
import tiny
import torch
from reference import Query
from torch import Tensor

from dne_lab.analysis.attention_groups import attention_groups, shuffled_reader
from dne_lab.analysis.hosts import find_host
from dne_lab.analysis.probe import probe
from dne_lab.core.errors import LabError
from dne_lab.models.attention import Axes
from dne_lab.models.expandable import ExpandableViT
from dne_lab.models.variants import DNE, IA, PROGRESSIVE, STA, Variant

HEADS = (3, 1, 2, 1)
BOTH = Variant("both", "all", "task")
CHOICES = [{"spatial": s, "readout": r} for s in ("mhsa", "gpsa") for r in ("cls_token", "class_attention")]
Maps = dict[tuple[str, int, int], tuple[Tensor, Axes]]


def shuffled(model: ExpandableViT, images: Tensor, **choice: Any) -> Maps:
    """Maps of the null model, expert by expert."""
    found: Maps = {}

    def read(part: Tensor, axes: Axes) -> None:
        key = axes.kind, axes.layer, axes.query_expert[0]
        assert key not in found  # once a point and expert, not the true maps too
        found[key] = part.clone(), axes

    with (
        torch.no_grad(),
        shuffled_reader(find_host(model), read) as passed,
        probe(model, keep=False, read=passed, **choice),
    ):
        model(images)
    return found


def literal(model: ExpandableViT, images: Tensor) -> dict[Query, Any]:
    """By the equations: image i with the tokens that experts < t made of the image half a batch before it."""
    ran = [reference.image_layers(model, image, i, reference.as_computed)[0] for i, image in enumerate(images.numpy())]
    found: dict[Query, Any] = {}
    for image, layers in enumerate(ran):
        other = ran[(image - len(ran) // 2) % len(ran)]
        for mine, theirs in zip(layers, other, strict=True):
            mixed = copy.copy(mine)
            mixed.on_row = lambda query, row: found.setdefault(query, row.copy())
            asking = list(range(1 if mine.only_class else len(mine.inputs[0])))
            for t in range(2, len(HEADS) + 1):
                w = model.experts[t - 1].blocks[mine.number]  # type: ignore[union-attr, index]
                before = t - 1
                if model.variant.joint and not mine.only_class:
                    mixed.inputs = [*theirs.inputs[:before], mine.inputs[before]]
                    mixed.joint_attention(t, w, asking)
                if model.variant.task1:
                    for p in asking:
                        for kind, mix in (("task1", w.mix1), ("task2", w.mix2)):  # type: ignore[union-attr]
                            of = (getattr(who, "normed" if kind == "task1" else "hidden") for who in (theirs, mine))
                            elsewhere, here = of
                            mixed.task_attention(kind, t, mix, [*elsewhere[:before], here[before]], p)
    return found


@pytest.mark.parametrize("choice", CHOICES, ids=tiny.names)
@pytest.mark.parametrize("variant", [STA, DNE, BOTH], ids=tiny.names)
def test_maps_are_those_of_the_equations_with_tokens_of_another_image(variant: Variant, choice: dict[str, Any]) -> None:
    model, images = tiny.model(variant, HEADS, **choice).double(), tiny.images(5)
    expected = literal(model, images)
    seen = set()
    for part, axes in shuffled(model, images).values():
        dim = axes.layout.split().index("h")
        for place, head in enumerate(axes.query_head):
            mine = part.select(dim, place)
            for image in range(5):
                for position in range(mine.shape[1]):
                    query = Query(axes.kind, axes.layer, axes.query_expert[0], head, image, position)
                    assert np.abs(mine[image, position].numpy() - expected[query]).max() < 1e-12, query
                    seen.add(query)
    assert seen == expected.keys()


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [STA, DNE, BOTH], ids=tiny.names)
def test_the_network_goes_on_with_its_true_attention(variant: Variant, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, (3, 1, 2, 1, 1, 2), **style), tiny.images(4)
    before = tiny.hooks(model)
    with torch.no_grad():
        plain = model(images)
        with (
            shuffled_reader(find_host(model), lambda part, axes: None) as passed,
            probe(model, keep=False, read=passed),
        ):
            watched = model(images)
        after = model(images)
    assert tiny.difference(watched.logits, plain.logits) < 1e-5
    assert tiny.difference(watched.readouts, plain.readouts) < 1e-5
    assert torch.equal(after.logits, plain.logits)
    assert tiny.hooks(model) == before == []


@pytest.mark.parametrize("variant", [STA, DNE], ids=tiny.names)
def test_own_heads_are_those_of_the_image_itself(variant: Variant) -> None:
    """Their entries keep their ratios; those of other experts change; a later head of the expert is its own too."""
    model, images = tiny.model(variant, HEADS).double(), tiny.images(4)
    null = shuffled(model, images)
    with probe(model, dtype=torch.float64) as maps:
        model(images)
    for (kind, layer, expert), (part, axes) in null.items():
        true = maps.get(kind, layer, expert).values
        own = torch.tensor([owner == expert for owner in axes.key_expert])
        dim = axes.layout.split().index("kh")
        ratios = []
        for values in (part, true):
            mine = values.index_select(dim, own.nonzero()[:, 0])
            ratios.append(mine / mine.sum((-1, -2) if kind == "joint" else -1, keepdim=True))
        torch.testing.assert_close(ratios[0], ratios[1], atol=1e-12, rtol=0)
        assert (part - true).abs().max() > 1e-3


@pytest.mark.parametrize("variant", [STA, DNE, BOTH], ids=tiny.names)
def test_with_one_picture_for_all_there_is_nothing_to_shuffle(variant: Variant) -> None:
    model, images = tiny.model(variant, HEADS).double(), tiny.images(1).expand(6, -1, -1, -1)
    kinds = [kind for kind in ("joint", "task1", "task2") if variant.joint or kind != "joint"]
    kinds = [kind for kind in kinds if variant.task1 or kind == "joint"]
    true = attention_groups(model, images, kinds, replicates=0, progress=False)
    null = attention_groups(model, images, shuffled=True, replicates=0, progress=False)
    assert true._found.sums.keys() == null._found.sums.keys()
    for head, vector in true._found.sums.items():
        assert literal_groups.close(null._found.sums[head], vector)


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [STA, DNE], ids=tiny.names)
def test_groups_of_the_null_model(variant: Variant, style: dict[str, Any]) -> None:
    model, images = tiny.model(variant, HEADS, **style).double(), tiny.images(6)
    expected: dict[Any, dict[str, Any]] = {}
    for part, axes in shuffled(model, images).values():
        rows = literal_groups.rows(part, axes)
        expected |= literal_groups.totals(rows, literal_groups.group, 4, model.grid)
    groups = attention_groups(model, images, shuffled=True, progress=False)
    assert groups.shuffled and groups.images == 6
    literal_groups.agree(groups._found.sums, expected)
    if style is tiny.PAPER:
        some = attention_groups(model, images, layer=1, expert=3, shuffled=True, replicates=0, progress=False)
        assert {head[1:3] for head in some._found.sums} == {(1, 3)}
        assert all(literal_groups.close(some._found.sums[head], groups._found.sums[head]) for head in some._found.sums)


def test_pairs_do_not_depend_on_the_batch_size_where_it_divides_the_images() -> None:
    """Image i sees image i + n / 2, however the images are cut; and no number of images leaves one alone."""
    model, images = tiny.model(STA, HEADS).double(), tiny.images(24)
    whole = attention_groups(model, images, shuffled=True, progress=False)
    for size in (2, 4, 6, 12):
        cut = attention_groups(model, images, batch_size=size, shuffled=True, progress=False)
        for head, vector in whole._found.sums.items():
            assert literal_groups.close(cut._found.sums[head], vector), size
        for expert, drawn in whole._found.drawn.items():
            assert literal_groups.close(cut._found.drawn[expert], drawn)
    for count in range(2, 10):
        for size in (1, 2, 3, 4, 8):
            found = attention_groups(
                model, images[:count], batch_size=size, shuffled=True, replicates=0, progress=False
            )
            assert found.images == count


def test_bootstrap_weights_are_those_of_the_true_model() -> None:
    """So differences between the two can be taken replicate by replicate."""
    model, images = tiny.model(STA, HEADS).double(), tiny.images(6)
    true, null = (attention_groups(model, images, "joint", shuffled=s, progress=False) for s in (False, True))
    rows = [found._found.drawn["joint", 1, 3] for found in (true, null)]
    place = true._found.sums["joint", 1, 3, 0].shape[0] - 10  # the column "rows": the images drawn, times rows
    assert torch.equal(rows[0][:, place], rows[1][:, place]) and rows[0][:, place].std() > 0


def test_content_and_position_of_the_null_model() -> None:
    """Positions are of the patch pair alone: another picture changes nothing of them."""
    model, images = tiny.model(STA, HEADS, **tiny.AUTHORS).double(), tiny.images(4)
    sums = {
        (part, null): attention_groups(model, images, "joint", part=part, shuffled=null, progress=False)._found.sums
        for part in ("content", "position")
        for null in (False, True)
    }
    for head, vector in sums["position", False].items():
        assert literal_groups.close(sums["position", True][head], vector)
        assert not literal_groups.close(sums["content", True][head], sums["content", False][head], 1e-6)


@pytest.mark.parametrize(
    ("variant", "heads"), [(IA, HEADS), (PROGRESSIVE, HEADS), (STA, (3,)), (DNE, (3,))], ids=tiny.names
)
def test_experts_that_do_not_read_each_other(variant: Variant, heads: tuple[int, ...]) -> None:
    model = tiny.model(variant, heads)
    message = rf"shuffled: the experts of this network \({variant.name}, {len(heads)} experts\) do not read each other"
    with pytest.raises(LabError, match=message):
        attention_groups(model, tiny.images(), shuffled=True, progress=False)
    assert not tiny.hooks(model)


def test_what_else_is_refused() -> None:
    model = tiny.model(STA, HEADS, **tiny.AUTHORS).train()
    for images in (tiny.images(1), [tiny.images(4), tiny.images(1)]):
        with pytest.raises(LabError, match="shuffled: a batch of one image has no other image"):
            attention_groups(model, images, shuffled=True, progress=False)  # type: ignore[arg-type]
    with pytest.raises(
        LabError, match=r"spatial \(layers 0, .*shuffled looks where experts read each other's patches \(j"
    ):
        attention_groups(model, tiny.images(), "spatial", shuffled=True, progress=False)
    with pytest.raises(LabError, match=r"class \(layers 1, .*shuffled looks where experts read each other's patches"):
        attention_groups(model, tiny.images(), layer=1, shuffled=True, progress=False)
    with pytest.raises(ZeroDivisionError), shuffled_reader(find_host(model), lambda part, axes: None):
        raise ZeroDivisionError
    assert not tiny.hooks(model) and model.training
