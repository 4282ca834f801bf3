"""A run ablated as a record: what is removed, that it is what `ablate` says, how seeds are put together."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import tiny

import dne_lab as lab
from dne_lab.analysis import ablation_record
from dne_lab.analysis.ablation_record import AblationRecord, conditions, study
from dne_lab.analysis.ablation_tables import group_table, settings, sweep_table
from dne_lab.analysis.sweep import COLUMNS
from dne_lab.errors import LabError
from dne_lab.measure.metrics import interval
from dne_lab.models.variants import DNE, IA, STA, Variant
from dne_lab.training.run import Run

SMALL: dict[str, Any] = {
    "learn__epochs": 1, "tune__epochs": 0, "learn__batch": 32, "network__depth": 2, "network__head_width": 4,
    "network__heads": "2,1", "network__patch": 4, "memory__budget": 20, "progress": False, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder, stream = tmp_path_factory.mktemp("runs"), lab.stream("digits", tasks=(4, 3, 3))
    return {m: lab.train(m, stream, folder=folder / m, **SMALL) for m in ("sta", "dne", "finetune")}


@pytest.mark.parametrize(
    ("variant", "wanted"),
    [
        (IA, ["spatial SPSH", "spatial DPSH"]),
        (STA, ["joint SPSH", "joint SPDH", "joint DPSH", "joint DPDH", "joint SPDH + DPDH", "class others",
               "joint + class others", "joint + class expert 1", "joint + class between"]),
        (DNE, ["spatial SPSH", "spatial DPSH", "task1 SPSH", "task1 SPDH", "task2 SPSH", "task2 SPDH",
               "task1 + task2 SPDH", "task1 + task2 others", "task1 + task2 expert 1", "task1 + task2 between"]),
    ],
    ids=tiny.names,
)  # fmt: skip
def test_what_is_removed(variant: Variant, wanted: list[str]) -> None:
    made = conditions(tiny.model(variant, (3, 1, 2), **tiny.AUTHORS))
    names = [(f"{where['kind']} {where['removed']}", where["expert"]) for where, _ in made]
    assert names == [(name, t) for name in wanted for t in (0, 2, 3) if not (name.endswith("between") and t == 2)]
    for where, taken in made:
        later = [3] if where["removed"] == "between" else [2, 3]
        assert taken.experts == (later if where["expert"] == 0 else [where["expert"]])


def test_the_record_is_what_ablate_says(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["dne"]
    found = study(run, 50, "zero", progress=False)
    images = run.stream.test_images(50)
    assert (found.run, found.how, found.images, found.LA) == (run.record.id, "zero", 50, run.record.LA)
    for row in found.groups[::4]:
        reader = {"expert": row["expert"] or (2, 3)}
        reads: dict[str, Any] = {"others": "others", "expert 1": 1, "between": "between"}
        choice = {"reads": reads[row["removed"]]} if row["removed"] in reads else {"group": row["removed"].split(" + ")}
        kinds = row["kind"].split(" + ")
        one = lab.ablate(run.model, images, kinds, how="zero", groups=False, progress=False, **reader, **choice)
        table = one.table().set_index("task")
        assert row["loss"] == pytest.approx(table.loc["all", "loss"], rel=1e-4)
        assert row["mass %"] == pytest.approx(one.mass, rel=1e-4)
        assert row["by task"] == pytest.approx([table.loc[task, "loss"] for task in (1, 2, 3)], rel=1e-4)
        assert found.accuracy["all"] == pytest.approx(table.loc["all", "before %"], rel=1e-4)
    swept = lab.ablation_sweep(run.model, images, "zero", progress=False).table()
    for row, other in zip(found.sweep, swept.to_dict("records"), strict=True):
        assert all(row[name] == other[name] for name in COLUMNS)
        assert [*row.values()][4:] == pytest.approx([*other.values()][4:], rel=1e-4, abs=1e-6)
    found.write(tmp_path / "here" / f"{found.name}.json")
    assert ablation_record.find(tmp_path) == [found]


def test_task_classes_come_with_the_model(runs: dict[str, Run]) -> None:
    assert runs["dne"].model.task_classes == runs["finetune"].model.task_classes == (4, 3, 3)
    assert runs["dne"].model_at(2).task_classes == (4, 3)
    assert runs["dne"].folder is not None
    assert lab.open(runs["dne"].folder, progress=False).model.task_classes == (4, 3, 3)


def test_what_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(LabError, match="is not finished: train it to its end"):
        study(lab.start("dne", runs["dne"].stream, **SMALL), 10)
    with pytest.raises(LabError, match="has one expert: there is no later expert"):
        study(runs["finetune"], 10)
    with pytest.raises(LabError, match="unknown how 'cut'"):
        study(runs["dne"], 10, "cut")
    with pytest.raises(LabError, match="no ablation record there"):
        ablation_record.find(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(LabError, match="cannot be read"):
        ablation_record.find(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"kind": "ablation", "format": 0}))
    with pytest.raises(LabError, match="ablation record of another version"):
        ablation_record.find(tmp_path)


def invented(method: str = "dne", seed: int = 0, loss: float = 2.0, **changes: Any) -> AblationRecord:
    """A record in form alone."""
    kinds = ("task1", "task2") if method == "dne" else ("joint",)
    values = {"loss": loss, "+-": 0.5, "changed %": 3.0, "mean |logit change|": 0.1, "mass %": 40.0}
    groups = [
        {"kind": kind, "removed": name, "expert": t, "after %": 60.0 - loss, "empty rows": 0, **values}
        | {"by task": [loss, 2 * loss, 0.0]}
        for kind in kinds for name in ("SPSH", "SPDH") for t in (0, 2, 3)
    ]  # fmt: skip
    places = [*((kind, layer) for kind in kinds for layer in (0, 1)), ("all", "all")]
    sweep = [
        {"kind": kind, "layer": layer, "expert": t, "reads": j, "own loss": 3 * loss, "own +-": 1.0, **values}
        for kind, layer in places for t in (2, 3) for j in range(1, t + 1)
    ]  # fmt: skip
    base: dict[str, Any] = {
        "run": f"{method}-digits-s{seed}", "method": method, "preset": "digits", "dataset": "digits", "seed": seed,
        "tasks": [4, 3, 3], "heads": [2, 1, 1], "LA": 60.0, "how": "mask", "images": 100,
        "accuracy": {"all": 60.0, "by task": [60.0, 60.0, 60.0]}, "config_sha256": "", "code_version": "0.1.0",
        "torch": "2.15.0", "device": "cpu", "groups": groups, "sweep": sweep,
    }  # fmt: skip
    return AblationRecord(**{**base, **changes})


def test_tables_put_seeds_together() -> None:
    found = [invented("dne", seed, loss) for seed, loss in enumerate((1.0, 2.0, 6.0))] + [invented("sta")]
    groups, sweep = group_table(found), sweep_table(found)
    assert len(groups) == 12 + 6 and len(sweep) == 25 + 15
    mean, width = interval([1.0, 2.0, 6.0])
    last, first = groups.iloc[5], groups.iloc[6]  # in the order of the methods
    assert (first["experts"], first["seeds"], first["interval"]) == ("later", 3, "seeds")
    assert (first["loss"], first["+-"], first["loss task 2"]) == pytest.approx((mean, width, 6.0))
    assert [last[name] for name in ("method", "seeds", "interval", "+-", "experts")] == ["sta", 1, "images", 0.5, 3]
    assert (sweep.iloc[15]["loss"], sweep.iloc[15]["own loss"]) == pytest.approx((3.0, 9.0))
    assert [*settings(found)] == [("digits", "sta", "mask"), ("digits", "dne", "mask")]
    for wrong in ([invented(), invented()], [invented(), invented("dne", 1, images=50)]):
        with pytest.raises(LabError, match="cannot be averaged"):
            group_table(wrong)
    with pytest.raises(LabError, match="no connection between experts"):
        sweep_table([dataclasses.replace(invented("ia"), sweep=[])])
