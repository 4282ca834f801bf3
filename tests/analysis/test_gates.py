"""The gates of a protocol on records made by hand: each value by hand, met or not, and what is missing."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from invented import attention_tables, record

from dne_lab.analysis.decomposition import Decomposition, lambdas
from dne_lab.analysis.gates import LIMITS, Gate, before_stage_2, gates, protocols, table
from dne_lab.core.errors import LabError
from dne_lab.measure.metrics import interval
from dne_lab.models.variants import DNE, IA

sys.path.insert(0, str(Path(__file__).parents[1] / "plots"))
sys.path.insert(0, str(Path(__file__).parent))
from test_ablation_study import invented as ablation
from test_contributions_read_outs import invented as probe


def runs(**last: tuple[float, ...]) -> list[Any]:
    """Records by method: LA of each seed."""
    return [record(method, seed, value) for method, values in last.items() for seed, value in enumerate(values)]


def attention(run: str, keys: float, method: str = "ia", scale: Any = ()) -> Decomposition:
    return Decomposition(
        run=run, method=method, preset="digits", dataset="digits", seed=0, epochs=1, tasks=[4, 2], heads=[2, 1],
        network={}, LA=60.0, finished=True, images=10, config_sha256="", code_version="", torch="",
        moments={"trained": {"labelling": "groups", "images": 10, **attention_tables(keys)}}, scale=list(scale),
    )  # fmt: skip


def everything(run: str, loss: float, how: str = "mean", kind: str = "task1 + task2", expert: int = 0) -> Any:
    base = ablation(how=how)
    row = base.groups[0] | {"kind": kind, "removed": "everything", "expert": expert, "loss": loss, "+-": 0.7}
    return dataclasses.replace(base, run=run, groups=[*base.groups, row])


def named(found: list[Gate]) -> dict[str, Gate]:
    assert [gate.name for gate in found] == [*LIMITS] == ["G1", "G2", "G3", "G4", "G5", "G6"]
    return {gate.name: gate for gate in found}


def test_every_value_by_hand() -> None:
    members = runs(joint=(52.0, 54.0, 56.0), replay=(44.0, 45.0, 46.0), ia=(46.0, 47.0, 48.0), dne=(45.0, 47.0, 52.0))
    ids = {(one.method, one.seed): one.id for one in members}
    probes = [probe(run=ids["dne", seed], accuracy=60.0) for seed in (0, 1)] + [probe(run="another")]
    looked = [attention(ids["ia", seed], keys) for seed, keys in enumerate((8.0, 9.6))]
    scale = [
        {"lambda / H low": 0.9, "lambda / H high": 1.2, "lambda / H": 1.0},
        {"lambda / H low": 0.95, "lambda / H high": 1.0},
    ]
    looked.append(attention(ids["dne", 0], 15.0, "dne", scale))
    cut = [everything(ids["dne", 0], 2.5), everything(ids["dne", 1], 3.5), everything(ids["dne", 0], 40.0, "zero")]
    found = named(gates(members, probes, looked, cut))
    assert (found["G1"].value, found["G1"].half) == pytest.approx(interval([52.0, 54.0, 56.0]))
    assert (found["G2"].value, found["G2"].half) == pytest.approx(interval([8.0, 9.0, 10.0]))
    assert (found["G3"].value, found["G3"].seeds, found["G3"].half) == (5.0, 2, 0.0)
    assert (found["G4"].value, found["G4"].half) == pytest.approx(interval([50.0, 60.0]))
    assert "8.8 of 16 keys" in found["G4"].of
    assert (found["G5"].value, found["G5"].half) == pytest.approx(interval([2.5, 3.5]))
    assert "lambda / H 0.90 to 1.20" in found["G5"].of and found["G5"].records == (ids["dne", 0], ids["dne", 1])
    spreads = [np.std(values, ddof=1) for values in ((44, 45, 46), (46, 47, 48), (45, 47, 52))]  # joint: no tasks
    assert found["G6"].value == pytest.approx(np.mean(np.square(spreads)) ** 0.5)
    assert f"largest {max(spreads):.2f}" in found["G6"].of
    assert [found[name].state for name in LIMITS] == ["met", "met", "met", "met", "met", "not met"]
    assert found["G1"].clear is False and found["G3"].clear is False  # 5.0 is the limit
    shown = table(found.values())
    assert shown["gate"].tolist() == [*LIMITS] and shown["state"].tolist()[-1] == "not met"
    assert shown["state"].tolist()[:1] == ["met, not clear"] and shown["+-"][0] > 54.0 - 50.0  # the limit is within


@pytest.mark.parametrize(
    ("loss", "keys", "joint", "states"),
    [(2.0, 9.61, 49.9, ("not met", "not met", "not met")), (2.1, 9.6, 50.0, ("met", "met", "met"))],
)
def test_limits(loss: float, keys: float, joint: float, states: tuple[str, ...]) -> None:
    members = runs(joint=(joint,), ia=(40.0,), dne=(41.0,))
    found = named(gates(members, [], [attention(members[1].id, keys)], [everything(members[2].id, loss)]))
    assert (found["G5"].state, found["G4"].state, found["G1"].state) == states
    assert found["G5"].half == 0.7 and found["G4"].half == pytest.approx(100 * 0.5 / 16) and found["G1"].half is None
    assert found["G5"].clear is False and found["G1"].clear is None
    assert Gate("G4", "", 50.0, 5.0, "met", 1, "").clear and not Gate("G4", "", 58.0, 5.0, "met", 1, "").clear


def test_what_is_missing_is_said() -> None:
    found = named(gates(runs(dne=(60.0,))))
    assert {gate.state for gate in found.values()} == {"no record"} and found["G1"].value is None
    assert "report RUN --probe" in found["G3"].of and "--attention" in found["G4"].of and "mean" in found["G5"].of
    one = runs(joint=(60.0,), replay=(50.0,), dne=(55.0,))
    other = [dataclasses.replace(r, seed=1) if r.method == "replay" else r for r in one]
    assert named(gates(one))["G2"].value == 10.0 and named(gates(other))["G2"].state == "no record"
    # a removal of one expert's attention, of another kind or masked is not what G5 asks for
    wrong = [everything(one[2].id, 9.0, expert=2), everything(one[2].id, 9.0, kind="spatial")]
    for cut in wrong:
        assert named(gates(one, ablations=[cut]))["G5"].state == "no record"
    assert named(gates(one, ablations=[everything(one[2].id, 9.0, "mask")]))["G5"].state == "no record"
    assert named(gates(one, ablations=[everything(one[2].id, 9.0, kind="task1")]))["G5"].value == 9.0
    early = dataclasses.replace(attention(one[2].id, 4.0), heads=[2])
    assert named(gates(runs(ia=(50.0,)), attention=[early]))["G4"].state == "no record"  # no later expert yet
    with pytest.raises(LabError, match="no run of several tasks"):
        gates(runs(joint=(60.0,)))


def test_one_head_a_later_expert_is_taken_first() -> None:
    wide = [dataclasses.replace(one, heads=[4, 2, 2, 2], network={"patch": 2, "heads": [4, 2]}, config_sha256="f" * 64)
            for one in runs(dne=(70.0, 71.0, 72.0))]  # fmt: skip
    even = [dataclasses.replace(one, heads=[1, 1, 1, 1], network={"patch": 2, "heads": [1, 1]}, config_sha256="e" * 64)
            for one in runs(dne=(20.0, 21.0))]  # fmt: skip
    members = [*wide, *even, *runs(dne=(60.0,))]
    found = named(gates(members, [probe(run=wide[0].id, accuracy=90.0), probe(run=members[-1].id, accuracy=60.0)]))
    assert found["G3"].records == (members[-1].id,)


def test_controls_are_no_method_of_the_protocol() -> None:
    """They have the method's name, its heads and more seeds than it, and a spread of their own."""
    plain = runs(dne=(80.0, 82.0))
    options = {"config": {"options": {"experts": "own"}}, "settings_sha256": "1" * 64}
    control = [record("dne", seed, last, **options) for seed, last in enumerate((20.0, 60.0, 90.0))]
    alone, beside = (gates(records)[-1] for records in (plain, [*plain, *control]))
    assert alone.value == pytest.approx(2**0.5) and beside == alone


