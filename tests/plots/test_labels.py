"""Names beside marks, measured as they are drawn: they cover neither each other nor the marks."""

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from dne_lab.plots.labels import MOST, Tag, place, tags
from dne_lab.plots.marks import Points
from dne_lab.plots.style import style


def tag(text: str, x: float, y: float, area: float = 40.0) -> Tag:
    return Tag(text, x, y, "#000000", area)


def drawn(tags: Sequence[Tag], lines: Sequence[Sequence[tuple[float, float]]] = ()) -> tuple[Axes, list[Bbox]]:
    """The axes, and where each name is, in pixels."""
    canvas = Figure(figsize=(7, 4), layout="constrained")
    agg = FigureCanvasAgg(canvas)
    axes = canvas.add_subplot()
    axes.set_xlim(0, 10)
    axes.set_ylim(0, 10)
    place(axes, tags, lines)
    canvas.draw_without_rendering()
    # of the letters alone: an annotation's own extent includes the line that leads back to its mark
    return axes, [Text.get_window_extent(text, agg.get_renderer()) for text in axes.texts]


def covers(box: Bbox, axes: Axes, mark: Tag) -> bool:
    """Whether a name covers the middle of a mark."""
    x, y = axes.transData.transform((mark.x, mark.y))
    return bool(box.x0 <= x <= box.x1 and box.y0 <= y <= box.y1)


def test_a_crowd_of_names() -> None:
    tags = [tag(f"ResNet-{n}", 5 + 0.25 * (n % 3), 5 + 0.3 * (n // 3)) for n in range(6)]
    axes, boxes = drawn(tags)
    assert [text.get_text() for text in axes.texts] == [one.text for one in tags]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert not any(covers(box, axes, mark) for box in boxes for mark in tags)
    assert all(axes.bbox.containsx(box.x0) and axes.bbox.containsx(box.x1) for box in boxes)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.floats(0.5, 9.5), st.floats(0.5, 9.5)), max_size=8))
def test_no_two_names_of_a_few_marks_overlap(at: list[tuple[float, float]]) -> None:
    boxes = drawn([tag("k = 1", x, y) for x, y in at])[1]
    assert len(boxes) == len(at)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


@pytest.mark.parametrize("corner", [(0.0, 0.0), (10.0, 10.0), (0.0, 10.0), (10.0, 0.0)])
def test_names_stay_inside_the_axes(corner: tuple[float, float]) -> None:
    axes, (box,) = drawn([tag("12 heads each", *corner)])
    assert axes.bbox.x0 - 2 <= box.x0 and box.x1 <= axes.bbox.x1 + 2
    assert axes.bbox.y0 - 2 <= box.y0 and box.y1 <= axes.bbox.y1 + 2


def test_large_marks_and_lines_are_kept_free() -> None:
    _, (small,) = drawn([tag("k = 1", 5, 5, area=20)])
    axes, (large,) = drawn([tag("k = 1", 5, 5, area=900)])
    middle = axes.transData.transform((5, 5))
    away = [abs((box.y0 + box.y1) / 2 - middle[1]) + abs((box.x0 + box.x1) / 2 - middle[0]) for box in (small, large)]
    assert away[1] > away[0] + 10
    line = [(5.0, 5.0), (6.0, 6.5)]  # where the name would be
    axes, (beside,) = drawn([tag("k = 1", 5, 5)], [line])
    points = [axes.transData.transform((5 + 0.02 * i, 5 + 0.03 * i)) for i in range(51)]
    assert not any(beside.x0 <= x <= beside.x1 and beside.y0 <= y <= beside.y1 for x, y in points)
    _, (plain,) = drawn([tag("k = 1", 5, 5)])
    assert any(plain.x0 <= x <= plain.x1 and plain.y0 <= y <= plain.y1 for x, y in points)


def test_marks_without_a_name_and_none_at_all() -> None:
    axes, boxes = drawn([tag("", 5, 5), tag("k = 2", 5.1, 5)])
    assert len(boxes) == 1 and not covers(boxes[0], axes, tag("", 5, 5))
    assert drawn([])[1] == []


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("k = 1", "k = 1"),
        ("preset cifar100-medium", "preset cifar100-medium"),
        ("preset cifar100-medium, images 12345678, options.experts first", "… options.experts first"),
        ("preset a, images b, options.experts c", "… options.experts c"),
        ("x" * (MOST + 1), "x" * (MOST - 1) + "…"),
        ("preset a, " + "x" * 2 * MOST, "… " + "x" * (MOST - 3) + "…"),
    ],
)
def test_a_long_name_is_shortened_to_what_tells_it_apart(name: str, written: str) -> None:
    (found,) = tags(Points("DNE", [1.0], [2.0], style("dne"), tags=[name]))
    assert found.text == written and len(written) <= MOST
