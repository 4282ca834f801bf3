"""pytest runs the notebooks of this folder with nbval; tables in text are compared, drawings are not."""

from typing import Any

DRAWN = ("application/vnd.plotly.v1+json", "text/html")  # beside the rounded table in text/plain


def pytest_collectstart(collector: Any) -> None:
    """Adds what is not compared to what nbval leaves out itself (PNG, JPEG, widgets)."""
    if hasattr(collector, "skip_compare"):
        collector.skip_compare += DRAWN
