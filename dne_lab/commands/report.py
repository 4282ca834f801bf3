"""What records say: printed tables beside the paper's, and figures."""

import json
import math
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dne_lab.core.errors import LabError, unknown
from dne_lab.core.files import file_name
from dne_lab.measure import record as records_of
from dne_lab.measure import tables, trained_controls
from dne_lab.measure.beside import areas, costs, differences
from dne_lab.measure.comparison import Group, groups
from dne_lab.measure.record import Record
from dne_lab.plots.figure import Figure, refuse_others

PICTURES = (".png", ".pdf", ".svg")


def importable(name: str) -> bool:
    """Whether a library is there and whole."""
    try:
        return find_spec(name) is not None and import_module(name) is not None
    except ImportError:
        return False


def tell(found: Sequence[Any], text: Callable[[Sequence[Any]], str], as_json: bool) -> None:
    """Prints records that have just been made (dataclasses), as JSON or as ``text`` has them."""
    print(json.dumps([one.content() for one in found]) if as_json else text(found), flush=True)


def find(paths: Iterable[str | Path]) -> list[Record]:
    """The records of run folders, of folders that hold any, and of exported archives.

    Folders that hold counts (``dne-lab cost``) or a benchmark alone have none: they are left out.
    """
    from dne_lab.training.archive import unpacked

    with ExitStack() as stack:
        given = [path for path in models_among(paths) if not _measurements_alone(path)]
        places = [stack.enter_context(unpacked(path)) if _packed(path) else path for path in given]
        return records_of.find(places) if places else []


def models_among(paths: Iterable[str | Path]) -> list[Path]:
    """The paths, with the models (``.safetensors``) in place of a folder that holds such files and no run."""
    from dne_lab.training.archive import models_in

    def instead(path: Path) -> list[Path]:
        return models_in(path) if path.is_dir() and not (path / "config.json").exists() else []

    return [file for path in map(Path, paths) for file in instead(path) or [path]]


def _packed(path: Path) -> bool:
    return path.suffix in (".zip", ".safetensors") or (path.is_file() and zipfile.is_zipfile(path))


def _measurements_alone(path: Path) -> bool:
    """Whether a path holds counts, a benchmark, or records of attention, ablation or probes, and no record of a run."""
    from dne_lab.analysis.ablation_study import AblationRecord
    from dne_lab.analysis.decomposition import Decomposition
    from dne_lab.analysis.read_outs import ProbeRecord
    from dne_lab.measure.cost_records import is_cost
    from dne_lab.plots.cost_figures import is_bench

    if _packed(path) or not (path.is_dir() or path.is_file()):
        return False
    known = (Decomposition.kind, AblationRecord.kind, ProbeRecord.kind)
    found = [tree for _, tree in records_of.trees(path)]
    if any(map(records_of.is_record, found)):
        return False
    return any(is_cost(t) or is_bench(t) or (isinstance(t, dict) and t.get("kind") in known) for t in found)


def _benchmarks(paths: Iterable[Path]) -> list[dict[str, Any]]:
    from dne_lab.plots.cost_figures import checked_bench, is_bench

    places = [path for path in paths if path.is_dir() or path.suffix == ".json"]
    return [checked_bench(tree, file) for file, tree in records_of.trees(places) if is_bench(tree)]


def _instruments(paths: Iterable[Path]) -> dict[str, Figure]:
    """The figures of attention, ablation and probe records."""
    from dne_lab.analysis.ablation_study import AblationRecord
    from dne_lab.analysis.decomposition import Decomposition
    from dne_lab.analysis.read_outs import ProbeRecord
    from dne_lab.plots import attention
    from dne_lab.plots.contributions import ablation_drawings, read_out_drawings

    paths = [path for path in paths if path.is_dir() or path.suffix == ".json"]
    measured = {one.run: one for one in Decomposition.among(paths)}  # a run counts once
    ablated = {one.name: one for one in AblationRecord.among(paths)}
    probed = {one.run: one for one in ProbeRecord.among(paths)}
    made = attention.drawings([*measured.values()]) | ablation_drawings([*ablated.values()])
    return made | read_out_drawings([*probed.values()])


