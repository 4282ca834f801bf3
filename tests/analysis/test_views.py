"""The numbers of the explorers: against loops over maps that the probe reads, on grids that are not square."""

import itertools

import numpy as np
import pytest
import tiny
import torch
from tiny import AUTHORS, PAPER

from dne_lab.analysis import views
from dne_lab.analysis.labelling import GROUPS
from dne_lab.analysis.probe import probe
from dne_lab.core.errors import LabError
from dne_lab.models.variants import DNE, IA, STA, Variant

BOTH = Variant("both", "all", "task")


@pytest.mark.parametrize("style", [PAPER, AUTHORS], ids=tiny.names)
@pytest.mark.parametrize("kind", ["task1", "task2"])
def test_task_attention_equals_what_the_probe_reads(style: dict, kind: str) -> None:
    model, image = tiny.model(DNE, (3, 1, 2), **style), tiny.images(1)[0]
    view = views.task_view(views.read(model, image, kind, 0, 3), head=1)
    with torch.no_grad(), probe(model, kind, layer=0, expert=3) as maps:
        model(image[None])
    raw = maps.get().numpy()
    skip = maps.get().axes.classes
    patches = len(view.weights)
    assert patches == 6 and view.grid == (2, 3) and view.weights.shape == (6, 6)
    for p, j in itertools.product(range(patches), range(6)):
        assert view.weights[p, j] == raw[0, p + skip, 1, j]
    assert np.allclose(view.weights.sum(1), 1, atol=1e-6)
    assert view.uniform == 1 / 6 and view.key_expert == (1, 1, 1, 2, 3, 3) and view.experts == [1, 2, 3]
    owner = np.array(view.key_expert)
    for p in range(patches):
        totals = [view.weights[p, owner == e].sum() for e in (1, 2, 3)]
        assert np.allclose(view.by_expert[p], totals)
        assert view.most_read[p] == 1 + int(np.argmax([t / n for t, n in zip(totals, (3, 1, 2), strict=True)]))
        second, first = sorted(t / n for t, n in zip(totals, (3, 1, 2), strict=True))[1:]
        assert view.margin[p] == pytest.approx(first / second - 1)
    frame = view.frame()
    assert len(frame) == 36 and set(frame["row"]) == {0, 1} and set(frame["column"]) == {0, 1, 2}
    row = frame[(frame["row"] == 1) & (frame["column"] == 2) & (frame["key expert"] == 3) & (frame["key head"] == 1)]
    assert row["attention"].item() == view.weights[5, 5]
    assert view.summary(4)["at the patch"].tolist() == view.weights[4].tolist()
    assert view.names == [
        "expert 1 head 0",
        "expert 1 head 1",
        "expert 1 head 2",
        "expert 2",
        "expert 3 head 0",
        "expert 3 head 1",
    ]


@pytest.mark.parametrize("style", [PAPER, AUTHORS], ids=tiny.names)
@pytest.mark.parametrize(("variant", "kind", "expert"), [(IA, "spatial", 3), (STA, "joint", 3), (STA, "spatial", 1)])
def test_where_a_patch_looks_by_group(style: dict, variant: Variant, kind: str, expert: int) -> None:
    model, image = tiny.model(variant, (3, 1, 2), **style), tiny.images(1)[0]
    patch, head = 4, 1
    view = views.look_view(views.read(model, image, kind, 0, expert), patch, head)
    assert view.weights.sum() + view.class_mass == pytest.approx(1, abs=1e-6)
    assert (view.class_mass > 0) == (style["readout"] == "cls_token")
    heads = view.weights.shape[0]
    assert heads == (6 if kind == "joint" else 1)
    sums, entropies, counts = np.zeros(4), np.zeros(4), np.zeros(4)
    for j, p in itertools.product(range(heads), range(6)):
        same_head = (view.key_expert[j], view.key_head[j]) == (expert, head)
        group = 2 * (p != patch) + (not same_head)
        sums[group] += view.weights[j, p]
        counts[group] += 1
    for j, p in itertools.product(range(heads), range(6)):
        same_head = (view.key_expert[j], view.key_head[j]) == (expert, head)
        group = 2 * (p != patch) + (not same_head)
        share = view.weights[j, p] / sums[group]
        entropies[group] -= share * np.log(share)
    table = view.frame().set_index("group")
    for number, name in enumerate(GROUPS):
        assert table.loc[name, "share %"] == pytest.approx(100 * sums[number] / sums.sum())
        assert table.loc[name, "uniform %"] == pytest.approx(100 * counts[number] / counts.sum())
        assert table.loc[name, "keys"] == counts[number]
        if counts[number]:
            assert table.loc[name, "effective keys"] == pytest.approx(np.exp(entropies[number]))
        else:
            assert np.isnan(table.loc[name, "effective keys"])
    assert table["share %"][:4].sum() == pytest.approx(100) and table.loc["all", "share %"] == pytest.approx(100)
    keys = view.keys()
    assert keys["attention"].sum() == pytest.approx(view.weights.sum()) and len(keys) == 6 * heads
    assert np.allclose(view.times_uniform * view.uniform, view.weights)


def test_points_are_where_patches_attend() -> None:
    assert views.points(tiny.model(DNE, (3, 1)), views.TASKWISE) == {"task1": {2: [0, 1]}, "task2": {2: [0, 1]}}
    behind = tiny.model(DNE, (3, 1), **AUTHORS)  # the last block knows the class token alone
    assert views.points(behind, views.TASKWISE) == {"task1": {2: [0]}, "task2": {2: [0]}}
    assert views.points(tiny.model(STA, (3, 1)), views.PATCHWISE) == {"spatial": {1: [0, 1]}, "joint": {2: [0, 1]}}
    assert views.points(tiny.model(IA, (3, 1)), views.TASKWISE) == {}
    assert set(views.points(tiny.model(BOTH, (1, 1)), ("joint", "task2"))) == {"joint", "task2"}


def test_a_view_of_the_wrong_map_is_refused() -> None:
    model, image = tiny.model(DNE, (3, 1)), tiny.images(1)[0]
    spatial, task = views.read(model, image, "spatial", 0, 2), views.read(model, image, "task1", 0, 2)
    with pytest.raises(LabError, match="of task1 or task2 attention, not of spatial"):
        views.task_view(spatial)
    with pytest.raises(LabError, match="of spatial or joint attention, not of task1"):
        views.look_view(task, 0)
    with pytest.raises(LabError, match="head 1: the map of expert 2 has heads 0 to 0"):
        views.task_view(task, head=1)
    with pytest.raises(LabError, match="image 3: the map of expert 2 has images 0 to 0"):
        views.task_view(task, image=3)
    with pytest.raises(LabError, match="patch 6: this image has patches 0 to 5"):
        views.look_view(spatial, 6)


def test_reading_leaves_no_hook() -> None:
    model = tiny.model(STA, (2, 1))
    views.read(model, tiny.images(1)[0], "joint", 0, 2)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert not any(p.grad is not None for p in model.parameters()) and torch.is_grad_enabled()
