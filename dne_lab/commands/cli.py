"""The command line: few commands with one job each. Heavy imports wait until a command needs them."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dne_lab.commands.arguments import (
    METHODS,
    Command,
    Commands,
    Device,
    Jobs,
    Json,
    Preset,
    Seeds,
    Settings,
    count,
    given,
    numbers,
    plain_letters,
    schema,
    settings,
)
from dne_lab.commands.check import check
from dne_lab.commands.hub import push
from dne_lab.commands.imports import import_results
from dne_lab.commands.project import lab, notebooks
from dne_lab.commands.run_arguments import run
from dne_lab.core.errors import LabError

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A laboratory for Dense Network Expansion (CVPR 2023): class-incremental vision transformers on real images.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"dne-lab {version('dne-lab')}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """See ``help`` of the application."""


@app.command(cls=Command, short_help="Train IA, STA, DNE and Joint; table, figures and records.")
def reproduce(
    preset: Preset = "digits",
    changes: Settings = None,
    seeds: Seeds = "0",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the runs, table, figures and records. Default: runs/reproduce-PRESET."),
    ] = None,
    jobs: Jobs = "auto",
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train IA, STA, DNE and Joint on real images, and write the table, figures and records.

    Without arguments: scikit-learn's handwritten digits, no download, one to four minutes on two CPU cores, a run on
    each. The same command goes on where it was stopped.
    """
    from dne_lab.commands.api import usable
    from dne_lab.commands.reproduce import reproduce as work

    result = work(preset, numbers(seeds), out, settings(changes), usable(device), jobs=count(jobs))
    print(json.dumps(result.to_json(), indent=1) if as_json else result.text())


app.command(cls=Command, short_help="Train one run or a grid; the same command again resumes.")(run)


@app.command(cls=Command, short_help="Tables and figures from records; attention of runs.")
def report(
    context: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Run folders, archives, folders of records or of counts.")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the figures and of what is measured.")] = Path("runs/report"),
    name: Annotated[
        str | None, typer.Option(help="How the names of the figures' files begin. Default: the data set.")
    ] = None,
    attention: Annotated[
        int | None, typer.Option(metavar="N", help="Sort the attention of runs or models, on N test images, by group.")
    ] = None,
    ablation: Annotated[
        int | None, typer.Option(metavar="N", help="Remove their later experts' attention, on N test images.")
    ] = None,
    how: Annotated[
        str | None, typer.Option(help="With --ablation: mean, zero or mask (zero and renormalise) alone.")
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Linear probes of their read-outs, with all training images of every class.")
    ] = False,
    data: Annotated[
        str | None, typer.Option(help="With these three: where the images are, if not where the run says.")
    ] = None,
    latex: Annotated[bool, typer.Option("--latex", help="Print LaTeX tables.")] = False,
    columns: Annotated[
        str | None, typer.Option(metavar="NAME,...", help="Columns of the table beside the method: LA,AA,D.")
    ] = None,
    formats: Annotated[
        str, typer.Option("--format", metavar="png|pdf|svg", help="Of the figures; several: png,pdf.")
    ] = "png",
    as_json: Json = False,
) -> None:
    """Tables from records beside the paper's; figures; the attention of runs, and what is lost without it.

    The figures, and the table as summary.csv, go to the folder of --out; with --json only where --out is given.

    With --attention N: SPSH, SPDH, DPSH and DPDH shares of N test images, untrained, trained and under a null model, as
    records/attention/ID.json, CSV and PNG there.

    With --ablation N: the accuracy lost without each of these groups, and without each connection between experts,
    replaced by its mean, by zero, and masked, as records/ablation/ID-HOW.json, CSV and PNG there. With --how one way
    alone, and each connection also kind by kind and layer by layer.

    With --probe: what the read-outs of all experts hold, of expert 1, of the later ones, of each, as
    records/probe/ID.json, CSV and PNG there.
    """
    from dne_lab.commands import report as reporting
    from dne_lab.commands.instruments import attention_text, decompose_runs
    from dne_lab.core.files import LONGEST, file_name, inside, refuse_file

    suffixes = reporting.suffixes(formats)
    if name is not None and name != file_name(name):
        raise LabError(f"--name {name!r}: takes letters, digits and ._-+, at most {LONGEST} of them.")
    refuse_file(out)
    there = set(inside(out, "*")) if out.is_dir() else set()
    measured = reporting.measured(paths, attention, ablation, probe, how)
    if data is not None and not measured:
        raise LabError("--data says where --attention, --ablation and --probe find images: give one of them with it.")
    records = reporting.find(paths)
    if measured:  # also of a run that has not finished its first task
        records = [record for record in records if record.seen_accuracy]
    if as_json and not measured:
        print(json.dumps([r.content() for r in records], indent=1))
    elif records and not as_json:
        print(reporting.text(records, latex, columns), flush=True)

    written: list[Path] = []
    if attention is not None:
        made, files = decompose_runs(paths, attention, out, data)
        reporting.tell(made, attention_text, as_json)
        written += files
    if ablation is not None:
        from dne_lab.commands.instruments import HOW, ablate_runs, ablation_text

        ablated, files = ablate_runs(paths, ablation, out, how or HOW, data)
        reporting.tell(ablated, ablation_text, as_json)
        written += files
    if probe:
        from dne_lab.commands.instruments import probe_runs, probe_text

        probed, files = probe_runs(paths, out, data)
        reporting.tell(probed, probe_text, as_json)
        written += files
    if records and not (as_json or columns or latex):
        gates = reporting.protocols_text(records, [*paths, *filter(Path.is_dir, [out / "records"])])
        print(gates.rstrip(), flush=True)
    if not reporting.importable("matplotlib"):
        print("matplotlib is not installed here: no figures.", file=sys.stderr)
    elif measured or not as_json or given(context, "out"):
        # what has just been measured is drawn alone: --out may hold what was measured of other runs before
        instruments = [file for file in written if file.suffix == ".json"] if measured else None
        written += reporting.figures(records, out, name, paths, instruments, suffixes, progress=True)
    if written:
        print(reporting.below(written, out, there), file=sys.stderr)


