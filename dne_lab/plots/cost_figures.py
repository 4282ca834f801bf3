"""Cost and accuracy against the number of tasks: figures 6 e and f, and growth by formula, counted and printed."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from dne_lab.core import presets, schema
from dne_lab.core.errors import LabError
from dne_lab.measure import cost_formula, paper
from dne_lab.measure.cost_records import CostRecord, longest
from dne_lab.measure.record import Name, Number, Record, Section, Whole, read
from dne_lab.models.variants import DNE, IA, PROGRESSIVE, STA
from dne_lab.plots.accuracy import accuracy_by_task
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Mark, Points, Words, one
from dne_lab.plots.series import NO_RECORD
from dne_lab.plots.style import INK, Style, style

if TYPE_CHECKING:
    import pandas as pd


GEOMETRY = "cifar100-b50-10"  # the preset whose network the cost records count
TWENTY_SIX = (50, *[2] * 25)
VARIANTS = {variant.name: variant for variant in (IA, STA, DNE, PROGRESSIVE)}
COLUMNS = ["series", "method", "source", "task", "F (G)", "remark", "record"]
FORMULA, LITERAL, SPENT, PAPER, RELEASE = "formula", "literal", "spent", "paper", "authors' code"
DASH = {FORMULA: "-", LITERAL: "-", SPENT: "--", PAPER: "", RELEASE: ""}
AREAS = {FORMULA: 0.0, LITERAL: 12.0, SPENT: 0.0, PAPER: 30.0, RELEASE: 30.0}
LOOKS = {PAPER: {"marker": "s", "symbol": "square"}, RELEASE: {"marker": "+", "symbol": "cross-thin"}}
WORDS = {FORMULA: "formula", LITERAL: "counted, literal", SPENT: "counted, spent", PAPER: "paper prints"}
WORDS |= {RELEASE: "authors' code, counted"}


def cost_growth(costs: Sequence[CostRecord]) -> Figure:
    """F after each task at the CIFAR-100 geometry: by the complexity formula, counted (literal, spent) and printed.

    One curve per method and k, of the cost record with most tasks. The formula is `cost_formula.total`; printed numbers
    that a remark of ``paper.tables()`` questions are crossed out, the remark is in the table. DNE and the methods that
    the paper prints are named "no record" where no cost record counts them.

    Raises:
        LabError: no cost record.
    """
    if not costs:
        raise LabError(
            "no cost record: count one, e.g. dne-lab cost dne --tasks 50,10,10 --json > dne-k1-50+10x2.json."
        )
    rows = [row for cost in longest(costs) for row in (*_counted(cost), *_by_formula(cost))]
    rows += [
        {"series": row["series"], "method": row["method"], "source": PAPER, "task": row["T"], "F (G)": row["F (G)"]}
        | {"remark": row["remark"] if row["F odd"] else "", "record": paper.PRINTED}
        for row in paper.rows("cifar100", (10, 5, 25))
        if row["method"] in ("dne", "der")
    ]
    for row in paper.authors_code_cost().to_dict("records"):
        if row["method"] == "dne" and row["step"] != "-" and row["heads_per_task"] in (1, 2, 4):
            series = f"DNE (k = {row['heads_per_task']})"
            rows.append({"series": series, "method": "dne", "source": RELEASE, "task": int(row["tasks"])})
            rows[-1] |= {"F (G)": row["gflops_2mac"], "remark": row["remark"], "record": paper.PRINTED}
    counted = {cost.label for cost in costs}
    wanted = [*((f"DNE (k = {k})", "dne") for k in (1, 2, 4)), ("DER", "der"), ("FOSTER", "foster"), ("DyTox", "dytox")]
    rows += [{"series": s, "method": m, "record": NO_RECORD} for s, m in wanted if s not in counted]
    title = "Cost of one image against the number of tasks: formula, counted, printed\n"
    title += "CIFAR-100 geometry, 12 heads first, k later"
    frame = _frame(rows)
    return Figure("cost_growth", title, frame, [c.id for c in longest(costs)], _growth, (8.4, 4.4))


def figure_6e(costs: Sequence[CostRecord]) -> Figure:
    """F against the task at 50 + 2 x 25 classes for DNE, DER and FOSTER (the paper prints no numbers here).

    ``costs``: records of other streams and methods are left out; a method without one is a row "no record".
    """
    names = {"dne": "DNE (k = 1)", "der": "DER", "foster": "FOSTER"}
    fits = [c for c in costs if c.tasks == TWENTY_SIX and c.method in names and c.k in (None, 1)]
    rows = [row for cost in fits for row in _counted(cost)]
    there = {cost.method for cost in fits}
    rows += [{"series": s, "method": m, "record": NO_RECORD} for m, s in names.items() if m not in there]
    title = "Cost of one image against the task, 50 + 2 x 25 classes\nCIFAR-100 geometry, counted"
    return Figure("figure_6e", title, _frame(rows), [c.id for c in fits], _growth, (7.4, 3.6))


def figure_6f(records: Iterable[Record], dataset: str = "cifar100") -> Figure:
    """Accuracy against the task at 50 + 2 x 25 classes: DNE, DER, FOSTER, and ours that the paper does not draw.

    Raises:
        LabError: no finished run of ``dataset`` on this stream.
    """
    fits = [r for r in records if paper.dataset_of(r) == dataset and r.tasks == list(TWENTY_SIX)]
    figure = accuracy_by_task(fits, ("dne", "der", "foster"))
    figure.name = "figure_6f"
    return figure


def _frame(rows: list[dict[str, Any]]) -> "pd.DataFrame":
    import pandas as pd

    frame = pd.DataFrame([{"source": "", "remark": ""} | row for row in rows], columns=COLUMNS)
    return frame.astype({"task": "Int64", "F (G)": float})


def _counted(cost: CostRecord) -> list[dict[str, Any]]:
    return [
        {"series": cost.label, "method": cost.method, "source": source, "task": row["task"]}
        | {"F (G)": row[f"flops_{source}"] / 1e9, "record": cost.id}
        for source in (LITERAL, SPENT)
        for row in cost.rows
    ]


def _by_formula(cost: CostRecord) -> list[dict[str, Any]]:
    """F by `cost_formula.total`; methods that are no variant of the one network have no such formula here."""
    if cost.method not in VARIANTS or cost.k is None:
        return []
    network = presets.resolve(GEOMETRY).network
    heads = [network.heads[0], *[cost.k] * (len(cost.tasks) - 1)]
    sums = cost_formula.total(network, VARIANTS[cost.method], heads, cost.tasks)
    return [
        {"series": cost.label, "method": cost.method, "source": FORMULA, "task": number}
        | {"F (G)": value / 1e9, "record": "formula"}
        for number, value in enumerate(sums, start=1)
    ]


# The drawings -----------------------------------------------------------------------------------------------------


def _curves(table: "pd.DataFrame") -> list[tuple[str, str, str, "pd.DataFrame"]]:
    there = table[table["record"] != NO_RECORD]
    return [
        (str(series), str(rows["method"].iloc[0]), str(source), rows)
        for (series, source), rows in there.groupby(["series", "source"], sort=False)
    ]


def _growth(table: "pd.DataFrame") -> Drawing:
    """A curve per series, named at its end; the legend says what is formula, counted and printed."""
    curves = _curves(table)
    by_formula = {series for series, _, source, _ in curves if source == FORMULA}
    drawn = {series for series, _, source, _ in curves if source == LITERAL}
    marks: list[Points] = []
    most = 1.0
    for series, method, source, rows in curves:
        x, y = rows["task"].astype(float).tolist(), rows["F (G)"].astype(float).tolist()
        named = source == LITERAL or (source in LOOKS and series not in drawn)
        most = max(most, *x) if named else most
        remarks = [str(remark) for remark in rows["remark"]]
        notes = zip(rows["record"].astype(str), remarks, strict=True)
        marks.append(
            Points(
                f"{series}, {WORDS[source]}", x, y,
                style(method)._replace(**LOOKS.get(source, {})),
                "" if source == LITERAL and series in by_formula else DASH[source],
                filled=source != PAPER,
                area=AREAS[source],
                every=max(1, len(x) // 8) if source == LITERAL else 1,
                notes=[", ".join(filter(None, pair)) for pair in notes],
                tags=[series if named and i == len(x) - 1 else "" for i in range(len(x))],
                crossed=[source == PAPER and remark != "" for remark in remarks],
                listed=False,
                width=1.1,
            )
        )  # fmt: skip
    keys = _keys({source for _, _, source, _ in curves}, bool(by_formula), any(any(mark.crossed) for mark in marks))
    ticks = tuple(map(float, (1, *range(5, int(most) + 1, 5))))
    y_axis = Axis("F: GFLOPs of one image\n(2 x multiply-accumulate)", "log")
    return one([*marks, *keys], Axis("task", ticks=ticks, low=0.4, high=most * 1.3), y_axis)


def _keys(sources: set[str], by_formula: bool, crossed: bool) -> list[Points]:
    """Marks without a point: what the legend explains."""
    grey = Style(INK, "o", "circle")
    found = [
        Points(WORDS[source], [], [], grey._replace(**LOOKS.get(source, {})),
               "" if source == LITERAL and by_formula else DASH[source], filled=source != PAPER, area=AREAS[source])
        for source in WORDS
        if source in sources
    ]  # fmt: skip
    return [*found, Points("printed, doubtful", [], [], Style(INK, "x", "x-thin"))] if crossed else found


# The time a training step needs against the limit that the machine's own measured rates set.

LITERAL_TIME, NORMAL, PRODUCTS = "literal path", "normal path", "of it in products and attention"
PRESET = "cifar100-b50-2"  # of `dne-lab bench` where none is given
LIMIT = "limit: FLOPs / measured rate"
TIME_LOOKS = {
    LITERAL_TIME: Style("#999999", "o", "circle"),
    NORMAL: Style("#009e73", "D", "diamond"),
    PRODUCTS: Style("#56b4e9", "s", "square"),
    LIMIT: Style("#d55e00", "_", "line-ew"),
}


Above = Annotated[float, Field(gt=0, le=1e30)]


class Bench(Section):
    """What ``dne-lab bench --json`` writes, as far as it is drawn."""

    train_step: dict[str, Above]
    seconds: dict[str, Above]
    batch: Whole
    threads: Whole
    product_share: dict[str, Number] = Field(default_factory=dict)
    step_flops: dict[str, Whole] = Field(default_factory=dict)
    rates: dict[str, Above] = Field(default_factory=dict)
    preset: Name = PRESET
    device: Name | None = None
    device_type: Name = "cpu"


def read_bench(path: str | Path) -> dict[str, Any]:
    """What ``dne-lab bench --json`` wrote.

    Raises:
        LabError: no such file, or no benchmark.
    """
    path = Path(path)
    tree = read(path)
    if not is_bench(tree):
        raise LabError(f"{path} is no benchmark: it lacks train_step and seconds. Make it: dne-lab bench --json.")
    return checked_bench(tree, path)


def checked_bench(tree: dict[str, Any], path: Path) -> dict[str, Any]:
    """``tree``, whose fields have to be what ``dne-lab bench --json`` writes; ``path`` is named in errors."""
    try:
        schema.check(Bench, tree)
    except LabError as error:
        raise LabError(f"{path}: {error} Make it again: dne-lab bench --json.") from error
    if strange := [name for name in tree["seconds"] if not re.fullmatch(r"(train_step|inference)_[1-9]\d{0,3}", name)]:
        raise LabError(f"{path}: unknown field seconds.{strange[0]}. Make it again: dne-lab bench --json.")
    return tree


def is_bench(tree: Any) -> bool:
    """Whether a JSON tree is what ``dne-lab bench --json`` writes."""
    return isinstance(tree, dict) and {"train_step", "seconds", "batch", "threads"} <= tree.keys()


def step_time(bench: Mapping[str, Any]) -> Figure:
    """Seconds of a training step at each task measured: literal path, normal path, and the limit of the machine.

    The limit is the step's FLOPs divided by the rate that this machine reached in one large matrix product: no program
    that does these operations can be faster.

    Args:
        bench: what ``dne-lab bench --json`` wrote. ``seconds`` holds train_step_T of the normal path, ``train_step``
            how many times as long the literal path takes, ``product_share`` the share of the time in products and
            attention (on a GPU of its kernels' time, so it is not drawn). The limit needs two keys more, without which
            it is a row "no record": ``step_flops`` {task: FLOPs of one step on the normal path} and ``rates``
            {"float32": FLOP/s}.

    Raises:
        LabError: no step was timed.
    """
    import pandas as pd

    rows = []
    tasks = sorted(int(name.removeprefix("train_step_")) for name in bench["seconds"] if name.startswith("train_step_"))
    if not tasks:
        raise LabError("the benchmark has timed no training step: make one with dne-lab bench --json.")
    rate = bench.get("rates", {}).get("float32")
    waits = bench.get("device_type", "cpu") != "cpu"  # its shares are of the kernels' time, not of the step's
    for task in tasks:
        seconds, key = float(bench["seconds"][f"train_step_{task}"]), str(task)
        ratio, share = bench["train_step"].get(key), bench.get("product_share", {}).get(key)
        flops = bench.get("step_flops", {}).get(key)
        values = {
            LITERAL_TIME: None if ratio is None else seconds * ratio,
            NORMAL: seconds,
            PRODUCTS: None if share is None or waits else seconds * share,
            LIMIT: None if rate is None or flops is None else flops / rate,
        }
        for name, value in values.items():
            record = NO_RECORD if value is None else "bench"
            rows.append({"task": task, "what": name, "seconds": value, "GFLOP": None if flops is None else flops / 1e9})
            rows[-1]["record"] = record
    frame = pd.DataFrame(rows).astype({"seconds": float, "GFLOP": float})
    limit = "" if rate is None else " and the machine's limit"
    title = f"A training step of {bench['batch']} images: time{limit}\n"
    title += f"DNE, {bench.get('preset', PRESET)}, {bench.get('device') or 'cpu'}, "
    title += "1 thread" if bench["threads"] == 1 else f"{bench['threads']} threads"
    if rate is not None:
        title += f", {rate / 1e9:.0f} GFLOP/s measured" if rate < 1e12 else f", {rate / 1e12:.0f} TFLOP/s measured"
    return Figure("step_time", title, frame, ["bench"], _marks, (7.4, 3.6))


# The drawings -----------------------------------------------------------------------------------------------------


def _marks(table: "pd.DataFrame") -> Drawing:
    """A place per task, the ways of computing side by side, each with its seconds above it."""
    tasks = sorted(table["task"].unique().tolist())
    there = table[table["record"] != NO_RECORD]
    names = [name for name in TIME_LOOKS if (there["what"] == name).any()]
    marks: list[Mark] = []
    for number, name in enumerate(names):
        rows = there[there["what"] == name]
        at = [tasks.index(task) + 0.2 * (number - (len(names) - 1) / 2) for task in rows["task"]]
        seconds = rows["seconds"].tolist()
        marks.append(Points(name, at, seconds, TIME_LOOKS[name], area=50.0, notes=rows["record"].tolist()))
        both = zip(at, seconds, strict=True)
        marks += [Words(_short(value), x, value, size=6.5, shift=(0.0, 10.0)) for x, value in both]
    least, most = there["seconds"].min(), there["seconds"].max()
    room = (most / least) ** 0.1 if most > least else 2.0
    x = Axis("task", "category", tuple(map(str, tasks)))
    return one(marks, x, Axis("seconds per training step", "log", low=least / room, high=most * room**1.5))


def _short(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 1 else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}"
