"""Every write and every rename fails once; the run goes on to the same end, in this process and in a new one."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch

from dne_lab.core.errors import LabError
from dne_lab.core.files import WriteError
from dne_lab.training.run import Run
from dne_lab.training.step import Optimisation


class Failing:
    """Counts calls of a function of ``os`` or ``Path``, and lets the ``number``-th fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.calls, self.number = 0, 0
        original = getattr(owner, name)

        def call(*args: Any) -> Any:
            self.calls += 1
            if self.calls == self.number:
                raise OSError(errno.ENOSPC, "No space left on device")
            return original(*args)

        monkeypatch.setattr(owner, name, call)


def run(folder: Path) -> Run:
    torch.set_num_threads(1)
    settings = tiny.settings(**{"learn.epochs": 1, "tune.epochs": 1})
    # A checkpoint at every step would only repeat the same writes; task ends have all kinds of files.
    return Run(settings, tiny.stream(), folder, device="cpu", progress=False)


@pytest.mark.parametrize("where", ["write", "rename"])
def test_each_write_fails_in_turn(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = Failing(monkeypatch, *((os, "fsync") if where == "write" else (Path, "replace")))
    run(tmp_path / "whole").train()
    expected, writes = tiny.content(tmp_path / "whole"), failing.calls
    assert writes == 2 + 3 * 5  # config, images; at each task's end its state, checkpoint, predictions, curves, record
    for number in range(1, writes + 1):
        folder = tmp_path / str(number)
        failing.calls, failing.number = 0, number
        failed = run(folder)
        with pytest.raises(WriteError, match="No space left"):
            failed.train()
        failing.number = 0
        assert not list(folder.glob(".*"))  # no temporary file
        if number % 2:
            failed = run(folder)
        failed.train()
        assert tiny.content(folder) == expected, number


def test_every_write_fails_one_after_the_other_in_one_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "whole").train()
    failing = Failing(monkeypatch, os, "fsync")
    failures = 0
    part = run(tmp_path / "run")
    while not part.finished:
        failing.calls, failing.number = 0, 1 + failures % 3
        try:
            part.train()
        except WriteError:
            failures += 1
        if failures % 2:
            part = run(tmp_path / "run")
    failing.number = 0
    part.train()
    assert failures >= 5 and tiny.content(tmp_path / "run") == tiny.content(tmp_path / "whole")


def test_an_unwritable_folder_is_said_before_training(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(LabError, match="runs"):
        run(tmp_path / "runs" / "run").train()


def test_weights_that_overflow_in_the_last_step_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of that step is finite, and no later one is left to show the damage."""
    settings = tiny.settings(**{"tune.epochs": 1, "tune.batch": 100})
    original = Optimisation.step

    def step(self: Optimisation, rate: float) -> None:
        original(self, rate)
        if self.recipe == settings.tune:
            with torch.no_grad():
                next(iter(self.parameters.values())).fill_(float("nan"))

    monkeypatch.setattr(Optimisation, "step", step)
    spoiled = Run(settings, tiny.stream(), device="cpu", progress=False)
    with pytest.raises(LabError, match="weights hold NaN or Inf at task 2, stage tune"):
        spoiled.train()
    assert spoiled.state.half_changed and not spoiled.finished


def test_features_that_overflow_behind_the_last_step_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and losses are finite; the features, which exemplars are chosen by, are not."""
    original = tiny.Tiny.features

    def features(self: tiny.Tiny, images: torch.Tensor) -> torch.Tensor:
        found = original(self, images)
        return found if self.training else found * float("inf")

    monkeypatch.setattr(tiny.Tiny, "features", features)
    spoiled = Run(tiny.settings(), tiny.stream(), device="cpu", progress=False)
    with pytest.raises(LabError, match=r"features of class .* hold NaN or Inf after task 1 .* Lower the learning rate"):
        spoiled.train()
