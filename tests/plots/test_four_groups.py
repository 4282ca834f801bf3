"""Figure 3: every key has the colour of its group, and the table counts what is drawn."""

import numpy as np
import pytest
import tiny
import torch
from matplotlib.figure import Figure as Canvas

from dne_lab.core.errors import LabError
from dne_lab.models.variants import IA, STA
from dne_lab.plots.four_groups import figure_3
from dne_lab.plots.style import GROUP_COLOURS

HEADS = (3, 1, 2)


def test_the_table_counts_the_keys_of_each_group() -> None:
    network = tiny.model(STA, HEADS)
    patches = network.grid[0] * network.grid[1]
    for expert, seen in ((1, 3), (2, 4), (3, 6)):
        table = figure_3(network, tiny.images(1)[0], 1, expert).table.set_index("group")
        others, elsewhere = seen - 1, patches - 1
        assert table["keys, STA"].to_dict() == {
            "SPSH": 1, "SPDH": others, "DPSH": elsewhere, "DPDH": others * elsewhere,
        }  # fmt: skip
        assert table["keys, IA"].to_dict() == {"SPSH": 1, "SPDH": 0, "DPSH": elsewhere, "DPDH": 0}
        same = table.loc[["SPSH", "SPDH"]].sum()
        for variant in ("IA", "STA"):  # why a same-patch share alone does not show fragmentation
            assert same[f"uniform %, {variant}"] == pytest.approx(100 / patches)
            assert table[f"uniform %, {variant}"].sum() == pytest.approx(100)


def test_each_key_is_drawn_in_the_colour_of_its_group() -> None:
    """A white picture: at a key's middle only the colour of its group is seen, strongly on the query's patch."""
    network = tiny.model(IA, HEADS)
    rows, columns = network.grid
    white = torch.full_like(tiny.images(1)[0], 255)
    patch, head = columns + 1, 1
    figure = figure_3(network, white, patch, head=head)
    axes = Canvas().add_subplot()
    figure.draw(axes)
    copies = [np.asarray(image.get_array()) for image in axes.images]
    assert len(copies) == 1 + sum(HEADS) and (copies[0] == 255).all()
    size = copies[0].shape[0] // rows, copies[0].shape[1] // columns
    for number, copy in enumerate(copies[1:]):
        own = number == sum(HEADS[:-1]) + head
        for place in range(rows * columns):
            row, column = divmod(place, columns)
            key = copy[row * size[0] : (row + 1) * size[0], column * size[1] : (column + 1) * size[1]]
            name = ("SP" if place == patch else "DP") + ("SH" if own else "DH")
            colour = np.array([int(GROUP_COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)])
            cover = (255 - key.astype(float)).sum() / (255 - colour).sum() / key[..., 0].size
            assert np.abs(key - (255 - cover * (255 - colour))).max() < 1
            assert cover == pytest.approx(0.9 if place == patch else 0.5, abs=0.02)
    texts = [text.get_text() for text in axes.texts]
    assert texts[:2] == ["picture and query", "expert 1 head 0"] and texts[-1] == "expert 3 head 1"
    assert figure.image() == figure_3(network, white, patch, head=head).image()


def test_a_query_that_is_not_there() -> None:
    network, image = tiny.model(STA, HEADS), tiny.images(1)[0]
    with pytest.raises(LabError, match="expert 4: this network has experts 1 to 3"):
        figure_3(network, image, 0, 4)
    with pytest.raises(LabError, match="head 2: a query of expert 3 has heads 0 to 1"):
        figure_3(network, image, 0, head=2)
    with pytest.raises(LabError, match="patch 999: a query of expert 3 has patches 0 to"):
        figure_3(network, image, 999)
    with pytest.raises(LabError, match="the model takes uint8 images"):
        figure_3(network, image[:, :4], 0)
