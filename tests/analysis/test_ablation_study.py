"""A run ablated as a record: what is removed, that it is what `ablate` says, how seeds are put together."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny

import dne_lab as lab
from dne_lab.analysis import ablation_study
from dne_lab.analysis.ablation_study import (
    AblationRecord,
    conditions,
    group_table,
    settings,
    side_by_side,
    study,
    sweep_table,
)
from dne_lab.analysis.sweep import COLUMNS
from dne_lab.core.errors import LabError
from dne_lab.measure.measurement import trained
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
        (IA, ["spatial SPSH", "spatial DPSH", "spatial everything"]),
        (STA, ["joint SPSH", "joint SPDH", "joint DPSH", "joint DPDH", "joint SPDH + DPDH", "joint everything",
               "class others", "joint + class others", "joint + class expert 1", "joint + class between"]),
        (DNE, ["spatial SPSH", "spatial DPSH", "spatial everything", "task1 SPSH", "task1 SPDH", "task1 everything",
               "task2 SPSH", "task2 SPDH", "task2 everything", "task1 + task2 SPDH", "task1 + task2 everything",
               "task1 + task2 others", "task1 + task2 expert 1", "task1 + task2 between"]),
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
    (found,) = study(run, 50, "zero", progress=False)
    images = run.stream.test_images(50)
    assert (found.run, found.how, found.images, found.LA) == (run.record.id, "zero", 50, run.record.LA)
    for row in found.groups[::4]:
        reader = {"expert": row["expert"] or (2, 3)}
        reads: dict[str, Any] = {"others": "others", "expert 1": 1, "between": "between"}
        choice = {"reads": reads[row["removed"]]} if row["removed"] in reads else {"group": row["removed"].split(" + ")}
        choice = {} if row["removed"] == "everything" else choice
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
    assert ablation_study.AblationRecord.find(tmp_path) == [found]
    told = found.trained
    assert told["LA"] == run.record.LA and told["torch"] == run.record.torch and len(told["digest"]) == 16
    assert told["digest"] != trained(dataclasses.replace(run.record, threads=99))["digest"]


def test_all_ways_in_one_go_are_each_way_on_its_own(runs: dict[str, Run]) -> None:
    for method in ("sta", "dne"):
        together = study(runs[method], 30, progress=False)
        assert [record.how for record in together] == ["mean", "zero", "mask"]
        for record in together:
            (alone,) = study(runs[method], 30, record.how, progress=False)
            assert alone.groups == record.groups and alone.accuracy == record.accuracy
            everywhere = [row for row in alone.sweep if row["kind"] == "all"]
            assert record.sweep == everywhere and len(everywhere) < len(alone.sweep)
            with pytest.raises(LabError, match="different things were removed"):
                group_table([record, dataclasses.replace(alone, seed=9)])
        removed = [{row["removed"] for row in record.groups} for record in together]
        assert "everything" in removed[0] & removed[1] and removed[0] - removed[2] == {"everything"}
        assert all(row["empty rows"] == 0 for record in together[:2] for row in record.groups)


def test_records_made_before_a_field_was_kept_can_be_read(tmp_path: Path) -> None:
    tree = dataclasses.asdict(invented())
    del tree["trained"]
    (tmp_path / "old.json").write_text(json.dumps(tree))
    assert ablation_study.AblationRecord.find(tmp_path) == [invented()]
    (tmp_path / "old.json").write_text(json.dumps({**tree, "later": 1}))
    with pytest.raises(LabError, match="of another version"):
        ablation_study.AblationRecord.find(tmp_path)


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
    with pytest.raises(LabError, match=r"2 test images hold none of task \d: take more"):
        study(runs["dne"], 2)
    with pytest.raises(LabError, match="unknown how 'cut'"):
        study(runs["dne"], 10, "cut")
    with pytest.raises(LabError, match="no ablation record there"):
        ablation_study.AblationRecord.find(tmp_path)
    (tmp_path / "a.json").write_text('{"kind": "ablation", "config_sha256": "0')
    with pytest.raises(LabError, match="is damaged: not JSON"):
        ablation_study.AblationRecord.find(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"kind": "ablation", "format": 0}))
    with pytest.raises(LabError, match="ablation record of another version"):
        ablation_study.AblationRecord.find(tmp_path)


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


def test_the_ways_of_removing_stand_side_by_side() -> None:
    found = [invented("dne", seed, loss, how=how) for how, losses in {"mask": (40.0, 42.0), "mean": (1.0, 3.0)}.items()
             for seed, loss in enumerate(losses)]  # fmt: skip
    found.append(invented("sta", how="zero"))
    everything = [row | {"removed": "everything"} for row in found[2].groups[:1]]
    found[2:4] = [dataclasses.replace(one, groups=[*one.groups, *everything]) for one in found[2:4]]
    table = side_by_side(found)
    assert [*table.columns[-6:]] == ["mean", "mean +-", "zero", "zero +-", "mask", "mask +-"]
    assert table["method"].tolist() == ["sta"] * 6 + ["dne"] * 13
    row = table.iloc[6]
    assert (row["kind"], row["removed"], row["experts"], row["seeds"]) == ("task1", "SPSH", "later", 2)
    assert (row["mean"], row["mean +-"]) == pytest.approx(interval([1.0, 3.0]))
    assert (row["mask"], row["mask +-"]) == pytest.approx(interval([40.0, 42.0])) and np.isnan(row["zero"])
    last = table.iloc[-1]
    assert last["removed"] == "everything" and np.isnan(last["mask"]) and last["mean"] == pytest.approx(1.0)
