"""Records as tables: one row per method with intervals over seeds, and the same rows beside what the paper printed."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from dne_lab.core.errors import visible
from dne_lab.measure import paper
from dne_lab.measure.comparison import Group, groups, heads_text, joint_of, later_heads, memory_of, tasks_text
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record

if TYPE_CHECKING:
    import pandas as pd


DECIMALS = {"epochs": 0, "F literal (G)": 4, "F spent (G)": 4, "F": 4, "seconds": 0}  # of a column; all others have 2
DECIMALS |= {"p": 4, "p (Holm)": 4, "training (TFLOP)": 1, "extra parameters in exemplars": 0}


TIE = 1e-9  # a number that is nearer to the middle between two is there, but for the order in which it was added up


def fixed(value: float, digits: int, sign: str = "") -> str:
    """A number with so many decimals, never -0.00; with ``sign`` "+" a plus before positive ones.

    One in the middle between two, as means over two seeds often are, goes away from zero, whatever its last bit is.
    """
    unit = 10.0**-digits
    if math.isfinite(value) and abs(abs(value) % unit - unit / 2) < TIE:
        value += math.copysign(unit / 1000, value)
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def brief(frame: "pd.DataFrame", most: int | None = None) -> str:
    """A table as a ``repr`` shows it: two decimals, missing values blank, of more than ``most`` rows the ends."""
    return str(frame.round(2).to_string(index=False, na_rep="", max_rows=most))


def summary(records: Iterable[Record]) -> "pd.DataFrame":
    """One row for each group of finished runs that differ in their seed alone; percent, GFLOPs (2 x MAC), millions.

    ``+-`` is the half width of the 95% interval over seeds (Student's t; empty for one seed). ``D`` is taken seed by
    seed against the joint model of the same data set, preset and network, over the seeds that both have; empty without
    one. ``D other network``, against a joint model of another network, and ``unfinished`` runs are columns only where
    there are any.
    """
    made = groups(records)
    frame = _frame([_summary_row(group, made) for group in made], _SUMMARY)
    for name in ("D other network", "unfinished"):
        if not frame[name].fillna(0).any():
            frame = frame.drop(columns=name)
    return frame


def compare(records: Iterable[Record]) -> "pd.DataFrame":
    """Our rows beside the paper's of the same method and step: LA, AA, D, F and the differences, ours minus theirs.

    ``our dataset`` and ``paper dataset`` say what each number was measured on: they differ for small-scale runs, where
    the difference says nothing about the reproduction. F, in GFLOPs, is that of the literal path. Without a printed row
    the paper's columns are empty. ``elsewhere``: what the method's authors (PODNet: PyCIL) published for their own
    code, and with which network and memory (`paper.other_published`).
    """
    printed, elsewhere = (
        {(row["dataset"], row["step"], row["method"]): row for row in table.to_dict("records")}
        for table in (paper.tables(), paper.other_published())
    )
    made = groups(records)
    rows = []
    for group in made:
        ours = _summary_row(group, made)
        name = printed_as(group.first)
        theirs: dict[Any, Any] = printed.get(name, {})
        row = ours | {"our dataset": ours["dataset"], "paper dataset": name[0] if theirs else ""}
        row |= {"F": ours["F literal (G)"], "remark on the print": theirs.get("remark", "")}
        for mine, key in (("LA", "la"), ("AA", "aa"), ("D", "d"), ("F", "f_gflops")):
            row[f"paper {mine}"] = theirs.get(key)
            row[f"{mine} - paper"] = None if None in (row[mine], theirs.get(key)) else row[mine] - theirs[key]
        known: dict[Any, Any] = elsewhere.get(name, {})
        row |= {"LA elsewhere": known.get("la"), "AA elsewhere": known.get("aa")}
        row["elsewhere with"] = f"{known['backbone']}, {known['memory']}" if known else ""
        rows.append(row)
    return _frame(rows, _COMPARED)


_NOT_FLOAT = {
    *("method", "heads", "dataset", "our dataset", "paper dataset", "preset", "tasks", "memory", "remark on the print"),
    "elsewhere with",
    *("epochs", "seeds", "unfinished"),
}
_SHARED = ("dataset", "on", "our dataset", "paper dataset", "preset", "tasks", "epochs", "memory", "seeds")
_SUMMARY = [
    *("method", "heads", "dataset", "preset", "tasks", "epochs", "memory", "seeds"),
    *("LA", "LA +-", "AA", "AA +-", "D", "D +-", "D other network", "forgetting"),
    *("F literal (G)", "F spent (G)", "params (M)", "seconds", "unfinished"),
]
_COMPARED = [
    *("method", "heads", "our dataset", "paper dataset", "tasks", "epochs", "seeds"),
    *(column for name in ("LA", "AA", "D", "F") for column in (name, f"paper {name}", f"{name} - paper")),
    *("remark on the print", "LA elsewhere", "AA elsewhere", "elsewhere with"),
]


def _frame(rows: list[dict[str, Any]], columns: list[str]) -> "pd.DataFrame":
    """A data frame whose numbers are numbers also where all of them are missing."""
    import pandas as pd

    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({name: float for name in columns if name not in _NOT_FLOAT})


def printed_as(record: Record) -> tuple[str, int | None, str | None]:
    """Data set, step and method under which the paper prints a record's counterpart; None where it has none."""
    if record.imported.get("from") == "Mammoth":  # whose names are not the paper's
        return record.dataset, None, None
    dataset = "imagenet100" if "imagenet" in f"{record.dataset} {record.preset}".lower() else "cifar100"
    sizes = set(record.tasks[1:])
    step = next(iter(sizes)) if len(sizes) == 1 and record.tasks[0] == 50 and sum(record.tasks) == 100 else None
    if record.joint:
        # The joint model knows no steps: its numbers are the same in every table.
        network = "joint_transformer" if "patch" in record.network else None
        if "resnet18" in str(record.network).lower():
            network = "joint_resnet18"
        return dataset, 10, network if sum(record.tasks) == 100 else None
    k = later_heads(record)
    if record.method == "dne":
        return dataset, step, None if k is None else f"dne_{k}head" + "s" * (k > 1)
    return dataset, step, record.method


def _summary_row(group: Group, others: list[Group]) -> dict[str, Any]:
    first, n = group.first, len(group.records)
    la, la_width = interval(list(group.last_by_seed().values()))
    aa, aa_width = interval([float(record.AA or 0.0) for record in group.records])
    d, d_width = _difference(group, joint_of(group, others))
    lost = [record.forgetting for record in group.records if record.forgetting is not None]
    seconds = [record.seconds for record in group.records if record.seconds is not None]
    budget = first.memory.get("budget")
    return {
        "method": group.label,
        "heads": heads_text(first),
        "dataset": first.dataset,
        "preset": first.preset,
        "tasks": tasks_text(first.tasks),
        "epochs": first.epochs or (None if first.imported else 0),  # an imported file may not say
        "memory": memory_of(first) if budget and not first.joint else "",
        "seeds": n,
        "LA": la,
        "LA +-": la_width,
        "AA": aa,
        "AA +-": aa_width,
        "D": d,
        "D +-": d_width,
        "D other network": _difference(group, joint_of(group, others, same_network=False))[0],
        "forgetting": sum(lost) / len(lost) if lost else None,
        "F literal (G)": None if first.flops_literal is None else first.flops_literal / 1e9,
        "F spent (G)": None if first.flops_spent is None else first.flops_spent / 1e9,
        "params (M)": first.params["total"] / 1e6 if first.params.get("total") else None,
        "seconds": sum(seconds) / len(seconds) if seconds else None,
        "unfinished": group.unfinished,
    }


def _difference(group: Group, joint: Group | None) -> tuple[float | None, float | None]:
    """D and its half width, seed by seed: the seeds of the same number share data order and chance."""
    if joint is None:
        return None, None
    if joint is group:
        return 0.0, None
    theirs, mine = joint.last_by_seed(), group.last_by_seed()
    values = [theirs[seed] - mine[seed] for seed in mine if seed in theirs]
    return interval(values) if values else (None, None)


def _cells(frame: "pd.DataFrame") -> list[list[str]]:
    """Text of every cell: floats with fixed decimals by column (DECIMALS, else 2), missing ones blank."""
    import pandas as pd

    def text(name: str, value: Any) -> str:
        if value is None or value is pd.NA or (isinstance(value, float) and value != value):
            return ""
        if not isinstance(value, float):
            return visible(str(value))
        digits = DECIMALS.get(name, 2)
        return fixed(value, digits)

    names = [str(name) for name in frame.columns]
    return [[text(n, v) for n, v in zip(names, row, strict=True)] for row in frame.astype(object).to_numpy().tolist()]


def to_text(frame: "pd.DataFrame") -> str:
    """A plain table for the terminal, columns aligned; what is the same in all of several rows is said once above."""
    cells, names = _cells(frame), [str(name) for name in frame.columns]
    same = [i for i, n in enumerate(names) if n in _SHARED and len(cells) > 1 and len({row[i] for row in cells}) == 1]
    shown = [i for i in range(len(names)) if i not in same and any(row[i] for row in cells)]
    head = ", ".join(f"{names[i]} {cells[0][i]}" for i in same if cells[0][i])
    rows = [[names[i] for i in shown], *([row[i] for i in shown] for row in cells)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(shown))]
    left = [not _numeric(frame, i) for i in shown]
    lines = [
        "  ".join(c.ljust(w) if a else c.rjust(w) for c, w, a in zip(row, widths, left, strict=True)) for row in rows
    ]
    return "\n".join([*([head] if head else []), *(line.rstrip() for line in lines)]) + "\n"


