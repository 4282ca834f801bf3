"""Images for the instruments: batch by batch, each once, and a network that is left as it was."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dne_lab.analysis.probe import evaluating, image_batches
from dne_lab.core.errors import LabError
from dne_lab.data.stream import Batch


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 10), st.booleans())
def test_every_image_comes_once_with_its_number(counts: list[int], size: int, spread: bool) -> None:
    pixels = torch.arange(sum(counts), dtype=torch.uint8).view(-1, 1, 1, 1)
    found = list(image_batches(iter(pixels.split(counts)), size, spread))
    for part in found:
        assert part.images.flatten().tolist() == part.numbers.tolist() and part.labels is None
    numbers = sorted(number for part in found for number in part.numbers.tolist())
    assert numbers == list(range(sum(counts)))
    if spread:
        assert sum(len(part.images) == 1 for part in found) == counts.count(1)  # alone only where given alone
        assert all(len(part.images) <= max(size, 2) + 1 for part in found)
    else:
        assert all(len(part.images) <= size for part in found)


def test_a_batch_keeps_its_numbers_and_labels() -> None:
    batch = Batch(tiny.images(5), torch.tensor([0, 0, 1, 1, 2]), torch.tensor([31, 4, 15, 9, 26]))
    found = list(image_batches(batch, 2))
    assert [part.numbers.tolist() for part in found] == [[31, 4], [15, 9], [26]]
    assert [part.labels.tolist() for part in found if part.labels is not None] == [[0, 0], [1, 1], [2]]
    assert torch.equal(torch.cat([part.images for part in found]), batch.images)


def test_spread_images_half_a_part_apart_are_of_other_classes() -> None:
    """Sorted by class, more of a class than a part holds: consecutive parts would be of one class."""
    labels = torch.arange(4).repeat_interleave(50)
    batch = Batch(tiny.images(200, (1, 1, 1)), labels, torch.arange(200))
    for size in (1, 2, 7, 16, 64, 199, 1000):
        for part in image_batches(batch, size, spread=True):
            assert part.labels is not None
            half = part.labels.roll(len(part.labels) // 2)
            assert (half != part.labels).all(), size
            assert len(part.labels) > 1


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, r"images is a NoneType: give stream\.test_images\(n\), a tensor"),
        (7, "images is a int"),
        ("digits", "images is a str"),
        (np.zeros((2, 3, 8, 12), np.uint8), "images hold a ndarray: give batches or tensors"),
        ([[1, 2]], "images hold a list"),
        (torch.zeros(3, 8, 12), r"images have shape \(3, 8, 12\): give \(B, C, H, W\); one image is image\[None\]"),
        ([tiny.images(1), torch.zeros(2, 2)], r"images have shape \(2, 2\)"),
        ([], "the data set is empty"),
        (tiny.images(0), "the data set is empty"),
        (Batch(tiny.images(0), torch.zeros(0), torch.zeros(0)), "the data set is empty"),
        (iter([tiny.images(0), tiny.images(0)]), "there is no image to look at"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_holds_no_images(images: Any, message: str) -> None:
    for spread in (False, True):
        if isinstance(images, Iterator) and spread:
            continue  # it has been read
        with pytest.raises(LabError, match=message):
            list(image_batches(images, 4, spread))


@pytest.mark.parametrize("size", [0, -3, 2.0, True, "8", None], ids=str)
def test_a_batch_size_is_a_number(size: Any) -> None:
    with pytest.raises(LabError, match=r"batch_size = .*: must be a whole number, at least 1"):
        list(image_batches(tiny.images(2), size))
    assert len(list(image_batches(tiny.images(3), np.int64(2)))) == 2


def test_every_module_is_left_in_the_mode_it_was_in() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 2)))
    model.train()
    model[1].training = False  # and what is inside it trains
    before = [part.training for part in model.modules()]
    with evaluating(model) as device:
        assert not any(part.training for part in model.modules()) and not torch.is_grad_enabled()
        assert device == torch.device("cpu")
    assert [part.training for part in model.modules()] == before and torch.is_grad_enabled()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert [part.training for part in model.modules()] == before and torch.is_grad_enabled()
