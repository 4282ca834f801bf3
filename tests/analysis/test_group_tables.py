"""What was found as tables: shares, references, intervals, flow, maps of patches, and what is refused."""

import json
import math
from typing import Any

import handmade
import literal_groups
import numpy as np
import pytest
import tiny
import torch

from dne_lab.analysis.attention_groups import attention_groups
from dne_lab.analysis.group_tables import FIRST, LATER, AttentionGroups, frame_of
from dne_lab.analysis.labelling import find_labelling
from dne_lab.analysis.row_statistics import Accumulator
from dne_lab.core.errors import LabError
from dne_lab.models.variants import DNE, IA, STA

HEADS, GRID = handmade.HEADS, handmade.GRID
# what an STA network of two blocks with class tokens would give: expert 1 its own patches, later ones those of all
MAPS = [
    handmade.axes("b h p kp" if expert == 1 else "b h p kh kp", 1, expert=expert, layer=layer)
    for layer in (0, 1)
    for expert in (1, 2, 3)
]
VALUES = [handmade.values(axes, 3, seed) for seed, axes in enumerate(MAPS)]
LITERAL = literal_groups.labellings(HEADS, GRID)


def found(name: str = "groups", replicates: int = 50, by_patch: bool = False) -> AttentionGroups:
    """The groups of `MAPS`."""
    sums = Accumulator(find_labelling(name, HEADS, GRID), replicates, by_patch)
    sums.begin(torch.arange(3))
    for axes, values in zip(MAPS, VALUES, strict=True):
        sums.add(values, axes)
    return AttentionGroups(sums, "attention", False)


def expected(name: str = "groups") -> dict[literal_groups.Head, dict[str, Any]]:
    """The same by plain loops, head by head."""
    literal, labels = LITERAL[name]
    totals: dict[literal_groups.Head, dict[str, Any]] = {}
    for axes, values in zip(MAPS, VALUES, strict=True):
        totals |= literal_groups.totals(literal_groups.rows(values, axes), literal, len(labels), GRID)
    return totals


def in_row(row: Any, head: literal_groups.Head) -> bool:
    """Whether a head counts in a row of a table."""
    kind, layer, expert, number = head
    cells = {"layer": layer, "expert": expert, "head": number, "kind": kind}
    cells["scope"] = FIRST if expert == 1 else LATER
    return all(row[name] == value for name, value in cells.items() if name in row.index)


@pytest.mark.parametrize(
    "by", [(), "layer", "expert", "head", ("layer", "expert"), ["layer", "expert", "head"]], ids=str
)
@pytest.mark.parametrize("name", ["groups", "experts"])
def test_a_table_is_ratios_of_the_sums_of_plain_loops(name: str, by: Any) -> None:
    totals, labels = expected(name), LITERAL[name][1]
    table, whole = found(name).whole_table(by), found(name).rows(by)
    assert len(table) == len(whole) * len(labels)
    for _, row in table.iterrows():
        place = labels.index(row["group"])
        heads = [total for head, total in totals.items() if in_row(row, head)]
        total = {key: sum(one[key][place] for one in heads) for key in ("mass", "uniform", "connections", "keys")}
        total |= {key: sum(one[key][place] for one in heads) for key in ("keys_there", "with_mass")}
        weight = sum(one["weight"] for one in heads)
        assert row["share %"] == pytest.approx(100 * total["mass"] / weight, abs=1e-10)
        assert row["uniform %"] == pytest.approx(100 * total["uniform"] / weight, abs=1e-10)
        if total["mass"] == 0:  # none, which is not 0
            blank = ["effective keys", "effective keys low", "effective keys high", "keys"]
            assert row[blank].isna().all() and row["share %"] == 0
            continue
        assert row["effective keys"] == pytest.approx(total["keys"] / total["with_mass"])
        assert row["keys"] == pytest.approx(total["keys_there"] / total["with_mass"])
        assert row["mass per connection %"] == pytest.approx(100 * total["mass"] / total["connections"])
        assert row["uniform mass %"] == pytest.approx(100 * total["uniform"] / total["connections"])
    for _, row in whole.iterrows():
        heads = [total for head, total in totals.items() if in_row(row, head)]
        summed = {key: sum(one[key] for one in heads) for key in heads[0] if not isinstance(heads[0][key], list)}
        for column, key, factor, over in [
            ("entropy", "row_entropy", 1, "rows"),
            ("uniform entropy", "log_connections", 1, "rows"),
            ("effective keys", "row_keys", 1, "rows"),
            ("keys", "row_connections", 1, "rows"),
            ("largest %", "largest", 100, "rows"),
            ("uniform largest %", "uniform_entry", 100, "rows"),
            ("class %", "class_mass", 100, "rows"),
            ("distance", "distance", 1, "weight"),
            ("uniform distance", "uniform_distance", 1, "weight"),
        ]:
            assert row[column] == pytest.approx(factor * summed[key] / summed[over]), column