def to_markdown(frame: "pd.DataFrame") -> str:
    """A GitHub Markdown table; floats with fixed decimals, missing values blank."""
    rows = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in _cells(frame)]
    head = [str(name).replace("|", "\\|").replace("+-", "±") for name in frame.columns]
    rule = ["---:" if _numeric(frame, i) else "---" for i in range(len(head))]
    return "".join(f"| {' | '.join(row)} |\n" for row in [head, rule, *rows])


class Sentences:
    """A table of sentences as a notebook shows it: Markdown, whose cells wrap and stand left, or plain text."""

    def __init__(self, frame: "pd.DataFrame") -> None:
        self.frame = frame

    def _repr_markdown_(self) -> str:
        return to_markdown(self.frame)

    def __repr__(self) -> str:
        return to_text(self.frame).rstrip("\n")


def to_latex(frame: "pd.DataFrame") -> str:
    """A LaTeX tabular (booktabs rules); floats with fixed decimals, missing values blank, text escaped."""
    words = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
    escapes = str.maketrans(words | {character: f"\\{character}" for character in "&%$#_{}"})

    def line(cells: Iterable[str]) -> str:
        return " & ".join(
            cell.translate(escapes).replace("+-", r"$\pm$").replace(" x ", r" $\times$ ") for cell in cells
        )

    align = "".join("r" if _numeric(frame, i) else "l" for i in range(len(frame.columns)))
    body = "".join(f"{line(row)} \\\\\n" for row in _cells(frame))
    head = line(str(name) for name in frame.columns)
    return f"\\begin{{tabular}}{{{align}}}\n\\toprule\n{head} \\\\\n\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"


def _numeric(frame: "pd.DataFrame", column: int) -> bool:
    return frame.dtypes.iloc[column].kind in "iuf"


# The same methods on several streams: one row per method, one column per stream.


def by_stream(records: Iterable[Record]) -> "pd.DataFrame":
    """LA in percent, mean over seeds, of each method (row) on each stream (column, from large steps to small).

    Joint models, which know no tasks, are left out; empty where a method has no finished run of that stream.
    """
    import pandas as pd

    streams: dict[str, list[Record]] = {}
    for record in sorted((r for r in records if not r.joint), key=lambda r: len(r.tasks)):
        streams.setdefault(tasks_text(record.tasks), []).append(record)
    columns = {
        stream: {group.label: interval(list(group.last_by_seed().values()))[0] for group in groups(members)}
        for stream, members in streams.items()
    }
    order = {label: None for found in sorted(columns.values(), key=len, reverse=True) for label in found}
    frame = pd.DataFrame({stream: pd.Series(found, dtype=float) for stream, found in columns.items()})
    return frame.reindex(list(order)).rename_axis("method").reset_index()
