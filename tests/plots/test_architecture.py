"""Figures 2 and 5: the drawing is the list of connections of the model, no line more and none less."""

from collections import Counter
from pathlib import Path

import pytest
import tiny
from matplotlib.figure import Figure as Canvas

from dne_lab.analysis.connections import parts
from dne_lab.core.errors import LabError
from dne_lab.models.expandable import ExpandableViT
from dne_lab.plots import architecture

HEADS = (3, 1, 2)


@pytest.mark.parametrize("variant", tiny.VARIANTS, ids=tiny.names)
def test_lines_are_the_connections_head_by_head(variant: tiny.Variant) -> None:
    model = tiny.model(variant, HEADS, **tiny.AUTHORS)
    drawn = Counter(link.kind for link in architecture.layout(architecture.figure_2(model).table, 0).links)
    later = [(heads, sum(HEADS[: i + 2])) for i, heads in enumerate(HEADS[1:])]
    everyone = sum(heads * all_heads for heads, all_heads in later)
    own = sum(heads * heads for heads in HEADS[1:])
    dense = {name: HEADS[0] ** 2 + (0 if task else own)
             for name, task in (("linear1", variant.task1), ("linear2", variant.task2))}  # fmt: skip
    expected = Counter(dense)
    expected += Counter({name: everyone for name, task in (("task1", variant.task1), ("task2", variant.task2)) if task})
    # Three patches drawn; attention has one output patch above them, the lateral map keeps all three.
    expected += Counter({"joint": 3 * everyone, "spatial": 3 * HEADS[0]} if variant.joint else {"spatial": 3 * 6})
    if variant.lateral:
        expected += Counter({"lateral": 3 * everyone})
    assert drawn == expected


def test_what_trains_stands_out() -> None:
    model = tiny.model(tiny.DNE, HEADS, **tiny.AUTHORS)
    figure = architecture.figure_2(model)
    plan = architecture.layout(figure.table, 0)
    assert {node.expert for node in plan.nodes if node.trains} == {3}
    assert "dark: trains" in figure.title and any(link.strong for link in plan.links)
    model.requires_grad_(False)
    finished = architecture.figure_2(model)
    assert "finished: all experts are frozen" in finished.title
    plan = architecture.layout(finished.table, 0)
    assert not any(node.trains for node in plan.nodes) and any(link.strong for link in plan.links)
    assert "finished" in architecture.figure_5(model).title


def test_many_heads_are_drawn_as_one_mark_an_expert() -> None:
    plan = architecture.layout(architecture.figure_2(tiny.model(tiny.DNE, (12, *[1] * 13))).table, 0)
    assert len({node.x for node in plan.nodes if node.y == 2}) == 14
    assert plan.experts[1][1] == "1\n12 heads"
    assert architecture.heads_text((12, 1, 1, 1, 1, 1)) == "12, 1 x 5 heads"
    assert architecture.heads_text((3, 1, 2)) == "3, 1, 2 heads" and architecture.heads_text((1,)) == "1 head"


@pytest.mark.parametrize("style", tiny.STYLES, ids=tiny.names)
@pytest.mark.parametrize("variant", tiny.PUBLISHED, ids=tiny.names)
def test_figure_5_has_a_box_for_every_part(variant: tiny.Variant, style: dict) -> None:
    model = tiny.model(variant, HEADS, **style)
    for layer in (0, 1):
        boxes, arrows = architecture.block_layout(architecture.figure_5(model, layer).table, layer)
        mine = [row for row in parts(model) if row["layer"] == layer]
        inside = len(architecture.INSIDE) + 1 if variant.task1 else 0
        assert len(boxes) == len(mine) + len(HEADS) + inside
        assert len({(box.x, box.y) for box in boxes}) == len(boxes)
        across = [a for a in arrows if not a.head]
        reads = sum(int(row["reads"].split("-")[-1]) - 1 for row in mine)
        assert len(across) == reads - sum(row["expert"] - 1 for row in mine if "-" not in row["reads"])
        texts = "\n".join(box.text for box in boxes)
        assert ("task attention block" in texts) == variant.task1
        assert ("6 heads read, 4 → 8" in texts) == variant.task1
    assert architecture._shown(architecture.figure_5(tiny.model(variant, (3, 1, 1, 1, 1, 1))).table) == [1, 2, 6]


def test_pictures(tmp_path: Path) -> None:
    for make in (architecture.figure_2, architecture.figure_5):
        for variant in tiny.PUBLISHED:
            figure, again = (make(tiny.model(variant, HEADS, **tiny.AUTHORS)) for _ in range(2))
            figure.draw(Canvas().add_subplot())
            assert figure.size[0] <= 8.4  # inches: fits the cell of a notebook
            assert figure.name.endswith(variant.name)
        assert figure.image() == again.image()
        assert figure.save(tmp_path / "f.pdf")[0].read_bytes().startswith(b"%PDF")


def test_wrong_blocks_and_empty_networks() -> None:
    model = tiny.model(tiny.IA, (2,))
    empty = ExpandableViT(tiny.network(), tiny.SHAPE)
    for make in (architecture.figure_2, architecture.figure_5):
        with pytest.raises(LabError, match="layer 2: this network has blocks 0 to 1"):
            make(model, 2)
        with pytest.raises(LabError, match="no expert yet"):
            make(empty)


@pytest.mark.parametrize("columns", [{"masked": "SPDH"}, {"masked": "DPDH"}, {"masked": "both"}, {"pictures": "own"}])
def test_what_a_control_masks_is_not_drawn(columns: dict[str, str]) -> None:
    """Of joint attention between two heads: all three patches, two, one or none; the title names the control."""
    model = tiny.model(tiny.Variant("sta", "all", "mlp", **columns), (1, 1), **tiny.PAPER)  # type: ignore[arg-type]
    figure = architecture.figure_2(model)
    foreign = [
        link
        for link in architecture.layout(figure.table, 0).links
        if link.kind == "joint" and link.x[0] < link.x[1] - 2
    ]
    assert len(foreign) == {"SPDH": 2, "DPDH": 1, "both": 0, "own": 3}[next(iter(columns.values()))]
    assert next(iter(columns)) in figure.title
