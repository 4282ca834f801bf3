"""What the templates of the pages may ask of cost and speed: counted FLOPs, printed ones, seconds, bytes."""

import json
from collections.abc import Sequence
from typing import Any

import facts
import pandas as pd
from facts import n

from dne_lab.measure import budget, cost_records, paper, tables
from dne_lab.measure.record import Record


def short_runs(name: str) -> Record:
    """A record of ``figures/gpu``: runs too short to say anything of methods, which no table holds."""
    return Record.from_json(facts.FIGURES / "gpu" / name)


def paper_scale_hours() -> float:
    """Hours of 500 epochs of DNE on 50 + 10 x 5 on the GPU of ``figures/gpu``, from single epochs measured there.

    An epoch of a later task has 28 steps; those of tasks 2 to 4 were measured with 12, tasks 5 and 6 count as task 4.
    """
    epochs = short_runs("dne-b50-2-e2-s0-four-tasks.json").timing["last_epoch"]
    first, *later = (epoch["learn"] for epoch in epochs)
    tune = max(epoch["tune"] for epoch in epochs if "tune" in epoch)
    return float((500 * (first + 28 / 12 * sum([*later, later[-1], later[-1]])) + 5 * 20 * tune) / 3600)


def bench(name: str) -> dict[str, Any]:
    """What a benchmark measured (``records/timing``)."""
    return dict(json.loads((facts.RECORDS / "timing" / f"{name}.json").read_text()))


def cost(method: str, tasks: str, k: int | None = None) -> dict[str, Any]:
    """What was counted after the last task, e.g. ``cost("dne", "50+10x5", 1)``."""
    name = f"{method}{'' if k is None else f'-k{k}'}-{tasks}.json"
    return dict(json.loads((facts.RECORDS / "cost" / name).read_text())[-1])


def cost_table(rows: Sequence[tuple[str, str, int | None]]) -> str:
    """Printed, counted on the authors' files, literal and spent GFLOPs of (method, tasks, k)."""
    steps = {"50+10x5": 10, "50+5x10": 5, "50+25x2": 25, "50+2x25": 2}
    printed, released = paper.tables(), paper.authors_code_cost()
    found = []
    for method, tasks, k in rows:
        one = cost(method, tasks, k)
        row = {"method": method, "step": steps[tasks], "k": k}
        name = method if k is None else f"dne_{k}head{'s' * (k > 1)}"
        mine = printed[
            (printed["dataset"] == "cifar100") & (printed["step"] == row["step"]) & (printed["method"] == name)
        ]
        theirs = released[(released["method"] == method) & (released["step"] == str(row["step"]))]
        theirs = theirs[theirs["heads_per_task"] == (12 if k is None else k)]
        titles = {
            "dne": "DNE",
            "der": "DER",
            "icarl": "iCaRL",
            "podnet": "PODNet",
            "foster": "FOSTER",
            "dytox": "DyTox",
        }
        found.append(
            {"after the last task": f"{titles[method]}{'' if k is None else f' (k = {k})'}, {spaced(tasks)}"}
            | {"paper prints": float(mine["f_gflops"].iloc[0]) if len(mine) else None}
            | {"authors' code, counted": f"{theirs['gflops_2mac'].iloc[0]:.3f}" if len(theirs) else ""}
            | {"literal": f"{one['flops_literal'] / 1e9:.3f}", "spent": f"{one['flops_spent'] / 1e9:.3f}"}
            | {"params (M)": one["params_total"] / 1e6}
        )
    return tables.to_markdown(pd.DataFrame(found))


def bought_table(tasks: str) -> str:
    """Bytes of every method's finished model, from small to large, and the exemplars that they would buy."""
    found = [one for one in cost_records.find([facts.RECORDS / "cost"]) if one.id.endswith(f"-{tasks}")]
    found.sort(key=lambda one: int(one.last["params_total"]))
    smallest = found[0].last["params_total"]
    rows = [
        {"method": one.label, "MB": n(budget.PARAMETER * one.last["params_total"] / budget.MB)}
        | {"exemplars": f"{budget.bought(one.last['params_total'], smallest, (3, 32, 32)):,}"}
        for one in found
    ]
    return tables.to_markdown(pd.DataFrame(rows))


def spaced(tasks: str) -> str:
    """``50 + 10 x 5`` for ``50+10x5``."""
    return tasks.replace("+", " + ").replace("x", " x ")


def speed_table(name: str, places: int = 2) -> str:
    """How many times as fast as the literal path, and seconds, of one benchmark."""
    made = bench(name)
    rows = [(f"training step, task {task}", ratio, f"train_step_{task}") for task, ratio in made["train_step"].items()]
    rows += [(f"prediction, task {task}", ratio, f"inference_{task}") for task, ratio in made["inference"].items()]
    return tables.to_markdown(
        pd.DataFrame(
            {"": [row[0] for row in rows], "times as fast as literal": [f"{row[1]:.1f}" for row in rows]}
            | {"seconds": [f"{made['seconds'][row[2]]:.{places}f}" for row in rows]}
        )
    )


def growth_table(method: str) -> str:
    """What a method costs after so many tasks: counted, and where it was measured CPU seconds."""
    found = bench("growth")
    rows = [
        {
            "tasks": f"{row['tasks']:,}",
            "F literal (G)": f"{row['flops_literal'] / 1e9:,.1f}",
            "F spent (G)": f"{row['flops_spent'] / 1e9:,.1f}",
            "parameters (M)": f"{row['parameters'] / 1e6:,.0f}",
            "weights (GB)": f"{row['bytes'] / 1e9:,.2f}",
            "training step (s)": f"{row['seconds']['step']:.2f}" if "seconds" in row else "",
            "prediction (s)": f"{row['seconds']['prediction']:.2f}" if "seconds" in row else "",
        }
        for row in found["rows"][method]
    ]
    return tables.to_markdown(pd.DataFrame(rows))


def growth(method: str, tasks: int, field: str) -> float:
    """One number of `growth_table`: flops_literal, flops_spent, parameters or bytes."""
    return float(next(row[field] for row in bench("growth")["rows"][method] if row["tasks"] == tasks))


def printed_above(k: int, tasks: str) -> float:
    """How far the paper's F of DNE lies above the count of its authors' code, percent."""
    step = {"50+10x5": 10, "50+5x10": 5}[tasks]
    printed, released = paper.tables(), paper.authors_code_cost()
    row = printed[(printed["dataset"] == "cifar100") & (printed["step"] == step)].set_index("method")
    theirs = released[
        (released["method"] == "dne") & (released["step"] == str(step)) & (released["heads_per_task"] == k)
    ]
    return float(100 * (row["f_gflops"][f"dne_{k}head{'s' * (k > 1)}"] / theirs["gflops_2mac"].iloc[0] - 1))