def test_protocols_are_told_apart() -> None:
    steps = [record("dne", tasks=(5, 5), preset="digits-b50-5")]
    held = [dataclasses.replace(one, validation=0.2) for one in runs(ia=(50.0,))]
    found = protocols([*runs(joint=(60.0,), dne=(55.0,)), *steps, *held])
    assert {name: [one.method for one in members] for name, members in found.items()} == {
        "digits, 4 + 2 x 3": ["dne", "joint"], "digits-b50-5, 5 + 5": ["dne", "joint"],
    }  # fmt: skip
    with pytest.raises(LabError, match=r"several protocols \(digits, 4 \+ 2 x 3; digits-b50-5, 5 \+ 5\)"):
        gates([*runs(dne=(55.0,)), *steps])


def test_ones_own_images_are_no_preset_of_ours() -> None:
    one, other = ([dataclasses.replace(run, dataset="folder", images_sha256=digit * 64)
                   for run in runs(dne=(50.0,), joint=(60.0,))] for digit in "ab")  # fmt: skip
    found = protocols([*runs(dne=(55.0,)), *one, *other])
    assert {name: [run.images_sha256[:1] for run in members] for name, members in found.items()} == {
        "digits, 4 + 2 x 3": [""], "folder aaaaaaaa (digits), 4 + 2 x 3": ["a", "a"],
        "folder bbbbbbbb (digits), 4 + 2 x 3": ["b", "b"],
    }  # fmt: skip
    assert list(protocols([dataclasses.replace(one[0], preset="")])) == ["folder aaaaaaaa, 4 + 2 x 3"]  # from Python