@app.command(cls=Command, short_help="FLOPs and parameters after each task, without training.")
def cost(
    method: Annotated[str, typer.Argument(metavar="METHOD", help=METHODS)],
    tasks: Annotated[str, typer.Option(help="Classes of each task, e.g. 50,10,10.")],
    heads: Annotated[str | None, typer.Option(help="Heads: k (later experts), first,later, or one per task.")] = None,
    preset: Preset = "cifar100-b50-10",
    changes: Settings = None,
    match: Annotated[str | None, typer.Option(metavar="METHOD", help="Widen the network to the cost of this.")] = None,
    as_json: Json = False,
) -> None:
    """FLOPs of one image and parameters after each task, without training.

    F = 2 x multiply-accumulate. Literal: as the equations are written; spent: as it runs here. With --match: what to
    set for METHOD so that it costs what the other method costs after the last task, and how close that comes.
    """
    import dne_lab.methods  # noqa: F401
    from dne_lab.data.stream import sizes
    from dne_lab.measure.cost import blank_stream, of_tasks, refuse_uncountable, shape_of, text
    from dne_lab.methods import base

    wanted = sizes(tasks)
    changed: dict[str, Any] = {"data.tasks": wanted, **settings(changes)}
    if heads is not None and changed.setdefault("network.heads", heads) != heads:
        raise LabError(f"--heads {heads} beside --set network.heads={changed['network.heads']}: give one of them.")
    base.refuse_ignored(method, changed)
    config = base.configure(method, preset, changed)
    shape = shape_of(config.data, config.network.backbone)
    stream = blank_stream(wanted, shape)
    if match is not None:
        from dne_lab.measure import matching

        same = {name: value for name, value in base.used(match, changed).items() if not name.startswith("options.")}
        found = matching.match_method(config, base.configure(match, preset, same), stream)
        print(json.dumps([m.to_dict() for m in found], indent=1) if as_json else matching.text(found, match))
        return
    learned = stream.joint() if base.find(method).joint else stream
    refuse_uncountable(config, learned)
    rows = of_tasks(config, learned)
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    network = base.create(config, stream).network_settings()
    network_text = f"{network['name']}, width {network['width']}" if "width" in network else ""
    if "heads" in network:
        listed = ",".join(map(str, network["heads"]))
        network_text = f"heads {listed}{' (the last repeats)' * (len(network['heads']) > 1)}"
    print(f"{method}, {network_text or 'own network'}, images {' x '.join(map(str, shape))}\n{text(rows)}")


