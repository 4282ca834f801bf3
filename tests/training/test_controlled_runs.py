"""Runs of variants with controls: trained, resumed, named on a command line, and made by hand with a probe."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs as tiny
import torch
from torch import Tensor

from dne_lab.analysis.connections import with_most_read
from dne_lab.analysis.probe import probe
from dne_lab.core.errors import LabError
from dne_lab.measure.cost import blank_stream, of_tasks
from dne_lab.methods import base
from dne_lab.methods.expansion import Expansion
from dne_lab.models.attention import Axes
from dne_lab.models.variants import STA
from dne_lab.training import run_list, sharing
from dne_lab.training.run import Run

GRID = Path(__file__).parents[2] / "figures" / "records" / "cifar100-medium-controls" / "grid.json"
SMALL: dict[str, Any] = {
    "learn": {"epochs": 4, "batch": 8, "lr": 1e-2, "augment": []},
    "tune": {"epochs": 1, "batch": 8},
    "network": {"patch": 2, "depth": 2, "heads": [2, 1], "head_width": 4, "ratio": 2},
}
CLS_TOKEN = {"readout": "cls_token", "spatial": "mhsa"}


def run(
    folder: Path | None, method: str, network: dict[str, Any] | None = None, epochs: int = 4, **options: Any
) -> Run:
    tree = SMALL | {"network": SMALL["network"] | (network or {}), "options": options}
    tree |= {"learn": SMALL["learn"] | {"epochs": epochs}}
    return Run(tiny.settings(method, **tree), tiny.stream(), folder, device="cpu", progress=False)


def rows() -> list[tuple[str, dict[str, Any]]]:
    """Method and options of every different row of the list of controls."""
    found = {json.dumps([one["method"], _options(one)]) for one in json.loads(GRID.read_text())}
    return [(method, options) for method, options in map(json.loads, sorted(found))]


def _options(entry: dict[str, Any]) -> dict[str, Any]:
    named = entry["settings"].items()
    return {name.removeprefix("options."): value for name, value in named if name.startswith("options.")}


def test_every_row_of_the_list_can_be_trained() -> None:
    for method, options in rows():
        made = run(None, method, epochs=2, **options)  # one before and one after what a row restricts
        made.train()
        assert made.finished and all(torch.isfinite(p).all() for p in made.method.parameters()), (method, options)
        assert made.record.config["options"] == options
        cost = of_tasks(made.config, made.stream)[-1]
        assert cost["params_total"] == made.record.params["total"], (method, options)


def test_the_list_of_controls_resolves(tmp_path: Path) -> None:
    listed = run_list.read(GRID, tmp_path)
    assert len(listed) >= 30 and {one.config.preset for one in listed} == {"cifar100-medium"}
    for one in listed:
        cls = base.find(one.config.method)
        assert issubclass(cls, Expansion) and cls.variant_of(one.config) is not None
        assert one.entry.core_hours and one.entry.purpose


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("dne", {"most": 1, "weights": "means", "query_rate": 8.0}),
        ("sta", {"pictures": "own"}),
        ("ia", {"entropy": 0.8}),
    ],
    ids=str,
)
def test_stopped_and_resumed_bit_for_bit(tmp_path: Path, method: str, options: dict[str, Any]) -> None:
    run(tmp_path / "whole", method, **options).train()
    for _ in range(200):
        part = run(tmp_path / "run", method, **options)
        if part.finished:
            break
        part.train(seconds=0.02)
    assert part.state.position.timing["resumed"] > 3
    assert tiny.content(tmp_path / "run") == tiny.content(tmp_path / "whole")
    again = run(tmp_path / "run", method, **options)
    images = again.stream.batch("test", again.stream.index("test", range(3))).images
    with torch.no_grad():
        assert torch.equal(again.model_at(3)(images).logits, part.model(images).logits)
        assert again.model_at(2)(images).logits.shape[1] == 5


def test_task_1_is_shared_by_all_rows(tmp_path: Path) -> None:
    first = run(None, "ia", epochs=2)
    first.next_task()
    for options in ({"weights": "uniform"}, {"pictures": "shuffled", "reads": "all", "mixes": "mlp"}):
        forked = first.fork(tmp_path / f"forked{len(options)}", method="dne", options=options)
        forked.train()
        alone = run(tmp_path / f"alone{len(options)}", "dne", epochs=2, **options)
        alone.train()
        expected, found = (
            tiny.content(tmp_path / f"alone{len(options)}"),
            tiny.content(tmp_path / f"forked{len(options)}"),
        )
        assert found["task_03.safetensors"] == expected["task_03.safetensors"]
    behind = first.config.with_changes({"method": "dne", "options": {"weights": "uniform"}})
    plain = first.config.with_changes({"method": "dne"})
    stream = first.whole_stream
    assert sharing.structure(behind, stream, 1) != sharing.structure(plain, stream, 1)


def test_sta_without_foreign_keys_reaches_the_accuracies_of_ia() -> None:
    ia, sta = run(None, "ia", CLS_TOKEN), run(None, "sta", CLS_TOKEN, masked="both")
    for one in (ia, sta):
        one.train()
    assert sta.record.accuracy == ia.record.accuracy
    theirs = ia.method.state_dict()
    for name, value in sta.method.state_dict().items():
        assert torch.allclose(value, theirs[name], atol=1e-4), name
    assert all(np.array_equal(sta.predictions[name], values) for name, values in ia.predictions.items())


class ByHand(Expansion):
    """Foreign keys masked by a probe in every step of both stages, and in every prediction."""

    name = "sta-by-hand"
    variant = STA
    steps: dict[str, int]

    def losses(self, batch: Any, task: Any, stage: Any) -> dict[str, Tensor]:
        self.steps = {**getattr(self, "steps", {}), stage.name: getattr(self, "steps", {}).get(stage.name, 0) + 1}
        with self.masked(task.number):
            return super().losses(batch, task, stage)

    def features(self, images: Tensor) -> Tensor:
        with self.masked(len(self.model.experts)):
            return super().features(images)

    def predict(self, images: Tensor) -> dict[str, Tensor]:
        with self.masked(len(self.model.experts)):
            return super().predict(images)

    def masked(self, task: int) -> Any:
        return probe(self.model, kind="joint" if task > 1 else "spatial", replace=own_keys, keep=False)


def own_keys(part: Tensor, axes: Axes) -> Tensor | None:
    if axes.kind != "joint":
        return None
    foreign = torch.tensor(axes.key_expert) != axes.query_expert[0]
    left = part.masked_fill(foreign[:, None], 0)  # (b, h, p, kh, kp), k = 1
    return left / left.sum((-1, -2), keepdim=True)


def test_by_hand_with_a_probe_in_both_stages() -> None:
    """Replacing probabilities in training is the column: stage 2 runs the network, not what was computed before."""
    column, hand = (
        run(None, name, CLS_TOKEN, **more) for name, more in (("sta", {"masked": "both"}), ("sta-by-hand", {}))
    )
    for one in (column, hand):
        one.train()
    assert hand.method.steps["tune"] > 0 and hand.record.accuracy == column.record.accuracy


def test_a_finished_run_that_reads_less() -> None:
    made = run(None, "dne")
    made.train()
    images = made.stream.batch("test", made.stream.index("test", range(7))).images
    edited = with_most_read(made.model, images, most=1)
    for expert in list(edited.experts)[1:]:
        for block in expert.blocks:
            assert all(len(tab.w_v) == 2 for tab in block.task_attention.values())
    with torch.no_grad():
        assert not torch.equal(edited(images).logits, made.model(images).logits)
        whole = with_most_read(made.model, images, most=9)
        assert torch.allclose(whole(images).logits, made.model(images).logits, atol=1e-5)
    assert sum(p.numel() for p in edited.parameters()) < sum(p.numel() for p in made.model.parameters())
    with pytest.raises(LabError, match="most = -1"):
        with_most_read(made.model, images, most=-1)


@pytest.mark.parametrize(
    ("method", "options", "named"),
    [
        ("dne", {"weights": "even"}, "options.weights"),
        ("ia", {"weights": "uniform"}, "options.weights"),
        ("sta", {"entropy": 2}, "options.entropy"),
        ("dne", {"wieghts": "uniform"}, "options.wieghts"),
        ("replay", {"weights": "uniform"}, "options.weights"),
    ],
)
def test_options_that_cannot_be(method: str, options: dict[str, Any], named: str) -> None:
    config = base.configure(method, "digits", {f"options.{name}": value for name, value in options.items()})
    with pytest.raises(LabError, match=named):
        base.create(config, blank_stream((4, 2), (1, 8, 8)))
