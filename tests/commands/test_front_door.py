"""What a newcomer does in a fresh clone leaves it as it was: own results and committed ones never mix."""

import json
import subprocess
from pathlib import Path

import pytest
from shell import ROOT, Nursery

NOTEBOOK = "notebooks/09_accuracy_against_scale.ipynb"  # averages the committed runs of every setting
CHANGES = ("data.tasks=6,4", "learn.epochs=1", "tune.epochs=0", "network.depth=2", "k=2")
SHORT = [word for change in CHANGES for word in ("--set", change)]
CHECKS = ("tests/claims/test_status.py",)  # that committed records are as they were, git says below
DRAWING = ("dne_lab.commands.report", "seaborn", "matplotlib.backends.backend_agg")


def git(clone: Path, *words: str) -> str:
    """What git prints in the clone."""
    return subprocess.run(["git", *words], cwd=clone, text=True, capture_output=True, check=True).stdout


def test_the_first_commands_leave_a_fresh_clone_whole(tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    try:
        subprocess.run(["git", "clone", "-q", "--shared", str(ROOT), str(clone)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no git checkout to clone: {error}")
    with Nursery(clone, DRAWING) as nursery:

        def told(*words: str, program: str = "dne-lab") -> str:
            """What a command of the clone's own package prints in it, in a process of its own."""
            done = nursery.ended(nursery.start(*words, folder=clone, program=program), clone)
            assert done.code == 0, f"{' '.join(words)}\n{done.out[-3000:]}\n{done.err[-3000:]}"
            return done.out

        made = json.loads(told("reproduce", *SHORT, "--json"))
        assert {Path(file).parts[0] for file in [*made["files"], *made["runs"]]} == {"runs"}
        run = made["runs"][-1]
        assert "DNE (k = 2)" in told("report", run, "--attention", "20", "--ablation", "20")
        assert json.loads(told("report", "figures/records", "--json"))
        words = ("-n", "0", "-p", "no:cacheprovider", NOTEBOOK, *CHECKS, "-k", "ipynb or records")
        assert "passed" in told(*words, program="pytest")

    assert git(clone, "status", "--porcelain") == ""
    ignored = {line.split()[-1] for line in git(clone, "status", "--porcelain", "--ignored").splitlines()}
    left = {name for name in ignored if "__pycache__" not in name and name != ".hypothesis/"}
    assert left == {"runs/"}, left
