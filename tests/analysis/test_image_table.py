"""One head over many images: as if each image were looked at alone, sorted, and by class as plain loops count it."""

import numpy as np
import pytest
import tiny

from dne_lab.analysis import views
from dne_lab.analysis.image_table import IN_ORDER, ORDERS, Chosen, by_label, image_table, over_images, sorted_images
from dne_lab.core.errors import LabError
from dne_lab.models.variants import DNE, STA, Variant


@pytest.mark.parametrize(("variant", "kind"), [(DNE, "spatial"), (STA, "joint")], ids=["dne", "sta"])
def test_all_images_in_one_pass_are_what_each_is_alone(variant: Variant, kind: str) -> None:
    model, images = tiny.model(variant, (3, 1, 2), depth=3), tiny.images(4)
    found = over_images(model, images, Chosen(kind, 1, 3, 1, 4))
    for view, image in zip(found, images, strict=True):
        alone = views.look_view(views.read(model, image, kind, 1, 3), 4, 1)
        np.testing.assert_allclose(view.weights, alone.weights, atol=1e-6)
        frame = alone.frame().set_index("group")
        there = frame["keys"][:4].to_numpy() > 0
        np.testing.assert_allclose(100 * view.shares[there], frame["share %"][:4][there], atol=1e-4)
        np.testing.assert_allclose(100 * view.uniform_shares, frame["uniform %"][:4])
        assert view.effective == pytest.approx(frame.loc["all", "effective keys"], rel=1e-5)


def test_orders_and_means_by_class_against_loops() -> None:
    found = over_images(tiny.model(DNE, (3, 1), depth=3), tiny.images(5), Chosen("spatial", 0, 2, 0, 1))
    assert sorted_images(found, IN_ORDER) == list(range(5))
    for name, value in (
        ("fewest effective keys", lambda view: view.effective),
        ("largest attention", lambda view: -view.weights.max()),
        ("most same-patch", lambda view: -view.weights[:, 1].sum() / view.weights.sum()),
    ):
        values = [float(value(found[place])) for place in sorted_images(found, name)]
        assert values == sorted(values) and name in ORDERS
    labels = ["cat", "dog", "cat", "cat", "bird"]
    table = by_label(image_table(found, labels)).set_index("label")
    assert table["images"].to_dict() == {"cat": 3, "dog": 1, "bird": 1}
    mine = [100 * found[place].weights[:, 1].sum() / found[place].weights.sum() for place in (0, 2, 3)]
    assert table.loc["cat", "SPSH %"] == pytest.approx(np.mean(mine))
    half = 4.302653 * np.std(mine, ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
    assert table.loc["cat", "SPSH % +-"] == pytest.approx(half, rel=1e-5)
    assert np.isnan(table["SPSH % +-"]["dog"])


def test_a_patch_or_head_that_is_not_there_is_named() -> None:
    model, images = tiny.model(DNE, (3, 1)), tiny.images(2)
    with pytest.raises(LabError, match="patch 6"):
        over_images(model, images, Chosen("spatial", 0, 2, 0, 6))
    with pytest.raises(LabError, match="head 1"):
        over_images(model, images, Chosen("spatial", 0, 2, 1, 0))
