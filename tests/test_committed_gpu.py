"""What the README says of a GPU follows from the records of runs and of the benchmark on it."""

import json

from test_committed import FIGURES, rows_of
from test_committed_baselines import readme, said

from dne_lab import presets
from dne_lab.measure import record

PAPER_SIZE = FIGURES / "gpu"  # not among the records: too short to say anything of methods


def test_the_speed_on_a_gpu() -> None:
    bench = json.loads((FIGURES / "records" / "timing" / "bench_h200.json").read_text())
    rows = {row[0]: row[1:] for row in rows_of(readme(), "On one NVIDIA H200")}
    seconds = bench["seconds"]
    for task, ratio in bench["train_step"].items():
        assert rows[f"training step, task {task}"] == [f"{ratio:.1f}", f"{seconds[f'train_step_{task}']:.3f}"]
    assert rows["prediction, task 26"] == [f"{bench['inference']['26']:.1f}", f"{seconds['inference_26']:.3f}"]
    rate, tasks = bench["rates"]["float32"], ("1", "6", "11", "26")
    least = [f"{bench['step_flops'][task] / rate:.3f}" for task in tasks]
    found = [f"{seconds[f'train_step_{task}']:.3f}" for task in tasks]
    assert f"at the {rate / 1e12:.0f} TFLOP/s measured" in said()
    assert "{}, {}, {} and {} s at tasks 1, 6, 11 and 26, against {}, {}, {} and {} s".format(*least, *found) in said()
    first, six, last = (bench["bf16_step"][task] for task in ("1", "6", "26"))
    assert f"{first:.1f} times as fast at task 1 and slower at tasks 6 and 26 ({six:.2f} and {last:.2f})" in said()
    data = 1000 * bench["data_share"] * seconds["train_step_1"]
    assert f"takes {data:.0f} ms on the GPU" in said() and f"beside {1000 * seconds['train_step_1']:.0f} ms" in said()
    assert bench["device_type"] == "cuda" and bench["batch"] == 256


def test_the_runs_of_the_papers_size() -> None:
    runs = {
        method: record.Record.from_json(PAPER_SIZE / f"{method}-e8-s0.json") for method in ("ia", "sta", "dne", "joint")
    }
    told = ", ".join(
        f"{runs[method].LA:.1f}% ({name})" for method, name in (("ia", "IA"), ("sta", "STA"), ("dne", "DNE"))
    )
    assert f"{told} and {runs['joint'].LA:.1f}% (Joint), after {runs['ia'].accuracy[0][0]:.1f}% in the task 1" in said()
    assert len({run.accuracy[0][0] for method, run in runs.items() if method != "joint"}) == 1
    seconds = sorted(run.timing["seconds"] for run in runs.values())
    assert f"side by side in {seconds[0]:.0f} to {seconds[-1]:.0f} s" in said()
    beside = [epochs["learn"] for epochs in runs["dne"].timing["last_epoch"][1:]]
    assert f"{min(beside):.1f} to {max(beside):.1f} s beside the other three" in said() and len(beside) == 5
    for method, run in runs.items():
        given = {"learn.epochs": 8}
        assert presets.resolve("cifar100-b50-10,authors-code", given, method=method, seed=0).identity() == run.config
        assert run.finished and "H200" in run.device


def test_the_seconds_of_an_epoch() -> None:
    run = record.Record.from_json(PAPER_SIZE / "dne-b50-2-e2-s0-four-tasks.json")
    one, *later = (epochs["learn"] for epochs in run.timing["last_epoch"])
    assert f"takes {one:.1f} s (98 steps" in said() and not run.finished
    assert "(12 steps) {:.1f}, {:.1f} and {:.1f} s".format(*later) in said()
    tune = [epochs["tune"] for epochs in run.timing["last_epoch"] if "tune" in epochs]
    steps = [*later, later[-1], later[-1]]  # of tasks 2 to 6; the last two as task 4
    hours = (500 * (one + 28 / 12 * sum(steps)) + 5 * 20 * max(tune)) / 3600
    assert f"would take about {hours:.1f} hours" in said()
