"""Exemplars: which training images of old classes are kept, and the promise about how many."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dne_lab.core.config import POLICIES
from dne_lab.core.errors import LabError, brief, reason, unknown
from dne_lab.data.stream import ClassStream

TIE = 1e-12  # scores closer than this are equal: rounding differs between machines and thread counts


def herd(features: Tensor, count: int) -> Tensor:
    """Orders images so that the mean of every prefix is near the class mean (iCaRL, algorithm 4).

    Greedy: the k-th image x minimises ``|mu - (phi(x) + sum of the k-1 chosen phi) / k|``, where phi are the features
    divided by their length and mu is their mean (which is *not* divided by its length again). In float64; of equally
    good images the one at the lowest position comes first.

    Args:
        features: (n, d), one class.
        count: how many to choose; with fewer images, all are chosen.

    Returns:
        (min(count, n),) int64 positions in ``features``, in herding order, on the CPU.

    Raises:
        ValueError: features that are not a finite (n, d) tensor.
    """
    if features.ndim != 2 or not bool(torch.isfinite(features).all()):
        raise ValueError(f"herding needs finite features of shape (n, d), not {tuple(features.shape)} with NaN or Inf")
    unit = features.detach().to("cpu", torch.float64)
    unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-300)
    toward_mean = unit @ unit.mean(dim=0)
    toward_chosen = torch.zeros(len(unit), dtype=torch.float64)
    half_square = unit.square().sum(dim=1) / 2  # 1/2, or 0 for a feature of length 0
    chosen: list[int] = []
    for k in range(1, min(count, len(unit)) + 1):
        # argmin |k mu - s - phi|^2 = argmax phi . (k mu - s) - |phi|^2 / 2, with s the sum of the chosen
        score = k * toward_mean - toward_chosen - half_square
        score[chosen] = -torch.inf
        chosen.append(int((score >= score.max() - TIE).nonzero()[0]))
        toward_chosen += unit @ unit[chosen[-1]]
    return torch.tensor(chosen, dtype=torch.int64)


class ExemplarMemory:
    """Stored training images by class rank, never more than ``budget`` in all.

    Args:
        budget: S, distinct stored training images.
        policy: "shared" (S // classes seen, shrinking; DyTox, DNE, PyCIL) or "fixed" (S // all classes; DER, FOSTER,
            PODNet).
        total_classes: of the whole stream.

    ``exemplars``: rank -> image numbers in the training split, in herding order.
    """

    def __init__(self, budget: int, policy: str, total_classes: int) -> None:
        if policy not in POLICIES:
            raise unknown("memory.policy", policy, POLICIES)
        if budget < 0:
            raise LabError(f"memory.budget = {budget}: must be at least 0.")
        self.budget, self.policy, self.total_classes = budget, policy, total_classes
        self.exemplars: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return sum(map(len, self.exemplars.values()))

    def quota(self, seen: int) -> int:
        """Exemplars per class once ``seen`` classes have been seen."""
        return self.budget // (max(seen, 1) if self.policy == "shared" else self.total_classes)

    def add(self, rank: int, numbers: Sequence[int] | Tensor) -> None:
        """Stores the exemplars of a class (image numbers in herding order), in place of those it had."""
        self.exemplars[int(rank)] = [int(number) for number in numbers]

    def reduce(self, seen: int) -> None:
        """Keeps of every class the prefix that the quota for ``seen`` classes allows."""
        quota = self.quota(seen)
        self.exemplars = {rank: numbers[:quota] for rank, numbers in self.exemplars.items()}

    def renumber(self, numbers: np.ndarray) -> int:
        """After images have moved to other numbers: ``numbers`` (n,) has the new one of each, -1 where it is gone.

        Returns:
            how many exemplars are gone.
        """
        before = len(self)
        moved = {rank: numbers[stored].tolist() if stored else [] for rank, stored in self.exemplars.items()}
        self.exemplars = {rank: [number for number in stored if number >= 0] for rank, stored in moved.items()}
        return before - len(self)

    def index(self, ranks: range, per_class: int | None = None) -> Tensor:
        """Image numbers of the exemplars of these ranks, class by class, ``per_class`` of each: int64 (n,)."""
        numbers = [number for rank in ranks for number in self.exemplars.get(rank, [])[:per_class]]
        return torch.tensor(numbers, dtype=torch.int64)

    def balanced(self, seen: int) -> Tensor:
        """Image numbers with exactly the same count from each class seen: the smallest class decides. int64 (n,)."""
        fewest = min((len(self.exemplars.get(rank, [])) for rank in range(seen)), default=0)
        return self.index(range(seen), fewest)

    def audit(self, stream: ClassStream, seen: int) -> dict[str, Any]:
        """What the record says about the memory, after checking the promise.

        Returns:
            ``budget``, ``policy``, ``stored`` (distinct images) and ``quota`` (a class).

        Raises:
            RuntimeError: more distinct images than the budget, an image stored twice, or an exemplar that is not a
                training image of its class or whose class has not been seen.
        """
        numbers = [number for stored in self.exemplars.values() for number in stored]
        distinct = set(numbers)
        if len(distinct) > self.budget:
            raise RuntimeError(f"memory holds {len(distinct)} distinct images, the budget is {self.budget}")
        if len(distinct) < len(numbers):
            raise RuntimeError(f"memory holds {len(numbers) - len(distinct)} images twice")
        for rank, stored in self.exemplars.items():
            if not 0 <= rank < seen:
                raise RuntimeError(f"memory holds class rank {rank}, but only {seen} classes have been seen")
            strangers = set(stored) - set(stream.index("train", range(rank, rank + 1)).tolist())
            if strangers:
                raise RuntimeError(f"exemplars {sorted(strangers)[:5]} are no training images of class rank {rank}")
        return {"budget": self.budget, "policy": self.policy, "stored": len(distinct), "quota": self.quota(seen)}

    def state(self) -> dict[str, Any]:
        """Everything as JSON-able data; `load` is the inverse."""
        exemplars = {str(rank): list(numbers) for rank, numbers in sorted(self.exemplars.items())}
        settings = {"budget": self.budget, "policy": self.policy, "total_classes": self.total_classes}
        return {**settings, "exemplars": exemplars}

    def load(self, state: dict[str, Any]) -> None:
        """Takes over the exemplars of `state`; a `LabError` when it is damaged or of a memory of other settings."""
        try:
            for name in ("budget", "policy", "total_classes"):
                if (other := state[name]) != getattr(self, name):
                    raise LabError(
                        f"the stored memory has {name} = {brief(other)}, this run has {getattr(self, name)}."
                    )
            self.exemplars = {int(rank): [int(n) for n in numbers] for rank, numbers in state["exemplars"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise LabError(f"the stored memory is damaged ({reason(error)}): bring back a copy of its file.") from error