def test_before_stage_2() -> None:
    early = [{"new": [80.0, 90.0], "old": [40.0, 20.0], "old_called_new": [30.0, 50.0]},
             {"new": [70.0, 80.0], "old": [50.0, 30.0], "old_called_new": [20.0, 40.0]}]  # fmt: skip
    members = [dataclasses.replace(one, before_tuning=early[one.seed]) for one in runs(dne=(60.0, 61.0))]
    found = before_stage_2([*members, *runs(ia=(50.0,))])
    assert found.to_numpy().tolist() == [["DNE (k = 1)", 2, 80.0, 35.0, 35.0]]
    assert before_stage_2(runs(ia=(50.0,))).empty


def test_lambda_beside_h() -> None:
    model = tiny.model(DNE, (3, 1, 2), depth=2, shake=0.0)
    with torch.no_grad():
        tiny.expert(model, 3).blocks[1].mix2.scale.copy_(torch.tensor([3.0, 7.5]))
    rows = lambdas(model)
    assert len(rows) == 2 * 2 * 2 and {row["expert"] for row in rows} == {2, 3}
    moved = rows[-1]
    assert (moved["kind"], moved["layer"], moved["expert"], moved["heads"]) == ("task2", 1, 3, 6)
    assert (moved["lambda / H"], moved["lambda / H low"], moved["lambda / H high"]) == (0.875, 0.5, 1.25)
    assert all(row["lambda / H"] == row["lambda / H low"] == 1.0 for row in rows[:-1])
    assert lambdas(tiny.model(IA, (3, 1))) == []


@pytest.mark.parametrize("made", [lambda n: ablation(images=n), lambda n: probe(test_images=n),
                                  lambda n: probe(train_images=n)], ids=["ablation", "probe", "fit"])  # fmt: skip
def test_what_was_measured_on_no_image_is_refused(made: Any) -> None:
    assert made(1)
    with pytest.raises(LabError, match="images"):
        made(0)
