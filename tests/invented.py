"""Invented records for tests of tables and figures: plausible in form, no result of anything."""

from collections.abc import Iterable, Sequence
from typing import Any

from dne_lab.analysis.decomposition import ROWS, SHARES
from dne_lab.analysis.labelling import GROUPS
from dne_lab.measure.record import Record


def record(method: str = "dne", seed: int = 0, last: float = 80.0, **changes: Any) -> Record:
    """A finished run on 4 + 2 x 3 digits whose seen accuracy falls evenly from 98 to `last` (joint: one task)."""
    tasks: Sequence[int] = changes.pop("tasks", (4, 2, 2, 2))
    joint = method == "joint"
    tasks = [sum(tasks)] if joint else list(tasks)
    done = changes.pop("done", len(tasks))
    seen = [last if joint else 98 - (98 - last) * i / max(1, len(tasks) - 1) for i in range(done)]
    base: dict[str, Any] = {
        "method": method,
        "preset": "digits",
        "dataset": "digits",
        "tasks": tasks,
        "class_order": list(range(sum(tasks))),
        "memory": {"budget": 100, "policy": "shared", "stored": 100, "scope": "run"},
        "seed": seed,
        "epochs": 30,
        "accuracy": [[value - (i - j) for j in range(i + 1)] for i, value in enumerate(seen)],
        "seen_accuracy": seen,
        "LA": seen[-1] if seen else None,
        "AA": sum(seen) / len(seen) if seen else None,
        "forgetting": None if done < 2 else 6.0,
        "flops_literal": 4_000_000,
        "flops_spent": 2_500_000,
        "params": {"total": 300_000, "trainable_by_task": [100_000] * len(tasks)},
        "device": "cpu",
        "torch": "2.15.0",
        "code_version": "0.1.0",
        "config_sha256": f"{method}{seed}".encode().hex().ljust(64, "0"),
        "finished": done == len(tasks),
        "timing": {"seconds": 10.0 + seed},
        "joint": joint,
        "heads": [4] if joint else [4, *[1] * (len(tasks) - 1)],
        "network": {"patch": 2, "heads": [4, 1]},
    }
    return Record(**{**base, **changes})


def runs(method: str, values: Iterable[float], **changes: Any) -> list[Record]:
    """One finished run per seed 0, 1, ..., which end at these accuracies."""
    return [record(method, seed, last, **changes) for seed, last in enumerate(values)]


def attention_tables(keys: float = 8.0, scopes: Sequence[str] = ("experts >= 2", "expert 1")) -> dict[str, Any]:
    """The tables of one moment of an attention record, ``table`` and ``rows``: whole in form, all groups alike.

    Args:
        keys: effective keys of a row of later experts, of 16; expert 1 has 3.
    """
    cells = {"kind": "spatial", "keys": 16.0}
    groups = [{**cells, "scope": scope, "group": group} for scope in scopes for group in GROUPS]
    used = {"experts >= 2": keys, "expert 1": 3.0}
    near = {"effective keys": 0.0, "effective keys low": -0.5, "effective keys high": 0.5}
    rows = [{**cells, "scope": s, **{name: used[s] + step for name, step in near.items()}} for s in scopes]
    return {
        name: {"columns": list(columns), "rows": [[row.get(column, 25.0) for column in columns] for row in found]}
        for name, columns, found in (("table", SHARES, groups), ("rows", ROWS, rows))
    }
