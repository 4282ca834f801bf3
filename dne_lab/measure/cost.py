"""What a model costs, without training it: FLOPs of one image by counting the operations that run, and parameters."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dne_lab.config import Config
from dne_lab.data.stream import ClassStream, Task
from dne_lab.methods import base


def flops(function: Callable[[Tensor], object], shape: Sequence[int]) -> int:
    """FLOPs of one image, 2 x multiply-accumulate: the count for two images minus that for one.

    So products of weights alone, which do not grow with the batch, are not counted. Norms and activations count 0.

    Args:
        function: takes (B, C, H, W) uint8 images.
        shape: (C, H, W).
    """
    counts = []
    with torch.no_grad():
        function(torch.zeros((1, *shape), dtype=torch.uint8))  # products that are prepared once are prepared here
        for batch in (1, 2):
            with FlopCounterMode(display=False) as counter:
                function(torch.zeros((batch, *shape), dtype=torch.uint8))
            counts.append(counter.get_total_flops())
    return counts[1] - counts[0]


def count(module: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, or of those that train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable)


def of_task(method: base.Method) -> dict[str, Any]:
    """Cost of a method as it stands: literal and spent FLOPs of one image, parameters."""
    trainable = count(method, trainable=True)
    wanted = [p.requires_grad for p in method.parameters()]
    method.eval().requires_grad_(False)  # the counter trips over parameters that still want a gradient under no_grad
    try:
        shape = method.stream.shape
        literal, spent = flops(method.compute_literally, shape), flops(method.compute, shape)
    finally:
        for parameter, wants in zip(method.parameters(), wanted, strict=True):
            parameter.requires_grad_(wants)
    return {
        "flops_literal": literal,
        "flops_spent": spent,
        "macs_spent": spent // 2,
        "params_total": sum(count(part) for part in method.network_to_keep()),
        "params_trainable": trainable,
    }


def of_tasks(config: Config, stream: ClassStream) -> list[dict[str, Any]]:
    """Cost after every task of a stream, each model built without training.

    Returns:
        One dictionary a task: task, classes, flops_literal, flops_spent, macs_spent, params_total (of the model that is
        kept: without what only training needs), params_added, params_trainable (in the task's first stage).
    """
    method = base.create(config, stream)
    rows: list[dict[str, Any]] = []
    tasks: list[Task] = list(method.stream)
    for task in tasks:
        method.enter(task, method.stages(task)[0])
        row = of_task(method)
        before = rows[-1]["params_total"] if rows else 0
        rows.append(
            {"task": task.number, "classes": task.new.stop, **row, "params_added": row["params_total"] - before}
        )
    return rows
