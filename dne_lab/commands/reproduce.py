"""The main job: train IA, STA, DNE and Joint on real images, and write the table, the figures and the records."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

import dne_lab.methods
from dne_lab.analysis.decomposition import Decomposition, decompose
from dne_lab.commands import report
from dne_lab.commands.run_command import begins
from dne_lab.core.config import Config
from dne_lab.core.files import make_folder
from dne_lab.measure import tables
from dne_lab.measure.comparison import groups
from dne_lab.measure.record import Record, find
from dne_lab.methods import base
from dne_lab.plots.attention import drawings
from dne_lab.training import distributed, grid
from dne_lab.training.folder_names import experiment_name, folder_name
from dne_lab.training.run import Run
from dne_lab.training.run_folder import RECORD

if TYPE_CHECKING:
    import pandas as pd


Settings = dict[str, Any]  # dotted fields of the configuration

METHODS = ("joint", "ia", "sta", "dne")
SMALL_SCALE = (
    "What this can show: that every variant learns a stream of real images, what each costs, and how they compare at",
    "this size. It can neither confirm nor refute the paper's order of methods: that takes its CIFAR-100 schedule of",
    "500 epochs.",
)
SAME_PATCH = "same patch %"
COLUMNS = (
    "method",
    "seeds",
    "LA",
    "LA +-",
    "AA",
    "AA +-",
    "D",
    "forgetting",
    "F literal (G)",
    "F spent (G)",
    SAME_PATCH,
    "seconds",
)
PICTURE = "accuracy_by_task"
IMAGES = 300  # test images whose attention is sorted


@dataclass(frozen=True)
class Result:
    """What `reproduce` made: one row per method, the records behind it, the folder and the files written to it."""

    preset: str
    table: "pd.DataFrame"
    records: list[Record]
    out: Path
    written: list[Path]
    runs: list[Path]

    @property
    def picture(self) -> Path:
        """The one to look at first."""
        return next(path for path in self.written if path.name.endswith(f"_{PICTURE}.png"))

    def to_json(self) -> dict[str, Any]:
        """The table, the records' ids and the paths as JSON."""
        rows = [{k: None if v != v else v for k, v in row.items()} for row in self.table.to_dict("records")]
        return {
            "preset": self.preset,
            "table": rows,
            "records": [r.id for r in self.records],
            "picture": str(self.picture),
            "runs": [str(path) for path in self.runs],
            "files": [str(path) for path in self.written],
        }

    def text(self) -> str:
        """The printed summary: the table, the picture to open, and what to do next."""
        first = self.records[0]
        lines = [
            f"{self.preset}: {tables.tasks_text(first.tasks)} classes, {len(self.records)} runs, accuracy in percent, "
            "F = 2 x multiply-accumulate of one image",
            "",
            tables.to_text(self.table[[c for c in COLUMNS if c in self.table]]),
            *([] if first.dataset == "cifar100" and first.epochs >= 500 else [*SMALL_SCALE, ""]),
            f"open: {self.picture} (accuracy over the classes seen)",
            f"next: dne-lab report {self.runs[-1]} --attention 200 (where the attention of DNE goes), or dne-lab lab",
            report.below(self.written, self.out),
        ]
        return "\n".join(lines)


def folder(preset: str, changes: Settings | None = None) -> Path:
    """Where everything goes by default: ``runs/reproduce-<preset>``, and what is set otherwise."""
    return Path("runs") / f"reproduce-{experiment_name(base.configure('dne', preset, changes))}"


