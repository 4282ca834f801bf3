"""All heads of a network for one image: their numbers are those of each head's own view, and they sort."""

from typing import Any

import numpy as np
import pytest
import tiny

from dne_lab.analysis import views
from dne_lab.analysis.head_table import ENTROPY, IN_ORDER, OTHERS, SAME_PATCH, heads_of_image, ordered, orders, table
from dne_lab.core.errors import LabError
from dne_lab.models.variants import DNE, IA, STA

HEADS = (3, 1, 2)


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", [IA, STA, DNE], ids=tiny.names)
def test_each_head_is_what_its_own_view_says(variant: Any, style: dict[str, Any]) -> None:
    model, image = tiny.model(variant, HEADS, **style), tiny.images(1)[0]
    found = heads_of_image(model, image)
    there = views.points(model, (*views.PATCHWISE, *views.TASKWISE))
    count = sum(HEADS[expert - 1] * len(layers) for kinds in there.values() for expert, layers in kinds.items())
    assert len(found) == count == len({(one.kind, one.layer, one.expert, one.head) for one in found})
    for one in found:
        maps = views.read(model, image, one.kind, one.layer, one.expert)
        if one.kind in views.TASKWISE:
            view = views.task_view(maps, one.head)
            assert np.allclose(one.maps, view.weights, atol=1e-6) and one.most_read.tolist() == view.most_read.tolist()
            assert [one.reads[t] for t in view.experts] == pytest.approx(view.by_expert.mean(0), abs=1e-6)
            assert one.same_patch is None and one.keys == len(view.names)
            entropies = [np.exp(-(row * np.log(row)).sum()) for row in view.weights]
            assert one.effective == pytest.approx(np.mean(entropies), rel=1e-4)
        else:
            rows = [views.look_view(maps, patch, one.head) for patch in range(6)]
            assert np.allclose(one.maps, [view.weights.sum(0) for view in rows], atol=1e-6)
            shares = [view.weights[:, view.patch].sum() / view.weights.sum() for view in rows]
            assert one.same_patch == pytest.approx(np.mean(shares), abs=1e-6)
            assert one.groups is not None and one.spread.shape == (6,)
            for patch, view in enumerate(rows):
                assert 100 * one.groups[patch] == pytest.approx(view.frame()["share %"].to_numpy()[:4], abs=1e-3)
            assert sum(one.reads.values()) == pytest.approx(1, abs=1e-5)


def test_orders_put_first_what_they_name() -> None:
    found = heads_of_image(tiny.model(STA, HEADS), tiny.images(1)[0])
    assert ordered(found, IN_ORDER) == found
    by_entropy = [np.log(one.effective) / np.log(one.keys) for one in ordered(found, ENTROPY)]
    assert by_entropy == sorted(by_entropy)
    same = [one.same_patch for one in ordered(found, SAME_PATCH)]
    assert same == sorted(same, reverse=True)
    assert {"reads expert 1 most", "reads expert 3 most", OTHERS} <= set(orders(found))
    first = ordered(found, "reads expert 3 most")[0]
    assert first.times_uniform(3) == max(one.times_uniform(3) for one in found) > 0
    own = heads_of_image(tiny.model(IA, HEADS), tiny.images(1)[0])
    assert set(orders(own)) == {ENTROPY, SAME_PATCH}  # nobody reads another
    with pytest.raises(LabError, match="order of heads"):
        ordered(found, "best")


def test_the_table_has_a_row_for_each_head() -> None:
    found = heads_of_image(tiny.model(DNE, HEADS), tiny.images(1)[0])
    frame = table(found)
    assert len(frame) == len(found) and (frame.filter(like="reads").sum(axis=1).round(2) == 100).all()
    assert frame[frame["kind"] == "task1"]["same patch %"].isna().all()
