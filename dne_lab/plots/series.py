"""What figures over several runs share: one series per group of runs, its label and style, and what is not there."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from dne_lab.core.errors import LabError
from dne_lab.measure.comparison import Group, groups
from dne_lab.measure.record import RUN_FIRST, Record
from dne_lab.methods.base import title_of
from dne_lab.plots.marks import MOST_LISTED
from dne_lab.plots.style import Line, line_of

if TYPE_CHECKING:
    import pandas as pd

    from dne_lab.analysis.decomposition import Decomposition

PAPER_DATASETS, PAPER_EPOCHS = ("cifar100", "imagenet100"), 500
NO_RECORD = "no record"


def scale(records: "Iterable[Record | Decomposition]") -> str:
    """The data sets' names for a title, with "small scale" unless all ran the paper's schedule."""
    records = list(records)
    names = ", ".join(dict.fromkeys(record.dataset for record in records))
    paper = all(record.dataset in PAPER_DATASETS and record.epochs >= PAPER_EPOCHS for record in records)
    return names if paper else f"{names}, small scale"


def one_dataset(records: Iterable[Record]) -> list[Group]:
    """Groups of finished runs; raises LabError if there are none, or several data sets."""
    made = groups(records)
    if not made:
        raise LabError(f"no finished run among the records. {RUN_FIRST}")
    names = sorted({group.first.dataset for group in made})
    if len(names) > 1:
        raise LabError(f"records of several data sets ({', '.join(names)}) in one figure: draw one figure for each.")
    return made


def series(group: Group) -> dict[str, Any]:
    """The first columns of a row."""
    return {"series": group.label, "method": group.first.method}


def ids(made: Iterable[Group]) -> dict[str, list[str]]:
    """The ids of the records of each group, by its label."""
    return {group.label: [record.id for record in group.records] for group in made}


def with_missing(frame: "pd.DataFrame", made: Sequence[Group], methods: Sequence[str]) -> "pd.DataFrame":
    """The table with a row "no record" for each of the methods that has no group."""
    import pandas as pd

    there = {group.first.method for group in made}
    missing = [name for name in dict.fromkeys(methods) if name not in there]
    if not missing:
        return frame
    rows = [{"series": title_of(name), "method": name, "record": NO_RECORD} for name in missing]
    whole = {name: "Int64" for name in ("task", "classes") if name in frame}  # whole numbers that may be missing
    return pd.concat([frame.astype(whole), pd.DataFrame(rows, columns=frame.columns).astype(whole)], ignore_index=True)


def seeds(made: Sequence[Group]) -> str:
    """How many seeds the groups have: ``one seed``, ``5 seeds``, ``3-5 seeds``."""
    counts = sorted({len(group.records) for group in made})
    return "one seed" if counts == [1] else f"{'-'.join(map(str, dict.fromkeys((counts[0], counts[-1]))))} seeds"


def over(made: Sequence[Group]) -> str:
    """What a mark is, for a title."""
    return "one seed" if seeds(made) == "one seed" else f"mean and 95% interval over {seeds(made)}"


def drawn(table: "pd.DataFrame", *needed: str) -> list[tuple[str, "pd.DataFrame", Line]]:
    """Label, rows and look of each series that has a record and the columns needed."""
    found: list[tuple[str, pd.DataFrame, Line]] = []
    used: dict[str, int] = {}
    for label, rows in table[table["record"] != NO_RECORD].dropna(subset=list(needed)).groupby("series", sort=False):
        method = str(rows["method"].iloc[0])
        used[method] = used.get(method, -1) + 1
        found.append((str(label), rows, line_of(method, used[method])))
    return found


def room(table: "pd.DataFrame") -> tuple[float, float]:
    """Inches for a drawing whose legend of these series stands beside it: more for many of them and for long names."""
    names = table["series"].unique()
    return 6.4 + 0.08 * max(0, max(map(len, names)) - 16), max(3.6, 0.22 * min(len(names), MOST_LISTED) + 0.9)