def test_expert_1_and_kinds_stand_apart_and_rows_are_in_order() -> None:
    table = found().whole_table()
    assert list(zip(table["kind"], table["scope"], table["group"], strict=True)) == [
        (kind, scope, group) for kind, scope in (("spatial", FIRST), ("joint", LATER)) for group in LITERAL["groups"][1]
    ]
    by_expert = found().rows(("layer", "expert"))
    assert list(zip(by_expert["layer"], by_expert["expert"], strict=True)) == [
        (0, 1), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3),
    ]  # fmt: skip
    sums = table.groupby("scope")["share %"].sum()
    assert np.allclose(sums, 100, rtol=0, atol=1e-10)


def test_every_estimate_has_its_interval_but_single_heads_of_several() -> None:
    for frame in (found().whole_table(("layer", "expert")), found().rows("layer")):
        for column in [name for name in frame.columns if name.endswith(" low")]:
            bare = column.removesuffix(" low")
            middle = frame[bare if bare in frame else f"{bare} %"]
            inside = (frame[column] <= middle + 1e-12) & (middle <= frame[f"{bare} high"] + 1e-12)
            assert (inside | middle.isna() | (middle == 0)).all(), bare
            assert frame[column].isna().equals(middle.isna())
    by_head = found().whole_table(("layer", "expert", "head"))
    alone = by_head["expert"] == 2  # its one head is the whole expert
    assert by_head["share low"].notna().equals(alone)


def test_the_headline_share_is_of_the_later_experts() -> None:
    groups, table = found(), found().whole_table()
    later = table[table["scope"] == LATER].set_index("group")
    assert groups.share("SPSH").value == pytest.approx(later.loc["SPSH", "share %"])
    both = groups.same_patch()
    assert both.value == pytest.approx(later.loc[["SPSH", "SPDH"], "share %"].sum())
    assert both.low < both.value < both.high and both == groups.share(["SPSH", "SPDH"])
    first = table[table["scope"] == FIRST].set_index("group")
    assert groups.same_patch(FIRST).value == pytest.approx(first.loc["SPSH", "share %"])
    assert groups.share(("SPSH", "SPDH", "DPSH", "DPDH")).value == pytest.approx(100)
    assert groups.share("SPSH", kinds="joint").value == groups.share("SPSH").value
    assert all(math.isnan(number) for number in groups.share("SPSH", kinds=("task1", "task2")))
    assert all(math.isnan(number) for number in groups.share("SPSH", kinds="spatial"))  # of expert 1 alone


def test_what_tables_cannot_say_is_refused() -> None:
    groups, by_expert = found(), found("experts")
    with pytest.raises(LabError, match=r"unknown group 'SPHS'. Did you mean SPSH"):
        groups.share("SPHS")
    with pytest.raises(LabError, match=r"unknown scope 'expert 2'. Did you mean expert 1"):
        groups.share("SPSH", "expert 2")
    with pytest.raises(LabError, match=r"unknown column to group by 'layers'. Did you mean layer\?"):
        groups.whole_table(by="layers")
    with pytest.raises(LabError, match=r"unknown column to group by 'kind'. .*Allowed: expert, head, layer"):
        groups.rows(by=["layer", "kind"])
    with pytest.raises(LabError, match="same_patch needs labelling='groups'; these are 'experts'"):
        by_expert.same_patch()
    with pytest.raises(LabError, match="flow needs labelling='experts'; these are 'groups'"):
        groups.flow()
    with pytest.raises(LabError, match="unknown group 'expert 4'"):
        by_expert.patch_map("expert 4", "joint", 0, 3)
    with pytest.raises(
        LabError, match=r"no map of joint attention, layer 0, expert 3\. Call attention_groups\(\.\.\., by"
    ):
        by_expert.patch_map("expert 1", "joint", 0, 3)
    with pytest.raises(LabError, match=r"no map of joint attention, layer 7, expert 3\.$"):
        found("experts", by_patch=True).patch_map("expert 1", "joint", 7, 3)


