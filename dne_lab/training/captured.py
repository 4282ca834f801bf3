"""A whole training step as a CUDA graph: images, augmentation, losses, gradients and update in one launch.

A step of these networks is hundreds to thousands of small kernels, and starting them takes a GPU's host longer than the
GPU computes. A graph starts them together. It reads and writes the same memory every time, so that what changes from
step to step is copied there before: the places of the batch's images, the learning rate, and once per epoch what was
drawn.
"""

import warnings
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from dne_lab.core import chance
from dne_lab.data.stream import Batch, Task
from dne_lab.methods.base import Stage
from dne_lab.methods.expansion import Expansion
from dne_lab.models import products
from dne_lab.training.distributed import Processes
from dne_lab.training.feed import Feed
from dne_lab.training.state import RunState
from dne_lab.training.step import stacked

Record = Callable[[Callable[[], None]], Callable[[], None]]  # a function to what repeats it
STEPS_BEFORE_CAPTURE = 3  # steps before one is captured: caches, the optimiser's state and its kernels are there then


class Captured:
    """The steps of one stage with whole batches, captured after a few that run as always.

    A partial batch, and a batch while a hook or probe listens to the network, is not taken: nothing in Python runs
    within a replay, so that a hook would never be called.

    Args:
        state: the run's, with the optimisation of the stage.
        task, stage, feed: what is learned; the images are resident.
        record: makes a function that repeats another one; default: a CUDA graph.
    """

    def __init__(self, state: RunState, task: Task, stage: Stage, feed: Feed, record: Record | None = None) -> None:
        assert state.optimisation is not None
        self.state, self.task, self.stage, self.feed = state, task, stage, feed
        self.optimisation, self.record = state.optimisation, record or graph
        device = feed.device
        self._places = torch.zeros(stage.recipe.batch, dtype=torch.int64, device=device)
        self._rate = torch.zeros((), device=device)
        self._depth: dict[str, Tensor] = {}  # stochastic depth: numbers of all images in this epoch, by layer
        self._of: chance.Images | None = None  # the epoch that they were drawn in
        self._key: chance.Key = ()
        self._losses: dict[str, Tensor] = {}
        self._replay: Callable[[], None] | None = None
        self._steps = 0
        network = getattr(state.model, "blocks", state.method)
        self._listened: list[nn.Module] = [state.method, *([state.model] if state.model is not state.method else [])]
        self._listened += list(network.modules())
        self._warned = False
        if device.type == "cuda":
            for group in self.optimisation.optimizer.param_groups:
                group["capturable"] = True

    @classmethod
    def of(cls, state: RunState, task: Task, stage: Stage, feed: Feed) -> Self | None:
        """The captured steps of a stage; None with a warning where there cannot be any."""
        reasons = {
            "the device is no GPU": state.device.type != "cuda",
            "several processes share a batch": Processes().world > 1,
            f"{state.config.method} is not of the transformers that grow": not isinstance(state.method, Expansion),
            "the images of a stage do not fit on the GPU": not feed.resident,
            "bf16 by autocast casts weights anew in every step": state.multiplies_by == products.BF16,
        }
        for reason, holds in reasons.items():
            if holds:
                warnings.warn(f"steps are not captured: {reason}.", stacklevel=2)
                return None
        return cls(state, task, stage, feed)

    def takes(self, order: Tensor) -> bool:
        """Whether this batch is a captured one."""
        if len(order) != len(self._places):
            return False
        if any(module._forward_hooks or module._forward_pre_hooks for module in self._listened):
            if not self._warned:
                warnings.warn(
                    "a probe or hook listens to the network: captured steps do not call it, so they run one "
                    "operation at a time as long as it is there.",
                    stacklevel=2,
                )
            self._warned = True
            return False
        return True

    def step(self, order: Tensor, rate: float, where: tuple[int, str, int]) -> dict[str, Tensor]:
        """Learns from the images ``order`` (B,); ``where``: task, stage and epoch, for what is drawn.

        Returns:
            The losses by name, copied: the next step writes over them.
        """
        self._begin_epoch(("depth", *where))
        self._places.copy_(self.feed.places(order))
        self._rate.fill_(rate)
        if self._steps < STEPS_BEFORE_CAPTURE:
            self._aside(self._learn)
        else:
            if self._replay is None:
                self._replay = self.record(self._learn)
            self._replay()
        self._steps += 1
        return {name: value.clone() for name, value in self._losses.items()}

    def _begin_epoch(self, key: chance.Key) -> None:
        if self.feed.ahead is self._of:
            return
        self._of, self._key = self.feed.ahead, (self.state.config.seed, *key)
        for name, held in self._depth.items():
            held.copy_(self._drawn(name))

    def _drawn(self, name: str) -> Tensor:
        assert self._of is not None
        return self._of.drawn((*self._key, name), 1, self.feed.device)[:, 0]

    def _numbers(self, name: str) -> Tensor:
        """Of a layer for this batch, (B,)."""
        if name not in self._depth:
            self._depth[name] = self._drawn(name).clone()
        return self._depth[name][self._places]

    def _aside(self, action: Callable[[], None]) -> None:
        """On a GPU in another stream than the default one, as capturing asks of what goes before it."""
        if self.feed.device.type != "cuda":
            action()
            return
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            action()
        here.wait_stream(aside)

    def _learn(self) -> None:
        """The step itself: operations on the device alone, on the same memory every time."""
        batch: Batch = self.feed.at(self._places)
        with chance.batch((), batch.index, self._numbers):
            losses = self.state.method.losses(batch, self.task, self.stage)
        values = stacked(losses)
        if not self._losses:
            self._losses = {name: value.clone() for name, value in zip(losses, values, strict=True)}
        for held, value in zip(self._losses.values(), values, strict=True):
            held.copy_(value)
        torch.stack(list(losses.values())).sum().backward()
        self.optimisation.step(self._rate)


def graph(action: Callable[[], None]) -> Callable[[], None]:
    """Captures what ``action`` does on the GPU, without doing it; gives what replays it."""
    torch.cuda.synchronize()
    made = torch.cuda.CUDAGraph()
    with torch.cuda.graph(made):
        action()
    return made.replay
