"""What is committed follows from the committed records: every table is built again and compared, with tolerances."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest

from dne_lab import presets, reporting
from dne_lab.measure import record, tables

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "figures"
DIGITS = "reproduce_digits_s0-4"


@pytest.fixture(scope="module")
def digits() -> list[record.Record]:
    return record.find(FIGURES / "records" / DIGITS)


def same(path: Path, frame: pd.DataFrame) -> None:
    text = frame.to_csv(index=False, float_format="%.4f", lineterminator="\n")
    committed, again = pd.read_csv(path), pd.read_csv(io.StringIO(text))
    pd.testing.assert_frame_equal(committed, again, rtol=0, atol=1.01e-4)


def test_the_table_of_the_digits(digits: list[record.Record]) -> None:
    assert len(digits) == 20 and all(r.finished and r.validation == 0 for r in digits)
    same(FIGURES / f"{DIGITS}.csv", tables.summary(digits))


def test_the_figures_of_the_digits(digits: list[record.Record]) -> None:
    for kind, figure in reporting.drawings(digits).items():
        same(FIGURES / f"{DIGITS}_{kind}.csv", figure.table)
        assert (FIGURES / f"{DIGITS}_{kind}.png").stat().st_size > 10_000


def test_the_table_of_the_tuning() -> None:
    trials = record.find(FIGURES / "records" / "digits-tuning")
    assert len(trials) == 20 and all(r.finished and r.validation == 0.2 for r in trials)
    same(FIGURES / "digits_tuning.csv", tables.summary(trials))
    means: dict[tuple[float, float], float] = {}
    for trial in trials:
        rates = (trial.config["learn"]["lr"], trial.config["tune"]["lr"])
        means[rates] = means.get(rates, 0.0) + (trial.LA or 0.0) / 4
    chosen = presets.resolve("digits")
    assert max(means, key=lambda rates: means[rates]) == (chosen.learn.lr, chosen.tune.lr)


def test_the_committed_runs_are_the_preset(digits: list[record.Record]) -> None:
    for run in digits:
        config = presets.resolve("digits", method=run.method, seed=run.seed)
        assert config.identity() == run.config and config.sha256 == run.config_sha256


def test_the_table_in_the_readme(digits: list[record.Record]) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    columns = ["method", "LA", "LA +-", "AA", "AA +-", "D", "forgetting", "F literal (G)", "F spent (G)", "params (M)"]
    rows = tables.to_markdown(tables.summary(digits)[columns]).splitlines()[2:]
    assert len(rows) == 4
    for row in rows:
        assert row.replace("|  |", "| |").replace("|  |", "| |") in readme


def test_the_budget_was_kept(digits: list[record.Record]) -> None:
    for run in digits:
        stored = run.memory["stored_by_task"]
        assert all(count <= run.memory["budget"] for count in stored), run.id
        assert len(stored) == len(run.tasks) or run.joint


def test_the_cost_table_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for k, step, count in ((1, 10, 5), (2, 10, 5), (4, 10, 5), (1, 5, 10)):
        path = FIGURES / "records" / "cost" / f"dne-k{k}-50+{step}x{count}.json"
        last = json.loads(path.read_text())[-1]
        row = next(line for line in readme.splitlines() if line.startswith(f"| k = {k}, 50 + {step} x {count} |"))
        ours = [float(cell) for cell in row.split("|")[4:6]]
        assert ours == [round(last[name] / 1e9, 3) for name in ("flops_literal", "flops_spent")]
