"""Figures of attention: their tables follow from the records, seeds are averaged, and what is missing is said."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import tiny

from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.decomposition import INITIAL, SHUFFLED, TRAINED, Decomposition, plain
from dne_lab.core.errors import LabError
from dne_lab.measure import paper
from dne_lab.models.variants import DNE, IA, STA, Variant
from dne_lab.plots import attention


def decomposed(variant: Variant, seed: int = 0, heads: tuple[int, ...] = (3, 1, 1), **changes: Any) -> Decomposition:
    """Of a random network: real in form, of no training."""
    model = tiny.model(variant, heads, seed=seed)
    groups = attention_groups(model, tiny.images(4), progress=False)
    moments = {INITIAL: groups.to_dict(), TRAINED: groups.to_dict()}
    flow: dict[str, Any] = {}
    if variant != IA and len(heads) > 1:
        moments[SHUFFLED] = attention_groups(model, tiny.images(4), shuffled=True, progress=False).to_dict()
        flow = plain(attention_groups(model, tiny.images(4), labelling="experts", progress=False).flow())
    base: dict[str, Any] = {
        "run": f"{variant.name}-tiny-s{seed}", "method": variant.name, "preset": "tiny", "dataset": "digits",
        "seed": seed, "epochs": 1, "tasks": [2, 2, 2], "heads": list(heads), "network": {}, "LA": 50.0,
        "finished": True, "images": 4, "config_sha256": "0", "code_version": "0", "torch": "0", "moments": moments,
        "flow": flow,
    }  # fmt: skip
    return Decomposition(**{**base, **changes})


@pytest.fixture(scope="module")
def found() -> list[Decomposition]:
    return [decomposed(variant, seed) for variant in (IA, STA, DNE) for seed in range(3)]


def test_groups_stand_beside_the_printed_shares(found: list[Decomposition]) -> None:
    figure = attention.group_shares(found)
    table = figure.table.set_index(["series", "group"])
    for row in paper.attention_shares().to_dict("records"):
        name = f"{row['model'].upper()}, paper"
        assert table.loc[(name, "same patch"), "share %"] == row["same_patch_percent"]
        assert table.loc[(name, "different patch"), "share %"] == row["different_patch_percent"]
    seeds = [member.same_patch().value for member in found if member.method == "sta"]
    same = table.loc[("STA, tiny", "same patch")]
    assert same["share %"] == pytest.approx(np.mean(seeds), rel=1e-6) and same["seeds"] == 3
    half = 4.3026527 * np.std(seeds, ddof=1) / 3**0.5
    assert [same["low"], same["high"]] == pytest.approx([np.mean(seeds) - half, np.mean(seeds) + half], rel=1e-5)
    parts = table.loc["STA, tiny"].drop("same patch")
    for value, bare in (("effective keys", "effective keys"), ("mass per connection %", "mass per connection")):
        ones = [m.patches().set_index("group").loc["DPDH", value] for m in found if m.method == "sta"]
        half = 4.3026527 * np.std(ones, ddof=1) / 3**0.5
        row = parts.loc["DPDH"]
        assert [row[f"{bare} low"], row[value], row[f"{bare} high"]] == pytest.approx(
            [np.mean(ones) - half, np.mean(ones), np.mean(ones) + half], rel=1e-4
        )
    assert parts["share %"].sum() == pytest.approx(100) and parts["uniform %"].sum() == pytest.approx(100)
    assert parts.loc[["SPSH", "SPDH"], "share %"].sum() == pytest.approx(same["share %"], rel=1e-4)
    assert "small scale" in figure.title and len(figure.records) == 9


def test_runs_of_other_settings_stand_apart(found: list[Decomposition]) -> None:
    longer = [dataclasses.replace(m, epochs=9, run=f"{m.run}-longer") for m in found if m.method == "sta"]
    table = attention.group_shares([*found, *longer]).table
    names = table.loc[table["preset"] != "paper", "series"].unique()
    assert {*names} == {"IA, tiny", "DNE, tiny", "STA, tiny, 1 epochs", "STA, tiny, 9 epochs"}
    assert set(table.loc[table["seeds"].notna(), "seeds"]) == {3}
    drawn = attention.drawings([*found, *longer])
    assert {"expert_flow_sta_tiny-1epochs", "expert_flow_sta_tiny-9epochs"} <= drawn.keys()
    rates = [dataclasses.replace(found[0], config_sha256=sha) for sha in ("abcdefghij", "0123456789")]
    table = attention.group_shares(rates).table
    assert {"IA, tiny, settings abcdefgh", "IA, tiny, settings 01234567"} <= {*table["series"]}
    with pytest.raises(LabError, match="cannot be averaged"):
        attention.group_shares([found[0], found[0]])


def test_one_seed_has_the_interval_over_images(found: list[Decomposition]) -> None:
    one = attention.group_shares([found[3]]).table
    same = one[(one["preset"] == "tiny") & (one["group"] == "same patch")].iloc[0]
    assert (same["low"], same["high"]) == found[3].same_patch()[1:]
    row, kept = one[(one["preset"] == "tiny") & (one["group"] == "SPDH")].iloc[0], found[3].patches().set_index("group")
    for bare in ("effective keys", "mass per connection"):
        for end in ("low", "high"):
            assert row[f"{bare} {end}"] == kept.loc["SPDH", f"{bare} {end}"]


def test_fragmentation_moments_and_flow(found: list[Decomposition]) -> None:
    layers = attention.fragmentation(found).table
    assert sorted(layers["layer"].unique()) == [0, 1] and layers["used %"].between(0, 100).all()
    assert (layers["entropy"] <= layers["uniform entropy"]).all() and (layers["effective keys"] <= layers["keys"]).all()
    row = layers[(layers["method"] == "sta") & (layers["layer"] == 1)].iloc[0]
    seeds = [m.patches(name="rows_by_layer").set_index("layer").loc[1] for m in found if m.method == "sta"]
    assert row["entropy"] == pytest.approx(np.mean([s["entropy"] for s in seeds]))
    half = 4.3026527 * np.std([s["entropy"] for s in seeds], ddof=1) / 3**0.5
    assert row["entropy high"] - row["entropy"] == pytest.approx(half, rel=1e-4)
    ia = layers[layers["method"] == "ia"]  # in IA every row sees as many keys
    assert ia["uniform entropy"].to_numpy() == pytest.approx(np.log(ia["keys"].to_numpy()), rel=1e-5)
    moments = attention.along_training(found).table
    assert moments[moments["method"] == "ia"]["moment"].tolist() == [INITIAL, TRAINED]
    assert moments[moments["method"] == "sta"]["moment"].tolist() == [INITIAL, TRAINED, SHUFFLED]
    flow = attention.expert_flow(found[-1]).table
    assert (flow["reads"] <= flow["expert"]).all() and set(flow["kind"]) == {"task1", "task2"}
    sums = flow.groupby(["kind", "layer", "expert"])[["share %", "uniform %"]].sum()
    assert sums.to_numpy() == pytest.approx(np.full(sums.shape, 100.0), abs=1e-3)
    with pytest.raises(LabError, match="do not read each other"):
        attention.expert_flow(found[0])


def test_all_that_can_be_drawn_is_and_twice_the_same(found: list[Decomposition]) -> None:
    figures = attention.drawings(found)
    flows = ["expert_flow_dne_tiny", "expert_flow_sta_tiny"]
    assert sorted(figures) == [
        "attention_along_training",
        "attention_by_task",
        "attention_groups",
        *flows,
        "fragmentation",
    ]
    for name, figure in figures.items():
        assert all(row[0].y.title for row in figure.marks().rows)
        assert figure.csv() == attention.drawings(found)[name].csv()
        assert figure.image()[:4] == b"\x89PNG"


def test_each_expert_before_and_after_its_task(found: list[Decomposition]) -> None:
    table = attention.attention_by_task(found).table
    assert set(table["moment"]) == {"after its task"}  # these records hold no expert before its task
    one = found[0].patches(name="table_by_expert")
    same = one[(one["expert"] == 2) & one["group"].isin(["SPSH", "SPDH"])]
    alone = attention.attention_by_task([dataclasses.replace(found[0], before=plain(one))]).table
    for moment in ("before its task", "after its task"):
        row = alone[(alone["moment"] == moment) & (alone["task"] == 2)].iloc[0]
        assert row["times uniform"] == pytest.approx(same["share %"].sum() / same["uniform %"].sum(), rel=1e-5)


def test_networks_without_later_experts_fill_no_figure(found: list[Decomposition]) -> None:
    alone = decomposed(IA, heads=(3,))
    assert attention.drawings([alone]) == {}
    with pytest.raises(LabError, match="no attention record of a trained run with two experts"):
        attention.group_shares([alone])
    with pytest.raises(LabError, match="cannot be averaged"):
        attention.group_shares([found[0], dataclasses.replace(found[0], run="another")])


def test_the_start_is_drawn_part_by_part() -> None:
    """A mixture lies between its parts, and without a gate there are none."""
    model = tiny.model(IA, (9, 1), shape=(3, 32, 32), shake=0, **tiny.AUTHORS)
    parts = {}
    for moment, part in (
        (INITIAL, "attention"),
        (f"{INITIAL}, content", "content"),
        (f"{INITIAL}, position", "position"),
    ):
        groups = attention_groups(
            model, tiny.images(4, (3, 32, 32)), kind="spatial", layer=0, part=part, progress=False
        )  # fmt: skip
        parts[moment] = groups.to_dict()
    started = decomposed(IA, moments=parts)
    table = attention.attention_at_start([started]).table.set_index(["scope", "part"])["same patch %"]
    for scope in ("expert 1", "experts >= 2"):
        values = [table[scope, part] for part in ("content", "position")]
        assert min(values) <= table[scope, "attention"] <= max(values)
    assert attention.drawings([started]).keys() == {"attention_at_start"}
    with pytest.raises(LabError):
        attention.attention_at_start([decomposed(IA)])
