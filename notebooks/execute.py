"""Executes the notebooks of this folder anew and normalises them, so that executing twice gives the same bytes.

python notebooks/execute.py             all notebooks, and the links between them
python notebooks/execute.py 06 07       those whose names start so, and the links between all
python notebooks/execute.py --links     the links alone, and the table of README.md
python notebooks/execute.py --answers   executes without writing, with the code of the exercises' answers as cells
python notebooks/execute.py --times     executes without writing: CPU and wall seconds of each beside its limit;
                                        ends with 1 if one needs more CPU seconds than that

A notebook is written with its code and markdown; outputs, cell ids, metadata and the links come from here. Cells whose
output pytest compares carry the tag ``nbval-check-output`` and, measured here, ``margin``: how far the nearest of their
numbers is from being printed otherwise, in units of its last digit. One with a number too near is not written.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import instrument
import nbformat

FOLDER = Path(__file__).parent
WIDGET = "application/vnd.jupyter.widget-view+json"
LINKS = "<!--links-->"  # stands above the last line of the first and of the last cell
CHECKED = "nbval-check-output"
LINES = 12  # of a code cell
WIDE = 106  # letters of its lines: what a cell of JupyterLab shows in a window of 1280 pixels
BYTES = 1_000_000
LIMITS = {"00": 60, "02": 60, "07": 40, "13": 40}  # seconds on two cores
LIMIT = 25  # of the others
SAID = ("**Question.**", "**Data**", "**Run time**", "**Reading**")  # by the first cell; run time with hardware
LAST = "## What was and was not reproduced"
GLOSSARY = "glossary.md"
ANSWER = re.compile(r"^<details>.*?^</details>", re.MULTILINE | re.DOTALL)  # of an exercise, folded
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
HEAD = {  # lines of the first cell that the table in README.md shows
    "question": r"^\*\*Question\.\*\* (.+)$",
    "run time": r"^- \*\*Run time\*\*: under (\d+ seconds)",
    "reading": r"^- \*\*Reading\*\*: (\d+ minutes)",
}
BEGIN, END = "<!--contents-->", "<!--/contents-->"  # around the table in README.md
MARGIN = 1e-4  # units of the last digit printed
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
# Figures are kept as PNG and text, which GitHub and nbconvert show; a kernel of JupyterLab's own sends plotly's form.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "DNE_LAB_FIGURES": "static", "COLUMNS": "120"}


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


class Spent(NamedTuple):
    """What an execution took: CPU seconds of the kernel from its start on, and seconds by the clock."""

    cpu: float
    wall: float


def execute(notebook: Any, folder: Path) -> tuple[Any, Spent]:
    """Runs all cells in a new kernel in ``folder``, normalises what comes out and notes the margins of compared cells.

    An error in a cell raises.
    """
    from nbclient import NotebookClient

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        cell.outputs, cell.execution_count = [], None
    paths = [str(FOLDER.parent), str(FOLDER), os.environ.get("PYTHONPATH", "")]
    found = {"PYTHONPATH": os.pathsep.join(dict.fromkeys(filter(None, paths)))}
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "measured.jsonl"
        line = f"import instrument; instrument.install(get_ipython(), {str(file)!r}); del instrument"
        client = NotebookClient(
            notebook, timeout=600, kernel_name="python3", record_timing=False, coalesce_streams=True,
            extra_arguments=[f"--IPKernelApp.exec_lines={line}"], resources={"metadata": {"path": str(folder)}},
        )  # fmt: skip
        start = time.monotonic()
        client.execute(env={**os.environ, **ENVIRONMENT, **found})
        wall = time.monotonic() - start
        measured = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    ran = [cell for cell in code if cell.source.strip()]
    for cell, found in zip(ran, measured[-len(ran) :], strict=True):
        cell.metadata.pop("margin", None)
        if CHECKED in cell.metadata.get("tags", []):
            cell.metadata["margin"] = float(f"{instrument.smallest(found['seen'], shown(cell)):.2g}")
    return normalise(notebook), Spent(measured[-1]["cpu"], wall)


def shown(cell: Any) -> str:
    """The texts that a cell put out."""
    return "\n".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs)


def normalise(notebook: Any) -> Any:
    """Fixed ids and metadata; no live widgets, which nothing behind the page would answer: pictures in their place."""
    for number, cell in enumerate(notebook.cells, start=1):
        cell.id = f"cell-{number:02d}"
        kept = {name: cell.metadata[name] for name in ("margin", "tags") if cell.metadata.get(name) not in (None, [])}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):  # an explorer, of which the picture stays
                    output.data.pop(WIDGET, None)
            cell.outputs = [output for output in cell.outputs if WIDGET not in output.get("data", {})]
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def answered(notebook: Any) -> Any:
    """The notebook with the Python code of its folded answers as cells behind them."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        for answer in ANSWER.findall(cell.source) if cell.cell_type == "markdown" else []:
            cells += [nbformat.v4.new_code_cell(block) for block in BLOCK.findall(answer)]
    return nbformat.v4.new_notebook(cells=cells, metadata=notebook.metadata)


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


