"""All images at once: every control, what a click does, classes, and images without labels."""

from typing import Any

import numpy as np
import pytest
import tiny
import torch

import dne_lab as lab
from dne_lab.data.stream import Batch
from dne_lab.models.variants import DNE, IA, STA
from dne_lab.widgets import gallery
from dne_lab.widgets.explorer import Explorer


def explorer(images: Any = None) -> Explorer:
    batch = Batch(tiny.images(5), torch.tensor([0, 1, 0, 1, 1]), torch.arange(5)) if images is None else images
    models = {variant.name: tiny.model(variant, (3, 1, 2), depth=3) for variant in (IA, STA, DNE)}
    made = lab.explore(models, batch, ("<b>cat</b>", "dog"), tab="gallery")
    assert isinstance(made, Explorer) and made.part.message.value == ""
    return made


def test_every_control_changes_what_is_seen() -> None:
    part: Any = explorer().part

    def seen() -> str:
        return repr(([p["title"] for p in part.maps.scene["panels"]], part.maps.scene["pixels"], part.spread.value))

    part.expert.value = 3
    for control, values in (
        (part.model, part.model.options),
        (part.order, part.order.options),
        (part.colours, part.colours.options),
        (part.way, ("group", "distance", "expert")),
        (part.label, (-1, 0, 1)),
        (part.expert, (1, 2, 3)),
        (part.layer, (0, 1)),
        (part.head, (0, 1)),
        (part.patches, (0, 3)),
    ):
        trait = "patch" if control is part.patches else "value"
        first, shown = getattr(control, trait), set()
        for value in values:
            setattr(control, trait, value)
            assert part.message.value == ""
            shown.add(seen())
        assert len(shown) > 1, control
        setattr(control, trait, first)


def test_a_click_chooses_the_image_in_all_tabs() -> None:
    made = explorer()
    part: Any = made.part
    part.order.value = "fewest effective keys"
    second = part.shown()[1]
    part._enter(1)
    assert made.image.value == second and part.image == second
    part._enter(99)
    assert made.image.value == second


def test_classes_are_counted_and_escaped() -> None:
    part: Any = explorer().part
    assert "&lt;b&gt;cat" in part.table.value and "<b>cat" not in part.table.value + part.spread.value
    part.label.value = 1
    assert [p["title"].split(":")[0] for p in part.maps.scene["panels"]] == ["1", "3", "4"]
    table = part.numbers()
    assert table["image"].tolist() == [1, 3, 4] and set(table["label"]) == {"dog"}
    view = part.found[3]
    assert table.set_index("image").loc[3, "DPSH %"] == pytest.approx(100 * view.shares[2])


def test_shares_by_distance_and_by_expert_have_uniform_and_intervals() -> None:
    part: Any = explorer().part
    part.model.value, part.expert.value = STA.name, 3
    for way, there in (("group", "SPDH"), ("distance", "distance 1"), ("expert", "expert 2")):
        part.way.value = way
        figure = part.spread_figure()
        mine = figure.table[figure.table["part"] == there]
        assert mine["share %"].tolist() == pytest.approx(part.numbers()[f"{there} %"].tolist())
        uniform = dict(zip(part.parts().names, 100 * part.parts().uniform, strict=True))
        assert set(mine["uniform %"].round(6)) == {round(uniform[there], 6)}
        assert figure.table.groupby("image")["uniform %"].sum().round(6).eq(100).all()
        assert "uniform" in part.table.value and f"{uniform[there]:.2f}" in part.table.value
        assert part.spread.value.count("dne-interval") == len(uniform) and "95% interval" in part.spread.value
        assert figure.interactive().data and f"{way} of the keys" in figure.title
    assert part._shares_csv()[2].startswith(b"part,image,label,share %,uniform %")
    assert part._spread_png()[2].startswith(b"\x89PNG")


def test_images_without_labels_and_more_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gallery, "MOST", 4)
    part: Any = explorer(tiny.images(6)).part
    assert len(part.maps.scene["panels"]) == 4 and "4 of 6 images" in part.count.value
    assert part.numbers()["image"].tolist() == [0, 1, 3, 4]  # from end to end
    assert part.numbers()["label"].tolist() == ["no label"] * 4
    figure = part.figure()
    assert figure.image("png").startswith(b"\x89PNG") and len(figure.table) == 4


def test_one_pass_serves_until_something_else_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    part: Any = explorer().part
    asked = []
    real = gallery.over_images

    def counted(*given: Any) -> Any:
        asked.append(given)
        return real(*given)

    monkeypatch.setattr(gallery, "over_images", counted)
    part.order.value = "largest attention"
    assert asked == []
    part.patches.patch = (part.patches.patch + 1) % 6
    assert len(asked) == 1
    numbers = np.frombuffer(part.maps.scene["numbers"], dtype="<f4").reshape(5, -1)
    np.testing.assert_allclose(numbers[0], part.found[part.shown()[0]].weights.sum(0), rtol=1e-6)
