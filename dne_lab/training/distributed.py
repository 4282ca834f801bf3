"""Several processes that compute what one computes: each takes its share of every batch (`torchrun`, gloo or NCCL).

Order, augmentation and stochastic depth depend on keys and image numbers, so the shares of a batch are the batch. The
exemplar memory is one, whatever the number of processes.
"""

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dne_lab.core.errors import LabError


def start() -> torch.device | None:
    """Joins the processes that ``torchrun`` started, if any; returns the device of this one (None: free choice)."""
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or not dist.is_available():
        return None
    local = int(os.environ.get("LOCAL_RANK", "0"))
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() > local
    if not dist.is_initialized():
        dist.init_process_group("nccl" if on_gpu else "gloo")
    if on_gpu:
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device("cpu")


class Processes:
    """This process among ``world``; all operations are nothing where there is only one."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    @property
    def first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def share(self, index: Tensor) -> tuple[Tensor, float]:
        """This process's part of a batch and its weight: the weighted sum over processes is the batch's mean.

        A process without an image takes the first with weight 0, so that all of them do the same operations.
        """
        if self.world == 1:
            return index, 1.0
        mine = index[self.rank :: self.world]
        return (mine, len(mine) / len(index)) if len(mine) else (index[:1], 0.0)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over processes, in one message a data type."""
        if self.world == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                kinds.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in kinds.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def add(self, values: Tensor) -> Tensor:
        """The sum of a tensor over processes."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool, device: torch.device) -> list[bool]:
        """For each flag, whether it is up anywhere; all processes must ask."""
        if self.world == 1:
            return list(flags)
        return [value > 0 for value in self.add(torch.tensor(flags, dtype=torch.float32, device=device)).tolist()]

    def largest(self, number: int, device: torch.device) -> int:
        """The largest of the processes' numbers; all of them must ask."""
        if self.world == 1:
            return number
        found = torch.tensor([number], device=device)
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return int(found)

    def same(self, module: nn.Module) -> None:
        """Gives every process the first one's parameters and buffers.

        Raises:
            LabError: batch normalisation that trains: its statistics would be those of a share.
        """
        if self.world == 1:
            return
        batch_norms = (m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
        if any(p.requires_grad for norm in batch_norms for p in norm.parameters()):
            raise LabError("a network with batch normalisation trains in one process: start it without torchrun.")
        for tensor in [*module.parameters(), *module.buffers()]:
            dist.broadcast(tensor.data, src=0)

    def same_numbers(self, numbers: Tensor, device: torch.device) -> Tensor:
        """The first process's integers, on the CPU; the shape must be the same everywhere."""
        if self.world == 1:
            return numbers
        moved = numbers.to(device)
        dist.broadcast(moved, src=0)
        return moved.cpu()
