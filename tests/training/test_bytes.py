"""Runs whose exemplar budget follows from a total of bytes."""

from pathlib import Path
from typing import Any

import pytest
import tiny_runs as tiny
import torch

from dne_lab.core.errors import LabError
from dne_lab.data.memory import ExemplarMemory
from dne_lab.measure import budget, cost
from dne_lab.training import grid
from dne_lab.training.run import Run
from dne_lab.training.sharing import identity

SMALL: dict[str, Any] = {
    "network.patch": 2, "network.depth": 2, "network.head_width": 4, "network.heads": "2,1", "learn.epochs": 1,
    "tune.epochs": 1,
}  # fmt: skip


def run(method: str, folder: Path | None = None, **changes: Any) -> Run:
    return Run(tiny.settings(method, **changes), tiny.stream(), folder, device="cpu", progress=False)


def test_a_run_at_a_given_total_has_the_exemplars_that_its_model_leaves(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    stream = tiny.stream()
    each = budget.image_bytes(stream.shape)
    parameters = {m: cost.final_parameters(tiny.settings(m, **SMALL), stream) for m in ("ia", "dne")}
    assert parameters["dne"] > parameters["ia"]
    total = 4 * parameters["dne"] + 30 * each + 5
    made = {m: run(m, tmp_path / m, **SMALL, **{"memory.bytes": total}) for m in ("ia", "dne")}
    assert made["dne"].memory.budget == 30
    assert made["ia"].memory.budget == (total - 4 * parameters["ia"]) // each > 30
    made["dne"].train(seconds=0)
    again = Run(tiny.settings("dne", **SMALL, **{"memory.bytes": total}), stream, tmp_path / "dne", device="cpu",
                progress=False)  # fmt: skip
    again.train()
    told = again.record
    assert told.memory["bytes"] == total and told.memory["budget"] == 30 and told.memory["stored"] <= 30
    sizes = budget.bytes_of(told)
    assert told.params["total"] == parameters["dne"] and (sizes is None or sum(sizes) <= total)
    assert Run.open(tmp_path / "dne", stream, device="cpu", progress=False).memory.budget == 30

    # Task 1 is not shared: it would have other exemplars.
    configs = [made[m].config for m in ("ia", "dne")]
    assert identity(configs[0], stream)["memory"] != identity(configs[1], stream)["memory"]
    plain = tiny.settings("dne", **SMALL)
    assert "bytes" not in plain.identity()["memory"]  # older hashes stay
    assert plain.with_changes({"memory.bytes": total}).sha256 == configs[1].sha256  # whatever budget stood there


@pytest.mark.parametrize(
    ("left", "said"), [(-1, "is smaller than the finished model of dne"), (3, "less than one exemplar per class")]
)
def test_a_total_that_is_too_small(left: int, said: str, tmp_path: Path) -> None:
    model = 4 * cost.final_parameters(tiny.settings("dne", **SMALL), tiny.stream())
    changes = SMALL | {"memory.bytes": model + left * 16 if left > 0 else model - 1}
    with pytest.raises(LabError, match=f"memory.bytes = .*{said}.* give at least {model + 7 * 16:,}"):
        run("dne", tmp_path / "run", **changes)
    plan = grid.plan(["dne"], tiny.settings("dne", **changes), [0], tmp_path)
    with pytest.raises(LabError, match=r"memory\.bytes"):
        grid.execute(plan, stream=tiny.stream(), device="cpu", progress=False)
    assert not list(tmp_path.rglob("config.json"))
    assert isinstance(run("tiny-joint", **changes).memory, ExemplarMemory)  # keeps no exemplars: nothing to divide
    with pytest.raises(LabError, match=r"memory\.bytes = 0"):
        tiny.settings(**{"memory.bytes": 0})
