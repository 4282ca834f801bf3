"""The machinery of the notebooks: executing twice gives the same bytes, and pytest sees what has gone wrong in one."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from tiny_notebooks import COMMITTED, NOTEBOOKS, ROOT, execute, tiny


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_a_committed_notebook_is_executed_in_order_and_normalised(path: Path) -> None:
    assert execute.faults(execute.read(path)) == []


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_its_links_lead_to_its_neighbours(path: Path) -> None:
    written = path.read_text(encoding="utf-8")
    notebook = execute.linked(execute.read(path), execute.links(path))
    assert nbformat.writes(notebook, ensure_ascii=False).rstrip("\n") + "\n" == written, (
        "run python notebooks/execute.py --links"
    )


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny(tmp_path_factory.mktemp("notebook"))
    notebook, _ = execute.execute(execute.read(path), path.parent)
    execute.write(execute.linked(notebook, execute.links(path, path.parent)), path)
    return path


def test_executing_twice_gives_the_same_bytes(executed: Path, tmp_path: Path) -> None:
    again, spent = execute.execute(execute.read(executed), tmp_path)
    assert 0 < spent.cpu < 60 and spent.wall > 0
    one, other = (nbformat.writes(notebook) for notebook in (execute.read(executed), again))
    drawn = [cell.outputs for cell in again.cells if cell.cell_type == "code"][3][0].data
    for kind in ("application/vnd.plotly.v1+json", "text/html"):  # made to differ, to show that the rest does not
        other = other.replace(drawn[kind], "")
        one = one.replace(_output(executed, 3)[0].data[kind], "")
    assert one == other


def _output(path: Path, number: int) -> Any:
    return [cell.outputs for cell in execute.read(path).cells if cell.cell_type == "code"][number]


def test_what_is_written_has_no_widget_and_no_chance(executed: Path) -> None:
    notebook = execute.read(executed)
    assert execute.faults(notebook) == []
    assert [output.text for output in _output(executed, 0)] == ["a\nb\n"]
    assert _output(executed, 2) == []
    assert [dict(cell.metadata) for cell in notebook.cells if cell.metadata] == [
        {"tags": ["nbval-check-output"], "margin": 0.5}  # 1.25 is shown as it is, and two marks have no number
    ] * 2
    assert [cell.id for cell in notebook.cells] == [f"cell-0{n}" for n in range(1, 8)]


def test_an_error_in_a_cell_stops_the_execution(tmp_path: Path) -> None:
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        execute.execute(notebook, tmp_path)


def test_links_are_renewed_and_not_repeated(tmp_path: Path) -> None:
    for name, heading in (("01_a", "# First *one*"), ("02_b", "# Second"), ("04_d", "# Third")):
        cells = [nbformat.v4.new_markdown_cell(heading), nbformat.v4.new_markdown_cell("The end.")]
        execute.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"{name}.ipynb")
    middle = tmp_path / "02_b.ipynb"
    line = execute.links(middle, tmp_path)
    assert line == "<!--links-->\n\nprevious: [First *one*](01_a.ipynb) · next: [Third](04_d.ipynb)"
    assert execute.links(tmp_path / "01_a.ipynb", tmp_path) == "<!--links-->\n\nnext: [Second](02_b.ipynb)"
    once = execute.linked(execute.read(middle), line)
    assert [cell.source for cell in once.cells] == [f"# Second\n\n{line}", f"The end.\n\n{line}"]
    assert execute.linked(once, line) == once and execute.title(once) == "Second"


def test_links_are_links_where_a_notebook_is_shown(executed: Path, tmp_path: Path) -> None:
    nbconvert = pytest.importorskip("nbconvert")
    for name in ("02_before", "03_tiny", "04_after"):
        shutil.copy(executed, tmp_path / f"{name}.ipynb")
    path = tmp_path / "03_tiny.ipynb"
    shown, _ = nbconvert.HTMLExporter().from_notebook_node(
        execute.linked(execute.read(path), execute.links(path, tmp_path))
    )
    assert shown.count('<a href="02_before.ipynb">') == shown.count('<a href="04_after.ipynb">') == 2


def test_the_table_of_the_readme_is_that_of_the_first_cells() -> None:
    written = (NOTEBOOKS / "README.md").read_text(encoding="utf-8")
    assert execute.readme(written) == written, "run python notebooks/execute.py --links"
    assert all(f"]({path.name})" in written for path in COMMITTED)


def test_a_first_cell_that_says_too_little_for_the_table_is_an_error(tmp_path: Path) -> None:
    path = tiny(tmp_path)
    assert execute.contents(tmp_path) == [
        {"file": path.name, "title": "Tiny", "question": "Which?", "run time": "5 seconds", "reading": "2 minutes"}
    ]
    notebook = execute.read(path)
    notebook.cells[0].source = notebook.cells[0].source.replace("2 minutes", "some time")
    execute.write(notebook, path)
    with pytest.raises(ValueError, match=r"03_tiny.ipynb: its first cell does not say its reading"):
        execute.contents(tmp_path)


def test_folded_answers_run_behind_their_question(tmp_path: Path) -> None:
    notebook = execute.answered(execute.read(tiny(tmp_path)))
    assert [cell.source for cell in notebook.cells if cell.source.startswith("print('twice")] == [
        "print('twice a:', 2 * 'a')\n"
    ]
    ran, _ = execute.execute(notebook, tmp_path)
    assert execute.shown(ran.cells[6]) == "twice a: aa\n"


def test_every_link_of_the_glossary_and_the_readme_leads_somewhere() -> None:
    for page in ("README.md", "glossary.md"):
        text = (NOTEBOOKS / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\(([^)#]+)", text):
            assert (NOTEBOOKS / target).exists(), f"{page}: {target}"
        for number in re.findall(r"\((\d\d(?:, \d\d)*)\) \|", text):
            assert all(list(NOTEBOOKS.glob(f"{n}_*.ipynb")) for n in number.split(", "))


# The teeth ------------------------------------------------------------------------------------------------------------


def test_a_cell_that_was_not_executed_or_not_in_order_is_found(executed: Path) -> None:
    notebook = execute.read(executed)
    notebook.cells[2].execution_count = None
    notebook.cells[2].outputs = []
    assert any("not executed from top to bottom" in fault for fault in execute.faults(notebook))
    notebook = execute.read(executed)
    first, second = notebook.cells[1], notebook.cells[2]
    first.execution_count, second.execution_count = second.execution_count, first.execution_count
    assert any("[2, 1, 3, 4]" in fault for fault in execute.faults(notebook))
    notebook = execute.read(executed)
    notebook.cells[1], notebook.cells[2] = notebook.cells[2], notebook.cells[1]
    assert any("[2, 1, 3, 4]" in fault for fault in execute.faults(notebook))


def test_other_faults_are_found(executed: Path) -> None:
    notebook = execute.read(executed)
    notebook.cells[0].source = "no heading"
    notebook.cells[1].source = "\n".join(["x = 1"] * 20 + [f"x = '{'y' * 110}'"])
    notebook.cells[1].outputs = [nbformat.v4.new_output("stream", name="stderr", text="a warning")]
    notebook.cells[3].outputs = [nbformat.v4.new_output("display_data", data={execute.WIDGET: {}})]
    notebook.cells[4].outputs = [nbformat.v4.new_output("display_data", data={"text/plain": "x" * 1_000_000})]
    notebook.cells = notebook.cells[:-2]
    told = "\n".join(execute.faults(notebook))
    for part in (
        "no heading",
        "question (**Question.**",
        "run time (**Run time**",
        "reading (**Reading**",
        "no link to glossary.md",
        "no exercise with a folded answer",
        "what came out, under",
        "21 lines",
        "a line of 116 letters",
        "kind stderr",
        "live widget",
        "more than 1000000",
        "the last cell is code",
    ):
        assert part in told
    notebook = execute.read(executed)
    notebook.metadata["widgets"] = {}
    assert "not normalised" in execute.faults(notebook)[0]


def test_nbval_sees_a_changed_digit_and_an_error_but_no_new_drawing(executed: Path, tmp_path: Path) -> None:
    shutil.copy(NOTEBOOKS / "conftest.py", tmp_path)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    text = executed.read_text(encoding="utf-8")
    assert text.count("1.25") > 1
    (tmp_path / "01_same.ipynb").write_text(text, encoding="utf-8")
    digit = execute.read(executed)
    table = [cell for cell in digit.cells if cell.cell_type == "code"][1].outputs[0].data
    table["text/plain"] = table["text/plain"].replace("1.25", "1.35")
    execute.write(digit, tmp_path / "02_digit.ipynb")
    error = execute.read(executed)
    error.cells[1].source += "\n1 / 0"
    execute.write(error, tmp_path / "04_error.ipynb")
    environment = {name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *nbval_options(), "-p", "no:cacheprovider", "-p", "no:xdist", "-rA", "."],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, env={**environment, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    results = dict(
        line.split()[:2][::-1] for line in done.stdout.replace("::Cell ", "::").splitlines() if "ipynb::" in line
    )
    failed = sorted(name for name, result in results.items() if result == "FAILED")
    assert failed == ["02_digit.ipynb::1", "04_error.ipynb::0"], done.stdout[-3000:]
    assert results["01_same.ipynb::3"] == "PASSED" and len(results) == 12


def nbval_options() -> list[str]:
    """As `pytest` alone uses them."""
    import tomllib

    words = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["addopts"].split()
    options = [word for word in words if word.startswith("--nbval")]
    assert "--nbval-lax" in options and "--nbval-current-env" in options
    return options
