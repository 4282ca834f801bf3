"""The project's folder: where the notebooks are, JupyterLab on them, and a copy of them out of an installed package."""

import getpass
import os
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from dne_lab.core.errors import LabError
from dne_lab.core.files import WriteError, make_folder

FIRST = "notebooks/00_quickstart.ipynb"
# The notebooks and what they read. A wheel has it within the package (setup.py), a checkout beside it.
MATERIAL = (
    *("notebooks/*.ipynb", "notebooks/*.md", "figures/*.md", "figures/explorer.*"),
    *("figures/records/**/*", "figures/checkpoints/**/*"),
)
PACKED = Path(__file__).parents[1] / "material"
CHECKOUT = Path(__file__).parents[2]
COPY = "dne-lab notebooks my-notebooks"


def find(here: Path) -> Path:
    """The folder that holds the notebooks' folder: ``here``, the one above, or the checkout of this package.

    Raises:
        LabError: the package was installed without its sources.
    """
    for place in (here, here.parent, CHECKOUT):
        if (place / FIRST).exists():
            return place.resolve()
    raise LabError(
        f"there are no notebooks in {here}. Copy those of the package, with what they read, into a folder of your own: "
        f"{COPY}, then dne-lab lab there."
    )


def copy(to: Path) -> list[Path]:
    """Copies the notebooks, and the records and models that they read, to ``to/notebooks`` and ``to/figures``.

    Raises:
        LabError: there are notebooks already, which stay as they are.
    """
    source = PACKED if PACKED.is_dir() else CHECKOUT
    files = material(source)
    if not files:
        raise LabError("this installation holds no notebooks: install a wheel of the project, or clone it.")
    for folder in ("notebooks", "figures"):
        if (to / folder).exists():
            raise LabError(f"{to / folder} exists and stays as it is. Name another folder.")
    made = [folder for folder in (to, to / "notebooks", to / "figures") if not folder.exists()]
    copied = []
    try:
        for file in files:
            target = to / file.relative_to(source)
            make_folder(target.parent)
            shutil.copyfile(file, target)
            copied.append(target)
    except BaseException as error:  # a part of them would stand in the way of the next attempt
        for new in made:
            shutil.rmtree(new, ignore_errors=True)
        if isinstance(error, OSError):
            why = error.strerror or error
            raise WriteError(f"cannot copy the notebooks to {to}: {why}. Nothing of them is left there.") from error
        raise
    return copied


def material(source: Path) -> list[Path]:
    """The files of MATERIAL below a folder."""
    return sorted({file for pattern in MATERIAL for file in source.glob(pattern) if file.is_file()})


def command(project: Path, given: Sequence[str]) -> list[str]:
    """What starts JupyterLab: on loopback, in the project's folder, first notebook open; ``given`` is passed on.

    What is given replaces what would be set here; a token goes by the name that Jupyter has for it today. Root, as in
    containers, is allowed as JupyterLab wants to be told.
    """
    given = [re.sub(r"^--(ServerApp|NotebookApp)\.token\b", "--IdentityProvider.token", word) for word in given]
    named = {word.split("=")[0].removeprefix("--").rpartition(".")[2] for word in given if word.startswith("--")}
    ours = {"ip": "127.0.0.1", "root_dir": str(project), "default_url": f"/lab/tree/{FIRST}"}
    options = {"ip": "ServerApp.ip", "root_dir": "ServerApp.root_dir", "default_url": "LabApp.default_url"}
    if "notebook-dir" in named:
        named.add("root_dir")
    files = [word for word in given if word.endswith(".ipynb")]
    words = [f"--{options[name]}={value}" for name, value in ours.items() if name not in named]
    if files or not (project / FIRST).exists():
        words = [word for word in words if "default_url" not in word]
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if root and "allow-root" not in named:
        words.append("--allow-root")
    return [sys.executable, "-m", "jupyterlab", *words, *given]


def hint(project: Path, given: Sequence[str]) -> str:
    """Where it opens, and how to reach it from another machine."""
    port = "8888"
    for at, word in enumerate(given):
        name, _, value = word.partition("=")
        if name in ("--port", "--ServerApp.port"):
            port = value or "".join(given[at + 1 : at + 2])
    host = socket.gethostname()
    return (
        f"JupyterLab on {project}. From another machine: ssh -N -L {port}:127.0.0.1:{port} {getpass.getuser()}@{host}\n"
        "and there the address below, with its token (another port, if JupyterLab takes one, in both places)."
    )


def start(given: Sequence[str]) -> None:
    """Becomes JupyterLab.

    Raises:
        LabError: it is not installed, or there are no notebooks.
    """
    if find_spec("jupyterlab") is None:
        raise LabError(
            "JupyterLab is not installed here: pip install jupyterlab, or use the other commands without it."
        )
    project = find(Path.cwd())
    print(hint(project, given), file=sys.stderr, flush=True)
    words = command(project, given)
    os.execv(words[0], words)


def lab(
    arguments: Annotated[
        list[str] | None, typer.Argument(metavar="ARGS", help="Passed on to JupyterLab: --port=9000 --no-browser.")
    ] = None,
    copy_to: Annotated[
        Path | None,
        typer.Option("--copy-notebooks", metavar="DIR", help="Copy the notebooks and what they read there, and end."),
    ] = None,
) -> None:
    """Open JupyterLab on the project's folder, the first notebook open: on this machine only, with a token.

    The project is the current folder or, where that has no notebooks, the checkout that this program runs from. A
    package installed without it holds a copy: dne-lab notebooks my-notebooks, then dne-lab lab there.
    """
    if copy_to is not None:
        notebooks(copy_to)
    else:
        start(arguments or [])


def notebooks(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder without notebooks or figures in it.")],
) -> None:
    """Copy the notebooks, and the records and models that they read, into a folder of your own.

    Then there: dne-lab lab.
    """
    print(f"copied {len(copy(folder))} files to {folder}. Next: cd {folder} and dne-lab lab")
