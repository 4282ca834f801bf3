"""What a newcomer does in a fresh clone leaves it as it was: own results and committed ones never mix."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from shell import ROOT, environment

NOTEBOOK = "notebooks/09_accuracy_against_scale.ipynb"  # averages the committed runs of every setting
CHANGES = ("data.tasks=6,4", "learn.epochs=1", "tune.epochs=0", "network.depth=2", "k=2")
SHORT = [word for change in CHANGES for word in ("--set", change)]
CHECKS = ("tests/claims/test_status.py", "tests/test_committed.py")


def told(clone: Path, *words: str) -> str:
    """What a program prints in the clone, with the clone's own package."""
    path = os.pathsep.join([str(clone), str(clone / "tests")])
    done = subprocess.run(
        words, cwd=clone, env={**environment(), "PYTHONPATH": path}, text=True, capture_output=True, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_the_first_commands_leave_a_fresh_clone_whole(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    try:
        subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(clone)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git checkout to clone: {error}")
    lab = (sys.executable, "-m", "dne_lab")

    made = json.loads(told(clone, *lab, "reproduce", *SHORT, "--json"))
    assert {Path(file).parts[0] for file in [*made["files"], *made["runs"]]} == {"runs"}
    run = made["runs"][-1]
    assert "DNE (k = 2)" in told(clone, *lab, "report", run, "--attention", "20", "--ablation", "20")
    assert json.loads(told(clone, *lab, "report", "figures/records", "--json"))
    pytest_words = (sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider")
    told(clone, *pytest_words, NOTEBOOK, *CHECKS, "-k", "ipynb or records")

    assert told(clone, "git", "status", "--porcelain") == ""
    ignored = {line.split()[-1] for line in told(clone, "git", "status", "--porcelain", "--ignored").splitlines()}
    left = {name for name in ignored if "__pycache__" not in name and name != ".hypothesis/"}
    assert left == {"runs/"}, left
