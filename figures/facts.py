"""What the templates of the pages may ask: numbers, tables and pictures from the committed records, as text.

Every function reads ``figures/records`` alone. A number that is not there is an error, so that no page says what no
record holds.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from dne_lab.analysis import ablation_study, decomposition, gates, read_outs
from dne_lab.analysis.ablation_study import group_table, sweep_table
from dne_lab.claims import status
from dne_lab.claims.evidence import Evidence
from dne_lab.commands import instruments
from dne_lab.core.errors import LabError
from dne_lab.measure import beside, budget, cost_records, paper, record, tables
from dne_lab.measure.comparison import Group, groups
from dne_lab.measure.metrics import interval
from dne_lab.measure.record import Record
from dne_lab.measure.significance import LEVEL, holm, p_value, residual
from dne_lab.measure.tables import fixed
from dne_lab.methods.base import title_of
from dne_lab.training import run_list as runs_listed

FIGURES = Path(__file__).parent
RECORDS = FIGURES / "records"
NOTEBOOKS = FIGURES.parent / "notebooks"
sys.path.append(str(NOTEBOOKS))
import execute  # noqa: E402


@dataclass(frozen=True)
class Difference:
    """A mean difference in points with the half width of its 95% interval over seeds (None: one seed)."""

    mean: float
    width: float | None

    @property
    def told(self) -> bool:
        """Whether the interval excludes zero."""
        return self.width is not None and abs(self.mean) > self.width

    def __str__(self) -> str:
        """``+10.8 ± 7.1``."""
        return fixed(self.mean, 1, "+") + ("" if self.width is None else f" ± {self.width:.1f}")


class Runs:
    """Finished runs, by the label that tables give them: ``runs["DNE (k = 1)"]``."""

    def __init__(self, records: Sequence[Record]) -> None:
        self.records = list(records)

    @cached_property
    def groups(self) -> dict[str, Group]:
        return {group.label: group for group in groups(self.records)}

    def __getitem__(self, label: str) -> Group:
        if label not in self.groups:
            raise LabError(f"no runs of {label!r}: there are {', '.join(self.groups)}.")
        return self.groups[label]

    def where(self, **wanted: Any) -> "Runs":
        """The runs whose fields have these values, e.g. ``seed=0``; a tuple: one of them."""
        kept = self.records
        for name, value in wanted.items():
            among = value if isinstance(value, tuple) else (value,)
            kept = [one for one in kept if getattr(one, name) in among]
        return Runs(kept)

    def stream(self, *tasks: int) -> "Runs":
        """The runs of one stream, and joint models, which know no tasks."""
        return Runs([one for one in self.records if one.joint or one.tasks == list(tasks)])

    def __add__(self, other: "Runs") -> "Runs":
        return Runs([*self.records, *other.records])

    def mean(self, label: str, name: str = "LA") -> float:
        """Mean over seeds of a field of the record."""
        return interval([float(getattr(one, name)) for one in self[label].records])[0]

    def spread(self, label: str) -> float:
        """Half width of the 95% interval of LA over seeds."""
        width = interval([float(one.LA or 0) for one in self[label].records])[1]
        if width is None:
            raise LabError(f"{label}: one seed has no interval.")
        return width

    def gap(self, one: str, other: str) -> Difference:
        """LA of one minus the other, paired by seed."""
        return Difference(*interval(self._by_seed(one, other)))

    def _by_seed(self, one: str, other: str) -> list[float]:
        mine, theirs = (self[label].last_by_seed() for label in (one, other))
        return [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())]

    def gaps(self, *pairs: tuple[str, str]) -> str:
        """A table of `gap` for one family of comparisons of several seeds: p corrected by Holm within it, and beside
        each interval the one from the standard deviation pooled over all methods here."""
        pooled = residual(
            {label: group.last_by_seed() for label, group in self.groups.items() if not group.first.joint}
        )
        corrected = self.adjusted(*pairs)
        rows = [
            {"difference in LA, paired by seed": f"{one} - {other}", "points": str(self.gap(one, other))}
            | {"± pooled": n(pooled.half_width(len(self._by_seed(one, other)), means=2)), "p (Holm)": f"{p:.2g}"}
            | {"told apart": "yes" if p < 1 - LEVEL else "no"}
            for (one, other), p in corrected.items()
        ]
        return tables.to_markdown(pd.DataFrame(rows))

    def adjusted(self, *pairs: tuple[str, str]) -> dict[tuple[str, str], float]:
        """p of every pair's difference in LA, corrected by Holm within these pairs."""
        values = [p_value(self._by_seed(one, other)) for one, other in pairs]
        return dict(zip(pairs, holm(values), strict=True))

    def ratio(self, one: str, other: str, name: str = "flops_literal") -> float:
        """How many times ``name`` (flops_literal, flops_spent, params) of the other one has."""
        values = [
            first.params["total"] if name == "params" else getattr(first, name)
            for first in (self[one].first, self[other].first)
        ]
        return float(values[0] / values[1])

    def newest(self, label: str, first: int = 2) -> tuple[float, float]:
        """Smallest and largest accuracy on the newest classes after task ``first`` and later, over all seeds."""
        values = [row[-1] for one in self[label].records for row in one.accuracy[first - 1 :]]
        return min(values), max(values)

    def newest_means(self, label: str) -> tuple[float, float]:
        """Smallest and largest mean over seeds of the accuracy on the newest classes, after task 2 and later."""
        records = self[label].records
        means = [interval([one.accuracy[task][-1] for one in records])[0] for task in range(1, len(records[0].tasks))]
        return min(means), max(means)

    def first_task(self, label: str) -> tuple[float, float]:
        """Smallest and largest accuracy after task 1, over seeds."""
        values = [one.accuracy[0][0] for one in self[label].records]
        return min(values), max(values)

    def other(self, label: str, prediction: str) -> tuple[float, float]:
        """Smallest and largest LA over seeds of a method's other prediction, such as FOSTER's teacher."""
        values = [one.other_predictions[prediction]["LA"] for one in self[label].records]
        return min(values), max(values)

    def best(self, *labels: str) -> list[str]:
        """The labels from the highest mean LA to the lowest."""
        return sorted(labels or self.groups, key=lambda label: -self.mean(label))

    def table(self, *columns: str, sort: str | None = None) -> str:
        """The summary in these columns, those of the paper's row beside it too."""
        both = tables.compare(self.records).merge(
            tables.summary(self.records), how="left", on=["method", "tasks"], suffixes=("", "_")
        )
        if sort:
            both = both.sort_values(sort, kind="stable")
        return tables.to_markdown(both[list(columns)])

    def costs(self) -> str:
        """What learning costs and what model and exemplars weigh, one row a method."""
        return tables.to_markdown(beside.costs(self.records).drop(columns=["dataset", "seconds", "F spent (G)"]))

    def by_stream(self) -> str:
        """LA of every method (row) on every stream (column)."""
        return tables.to_markdown(tables.by_stream(self.records))


