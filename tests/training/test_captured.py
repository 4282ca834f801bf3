"""A captured step is the step that runs otherwise; on a CPU what is captured is repeated by calling it again."""

import functools
from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch

from dne_lab.training import captured as module
from dne_lab.training import run as run_module
from dne_lab.training.captured import STEPS_BEFORE_CAPTURE, Captured
from dne_lab.training.feed import Feed
from dne_lab.training.run import Run

SMALL: dict[str, Any] = {
    "learn": {"epochs": 3, "batch": 8, "augment": ["crop", "flip", "randaugment"], "lr": 2.0**-9, "warmup": 0},
    "tune": {"epochs": 2, "lr": 2.0**-6},
    "network": {"patch": 2, "depth": 2, "heads": [2, 1], "head_width": 4, "drop_path": 0.2},
}
SMALL["learn"]["schedule"] = "constant"  # a rate that is the same in float32, as a captured step has it


def learn(folder: Path, method: str = "dne", capture: bool = False, device: str = "cpu") -> Run:
    run = Run(tiny.settings(method, **SMALL), tiny.stream(), folder, device=device, progress=False, capture=capture)
    run.train()
    return run


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Captures on a CPU, by calling again; gives how often each stage's step was repeated."""
    repeated: list[int] = []

    def again(action: Any) -> Any:
        repeated.append(0)

        def replay() -> None:
            repeated[-1] += 1
            action()

        return replay

    monkeypatch.setattr(run_module, "Feed", functools.partial(Feed, resident=True))
    monkeypatch.setattr(Captured, "of", lambda *stage: Captured(*stage, record=again))
    return repeated


@pytest.mark.parametrize("method", ["dne", "sta"])
def test_captured_steps_learn_what_steps_learn(method: str, tmp_path: Path, recorded: list[int]) -> None:
    learn(tmp_path / "plain", method)
    assert not recorded
    learn(tmp_path / "captured", method, capture=True)
    assert tiny.content(tmp_path / "plain") == tiny.content(tmp_path / "captured")
    whole = 3 * (33 // 8) - STEPS_BEFORE_CAPTURE  # of task 1: 33 images, of which one in each epoch is a partial batch
    assert recorded[0] == whole


def test_a_captured_step_draws_and_copies_nothing_within(
    tmp_path: Path, recorded: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    fixed = SMALL | {"learn": SMALL["learn"] | {"augment": ["crop", "flip"]}}  # of one shape on a CPU too
    run = Run(tiny.settings("dne", **fixed), tiny.stream(), tmp_path, device="cpu", progress=False, capture=True)
    inside = module.Captured._learn

    def watched(self: Captured) -> None:
        if self._steps >= STEPS_BEFORE_CAPTURE:
            with monkeypatch.context() as patch:
                for name in ("_draw", "upload"):
                    patch.setattr(run_module.chance, name, lambda *_: pytest.fail("not within a graph"))
                patch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("a copy within a graph"))
                inside(self)
        else:
            inside(self)

    monkeypatch.setattr(module.Captured, "_learn", watched)
    run.next_task()
    run.next_task()
    assert sum(recorded) > 0


def test_a_hook_is_never_passed_by(tmp_path: Path, recorded: list[int]) -> None:
    run = Run(tiny.settings("dne", **SMALL), tiny.stream(), tmp_path, device="cpu", progress=False, capture=True)
    heard = []
    run.model.blocks[0].spatial.weights.register_forward_hook(lambda *_: heard.append(1))
    with pytest.warns(UserWarning, match="listens to the network"):
        run.next_task()
    assert not recorded and len(heard) > 3 * (33 // 8)


def test_why_nothing_is_captured(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="the device is no GPU"):
        learn(tmp_path / "asked", capture=True)
    learn(tmp_path / "plain")
    assert tiny.content(tmp_path / "asked") == tiny.content(tmp_path / "plain")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("method", ["ia", "sta", "dne"])
def test_a_cuda_graph_learns_what_steps_on_the_gpu_learn(method: str, tmp_path: Path) -> None:
    plain = learn(tmp_path / "plain", method, device="cuda")
    replayed = learn(tmp_path / "captured", method, capture=True, device="cuda")
    assert replayed.record.finished
    for one, other in zip(plain.model.parameters(), replayed.model.parameters(), strict=True):
        assert (one - other).abs().max() <= 1e-2 * one.abs().max() + 1e-4
