"""What `dne-lab report --probe` does: probe the read-outs of runs and keep the records."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from dne_lab.analysis.read_outs import ProbeRecord, probe_table, study
from dne_lab.decomposing import open_with, runs
from dne_lab.files import file_name
from dne_lab.measure import tables

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path("records") / "probe"  # within --out


def write(paths: Iterable[Path], out: Path, data: str | None = None) -> tuple[list[ProbeRecord], list[Path]]:
    """Probes every run, one after another, and writes its record, ``out``/records/probe/ID.json.

    Returns:
        What was found, and the files written.
    """
    made, written = [], []
    for path in runs(paths, "--probe"):
        found = study(open_with(path, data))
        file = out / FOLDER / f"{file_name(found.run)}.json"
        found.write(file)
        made.append(found)
        written.append(file)
    return made, written


def overview(found: Iterable[ProbeRecord]) -> "pd.DataFrame":
    """One row a method and set of read-outs: accuracy over all classes, and within the task when the task is told."""
    columns = ["preset", "method", "heads", "read-outs", "seeds", "width"]
    return probe_table(found)[[*columns, "accuracy %", "accuracy +-", "told %", "told +-"]]


def text(found: Iterable[ProbeRecord]) -> str:
    """`overview` for the terminal, and what it is."""
    told = "Linear probes of frozen read-outs, trained with all training images of every class\n"
    told += "  told: accuracy within the task when the task is told\n"
    return told + tables.to_text(overview(found))
