"""What is typed on the command line, as values, and how help is laid out."""

import io
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
import typer.core

from dne_lab.core.errors import LabError, SaidElsewhere, brief, unknown, visible
from dne_lab.core.files import file_errors_said

# Options that several commands share.
METHODS = (
    "ia, sta, dne, progressive, dytox, joint, finetune, replay, linear-probe, ncm, ranpac; on a residual network "
    "icarl, podnet, der, foster, joint-resnet, finetune-resnet, replay-resnet."
)
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Preset = Annotated[
    str,
    typer.Option(
        help="Presets, composed left to right: digits100,authors-code. small and published stand for the method's own "
        "(icarl-small, ...), or for nothing where it has none. `dne-lab presets` lists them."
    ),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="A field of the configuration: learn.epochs=5 (of each task; the stage after it, which balances the "
        "classifier, has tune.epochs); k=2 (heads of later experts). Repeatable.",
    ),
]
Seeds = Annotated[str, typer.Option(help="Seeds: 0, or 0,2,5, or 0-4.")]
Jobs = Annotated[
    str, typer.Option(metavar="N|auto", help="Runs at a time; auto: one per core, or GPU, as memory allows.")
]
Accept = Annotated[
    bool, typer.Option("--accept-changed-data", help="Go on though images or class names have changed; recorded.")
]
Track = Annotated[
    str | None,
    typer.Option(
        metavar="NAME,...",
        help="Losses, accuracy, gates and attention to tensorboard, wandb (offline) or trackio.",
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1. Default: the GPU if there is one.")]


MOST = 1_000  # numbers that one option names


def numbers(text: str, option: str = "--seeds") -> list[int]:
    """``"0-4"`` or ``"0,2,5"``, the value of ``option``, as a list."""
    found: list[int] = []
    try:
        for part in text.split(","):
            low, _, high = part.strip().partition("-")
            several = range(int(low), int(high or low) + 1)
            if len(found) + several.stop - several.start > MOST or several.stop > 10**18:
                raise LabError(f"{option} {brief(text)}: are more than {MOST:,} numbers, or too large ones.")
            found += several
    except LabError:
        raise
    except ValueError:
        raise LabError(f"{option} {brief(text)}: give numbers such as 0, or 0,2,5, or 0-4.") from None
    if not found:
        raise LabError(f"{option} {brief(text)} names no number: give numbers such as 0, or 0,2,5, or 0-4.")
    return list(dict.fromkeys(found))


def count(text: str, option: str = "--jobs") -> int | str:
    """``"2"``, the value of ``option``, as a number, or ``"auto"``."""
    if text == "auto":
        return text
    if not re.fullmatch(r"0*[1-9][0-9]{0,3}", text):
        raise LabError(f"{option} {brief(text)}: give a number of runs at a time, from 1, or auto.")
    return int(text)


def seconds(stop_after: float | None, checkpoint_every: float) -> None:
    """Raises a `LabError` for what is no length of time."""
    for option, value in (("--stop-after", stop_after), ("--checkpoint-every", checkpoint_every)):
        if value is not None and not 0 <= value < math.inf:
            raise LabError(f"{option} {value}: give seconds, from 0 on.")


def plain_letters() -> None:
    """Letters that the terminal's encoding lacks are shown as \\x.., and are no error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def given(context: typer.Context, *names: str) -> bool:
    """Whether one of these parameters stands on the command line."""
    sources = [context.get_parameter_source(name) for name in names]
    return any(source is not None and source.name == "COMMANDLINE" for source in sources)


# What `dne-lab schema` describes: the files that this program reads, each by the class that checks it.
SCHEMAS = {
    "record": "measure.record:Record",
    "config": "core.config:Config",
    "attention": "analysis.decomposition:Decomposition",
    "ablation": "analysis.ablation_study:AblationRecord",
    "probe": "analysis.read_outs:ProbeRecord",
    "cost": "measure.cost_records:Rows",
    "bench": "plots.cost_figures:Bench",
    "grid": "training.run_list:Entries",
}


def schema(kind: Annotated[str, typer.Argument(metavar="KIND", help=f"{', '.join(SCHEMAS)}.")]) -> None:
    """Print the JSON Schema of a kind of file: which fields it has, and what each may hold."""
    from dne_lab.core.schema import json_schema

    if kind not in SCHEMAS:
        raise unknown("kind of file", kind, SCHEMAS)
    module, _, name = SCHEMAS[kind].partition(":")
    print(json.dumps(json_schema(getattr(import_module(f"dne_lab.{module}"), name)), indent=1))


# Fields that have a place of their own on the command line: set twice, one of the two would be ignored.
GIVEN = {
    "method": "name the method after the command",
    "preset": "use --preset",
    "seed": "use --seeds",
    "start": "use --from RUN --after T",
}


def settings(pairs: list[str] | None) -> dict[str, str]:
    """``["a.b=1"]`` as a dictionary."""
    changes: dict[str, str] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals:
            raise LabError(f"--set {brief(pair)}: write field=value, e.g. --set learn.epochs=5.")
        if name.strip() in GIVEN:
            raise LabError(f"--set {brief(pair)}: {GIVEN[name.strip()]}.")
        if changes.get(name.strip(), value) != value:
            raise LabError(
                f"--set {brief(pair)} beside --set {name.strip()}={changes[name.strip()]}: give one of them."
            )
        changes[name.strip()] = value
    return changes


def program() -> list[str]:
    """How this program was called, for commands that the user copies."""
    return [sys.executable, "-m", "dne_lab"] if Path(sys.argv[0]).name == "__main__.py" else [sys.argv[0]]


Context: Any = typer.core.TyperGroup.context_class
Formatter: Any = Context.formatter_class


class WholeWords(Formatter):
    """Help in which no name is broken at its hyphens."""

    def write_text(self, text: str) -> None:
        """A paragraph."""
        super().write_text(text.replace("-", "\u2011"))

    def write_dl(self, rows: Any, *args: Any, **how: Any) -> None:
        """Options, arguments or commands, each with its words."""
        super().write_dl([(name, text.replace("-", "\u2011")) for name, text in rows], *args, **how)

    def getvalue(self) -> str:
        """All of it."""
        return str(super().getvalue()).replace("\u2011", "-")


class HelpContext(Context):
    """Shows help with `WholeWords`, up to 100 columns wide."""

    formatter_class = WholeWords

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"max_content_width": 100} | settings)


class Command(typer.core.TyperCommand):
    """A command with such help, which knows the home folder also where a shell leaves it (``--out=~/runs``), and takes
    no empty path."""

    context_class = HelpContext

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options and arguments as values."""
        homes = [re.sub(r"^(--[a-z-]+=)?(~(?=/|$))", lambda m: (m[1] or "") + str(Path.home()), arg) for arg in args]
        self._check_paths(ctx, homes)
        return list(super().parse_args(ctx, homes))

    def _check_paths(self, ctx: Any, args: list[str]) -> None:
        """Refuses a path that is empty, of which `Path` makes the working directory."""
        words = self.make_parser(ctx).parse_args(args=[*args])[0]
        kinds = get_type_hints(self.callback)
        for parameter in self.get_params(ctx):
            word, kind = words.get(parameter.name), kinds.get(parameter.name)
            if "Path" in str(kind) and "" in (word if isinstance(word, list | tuple) else [word]):
                name = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
                raise LabError(f"{name}: a name of a file or folder is empty. Give one; . is the working directory.")


@contextmanager
def warned_in_words() -> Iterator[None]:
    """Our warnings as a sentence, without the place in the code that they come from, which tells a user nothing."""
    before = warnings.formatwarning

    def sentence(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        ours = category is UserWarning and "dne_lab" in Path(filename).parts
        return f"dne-lab: {visible(str(message))}\n" if ours else before(message, category, filename, lineno, line)

    warnings.formatwarning = sentence
    try:
        yield
    finally:
        warnings.formatwarning = before


class _Shown:
    """Standard output on which text from elsewhere, a name in a table or a path, steers no terminal."""

    def __init__(self, behind: Any) -> None:
        self._behind = behind

    def write(self, text: str) -> int:
        self._behind.write(visible(text))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._behind, name)


class Commands(typer.core.TyperGroup):
    """The commands, and how all of them end: `LabError` is one message and status 2, Ctrl-C 130, SIGTERM 143, another
    signal 128 and its number.

    Here and not around `cli.app`, because typer itself turns every KeyboardInterrupt into a silent 130.
    """

    context_class = HelpContext

    def invoke(self, ctx: Any) -> Any:
        """Runs the chosen command."""
        try:
            with warned_in_words(), file_errors_said(), redirect_stdout(_Shown(sys.stdout)):
                return super().invoke(ctx)
        except SaidElsewhere:
            sys.exit(2)
        except LabError as error:
            rank = os.environ.get("RANK", "0") if os.environ.get("WORLD_SIZE", "1") != "1" else "0"
            print(f"dne-lab: {error}" if rank == "0" else f"dne-lab (process {rank}): {error}", file=sys.stderr)
            sys.exit(2)
        except typer.Exit:  # a RuntimeError too, and the end of every --help, which need not wait for torch
            raise
        except (MemoryError, RuntimeError) as error:
            from dne_lab.training.step import out_of_memory

            if not out_of_memory(error):
                raise
            reason = (str(error).splitlines() or ["of this machine"])[0]
            print(f"dne-lab: out of memory ({reason}). Take fewer images or a smaller batch.", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt as stop:
            goes_on = "; the same command goes on from here" if ctx.invoked_subcommand in ("run", "reproduce") else ""
            if os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0":
                print(f"stopped{goes_on}.", file=sys.stderr)
            sys.exit(getattr(stop, "status", 130))  # `progress.Terminated` has one
