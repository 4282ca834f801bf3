"""What a record says of the program that wrote it."""

import shlex
import sys
from pathlib import Path

import pytest

from dne_lab.training import evaluation
from dne_lab.training.evaluation import LONGEST, command


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["/opt/bin/dne-lab", "run", "dne", "--set", "learn.epochs=2"], "dne-lab run dne --set learn.epochs=2"),
        (["/opt/site-packages/dne_lab/__main__.py", "run", "dne"], "dne-lab run dne"),
        (["/elsewhere/mine.py", "a b"], "python mine.py 'a b'"),
        (["/opt/site-packages/ipykernel_launcher.py", "-f", "kernel.json"], ""),
        ([""], ""),
        (["-c", "x"], ""),
    ],
)
def test_the_command_is_told_without_where_the_program_lies(
    words: list[str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", words)
    assert command() == told


def test_a_command_tells_no_home_folder_and_ends_somewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["dne-lab", "run", "dne", "--out", str(Path.home() / "runs")])
    assert command() == "dne-lab run dne --out ~/runs"
    monkeypatch.setattr(sys, "argv", ["dne-lab", "run", *["--set", "k=1"] * 500])
    assert len(command()) == LONGEST and command().endswith(" ...") and shlex.split(command())[:2] == ["dne-lab", "run"]


def test_the_processor_has_a_name_also_where_the_system_does_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert evaluation.processor.__wrapped__()

    def refused(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", refused)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert evaluation.processor.__wrapped__() == "arm64"
