"""The printed numbers: complete, and consistent with themselves where the paper is."""

import re
import tomllib
from pathlib import Path

import pandas as pd

from dne_lab.measure import paper

TESTS = Path(__file__).parents[1]


def test_tables_are_complete() -> None:
    frame = paper.tables()
    assert frame.groupby(["dataset", "step"]).size().to_dict() == {
        ("cifar100", 5): 10,
        ("cifar100", 10): 10,
        ("cifar100", 25): 10,
        ("imagenet100", 10): 10,
    }
    assert not frame.duplicated(["dataset", "step", "method"]).any()
    assert frame[["la", "d", "f_gflops"]].notna().all(axis=None)
    assert (frame["aa"].isna() == frame["method"].str.startswith("joint")).all()  # joint models have no stream
    dne = frame[(frame["method"] == "dne_1head") & (frame["dataset"] == "cifar100")].set_index("step")
    assert dne["la"].to_dict() == {10: 68.04, 5: 69.10, 25: 67.61}


def test_misprints_keep_their_remarks() -> None:
    remarks = paper.tables().set_index(["dataset", "step", "method"])["remark"]
    assert "identical to the PODNet row" in remarks["cifar100", 5, "foster"]
    assert "cannot be right" in remarks["cifar100", 25, "dne_1head"]
    assert remarks["cifar100", 5, "dytox"] == ""


def test_five_rows_take_d_against_the_other_joint_model() -> None:
    frame = paper.differences()
    other = frame[frame["against"] == "other"]
    assert [tuple(key) for key in other[["dataset", "step", "method"]].to_numpy()] == [
        ("cifar100", 10, "icarl"),
        ("cifar100", 5, "icarl"),
        ("cifar100", 5, "podnet"),
        ("cifar100", 5, "der"),
        ("cifar100", 5, "foster"),
    ]
    assert set(other["joint"]) == {"joint_resnet18"}
    assert (frame["against"] != "neither").all()
    # what the remarks of these five say is what the computation gives, and no other row says it
    said = frame["remark"].str.extract(r"its own joint 80.41 it is (\d+\.\d+)")[0].dropna().astype(float)
    pd.testing.assert_series_equal(said, other["d_own"], check_names=False)


def test_other_sources() -> None:
    shares = paper.attention_shares().set_index("model")
    assert shares["same_patch_percent"].to_dict() == {"ia": 12.7, "sta": 25.8}
    assert (shares["same_patch_percent"] + shares["different_patch_percent"]).round(6).eq(100).all()
    cost = paper.authors_code_cost()
    first = cost[(cost["method"] == "dne") & (cost["tasks"] == 6)].set_index("heads_per_task")["gflops_2mac"]
    assert first.to_dict() == {1: 2.542, 2: 2.925, 4: 3.794, 7: 5.361}
    published = paper.other_published()
    assert published["source"].notna().all()
    der = published[(published["method"] == "der") & (published["step"] == 10)]
    assert der[["la", "aa"]].to_numpy().tolist() == [[66.26, 73.21]]


def test_printed_numbers_travel_with_the_package() -> None:
    folder = Path(paper.__file__).parent / "printed"
    assert {file.stem for file in folder.glob("*.csv")} == {
        *("paper_tables", "other_published", "attention_shares", "authors_code_cost")
    }
    # installed wheels must hold them too
    pyproject = tomllib.loads((TESTS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    assert "measure/printed/*.csv" in pyproject["tool"]["setuptools"]["package-data"]["dne_lab"]


def test_tests_and_package_read_nothing_outside_the_repository() -> None:
    outside = re.compile(r"\.\./+" + "shared" + r"|/+work/|parents?\[\d\] */ *[\"']" + "shared")
    files = [*TESTS.rglob("*.py"), *Path(paper.__file__).parent.rglob("*.py")]
    assert len(files) > 10
    assert [str(file) for file in files if outside.search(file.read_text(encoding="utf-8"))] == []