def runs(*folders: str) -> Runs:
    """The runs in these folders of ``figures/records``."""
    return Runs([one for name in folders for one in record.find(RECORDS / name)])


# The comparisons of the variants, one family: on the front page as on the page of digits100.
VARIANTS = (
    ("DNE (k = 1)", "IA (k = 1)"),
    ("STA (k = 1)", "IA (k = 1)"),
    ("Progressive (k = 1)", "IA (k = 1)"),
    ("DNE (k = 1)", "STA (k = 1)"),
    ("DNE (k = 1)", "Progressive (k = 1)"),
)


def several(found: Runs, pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs of which both methods have at least two seeds in common."""
    there = [pair for pair in pairs if set(pair) <= found.groups.keys()]
    return [(one, other) for one, other in there if len(found._by_seed(one, other)) > 1]


def pictures(name: str) -> bool:
    """Whether a figure has been drawn."""
    return (FIGURES / f"{name}.png").exists()


def run_list(folder: str) -> str:
    """How far the list of runs of a folder of records is, in a sentence."""
    listed = runs_listed.read(RECORDS / folder / "grid.json", RECORDS / folder)  # what is committed alone
    missing = [one.entry.name for one in listed if one.state != runs_listed.FINISHED]
    said = f"{len(listed) - len(missing)} of the {len(listed)} runs of `records/{folder}/grid.json` are in"
    return f"{said}; next: {', '.join(missing[:4])}." if missing else f"{said}."


def trials(folder: str) -> str:
    """What a search of rates has found on validation images: a table, or that it has not been made."""
    found = record.find(RECORDS / folder) if any((RECORDS / folder).glob("*-*.json")) else []
    if not found:
        return "those of the preset, the same for all methods; the search per method has not been made yet."
    rows: dict[str, dict[str, Any]] = {}
    for one in found:
        row = rows.setdefault(one.method, {"method": title_of(one.method)})
        row[f"lr {one.config['learn']['lr']:g}"] = n(one.LA or 0)
    head = "LA on a fifth of the training images, one seed, 50 + 25 x 2 classes, 8 epochs of the stem and 4 per task."
    return f"{head}\n\n{tables.to_markdown(pd.DataFrame(rows.values()))}"


def results(networks: Mapping[str, Sequence[str]], **protocols: Runs) -> str:
    """LA with its interval: a row per method, a column per protocol. ``networks``: methods by the network they use."""
    rows = []
    for network, label in ((name, label) for name, labels in networks.items() for label in labels):
        row = {"LA, %": label.removesuffix(" (ResNet)"), "network": network}
        for name, found in protocols.items():
            there = label in found.groups
            width = f" ± {n(found.spread(label))}" if there and len(found[label].records) > 1 else ""
            row[name] = f"{n(found.mean(label))}{width}" if there else ""
        rows.append(row)
    return tables.to_markdown(pd.DataFrame(rows))


def spread_of(protocols: Sequence[Runs], one: str, other: str) -> str:
    """``14 to 16``: points of LA by which one method lies above another, least and most over protocols."""
    gaps = [found.gap(one, other).mean for found in protocols]
    return span((min(gaps), max(gaps)))


def longer_finetuning() -> tuple[float, float]:
    """Accuracies on the newest classes of fine-tuning (ResNet, digits100) with 60 epochs, on a validation split."""
    (one,) = (found for found in record.find(RECORDS / "digits100-finetune-check") if found.epochs == 60)
    values = [row[-1] for row in one.accuracy[1:]]
    return min(values), max(values)


def narrow_rate() -> Record:
    """DyTox of 12 heads with a quarter of the learning rate, on a validation split."""
    (one,) = record.find(RECORDS / "digits100-widths-check")
    return one


def short_runs(name: str) -> Record:
    """A record of ``figures/gpu``: runs too short to say anything of methods, which no table holds."""
    return Record.from_json(FIGURES / "gpu" / name)


def paper_scale_hours() -> float:
    """Hours of 500 epochs of DNE on 50 + 10 x 5 on the GPU of ``figures/gpu``, from single epochs measured there.

    An epoch of a later task has 28 steps; those of tasks 2 to 4 were measured with 12, tasks 5 and 6 count as task 4.
    """
    epochs = short_runs("dne-b50-2-e2-s0-four-tasks.json").timing["last_epoch"]
    first, *later = (epoch["learn"] for epoch in epochs)
    tune = max(epoch["tune"] for epoch in epochs if "tune" in epoch)
    return float((500 * (first + 28 / 12 * sum([*later, later[-1], later[-1]])) + 5 * 20 * tune) / 3600)


def gates_table() -> str:
    """The gates of a protocol and what each asks."""
    return tables.to_markdown(pd.DataFrame([{"gate": name, "asks": asks} for name, asks in gates.ASKS.items()]))


def gates_of(*folders: str) -> str:
    """The gates of the one protocol of which there are runs in these folders, with what all committed records say."""
    return tables.to_markdown(gates.table(_gates(runs(*folders).records)))


def _gates(records: Sequence[Record]) -> list[gates.Gate]:
    return gates.gates(
        records,
        *(
            kind.find(RECORDS / folder)
            for kind, folder in ((read_outs.ProbeRecord, "probe"), (decomposition.Decomposition, "attention"))
        ),
        ablation_study.AblationRecord.find(RECORDS / "ablation"),
    )


def gates_overview(*folders: str) -> str:
    """One row a protocol, one column a gate: its value, and whether it is met; empty where there is no record."""
    rows = []
    for protocol, members in gates.protocols(runs(*folders).records).items():
        row = {"protocol": protocol}
        for gate in _gates(members):
            row[gate.name] = "" if gate.value is None else f"{n(gate.value, 2)} {gate.state}"
        rows.append(row)
    return tables.to_markdown(pd.DataFrame(rows))


def before_stage_2(*folders: str) -> str:
    """What was predicted before stage 2 of each task, one row per method."""
    return tables.to_markdown(gates.before_stage_2(runs(*folders).records).round(1))


def bench(name: str) -> dict[str, Any]:
    """What a benchmark measured (``records/timing``)."""
    return dict(json.loads((RECORDS / "timing" / f"{name}.json").read_text()))


def cost(method: str, tasks: str, k: int | None = None) -> dict[str, Any]:
    """What was counted after the last task, e.g. ``cost("dne", "50+10x5", 1)``."""
    name = f"{method}{'' if k is None else f'-k{k}'}-{tasks}.json"
    return dict(json.loads((RECORDS / "cost" / name).read_text())[-1])


def cost_table(rows: Sequence[tuple[str, str, int | None]]) -> str:
    """Printed, counted on the authors' files, literal and spent GFLOPs of (method, tasks, k)."""
    steps = {"50+10x5": 10, "50+5x10": 5, "50+25x2": 25, "50+2x25": 2}
    printed, released = paper.tables(), paper.authors_code_cost()
    found = []
    for method, tasks, k in rows:
        one = cost(method, tasks, k)
        row = {"method": method, "step": steps[tasks], "k": k}
        name = method if k is None else f"dne_{k}head{'s' * (k > 1)}"
        mine = printed[
            (printed["dataset"] == "cifar100") & (printed["step"] == row["step"]) & (printed["method"] == name)
        ]
        theirs = released[(released["method"] == method) & (released["step"] == str(row["step"]))]
        theirs = theirs[theirs["heads_per_task"] == (12 if k is None else k)]
        titles = {
            "dne": "DNE",
            "der": "DER",
            "icarl": "iCaRL",
            "podnet": "PODNet",
            "foster": "FOSTER",
            "dytox": "DyTox",
        }
        found.append(
            {"after the last task": f"{titles[method]}{'' if k is None else f' (k = {k})'}, {spaced(tasks)}"}
            | {"paper prints": float(mine["f_gflops"].iloc[0]) if len(mine) else None}
            | {"authors' code, counted": f"{theirs['gflops_2mac'].iloc[0]:.3f}" if len(theirs) else ""}
            | {"literal": f"{one['flops_literal'] / 1e9:.3f}", "spent": f"{one['flops_spent'] / 1e9:.3f}"}
            | {"params (M)": one["params_total"] / 1e6}
        )
    return tables.to_markdown(pd.DataFrame(found))


def bought_table(tasks: str) -> str:
    """Bytes of every method's finished model, from small to large, and the exemplars that they would buy."""
    found = [one for one in cost_records.find([RECORDS / "cost"]) if one.id.endswith(f"-{tasks}")]
    found.sort(key=lambda one: int(one.last["params_total"]))
    smallest = found[0].last["params_total"]
    rows = [
        {"method": one.label, "MB": n(budget.PARAMETER * one.last["params_total"] / budget.MB)}
        | {"exemplars": f"{budget.bought(one.last['params_total'], smallest, (3, 32, 32)):,}"}
        for one in found
    ]
    return tables.to_markdown(pd.DataFrame(rows))


def spaced(tasks: str) -> str:
    """``50 + 10 x 5`` for ``50+10x5``."""
    return tasks.replace("+", " + ").replace("x", " x ")


def speed_table(name: str, places: int = 2) -> str:
    """How many times as fast as the literal path, and seconds, of one benchmark."""
    made = bench(name)
    rows = [(f"training step, task {task}", ratio, f"train_step_{task}") for task, ratio in made["train_step"].items()]
    rows += [(f"prediction, task {task}", ratio, f"inference_{task}") for task, ratio in made["inference"].items()]
    return tables.to_markdown(
        pd.DataFrame(
            {"": [row[0] for row in rows], "times as fast as literal": [f"{row[1]:.1f}" for row in rows]}
            | {"seconds": [f"{made['seconds'][row[2]]:.{places}f}" for row in rows]}
        )
    )


# Attention --------------------------------------------------------------------------------------------------------


@cache
def _attention(records: Path) -> list[decomposition.Decomposition]:
    return decomposition.Decomposition.find(records / "attention")


def attention_table() -> str:
    """Same-patch shares and effective keys of every network, the paper's first."""
    return tables.to_markdown(instruments.summary(_attention(RECORDS)))


def attention_of(preset: str, method: str, seed: int = 0) -> decomposition.Decomposition:
    """One attention record."""
    (one,) = (
        found for found in _attention(RECORDS) if (found.preset, found.method, found.seed) == (preset, method, seed)
    )
    return one


def same_patch_gap(preset: str, one: str = "sta", other: str = "ia") -> Difference:
    """Same-patch share of one method minus another's in points, paired by seed."""
    by: dict[tuple[str, int], float] = {
        (found.method, found.seed): found.same_patch().value for found in _attention(RECORDS) if found.preset == preset
    }
    seeds = sorted({seed for method, seed in by if method == one} & {seed for method, seed in by if method == other})
    return Difference(*interval([by[one, seed] - by[other, seed] for seed in seeds]))


def used_keys(preset: str, method: str) -> float:
    """Effective keys in percent of those that a query of the later experts sees, mean over layers and seeds."""
    frame = instruments.summary(_attention(RECORDS)).set_index("attention of")
    row = frame.loc[f"{title_of(method)}, {preset}"]
    return float(100 * row["effective keys"] / row["keys"])


def probe_tables() -> dict[str, str]:
    """By preset, what linear probes of frozen read-outs reach; empty without records."""
    folder = RECORDS / "probe"
    found = read_outs.ProbeRecord.find(folder) if folder.is_dir() else []
    made = {}
    for preset in dict.fromkeys(one.preset for one in found):
        frame = instruments.probe_overview([one for one in found if one.preset == preset]).drop(columns="preset")
        for name in ("accuracy", "told"):
            pairs = zip(frame.pop(f"{name} %"), frame.pop(f"{name} +-"), strict=True)
            frame[f"{name} %"] = [f"{n(value)} ± {n(width)}" for value, width in pairs]
        made[preset] = tables.to_markdown(frame)
    return made


def held(preset: str, method: str, which: str) -> float:
    """Accuracy (%) over all classes of a linear probe on read-outs ("all", "expert 1", "later"): mean over seeds."""
    found = [
        one for one in read_outs.ProbeRecord.find(RECORDS / "probe") if (one.preset, one.method) == (preset, method)
    ]
    frame = read_outs.probe_table(found)
    return float(frame[frame["read-outs"] == which]["accuracy %"].item())


HOWS = ("mean", "zero", "mask")  # in the order in which the pages show them


def reads_first(expert: int, read: int) -> bool:
    """Whether a connection is one to expert 1."""
    return read == 1


def reads_between(expert: int, read: int) -> bool:
    """Whether a connection is one to an expert between the first and the reader."""
    return 1 < read < expert


def reads_itself(expert: int, read: int) -> bool:
    """Whether a connection is an expert's own."""
    return read == expert


@cache
def _ablation(records: Path) -> list[ablation_study.AblationRecord]:
    return ablation_study.AblationRecord.find(records / "ablation")


class Ablations:
    """The committed ablation records of one preset: what is lost without a part of the later experts' attention."""

    def __init__(self, preset: str) -> None:
        self.records = [one for one in _ablation(RECORDS) if one.preset == preset]
        self.table = group_table(self.records) if self.records else pd.DataFrame(columns=["how"])

    @property
    def hows(self) -> list[str]:
        """The ways of removing of which there are records."""
        return [how for how in HOWS if any(one.how == how for one in self.records)]

    def seeds(self, method: str, how: str) -> int:
        return sum(one.method == method and one.how == how for one in self.records)

    def has(self, method: str, how: str) -> bool:
        return self.seeds(method, how) > 0

    def _row(self, method: str, how: str, kind: str, removed: str, experts: str | int = "later") -> "pd.Series[Any]":
        t = self.table
        chosen = t[(t["method"] == method) & (t["how"] == how) & (t["kind"] == kind)]
        chosen = chosen[(chosen["removed"] == removed) & (chosen["experts"] == experts)]
        if len(chosen) != 1:
            raise LabError(f"{len(chosen)} ablation rows of {method}, {how}, {kind}, {removed}.")
        return chosen.iloc[0]

    def loss(self, method: str, how: str, kind: str, removed: str, experts: str | int = "later") -> str:
        """``7.1 ± 6.6``: points lost, with the 95% interval over seeds (of one seed over images)."""
        row = self._row(method, how, kind, removed, experts)
        return f"{n(row['loss'])} ± {n(row['+-'])}"

    def value(self, column: str, method: str, how: str, kind: str, removed: str, experts: str | int = "later") -> float:
        """A column of that row, e.g. ``mass %``."""
        return float(self._row(method, how, kind, removed, experts)[column])

    def above(self, method: str, how: str, kind: str, removed: str, points: float) -> bool:
        """Whether the whole interval of what later experts lose lies above so many points."""
        row = self._row(method, how, kind, removed)
        return float(row["loss"] - row["+-"]) > points

    def markdown(self) -> str:
        """One row a removal; columns: its share of the attention, then points lost by each way of removing."""
        whole = self.table[self.table["experts"] == "later"]
        rows = []
        for (method, kind, removed), some in whole.groupby(["method", "kind", "removed"], sort=False):
            row: dict[str, Any] = {"method": title_of(method), "attention": kind, "removed": removed}
            row["its share %"] = f"{some['mass %'].mean():.1f}"
            for how in self.hows:
                one = some[some["how"] == how]
                row[f"`{how}`"] = f"{n(one['loss'].iloc[0])} ± {n(one['+-'].iloc[0])}" if len(one) else ""
            rows.append(row)
        return tables.to_markdown(pd.DataFrame(rows))

    def readers(self, method: str, how: str, reads: Callable[[int, int], bool]) -> str:
        """Points that a later expert loses on its own classes without the connections that ``reads(expert, read)``
        accepts, all layers and kinds together: mean over the connections, ± over seeds."""
        values = []
        for one in (one for one in self.records if one.method == method and one.how == how):
            frame = sweep_table([one])
            frame = frame[(frame["kind"] == frame["kind"].iloc[-1]) & (frame["layer"] == frame["layer"].iloc[-1])]
            chosen = [
                reads(int(expert), int(read)) for expert, read in zip(frame["expert"], frame["reads"], strict=True)
            ]
            values.append(float(frame["own loss"][chosen].mean()))
        return str(Difference(*interval(values))).removeprefix("+")


def ablations(preset: str) -> Ablations:
    """The ablation records of a preset; ``hows`` is empty where there are none."""
    return Ablations(preset)


# What the paper states ------------------------------------------------------------------------------------------


@cache
def _evidence(records: Path) -> Evidence:
    return status.evidence(records)


def claims_table() -> str:
    """One row a statement: figure, sentence, notebook, status."""
    frame = status.overview(_evidence(RECORDS)).drop(columns="found")
    frame["notebook"] = [notebook_link(number) for number in frame["notebook"]]
    return tables.to_markdown(frame)


def claims_found() -> str:
    """A paragraph for every statement that was judged: its comparisons."""
    told = []
    for (figure, says), rows in status.details(_evidence(RECORDS)).groupby(["figure", "the paper states"], sort=False):
        judged = rows[rows["on"] != ""]
        if len(judged):
            told.append(f"**{figure}: {says}**\n")
            for on, some in judged.groupby("on", sort=False):
                told.append(f"- {on}:")
                for found, outcome, p in zip(some["found"], some["status"], some["p (Holm)"], strict=True):
                    told.append(f"  - {found} ({outcome}{'' if pd.isna(p) else f', p {p:.2g}'})")
            told.append("")
    return "\n".join(told)


def notebook_link(number: str) -> str:
    """``[03](../notebooks/03_...ipynb)``."""
    (file,) = NOTEBOOKS.glob(f"{number}_*.ipynb")
    return f"[{number}](../notebooks/{file.name})"


# Notebooks --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Notebook:
    """What the front page says of a notebook, from its first cell."""

    file: Path
    title: str
    question: str

    @property
    def number(self) -> str:
        return self.file.name[:2]


def notebooks() -> list[Notebook]:
    """The notebooks in order.

    Raises:
        ValueError: a first cell that does not say what the table in notebooks/README.md shows.
    """
    return [Notebook(NOTEBOOKS / row["file"], row["title"], row["question"]) for row in execute.contents()]


def n(value: float, places: int = 1) -> str:
    """A number with fixed decimals, never -0."""
    return fixed(value, places)


def span(pair: tuple[float, float], places: int = 0) -> str:
    """``79 to 95``."""
    return f"{n(pair[0], places)} to {n(pair[1], places)}"


def printed_above(k: int, tasks: str) -> float:
    """How far the paper's F of DNE lies above the count of its authors' code, percent."""
    step = {"50+10x5": 10, "50+5x10": 5}[tasks]
    printed, released = paper.tables(), paper.authors_code_cost()
    row = printed[(printed["dataset"] == "cifar100") & (printed["step"] == step)].set_index("method")
    theirs = released[
        (released["method"] == "dne") & (released["step"] == str(step)) & (released["heads_per_task"] == k)
    ]
    return float(100 * (row["f_gflops"][f"dne_{k}head{'s' * (k > 1)}"] / theirs["gflops_2mac"].iloc[0] - 1))


def all_below(best: str, *protocols: Runs) -> bool:
    """Whether one method has the highest mean LA among the transformers with exemplars, in every protocol."""
    rivals = ("IA (k = 1)", "STA (k = 1)", "DNE (k = 1)", "Progressive (k = 1)", "DyTox")
    return all(found.best(best, *rivals)[0] == best for found in protocols)