def contents(folder: Path = FOLDER) -> list[dict[str, str]]:
    """What the first cells say, a notebook each: file, title, question, run time, reading.

    Raises:
        ValueError: one says less.
    """
    found = []
    for path in notebooks(folder):
        notebook = read(path)
        row = {"file": path.name, "title": title(notebook)}
        for name, pattern in HEAD.items():
            match = re.search(pattern, notebook.cells[0].source, re.MULTILINE)
            if match is None:
                raise ValueError(f"{path.name}: its first cell does not say its {name}, as {pattern}.")
            row[name] = match[1]
        found.append(row)
    return found


def readme(text: str, folder: Path = FOLDER) -> str:
    """The text of README.md with its table as the first cells of the notebooks have it."""
    lines = ["| | notebook | asks | to read | to run |", "| --- | --- | --- | --- | --- |"]
    for row in contents(folder):
        name = f"[{row['title']}]({row['file']})"
        lines.append(f"| {row['file'][:2]} | {name} | {row['question']} | {row['reading']} | {row['run time']} |")
    table = "\n".join(lines)
    return re.sub(rf"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{table}\n{END}", text, flags=re.DOTALL)


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
    found += [
        f"the first cell does not say its {text.strip('*.').lower()} ({text} ...)"
        for text in SAID
        if text not in first.source
    ]
    if f"({GLOSSARY})" not in first.source:
        found.append(f"the first cell has no link to {GLOSSARY}")
    if not any(ANSWER.search(cell.source) for cell in notebook.cells if cell.cell_type == "markdown"):
        found.append(
            "there is no exercise with a folded answer (<details> ... </details>, each at the start of a line)"
        )
    if LAST not in last.source:
        found.append(f"the last cell does not say what came out, under the heading {LAST}")
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
        wide = max(map(len, cell.source.splitlines()), default=0)
        if wide > WIDE:
            found.append(f"code cell {number} has a line of {wide} letters, more than {WIDE}: JupyterLab cuts it")
        if CHECKED in cell.metadata.get("tags", []):
            found += _unsafe(number, cell)
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


def _unsafe(number: int, cell: Any) -> list[str]:
    """Why the text of a compared cell may be another one on another machine."""
    margin = cell.metadata.get("margin")
    if margin is None:
        return [f"code cell {number} is compared and has no margin. Run python notebooks/execute.py."]
    found = []
    if margin < MARGIN:
        found.append(
            f"code cell {number} shows a number {margin:g} units of its last digit from being rounded otherwise, less "
            f"than {MARGIN:g}: show another number of digits of it"
        )
    if re.search(r"\d\.\d{6}", shown(cell)):
        found.append(f"code cell {number} is compared and shows a number with six decimals or more: round it")
    return found


def limit(path: Path) -> int:
    """Seconds that a notebook may take on two cores."""
    return LIMITS.get(path.name[:2], LIMIT)


def main(words: list[str]) -> int:
    """The command; gives its exit status."""
    parser = argparse.ArgumentParser(description="Executes and normalises the notebooks of this folder.")
    parser.add_argument("names", nargs="*", help="how the names of the notebooks start; default: all")
    parser.add_argument("--links", action="store_true", help="only renew the links between notebooks")
    parser.add_argument("--times", action="store_true", help="execute without writing; CPU seconds against the limits")
    parser.add_argument("--answers", action="store_true", help="execute with the answers, without writing")
    given = parser.parse_args(words)
    every = notebooks()
    strange = [name for name in given.names if not any(path.name.startswith(name) for path in every)]
    if strange:
        parser.error(f"no notebook starts with {strange[0]!r}; there are {', '.join(path.name for path in every)}")
    wanted = [path for path in every if not given.names or path.name.startswith(tuple(given.names))]
    failed = False
    for path in wanted if not given.links else []:
        notebook, spent = execute(answered(read(path)) if given.answers else read(path), path.parent)
        over = spent.cpu > limit(path)
        print(f"{path.name}: {spent.cpu:.1f} s CPU, {spent.wall:.1f} s wall; limit {limit(path)} s"
              f"{', OVER' if over else ''}", flush=True)  # fmt: skip
        if given.times or given.answers:
            failed |= over and not given.answers
            continue
        unsafe = [text for text in faults(notebook) if "last digit" in text or "six decimals" in text]
        for text in unsafe:
            print(f"{path.name} is not written: {text}.", file=sys.stderr)
        failed |= bool(unsafe)
        if not unsafe:
            write(notebook, path)
    if not (given.times or given.answers):
        for path in every:
            write(linked(read(path), links(path)), path)
        for folder in {path.parent for path in every}:
            page = folder / "README.md"
            page.write_text(readme(page.read_text(encoding="utf-8"), folder), encoding="utf-8")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
