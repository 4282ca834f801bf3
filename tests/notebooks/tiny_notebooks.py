"""The scripts beside the notebooks, and a notebook that is executed in a moment."""

import sys
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "notebooks"
sys.path.insert(0, str(NOTEBOOKS))
import execute  # noqa: E402
import instrument  # noqa: E402

__all__ = ["COMMITTED", "EXERCISE", "FIRST", "LAST", "NOTEBOOKS", "ROOT", "execute", "instrument", "tiny"]

FIRST = (
    "# Tiny\n**Question.** Which?\n\n- **Data**: none\n- **Run time**: under 5 seconds\n"
    "- **Reading**: 2 minutes. Terms are in the [glossary](glossary.md)."
)
EXERCISE = (
    "## Exercises\n\n**1.** How much?\n\n<details>\n<summary>Answer</summary>\n\n"
    "This much:\n\n```python\n{}\n```\n\n</details>"
)
LAST = "## What was and was not reproduced\n\nNothing."
COMMITTED = execute.notebooks()


def tiny(folder: Path) -> Path:
    """A notebook with a table, a stream, a widget and a drawing whose bytes differ each time."""
    cells = [
        nbformat.v4.new_markdown_cell(FIRST),
        nbformat.v4.new_code_cell("import pandas as pd\nimport ipywidgets as widgets\nprint('a')\nprint('b')"),
        nbformat.v4.new_code_cell("pd.DataFrame({'x': [1.25, 2.5]})", metadata={"tags": ["nbval-check-output"]}),
        nbformat.v4.new_code_cell("widgets.IntSlider(value=3, description='layer')"),
        nbformat.v4.new_code_cell(
            "import secrets\nfrom IPython.display import display\n"
            "kinds = ('application/vnd.plotly.v1+json', 'text/html')\n"
            "display({kind: secrets.token_hex() for kind in kinds} | {'text/plain': 'two marks'}, raw=True)",
            metadata={"tags": ["nbval-check-output"], "collapsed": True},
        ),
        nbformat.v4.new_markdown_cell(EXERCISE.format("print('twice a:', 2 * 'a')")),
        nbformat.v4.new_markdown_cell(LAST),
    ]
    path = folder / "03_tiny.ipynb"
    execute.write(nbformat.v4.new_notebook(cells=cells), path)
    return path
