"""The paper's printed numbers as reference marks: rows of a figure's table that are hollow when drawn."""

import re
from typing import TYPE_CHECKING, Any

from dne_lab import paper
from dne_lab.measure.groups import TITLES
from dne_lab.measure.record import Record

if TYPE_CHECKING:
    import pandas as pd

PRINTED = "printed"  # in the column "record" of what is no result of ours
_ABOUT_F = re.compile(r"\bF\b")


def method_of(name: str) -> str:
    """The method of a printed row: ``dne_2heads`` -> dne, ``joint_resnet18`` -> joint."""
    return name.split("_")[0]


def heads_of(name: str) -> int | None:
    """k of a printed row of DNE, else None."""
    found = re.fullmatch(r"dne_(\d+)heads?", name)
    return int(found[1]) if found else None


def label_of(name: str) -> str:
    """As in our tables: ``DNE (k = 2)``, ``Joint (resnet18)``."""
    method, k = method_of(name), heads_of(name)
    if k is not None:
        return f"{TITLES[method]} (k = {k})"
    return TITLES[method] + (f" ({name.split('_')[1]})" if method == "joint" else "")


def dataset_of(record: Record) -> str:
    """The paper's name of a record's data set; ImageNet-100 comes as a folder of images."""
    return "imagenet100" if "imagenet" in f"{record.dataset} {record.preset}".lower() else record.dataset


def rows(dataset: str, steps: tuple[int, ...] = (10,)) -> list[dict[str, Any]]:
    """Printed rows of one data set: method, k, step, T (tasks), LA and AA in percent, F in GFLOPs, source, remark.

    ``F odd`` and ``accuracy odd`` say whether the remark questions that number: then it is drawn crossed out.
    """
    table = paper.tables()
    found = []
    for row in table[(table["dataset"] == dataset) & table["step"].isin(steps)].to_dict("records"):
        remark = str(row["remark"])
        found.append(
            {
                "series": label_of(row["method"]),
                "method": method_of(row["method"]),
                "k": heads_of(row["method"]),
                "step": int(row["step"]),
                "T": 1 + 50 // int(row["step"]),
                "LA %": float(row["la"]),
                "AA %": float(row["aa"]),
                "F (G)": float(row["f_gflops"]),
                "source": f"paper, table {row['source'].removeprefix('table')}",
                "remark": remark,
                "F odd": bool(_ABOUT_F.search(remark)),
                "accuracy odd": "misprint" in remark,
            }
        )
    return found


def is_printed(table: "pd.DataFrame") -> "pd.Series":
    """Which rows of a figure's table are the paper's."""
    return table["record"] == PRINTED
