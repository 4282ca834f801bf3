"""The command line as a user meets it: what it trains, prints, writes, skips, goes on with."""

import importlib.metadata
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import invented
import pytest
from shell import Done, Here, Nursery, content, environment, run_folder, sets, snapshot, there

from dne_lab.commands import reproduce
from dne_lab.core import presets
from dne_lab.measure.record import Record
from dne_lab.training.run_folder import load

RECORD = {
    "method",
    "preset",
    "dataset",
    "tasks",
    "class_order",
    "memory",
    "seed",
    "epochs",
    "accuracy",
    "seen_accuracy",
    "LA",
    "AA",
    "forgetting",
    "flops_literal",
    "flops_spent",
    "params",
    "device",
    "torch",
    "code_version",
    "config_sha256",
    "finished",
    "timing",
}
COST = {
    "task",
    "classes",
    "flops_literal",
    "flops_spent",
    "macs_spent",
    "params_total",
    "params_added",
    "params_trainable",
}
BENCH = {
    "step_flops",
    "rates",
    "preset",
    "train_step",
    "inference",
    "calls_per_forward",
    "images_per_second",
    "data_share",
    "peak_memory_mb",
    "device",
    "torch",
    "threads",
}
HELP = {
    "reproduce": ["--preset", "--seeds", "--out", "--json", "handwritten digits"],
    "run": [
        "METHOD[,METHOD...]",
        "--preset",
        "--set",
        "--seeds",
        "--out",
        "--jobs",
        "--stop-after",
        "--dry-run",
        "resumes",
        "small",
    ],
    "report": [
        "DIR...",
        "--out",
        "runs/report",
        "--latex",
        "--columns",
        "--format",
        "--name",
        "--attention",
        "--ablation",
        "--how",
        "--data",
        "--json",
        "beside the paper",
    ],
    "cost": ["METHOD", "--tasks", "--heads", "--preset", "--json", "without training"],
    "bench": ["--tasks", "--batch", "--pairs", "--bf16", "--attention", "--json", "literal path"],
    "export": ["RUN", "FILE", "the whole run", "--half", "--force"],
    "check": ["DATA", "--path", "--size", "--json", "damaged"],
    "presets": ["NAME", "--json", "--set wins over all"],
    "lab": ["ARGS", "--port", "--copy-notebooks", "token", "this machine only"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which `run ia,dne --json` was called, and what it printed."""
    folder = tmp_path_factory.mktemp("place")
    done = there("run", "ia,dne", *sets(), "--json", folder=folder)
    assert done.code == 0, done.err
    (folder / "stdout.json").write_text(done.out)
    (folder / "stderr.txt").write_text(done.err)
    return folder


# Help ------------------------------------------------------------------------------------------------------------


def test_without_a_command_it_says_what_there_is(tmp_path: Path) -> None:
    done = there("--help", folder=tmp_path)
    assert done.code == 0 and all(re.search(rf"^  {name} +[A-Z]", done.out, re.MULTILINE) for name in HELP)
    bare = there(folder=tmp_path)
    assert bare.out + bare.err == done.out
    version = there("--version", folder=tmp_path)
    assert (version.code, version.out) == (0, f"dne-lab {importlib.metadata.version('dne-lab')}\n")


@pytest.mark.parametrize("width", [80, 100])
def test_lines_of_help_are_whole(width: int, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    for command in ((), *((name,) for name in HELP)):
        lines = here(*command, "--help").out.splitlines()
        assert all(len(line) <= width for line in lines), command
        assert not any(line.endswith("...") for line in lines[1:]), command
        assert not [line for line in lines if re.search(r"\w-$", line)], command


@pytest.mark.parametrize("command", HELP)
def test_help_teaches(command: str, here: Here) -> None:
    done = here(command, "--help")
    assert done.code == 0
    text = re.sub(r"\s+", " ", done.out)
    assert all(word in text for word in HELP[command])
    # every option and argument has words of its own
    entries = re.split(r"\n  (?=\S)", done.out.split("Arguments:" if "Arguments:" in done.out else "Options:")[1])[1:]
    assert all(len(re.sub(r"<.*?>|\[.*?\]|--[\w-]+", "", entry).split()) >= 2 for entry in entries)


def test_jupyterlab_by_another_name(tmp_path: Path) -> None:
    assert "JupyterLab" in there("lab", "--help", folder=tmp_path).out


# run -------------------------------------------------------------------------------------------------------------


def test_run_prints_its_records_as_json_and_writes_run_folders(place: Path) -> None:
    printed = json.loads((place / "stdout.json").read_text())
    assert [record["method"] for record in printed] == ["ia", "dne"]
    for record in printed:
        folder = run_folder(place / "runs", record["method"])
        assert record == json.loads((folder / "record.json").read_text())
        assert record.keys() >= RECORD
        assert record["memory"].keys() >= {"budget", "policy", "stored", "scope"}
        assert record["params"].keys() >= {"total", "trainable_by_task"}
        assert record["finished"] and record["tasks"] == [6, 4] and record["preset"] == record["dataset"] == "digits"
        assert [len(row) for row in record["accuracy"]] == [1, 2] and record["LA"] == record["seen_accuracy"][-1]
        assert record["memory"]["stored"] <= record["memory"]["budget"] == 20
        assert isinstance(record["flops_literal"], int) and isinstance(record["flops_spent"], int)
        assert {file.name for file in folder.iterdir()} == {
            "config.json", "record.json", "curves.csv", "data.safetensors", "predictions.npz", "last.safetensors",
            "task_01.safetensors", "task_02.safetensors",
        }  # fmt: skip
    errors = (place / "stderr.txt").read_text()
    assert errors.count("task 2/2") == 2 and errors.count("task 1/2") == 1  # the first task is trained once


def test_the_same_command_again_skips_what_is_finished(place: Path, here: Here) -> None:
    before = snapshot(place / "runs")
    done = here("run", "ia,dne", *sets(), "--out", place / "runs")
    assert done.code == 0 and snapshot(place / "runs") == before
    assert "task" not in done.err  # nothing was trained
    assert "IA (k = 1)" in done.out and "DNE (k = 1)" in done.out and f"run folder: {place}" in done.out


def test_dry_run_prints_commands_that_work(place: Path, here: Here, tmp_path: Path) -> None:
    program = str(Path(sys.modules["dne_lab"].__file__ or "").parent / "__main__.py")
    words = [*sets(data__tasks="6, 4"), "--out", place / "runs"]  # a space: words must be quoted
    done = here("run", "ia,sta,joint", *words, "--seeds", "0,3", "--device", "cpu", "--dry-run", program=program)
    lines = done.out.splitlines()
    assert done.code == 0 and len(lines) == 6 and not list(tmp_path.iterdir())
    assert "The first command trains what others begin with" in done.err and "1 of 6 runs are finished" in done.err
    asked = [shlex.split(line) for line in lines]

    def of(words: list[str], option: str) -> str:
        return Path(words[words.index(option) + 1]).name if option in words else ""

    left = [(words[4], of(words, "--seeds"), of(words, "--last-task"), of(words, "--first-task-of")) for words in asked]
    one, other = (run_folder(place / "runs", "ia").name, run_folder(place / "runs", "ia").name[:-1] + "3")
    assert left == [
        *[("ia", "3", "1", ""), ("sta", "0", "", one), ("joint", "0", "", "")],
        *[("ia", "3", "", ""), ("sta", "3", "", other), ("joint", "3", "", "")],
    ]
    assert all(
        words[:4] == [sys.executable, "-m", "dne_lab", "run"] and words[-2:] == ["--device", "cpu"] for words in asked
    )
    before = snapshot(place / "runs")
    worked = subprocess.run(lines[1], shell=True, env=environment(), cwd=tmp_path, capture_output=True, text=True)
    assert worked.returncode == 0 and "STA (k = 1)" in worked.stdout, worked.stderr
    assert before.items() < snapshot(place / "runs").items()
    record = Record.from_json(run_folder(place / "runs", "sta") / "record.json")
    assert record.finished and "shared task 1" in record.timing["by_purpose"]
    shutil.rmtree(run_folder(place / "runs", "sta"))  # other tests use this place
    assert here("run", "dne", "--stop-after", 9.5, "--checkpoint-every", 9, "--download", "--dry-run").out == (
        "dne-lab run dne --preset digits --seeds 0 --out runs --stop-after 9.5 --download --checkpoint-every 9\n"
    )


def test_methods_and_seeds_make_a_grid(here: Here, tmp_path: Path) -> None:
    done = here("run", "joint,finetune", *sets(), "--seeds", "0-1", "--preset", "authors-code,digits", "--json")
    assert done.code == 0, done.err
    records = json.loads(done.out)
    assert [(r["method"], r["seed"]) for r in records] == [("joint", 0), ("finetune", 0), ("joint", 1), ("finetune", 1)]
    assert (run_folder(tmp_path / "runs", "finetune-authors-code+digits", 1) / "record.json").exists()
    assert records[0]["tasks"] == [10] and records[0]["LA"] != records[2]["LA"]
    text = here("report", "runs").out
    assert re.search(r"^Joint .* \d", text, re.MULTILINE) and "LA +-" in text


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    with Nursery() as made:
        yield made


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_run_interrupted_in_every_way_ends_as_if_it_had_not_been(
    nursery: Nursery, tmp_path: Path, here: Here
) -> None:
    words = ["run", "dne", *sets(data__tasks="2,2,2,2,2", learn__epochs=2, learn__batch=16)]

    def after(task: int, sent: signal.Signals, *more: str) -> Done:
        """Sends a signal at a random moment after a task, to a process of its own."""
        number = nursery.start(*words, *more, folder=tmp_path)
        end = time.monotonic() + 100
        while not (run / f"task_{task:02d}.safetensors").exists():
            assert time.monotonic() < end, (tmp_path.parent / f"{tmp_path.name}.err").read_text()
            time.sleep(0.005)
        time.sleep(random.Random(task).uniform(0, 0.1))
        os.kill(number, sent)
        return nursery.ended(number, tmp_path)

    stopped = here(*words, "--stop-after", 0.05)
    assert stopped.code == 0 and "1 of 1 runs are not finished; the same command goes on with them." in stopped.out
    run = run_folder(tmp_path / "runs", "dne")
    assert after(1, signal.SIGKILL).code == -signal.SIGKILL
    for task, sent, code in ((2, signal.SIGINT, 130), (3, signal.SIGTERM, 143)):
        done = after(task, sent)
        assert (done.code, done.err.splitlines()[-1]) == (code, "stopped; the same command goes on from here.")
        assert load(run / "last.safetensors")[1]["state"]["cursor"][0] == task + 1
    assert here(*words, "--requeue", "--stop-after", 0).code == 75
    queued = after(4, signal.SIGUSR1, "--requeue")
    assert queued.code == 75 and "1 of 1 runs are left" in queued.err
    assert load(run / "last.safetensors")[1]["state"]["cursor"][0] == 5
    assert here(*words, "--requeue").code == 0
    assert here(*words, "--out", "whole").code == 0
    one, other = content(run), content(tmp_path / "whole" / run.name)
    assert one["record.json"] == other["record.json"] and one["record.json"]["finished"]
    assert one == other


# report, export --------------------------------------------------------------------------------------------------


def test_report_reads_folders_records_and_archives(place: Path, here: Here, tmp_path: Path) -> None:
    run = run_folder(place / "runs", "dne")
    for name in ("dne.zip", "dne.archive"):
        done = here("export", run, tmp_path / name)
        assert (done.code, done.out) == (0, f"wrote {tmp_path / name}\n")
    records = [
        json.loads(here("report", path, "--json").out) for path in (run, run / "record.json", "dne.zip", "dne.archive")
    ]
    assert records[0] == [json.loads((run / "record.json").read_text())] and records.count(records[0]) == 4
    text = here("report", place / "runs")
    assert text.code == 0 and "IA (k = 1)" in text.out and "DNE (k = 1)" in text.out and "6 + 4" in text.out
    assert here("report", *place.joinpath("runs").iterdir(), "dne.zip").out == text.out  # a record counts once


def test_report_writes_latex_and_figures(place: Path, here: Here, tmp_path: Path) -> None:
    done = here("report", place / "runs", "--latex", "--out", "out")
    assert done.code == 0 and done.out.startswith("\\begin{tabular}") and "DNE (k = 1) & 2, 1 & digits" in done.out
    made = sorted(file.name for file in (tmp_path / "out").iterdir())
    kinds = (
        "accuracy_against_cost",
        "accuracy_by_task",
        "accuracy_matrix",
        "accuracy_over_bytes",
        "figure_1_right",
        "figure_6a",
        "figure_6c",
    )
    kinds += ("forgetting",)
    drawn = [f"digits_{kind}.{end}" for kind in kinds for end in ("csv", "png")]
    assert made == [*drawn, "summary.csv"]
    assert all((tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG") for name in made if name.endswith("png"))
    assert done.err == f"wrote {len(made)} files below out\n"


def test_report_writes_chosen_columns_and_formats(place: Path, here: Here, tmp_path: Path) -> None:
    words = ["report", place / "runs", "--latex", "--columns", "AA,LA +-", "--out", "out", "--format", "pdf,png"]
    done = here(*words)
    assert done.code == 0 and done.out.splitlines()[2] == r"method & AA & LA $\pm$ \\"
    made = {file.suffix: file.read_bytes()[:4] for file in (tmp_path / "out").iterdir()}
    assert made[".pdf"] == b"%PDF" and made[".png"] == b"\x89PNG" and ".csv" in made
    for option, wrong, message in (
        ("--format", "jpg", "unknown figure format 'jpg'"),
        ("--columns", "la", "unknown column 'la'"),
    ):
        refused = here("report", place / "runs", option, wrong, "--out", "none")
        assert refused.code == 2 and message in refused.err and not (tmp_path / "none").exists()


def test_presets_are_listed_with_what_they_set(here: Here) -> None:
    told = json.loads(here("presets", "--json").out)
    assert told.keys() == presets.PRESETS.keys() and told["digits"]["learn"]["epochs"] == 30
    text = here("presets", "digits", "authors-code").out
    assert text.splitlines()[0] == "digits" and "\nauthors-code\n" in text and "network.heads=3,1" in text
    everything = here("presets").out
    assert "paper-text" not in text and all(len(line) <= 100 for line in everything.splitlines())
    overview = everything.split("\n\n")[0].replace(",", " ").split()
    assert all(overview.count(name) == 1 for name in presets.PRESETS)
    for line in text.split():
        if "=" in line:  # as it is written after --set
            presets.resolve("", dict([line.split("=")]))
    assert "unknown preset 'digit'. Did you mean digits" in here("presets", "digit").err


def test_report_sorts_the_attention_of_runs(place: Path, here: Here, tmp_path: Path) -> None:
    words = ["report", run_folder(place / "runs", "dne"), "--attention", 20, "--out", "out"]
    done = here(*words)
    assert done.code == 0 and "same patch %" in done.out and "files below out" in done.err
    drawn = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"attention_groups.csv", "digits_accuracy_by_task.png", "summary.csv"} <= drawn
    assert "DNE (k = 1)" in done.out
    files = {file for file in snapshot(tmp_path / "out") if not file.endswith(".png")}
    told = {file: Path(file).read_bytes() for file in files}
    again = here(*words, "--json")
    assert again.code == 0 and {file: Path(file).read_bytes() for file in files} == told  # the same bytes
    (found,) = json.loads(again.out)
    assert found["images"] == 20 and {"initialisation", "trained"} <= found["moments"].keys()
    assert (tmp_path / "out" / "records" / "attention" / f"{found['run']}.json").exists()


def test_report_ablates_runs(place: Path, here: Here, tmp_path: Path) -> None:
    words = ["report", run_folder(place / "runs", "dne"), "--ablation", 20, "--how", "zero", "--out", "out"]
    done = here(*words)
    assert done.code == 0 and "lost when expert (row) reads expert (column) at no layer" in done.out
    out = tmp_path / "out"
    made = {str(Path(file).relative_to(out)): Path(file).read_bytes() for file in snapshot(out)}
    (name,) = (file for file in made if file.startswith("records/ablation/dne-digits-s0-"))
    assert name.endswith("-zero.json")
    assert {"ablation_digits_groups.csv", "ablation_digits_dne.png"} <= {*made}
    again = here(*words, "--json")
    (found,) = json.loads(again.out)
    assert found == json.loads(made[name]) and (found["how"], found["images"]) == ("zero", 20)
    assert all((out / file).read_bytes() == data for file, data in made.items())
    for wrong, message in (("cut", "unknown how 'cut'. Allowed: mask, mean, zero"), ("mask", "give at least 2 images")):
        done = here("report", run_folder(place / "runs", "dne"), "--ablation", 1 + (wrong == "cut"), "--how", wrong)
        assert done.code == 2 and message in done.err


def test_report_ablates_in_three_ways(place: Path, here: Here, tmp_path: Path) -> None:
    done = here("report", run_folder(place / "runs", "dne"), "--ablation", 20, "--out", "out")
    assert done.code == 0 and "Beware: mask multiplies what is left of task attention" in done.out
    head = next(line for line in done.out.splitlines() if "removed" in line and "mean" in line)
    assert [word for word in head.split() if word in ("mean", "zero", "mask")] == [
        "mean",
        "mean",
        "zero",
        "zero",
        "mask",
        "mask",
    ]
    names = [file.name for file in (tmp_path / "out" / "records" / "ablation").iterdir()]
    assert sorted(name.rsplit("-", 1)[1] for name in names) == ["mask.json", "mean.json", "zero.json"]


def test_report_probes_read_outs(place: Path, here: Here, tmp_path: Path) -> None:
    done = here("report", run_folder(place / "runs", "dne"), "--probe", "--out", "out")
    assert done.code == 0 and "trained with all training images of every class" in done.out
    assert "expert 1" in done.out and "later" in done.out and "told %" in done.out
    out = tmp_path / "out"
    (file,) = (out / "records" / "probe").iterdir()
    assert json.loads(file.read_text())["kind"] == "probe"
    assert (out / "read_outs_digits.csv").exists() and (out / "read_outs_digits.png").exists()
    exported = here("export", run_folder(place / "runs", "dne"), "dne.safetensors")
    assert exported.code == 0
    missing = here("report", "dne.safetensors", "--probe", "--data", tmp_path / "nowhere")
    assert missing.code == 2 and "nowhere" in missing.err and not (tmp_path / "runs").exists()


def test_report_puts_the_papers_rows_beside_ours(here: Here, tmp_path: Path) -> None:
    invented.record(tasks=[50, 10, 10, 10, 10, 10], dataset="cifar100").write(tmp_path / "record.json")
    done = here("report", tmp_path)
    assert done.code == 0 and "Beside the paper (ours minus the paper's" in done.out and "paper LA" in done.out
    invented.record(tasks=[50, 50], done=0).write(tmp_path / "record.json")
    done = here("report", tmp_path)
    assert done.code == 2 and "Go on training, then report again" in done.err


# cost, bench, reproduce --------------------------------------------------------------------------------------------


def test_cost_counts_without_training(here: Here, tmp_path: Path) -> None:
    words = ["cost", "dne", "--tasks", "6,2,2", "--preset", "digits", *sets(data__tasks=None, network__heads=None)]
    done = here(*words, "--heads", "3,2,1", "--json")
    rows = json.loads(done.out)
    assert done.code == 0 and all(row.keys() == COST for row in rows) and not list(tmp_path.iterdir())
    assert [(row["task"], row["classes"]) for row in rows] == [(1, 6), (2, 8), (3, 10)]
    for before, row in zip([None, *rows], rows, strict=False):
        assert all(isinstance(value, int) for value in row.values())
        assert row["macs_spent"] * 2 == row["flops_spent"] <= row["flops_literal"]
        assert row["params_total"] == row["params_added"] + (before["params_total"] if before else 0)
        assert row["params_trainable"] >= row["params_added"]
    table = here(*words, "--heads", "3,2,1").out
    assert all(f"{row['params_total']:,}" in table for row in rows) and "heads 3,2,1" in table
    later = [json.loads(here(*words, "--heads", heads, "--json").out)[1]["params_added"] for heads in ("1", "3", "9,3")]
    assert later[0] < later[1] != later[2]  # one number: heads of later experts
    assert json.loads(here(*words, "--json").out) != rows


def test_cost_of_the_joint_model_is_that_of_one_task(here: Here) -> None:
    words = ["--preset", "digits", *sets(data__tasks=None), "--json"]
    joint, whole = (
        json.loads(here("cost", *which, *words).out)
        for which in (("joint", "--tasks", "6,2,2"), ("ia", "--tasks", "10"))
    )
    assert [row["classes"] for row in joint] == [10]
    assert {name: joint[0][name] for name in COST} == {name: whole[0][name] for name in COST}


def test_cost_of_the_paper_by_default(here: Here) -> None:
    done = here("cost", "dne", "--tasks", "50,10")
    assert done.code == 0 and "heads 12,1 (the last repeats), images 3 x 32 x 32" in done.out


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> str:
    tree = {
        "data": {"name": "digits", "tasks": [4, 3, 3]},
        "network": {"patch": 8, "depth": 2, "head_width": 4, "heads": [2, 1]},
        "learn": {"epochs": 1, "batch": 128}, "tune": {"epochs": 1, "batch": 64}, "memory": {"budget": 20},
    }  # fmt: skip
    monkeypatch.setitem(presets.PRESETS, "tiny", tree)
    return "tiny"


def test_bench_measures_the_normal_path_against_the_literal_one(here: Here, tiny_preset: str) -> None:
    words = ["bench", "--preset", tiny_preset, "--tasks", "2,3", "--batch", 2, "--pairs", 1]
    done = here(*words, "--attention", 4, "--json")
    told = json.loads(done.out)
    assert done.code == 0 and told.keys() >= BENCH
    assert told["train_step"].keys() == {"2", "3"} and told["inference"].keys() == {"3"}
    assert told["calls_per_forward"].keys() == {"2"} and told["threads"] == 1
    assert told["step_flops"].keys() == {"1", "2", "3"} and told["rates"].keys() == {"float32"}
    numbers = [*told["train_step"].values(), *told["inference"].values(), *told["calls_per_forward"].values()]
    assert all(number > 0 for number in [*numbers, told["images_per_second"], told["peak_memory_mb"]])
    assert "measuring: training step at task 2" in done.err
    sorting = told["attention_groups"]
    assert sorting["images"] == 4 and sorting["task"] == 2 and sorting["ratio"] > 0
    assert sorting["peak_memory_mb"] is None or sorting["peak_memory_mb"] >= 0
    assert "times as fast as literal" in here(*words).out


def test_reproduce_with_other_settings_in_one_folder_keeps_both_results(
    tiny_preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []
    monkeypatch.setattr(reproduce.report, "figures", lambda records, out, name, **_: drawn.append(name) or [])
    monkeypatch.setattr(reproduce, "drawings", lambda found: {})
    monkeypatch.setattr(reproduce, "METHODS", ("joint", "dne"))
    monkeypatch.setattr(reproduce, "IMAGES", 4)
    first = reproduce.reproduce(tiny_preset, [0], tmp_path, progress=False)
    kept = {file: file.read_bytes() for file in first.written}
    other = reproduce.reproduce(tiny_preset, [0], tmp_path, {"learn.lr": 0.01}, progress=False)
    assert not {*first.written} & {*other.written} and {file: file.read_bytes() for file in kept} == kept
    assert drawn == ["reproduce_tiny_s0", "reproduce_tiny-learn.lr0.01_s0"]

    mine, theirs = (
        next(file for file in told.written if file.match("attention/dne-s0.json")) for told in (first, other)
    )
    mine.write_bytes(theirs.read_bytes())  # younger than the run, and of another one
    assert reproduce.reproduce(tiny_preset, [0], tmp_path, progress=False).table.equals(first.table)
    assert json.loads(mine.read_text())["run"] == json.loads(kept[mine])["run"]


def test_reproduce_prints_a_table_and_writes_it_with_figures_and_records(
    here: Here, tiny_preset: str, tmp_path: Path
) -> None:
    words = ["reproduce", "--preset", tiny_preset, "--seeds", "0,2", "--out", "out"]
    done = here(*words)
    assert done.code == 0, done.err
    runs_made = tmp_path / "out" / "runs"
    written = [file for file in (tmp_path / "out").rglob("*") if file.is_file() and runs_made not in file.parents]
    assert {file.suffix for file in written} == {".csv", ".png", ".json"}
    assert {file.name for file in tmp_path.iterdir()} == {"out"} and len(done.out.splitlines()) < 25
    assert f"wrote {len(written)} files below out" in done.out
    (picture,) = re.findall(r"^open: +(\S+\.png)", done.out, re.MULTILINE)
    assert picture == "out/reproduce_tiny_s0+2_accuracy_by_task.png" and (tmp_path / picture).exists()
    (next_run,) = re.findall(r"^next: +dne-lab report (\S+) --attention", done.out, re.MULTILINE)
    assert next_run == "out/runs/dne-tiny-s2" and (tmp_path / next_run / "record.json").exists()
    for file in written:
        if file.suffix == ".png":
            assert file.read_bytes().startswith(b"\x89PNG")
        if file.suffix == ".json":
            told = json.loads(file.read_text())
            if file.parent.name == "attention":
                assert told["kind"] == "attention" and told["finished"] and told["method"] != "joint"
                continue
            run = runs_made / f"{told['method']}-tiny-s{told['seed']}"
            assert told == json.loads((run / "record.json").read_text())
    assert len([file for file in written if file.suffix == ".json"]) == 8 + 6
    for method in ("IA (k = 1)", "STA (k = 1)", "DNE (k = 1)", "Joint"):
        assert len(re.findall(rf"^{re.escape(method)} ", done.out, re.MULTILINE)) == 1
    for words_said in (
        "LA +-",
        "F literal (G)",
        "F spent (G)",
        "same patch %",
        "seconds",
        "can neither confirm",
    ):
        assert words_said in done.out
    table = (tmp_path / "out" / "reproduce_tiny_s0+2.csv").read_text()
    assert "D" in table.splitlines()[0].split(",") and len(table.splitlines()) == 5

    runs = snapshot(runs_made)
    (tmp_path / "out" / "reproduce_tiny_s0+2_fragmentation.png").write_bytes(b"drawn before")
    drawn = {file: file.stat().st_mtime_ns for file in written if file.suffix != ".csv"}
    again = here(*words, "--json")
    assert {file: file.stat().st_mtime_ns for file in drawn} == drawn  # nothing is measured or drawn again
    told = json.loads(again.out)
    assert again.code == 0 and snapshot(runs_made) == runs and "task" not in again.err
    assert told.keys() == {"preset", "table", "records", "picture", "runs", "files"} and len(told["records"]) == 8
    assert {row["method"] for row in told["table"]} == {"IA (k = 1)", "STA (k = 1)", "DNE (k = 1)", "Joint"}
    assert sorted(tmp_path / file for file in told["files"]) == sorted(written)
    by = {row["method"]: row for row in told["table"]}
    for method, row in by.items():
        assert row["same patch %"] is None if method == "Joint" else 0 < row["same patch %"] <= 100
    assert by["DNE (k = 1)"]["D"] == pytest.approx(by["Joint"]["LA"] - by["DNE (k = 1)"]["LA"])


def test_letters_that_a_terminal_lacks_end_no_command(tmp_path: Path) -> None:
    """A pipe in ASCII: the name of the folder is printed with an escape, behind the whole table."""
    folder = tmp_path / "runs-\u00fc"
    invented.record().write(folder / "record.json")
    done = subprocess.run(
        [sys.executable, "-m", "dne_lab", "report", folder, "--out", folder / "out"], cwd=tmp_path, capture_output=True,
        env={**environment(), "PYTHONIOENCODING": "ascii"}, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"DNE" in done.stdout and b"runs-\\xfc" in done.stderr
