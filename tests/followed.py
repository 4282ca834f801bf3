"""What a program that follows runs was told, and stand-ins for those that are not installed where tests run."""

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def reader(folder: Path) -> Any:
    """tensorboard's own reader of all that was told in a run folder's ``track``."""
    from tensorboard.backend.event_processing import event_accumulator

    found = event_accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def told_to_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values by name, as tensorboard reads them back."""
    events = reader(folder)
    return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


class StandIn:
    """A module of the name ``wandb`` or ``trackio`` with the calls that are made of it, written down.

    Attributes:
        began: the arguments of each ``init``.
        logged: what was given, with the step (wandb's is among the values).
        ended: how many runs were finished.
    """

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.began: list[dict[str, Any]] = []
        self.logged: list[tuple[int | None, dict[str, Any]]] = []
        self.ended = 0
        module: Any = ModuleType(name)
        module.__spec__ = ModuleSpec(name, None, origin="stand-in")
        module.init, module.Image = self.init, lambda image: ("image", image.size)
        module.Settings = SimpleNamespace
        monkeypatch.setitem(sys.modules, name, module)

    def init(self, **settings: Any) -> "StandIn":
        """Begins a run."""
        self.began.append(settings)
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        """wandb: what is drawn over what."""
        assert (name, step_metric) == ("*", "epoch")

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        """Takes values."""
        self.logged.append((values.get("epoch", step), {k: v for k, v in values.items() if k != "epoch"}))

    def finish(self) -> None:
        """Ends the run."""
        self.ended += 1
