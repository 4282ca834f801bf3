"""One head over many images: as if each image were looked at alone, sorted, and by class as plain loops count it."""

import numpy as np
import pytest
import tiny

from dne_lab.analysis import views
from dne_lab.analysis.image_table import (
    DISTANCE,
    EXPERT,
    GROUP,
    IN_ORDER,
    ORDERS,
    Chosen,
    by_label,
    image_table,
    over_images,
    parts_of,
    sorted_images,
)
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


def test_keys_are_sorted_by_group_distance_and_expert_as_loops_sort_them() -> None:
    patch = 4  # row 1, column 1 of 2 x 3
    (view,) = over_images(tiny.model(STA, (3, 1, 2), depth=3), tiny.images(1), Chosen("joint", 1, 3, 1, patch))
    sums: dict[str, float] = {}
    keys: dict[str, int] = {}
    for head, expert in enumerate(view.key_expert):
        for key in range(view.weights.shape[1]):
            away = max(abs(key // 3 - 1), abs(key % 3 - 1))
            group = ("S" if key == patch else "D") + "P" + ("S" if head == view.own else "D") + "H"
            for name in (f"distance {away}", f"expert {expert}", group):
                sums[name] = sums.get(name, 0.0) + float(view.weights[head, key] / view.weights.sum())
                keys[name] = keys.get(name, 0) + 1
    for way, names in ((GROUP, ("SPSH", "SPDH", "DPSH", "DPDH")), (DISTANCE, ("distance 0", "distance 1")),
                       (EXPERT, ("expert 1", "expert 2", "expert 3"))):  # fmt: skip
        parts = parts_of(view, way)
        assert parts.names == names
        np.testing.assert_allclose(parts.shares(view), [sums[name] for name in names])
        np.testing.assert_allclose(parts.uniform, [keys[name] / view.weights.size for name in names])
        row = image_table([view], ["cat"], way).iloc[0]
        np.testing.assert_allclose([row[f"{name} %"] for name in names], 100 * parts.shares(view))


def test_a_patch_or_head_that_is_not_there_is_named() -> None:
    model, images = tiny.model(DNE, (3, 1)), tiny.images(2)
    with pytest.raises(LabError, match="patch 6"):
        over_images(model, images, Chosen("spatial", 0, 2, 0, 6))
    with pytest.raises(LabError, match="head 1"):
        over_images(model, images, Chosen("spatial", 0, 2, 1, 0))
