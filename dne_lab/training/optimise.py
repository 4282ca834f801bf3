"""Optimisers: built from a recipe, carried over between stages, turned into named tensors and back."""

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from dne_lab.config import Recipe
from dne_lab.errors import LabError


class Optimisation:
    """A recipe at work on named parameters."""

    def __init__(self, recipe: Recipe, parameters: dict[str, nn.Parameter], kept: "Optimisation | None" = None) -> None:
        """``kept``: an optimisation whose state goes on, parameter by parameter (momentum, moments, step counts)."""
        self.recipe, self.parameters = recipe, parameters
        if not parameters:
            raise LabError("nothing to train: the method's `enter` leaves no parameter that requires a gradient.")
        values = list(parameters.values())
        fused = all(p.device.type in ("cpu", "cuda") for p in values)  # one kernel for all parameters
        self.optimizer: Optimizer
        if recipe.optimizer == "adamw":
            self.optimizer = AdamW(values, lr=recipe.lr, weight_decay=recipe.weight_decay, fused=fused)
        else:
            self.optimizer = SGD(
                values, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, fused=fused
            )
        if kept is not None:
            if kept.recipe.optimizer != recipe.optimizer:
                raise LabError(f"a stage cannot go on with {kept.recipe.optimizer} as {recipe.optimizer}.")
            for parameter in values:
                if parameter in kept.optimizer.state:
                    self.optimizer.state[parameter] = kept.optimizer.state[parameter]

    def step(self, rate: float) -> None:
        """One update with this learning rate; gradients are clamped element by element where the recipe says so."""
        if self.recipe.clip is not None:
            nn.utils.clip_grad_value_(self.parameters.values(), self.recipe.clip)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
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
