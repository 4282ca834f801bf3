"""The colours that say how much attention, and the static views: equal bytes for equal numbers, for every kind."""

import io

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tiny import AUTHORS

from dne_lab.analysis import views
from dne_lab.analysis.ablation import Selection, accuracy, what_if
from dne_lab.analysis.run_views import RunView
from dne_lab.data.stream import Batch
from dne_lab.models.variants import DNE, IA, STA
from dne_lab.plots import attention_colours, attention_views
from dne_lab.plots.accuracy import run_series
from dne_lab.plots.attention_views import moved_words, what_if_figure
from dne_lab.plots.style import EXPERT_COLOURS, GROUP_COLOURS

HEADS = (3, 1, 2)


def test_heat_gets_lighter_with_attention_and_stops_at_the_end() -> None:
    colours = attention_colours.heat(np.array([0.0, 0.1, 0.2, 0.3, 0.9]), 0.3).astype(int)
    grey = colours @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey)[:3] > 10).all() and (colours[3] == colours[4]).all()
    assert attention_colours.heat(np.full((2, 3), np.nan), 1.0).shape == (2, 3, 3)


def test_tints_go_from_white_to_the_colour_of_the_group() -> None:
    groups = np.arange(4)
    assert (attention_colours.tinted(np.zeros(4), groups, 1.0) == 255).all()
    full = attention_colours.tinted(np.full(4, 2.0), groups, 1.0)
    assert ["#" + "".join(f"{part:02x}" for part in rgb) for rgb in full] == list(GROUP_COLOURS.values())


def test_the_expert_read_most_is_as_strong_as_its_margin() -> None:
    weights = np.array([[0.5, 0.5, 0.0], [0.2, 0.4, 0.4], [0.0, 0.9, 0.1], [0.3, 0.25, 0.45]])
    view = views.TaskView("task1", 0, 3, 0, (2, 2), weights, (1, 2, 3), (0, 0, 0))
    colours = attention_colours.most_read(view)
    assert colours.shape == (2, 2, 3) and (colours[0] == 255).all()
    full = np.array([int(EXPERT_COLOURS[1][i : i + 2], 16) for i in (1, 3, 5)])
    assert (colours[1, 0] == full).all()
    half = np.array([int(EXPERT_COLOURS[2][i : i + 2], 16) for i in (1, 3, 5)])
    assert np.abs(colours[1, 1] - (255 + half) / 2).max() <= 1


def test_what_lies_over_a_picture_is_brightest_where_attention_is_largest() -> None:
    pixels = np.full((4, 6, 3), 100, dtype=np.uint8)
    over = attention_colours.laid_over(pixels, np.array([[0.1, 0.2, 0.3], [0.4, 0.5, 0.9]])).astype(int)
    assert over.shape == (4, 6, 3) and (over[:2, :2] == over[0, 0]).all()
    assert over[3, 5].sum() == over.sum(-1).max() and over[0, 0].sum() == over.sum(-1).min()


def test_the_groups_differ_for_colour_blind_readers_too() -> None:
    """Brettel-like matrices for missing red, green and blue cones: every pair stays apart."""
    rgb = attention_colours.group_colours() / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    simulated = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
    }
    for matrix in simulated.values():
        seen = np.clip(linear @ np.array(matrix).T, 0, 1) ** (1 / 2.4)
        distance = np.linalg.norm(seen[:, None] - seen[None], axis=-1) + 9 * np.eye(4)
        assert distance.min() > 0.15


@pytest.mark.parametrize(
    ("largest", "uniform", "wanted"), [(0.2901, 0.1, 0.3), (0.1, 0.125, 0.25), (0.31, 0.1, 0.31), (1.0, 0.5, 1.0)]
)
def test_the_scale_ends_at_a_round_number_that_shows_the_uniform_value(
    largest: float, uniform: float, wanted: float
) -> None:
    assert attention_colours.scale_top(largest, uniform) == pytest.approx(wanted)


def test_pictures_are_rgb() -> None:
    colour, grey = tiny.images(1)[0], tiny.images(1, (1, 8, 12))[0]
    assert (attention_colours.picture(colour) == colour.permute(1, 2, 0).numpy()).all()
    assert (
        attention_colours.picture(grey).shape == (8, 12, 3)
        and (attention_colours.picture(grey)[..., 2] == grey[0].numpy()).all()
    )


def test_static_views_are_drawn_from_the_same_numbers_twice_alike() -> None:
    dne, sta, ia = (tiny.model(variant, HEADS, **AUTHORS) for variant in (DNE, STA, IA))
    image = tiny.images(1)[0]
    view = views.task_view(views.read(dne, image, "task1", 0, 3), head=1)
    figure = attention_views.task_figure(view, image, 4)
    assert figure.image() == attention_views.task_figure(view, image, 4).image()
    assert figure.table["at the patch"].tolist() == view.weights[4].tolist()
    assert "Expert 3 reads the heads of experts 1 to 3: first task attention block, layer 0, head 1" in repr(figure)
    looks = {
        name: views.look_view(views.read(model, image, kind, 0, 3), 4)
        for name, model, kind in (("IA", ia, "spatial"), ("STA", sta, "joint"))
    }
    figure = attention_views.look_figure(looks, image)
    assert len(figure.table) == 10 and Image.open(io.BytesIO(figure.image())).width > 1000
    assert attention_views.look_title(looks["STA"]).endswith(
        "joint attention, layer 0, head 0, patch 4 (row 1, column 1)"
    )


def test_many_heads_still_fit() -> None:
    model, image = tiny.model(DNE, (3, *[1] * 25), **AUTHORS), tiny.images(1)[0]
    figure = attention_views.task_figure(views.task_view(views.read(model, image, "task2", 0, 26)), image, 0)
    assert len(figure.table) == 28 and figure.image()


def test_what_if_in_words_and_drawn() -> None:
    assert moved_words([0.0, 0.1234]) == ["bit for bit the same", "moves by up to 0.123"]
    images = tiny.images(8)
    model = tiny.model(DNE, HEADS, **AUTHORS)
    choice = Selection(reads=1, how="zero")
    found = what_if(model, images, choice)
    told = accuracy(model, Batch(images, torch.arange(8) % 6, torch.arange(8)), choice)
    figure = what_if_figure(found, images[2], ["cat"], told, place=2)
    assert figure.image() == what_if_figure(found, images[2], ["cat"], told, place=2).image()
    assert set(figure.table["name"]) <= {"cat", *(f"class {rank}" for rank in range(1, 6))}
    assert what_if_figure(found, images[0]).image()


def test_many_runs_of_a_method_are_told_apart() -> None:
    from invented import record

    lines = run_series([RunView(str(seed), record(method="dne", seed=seed)) for seed in range(12)])
    assert len({(line.look.colour, line.dash) for line in lines}) == 12