def below(written: Sequence[Path], out: Path, before: Collection[Path] = ()) -> str:
    """What is said of the files written: how many, where, and how many in place of files that were there ``before``."""
    again = len(set(written) & set(before))
    replaced = f", {again} of them in place of older ones (--out DIR or --name keeps both)" if again else ""
    return f"wrote {len(written)} file{'s' * (len(written) != 1)} below {out}{replaced}"


def measured(
    paths: Sequence[Path], attention: int | None, ablation: int | None, probe: bool, how: str | None
) -> list[str]:
    """The options that measure runs among those given.

    Raises:
        LabError: what would go wrong with one of them, before anything is computed or written.
    """
    from dne_lab.commands.instruments import HOW, runs

    if how is not None and ablation is None:
        raise LabError(f"--how {how} says how --ablation removes attention: give --ablation N with it.")
    if how is not None and how not in HOW:
        raise unknown("how", how, HOW)
    asked = {"--attention": attention, "--ablation": ablation, "--probe": None}
    found = [option for option in asked if (probe if option == "--probe" else asked[option] is not None)]
    for option in found:
        runs(paths, option, asked[option])
    return found


def suffixes(formats: str) -> list[str]:
    """``"png,pdf"`` as a list of formats in which figures can be written."""
    found = list(dict.fromkeys(part.strip().lower() for part in formats.split(",") if part.strip()))
    for one in found or [formats]:
        if f".{one}" not in PICTURES:
            raise unknown("figure format", one, [suffix.removeprefix(".") for suffix in PICTURES])
    return found


def text(records: Sequence[Record], latex: bool = False, columns: str | None = None) -> str:
    """Two tables: ours, one row per method with 95% intervals over seeds; and ours beside the paper's rows.

    With ``columns`` (``"LA,AA"``) ours alone, of these columns.
    """
    write = tables.to_latex if latex else tables.to_text
    ours, compared = tables.summary(records), tables.compare(records)
    done = [record for record in records if record.finished and not record.imported]
    if columns is not None:
        wanted = [name.strip() for name in columns.split(",") if name.strip()]
        for name in wanted or [columns]:
            if name not in ours.columns:
                raise unknown("column", name, ours.columns)
        ours, compared = ours[list(dict.fromkeys(["method", *wanted]))], compared[:0]
        done = []
    out = [write(ours)]
    if compared["paper LA"].notna().any():
        out += [
            "Beside the paper (ours minus the paper's; other data or schedules are not comparable):",
            write(compared),
        ]
    for title, table in (
        (
            "What it costs (learning all tasks; seconds by the clock of the machine that a run was on; 4 bytes a "
            "parameter, 1 a pixel and channel of an exemplar):",
            costs(done),
        ),
        ("LA of DNE minus that of others, paired by seed (told apart: p < 0.05 after Holm):", differences(done)),
        ("Area under LA and AA over totals of bytes, as a mean:", areas(done)),
        *trained_controls.headed(done),
    ):
        if len(table):
            out += [title, write(table)]
    if others := [group.label for group in groups(records) if group.first.imported]:
        out.append(f"Imported, not trained here: {', '.join(others)}. Data, networks and schedules may be others.\n")
    if near := [group.label for group in groups(records) if _near_chance(group)]:
        out.append(
            f"Near chance (LA at most twice that of guessing): {', '.join(near)}. So little learned tells no methods "
            "apart, and attention has little to show: train for more epochs (learn.epochs), or on more images."
        )
    if not len(ours):
        raise LabError("no run among these records is finished yet. Go on training, then report again.")
    return "\n".join(out)


def _near_chance(group: Group) -> bool:
    """Whether the LA of runs of one setting, as a mean, is at most twice that of guessing."""
    last = group.last_by_seed().values()
    return bool(last) and sum(last) / len(last) <= 2 * 100 / sum(group.first.tasks)


ABOUT_GATES = (
    "Gates: conditions on a protocol, not on a method. Where one is not met, its runs can hardly tell methods apart "
    "(figures/README.md)."
)
ABOUT_STAGE_2 = (
    "Before stage 2: images predicted right before the classifier is trained on as many old as new images, and old "
    "ones taken for new. What stage 2 wins back was lost in the classifier alone."
)


