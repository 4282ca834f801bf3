"""Figures of images: every class is in the table, the drawn ones are drawn, with their captions."""

import numpy as np
import pytest
from matplotlib.figure import Figure as Canvas

import dne_lab as lab
from dne_lab.core.errors import LabError
from dne_lab.data.datasets import PHOTOGRAPHS, photographs
from dne_lab.plots.attention_views import MOST, classes_by_task, pictures
from dne_lab.plots.figure import Figure


def drawn(figure: Figure) -> tuple[list[np.ndarray], list[str], list[str]]:
    """Pixels, captions and labels of the rows."""
    axes = Canvas().add_subplot()
    figure.draw(axes)
    pixels = [np.asarray(image.get_array()) for image in axes.images]
    return pixels, [text.get_text() for text in axes.texts], [label.get_text() for label in axes.get_yticklabels()]


def test_the_classes_of_a_stream_in_its_order() -> None:
    stream = lab.stream("digits", tasks=(4, 6), order=[3, 1, 4, 0, 5, 9, 2, 6, 8, 7])
    figure = classes_by_task(stream)
    table = figure.table
    assert table["class"].tolist() == list("3140592687") and table["task"].tolist() == [1] * 4 + [2] * 6
    assert table["training images"].sum() == 1258 and table["test images"].sum() == 539
    assert "drawn" not in table
    pixels, captions, rows = drawn(figure)
    assert captions == list("3140592687") and rows == ["task 1", "task 2"]
    for rank, shown in enumerate(pixels):
        first = stream.index("train", range(rank, rank + 1))[:1]
        assert np.array_equal(shown, stream.images("train", first)[0, 0].numpy())
    assert figure.image()[:4] == b"\x89PNG"


def test_of_large_tasks_the_first_classes_are_drawn() -> None:
    figure = classes_by_task(lab.stream("digits100"))
    assert len(figure.table) == 100 and figure.table["drawn"].sum() == MOST + 5 * 10
    pixels, captions, rows = drawn(figure)
    assert len(pixels) == len(captions) == MOST + 50 and captions[MOST] == "50" and len(rows) == 6
    assert f"the first {MOST} of each task" in figure.title


def test_pictures_with_captions() -> None:
    figure = pictures(photographs(8), PHOTOGRAPHS, "Four cuts")
    pixels, captions, _ = drawn(figure)
    assert captions == list(PHOTOGRAPHS) and [shown.shape for shown in pixels] == [(8, 8, 3)] * 4
    assert figure.table["caption"].tolist() == list(PHOTOGRAPHS)
    many = pictures(photographs(4).repeat(4, 1, 1, 1), range(16), "Two rows")
    assert many.table["row"].tolist() == [1] * 12 + [2] * 4 and many.size[0] > 6
    ten = pictures(photographs(4).repeat(4, 1, 1, 1), range(16), "Two rows", columns=10)
    assert ten.table["row"].tolist() == [1] * 10 + [2] * 6 and ten.size[0] < many.size[0]
    with pytest.raises(LabError, match="4 images and 3 captions"):
        pictures(photographs(4), PHOTOGRAPHS[:3], "")
    with pytest.raises(LabError, match="0 images and 0 captions"):
        pictures(photographs(4)[:0], [], "")
