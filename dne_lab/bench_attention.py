"""What it costs to sort attention into groups, against a forward pass that computes the same maps and drops them."""

import gc
import threading
from collections.abc import Callable
from typing import Any

import torch

from dne_lab import bench
from dne_lab.analysis.groups import attention_groups
from dne_lab.analysis.probe import probe
from dne_lab.methods import base
from dne_lab.training import machine


def measure(preset: str, task: int, images: int, batch: int, device: str) -> dict[str, Any]:
    """STA of ``preset`` at ``task`` on random images, both ways interleaved batch by batch.

    Returns:
        ratio (decomposition / plain explicit forward pass, summed over all batches), seconds of the decomposition,
        images, task, and ``peak_memory_mb`` of a decomposition beyond what the process held with the model loaded
        (None where the system does not tell).
    """
    method, _, _ = bench.grown(base.configure("sta", preset), task, device)
    method.eval().requires_grad_(False)
    pixels, _ = bench.images_of(method, batch, device)
    model = method.model

    def plain() -> None:
        with torch.no_grad(), probe(model, kind=["spatial", "joint"], keep=False):
            model(pixels)

    def sorted_into_groups() -> None:
        attention_groups(model, pixels, batch_size=batch, progress=False)

    peak = peak_beyond(sorted_into_groups)
    plain()
    times = [
        (bench.seconds(plain, device), bench.seconds(sorted_into_groups, device)) for _ in range(-(-images // batch))
    ]
    one, other = (sum(column) for column in zip(*times, strict=True))
    return {"ratio": other / one, "seconds": other, "images": len(times) * batch, "task": task, "peak_memory_mb": peak}


def peak_beyond(action: Callable[[], object]) -> float | None:
    """Most memory in MB that the process holds during ``action``, beyond what it held before; None where unknown."""
    gc.collect()
    before, done = machine.taken(), threading.Event()
    if before is None:
        return None
    most = [before.now]  # an action may end before the first look

    def watch() -> None:
        while not done.wait(0.002):
            taken = machine.taken()
            most[0] = max(most[0], taken.now if taken else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return (most[0] - before.now) / 2**20
