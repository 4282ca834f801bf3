"""Chance as a function: every random draw depends on a key alone, never on what was drawn before.

A key is a tuple such as ``(seed, "order", task, stage, epoch)``. A checkpoint therefore needs no random state, a
resumed run draws what an uninterrupted one draws, and two processes draw for their images what one draws for all.
"""

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

Key = tuple[int | str, ...]

_active: list[tuple[Key, Tensor]] = []  # the batch being trained on: its key and its image numbers


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
        count: numbers an image.

    Returns:
        (B, count) float32 in [0, 1) on the device of ``index``, the same on every device.
    """
    columns = torch.arange(count, device=index.device, dtype=torch.int64)
    row = _mix(index.to(torch.int64) ^ integer(*key))
    bits = _mix(row[:, None] + columns * 2654435769)
    return ((bits >> 40) & ((1 << 24) - 1)).to(torch.float32) / (1 << 24)


@contextlib.contextmanager
def batch(key: Key, index: Tensor) -> Iterator[None]:
    """Names the batch that is being trained on, so that layers can draw one number an image (`for_batch`)."""
    _active.append((key, index))
    try:
        yield
    finally:
        _active.pop()


def for_batch(name: str, like: Tensor, size: int) -> Tensor:
    """One uniform number an image for the layer called ``name``: (size,) float32 on the device of ``like``.

    Outside `batch` (a model used by hand) the numbers come from torch's own generator.
    """
    if _active:
        key, index = _active[-1]
        if len(index) == size:
            return uniform((*key, name), index, 1)[:, 0].to(like.device)
    return torch.rand(size, device=like.device)
