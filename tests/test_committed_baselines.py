"""The baselines' committed tables and figures follow from their records, and what was chosen from its trials."""

import json

from test_committed import FIGURES, ROOT, rows_of, same

from dne_lab import presets
from dne_lab.measure import record, tables

RUNS = ("digits100-baselines", "digits100-baselines-steps")
COLUMNS = [
    *("method", "tasks", "seeds", "LA", "LA +-", "paper LA", "LA - paper", "AA", "paper AA", "D", "forgetting"),
    *("F", "paper F", "params (M)", "seconds"),
]
BASELINES = ("icarl", "podnet", "dytox")


def runs_of(name: str) -> list[record.Record]:
    return record.find(FIGURES / "records" / name)


def beside_joint() -> list[record.Record]:
    """The runs, and the joint transformers of the same preset, which are among the runs of digits100."""
    return [r for r in runs_of("digits100") if r.method == "joint"] + [r for name in RUNS for r in runs_of(name)]


def test_what_was_chosen() -> None:
    trials = runs_of("digits100-baselines-tuning")
    assert all(r.finished and r.validation == 0.2 and r.seed == 0 for r in trials)
    same(FIGURES / "digits100_baselines_tuning.csv", tables.summary(trials))
    for method in (*BASELINES, "der", "foster"):
        mine = [trial for trial in trials if trial.method == method]
        assert 2 <= len(mine) <= 6
        best = max(mine, key=lambda r: (r.LA or 0.0, r.AA or 0.0)).config
        chosen = presets.resolve(f"digits100,{method}-small")
        assert (best["learn"]["lr"], best["options"]) == (chosen.learn.lr, chosen.options)
        assert method in ("icarl", "foster") or best["tune"]["lr"] == chosen.tune.lr  # those two have no second stage
    student = next(r for r in trials if r.method == "foster" and r.config["learn"]["lr"] == 0.2)
    newest = [round(row[-1]) for row in student.accuracy[1:]]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"{min(newest)} to {max(newest)}% of the" in readme


def test_what_the_readme_says_of_new_classes() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())

    def newest(method: str, first: int) -> str:
        runs = [run for run in runs_of("digits100-baselines") if run.method == method]
        found = [row[-1] for run in runs for row in run.accuracy[first:]]
        return f"{int(min(found))} to {int(max(found))}%"

    assert f"({newest('dytox', 4)} on those of the last two tasks; replay {newest('replay', 4)})" in readme
    assert f"({newest('finetune-resnet', 2)} on the newest classes of tasks 3 to 6)" in readme


def test_every_method_learns_and_the_bounds_hold() -> None:
    """Each learns its newest classes; replay is above fine-tuning and joint training above all, network by network."""
    runs = beside_joint()
    last: dict[str, list[float]] = {}
    for run in runs:
        last.setdefault(run.method, []).append(run.LA or 0.0)
        for number, row in enumerate(run.accuracy, start=1):
            assert row[-1] > 3 * 100 / sum(run.tasks[:number]), (run.id, number)
    means = {method: sum(values) / len(values) for method, values in last.items()}
    for network, methods in (("", ["dytox"]), ("-resnet", ["icarl", "podnet"])):
        assert means[f"finetune{network}"] < means[f"replay{network}"] < means[f"joint{network}"]
        assert all(means[method] < means[f"joint{network}"] for method in methods)


def test_both_predictions_of_icarl_are_in_the_records() -> None:
    for run in runs_of("digits100-baselines"):
        assert list(run.other_predictions) == (["classifier"] if run.method == "icarl" else [])


def test_the_table_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = beside_joint()
    frame = tables.compare(found).merge(tables.summary(found), how="left", on=["method", "tasks"], suffixes=("", "_"))
    markdown = tables.to_markdown(frame[COLUMNS]).splitlines()[2:]
    assert rows_of(readme, "### Baselines") == [[c.strip() for c in line.strip("|").split("|")] for line in markdown]


def test_the_cost_of_the_baselines_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = {row[0]: row[3:] for row in rows_of(readme, "ours agrees\nwith their code.")}
    names = {"iCaRL": "icarl", "PODNet": "podnet", "DyTox": "dytox", "DER": "der", "FOSTER": "foster"}
    assert len(rows) == 9
    for label, cells in rows.items():
        title, tasks = label.split(", ")
        file = FIGURES / "records" / "cost" / f"{names[title]}-{tasks.replace(' ', '')}.json"
        last = json.loads(file.read_text())[-1]
        assert cells[:2] == [f"{last[name] / 1e9:.3f}" for name in ("flops_literal", "flops_spent")]
        assert cells[2] == f"{last['params_total'] / 1e6:.2f}"


def test_fine_tuning_needs_more_steps() -> None:
    """What the README says of its newest classes: with four times the epochs it learns them."""
    runs = {run.config["learn"]["epochs"]: run for run in runs_of("digits100-finetune-check") if run.LA}
    newest = [row[-1] for row in runs[60].accuracy[1:]]
    assert (round(min(newest)), round(max(newest))) == (82, 92)
    others = [run for run in runs_of("digits100-finetune-check") if run.epochs == 15]
    assert len(others) == 3 and all(min(row[-1] for row in run.accuracy[2:]) < 66 for run in others)


def test_the_baselines_on_cifar_in_the_readme() -> None:
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    runs = {run.method: run for run in runs_of("cifar100-small-baselines")}
    for method, title in (("podnet", "PODNet"), ("dytox", "DyTox")):
        run = runs[method]
        precision = {"precision": run.config["precision"]}
        assert run.finished and run.validation == 0
        assert presets.resolve(run.preset, precision, method=method, seed=0).identity() == run.config
        assert f"{title} ends at {run.LA:.1f}% (AA {run.AA:.1f})" in readme
