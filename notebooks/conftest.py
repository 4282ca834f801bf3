"""pytest runs the notebooks of this folder with nbval; tables in text are compared, drawings are not."""

from typing import Any

# Beside the rounded table in text/plain. A running kernel sends plotly's form, a committed notebook keeps the PNG, and
# that nbval leaves out by itself.
DRAWN = ("application/vnd.plotly.v1+json", "text/html")
WAIT = 60  # seconds that the outputs of a cell may come after its end: on busy cores nbval's five are too few


def pytest_collectstart(collector: Any) -> None:
    """Adds what is not compared to what nbval leaves out itself (PNG, JPEG, widgets)."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += DRAWN


def pytest_itemcollected(item: Any) -> None:
    """A cell waits longer for its outputs."""
    if hasattr(item, "output_timeout"):
        item.output_timeout = WAIT
