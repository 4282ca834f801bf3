"""One variant for every value of every column of controls, and some together, for the tests of models and of cost."""

from typing import Any

from dne_lab.models.variants import Variant

COLUMNS: list[tuple[str, str, dict[str, Any]]] = [
    ("own", "task", {"weights": "uniform"}),
    ("own", "task1", {"weights": "uniform", "experts": "first"}),
    ("own", "task", {"experts": "first"}),
    ("own", "task", {"experts": "previous"}),
    ("own", "task", {"experts": "own"}),
    ("own", "linear", {"experts": "first"}),
    ("own", "linear", {"experts": "own"}),
    ("all", "linear", {"experts": "previous"}),
    ("all", "mlp", {"experts": "first"}),
    ("all", "mlp", {"experts": "own"}),
    ("all", "mlp", {"masked": "SPDH"}),
    ("all", "mlp", {"masked": "DPDH"}),
    ("all", "mlp", {"masked": "both"}),
    ("all", "mlp", {"mass": "ia"}),
    ("all", "mlp", {"pictures": "shuffled"}),
    ("all", "mlp", {"pictures": "own"}),
    ("all", "mlp", {"projections": "each"}),
    ("all", "mlp", {"projections": "each", "experts": "first", "masked": "SPDH"}),
    ("own", "mlp", {"temperature": 2.0}),
    ("own", "mlp", {"entropy": 0.9}),
    ("all", "mlp", {"entropy": 0.8, "masked": "DPDH"}),
    ("all", "task", {"temperature": 0.5, "pictures": "shuffled", "projections": "each"}),
    ("all", "task", {"mass": "ia", "weights": "uniform"}),
]
RESTRICTED: list[tuple[str, str, dict[str, Any]]] = [
    ("own", "task", {"most": 2}),
    ("own", "task", {"most": 0}),
    ("own", "task", {"weights": "means"}),
    ("own", "task2", {"most": 1, "weights": "means"}),
]


def _variant(reads: str, mixes: str, columns: dict[str, Any]) -> Variant:
    told = "-".join(f"{name}={value}" for name, value in columns.items())
    return Variant(f"{reads}-{mixes}-{told}", reads, mixes, **columns)


CONTROLS = [_variant(*row) for row in COLUMNS]
RESTRICTING = [_variant(*row) for row in RESTRICTED]