def protocols_text(records: Sequence[Record], paths: Iterable[str | Path]) -> str:
    """Under each protocol of which there are measurements: its gates, and what was predicted before stage 2.

    ``paths``: where the records of the instruments are looked for, files and folders.
    """
    from dne_lab.analysis import gates
    from dne_lab.analysis.ablation_study import AblationRecord
    from dne_lab.analysis.decomposition import Decomposition
    from dne_lab.analysis.read_outs import ProbeRecord

    places = [path for path in map(Path, paths) if path.is_dir() or path.suffix == ".json"]
    probes, attention = ProbeRecord.among(places), Decomposition.among(places)
    ablations = AblationRecord.among(places)
    lines, about = [], []
    for protocol, members in gates.protocols([r for r in records if not r.imported]).items():
        found = gates.gates(members, probes, attention, ablations)
        if any(gate.value is not None for gate in found):
            lines += [f"Gates of {protocol}: whether it can tell methods apart", tables.to_text(gates.table(found))]
            about.append(ABOUT_GATES)
        early = gates.before_stage_2(members)
        if len(early):
            lines += [f"Before stage 2 of {protocol}, mean over tasks 2, 3, ...", tables.to_text(early)]
            about.append(ABOUT_STAGE_2)
    return "\n".join([*lines, *dict.fromkeys(about)])


def drawings(records: Sequence[Record]) -> dict[str, Figure]:
    """The figures that these records of one data set can fill, by name: ours, and those of the paper of which they have
    a series; the others are rows of their tables. Runs on validation images stand beside no others."""
    from dne_lab.measure import paper
    from dne_lab.plots import accuracy, matrices, tradeoff
    from dne_lab.plots.accuracy import accuracy_against_cost, accuracy_by_task
    from dne_lab.plots.contributions import controls_figure
    from dne_lab.plots.cost_figures import TWENTY_SIX, figure_6f
    from dne_lab.plots.tradeoff import accuracy_over_bytes

    tested = [record for record in records if not record.validation]
    done = [record for record in tested if record.finished]
    shown = tested or records  # a search of rates is looked at alone: it has no results on test images
    made = {"accuracy_by_task": accuracy_by_task(shown), "accuracy_against_cost": accuracy_against_cost(shown)}
    if not done:
        return made
    streams = list(dict.fromkeys(tuple(record.tasks) for record in done if len(record.tasks) > 1))
    for tasks in streams:
        mine = [record for record in done if tuple(record.tasks) == tasks]
        for figure in (matrices.accuracy_matrices(mine), accuracy.forgetting(mine)):
            made[figure.name if len(streams) == 1 else f"{figure.name}_{_short(tasks)}"] = figure
    if accuracy.has_pair(done):
        made["figure_4_right"] = accuracy.figure_4_right(done)
    dataset = paper.dataset_of(done[0])
    for make in (tradeoff.figure_1_right, tradeoff.figure_6ab, tradeoff.figure_6cd):
        figure = make(done, dataset)
        if (figure.table["source"] == "ours").any():
            made[figure.name] = figure
    if TWENTY_SIX in streams:
        made["figure_6f"] = figure_6f(done, dataset)
    if trained := trained_controls.controls(done):
        made["controls"] = controls_figure(trained)
    figure = accuracy_over_bytes(done)
    if figure.table["total (MB)"].nunique() > 1:
        made[figure.name] = figure
    return made


def _short(tasks: Sequence[int]) -> str:
    """``50+10x5`` for a file name."""
    return tables.tasks_text(tasks).replace(" ", "")


