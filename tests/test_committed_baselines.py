"""The committed runs of all methods are sound: what was chosen follows from its trials, and every method learns."""

import pandas as pd
from test_committed import FIGURES, same

from dne_lab.core import config, presets
from dne_lab.measure import record, tables
from dne_lab.measure.metrics import interval
from dne_lab.methods import base

DIGITS100 = ("digits100", "digits100-steps", "digits100-baselines", "digits100-baselines-steps")
CIFAR = ("cifar100-small", "cifar100-small-baselines")
ON_RESNETS = ("icarl", "podnet", "der", "foster")


def runs_of(*names: str) -> list[record.Record]:
    return [run for name in names for run in record.find(FIGURES / "records" / name)]


def test_what_was_chosen() -> None:
    trials = runs_of("digits100-baselines-tuning")
    assert all(r.finished and r.validation == 0.2 and r.seed == 0 for r in trials)
    same(FIGURES / "digits100_baselines_tuning.csv", tables.summary(trials))
    for method in (*ON_RESNETS, "dytox"):
        mine = [trial for trial in trials if trial.method == method]
        assert 2 <= len(mine) <= 6
        best = max(mine, key=lambda r: (r.LA or 0.0, r.AA or 0.0)).config
        chosen = presets.resolve(f"digits100,{method}-small")
        own = base.find(method).Options  # reads text and numbers alike
        assert config.build(own, best["options"]) == config.build(own, chosen.options)
        assert best["learn"]["lr"] == chosen.learn.lr
        assert method in ("icarl", "foster") or best["tune"]["lr"] == chosen.tune.lr  # those two have no second stage


def newest(run: record.Record, first: int = 1) -> list[float]:
    """Accuracy on the newest classes after each task from ``first`` (0: the first one) on."""
    return [row[-1] for row in run.accuracy[first:]]


def test_podnet_starts_slowly() -> None:
    losses = pd.read_csv(FIGURES / "records" / "digits100_podnet_task1_curves.csv")["nca"].tolist()
    assert len(losses) == 15 and losses[1] > 0.95 * losses[0] and losses[3] < 0.5 * losses[0]


def test_every_method_learns_and_the_bounds_hold() -> None:
    """Each learns its newest classes; replay is above fine-tuning and joint training above all, network by network.

    IA with one head in every expert is left out: it hardly learns the first 50.
    """
    last: dict[str, list[float]] = {}
    for run in runs_of(*DIGITS100):
        if run.heads == [1] * 6:
            continue
        last.setdefault(run.method, []).append(run.LA or 0.0)
        for number, row in enumerate(run.accuracy, start=1):
            assert row[-1] > 3 * 100 / sum(run.tasks[:number]), (run.id, number)
    means = {method: interval(values)[0] for method, values in last.items()}
    for network, methods in (("", ["dytox", "ia", "sta", "dne", "progressive"]), ("-resnet", ON_RESNETS)):
        assert means[f"finetune{network}"] < means[f"replay{network}"] < means[f"joint{network}"]
        assert all(means[method] < means[f"joint{network}"] for method in methods)


def test_other_predictions_are_in_the_records() -> None:
    others = {"icarl": ["classifier"], "foster": ["teacher"]}
    for run in runs_of(*DIGITS100, *CIFAR):
        assert list(run.other_predictions) == others.get(run.method, [])


def test_fine_tuning_needs_more_steps() -> None:
    """On a residual network 15 epochs do not reach its newest classes: with four times the epochs it learns them."""
    runs = {run.config["learn"]["epochs"]: run for run in runs_of("digits100-finetune-check") if run.LA}
    assert (round(min(newest(runs[60]))), round(max(newest(runs[60])))) == (82, 92)
    others = [run for run in runs_of("digits100-finetune-check") if run.epochs == 15]
    assert len(others) == 3 and all(min(newest(run, 2)) < 66 for run in others)
