"""`dne-lab run --grid FILE`: a list of runs as data, gone on with by one command until nothing is left."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from shell import TINY, Here, content, snapshot

from dne_lab.training import run_list


def entry(method: str = "dne", seed: int = 0, settings: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    made = {"name": f"{method}-s{seed}", "method": method, "preset": "digits", "settings": TINY | (settings or {})}
    return made | {"seed": seed, "purpose": f"what {method} does", "core_hours": 2.0} | more


def write(folder: Path, *entries: Any) -> Path:
    file = folder / "medium" / "grid.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(list(entries)))
    return file


def test_a_list_goes_on_where_it_stopped_until_all_is_finished(here: Here, tmp_path: Path) -> None:
    file = write(tmp_path, entry(), entry("ia"), entry("joint"))
    seen = here("run", "--grid", file, "--dry-run", "--json")
    assert [run["state"] for run in json.loads(seen.out)] == ["not begun"] * 3 and not (tmp_path / "runs").exists()

    done = here("run", "--grid", file, "--stop-after", 0, "--device", "cpu")
    assert done.code == 0 and "about 6.0 core-hours are left" in done.err
    seen = here("run", "--grid", file, "--dry-run")
    lines = {line.split()[0]: line for line in seen.out.splitlines()}
    assert "at task 1 of 2" in lines["dne-s0"] and "not begun" in lines["ia-s0"] and "what ia does" in lines["ia-s0"]

    done = here("run", "--grid", file, "--device", "cpu", "--jobs", 2)
    assert done.code == 0, done.err
    assert "0 of 3 runs are finished, 1 have begun" in done.err
    assert {"dne-s0", "ia-s0", "joint-s0"} == {folder.name for folder in (tmp_path / "runs" / "medium").iterdir()}
    record = json.loads((tmp_path / "runs" / "medium" / "ia-s0" / "record.json").read_text())
    assert "shared task 1" in record["timing"]["by_purpose"]  # trained once, by dne

    before = snapshot(tmp_path / "runs")
    again = here("run", "--grid", file)
    assert again.code == 0 and "task" not in again.err and snapshot(tmp_path / "runs") == before
    table = here("run", "--grid", file, "--dry-run").out
    assert table.count("finished") == 4 and f"{record['LA']:.2f}" in table and "0.0 core-hours are left" in table

    # It is the run that the command line would have made.
    words = [word for name, value in TINY.items() for word in ("--set", f"{name}={value}")]
    assert here("run", "joint", *words, "--device", "cpu", "--out", "plain").code == 0
    (plain,) = (tmp_path / "plain").iterdir()
    assert content(plain) == content(tmp_path / "runs" / "medium" / "joint-s0")

    longer = write(tmp_path, entry(), entry("ia"), entry("joint"), entry("ia", 1))  # a list may grow
    assert here("run", "--grid", longer, "--dry-run").out.count("not begun") == 1
    changed = write(tmp_path, entry(), entry("ia", settings={"learn.lr": 0.5}))
    refused = here("run", "--grid", changed)
    assert refused.code == 2 and snapshot(tmp_path / "runs") == before
    assert "run 2 (ia-s0)" in refused.err and "learn.lr (0.001 there, 0.5 here)" in refused.err


def test_what_is_left_counts_the_tasks_that_are_finished(tmp_path: Path, here: Here) -> None:
    file = write(tmp_path, entry("finetune"), entry("ia", core_hours=None))
    (first, _) = run_list.read(file, tmp_path / "elsewhere")
    assert first.folder == tmp_path / "elsewhere" / "finetune-s0"
    assert run_list.left([first]) == 2.0
    (_, untold) = run_list.read(file, tmp_path / "elsewhere")
    assert "core-hours" in run_list.summary([first, untold]) and "core-hours" not in run_list.summary([untold])
    assert here("run", "--grid", file, "--out", "elsewhere", "--device", "cpu").code == 0
    assert first.state == "finished" and run_list.left([first]) == 0.0


def test_a_record_beside_the_list_is_a_finished_run_on_every_machine(here: Here, tmp_path: Path) -> None:
    file = write(tmp_path, entry("joint"), entry("ia"))
    assert here("run", "--grid", write(tmp_path, entry("joint")), "--device", "cpu").code == 0
    record = file.parent / "joint-s0.json"
    (tmp_path / "runs" / "medium" / "joint-s0" / "record.json").rename(record)
    shutil.rmtree(tmp_path / "runs")  # another machine: what was committed is there, the run folder is not

    write(tmp_path, entry("joint"), entry("ia"))
    told = here("run", "--grid", file, "--dry-run").out
    assert "1 of 2 runs are finished" in told and f"{json.loads(record.read_text())['LA']:.2f}" in told
    assert here("run", "--grid", file, "--device", "cpu").code == 0
    assert [folder.name for folder in (tmp_path / "runs" / "medium").iterdir()] == ["ia-s0"]
    assert "2 of 2 runs are finished" in here("run", "--grid", file, "--dry-run").out

    alone = here("run", "--grid", write(tmp_path, entry("joint")), "--json")
    assert alone.code == 0 and "1 of 1 runs are finished" in alone.err
    changed = write(tmp_path, entry("joint", settings={"learn.lr": 0.5}))
    refused = here("run", "--grid", changed)
    assert refused.code == 2 and "joint-s0.json is the record of another configuration" in refused.err
    assert "learn.lr" in refused.err and record.exists()


@pytest.mark.parametrize(("text", "said"), [
    ("[{", "is no list of runs: .*not JSON"),
    ("{}", "is no list of runs: it needs"),
    ("[]", "is no list of runs: it needs"),
    ("[3]", "run 1: .*is a group of fields"),
    (json.dumps([{"method": "dne"}]), "run 1: name = ''"),
    (json.dumps([{"name": "a/b", "method": "dne"}]), "run 1: name = 'a/b'"),
    (json.dumps([{"name": "a"}]), "run 1: method is missing"),
    (json.dumps([entry(), entry("dna")]), r"run 2 \(dna-s0\): unknown method 'dna'. Did you mean"),
    (json.dumps([entry(seeds=3)]), "run 1: unknown field 'seeds'. Did you mean seed"),
    (json.dumps([entry(preset="digit")]), r"run 1 \(dne-s0\): unknown preset 'digit'"),
    (json.dumps([entry(settings={"learn.rate": 1})]), r"run 1 \(dne-s0\): unknown field 'learn.rate'"),
    (json.dumps([entry(settings={"seed": 1})]), "run 1: settings.seed: give seed beside"),
    (json.dumps([entry(seed=-1)]), "run 1: seed = -1: must be"),
    (json.dumps([entry(method="icarl", settings={"k": 2})]), r"run 1 \(icarl-s0\): icarl does not use .*, k"),
    (json.dumps([entry(name="slurm")]), "run 1: name = 'slurm': the jobs of a cluster have"),
    ('[{"name": "a", "method": "dne", "method": "ia"}]', "is no list of runs: 'method' is said 2 times in one place"),
    (json.dumps([entry(), entry()]), r"run 2 \(dne-s0\): another run of the list has this name"),
    (json.dumps([entry(), entry(name="b")]), r"run 2 \(b\): is the same run as dne-s0"),
])  # fmt: skip
def test_a_wrong_list_is_refused_before_anything_is_trained(text: str, said: str, here: Here, tmp_path: Path) -> None:
    file = tmp_path / "list.json"
    file.write_text(text)
    done = here("run", "--grid", file)
    assert done.code == 2 and not (tmp_path / "runs").exists()
    assert re.search(f"list.json,? {said}", done.err), done.err


def test_a_list_stands_in_place_of_what_else_says_which_runs(here: Here, tmp_path: Path) -> None:
    file = write(tmp_path, entry())
    for words in (["dne"], ["--preset", "digits"], ["--set", "learn.lr=1"], ["--seeds", "0"]):
        done = here("run", *words, "--grid", file, "--dry-run")
        assert done.code == 2 and "leave out" in done.err
    assert here("run").code == 2
    missing = here("run", "--grid", tmp_path / "no.json")
    assert missing.code == 2 and "no.json cannot be read" in missing.err
