"""What `dne-lab report --ablation` does: ablate runs and keep the records."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dne_lab.analysis.ablation_record import AblationRecord, study
from dne_lab.analysis.ablation_tables import side_by_side, sweep_table
from dne_lab.analysis.cutter import HOW, QUESTIONS, warning
from dne_lab.decomposing import open_with, runs
from dne_lab.files import file_name
from dne_lab.measure import tables

if TYPE_CHECKING:
    import pandas as pd

FOLDER = Path("records") / "ablation"  # within --out


def write(
    paths: Iterable[Path], images: int, out: Path, how: str | Sequence[str] = HOW, data: str | None = None
) -> tuple[list[AblationRecord], list[Path]]:
    """Ablates every run, one after another, and writes its records, ``out``/records/ablation/ID-HOW.json for each of
    ``how``.

    Returns:
        What was found, and the files written.
    """
    made, written = [], []
    for path in runs(paths, "--ablation", images):
        for found in study(open_with(path, data), images, how):
            file = out / FOLDER / f"{file_name(found.name)}.json"
            found.write(file)
            made.append(found)
            written.append(file)
    return made, written


def overview(found: Iterable[AblationRecord]) -> "pd.DataFrame":
    """One row for each removal from all later experts at once: where, what, its share of the attention, and what is
    lost in each way of removing it, side by side.

    ``+-`` is half the width of the 95% interval over seeds; of one seed, over images.
    """
    whole = side_by_side(found)
    whole = whole[whole["experts"] == "later"].rename(columns={"mass %": "attention %"})
    ways = [name for how in HOW for name in (how, f"{how} +-") if how in whole]
    return whole[["preset", "method", "kind", "removed", "seeds", "attention %", "before %", *ways]]


def text(found: Iterable[AblationRecord]) -> str:
    """For the terminal: what each group of the later experts' attention is worth, and each connection (all layers)."""
    found = list(found)
    hows = [how for how in HOW if any(record.how == how for record in found)]
    told = ["Accuracy lost (points) when attention of experts 2, 3, ... is removed"]
    told += [f"  {how}: {QUESTIONS[how]}" for how in hows]
    told.append(tables.to_text(overview(found)))
    kinds = {kind for record in found for row in record.groups for kind in row["kind"].split(" + ")}
    told += [f"Beware: {note}\n" for how in hows if (note := warning(how, kinds))]
    swept = sweep_table(found) if any(record.sweep for record in found) else None
    if swept is not None:
        for (preset, method, how), rows in swept.groupby(["preset", "method", "how"], sort=False):
            last = rows[(rows["kind"] == rows["kind"].iloc[-1]) & (rows["layer"] == rows["layer"].iloc[-1])]
            matrix = last.pivot_table("loss", "expert", "reads", sort=False).round(2)
            told += [
                f"{method}, {preset}: lost when expert (row) reads expert (column) at no layer ({how})",
                str(matrix),
            ]
    return "\n".join(told)
