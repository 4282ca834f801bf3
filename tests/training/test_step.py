"""Optimisers against updates by hand: rates of their own, state carried over and read back."""

from typing import Any

import pytest
import torch
from torch import nn

from dne_lab.core.config import Recipe
from dne_lab.training.step import Optimisation

RATES = {"b": 8.0, "d": 0.5}


def parameters() -> dict[str, nn.Parameter]:
    numbers = torch.arange(24.0).view(4, 2, 3)
    return {name: nn.Parameter(numbers[place].clone()) for place, name in enumerate("abcd")}


def step(optimisation: Optimisation, rate: Any, seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    for name in "abcd":
        optimisation.parameters[name].grad = torch.randn((2, 3), generator=draws)
    optimisation.step(rate)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_rate_of_its_own_multiplies_what_a_parameter_moves(optimizer: str) -> None:
    recipe = Recipe(optimizer=optimizer, weight_decay=0.0)
    plain, own = (Optimisation(recipe, parameters(), rates) for rates in ({}, RATES))
    for made in (plain, own):
        step(made, 0.25, 1)
    for name, before in parameters().items():
        moved, wanted = own.parameters[name] - before, plain.parameters[name] - before
        torch.testing.assert_close(moved, RATES.get(name, 1.0) * wanted, rtol=0, atol=1e-5)


def test_a_rate_may_be_a_tensor() -> None:
    numbers, tensors = (Optimisation(Recipe(optimizer="sgd"), parameters(), RATES) for _ in range(2))
    step(numbers, 0.25, 1)
    step(tensors, torch.tensor(0.25), 1)
    assert all(torch.equal(numbers.parameters[name], tensors.parameters[name]) for name in "abcd")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_state_read_back_goes_on_bit_for_bit(optimizer: str) -> None:
    recipe = Recipe(optimizer=optimizer)
    through = Optimisation(recipe, parameters(), RATES)
    step(through, 0.1, 1)
    again = Optimisation(
        recipe, {name: nn.Parameter(p.detach().clone()) for name, p in through.parameters.items()}, RATES
    )
    again.load({name: value.clone() for name, value in through.state().items()})
    for made in (through, again):
        step(made, 0.1, 2)
    assert all(torch.equal(through.parameters[name], again.parameters[name]) for name in "abcd")


def test_moments_go_on_into_a_stage_in_which_rates_are_others() -> None:
    first = Optimisation(Recipe(), parameters(), RATES)
    step(first, 0.1, 1)
    moments = {name: value.clone() for name, value in first.state().items()}
    second = Optimisation(Recipe(), first.parameters, {}, first)
    assert all(torch.equal(second.state()[name], value) for name, value in moments.items())
