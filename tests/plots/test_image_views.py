"""One image along the stream and under all heads: which classes are followed; every panel is drawn from its table."""

import numpy as np
import pytest
import tiny

from dne_lab.analysis.head_table import heads_of_image
from dne_lab.analysis.moments import Glance, along
from dne_lab.models.variants import DNE
from dne_lab.plots.attention_colours import ABSOLUTE, RELATIVE, colours_at, expert_pixels, rows_at, scale_at
from dne_lab.plots.image_views import (
    FOLLOWED,
    classes_along,
    classes_panel,
    flow_panels,
    groups_panel,
    keys_panel,
    through_time_figure,
    thumbnails_figure,
)
from dne_lab.plots.marks import Cells, Level, Points
from dne_lab.plots.vector import chart

NAMES = ["untrained", "after task 1", "after task 2"]
WORDS = ["cat", "dog", "<owl>"]


def glance(logits: list[float], experts: int) -> Glance:
    shares = np.array([[2.0, 1.0], [0.0, 0.0], [98.0, 99.0], [0.0, 0.0]])
    points = [("spatial", 0, number) for number in range(1, experts + 1)]
    reads = {("task1", 0, 2): np.array([[70.0, 80.0], [30.0, 20.0]])} if experts > 1 else {}
    return Glance(np.array(logits), dict.fromkeys(points, shares), dict.fromkeys(points, (7.5, 16.0)), reads)


FOUND = [glance([0.0, 0.1, 0.2], 2), glance([1.0, 0.0], 1), glance([0.0, 0.0, 3.0], 2)]


def test_the_truth_and_every_prediction_are_followed() -> None:
    table = classes_along(FOUND, NAMES, WORDS, truth=1, at=0)
    assert list(dict.fromkeys(table["class"])) == ["dog", "<owl>", "cat"]
    owl = table[table["class"] == "<owl>"].set_index("moment")
    assert np.isnan(owl["softmax"]["after task 1"])  # not learned yet
    assert owl["softmax"]["after task 2"] == pytest.approx(np.exp(3) / (np.exp(3) + 2))
    assert table.groupby("moment")["predicted"].sum().eq(1).all() and table[table["true"]]["class"].eq("dog").all()
    many = [glance([float(n == number) for n in range(12)], 1) for number in range(12)]
    names = [f"after task {n}" for n in range(12)]
    followed = set(classes_along(many, names, [str(n) for n in range(12)], truth=None, at=6)["class"])
    assert len(followed) <= FOLLOWED and {"0", "6", "11"} <= followed


def test_panels_say_what_their_tables_say() -> None:
    table = along(FOUND, NAMES)
    groups = [mark for mark in groups_panel(table, 1).marks if isinstance(mark, Points)]
    assert [mark.name.split()[0] for mark in groups] == ["SPSH", "DPSH"] and list(groups[0].y) == [2.0, 2.0, 2.0]
    assert [mark.at for mark in groups_panel(table, 1).marks if isinstance(mark, Level)] == [1.0, 1.0]
    classes = classes_panel(classes_along(FOUND, NAMES, WORDS, 1, 1), NAMES, 1)
    owl = next(mark for mark in classes.marks if isinstance(mark, Points) and mark.name == "<owl>")
    assert list(owl.x) == [2.0]  # from the moment on when it is learned
    text = chart(classes)
    assert "&lt;owl&gt;" in text and "<owl>" not in text and "start" in text
    cells = flow_panels(FOUND[-1].flow(), 2)[0].marks[0]
    assert isinstance(cells, Cells) and cells.values.tolist() == [[70.0, 30.0]] and "uniform 20.0%" in cells.notes[0][1]
    assert ">70</text>" in chart(flow_panels(FOUND[-1].flow(), 2)[0], row=24)
    assert "7.5" in chart(keys_panel(table, 0))


def test_the_figure_has_a_row_for_each_moment() -> None:
    table, classes = along(FOUND, NAMES), classes_along(FOUND, NAMES, WORDS, 1, 2)
    made = through_time_figure(classes, table, FOUND[-1].flow(), "t", 2, 2)
    assert made.table["moment"].tolist() == NAMES and "softmax <owl>" in made.table
    assert made.image("png").startswith(b"\x89PNG") and len(made.interactive().data) > 4
    assert through_time_figure(classes, table, FOUND[1].flow(), "t", 1, 1).image("png").startswith(b"\x89PNG")


HEADS = heads_of_image(tiny.model(DNE, (3, 1, 2)), tiny.images(1)[0])


def test_maps_of_one_kind_share_a_scale() -> None:
    spatial = [one for one in HEADS if one.kind == "spatial"]
    scale = scale_at(spatial, 2, ABSOLUTE)
    assert scale is not None and scale.high >= max(float(one.maps[2].max()) for one in spatial)
    pixels = colours_at(spatial, 2, scale)
    assert pixels[0].shape == (2, 3, 3)
    assert (pixels[1].reshape(-1, 3) == scale.colours(spatial[1].maps[2])).all()


def test_task_attention_is_shown_in_the_colours_of_experts() -> None:
    task = [one for one in HEADS if one.kind == "task1"]
    assert scale_at(task, 0, RELATIVE) is None
    rows, pixels = rows_at(task, 0), colours_at(task, 0, None)
    assert all((one == expert_pixels(row, (2, 3))).all() for one, row in zip(pixels, rows, strict=True))
    assert len(np.unique(expert_pixels(np.arange(1, 11), (-1,)), axis=0)) == 10


def test_the_figure_is_a_picture_with_a_table() -> None:
    made = thumbnails_figure(HEADS, 0, RELATIVE, "t")
    assert made.image("png").startswith(b"\x89PNG") and len(made.table) == len(HEADS)
