"""One colour and one marker for each method, the same in every figure, told apart by colour-blind readers too.

Colours are from the palettes of Okabe and Ito and of Tol (muted); where two are close, the markers differ.
"""

import zlib
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Style(NamedTuple):
    """Colour as #rrggbb, marker as matplotlib and as plotly name it."""

    colour: str
    marker: str
    symbol: str


STYLES = {
    "joint": Style("#000000", "_", "line-ew"),
    "joint-resnet": Style("#666666", "|", "line-ns"),
    "ia": Style("#0072b2", "o", "circle"),
    "sta": Style("#d55e00", "s", "square"),
    "dne": Style("#009e73", "D", "diamond"),
    "progressive": Style("#cc79a7", "^", "triangle-up"),
    "finetune": Style("#999999", "v", "triangle-down"),
    "replay": Style("#56b4e9", "P", "cross"),
    "finetune-resnet": Style("#bbbbbb", "1", "y-down"),
    "replay-resnet": Style("#88ccee", "2", "y-up"),
    "icarl": Style("#e69f00", "X", "x"),
    "podnet": Style("#882255", "<", "triangle-left"),
    "der": Style("#332288", ">", "triangle-right"),
    "foster": Style("#999933", "p", "pentagon"),
    "dytox": Style("#aa4499", "h", "hexagon"),
}
OTHERS = (Style("#5b4a3f", "*", "star"), Style("#44706f", "d", "diamond-tall"), Style("#7a5195", "8", "octagon"))

# The four groups of (query, key) pairs: blue = same patch, orange = different; dark = same head, light = different.
# Okabe and Ito; told apart under every common colour blindness, and in grey the dark from the light ones.
GROUPS = {"SPSH": "#0072b2", "SPDH": "#56b4e9", "DPSH": "#d55e00", "DPDH": "#e69f00"}
GROUP_WORDS = {
    "SPSH": "same patch, same head",
    "SPDH": "same patch, different head",
    "DPSH": "different patch, same head",
    "DPDH": "different patch, different head",
}

# Lines of one method that differ in a setting (heads, tasks) share its colour.
DASHES = (("-", "solid"), ("--", "dash"), (":", "dot"), ("-.", "dashdot"))

# On top of matplotlib's own defaults, so that a user's matplotlibrc does not change committed figures.
MATPLOTLIB = {
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e5e5",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 5.0,
    "svg.hashsalt": "dne_lab",
    "figure.dpi": 100.0,
    "savefig.dpi": 150.0,
}


def style(method: str) -> Style:
    """The style of a method's name; one of a few for methods of a user's own, always the same for the same name."""
    return STYLES[method] if method in STYLES else OTHERS[zlib.crc32(method.encode()) % len(OTHERS)]


def log_axis(axes: "Axes", span: float, vertical: bool = False) -> None:
    """A logarithmic axis of plain numbers, with ticks at 1, 2 and 5 where it spans less than two decades."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis = axes.yaxis if vertical else axes.xaxis
    (axes.set_yscale if vertical else axes.set_xscale)("log")
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if span < 100 else (1.0,)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())
