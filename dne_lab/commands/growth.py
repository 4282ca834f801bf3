"""What a network that grows by an expert per task costs as tasks go on: measured as far as one waits, then by formula.

``python -m dne_lab.commands.growth > figures/records/timing/growth.json``
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from dne_lab.commands import bench
from dne_lab.core.config import Config
from dne_lab.measure import cost_formula
from dne_lab.measure.cost import shape_of
from dne_lab.methods import base
from dne_lab.models.variants import DNE, IA, STA, Variant

PRESET = "cifar100-b50-2"
VARIANTS = {"ia": IA, "sta": STA, "dne": DNE}
MEASURED = (1, 2, 6, 11, 26, 50)
BY_FORMULA = (*MEASURED, 100, 200, 500, 1000, 2000, 5000, 10_000)
FIRST, STEP = 50, 2  # classes
FLOAT = 4  # bytes
# Memory in bytes that the finished network alone fills at some task, by name
MEMORIES = {"a laptop's 16 GB": 16 * 10**9, "one H200's 141 GB": 141 * 10**9, "a server's 1 TB": 10**12}


def by_formula(config: Config, variant: Variant, tasks: int) -> dict[str, int]:
    """FLOPs of one image (literal, spent), parameters and bytes after ``tasks`` tasks, without a model."""
    network = config.network
    seen = cost_formula.pixels(network, shape_of(config.data))
    heads = [network.heads_of(number) for number in range(1, tasks + 1)]
    literal = cost_formula.total(network, variant, heads, (), seen.shape, seen.values)[-1]
    width, classes = network.head_width * sum(heads), FIRST + STEP * (tasks - 1)
    parameters = weights(config, variant, tasks)
    return {
        "flops_literal": literal + 2 * width * classes,
        "flops_spent": cost_formula.normal_flops(network, variant, heads, seen) + 2 * width * classes,
        "parameters": parameters,
        "bytes": FLOAT * parameters,
    }


def weights(config: Config, variant: Variant, tasks: int) -> int:
    """Parameters of the finished network after ``tasks`` tasks.

    All later experts have as many heads, and each one by the same number of parameters more than the one before.
    """
    network = config.network
    seen = cost_formula.pixels(network, shape_of(config.data))
    heads = [network.heads_of(number) for number in (1, 2, 3)]
    first, second, third = (cost_formula.parameters(network, variant, heads[:number], seen) for number in (1, 2, 3))
    later = tasks - 1
    experts = first + later * second + (third - second) * later * (later - 1) // 2
    width = network.head_width * (heads[0] + later * heads[1])
    return experts + (FIRST + STEP * later) * (width + 1)


def last_that_fits(config: Config, variant: Variant, memory: int) -> int:
    """The last task whose finished network takes no more than ``memory`` bytes."""
    low, high = 1, 2
    while FLOAT * weights(config, variant, high) <= memory:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if FLOAT * weights(config, variant, middle) <= memory else (low, middle)
    return low


def seconds(config: Config, tasks: int, batch: int, rounds: int) -> dict[str, float]:
    """CPU seconds of a training step and of a prediction, a batch each: the median of some rounds after one.

    The step is that of a run, with its products; the prediction is a model's used by hand, so by MKL.
    """
    with bench.training(config, tasks, batch, "cpu", teacher=False) as (method, _, step):
        learning = _median(lambda: step(method.model), rounds)
    method.eval().requires_grad_(False)
    images, _ = bench.images_of(method, batch, "cpu")
    with torch.no_grad():
        return {"step": learning, "prediction": _median(lambda: method.compute(images), rounds)}


def _median(action: Callable[[], object], rounds: int) -> float:
    action()
    found = []
    for _ in range(rounds):
        start = time.process_time()
        action()
        found.append(time.process_time() - start)
    return statistics.median(found)


def run(measured: Sequence[int], counted: Sequence[int], batch: int, rounds: int) -> dict[str, Any]:
    """The record: for each variant a row per number of tasks, for DNE with seconds; the last task that fits."""
    last = max(*measured, 2)
    config = base.configure("dne", PRESET, {"data.tasks": [FIRST, *[STEP] * (last - 1)]})
    times = {tasks: seconds(config, tasks, batch, rounds) for tasks in measured}
    rows = {
        name: [
            {"tasks": tasks, **by_formula(config, variant, tasks)}
            | ({"seconds": times[tasks]} if name == "dne" and tasks in times else {})
            for tasks in counted
        ]
        for name, variant in VARIANTS.items()
    }
    fits = {
        name: {memory: last_that_fits(config, variant, size) for memory, size in MEMORIES.items()}
        for name, variant in VARIANTS.items()
    }
    return {
        "what": "Cost after so many tasks; seconds are CPU time of one thread.",
        "preset": PRESET,
        "heads": list(config.network.heads),
        "batch": batch,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
        "last_that_fits": fits,
    }


def main() -> None:
    """Prints the record as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--measured", type=int, nargs="+", default=MEASURED, help="Tasks at which DNE is timed.")
    parser.add_argument("--counted", type=int, nargs="+", default=BY_FORMULA, help="Tasks that are counted.")
    parser.add_argument("--batch", type=int, default=16, help="Images per step.")
    parser.add_argument("--rounds", type=int, default=3, help="Steps whose median is taken.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps(run(given.measured, given.counted, given.batch, given.rounds), indent=1))


if __name__ == "__main__":
    main()
