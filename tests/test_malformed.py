"""A thousand malformed inputs: each ends in a sentence or in what is right, and changes no file."""

from pathlib import Path
from typing import Any

import pytest
from malformed import attempt

import dne_lab as lab
from dne_lab.core.errors import LabError


def test_whatever_is_read_ends_in_a_sentence_or_is_right(tmp_path: Path) -> None:
    ends, faults = attempt(tmp_path, 1000, seed=0)
    assert not faults, "\n".join(faults)
    assert sum(sum(counts.values()) for counts in ends.values()) == 1000
    for kind, counts in ends.items():
        assert counts["told"], f"nothing wrong was found in any {kind}"


@pytest.mark.parametrize("changes", [{"network__heads": "3,100000"}, {"network__head_width": 1_000_000}])
def test_a_network_that_no_machine_holds_is_refused_before_it_is_made(changes: dict[str, Any]) -> None:
    with pytest.raises(LabError, match=r"task \d needs [\d,]+ GB to train and the machine has"):
        lab.start("dne", lab.stream("digits"), preset="digits", progress=False, **changes)


@pytest.mark.parametrize("budget", [{}, {"memory__bytes": 10**9}])
def test_neither_is_a_residual_one(budget: dict[str, Any]) -> None:
    with pytest.raises(
        LabError, match=r"[\d,]+ GB to train and the machine has|smaller than the finished model of icarl"
    ):
        lab.start("icarl", lab.stream("digits"), preset="digits", progress=False, options__width=20_000, **budget)
