"""What records say: printed tables beside the paper's, and figures."""

import dataclasses
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dne_lab.errors import LabError
from dne_lab.measure import record as records_of
from dne_lab.measure import tables
from dne_lab.measure.record import Record
from dne_lab.plots.figure import Figure


def tell(found: Sequence[Any], written: Iterable[Path], text: Callable[[Sequence[Any]], str], as_json: bool) -> None:
    """Prints records that have just been made (dataclasses), as JSON or as ``text`` has them, and the files written."""
    print(json.dumps([dataclasses.asdict(one) for one in found]) if as_json else text(found))
    for path in written:
        print(f"wrote {path}", file=sys.stderr)


def find(paths: Iterable[str | Path]) -> list[Record]:
    """The records of run folders, of folders that hold any, and of exported archives."""
    from dne_lab.training.archive import unpacked

    def packed(path: Path) -> bool:
        return path.suffix in (".zip", ".safetensors") or (path.is_file() and zipfile.is_zipfile(path))

    with ExitStack() as stack:
        given = [Path(path) for path in paths]
        places = [stack.enter_context(unpacked(path)) if packed(path) else path for path in given]
        return records_of.find(places)


def text(records: Sequence[Record], latex: bool = False) -> str:
    """Two tables: ours, one row a method with 95% intervals over seeds; and ours beside the paper's rows."""
    write = tables.to_latex if latex else tables.to_text
    ours, compared = tables.summary(records), tables.compare(records)
    out = [write(ours)]
    if compared["paper LA"].notna().any():
        out += [
            "Beside the paper (ours minus the paper's; other data or schedules are not comparable):",
            write(compared),
        ]
    if not len(ours):
        raise LabError("no run among these records has finished its first task yet. Go on training, then report again.")
    return "\n".join(out)


def committed_text(folder: Path) -> str:
    """The table of CIFAR-100 records in a folder, or a sentence that there are none."""
    there = folder.is_dir() and any(folder.rglob("*.json"))
    found = [record for record in records_of.find(folder) if record.dataset == "cifar100"] if there else []
    if not found:
        return f"No record of a CIFAR-100 run in {folder} yet."
    return "CIFAR-100 records:\n" + tables.to_text(tables.summary(found))


def drawings(records: Sequence[Record]) -> dict[str, Figure]:
    """The figures that these records of one data set can fill, by name."""
    from dne_lab.plots.accuracy import accuracy_against_cost, accuracy_by_task

    return {"accuracy_by_task": accuracy_by_task(records), "accuracy_against_cost": accuracy_against_cost(records)}


def figures(records: Sequence[Record], out: Path, name: str | None = None) -> list[Path]:
    """Writes the summary as ``<name>.csv`` (default: summary), and CSV and PNG of the figures of every data set."""
    from dne_lab.files import write_text

    path = out / f"{name or 'summary'}.csv"
    write_text(path, tables.summary(records).to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    written = [path]
    for dataset in dict.fromkeys(r.dataset for r in records):
        chosen = [r for r in records if r.dataset == dataset]
        for kind, figure in drawings(chosen).items():
            stem = f"{name or dataset}_{kind}"
            written += [*figure.save(out / f"{stem}.csv"), *figure.save(out / f"{stem}.png")]
    return written
