"""A figure with hover and zoom inside a widget."""

from typing import Any

import ipywidgets as widgets

from dne_lab.plots.figure import PLOTLY_MIME, Figure


class FigureView(widgets.Output):
    """Shows a `Figure` as plotly's JSON, which the renderer that JupyterLab and Voilà have of it draws.

    plotly's own FigureWidget is not used: each one brings 5 MB of JavaScript, into the memory of the page and into the
    notebook that is saved with its widgets, and after a reload, or in Voilà, it shows what it held first. This one
    holds what is drawn (some kB), and shows it again after a reload.
    """

    def __init__(self, name: str) -> None:
        super().__init__(layout=widgets.Layout(width="100%"))
        self.add_class(name)

    def show(self, figure: Figure) -> None:
        """Draws a figure in place of what is there."""
        tree = figure.plotly()
        self.layout.min_height = f"{tree['layout']['height']}px"  # what stands below does not jump
        data: dict[str, Any] = {PLOTLY_MIME: tree, "text/plain": figure.title}
        self.outputs = ({"output_type": "display_data", "data": data, "metadata": {}},)
