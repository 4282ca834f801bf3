"""Several processes that compute what one computes: each takes its share of every batch (`torchrun`, gloo or NCCL).

Order, augmentation and stochastic depth depend on keys and image numbers, so the shares of a batch are the batch. The
exemplar memory is one, whatever the number of processes.

Run folders are the first process's: it alone looks into them, decides and writes, and gives the others what it has
found. So all processes make, open and train the same runs in the same order, and say the same.
"""

import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dne_lab.core.errors import LabError, SaidElsewhere

T = TypeVar("T")
# How long one waits for another that neither answers nor has ended (its machine is gone). The first process may write a
# checkpoint meanwhile, and each reads all images once.
PATIENCE = timedelta(minutes=10)


class Lost(LabError):
    """Another process of the run has ended, or does not answer."""


@contextmanager
def _answered() -> Iterator[None]:
    """A `Lost` where the others cannot be reached; a process that ends closes its connections, so at once."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise Lost(
            "another process of this run has ended or does not answer, so this one ends too. What had been written is "
            f"kept: start all of them again with the same command, it goes on from the last checkpoint. ({why[:200]})"
        ) from error


def start() -> torch.device | None:
    """Joins the processes that ``torchrun`` started, if any; returns the device of this one (None: free choice).

    Raises:
        Lost: they cannot be reached.
        LabError: ``accelerate launch --cpu --num_processes 2`` has started one process: it names where the others would
            meet, and leaves it to MPI to start them.
    """
    for_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() == "true"
    if for_cpu and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ:  # asked for several, not for one
        raise LabError(
            "accelerate launch --cpu starts one process, however many it is asked for. Use torchrun --nproc-per-node 2 "
            "-m dne_lab run ..., which trains each run in two processes; for two runs at a time --jobs 2."
        )
    if int(os.environ.get("WORLD_SIZE", "1")) <= 1 or not dist.is_available():
        return None
    local = int(os.environ.get("LOCAL_RANK", "0"))
    # one for each process here, or for none of them: they could not add their gradients otherwise
    on_gpu = torch.cuda.is_available() and torch.cuda.device_count() >= int(
        os.environ.get("LOCAL_WORLD_SIZE", local + 1)
    )
    if not dist.is_initialized() and not _alone:
        with _answered():
            dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=PATIENCE)
        if dist.get_rank():
            warnings.simplefilter("ignore", UserWarning)  # the first process gives them
    if on_gpu:
        torch.cuda.set_device(local)
        return torch.device("cuda", local)
    return torch.device("cpu")


_alone = False  # the training is over, and this process goes on by itself


def leave() -> bool:
    """The end of what processes do together: True for the first, which goes on by itself; the others have no more to
    do."""
    global _alone
    first = Processes().first
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
    _alone = True
    return first


class Processes:
    """This process among ``world``; all operations are nothing where there is only one."""

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if together else (0, 1)

    @property
    def first(self) -> bool:
        """Whether this process looks into folders, writes files and says what there is to say."""
        return self.rank == 0

    def from_first(self, work: Callable[[], T]) -> T:
        """What ``work``, which the first process alone does, gives there; all processes must ask.

        Raises:
            LabError: what it raises there, in all processes.
        """
        if self.world == 1:
            return work()
        given: list[tuple[T | None, str | None]] = [(None, None)]
        failure: LabError | None = None
        if self.first:
            try:
                given = [(work(), None)]
            except LabError as error:
                failure, given = error, [(None, str(error))]
        with _answered():
            dist.broadcast_object_list(given, src=0, device=torch.device("cpu"))
        value, said = given[0]
        if said is not None:
            raise failure or SaidElsewhere(said)
        return value  # type: ignore[return-value]  # what work gave

    def gather(self, mine: T) -> list[T]:
        """What each process has, by rank; all of them must ask."""
        found = [mine] * self.world
        if self.world > 1:
            with _answered():
                dist.all_gather_object(found, mine)
        return found

    def each(self, work: Callable[[], None]) -> None:
        """Done by every process; where it fails in one, all of them end.

        Raises:
            LabError: the first that any of them raises, with the number of its process.
        """
        failure: LabError | None = None
        try:
            work()
        except LabError as error:
            if self.world == 1:
                raise
            failure = error
        for rank, said in enumerate(self.gather(None if failure is None else str(failure))):
            if said is not None:
                kind = LabError if self.first else SaidElsewhere
                raise kind(f"process {rank} of {self.world}: {said}" if rank else said) from failure

    def share(self, index: Tensor) -> tuple[Tensor, float]:
        """This process's part of a batch and its weight: the weighted sum over processes is the batch's mean.

        A process without an image takes the first with weight 0, so that all of them do the same operations.
        """
        if self.world == 1:
            return index, 1.0
        mine = index[self.rank :: self.world].contiguous()
        return (mine, len(mine) / len(index)) if len(mine) else (index[:1], 0.0)

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sums gradients over processes, in one message per data type."""
        if self.world == 1:
            return
        kinds: dict[torch.dtype, list[Tensor]] = {}
        for parameter in parameters:
            if parameter.grad is not None:
                kinds.setdefault(parameter.grad.dtype, []).append(parameter.grad)
        for gradients in kinds.values():
            flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
            with _answered():
                dist.all_reduce(flat)
            for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def add(self, values: Tensor) -> Tensor:
        """The sum of a tensor over processes."""
        if self.world > 1:
            with _answered():
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
        with _answered():
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
        with _answered():
            for tensor in [*module.parameters(), *module.buffers()]:
                dist.broadcast(tensor.data, src=0)

    def same_numbers(self, numbers: Tensor, device: torch.device) -> Tensor:
        """The first process's integers, on the CPU; the shape must be the same everywhere."""
        if self.world == 1:
            return numbers
        moved = numbers.to(device)
        with _answered():
            dist.broadcast(moved, src=0)
        return moved.cpu()