def reproduce(
    preset: str,
    seeds: Sequence[int],
    out: Path | None = None,
    changes: Settings | None = None,
    device: str | None = None,
    progress: bool = True,
    jobs: int | str = 1,
) -> Result:
    """Trains what is left of the runs, then writes table, figures and records, all below ``out`` (default: `folder`).

    The run folders are ``out``/runs/..., the records ``out``/records/<name>/..., figures and tables
    ``out``/<name>*.png and .csv, where <name> is reproduce_<preset and what is set otherwise>_s<seeds>: results of
    other settings in the same folder stay apart. ``jobs``: as in `grid.execute`.
    """
    out = folder(preset, changes) if out is None else out
    changes = changes or {}
    plan = grid.plan(METHODS, lambda m: base.configure(m, preset, base.used(m, changes)), seeds, out / "runs")
    make_folder(out)  # a place that cannot be written to is found before the training
    first = begins(plan) if progress else ""
    records = grid.execute(plan, jobs=jobs, first=first, device=device, progress=progress)
    if not distributed.leave():
        sys.exit(0)  # tables and figures are made by one process
    name = f"reproduce_{_experiment(plan, preset, changes)}_s{_seeds_text(seeds)}"
    own = out / "records" / name  # a folder of their own: those of other seeds or machines are not mixed with them
    written = [own / f"{record.method}-s{record.seed}.json" for record in records]
    for record, path in zip(records, written, strict=True):
        if not path.exists() or find(path) != [record]:
            record.write(path)
    order = {method: i for i, method in enumerate(("ia", "sta", "dne", "joint"))}
    records = sorted(records, key=lambda r: (order[r.method], r.seed))
    table = tables.summary(records)
    experts = _with_experts(plan)
    found = []
    if progress:
        print(f"sorting the attention of {IMAGES} test images by group, then drawing", file=sys.stderr)
    for run_folder in tqdm(experts, "attention", unit="run", leave=False, disable=None if progress else True):
        of = find(run_folder / RECORD)[0]
        path = own / "attention" / f"{of.method}-s{of.seed}.json"
        if not path.exists() or not _is_of(path, of) or path.stat().st_mtime < _newest([run_folder / RECORD]):
            decompose(Run.open(run_folder, progress=False), IMAGES, progress=False).write(path)
        found += Decomposition.find(path)
        written.append(path)
    since = _newest(written)  # figures that are younger stay
    written += report.figures(records, out, name, progress=progress, since=since)
    for kind, figure in drawings(found).items():
        written += [p for end in ("csv", "png") for p in report.save(figure, out / f"{name}_{kind}.{end}", since)]
    table[SAME_PATCH] = same_patch(records, found)
    return Result(preset, table, records, out, written, experts)


def same_patch(records: Sequence[Record], found: Sequence[Decomposition]) -> list[float | None]:
    """Same-patch share of the attention of experts 2, 3, ..., for each row of the summary of ``records``; percent.

    None for methods with one expert.
    """
    shares = {member.run: member.same_patch().value for member in found}
    rows = [[shares[r.id] for r in group.records if r.id in shares] for group in groups(records)]
    return [sum(values) / len(values) if values else None for values in rows]


def _experiment(plan: grid.Plan, preset: str, changes: Settings) -> str:
    """What the runs of a plan are called together, apart from those of another data set of the same name."""
    config = base.configure("dne", preset, changes)
    apart = any(folder.name != folder_name(one) for one, folder in plan)
    return experiment_name(config, apart)


def _is_of(path: Path, record: Record) -> bool:
    """Whether a file holds the attention of this run, and not of one with other settings or of another data set."""
    found = Decomposition.find(path)[0]
    return (found.run, found.config_sha256) == (record.id, record.config_sha256)


def _newest(files: Sequence[Path]) -> float:
    """When the youngest of these files, or of the program that reads them, was written."""
    return max(file.stat().st_mtime for file in (*files, *Path(dne_lab.__file__).parent.rglob("*.py")))


def _with_experts(plan: Sequence[tuple[Config, Path]]) -> list[Path]:
    """Folders of the runs that grow by experts; the joint model is one expert."""
    return [folder for config, folder in plan if not base.find(config.method).joint]


def _seeds_text(seeds: Sequence[int]) -> str:
    """``0``, ``0-4``, or ``0+2+5`` where they are no run of numbers."""
    if len(seeds) > 1 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return "+".join(map(str, seeds))
