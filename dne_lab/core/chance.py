"""Chance as a function: every random draw depends on a key alone, never on what was drawn before.

A key is a tuple such as ``(seed, "order", task, stage, epoch)``. A checkpoint therefore needs no random state, a
resumed run draws what an uninterrupted one draws, and two processes draw for their images what one draws for all.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

Key = tuple[int | str, ...]

_ahead: list["Images"] = []  # the images of the epoch being trained on
Numbers = Callable[[str], Tensor]  # for the layer of a name one number per image of the batch
_active: list[tuple[Key, Tensor, Numbers | None]] = []  # the batch being trained on: its key, image numbers, `Numbers`


def integer(*key: int | str) -> int:
    """A number in [0, 2**63) that depends on the key alone, the same on every machine."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A fresh CPU generator that depends on the key alone."""
    return torch.Generator().manual_seed(integer(*key))


def permutation(count: int, *key: int | str) -> Tensor:
    """A random order of ``count`` things, shape (count,), int64."""
    return torch.randperm(count, generator=generator(*key))


@contextlib.contextmanager
def seeded(*key: int | str) -> Iterator[None]:
    """Inside, torch's own CPU generator depends on the key alone; outside, it is as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(integer(*key))
        yield


def _mix(x: Tensor) -> Tensor:
    """One splitmix64 round on int64 tensors (they wrap as unsigned ones do; ``>>`` needs its sign bits cleared)."""
    x = x + -7046029254386353131  # 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & ((1 << 34) - 1))) * -4658895280553007687  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & ((1 << 37) - 1))) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & ((1 << 33) - 1))


def uniform(key: Key, index: Tensor, count: int) -> Tensor:
    """Uniform numbers for images: row i depends on the key and ``index[i]`` alone, whatever the batch.

    Args:
        key: what the numbers are for.
        index: (B,) int64 image numbers, on any device.
        count: numbers per image.

    Returns:
        (B, count) float32 in [0, 1) on the device of ``index``, the same on every device.
    """
    for images in _ahead[-1:]:
        places = images.places(index)
        if places is not None:
            return images.drawn(key, count, index.device)[places]
    return _draw(key, index, count)


def _draw(key: Key, index: Tensor, count: int) -> Tensor:
    columns = torch.arange(count, device=index.device, dtype=torch.int64)
    row = _mix(index.to(torch.int64) ^ integer(*key))
    bits = _mix(row[:, None] + columns * 2654435769)
    return ((bits >> 40) & ((1 << 24) - 1)).to(torch.float32) / (1 << 24)


class Images:
    """Images of which `ahead` draws: their sorted numbers, and what was drawn for all of them."""

    def __init__(self, index: Tensor) -> None:
        self.numbers = index.cpu().unique()
        self._drawn: dict[tuple[Key, int, torch.device], Tensor] = {}
        self._last: tuple[Tensor, Tensor | None] | None = None  # one batch is asked for many times in a row

    def drawn(self, key: Key, count: int, device: torch.device) -> Tensor:
        """Numbers for all images, (n, count), on the device: drawn on the CPU, brought there once."""
        if (key, count, device) not in self._drawn:
            self._drawn[key, count, device] = upload(_draw(key, self.numbers, count), device)
        return self._drawn[key, count, device]

    def name(self, index: Tensor, places: Tensor) -> None:
        """Says where the images ``index`` (B,) of a batch stand among all, both on one device.

        For batches on a GPU, where looking for them would have to wait; the caller vouches for it.
        """
        self._last = index, places

    def places(self, index: Tensor) -> Tensor | None:
        """Where the images of a batch stand among all; None if one of them does not, or they are on a GPU unnamed."""
        if self._last is None or self._last[0] is not index:
            places = None
            if index.device == self.numbers.device and len(self.numbers):
                places = torch.searchsorted(self.numbers, index).clamp_max(len(self.numbers) - 1)
            known = places is not None and bool((self.numbers[places] == index).all())
            self._last = index, places if known else None
        return self._last[1]


@contextlib.contextmanager
def ahead(index: Tensor) -> Iterator[Images]:
    """Inside, numbers are drawn for all images ``index`` (n,) when the first batch of them asks: the same numbers by
    fewer operations, where keys do not hold the step."""
    _ahead.append(Images(index))
    try:
        yield _ahead[-1]
    finally:
        _ahead.pop()


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. What goes to a GPU is pinned first: copying it does not wait for the GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@contextlib.contextmanager
def batch(key: Key, index: Tensor, numbers: Numbers | None = None) -> Iterator[None]:
    """Names the batch that is being trained on, so that layers can draw one number per image (`for_batch`).

    ``numbers`` gives what was drawn before in place of drawing (a captured step draws nothing).
    """
    _active.append((key, index, numbers))
    try:
        yield
    finally:
        _active.pop()


def for_batch(name: str, like: Tensor, size: int) -> Tensor:
    """One uniform number per image for the layer called ``name``: (size,) float32 on the device of ``like``.

    Outside `batch` (a model used by hand) the numbers come from torch's own generator.
    """
    if _active:
        key, index, numbers = _active[-1]
        if len(index) == size and numbers is not None:
            return numbers(name)
        if len(index) == size:
            return uniform((*key, name), index, 1)[:, 0].to(like.device)
    return torch.rand(size, device=like.device)
