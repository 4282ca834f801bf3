"""How fast it is: the normal path against the literal path with its copied teacher, interleaved pairs in one process.

A benchmark, not a test: ratios are the median over pairs, so that a noisy machine disturbs both sides alike.
"""

import copy
import gc
import itertools
import platform
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.probe import probe
from dne_lab.core import chance
from dne_lab.core.config import Config
from dne_lab.data.source import ArraySource
from dne_lab.data.stream import ClassStream, Task
from dne_lab.measure.cost import blank_stream, counted, shape_of
from dne_lab.methods import base
from dne_lab.methods.base import Stage, create
from dne_lab.methods.expansion import Expansion
from dne_lab.models import literal, products
from dne_lab.models.expandable import ExpandableViT
from dne_lab.training import parallel_runs
from dne_lab.training.feed import Feed, fetched

# How many times as fast as the authors' released code this was at each task: their step with their copied teacher and
# losses over ours. Their files are no part of this repository: figures/records/timing/authors_code.json says how.
AUTHORS_CODE = {
    "train_step": {"1": 1.08, "6": 4.86, "11": 5.95, "26": 6.64},
    "inference": {"1": 1.13, "6": 1.85, "11": 2.29, "26": 3.01},
}

# Parts of the names of operators and kernels that multiply matrices or attend.
PRODUCTS = ["aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "scaled_dot_product"]
PRODUCTS += ["gemm", "gemv", "cutlass", "nvjet", "flash", "fmha"]  # kernels of GPUs


class _Calls(TorchDispatchMode):
    """Counts operator calls."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def grown(config: Config, task: int, device: str, teacher: bool = True) -> tuple[Expansion, ExpandableViT | None, Task]:
    """A method in ``task``'s first stage, a copy of its model before it (the literal path's ``teacher``), the task."""
    method = create(config, blank_stream(config.data.tasks, shape_of(config.data)))
    if not isinstance(method, Expansion):
        raise TypeError(f"bench measures the expansion methods; {config.method} has no literal path of its own")
    before, current = None, method.stream.task(1)
    for current in list(method.stream)[:task]:
        if teacher and current.number == task and task > 1:
            before = copy.deepcopy(method.model).eval().requires_grad_(False).to(device)
        with chance.seeded(0, "enter", current.number):
            method.enter(current, Stage("learn", config.learn))
    method.to(device).train()
    return method, before, current


def images_of(method: Expansion, batch: int, device: str) -> tuple[Tensor, Tensor]:
    """Random images of the method's size and labels of its classes."""
    generator = chance.generator("bench", batch)
    images = torch.randint(0, 256, (batch, *method.stream.shape), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, method.model.classifier.classes, (batch,), generator=generator)
    return images.to(device), labels.to(device)


def seconds(action: Callable[[], object], device: str) -> float:
    """How long an action takes, to its end on the device."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    start = time.perf_counter()
    action()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _pairs(slow: Callable[[], object], fast: Callable[[], object], device: str, pairs: int) -> tuple[float, float]:
    """The median of slow / fast over interleaved pairs after one round to warm up, and the median seconds of fast."""
    slow(), fast()
    times = [(seconds(slow, device), seconds(fast, device)) for _ in range(pairs)]
    return statistics.median(a / b for a, b in times), statistics.median(b for _, b in times)


def _products(device: str) -> str:
    return products.choose() if torch.device(device).type == "cpu" else products.MKL


Output = Callable[[Tensor], Any]  # what a training step computes from its images


@contextmanager
def training(
    config: Config, task: int, batch: int, device: str, teacher: bool = True
) -> Iterator[tuple[Expansion, ExpandableViT | None, Callable[[Output], None]]]:
    """A method at ``task``, its ``teacher`` if wanted, and a training step from a function that gives its output.

    It is the step of a run: the next images fetched and augmented as the recipe says, stochastic depth, forward,
    backward, optimiser; products on a CPU are computed as a run computes them (`products.choose`).
    """
    method, before, current = grown(config, task, device, teacher)
    place, by = torch.device(device), _products(device)
    data = random_images(method.stream.shape, max(1000, batch), method.model.classifier.classes)
    feed = Feed(data, torch.arange(max(1000, batch)), config.learn, place)
    orders = itertools.cycle(chance.permutation(max(1000, batch), "bench").split(batch)[: max(1000, batch) // batch])
    optimizer = torch.optim.AdamW(method.parameters_to_train().values(), lr=1e-6, fused=True)

    def step(output: Output) -> None:
        optimizer.zero_grad(set_to_none=True)
        with products.by(by):
            images, labels, index = feed.batch(next(orders))
            with chance.batch(("bench", "depth"), index):
                out = output(images)
            torch.stack(list(method.objective(out, labels, current).values())).sum().backward()
        optimizer.step()

    with feed.epoch(("bench", "augment")):
        yield method, before, step


def random_images(shape: tuple[int, ...], count: int, classes: int) -> ClassStream:
    """Random images in memory, as a stream of one task."""
    images = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=chance.generator("bench data"))
    labels = torch.arange(count) % classes
    return ClassStream(ArraySource(images, labels, images[:classes], labels[:classes]), (classes,))


def train_step(config: Config, task: int, batch: int, device: str, pairs: int) -> tuple[float, float]:
    """Ratio literal / normal of a training step with its data, and the normal path's seconds."""
    with training(config, task, batch, device) as (method, teacher, step):
        slow = lambda: step(lambda images: literal.forward(method.model, images, teacher))  # noqa: E731
        return _pairs(slow, lambda: step(method.model), device, pairs)


