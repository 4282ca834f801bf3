"""What was printed: the numbers of the paper and of others as data frames, beside which ours stand.

These are copied facts, not results of this laboratory; remarks on misprints are ours. Percentages are as printed, costs
in GFLOPs (2 x multiply-accumulate of one image), the convention of the paper's tables.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dne_lab.measure.record import Record
from dne_lab.methods.base import title_of

if TYPE_CHECKING:
    import pandas as pd


JOINTS = ("joint_transformer", "joint_resnet18")


def tables() -> "pd.DataFrame":
    """Tables 1 and 2 of the paper (Dense Network Expansion, CVPR 2023): LA, AA, D in percent, F in GFLOPs.

    A row for each dataset, step (classes per task after the first 50) and method. ``source`` names the table,
    ``remark`` what is wrong or odd with a printed number (misprints are kept as printed); empty otherwise.
    """
    return _read("paper_tables").fillna({"remark": ""})


def other_published() -> "pd.DataFrame":
    """LA and AA that the authors of DER, FOSTER and the PyCIL collection published for their own code, in percent.

    Each row names its backbone, its memory policy and its ``source``: neither always equals the paper's.
    """
    return _read("other_published")


def attention_shares() -> "pd.DataFrame":
    """Shares of attention on the same and on different patches in IA and STA, percent (paper, section 3, figure 4)."""
    return _read("attention_shares")


def authors_code_cost() -> "pd.DataFrame":
    """Cost counted on the model files that the paper's authors released: GFLOPs of one 32 x 32 image, parameters in M.

    Counted with torch's FlopCounterMode, a row for each method, number of tasks and heads per task. Not in the paper.
    """
    return _read("authors_code_cost").fillna({"remark": ""})


def differences() -> "pd.DataFrame":
    """D of the paper's tables computed anew: LA of the joint model minus LA, with the joint model that was printed.

    The columns of `tables` and ``joint`` (the joint model of the method's own network), ``d_own`` (against it),
    ``d_other`` (against the joint model of the other network) and ``against``: "own", "other" or "neither", whichever
    of them the printed D equals after rounding.
    """
    frame = tables()
    rows = []
    for row in frame.to_dict("records"):
        transformer = row["method"].startswith(("dne", "dytox")) or row["method"] == JOINTS[0]
        own, other = JOINTS if transformer else reversed(JOINTS)
        same = frame[(frame["dataset"] == row["dataset"]) & (frame["step"] == row["step"])].set_index("method")["la"]
        d_own, d_other = (round(float(same[joint]) - row["la"], 2) for joint in (own, other))
        # At most one of the two fits: the joint models are more than 2 points apart.
        fits = [name for name, d in (("own", d_own), ("other", d_other)) if abs(d - row["d"]) < 0.006]
        rows.append(row | {"joint": own, "d_own": d_own, "d_other": d_other, "against": fits[0] if fits else "neither"})
    return type(frame)(rows)


def _read(name: str) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_csv(Path(__file__).parent / "printed" / f"{name}.csv")


# The paper's printed numbers as reference marks: rows of a figure's table that are hollow when drawn.

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
        return f"{title_of(method)} (k = {k})"
    return title_of(method) + (f" ({name.split('_')[1]})" if method == "joint" else "")


def dataset_of(record: Record) -> str:
    """The paper's name of a record's data set; ImageNet-100 comes as a folder of images."""
    return "imagenet100" if "imagenet" in f"{record.dataset} {record.preset}".lower() else record.dataset


def rows(dataset: str, steps: tuple[int, ...] = (10,)) -> list[dict[str, Any]]:
    """Printed rows of one data set: method, k, step, T (tasks), LA and AA in percent, F in GFLOPs, source, remark.

    ``F odd`` and ``accuracy odd`` say whether the remark questions that number: then it is drawn crossed out.
    """
    table = tables()
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
