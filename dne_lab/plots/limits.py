"""The time a training step needs against the limit that the machine's own measured rates set."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dne_lab.errors import LabError
from dne_lab.plots.figure import Figure
from dne_lab.plots.marks import Axis, Drawing, Mark, Points, Words, one
from dne_lab.plots.series import NO_RECORD
from dne_lab.plots.style import Style

if TYPE_CHECKING:
    import pandas as pd

LITERAL, NORMAL, PRODUCTS = "literal path", "normal path", "of it in products and attention"
PRESET = "cifar100-b50-2"  # of `dne-lab bench` where none is given
LIMIT = "limit: FLOPs / measured rate"
LOOKS = {
    LITERAL: Style("#999999", "o", "circle"),
    NORMAL: Style("#009e73", "D", "diamond"),
    PRODUCTS: Style("#56b4e9", "s", "square"),
    LIMIT: Style("#d55e00", "_", "line-ew"),
}


def read_bench(path: str | Path) -> dict[str, Any]:
    """What ``dne-lab bench --json`` wrote.

    Raises:
        LabError: no such file, or no benchmark.
    """
    path = Path(path)
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LabError(f"{path} cannot be read: {error}. Make it: dne-lab bench --json > {path.name}.") from error
    if not is_bench(tree):
        raise LabError(f"{path} is no benchmark: it lacks train_step and seconds. Make it: dne-lab bench --json.")
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
    """
    import pandas as pd

    rows = []
    tasks = sorted(int(name.removeprefix("train_step_")) for name in bench["seconds"] if name.startswith("train_step_"))
    rate = bench.get("rates", {}).get("float32")
    waits = bench.get("device_type", "cpu") != "cpu"  # its shares are of the kernels' time, not of the step's
    for task in tasks:
        seconds, key = float(bench["seconds"][f"train_step_{task}"]), str(task)
        ratio, share = bench["train_step"].get(key), bench.get("product_share", {}).get(key)
        flops = bench.get("step_flops", {}).get(key)
        values = {
            LITERAL: None if ratio is None else seconds * ratio,
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
    """A place a task, the ways of computing side by side, each with its seconds above it."""
    tasks = sorted(table["task"].unique().tolist())
    there = table[table["record"] != NO_RECORD]
    names = [name for name in LOOKS if (there["what"] == name).any()]
    marks: list[Mark] = []
    for number, name in enumerate(names):
        rows = there[there["what"] == name]
        at = [tasks.index(task) + 0.2 * (number - (len(names) - 1) / 2) for task in rows["task"]]
        seconds = rows["seconds"].tolist()
        marks.append(Points(name, at, seconds, LOOKS[name], area=50.0, notes=rows["record"].tolist()))
        both = zip(at, seconds, strict=True)
        marks += [Words(_short(value), x, value, size=6.5, shift=(0.0, 10.0)) for x, value in both]
    least, most = there["seconds"].min(), there["seconds"].max()
    room = (most / least) ** 0.1 if most > least else 2.0
    x = Axis("task", "category", tuple(map(str, tasks)))
    return one(marks, x, Axis("seconds per training step", "log", low=least / room, high=most * room**1.5))


def _short(seconds: float) -> str:
    return f"{seconds:.2g}" if seconds < 1 else f"{seconds:.2f}" if seconds < 10 else f"{seconds:.1f}"
