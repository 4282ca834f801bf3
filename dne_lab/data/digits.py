"""Real handwritten digits that come with scikit-learn: ten classes as they are, a hundred in pairs."""

from __future__ import annotations

import numpy as np
import torch

from dne_lab import chance
from dne_lab.data.source import ArraySource

TEST_SHARE = 0.3
SIDE = 8


def _split_digits() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The 1,797 digits as (n, 8, 8) uint8 and their labels, 30% of each class for the test."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)  # from 0..16
    test = np.zeros(len(images), dtype=bool)
    for number in range(10):
        members = np.flatnonzero(bunch.target == number)
        order = chance.permutation(len(members), "digits", number).numpy()
        test[members[order[: round(TEST_SHARE * len(members))]]] = True
    return {
        "train": (images[~test], bunch.target[~test].astype(np.int64)),
        "test": (images[test], bunch.target[test].astype(np.int64)),
    }


def digits() -> ArraySource:
    """The 8 x 8 grey digits "0" to "9" of scikit-learn (UCI, 1998): 1,258 training and 539 test images."""
    splits = _split_digits()
    return ArraySource(*splits["train"], *splits["test"], name="digits")


def digits100(seed: int = 0, train: int = 60, test: int = 20) -> ArraySource:
    """Two-digit numbers "00" to "99" on a 16 x 16 grey canvas: 100 classes of real pixels without a download.

    Each digit stands at its own random height. Training and test numbers are built from disjoint digit images, the same
    on every machine.

    Args:
        seed: what pairs and heights are drawn from.
        train, test: images a class.
    """
    arrays = {}
    for split, count in (("train", train), ("test", test)):
        images, labels = _split_digits()[split]
        pools = [np.flatnonzero(labels == number) for number in range(10)]
        numbers = np.repeat(np.arange(100), count)
        # four draws an image: which left digit, which right one, their heights
        draws = chance.uniform((seed, "digits100", split), torch.arange(len(numbers)), 4).double().numpy()
        canvas = np.zeros((len(numbers), 2 * SIDE, 2 * SIDE), dtype=np.uint8)
        for i, number in enumerate(numbers.tolist()):
            for side, digit in enumerate((number // 10, number % 10)):
                chosen = pools[digit][int(draws[i, side] * len(pools[digit]))]
                top = int(draws[i, 2 + side] * (SIDE + 1))
                canvas[i, top : top + SIDE, side * SIDE : (side + 1) * SIDE] = images[chosen]
        arrays[split] = (canvas, numbers)
    names = [f"{number:02d}" for number in range(100)]
    return ArraySource(*arrays["train"], *arrays["test"], class_names=names, name="digits100")
