"""What is committed follows from the committed records: every table is built again and compared, with tolerances."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

import dne_lab as lab
from dne_lab.analysis import ablation_study
from dne_lab.commands import report
from dne_lab.commands.bench import AUTHORS_CODE
from dne_lab.core import presets
from dne_lab.measure import record, tables
from dne_lab.measure.trained_controls import controls, ladder
from dne_lab.models import literal
from dne_lab.plots.contributions import controls_figure, ladder_figure

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
    for kind, figure in report.drawings(digits).items():
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


def test_fine_tuning_and_replay_on_digits_are_the_preset(digits: list[record.Record]) -> None:
    runs = record.find(FIGURES / "records" / "digits-one-network")
    seeds = {name: [run.seed for run in runs if run.method == name] for name in ("finetune", "replay")}
    assert seeds["finetune"] == seeds["replay"] and len(seeds["replay"]) >= 3 and len(runs) == 2 * len(seeds["replay"])
    for run in runs:
        config = presets.resolve("digits", method=run.method, seed=run.seed)
        assert run.finished and config.identity() == run.config and config.sha256 == run.config_sha256
        # Learned alike on task 1: what fine-tuning and replay do differently begins after it.
        assert run.accuracy[0] == next(r for r in runs if r.seed == run.seed).accuracy[0]


def test_the_budget_was_kept(digits: list[record.Record]) -> None:
    for run in digits:
        stored = run.memory["stored_by_task"]
        assert all(count <= run.memory["budget"] for count in stored), run.id
        assert len(stored) == len(run.tasks) or run.joint


def test_what_is_counted_and_timed_as_figures() -> None:
    places = [FIGURES / "records" / name for name in ("cost", "timing")]
    made = report.measurements(places)
    assert list(made) == ["cost_growth", "figure_6e", "step_time", "step_time_nvidia_h200"]
    for name, figure in made.items():
        same(FIGURES / f"{name}.csv", figure.table)
        assert (FIGURES / f"{name}.png").stat().st_size > 10_000


def test_the_architecture_of_the_committed_models() -> None:
    made = report.architectures(sorted((FIGURES / "checkpoints").glob("*.safetensors")))
    assert set(made) == {"figure_3", *(f"figure_{n}_{v}" for n in (2, 5) for v in ("ia", "sta", "dne"))}
    for name, figure in made.items():
        same(FIGURES / f"cifar100_small_{name}.csv", figure.table)
        assert (FIGURES / f"cifar100_small_{name}.png").stat().st_size > 10_000


INSTRUMENTS = ("attention", "ablation", "probe")


@pytest.mark.parametrize("name", INSTRUMENTS)
def test_the_figures_of_the_instruments(name: str) -> None:
    made = report.measurements([FIGURES / "records" / name])
    assert len(made) >= 3
    for kind, figure in made.items():
        same(FIGURES / f"{kind}.csv", figure.table)
        assert (FIGURES / f"{kind}.png").stat().st_size > 10_000


def test_no_committed_figure_is_of_unknown_origin() -> None:
    tables_alone = {
        "digits_tuning",
        "digits100_tuning",
        "digits100_baselines_tuning",
        "digits100_controls_tuning",
        "cifar100_medium_tuning",
        DIGITS,
        *(name.replace("-", "_") for name in RUNS),
    }
    known = {f"{DIGITS}_{kind}" for kind in report.drawings(record.find(FIGURES / "records" / DIGITS))}
    for name in RUNS:
        runs = record.find(FIGURES / "records" / name)
        known |= {f"{name.replace('-', '_')}_{kind}" for kind in report.drawings(runs)}
    known |= {f"digits100_all_{kind}" for kind in ALL_METHODS} | {CONTROLS, f"{CONTROLS}_ladder"}
    checkpoints = sorted((FIGURES / "checkpoints").glob("*.safetensors"))
    known |= {f"cifar100_small_{kind}" for kind in report.architectures(checkpoints)}
    instruments = [FIGURES / "records" / name for name in INSTRUMENTS]
    known |= report.measurements([FIGURES / "records" / "cost", FIGURES / "records" / "timing", *instruments]).keys()
    assert {file.stem for file in FIGURES.glob("*.png")} == known | {"explorer"}  # taken by figures/explorer.py
    assert {file.stem for file in FIGURES.glob("*.csv")} == known | tables_alone


# The longer runs ---------------------------------------------------------------------------------------------------

RUNS = {  # and how many; None: a list of runs (grid.json) that is being worked through
    "digits100": 39,
    "digits100-steps": 18,
    "cifar100-small": 9,
    "cifar100-small-baselines": 8,
    "digits100-baselines": 24,
    "digits100-baselines-steps": 14,
    "digits100-widths": 18,
    "cifar100-medium": None,
}


ALL_METHODS = ("figure_1_right", "figure_6a", "figure_6c", "figure_6f", "accuracy_over_bytes")


@pytest.mark.parametrize("name", RUNS)
def test_the_tables_and_figures_of_the_longer_runs(name: str) -> None:
    runs, stem = record.find(FIGURES / "records" / name), name.replace("-", "_")
    assert RUNS[name] in (None, len(runs)) and all(r.finished and r.validation == 0 for r in runs)
    same(FIGURES / f"{stem}.csv", tables.summary(runs))
    for kind, figure in report.drawings(runs).items():
        same(FIGURES / f"{stem}_{kind}.csv", figure.table)
        assert (FIGURES / f"{stem}_{kind}.png").stat().st_size > 10_000
    for run in runs:
        options = {f"options.{n}": v for n, v in run.config["options"].items() if n in ("width", "network")}
        given = options | {"network.heads": run.config["network"]["heads"], "precision": run.config["precision"]}
        assert presets.resolve(run.preset, given, method=run.method, seed=run.seed).identity() == run.config
        assert all(count <= run.memory["budget"] for count in run.memory["stored_by_task"])


CONTROLS = "digits100_controls"
CONTROLLED = ("digits100-controls", "digits100-controls-repeat")  # lists of runs that are being worked through


def test_the_figures_of_the_controls() -> None:
    runs = record.find([FIGURES / "records" / name for name in CONTROLLED])
    same(FIGURES / f"{CONTROLS}.csv", controls_figure(controls(runs)).table)
    same(FIGURES / f"{CONTROLS}_ladder.csv", ladder_figure(ladder(runs)).table)
    assert all(r.finished and r.validation == 0 for r in runs)


@pytest.mark.parametrize("name", CONTROLLED)
def test_the_records_of_the_controls_are_what_their_list_asks_for(name: str) -> None:
    listed = {one["name"]: one for one in json.loads((FIGURES / "records" / name / "grid.json").read_text())}
    for path in (FIGURES / "records" / name).glob("*-s*.json"):
        run, entry = record.Record.from_json(path), listed[path.stem]
        made = presets.resolve(entry["preset"], entry["settings"], method=entry["method"], seed=entry["seed"])
        assert made.identity() == run.config


def test_the_figures_of_all_methods() -> None:
    """Those to which several sets of runs contribute: ``report`` on all their folders makes them."""
    folders = [FIGURES / "records" / name for name in RUNS if name.startswith("digits100")]
    made = report.drawings(record.find(folders))
    for kind in ALL_METHODS:
        same(FIGURES / f"digits100_all_{kind}.csv", made[kind].table)
        assert (FIGURES / f"digits100_all_{kind}.png").stat().st_size > 10_000


def test_the_tuning_of_digits100() -> None:
    trials = record.find(FIGURES / "records" / "digits100-tuning")
    assert len(trials) == 7 and all(r.method == "ia" and r.validation == 0.2 for r in trials)
    same(FIGURES / "digits100_tuning.csv", tables.summary(trials))
    best = max(trials, key=lambda r: r.LA or 0.0).config
    chosen = presets.resolve("digits100")
    assert (best["learn"]["lr"], best["tune"]["lr"]) == (chosen.learn.lr, chosen.tune.lr)
    assert best["network"]["patch"] == chosen.network.patch


@pytest.mark.parametrize("method", ["ia", "sta", "dne"])
def test_the_committed_models(method: str) -> None:
    file = FIGURES / "checkpoints" / f"{method}-cifar100-small-s0.safetensors"
    assert file.stat().st_size <= 1_500_000
    run = lab.open(file)
    committed = record.Record.from_json(FIGURES / "records" / "cifar100-small" / f"{method}-s0.json")
    assert record.unique([run.record, committed]) == [committed]
    kept = sum(p.numel() for module in run.method.network_to_keep() for p in module.parameters())
    assert kept == run.record.params["total"] and run.model.heads == (4, 1, 1, 1, 1, 1)
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = run.model(images).logits
        assert logits.isfinite().all() and logits.shape == (2, 100)
        assert tiny.difference(literal.forward(run.model, images).logits, logits) < 1e-5


# What is lost without attention ------------------------------------------------------------------------------------


def test_the_records_of_the_ablations() -> None:
    found = ablation_study.AblationRecord.find(FIGURES / "records" / "ablation")
    wanted = {("digits100", method, seed) for method in ("ia", "sta", "dne") for seed in (0, 1, 2)}
    wanted |= {("cifar100-small", method, 0) for method in ("sta", "dne")}
    assert {(one.preset, one.method, one.seed) for one in found if one.how == "mask"} >= wanted
    assert len({(one.config_sha256, one.how) for one in found}) == len(found)
    for one in found:
        if (one.preset, one.method, one.seed) in wanted:
            config = presets.resolve(one.preset, method=one.method, seed=one.seed)
            assert config.sha256 == one.config_sha256
        whole = one.images >= 2000  # all test images of digits100, or 500 of CIFAR-100's 10,000
        assert one.images >= 500 or one.preset == "digits"
        assert bool(one.sweep) == (one.method != "ia")
        assert one.accuracy["all"] == pytest.approx(one.LA, abs=0.01 if whole else 6)  # three standard errors


def test_the_benchmarks() -> None:
    """Measured on one machine each, the fast path the faster one, and as many calls at 11 experts as at 26."""
    timing = FIGURES / "records" / "timing"
    for name, kind in (("bench", "cpu"), ("bench_h200", "cuda")):
        bench = json.loads((timing / f"{name}.json").read_text())
        assert bench.get("device_type", "cpu") == kind
        assert bench["calls_per_forward"]["11"] == bench["calls_per_forward"]["26"]
        assert min(*bench["train_step"].values(), *bench["inference"].values()) > 1
    assert min(json.loads((timing / "bench.json").read_text())["product_share"].values()) >= 0.7
    theirs = json.loads((timing / "authors_code.json").read_text())
    ratios = {"train_step": theirs["training_step_ratio"], "inference": theirs["prediction_ratio"]}
    assert ratios == AUTHORS_CODE
    sorting = json.loads((timing / "bench_attention.json").read_text())["attention_groups"]
    assert sorting["images"] >= 2000 and sorting["ratio"] <= 2.5 and sorting["peak_memory_mb"] < 300
