"""The command `run` as it is typed: which options go together. What it does is in `run_command`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dne_lab.commands.arguments import (
    METHODS,
    Accept,
    Device,
    Jobs,
    Json,
    Preset,
    Seeds,
    Settings,
    Track,
    count,
    given,
    numbers,
    seconds,
)
from dne_lab.core.errors import LabError


def run(
    context: typer.Context,
    methods: Annotated[str | None, typer.Argument(metavar="METHOD[,METHOD...]", help=METHODS)] = None,
    preset: Preset = "digits",
    changes: Settings = None,
    seeds: Seeds = "0",
    grid: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="The runs of a list (JSON) in place of METHOD; --dry-run shows their state."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="That run again, in place of METHOD: a config.json or record.json."),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN", help="With --after: go on from another run's state, with other --set."),
    ] = None,
    after: Annotated[int | None, typer.Option(metavar="T", help="With --from: after this task of it.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the run folders. Default: runs; of a list runs/<its name>."),
    ] = None,
    jobs: Jobs = "1",
    engine: Annotated[
        str | None, typer.Option("--on", metavar="slurm|ray", help="Train the runs as jobs of a cluster, one each.")
    ] = None,
    cpus: Annotated[int, typer.Option(help="With --on: cores and threads of each run.")] = 1,
    gpus: Annotated[float, typer.Option(help="With --on: GPUs of each run; with ray also 0.25 of one.")] = 0.0,
    minutes: Annotated[
        int | None, typer.Option(help="With --on slurm: time limit of a job, which then queues again. Default: 240.")
    ] = None,
    resource: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="With --on: partition=gpu, mem=8G (of sbatch); a resource of Ray."),
    ] = None,
    track: Track = None,
    accept_changed_data: Accept = False,
    capture: Annotated[
        bool, typer.Option("--capture", help="On a GPU replay whole training steps as CUDA graphs (IA, STA, DNE, ...).")
    ] = False,
    device: Device = None,
    last_task: Annotated[int | None, typer.Option(metavar="T", help="Stop when task T is finished.")] = None,
    first_task_of: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Begin with the finished first task of that run, if it is the same."),
    ] = None,
    stop_after: Annotated[float | None, typer.Option(help="Checkpoint after that many seconds and exit 0.")] = None,
    requeue: Annotated[
        bool, typer.Option("--requeue", help="Exit 75 when something is left: after --stop-after, after a signal.")
    ] = False,
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints.")] = 60.0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing; print the commands (with --on: the jobs) of what is left.")
    ] = False,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch the data set first if it is missing (cifar100).")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train one run or a grid of methods and seeds; the same command again resumes exactly.

    Finished runs are skipped, and the expansion methods of a seed share their first task.

    What a record says, with another seed: dne-lab run --config figures/records/digits100/dne-s0.json --seeds 7

    The last task in another way: dne-lab run --from runs/dne-digits-s0 --after 3 --set learn.epochs=60

    A table of many methods: dne-lab run ia,dne,icarl,dytox --preset digits100,small --seeds 0-2 --jobs auto

    Small experts on a pretrained vision transformer (extra timm), and what its read-outs give alone: dne-lab run
    dne,ncm,ranpac --set network.backbone=timm:vit_base_patch16_224.augreg_in21k --set data.name=folder --set
    data.path=DIR --set data.size=224 --set data.tasks=10,5,5

    One that fails stops no other and is named at the end (status 2). Ctrl-C, SIGTERM, SIGUSR1, SIGUSR2 and SIGHUP end
    with a checkpoint; with --requeue the status is 75 as long as the same command has something left to do.

    With --jobs 2 or more each run has its own process and its part of the cores; with GPUs it goes to the one with the
    most free memory. It starts when there is memory for it, known after the first epoch of the first one. Sums are
    rounded otherwise on another number of threads, so the last digits may differ from --jobs 1.

    With --on slurm or ray the runs are trained elsewhere, in folders that all machines see; this command waits, and the
    same one follows them again. A first task that several runs share is trained first.
    """
    from dne_lab.commands import run_command
    from dne_lab.commands.api import usable
    from dne_lab.commands.track import makers

    viewers = makers(track)
    at_a_time = count(jobs)
    seconds(stop_after, checkpoint_every)
    here_alone = last_task is not None or first_task_of is not None
    if here_alone and (engine or grid or source or count(jobs) != 1):
        raise LabError("--last-task and --first-task-of are for METHOD or --config, one run after the other.")
    if engine is None and given(context, "cpus", "gpus", "minutes", "resource"):
        raise LabError("--cpus, --gpus, --minutes and --resource say what each run is given by --on slurm or --on ray.")
    if engine is not None and (source or requeue or stop_after is not None or given(context, "jobs")):
        raise LabError(
            "--on says who places the runs: leave out --from, --jobs, --stop-after and --requeue. (--minutes limits a "
            "job.)"
        )
    if (source is None) != (after is None):
        raise LabError("--from RUN and --after T belong together: after which task of which run?")
    if source is not None and after is not None:
        if grid or config or dry_run or download or capture or jobs != "1" or given(context, "methods", "preset"):
            raise LabError("--from RUN says which run: give --after, --set, --seeds, --out and how long, no more.")
        run_command.go_on(
            source, after, changes or [], numbers(seeds) if given(context, "seeds") else None, out or Path("runs"),
            as_json, requeue, seconds=stop_after, device=usable(device), checkpoint_seconds=checkpoint_every,
            accept_changed_data=accept_changed_data, viewers=viewers,
        )  # fmt: skip
        return
    if grid is not None:
        if given(context, "methods", "preset", "changes", "seeds", "config"):
            raise LabError("--grid FILE says which runs: leave out METHOD, --preset, --config, --set and --seeds.")
        plan = run_command.plan_of_list(grid, out, dry_run, as_json)
    elif config is not None:
        if given(context, "methods", "preset"):
            raise LabError("--config FILE says which run: leave out METHOD and --preset; --set and --seeds change it.")
        own = numbers(seeds) if given(context, "seeds") else None
        plan = run_command.plan_of_file(config, changes or [], own, out or Path("runs"))
    elif methods is None:
        raise LabError("name one or more methods, e.g. dne-lab run ia,sta,dne, or a list of runs: --grid FILE.")
    else:
        plan = run_command.plan(methods, preset, changes or [], numbers(seeds), out or Path("runs"))
        run_command.tell_left_out(plan, changes or [])
    if dry_run:
        run_command.tell_unusable(plan)
    if dry_run and grid is not None and (engine is None or as_json):
        return  # its list has been shown
    if dry_run and engine is not None:
        run_command.show_jobs(engine, plan, cpus, gpus, minutes, resource or [])
        return
    if dry_run:
        rest = {"--device": device, "--stop-after": stop_after, "--requeue": requeue, "--download": download}
        rest |= {"--checkpoint-every": checkpoint_every if checkpoint_every != 60 else None, "--capture": capture}
        rest |= {"--track": track}
        run_command.show(plan, changes or [], rest, config)
        return
    if download:
        run_command.download(plan)
    how: dict[str, Any] = {
        "checkpoint_seconds": checkpoint_every,
        "accept_changed_data": accept_changed_data,
        "capture": capture,
    }
    if engine is not None:
        on = run_command.engine(engine, plan, cpus, gpus, minutes, resource or [])
        device = device or ("cuda" if gpus else "cpu")  # not looked for here: this machine trains nothing
        run_command.execute(plan, as_json, engine=on, device=device, viewers=viewers, **how)
        return
    run_command.execute(
        plan, as_json, requeue, seconds=stop_after, jobs=at_a_time, device=usable(device), viewers=viewers,
        **how, **({"last": last_task, "behind": first_task_of} if here_alone else {}),
    )  # fmt: skip