def architectures(paths: Iterable[str | Path]) -> dict[str, Figure]:
    """Figures 2 and 5 of every model (``.safetensors``) among the paths, one of each variant, and figure 3 of one."""
    from dne_lab.commands import api
    from dne_lab.models.expandable import ExpandableViT
    from dne_lab.plots import four_groups
    from dne_lab.plots.architecture import figure_2, figure_5

    made: dict[str, Figure] = {}
    for path in models_among(paths):
        if path.suffix == ".safetensors":
            run = api.open(path, progress=False)
            model = run.model
            if not isinstance(model, ExpandableViT):
                continue
            for figure in (figure_2(model), figure_5(model)):
                made.setdefault(figure.name, figure)
            if "figure_3" not in made and len(model.heads) > 1:
                image, patch = four_groups.sample_image(run), four_groups.middle(model.grid)
                made["figure_3"] = four_groups.figure_3(model, image, patch)
    return made


def measurements(paths: Iterable[str | Path], instruments: Sequence[Path] | None = None) -> dict[str, Figure]:
    """The figures of what was counted and measured: cost growth, figure 6 e, the time of a training step, attention
    (figure 4 left and ours), ablation; the last two of the records ``instruments`` alone, where they are given."""
    from dne_lab.measure import cost_records
    from dne_lab.plots.cost_figures import TWENTY_SIX, cost_growth, figure_6e, step_time

    places = [path for path in map(Path, paths) if not _packed(path)]
    costs, benchmarks = cost_records.find(places), _benchmarks(places)
    made = {"cost_growth": cost_growth(costs)} if costs else {}
    if any(cost.tasks == TWENTY_SIX for cost in costs):
        made["figure_6e"] = figure_6e(costs)
    devices: dict[str, list[dict[str, Any]]] = {}
    for bench in benchmarks:
        devices.setdefault(_device(bench), []).append(bench)
    for device, some in sorted(devices.items()):
        # one that also measured the device's rates, which set the limit
        made["_".join(filter(None, ("step_time", device)))] = step_time(max(some, key=lambda b: "rates" in b))
    return made | _instruments(places if instruments is None else instruments)


def _device(bench: dict[str, Any]) -> str:
    """Nothing for a CPU, the name of another device as a part of a file's name."""
    if bench.get("device_type", "cpu") == "cpu":
        return ""
    return "_".join(re.findall("[a-z0-9]+", bench["device"].lower()))


def gathered(
    records: Sequence[Record],
    name: str | None = None,
    paths: Iterable[str | Path] = (),
    instruments: Sequence[Path] | None = None,
) -> dict[str, Figure]:
    """The figures of every data set among the records, of models, counts, benchmarks and instruments, by file name.

    ``paths``: where the records came from; models, counts and benchmarks there are drawn too. Architectures are called
    after ``name`` as well, what is counted or timed has a name of its own. ``instruments``: as in `measurements`.
    """
    made: dict[str, Figure] = {}
    records = [record for record in records if not record.imported]  # which stand in tables alone
    datasets = list(dict.fromkeys(record.dataset for record in records))
    for dataset in datasets:
        own = file_name(dataset)
        stem = own if name is None else name if len(datasets) == 1 else f"{name}_{own}"
        chosen = [record for record in records if record.dataset == dataset]
        made |= {f"{stem}_{kind}": figure for kind, figure in drawings(chosen).items()}
    paths = list(paths)
    made |= {f"{name}_{kind}" if name else kind: figure for kind, figure in architectures(paths).items()}
    return made | measurements(paths, instruments)


def figures(
    records: Sequence[Record],
    out: Path,
    name: str | None = None,
    paths: Iterable[str | Path] = (),
    instruments: Sequence[Path] | None = None,
    formats: Sequence[str] = ("png",),
    progress: bool = False,
    since: float = math.inf,
) -> list[Path]:
    """Writes the summary as ``<name>.csv`` (default: summary), and CSV and picture of all figures that are
    `gathered`; figures written after the moment ``since`` (as in mtime) are there already. A `LabError`, before
    anything is written, where a file that is none of these has such a name."""
    from tqdm.auto import tqdm

    from dne_lab.core.files import write_text

    written: list[Path] = []
    made, summary = gathered(records, name, paths, instruments), tables.summary(records)
    whole = {name or "summary": summary} if records else {}
    refuse_others(out, {stem: figure.table for stem, figure in made.items()} | whole, formats)
    if records:
        written.append(out / f"{name or 'summary'}.csv")
        write_text(written[0], summary.to_csv(index=False, float_format="%.4f", lineterminator="\n"))
    hidden = None if progress else True  # None: shown in a terminal
    for stem, figure in tqdm(made.items(), "drawing", unit="figure", leave=False, disable=hidden):
        written += [path for suffix in ("csv", *formats) for path in save(figure, out / f"{stem}.{suffix}", since)]
    return written


