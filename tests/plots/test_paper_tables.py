"""The dot plots of the paper's tables: what is subtracted from what, and what is left out."""

import math
from pathlib import Path
from typing import Any

import pytest

from dne_lab.core.errors import LabError
from dne_lab.measure import paper
from dne_lab.measure.record import find
from dne_lab.plots import paper_tables
from dne_lab.plots.marks import Points

RECORDS = Path(__file__).parents[2] / "figures" / "records"


def points(figure: Any) -> list[Points]:
    return [mark for panel in figure.marks().panels for mark in panel.marks if isinstance(mark, Points)]


def test_printed_minus_ours_is_that_of_our_records() -> None:
    records = find([RECORDS / "cifar100-small", RECORDS / "cifar100-small-baselines"])
    figure = paper_tables.printed_minus_ours(records)
    (icarl,) = [record for record in records if record.method == "icarl"]
    (row,) = figure.table.query("series.str.startswith('iCaRL') and measure == 'LA'").to_dict("records")
    assert row["printed"] == 44.72 and row["ours"] == pytest.approx(icarl.LA)
    assert row["printed minus"] == pytest.approx(44.72 - icarl.LA)
    by_name = {mark.name: mark for mark in points(figure)}
    assert set(by_name) == {"LA", "AA"}
    assert sorted([*by_name["LA"].x, *by_name["AA"].x]) == pytest.approx(sorted(figure.table["printed minus"]))
    drawn = figure.marks().panels[0].y.names
    assert drawn[int(by_name["LA"].y[by_name["LA"].x.index(row["printed minus"])])] == row["series"]
    assert not any(name.startswith(("IA", "STA", "Replay")) for name in drawn), "the paper prints none of these"
    assert set(figure.records) <= {record.id for record in records}


def test_runs_on_other_images_are_not_compared() -> None:
    small = find(RECORDS / "cifar100-small")
    mixed = [*small, *find(RECORDS / "digits100")]
    assert paper_tables.printed_minus_ours(mixed).csv() == paper_tables.printed_minus_ours(small).csv()
    with pytest.raises(LabError, match="no finished run on CIFAR-100 that the paper prints"):
        paper_tables.printed_minus_ours(find(RECORDS / "digits100"))
    with pytest.raises(LabError, match="ImageNet-100"):
        paper_tables.printed_minus_ours(small, "imagenet100")


def test_printed_minus_published_has_every_number_that_both_have() -> None:
    table = paper_tables.printed_minus_published().table
    theirs = paper.other_published()
    there = theirs[(theirs["step"] != 2)]  # the paper has no rows of FOSTER and PODNet with steps of 2
    assert len(table) == there["la"].notna().sum() + there["aa"].notna().sum()
    (der,) = table.query("series == 'DER, CIFAR-100, steps of 5' and measure == 'LA'").to_dict("records")
    assert der["printed minus"] == pytest.approx(60.73 - 65.64) and der["record"] == "resnet18, 20 per class"


def test_d_is_drawn_as_printed_and_against_the_own_network() -> None:
    figure = paper_tables.printed_differences()
    wide = figure.table.pivot(index=["stream", "series"], columns="what", values="D")
    apart = wide[(wide.iloc[:, 0] - wide.iloc[:, 1]).abs() > 0.01]
    assert len(apart) == (paper.differences()["against"] == "other").sum() == 5
    assert ("CIFAR-100, 50 + 5 x 10", "DER") in apart.index
    assert len(figure.marks().panels) == 4
    panel = figure.marks().panels[[p.title for p in figure.marks().panels].index("CIFAR-100, 50 + 5 x 10")]
    printed, own = (next(m for m in panel.marks if isinstance(m, Points) and m.name == name) for name in wide.columns)
    at = float(panel.y.names.index("DER"))
    moved = {mark.filled: mark.x[list(mark.y).index(at)] for mark in (printed, own)}
    assert moved[True] - moved[False] == pytest.approx(4.29) and not math.isnan(moved[True])
    assert figure.interactive().layout.height > 0


def test_one_data_set_alone() -> None:
    assert set(paper_tables.printed_differences(["imagenet100"]).table["stream"]) == {"ImageNet-100, 50 + 10 x 5"}
