"""Optimisers: built from a recipe, carried over between stages, turned into named tensors and back; losses, read."""

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from dne_lab.core.config import Recipe
from dne_lab.core.errors import LabError
from dne_lab.methods.base import Method
from dne_lab.training.distributed import Processes
from dne_lab.training.position import Position


class Optimisation:
    """A recipe at work on named parameters."""

    def __init__(
        self,
        recipe: Recipe,
        parameters: dict[str, nn.Parameter],
        rates: dict[str, float],
        before: "Optimisation | None" = None,
    ) -> None:
        """
        Args:
            recipe: what is optimised how.
            parameters: what trains, by name.
            rates: what the recipe's learning rate is multiplied by, for those of them with a rate of their own.
            before: an optimisation whose state goes on, parameter by parameter (momentum, moments, step counts).
        """
        if not parameters and recipe.epochs:
            raise LabError("nothing to train: the method's `enter` leaves no parameter that requires a gradient.")
        # A group of parameters for each rate; one group where all learn at the recipe's.
        factors = sorted({rates.get(name, 1.0) for name in parameters}) or [1.0]
        names = [[name for name in parameters if rates.get(name, 1.0) == factor] for factor in factors]
        self.recipe, self.parameters = recipe, {name: parameters[name] for group in names for name in group}
        self.factors = factors
        values = [{"params": [parameters[name] for name in group]} for group in names]
        fused = all(p.device.type in ("cpu", "cuda") for p in parameters.values())  # one kernel for a whole group
        self.optimizer: Optimizer
        if recipe.optimizer == "adamw":
            self.optimizer = AdamW(values, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
        else:
            self.optimizer = SGD(
                values, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused
            )
        if before is not None:
            if before.recipe.optimizer != recipe.optimizer:
                raise LabError(f"a stage cannot go on with {before.recipe.optimizer} as {recipe.optimizer}.")
            for parameter in self.parameters.values():
                if parameter in before.optimizer.state:
                    self.optimizer.state[parameter] = before.optimizer.state[parameter]

    @classmethod
    def of(cls, method: Method, recipe: Recipe, before: "Optimisation | None" = None) -> Self:
        """That of what a method trains in the stage that it has entered."""
        return cls(recipe, method.parameters_to_train(), method.rates(), before)

    def step(self, rate: float | Tensor) -> None:
        """One update with this learning rate, a tensor () where the step is captured.

        Gradients are clamped element by element where the recipe says so.
        """
        if self.recipe.clip is not None:
            nn.utils.clip_grad_value_(self.parameters.values(), self.recipe.clip)
        for group, factor in zip(self.optimizer.param_groups, self.factors, strict=True):
            group["lr"] = rate if factor == 1 else rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Named tensors, e.g. "exp_avg:model.classifier.bias"."""
        named = {}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    named[f"{key}:{name}"] = value
        return named

    def load(self, named: dict[str, Tensor]) -> None:
        """Takes over what `state` gave."""
        states: dict[int, dict[str, Tensor]] = {}
        numbers = {name: number for number, name in enumerate(self.parameters)}
        for full, value in named.items():
            key, name = full.split(":", 1)
            parameter = self.parameters[name]
            if value.shape == parameter.shape:  # in memory as the parameter is: fused kernels need that
                value = torch.empty_like(parameter).copy_(value)
            states.setdefault(numbers[name], {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": states, "param_groups": groups})

    def finite(self) -> bool:
        """Whether all trained parameters are free of NaN and Inf."""
        with torch.no_grad():
            return all(bool(torch.isfinite(p).all()) for p in self.parameters.values())


# Reading losses: means for the curves, and the stop at NaN or Inf.

READ_EVERY = 16  # steps between looks at a GPU's losses: each look waits for it


class Reader:
    """Collects the losses of steps: on the CPU looked at before the weights change, on a GPU some steps later."""

    def __init__(self, processes: Processes) -> None:
        self.processes = processes
        self.latest: float | None = None  # the sum of the losses of the last step that was looked at
        self._waiting: list[tuple[str, list[str], Tensor, int]] = []

    @property
    def waiting(self) -> bool:
        """Whether there are losses that have not been looked at."""
        return bool(self._waiting)

    def add(self, losses: dict[str, Tensor], weight: float, images: int, place: str, position: Position) -> None:
        """One step's losses; ``weight`` is this process's share of the batch of ``images``, ``place`` the step."""
        self.add_values([*losses], stacked(losses) * weight, images, place, position)

    def add_values(self, names: list[str], values: Tensor, images: int, place: str, position: Position) -> None:
        """`add` of losses that are in one tensor."""
        self._waiting.append((place, names, values, images))
        if values.device.type == "cpu" or len(self._waiting) >= READ_EVERY:
            self.look(position)

    def look(self, position: Position) -> None:
        """Adds what is waiting to the running sums of ``position``.

        Raises:
            LabError: the first NaN or Inf, with its step and name.
        """
        waiting, self._waiting = self._waiting, []
        # one look for all of them: each would wait for the GPU
        read = self.processes.add(torch.cat([step[2] for step in waiting])).double().tolist() if waiting else []
        for place, names, _, images in waiting:
            numbers, read = dict(zip(names, read, strict=False)), read[len(names) :]
            for name, value in numbers.items():
                if not math.isfinite(value):
                    raise LabError(
                        f"the loss '{name}' is {value} in {place}. The last good checkpoint, if there is one, is "
                        "untouched. Lower the learning rate (learn.lr) or set learn.clip, in another folder (--out), "
                        "or look at that step's images."
                    )
            for name, value in numbers.items():
                position.sums[name] = position.sums.get(name, 0.0) + value * images
            position.images += images
            self.latest = sum(numbers.values())

    def means(self, position: Position) -> dict[str, float]:
        """The epoch's mean of each loss; the sums start again."""
        self.look(position)
        means = {name: total / position.images for name, total in position.sums.items()}
        position.sums, position.images = {}, 0
        return means


def stacked(losses: dict[str, Tensor]) -> Tensor:
    """Losses in one tensor, without their graph."""
    return torch.stack([loss.detach().float() for loss in losses.values()])


# What is said when a step does not fit into memory.

TOO_LARGE = (
    "out of memory at {}. Nothing that had been written is lost: the run goes on from its last checkpoint. Give it "
    "more memory (another --device, fewer --jobs), or begin it in another folder with a smaller learn.batch."
)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device, or this machine, has no memory left."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return any(words in str(error) for words in ("can't allocate memory", "not enough memory", "out of memory"))