def test_flow_says_who_reads_whom() -> None:
    flow, totals = found("experts").flow(), expected("experts")
    assert list(flow.columns) == ["kind", "layer", "expert", "expert 1", "expert 2", "expert 3"]
    assert len(flow) == len(MAPS)
    for _, row in flow.iterrows():
        heads = [t for head, t in totals.items() if head[:3] == (row["kind"], row["layer"], row["expert"])]
        weight = sum(total["weight"] for total in heads)
        for read in (1, 2, 3):
            mass = sum(total["mass"][read - 1] for total in heads)
            assert row[f"expert {read}"] == pytest.approx(100 * mass / weight, abs=1e-10)
            if read > row["expert"]:
                assert row[f"expert {read}"] == 0  # experts of later tasks are never read


def test_flow_of_task_attention_is_a_table_of_its_weights() -> None:
    """The mean weight of every expert's heads in a task attention block."""
    model, images = tiny.model(DNE).double(), tiny.images(3)
    flow = attention_groups(model, images, ("task1", "task2"), labelling="experts", progress=False).flow()
    assert list(zip(flow["kind"], flow["layer"], flow["expert"], strict=True)) == [
        (kind, layer, expert) for kind in ("task1", "task2") for layer in (0, 1) for expert in (2, 3)
    ]
    assert np.allclose(flow[["expert 1", "expert 2", "expert 3"]].sum(axis=1), 100, rtol=0, atol=1e-9)


def test_a_patch_map_is_the_share_at_every_patch() -> None:
    groups = found("experts", by_patch=True)
    for axes, values in zip(MAPS, VALUES, strict=True):
        if axes.kind == "joint":
            mass = {key: np.zeros(6) for key in (*range(1, 4), "all")}
            by_head = {head: [np.zeros(6), np.zeros(6)] for head in axes.query_head}
            for row in literal_groups.rows(values, axes):
                for key, value in row.keys:
                    if literal_groups.TOKEN not in (key.patch, row.query.patch):
                        mass[key.expert][row.query.patch] += value
                        mass["all"][row.query.patch] += value
                        by_head[row.query.head][1][row.query.patch] += value
                        by_head[row.query.head][0][row.query.patch] += value * (key.expert == 1)
            where = axes.kind, axes.layer, axes.query_expert[0]
            for read in range(1, 4):
                share = groups.patch_map(f"expert {read}", *where)
                assert share.shape == GRID
                assert np.abs(share.ravel() - mass[read] / mass["all"]).max() < 1e-12
            for head, (one, every) in by_head.items():
                share = groups.patch_map("expert 1", *where, head=head)
                assert np.abs(share.ravel() - one / every).max() < 1e-12


def test_a_record_of_them_is_json_with_blanks_for_what_is_not_there() -> None:
    groups = attention_groups(tiny.model(IA), tiny.images(4), replicates=20, progress=False)
    data = json.loads(json.dumps(groups.to_dict(), allow_nan=False))
    assert (data["labelling"], data["part"], data["shuffled"], data["images"]) == ("groups", "attention", False, 4)
    assert data["replicates"] == 20
    for name, by in [("table", ()), ("table_by_layer", "layer"), ("table_by_expert", "expert")]:
        frame = groups.whole_table(by)
        back = frame_of(data[name])
        assert list(back.columns) == list(frame.columns) and len(back) == len(frame)
        numbers = frame.select_dtypes("number").columns
        assert np.allclose(back[numbers].astype(float), frame[numbers], rtol=1e-5, equal_nan=True)
    place = data["table"]["columns"].index("effective keys")
    assert [row[place] is None for row in data["table"]["rows"]] == [False, True, False, True] * 2
    assert [len(data[name]["rows"]) for name in ("rows", "rows_by_layer", "rows_by_expert")] == [2, 4, 3]
    assert data["same_patch"][LATER] == pytest.approx(groups.same_patch(), rel=1e-5)
    assert data["same_patch"][FIRST] == pytest.approx(groups.same_patch(FIRST), rel=1e-5)
    alone = attention_groups(tiny.model(IA, (2,)), tiny.images(4), replicates=0, progress=False).to_dict()
    assert alone["same_patch"][LATER] == [None, None, None] and alone["same_patch"][FIRST][1:] == [None, None]


def test_they_show_themselves() -> None:
    groups = found()
    text = repr(groups)
    assert text.startswith("AttentionGroups(groups of 3 images)\n") and "nan" not in text.lower()
    assert "share %" in text and "experts >= 2" in text and "DPDH" in text
    assert groups._repr_html_().count("<tr") == 7  # expert 1 has two of the groups, the later ones have four
    shuffled = attention_groups(tiny.model(STA), tiny.images(4), shuffled=True, replicates=0, progress=False)
    assert repr(shuffled).startswith("AttentionGroups(groups of 4 images, shuffled)\n")
