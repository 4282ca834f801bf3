"""The records of the short runs at the paper's size are what their page takes them for."""

from test_committed import FIGURES

from dne_lab.core import presets
from dne_lab.measure import record

PAPER_SIZE = FIGURES / "gpu"  # not among the records: too short to say anything of methods


def test_the_runs_of_the_papers_size() -> None:
    runs = {name: record.Record.from_json(PAPER_SIZE / f"{name}-e8-s0.json") for name in ("ia", "sta", "dne", "joint")}
    assert len({run.accuracy[0][0] for method, run in runs.items() if method != "joint"}) == 1
    for method, run in runs.items():
        given = {"learn.epochs": 8}
        assert presets.resolve("cifar100-b50-10,authors-code", given, method=method, seed=0).identity() == run.config
        assert run.finished and "H200" in run.device
    four = record.Record.from_json(PAPER_SIZE / "dne-b50-2-e2-s0-four-tasks.json")
    assert not four.finished and len(four.timing["last_epoch"]) == 4