@app.command(cls=Command, short_help="Time the normal path against the literal path.")
def bench(
    preset: Preset = "cifar100-b50-2",
    tasks: Annotated[str, typer.Option(help="Tasks at which a training step is timed.")] = "6,11,26",
    batch: Annotated[int, typer.Option(help="Images per step.")] = 64,
    pairs: Annotated[int, typer.Option(help="Interleaved pairs; the ratio is their median.")] = 5,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    bf16: Annotated[bool, typer.Option("--bf16", help="Also time a step under precision=bf16.")] = False,
    attention: Annotated[
        int, typer.Option(metavar="N", help="Also time sorting the attention of N images into groups (STA).")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Time the normal path against the literal path with its copied teacher (DNE, one process)."""
    from dne_lab.commands.api import usable
    from dne_lab.commands.bench import measure, measure_attention, text
    from dne_lab.methods import base

    config = base.configure("dne", preset)
    steps = numbers(tasks, "--tasks")
    if not 1 <= min(steps) <= max(steps) <= len(config.data.tasks):
        raise LabError(f"--tasks {tasks}: preset {preset} has tasks 1 to {len(config.data.tasks)}.")
    if min(batch, pairs) < 1:
        raise LabError(f"--batch {batch} --pairs {pairs}: both must be at least 1.")
    if attention and (attention < 2 or min(steps) < 2):
        raise LabError(f"--attention {attention} --tasks {tasks}: takes at least 2 images, and tasks from 2 on.")
    say: Callable[[str], None] = lambda text: print(f"measuring: {text}", file=sys.stderr, flush=True)  # noqa: E731
    sorting = {}
    if attention:
        say(f"attention of {attention} images at task {min(steps)}")
        sorting["attention_groups"] = measure_attention(preset, min(steps), attention, batch, usable(device) or "cpu")
    result = measure(config, tuple(steps), batch, pairs, usable(device) or "cpu", bf16, say) | sorting
    print(json.dumps(result, indent=1) if as_json else text(result))


app.command(cls=Command, short_help="Decode every image of a data set; name the damaged ones.")(check)


@app.command(cls=Command, short_help="Pack a run into one portable file.")
def export(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="dne.zip: the whole run. dne.safetensors: the finished model and record."),
    ],
    half: Annotated[bool, typer.Option("--half", help="Of a .safetensors: keep weights as float16.")] = False,
    every_task: Annotated[bool, typer.Option("--every-task", help="Of a .safetensors: models of all tasks.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is no export.")] = False,
) -> None:
    """Pack a run into one portable file, which every command takes in place of the folder."""
    from dne_lab.training import archive

    if (half or every_task) and file.suffix != archive.SUFFIX:
        raise LabError(f"--half and --every-task are for a model alone: name a .safetensors file, not {file}.")
    model = archive.export_model(run_folder, file, half, force, every_task) if file.suffix == archive.SUFFIX else None
    print(f"wrote {model or archive.export(run_folder, file, force)}")
    if lacks := archive.lacks(run_folder):
        print(lacks, file=sys.stderr)


@app.command(cls=Command, short_help="List the presets with what each sets.")
def presets(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Only these.")] = None,
    as_json: Json = False,
) -> None:
    """List the presets with what each sets.

    They are composed left to right (--preset digits100,authors-code); --set wins over all.
    """
    from dne_lab.core.errors import unknown
    from dne_lab.core.presets import PRESETS, text

    for name in names or []:
        if name not in PRESETS:
            raise unknown("preset", name, PRESETS)
    chosen = {name: PRESETS[name] for name in names or PRESETS}
    print(json.dumps(chosen, indent=1) if as_json else text(chosen))


app.command(cls=Command, short_help="Send a model and its record to the Hugging Face Hub.")(push)


app.command("import", cls=Command, short_help="Other programs' results as records.")(import_results)


app.command(cls=Command, short_help="JSON Schema of the files that are read and written.")(schema)


app.command(
    cls=Command,
    short_help="Open JupyterLab on the notebooks, on this machine only.",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(lab)


app.command(cls=Command, short_help="Copy the notebooks and what they read.")(notebooks)


def main() -> None:
    """Entry point."""
    plain_letters()
    app()


if __name__ == "__main__":
    main()