def bf16_step(config: Config, task: int, batch: int, device: str, pairs: int) -> float:
    """Ratio float32 / bf16 autocast of a training step on the normal path."""
    with training(config, task, batch, device) as (method, _, step):

        def output(images: Tensor) -> Any:
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                return method.model(images)

        return _pairs(lambda: step(method.model), lambda: step(output), device, pairs)[0]


def product_share(config: Config, task: int, batch: int, device: str) -> float:
    """Share of a training step's operator time that is in matrix products and attention kernels.

    On a GPU of the time that its kernels run: not of the step, in which it may wait for the next one to be started.
    """
    from torch.profiler import ProfilerActivity, profile

    cuda = device.startswith("cuda")
    with training(config, task, batch, device) as (method, _, step):
        step(method.model)
        with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as seen:
            step(method.model)
    times = {e.key: float(e.self_device_time_total if cuda else e.self_cpu_time_total) for e in seen.key_averages()}
    return sum(t for name, t in times.items() if any(word in name for word in PRODUCTS)) / sum(times.values())


def step_flops(config: Config, task: int, batch: int) -> int:
    """FLOPs of a training step on the normal path: forward, backward, every operation that multiplies matrices."""
    with training(config, task, batch, "cpu") as (method, _, step):
        step(method.model)  # what is prepared once is prepared here
        return counted(lambda: step(method.model))


def rate(dtype: torch.dtype, device: str) -> float:
    """FLOP/s that this machine reaches in one large square matrix product: the best of 7, after one to warm up.

    The limit for every program that multiplies matrices here; how many threads it used stands beside it.
    """
    side = 8192 if device.startswith("cuda") else 2048  # on a GPU smaller ones end sooner than they are started
    a, b = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    times = [seconds(lambda: a @ b, device) for _ in range(8)]
    return 2 * side**3 / min(times[1:])


def inference(config: Config, task: int, batch: int, device: str, pairs: int) -> tuple[float, float]:
    """Ratio literal / normal of a prediction, and the normal path's seconds a batch."""
    method, _, _ = grown(config, task, device)
    method.eval().requires_grad_(False)
    images, _ = images_of(method, batch, device)
    with torch.no_grad(), products.by(_products(device)):
        return _pairs(lambda: method.compute_literally(images), lambda: method.compute(images), device, pairs)


def calls(config: Config, task: int) -> int:
    """Operator calls of one prediction, once the frozen experts are prepared."""
    method, _, _ = grown(config, task, "cpu")
    method.eval().requires_grad_(False)
    images, _ = images_of(method, 1, "cpu")
    with torch.no_grad():
        method.compute(images)
        with _Calls() as counter:
            method.compute(images)
    return counter.count


def data_seconds(config: Config, batch: int, device: str) -> float:
    """Median seconds to fetch, move and augment one batch as the training loop does, from random images in memory."""
    data = random_images(shape_of(config.data), max(1000, batch), 10)
    order, place = chance.permutation(max(1000, batch), "bench")[:batch], torch.device(device)

    def fetch(step: int) -> object:
        return fetched(data, order, config.learn, ("bench", step), place)

    fetch(0)
    return statistics.median(seconds(lambda: fetch(step), device) for step in range(1, 12))  # noqa: B023


