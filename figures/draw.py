"""Draws the committed tables and figures again from the committed records, models, counts and measurements.

python figures/draw.py                  all of them
python figures/draw.py digits100 cost   those of the sets that are called so

The same records give the same files, byte for byte with the same version of matplotlib.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from dne_lab.commands import report
from dne_lab.core.errors import unknown
from dne_lab.core.files import write_text
from dne_lab.measure import record, tables
from dne_lab.measure.trained_controls import controls, ladder
from dne_lab.plots.contributions import controls_figure, ladder_figure
from dne_lab.plots.figure import Figure

FIGURES = Path(__file__).parent
RECORDS = FIGURES / "records"
CHECKPOINTS = FIGURES / "checkpoints"

# Folders of records on one data set: a table of all runs and every figure that they fill, called after the folder.
RUNS = (
    "reproduce_digits_s0-4", "digits100", "digits100-steps", "digits100-baselines", "digits100-baselines-steps",
    "digits100-widths", "cifar100-small", "cifar100-small-baselines", "cifar100-medium",
)  # fmt: skip
# Searches of learning rates: the table alone.
TUNING = (
    "digits-tuning", "digits100-tuning", "digits100-baselines-tuning", "digits100-controls-tuning",
    "cifar100-medium-tuning",
)  # fmt: skip
# Controls that were trained, with the methods that they change: their differences, and the steps from IA to DNE.
CONTROLS = {"digits100-controls": ("digits100-controls", "digits100-controls-repeat")}
# Several folders together, and the figures that say more than those of each.
TOGETHER = {
    "digits100_all": (
        ("digits100", "digits100-steps", "digits100-baselines", "digits100-baselines-steps", "digits100-widths"),
        ("figure_1_right", "figure_6a", "figure_6c", "figure_6f", "accuracy_over_bytes"),
    )
}
ARCHITECTURES = "cifar100_small"  # before the names of figures 2, 3 and 5, which are drawn of the committed models
MEASURED = ("cost", "timing", "attention", "ablation", "probe")  # folders of records of instruments


def stem(folder: str) -> str:
    """A folder's name as its files begin."""
    return folder if folder in RUNS[:1] else folder.replace("-", "_")


def table(folder: str) -> str:
    """The CSV of all runs in a folder of records."""
    return tables.summary(record.find(RECORDS / folder)).to_csv(index=False, float_format="%.4f", lineterminator="\n")


def figures(name: str) -> dict[str, Figure]:
    """The committed figures of one set, by file name."""
    if name in RUNS:
        return {f"{stem(name)}_{kind}": f for kind, f in report.drawings(record.find(RECORDS / name)).items()}
    if name in CONTROLS:
        found = record.find([RECORDS / folder for folder in CONTROLS[name]])
        steps = ladder(found)
        rungs = {f"{stem(name)}_ladder": ladder_figure(steps)} if steps else {}
        return {stem(name): controls_figure(controls(found))} | rungs
    if name in TOGETHER:
        folders, kinds = TOGETHER[name]
        made = report.drawings(record.find([RECORDS / folder for folder in folders]))
        return {f"{name}_{kind}": made[kind] for kind in kinds}
    if name == CHECKPOINTS.name:
        return {f"{ARCHITECTURES}_{kind}": f for kind, f in report.architectures([CHECKPOINTS]).items()}
    return report.measurements([RECORDS / name]) if name in measured() else {}


def measured() -> list[str]:
    """The folders of instruments that there are."""
    return [name for name in MEASURED if (RECORDS / name).exists()]


def sets() -> list[str]:
    """Everything that is drawn, in order."""
    return [*RUNS, *TUNING, *CONTROLS, *TOGETHER, CHECKPOINTS.name, *measured()]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", help=", ".join(sets()))
    chosen = parser.parse_args(arguments).sets or sets()
    for name in chosen:
        if name not in sets():
            raise unknown("set of figures", name, sets())
    for name in tqdm(chosen, "drawing", unit="set"):
        if name in (*RUNS, *TUNING):
            write_text(FIGURES / f"{stem(name)}.csv", table(name))
        for file, figure in figures(name).items():
            for suffix in ("csv", "png"):
                figure.save(FIGURES / f"{file}.{suffix}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
