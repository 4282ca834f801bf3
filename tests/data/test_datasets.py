"""The sample photographs: what is given, and that it is what scikit-learn has there."""

import numpy as np
import pytest
import torch

from dne_lab.core.errors import LabError
from dne_lab.data.datasets import CUTS, PHOTOGRAPHS, photographs


def test_four_square_cuts_as_the_models_take_them() -> None:
    images = photographs()
    assert images.shape == (4, 3, 32, 32) and images.dtype == torch.uint8 and images.is_contiguous()
    assert len(PHOTOGRAPHS) == len(set(PHOTOGRAPHS)) == 4
    assert torch.equal(images, photographs(32))
    for one in range(4):
        assert images[one].float().std() > 20
        assert not any(torch.equal(images[one], images[other]) for other in range(one))


@pytest.mark.parametrize("place", range(4), ids=PHOTOGRAPHS)
def test_a_cut_has_the_mean_colour_of_its_box(place: int) -> None:
    from sklearn.datasets import load_sample_image

    _, file, (left, top, right, bottom) = CUTS[place]
    picture = load_sample_image(file)
    assert right - left == bottom - top
    assert 0 <= left < right <= picture.shape[1] and 0 <= top < bottom <= picture.shape[0]
    colour = picture[top:bottom, left:right].mean((0, 1))
    assert np.abs(photographs(16)[place].float().mean((1, 2)).numpy() - colour).max() < 2


def test_no_size() -> None:
    with pytest.raises(LabError, match=r"photographs\(0\): a side needs at least one pixel"):
        photographs(0)