def save(figure: Figure, path: Path, since: float) -> list[Path]:
    """Writes one file of a figure, unless there is one that was written after the moment ``since``."""
    return [path] if path.is_file() and path.stat().st_mtime > since else figure.save(path)


# One figure by its name in the paper or by ours: `lab.figure`.

# The paper's figures, and what ours of them are called. Those of a network need its model (.safetensors) in the folder.
PAPER = {
    "1 right": "figure_1_right",
    "2": "figure_2",
    "3": "figure_3",
    "4 left": "attention_groups",
    "4 right": "figure_4_right",
    "5": "figure_5",
    "6a": "figure_6a",
    "6c": "figure_6c",
    "6e": "figure_6e",
    "6f": "figure_6f",
}
OURS = (
    "accuracy_by_task", "accuracy_against_cost", "accuracy_matrix", "forgetting", "cost_growth", "step_time",
    "fragmentation", "expert_flow", "attention_along_training", "attention_at_start", "attention_by_task",
    "ablation", "read_outs",
)  # fmt: skip
MEASURED = {"attention_groups": "--attention 200", "ablation": "--ablation 200", "read_outs": "--probe"}


def figure(name: str, paths: str | Path | Iterable[str | Path] = "runs") -> Figure:
    """One figure of the records, models, counts and measurements in a folder.

        lab.figure("4 left", "runs/report").save("figure.pdf", width=3.3)

    Args:
        name: of the paper's figures 1 right, 2, 3, 4 left, 4 right, 5, 6a to 6f; or one of ours: accuracy_by_task, ...
        paths: a folder, a run, a model, or several of them.

    Raises:
        LabError: an unknown name (lists them), nothing there to draw it from, several that have the name.
    """
    if not isinstance(name, str):
        raise LabError(f"figure {name!r}: give its name as text, such as '4 left'.")
    given = [paths] if isinstance(paths, str | Path) else list(paths)
    kind = _kind(name)
    made = gathered(find(given), None, given)
    wanted = kind or name
    found = [stem for stem in made if stem == wanted] or [stem for stem in made if _is(stem, wanted)]
    if len(found) == 1:
        return made[found[0]]
    if found:
        raise LabError(f"figure {name!r}: there are {len(found)} of them here. Name one: {', '.join(found)}.")
    if kind is None:
        raise unknown("figure", name, dict.fromkeys([*PAPER, *OURS, *made]))
    first = given[0] if given else "RUN"
    option = next((words for start, words in MEASURED.items() if kind.startswith(start)), None)
    how = f" It needs what is measured: dne-lab report {first} {option} --out runs/report, then 'runs/report' here."
    how = how if option else ""
    where = ", ".join(map(str, given)) or "no folder"
    raise LabError(f"figure {name!r}: nothing in {where} to draw it from.{how} There are: {', '.join(made) or 'none'}.")


def _kind(name: str) -> str | None:
    """How our files of a figure are called; None for a name that is not known beforehand."""
    bare = re.sub(r"^fig(ure)?\.?_?", "", name.strip().lower()).replace("_", " ").strip()
    bare = re.sub(r"^(\d)[\s(]*([a-f])\)?$", r"\1\2", bare)
    bare = re.sub(r"^(\d)[\s(,-]*(left|right)\)?$", r"\1 \2", bare)  # 4right, 4 (right)
    bare = {"6b": "6a", "6d": "6c", "1": "1 right"}.get(bare, bare)  # one figure of both panels
    if bare in PAPER:
        return PAPER[bare]
    return name if name in OURS else None


def _is(stem: str, kind: str) -> bool:
    """Whether a file's name is that kind's, between a data set before it and the variant or tasks behind."""
    return re.search(rf"(^|_){re.escape(kind)}(_|$)", stem) is not None
