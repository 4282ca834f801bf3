"""Compared numbers are far from another text; execute.py measures it, and the CPU seconds, and refuses."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from tiny_notebooks import COMMITTED, EXERCISE, FIRST, LAST, ROOT, execute, instrument, tiny


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_every_compared_number_is_far_from_another_text(path: Path) -> None:
    cells = [cell for cell in execute.read(path).cells if execute.CHECKED in cell.metadata.get("tags", [])]
    assert cells and all(cell.metadata["margin"] >= 1e-4 for cell in cells)


@pytest.mark.parametrize(
    ("value", "spec", "expected"),
    [
        (0.125, ".2f", 0.0), (4.35, "+.1f", 0.0), (4.35, "+.2f", 0.5), (-0.249, "6.1f", 0.01), (1e-4, ".2f", 0.49),
        (0.12345, ".1%", 0.05), (1234.5, ",.0f", 0.0), (1.25, ".2g", 0.0), (123456.0, ".3g", 0.044),
        (0.00125, ".1e", 0.0), (float("nan"), ".1f", 0.5), (3, ",", None), ("x", ">5", None), (2.5, "", None),
    ],
)  # fmt: skip
def test_the_distance_to_the_next_text(value: Any, spec: str, expected: float | None) -> None:
    found = instrument.formatted_margin(value, spec)
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-9))


ROUNDED = """
import pandas as pd
from dne_lab.plots.figure import Figure

table = pd.DataFrame({"x": [0.25, 0.1313], "n": [1, 2], "y": ["a", "b"]})
def draw(axes, rows):
    axes.set_title(f"{0.5:.0f} and {rows['x'][0]:.1f}")
figure = Figure("f", "f", table, [], picture=draw)
"""
CELLS = {  # what a cell shows: the margin that it gets
    "table": 0.5,  # digits as they are
    "table.round(1)": 0.0,
    "table.round({'x': 2, 'n': 0})": 0.37,  # 0.1313; 0.25 has two decimals
    "print(f'{0.3333:.1f}')": 0.17,
    "print(round(2.675, 2))": 0.0,  # a little less in binary
    "text = f'{0.5:.0f}'; print('0.7 and 10')": 0.5,  # not shown
    "print(table['x'].to_numpy().round(2)[0])": 0.37,
    "figure": 0.37,
}


def test_a_number_near_another_text_is_found_in_cells_and_in_the_package(tmp_path: Path) -> None:
    """Also that of a `Figure`, which rounds its table in the package to two decimals; its picture is not compared."""
    cells = [nbformat.v4.new_markdown_cell(FIRST), nbformat.v4.new_code_cell(ROUNDED)]
    cells += [nbformat.v4.new_code_cell(text, metadata={"tags": [execute.CHECKED]}) for text in CELLS]
    cells += [nbformat.v4.new_markdown_cell(text) for text in (EXERCISE, LAST)]
    notebook, _ = execute.execute(nbformat.v4.new_notebook(cells=cells), tmp_path)
    found = {cell.source: cell.metadata["margin"] for cell in notebook.cells if cell.metadata.get("tags")}
    assert found == {text: pytest.approx(margin, abs=1e-9) for text, margin in CELLS.items()}
    told = execute.faults(notebook)
    assert len(told) == 2 and all("from being rounded otherwise, less than 0.0001" in text for text in told)
    assert [text.split(" shows")[0] for text in told] == ["code cell 3", "code cell 6"]


def test_formats_in_the_package_are_watched(tmp_path: Path) -> None:
    folder = str(ROOT / "figures" / "records" / "cost")
    source = "from dne_lab.measure.cost_records import find\nfrom dne_lab.claims.claims import Evidence, printed_cost\n"
    source += f"print(printed_cost(Evidence(costs=find([{folder!r}])))[0].found)"
    cell = nbformat.v4.new_code_cell(source, metadata={"tags": [execute.CHECKED]})
    notebook, _ = execute.execute(nbformat.v4.new_notebook(cells=[cell]), tmp_path)
    assert "counted 2.54 G" in execute.shown(notebook.cells[0]) and 0.4 < notebook.cells[0].metadata["margin"] < 0.5


def test_what_was_not_measured_or_not_rounded_is_a_fault(tmp_path: Path) -> None:
    notebook = execute.read(tiny(tmp_path))
    cell = notebook.cells[2]
    assert any("code cell 2 is compared and has no margin" in fault for fault in execute.faults(notebook))
    cell.metadata["margin"] = 0.5
    cell.outputs = [nbformat.v4.new_output("execute_result", data={"text/plain": "0.33333"})]
    assert not any("code cell 2 " in fault for fault in execute.faults(notebook))
    cell.outputs[0].data["text/plain"] = "0.333333"
    assert any("code cell 2 is compared and shows a number with six" in fault for fault in execute.faults(notebook))


def test_the_command_writes_nothing_unsafe_and_tells_what_takes_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny(tmp_path)
    (tmp_path / "README.md").write_text("Asked here:\n<!--contents-->\n<!--/contents-->\n")
    notebook = execute.read(path)
    notebook.cells[2].source = "print(f'{0.25:.1f}')"
    execute.write(notebook, path)
    before = path.read_bytes()
    monkeypatch.setattr(execute, "notebooks", lambda folder=None: [path])
    took = iter([24.9, 25.1, 3.0])

    def fake(notebook: Any, folder: Path) -> tuple[Any, Any]:
        for cell in notebook.cells[2:5:2]:
            cell.metadata["margin"] = 0.0 if "0.25" in cell.source else 0.5
        return notebook, execute.Spent(next(took), 99.0)

    monkeypatch.setattr(execute, "execute", fake)
    assert execute.main(["--times", "03"]) == 0 and execute.main(["--times"]) == 1
    assert path.read_bytes() == before
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "03_tiny.ipynb: 24.9 s CPU, 99.0 s wall; limit 25 s",
        "03_tiny.ipynb: 25.1 s CPU, 99.0 s wall; limit 25 s, OVER",
    ]
    assert execute.main(["03"]) == 1
    assert "is not written: code cell 2 shows a number 0 units" in capsys.readouterr().err
    assert "| 03 | [Tiny](03_tiny.ipynb) | Which? | 2 minutes | 5 seconds |" in (tmp_path / "README.md").read_text()
    assert execute.read(path).cells[2].source == notebook.cells[2].source
    assert "margin" not in execute.read(path).cells[2].metadata
    assert [execute.limit(Path(f"{n}_x.ipynb")) for n in ("00", "01", "02", "11")] == [60, 25, 60, 25]
