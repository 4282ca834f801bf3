"""A run's attention at every moment: what the moments are, that the record keeps them, and what it refuses."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import dne_lab as lab
from dne_lab.analysis import decomposition
from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED, before_learning, decompose, untrained
from dne_lab.analysis.group_tables import FIRST, LATER
from dne_lab.core.errors import LabError
from dne_lab.plots.attention_compared import fragmentation
from dne_lab.training.run import Run

SMALL: dict[str, Any] = {
    "learn__epochs": 1, "tune__epochs": 1, "learn__batch": 16, "network__depth": 2, "network__head_width": 4,
    "network__heads": "2,1", "network__patch": 4, "memory__budget": 20, "progress": False, "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("runs")
    stream = lab.stream("digits", tasks=(4, 3, 3))
    return {m: lab.train(m, stream, folder=folder / m, **SMALL) for m in ("ia", "sta", "dne")}


def test_untrained_is_how_the_run_began(runs: dict[str, Run]) -> None:
    start = lab.start("dne", runs["dne"].stream, **SMALL)
    stage = start.method.stages(start.stream.task(1))[0]
    start.state.enter(start.method, start.stream.task(1), stage)
    first, again = start.model.experts[0].state_dict(), untrained(runs["dne"]).experts[0].state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(again["embed.weight"], runs["dne"].model.experts[0].state_dict()["embed.weight"])
    assert len(untrained(runs["dne"]).experts) == 3 and not untrained(runs["dne"]).training


def test_a_new_expert_stands_untrained_on_trained_predecessors(runs: dict[str, Run]) -> None:
    run = runs["dne"]
    network, start = before_learning(run, 3), untrained(run)
    for number in (0, 1):
        trained = run.model.experts[number].state_dict()
        assert all(torch.equal(v, trained[name]) for name, v in network.experts[number].state_dict().items())
    fresh = start.experts[2].state_dict()
    assert all(torch.equal(v, fresh[name]) for name, v in network.experts[2].state_dict().items())
    for task in (1, 4):
        with pytest.raises(LabError, match=rf"task {task}: there are networks before tasks 2 to 3"):
            before_learning(run, task)


def test_the_record_holds_what_the_groups_are(runs: dict[str, Run], tmp_path: Path) -> None:
    run = runs["sta"]
    found = decompose(run, 40, progress=False)
    images = run.stream.test_images(40)
    whole = attention_groups(run.model, images, progress=False)
    assert set(found.moments) >= {INITIAL, TRAINED, SHUFFLED, f"{TRAINED}, content", f"{INITIAL}, position"}
    assert found.same_patch().value == pytest.approx(whole.same_patch().value, rel=1e-5)
    assert found.same_patch(scope=FIRST).value == pytest.approx(whole.same_patch(FIRST).value, rel=1e-5)
    later = whole.table()
    later = later[(later["kind"] == "joint") & (later["scope"] == LATER)]["share %"].to_numpy()
    assert found.patches()["share %"].to_numpy() == pytest.approx(later, rel=1e-5)
    assert found.images == 40 and found.run == run.record.id and found.LA == run.record.LA
    before = decomposition.frame_of(found.before)
    assert sorted(before["expert"].unique()) == [2, 3] and before["share %"].groupby(
        before["expert"]
    ).sum().tolist() == (pytest.approx([100, 100], rel=1e-4))
    flow = decomposition.frame_of(found.flow)
    assert flow[["expert 1", "expert 2", "expert 3"]].sum(axis=1).tolist() == pytest.approx([100] * len(flow), abs=1e-2)
    found.write(tmp_path / "deep" / "a.json")
    assert decomposition.Decomposition.find(tmp_path) == [found]


def test_experts_that_do_not_read_each_other_have_no_null_model(runs: dict[str, Run]) -> None:
    found = decompose(runs["ia"], 20, progress=False)
    assert SHUFFLED not in found.moments and found.flow == {}
    table = found.patches()
    assert table.set_index("group").loc[["SPDH", "DPDH"], "share %"].tolist() == [0.0, 0.0]


def test_the_start_of_the_authors_network() -> None:
    """Under gpsa the gate starts at sigmoid(1): positions give expert 1 a same-patch share far above 1 / N."""
    model = tiny.model(heads=(9, 1), shape=(3, 32, 32), shake=0, **tiny.AUTHORS)
    images = tiny.images(4, (3, 32, 32))
    parts = {part: attention_groups(model, images, part=part, layer=0, kind="spatial", progress=False) for part in
             ("attention", "content", "position")}  # fmt: skip
    shares = {part: groups.same_patch(FIRST).value for part, groups in parts.items()}
    gate = torch.sigmoid(torch.tensor(1.0)).item()
    assert shares["attention"] == pytest.approx((1 - gate) * shares["content"] + gate * shares["position"], rel=1e-5)
    assert shares["content"] == pytest.approx(100 / 64, rel=0.02) and shares["position"] > 5 * 100 / 64


def test_an_unfinished_run_has_its_start_alone(tmp_path: Path) -> None:
    run = lab.start("dne", lab.stream("digits", tasks=(4, 3, 3)), folder=tmp_path / "run", **SMALL)
    found = decompose(run, 20, progress=False)
    assert INITIAL in found.moments and TRAINED not in found.moments and not found.finished and found.LA is None


def test_what_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no attention record there\. Make it again"):
        decomposition.Decomposition.find(tmp_path)
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(LabError, match=r"no attention record there\. Make it again"):
        decomposition.Decomposition.find(tmp_path)
    (tmp_path / "a.json").write_text(json.dumps({"kind": "attention", "format": 99}))
    with pytest.raises(LabError, match="attention record of another version"):
        decomposition.Decomposition.find(tmp_path)
    with pytest.raises(LabError, match=r"no rows of .nothing.\. It has: initialisation"):
        decompose(runs["ia"], 20, progress=False).table("nothing", "rows")


@pytest.fixture(scope="module")
def found(runs: dict[str, Run]) -> decomposition.Decomposition:
    return decompose(runs["dne"], 20, progress=False)


def lose_scope(tree: dict[str, Any]) -> None:
    del tree["moments"][INITIAL]["same_patch"][LATER]


def lose_group(tree: dict[str, Any]) -> None:
    del tree["moments"][TRAINED]["table_by_layer"]["rows"][0]


def lose_column(tree: dict[str, Any]) -> None:
    table = tree["moments"][TRAINED]["table"]
    table["columns"][table["columns"].index("uniform %")] = "x"


def lose_later(tree: dict[str, Any]) -> None:
    table = tree["moments"][TRAINED]["table"]
    table["rows"] = [row for row in table["rows"] if row[1] == FIRST]


def lose_layer(tree: dict[str, Any]) -> None:
    table = tree["moments"][TRAINED]["rows_by_layer"]
    table["rows"][0][table["columns"].index("layer")] = None


def lose_flow(tree: dict[str, Any]) -> None:
    tree["flow"]["rows"] = []


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lose_scope, "has no same-patch share of experts >= 2, initialisation"),
        (lose_group, "has other groups in table_by_layer than SPSH, SPDH, DPSH, DPDH, each once"),
        (lose_column, "has no column 'uniform %' in table"),
        (lose_later, r"moments\.trained has no attention of later experts to patches"),
        (lose_layer, "has None in column 'layer'"),
        (lose_flow, "has rows in flow of other experts than 1 to 3"),
    ],
)
def test_a_record_that_lacks_a_part_is_named(
    found: decomposition.Decomposition, tmp_path: Path, damage: Callable[[dict[str, Any]], None], told: str
) -> None:
    tree = json.loads(json.dumps(found.content()))
    del tree["sha256"]  # as of an older version, whose damage no digest tells
    damage(tree)
    (tmp_path / "a.json").write_text(json.dumps(tree))
    with pytest.raises(LabError, match=told):
        decomposition.Decomposition.find(tmp_path)[0].same_patch(INITIAL)


def test_records_about_other_layers_are_not_drawn_together(found: decomposition.Decomposition) -> None:
    fewer = json.loads(json.dumps(found.moments))
    rows = fewer[TRAINED]["rows_by_layer"]
    rows["rows"] = [row for row in rows["rows"] if row[rows["columns"].index("layer")] != 0]
    other = dataclasses.replace(found, seed=1, run="other", moments=fewer)
    with pytest.raises(LabError, match="other are about different layers"):
        fragmentation([found, other])