def peak_memory(device: str) -> float:
    """Peak memory so far in MB: of the GPU's allocator, or of the process."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(
    config: Config,
    steps: tuple[int, ...] = (6, 11, 26),
    batch: int = 64,
    pairs: int = 5,
    device: str = "cpu",
    bf16: bool = False,
    report: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """All measurements. Keys as in the command ``dne-lab bench --json``; times of the normal path under ``seconds``."""
    ratios: dict[str, float] = {}
    times: dict[str, float] = {}
    for task in steps:
        report(f"training step at task {task}")
        ratios[str(task)], times[f"train_step_{task}"] = train_step(config, task, batch, device, pairs)
    last = max(steps)
    report(f"inference at task {last}")
    ratio, times[f"inference_{last}"] = inference(config, last, batch, device, pairs)
    report("operator calls")
    counted = {str(task): calls(config, task) for task in (2, 6, 11, 26) if task <= len(config.data.tasks)}
    report("data")
    _, times["train_step_1"] = train_step(config, 1, batch, device, pairs)
    first = min(steps)
    report("where a step's time goes")
    shares = {str(task): product_share(config, task, batch, device) for task in sorted({1, first, last})}
    report("the limit of this machine")
    rates = {"float32": rate(torch.float32, device), **({"bfloat16": rate(torch.bfloat16, device)} if bf16 else {})}
    gains = {}
    if bf16:
        report("bf16")
        gains["bf16_step"] = {str(t): bf16_step(config, t, batch, device, pairs) for t in sorted({1, first, last})}
    return {
        "train_step": ratios,
        "inference": {str(last): ratio},
        "authors_code": AUTHORS_CODE,
        "calls_per_forward": counted,
        "images_per_second": batch / times[f"train_step_{first}"],
        "data_share": data_seconds(config, batch, device) / times["train_step_1"],  # the shortest step there is
        "product_share": shares,
        "step_flops": {str(task): step_flops(config, task, batch) for task in sorted({1, *steps})},
        "rates": rates,
        **gains,
        "peak_memory_mb": peak_memory(device),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu",
        "device_type": torch.device(device).type,
        "torch": torch.__version__,
        "preset": config.preset,
        "threads": torch.get_num_threads(),
        "products": _products(device),
        "batch": batch,
        "pairs": pairs,
        "seconds": times,
    }


def text(result: dict[str, Any]) -> str:
    """What `run` measured, for the terminal."""
    lines = [f"training step at task {t}: {r:.2f} times as fast as literal" for t, r in result["train_step"].items()]
    lines += [f"inference at task {t}: {r:.2f} times as fast" for t, r in result["inference"].items()]
    theirs = {kind: ", ".join(f"{r} at {t}" for t, r in AUTHORS_CODE[kind].items()) for kind in AUTHORS_CODE}
    lines.append(
        f"the authors' code, by the same measure: training step {theirs['train_step']}, inference {theirs['inference']}"
        " (measured once on their released files, one thread, the step without augmentation, batch 64, 32 at task 26)"
    )
    counted = ", ".join(f"{n} at T = {t}" for t, n in result["calls_per_forward"].items())
    lines.append(f"operator calls per forward: {counted}")
    lines.append(f"{result['images_per_second']:.1f} images/s, data {result['data_share']:.1%} of a step")
    shares = ", ".join(f"{share:.0%} at T = {t}" for t, share in result["product_share"].items())
    lines.append(f"matrix products and attention kernels in a training step: {shares}")
    for t, flops in result["step_flops"].items():
        least = flops / result["rates"]["float32"]
        lines.append(f"training step at task {t}: {flops / 1e9:.1f} GFLOP, {least:.3f} s at the measured rate")
    for t, r in result.get("bf16_step", {}).items():
        lines.append(f"training step at task {t} in bf16: {r:.2f} times as fast as in float32")
    if "attention_groups" in result:
        a = result["attention_groups"]
        memory = "" if a["peak_memory_mb"] is None else f", {a['peak_memory_mb']:.0f} MB beyond the model"
        lines.append(
            f"attention of {a['images']} images into groups (STA, task {a['task']}): {a['ratio']:.2f} times a plain "
            f"explicit forward pass{memory}"
        )
    lines.append(f"peak memory {result['peak_memory_mb']:.0f} MB")
    lines.append(f"{result['device']}, {result['threads']} threads, torch {result['torch']}")
    return "\n".join(lines)


# What it costs to sort attention into groups, against a forward pass that computes the same maps and drops them.


def measure_attention(preset: str, task: int, images: int, batch: int, device: str) -> dict[str, Any]:
    """STA of ``preset`` at ``task`` on random images, both ways interleaved batch by batch.

    Returns:
        ratio (decomposition / plain explicit forward pass, summed over all batches), seconds of the decomposition,
        images, task, and ``peak_memory_mb`` of a decomposition beyond what the process held with the model loaded
        (None where the system does not tell).
    """
    method, _, _ = grown(base.configure("sta", preset), task, device)
    method.eval().requires_grad_(False)
    pixels, _ = images_of(method, batch, device)
    model = method.model

    def plain() -> None:
        with torch.no_grad(), probe(model, kind=["spatial", "joint"], keep=False):
            model(pixels)

    def sorted_into_groups() -> None:
        attention_groups(model, pixels, batch_size=batch, progress=False)

    peak = peak_beyond(sorted_into_groups)
    plain()
    times = [(seconds(plain, device), seconds(sorted_into_groups, device)) for _ in range(-(-images // batch))]
    one, other = (sum(column) for column in zip(*times, strict=True))
    return {"ratio": other / one, "seconds": other, "images": len(times) * batch, "task": task, "peak_memory_mb": peak}


def peak_beyond(action: Callable[[], object]) -> float | None:
    """Most memory in MB that the process holds during ``action``, beyond what it held before; None where unknown."""
    gc.collect()
    before, done = parallel_runs.memory_of(), threading.Event()
    if before is None:
        return None
    most = [before.now]  # an action may end before the first look

    def watch() -> None:
        while not done.wait(0.002):
            taken = parallel_runs.memory_of()
            most[0] = max(most[0], taken.now if taken else 0)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return (most[0] - before.now) / 2**20
