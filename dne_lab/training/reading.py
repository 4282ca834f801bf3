"""Reading losses: means for the curves, and the stop at NaN or Inf."""

import math

import torch
from torch import Tensor

from dne_lab.errors import LabError
from dne_lab.training.parallel import Processes
from dne_lab.training.state import State

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

    def add(self, losses: dict[str, Tensor], weight: float, images: int, place: str, state: State) -> None:
        """One step's losses; ``weight`` is this process's share of the batch of ``images``, ``place`` the step."""
        values = torch.stack([loss.detach().float() for loss in losses.values()]) * weight
        self._waiting.append((place, list(losses), values, images))
        if values.device.type == "cpu" or len(self._waiting) >= READ_EVERY:
            self.look(state)

    def look(self, state: State) -> None:
        """Adds what is waiting to the running sums of ``state``.

        Raises:
            LabError: the first NaN or Inf, with its step and name.
        """
        waiting, self._waiting = self._waiting, []
        for place, names, values, images in waiting:
            numbers = dict(zip(names, self.processes.add(values).double().tolist(), strict=True))
            for name, value in numbers.items():
                if not math.isfinite(value):
                    raise LabError(
                        f"the loss '{name}' is {value} in {place}. The last good checkpoint, if there is one, is "
                        "untouched. Lower the learning rate (learn.lr) or set learn.clip, in another folder (--out), "
                        "or look at that step's images."
                    )
            for name, value in numbers.items():
                state.sums[name] = state.sums.get(name, 0.0) + value * images
            state.images += images
            self.latest = sum(numbers.values())

    def means(self, state: State) -> dict[str, float]:
        """The epoch's mean of each loss; the sums start again."""
        self.look(state)
        means = {name: total / state.images for name, total in state.sums.items()}
        state.sums, state.images = {}, 0
        return means
