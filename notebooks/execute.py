"""Executes the notebooks of this folder anew and normalises them, so that executing twice gives the same bytes.

python notebooks/execute.py             all notebooks, and the links between them
python notebooks/execute.py 06 07       those whose names start so, and the links between all
python notebooks/execute.py --links     the links alone

A notebook is written with its code and markdown; outputs, cell ids, metadata and the links come from here. Cells whose
output pytest compares carry the tag ``nbval-check-output``.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import Any

import nbformat

FOLDER = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
LINKS = "<!--links-->"  # stands above the last line of the first and of the last cell
LINES = 14  # of a code cell
BYTES = 1_000_000
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PLOTLY_RENDERER": "plotly_mimetype", "COLUMNS": "120"}


def notebooks(folder: Path = FOLDER) -> list[Path]:
    """All notebooks, in their order."""
    return sorted(folder.glob("[0-9][0-9]_*.ipynb"))


def read(path: Path) -> Any:
    """The notebook in a file, in the newest format."""
    return nbformat.read(path, as_version=4)


def write(notebook: Any, path: Path) -> None:
    """Writes a notebook; equal ones give equal bytes."""
    path.write_text(nbformat.writes(notebook, ensure_ascii=False).rstrip("\n") + "\n", encoding="utf-8")


# Execution ------------------------------------------------------------------------------------------------------------


def execute(notebook: Any, folder: Path) -> Any:
    """Runs all cells in a new kernel in ``folder`` and normalises what comes out. An error in a cell raises."""
    from nbclient import NotebookClient

    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    os.environ.update(ENVIRONMENT)
    root = str(FOLDER.parent)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )  # fmt: skip
    client.execute()
    return normalise(notebook)


def normalise(notebook: Any) -> Any:
    """Fixed ids and metadata; outputs without live widgets, which nothing behind the page would answer."""
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


# Links ----------------------------------------------------------------------------------------------------------------


def title(notebook: Any) -> str:
    """The first heading."""
    found = re.search(r"^# (.+)$", notebook.cells[0].source, re.MULTILINE)
    return found[1].strip() if found else "untitled"


def links(path: Path, folder: Path = FOLDER) -> str:
    """The lines that lead to the notebooks before and after this one."""
    every = notebooks(folder)
    place = every.index(path)
    parts = []
    if place > 0:
        parts.append(f"previous: [{title(read(every[place - 1]))}]({every[place - 1].name})")
    if place + 1 < len(every):
        parts.append(f"next: [{title(read(every[place + 1]))}]({every[place + 1].name})")
    # A line that starts with a comment is HTML to its end: the links stand in a paragraph of their own.
    return f"{LINKS}\n\n{' · '.join(parts)}".rstrip()


def linked(notebook: Any, lines: str) -> Any:
    """The notebook with these lines at the end of its first and of its last cell, in place of older ones."""
    for cell in {0: notebook.cells[0], 1: notebook.cells[-1]}.values():
        text = re.sub(rf"\s*^{LINKS}.*\Z", "", cell.source, flags=re.MULTILINE | re.DOTALL)
        cell.source = f"{text.rstrip()}\n\n{lines}"
    return notebook


# Checks ---------------------------------------------------------------------------------------------------------------


def faults(notebook: Any) -> list[str]:
    """What is wrong with a committed notebook that running it does not show; empty when nothing is."""
    found = []
    first, last = notebook.cells[0], notebook.cells[-1]
    for place, cell in (("first", first), ("last", last)):
        if cell.cell_type != "markdown":
            found.append(
                f"the {place} cell is code: it must say in words what the notebook is about, and what came out"
            )
    if title(notebook) == "untitled":
        found.append("the first cell has no heading (# ...)")
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in code]
    if counts != list(range(1, len(code) + 1)):
        found.append(f"not executed from top to bottom in one go: execution counts {counts}")
    for number, cell in enumerate(code, start=1):
        lines = len(cell.source.splitlines())
        if lines > LINES:
            found.append(f"code cell {number} has {lines} lines, more than {LINES}: move code into the package")
        for output in cell.outputs:
            kind = output.get("name") or output.output_type
            if kind in ("stderr", "error"):
                found.append(f"code cell {number} ends with an output of kind {kind}")
            if WIDGET in output.get("data", {}):
                found.append(f"code cell {number} keeps a live widget, which nothing behind the page would answer")
    wanted = METADATA, [f"cell-{number:02d}" for number in range(1, len(notebook.cells) + 1)]
    if (dict(notebook.metadata), [cell.get("id") for cell in notebook.cells]) != wanted:
        found.append("metadata or cell ids are not normalised")
    size = len(nbformat.writes(notebook).encode())
    if size > BYTES:
        found.append(f"{size} bytes, more than {BYTES}")
    return [f"{text}. Run python notebooks/execute.py." if "cell ids" in text or "not executed" in text else text
            for text in found]  # fmt: skip


def main(words: list[str]) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Executes and normalises the notebooks of this folder.")
    parser.add_argument("names", nargs="*", help="how the names of the notebooks start; default: all")
    parser.add_argument("--links", action="store_true", help="only renew the links between notebooks")
    given = parser.parse_args(words)
    every = notebooks()
    strange = [name for name in given.names if not any(path.name.startswith(name) for path in every)]
    if strange:
        parser.error(f"no notebook starts with {strange[0]!r}; there are {', '.join(path.name for path in every)}")
    for path in every if not given.links else []:
        if not given.names or any(path.name.startswith(name) for name in given.names):
            print(f"executing {path.name}", flush=True)
            write(execute(read(path), path.parent), path)
    for path in every:
        write(linked(read(path), links(path)), path)


if __name__ == "__main__":
    main(sys.argv[1:])
